"""Sentences of a profile, the same on the terminal and in the page."""

from __future__ import annotations

import math

from normfold.profile.budget import percent_of
from normfold.profile.result import Budget, Latency, Level, Machine, ModelProfile, Percentile, Setting
from normfold.report.words import bytes_text, plural, seconds_text


def percent(share: float) -> str:
    """``2.9 %``."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def rate(value: float, unit: str) -> str:
    """``84 Gflop/s``."""
    return f"{value / 1e9:.3g} G{unit}/s"


def setting_sentence(setting: Setting, machine: Machine) -> str:
    """Threads, processors and what they do."""
    where = f"on processors {', '.join(map(str, machine.cores))}"
    idle = "" if setting.threads == 1 else (", spinning while idle" if setting.spinning else ", sleeping while idle")
    runtime = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}.get(setting.runtime, setting.runtime)
    return f"{runtime}, level {setting.level}, {plural(setting.threads, 'thread')}{idle}, {where}"


def machine_sentence(machine: Machine) -> str:
    """The processor and what it was doing."""
    kind = " (virtual machine)" if machine.virtual else ""
    memory = f", {bytes_text(machine.memory)} of memory" if machine.memory else ""
    return f"{machine.cpu}{kind}{memory}, governor {machine.governor}, load {machine.load:.2f}, {machine.system}"


def peaks_sentence(machine: Machine) -> str:
    """The measured peaks."""
    speeds = f"{rate(machine.bandwidth, 'B')} from memory, {rate(machine.cache, 'B')} from the cache"
    return f"measured peaks: {rate(machine.flops, 'flop')}, {speeds}"


def percentile_text(item: Percentile, runs: int) -> str:
    """``p99 at most 1.92 ms``; what is missing where there is no bound."""
    name = f"p{item.percent:g}"
    if math.isinf(item.high):
        return f"{name} {seconds_text(item.value)} (no bound: {item.needed} runs are needed, {runs} were made)"
    return f"{name} at most {seconds_text(item.high)}"


def latency_sentence(latency: Latency) -> str:
    """Median with its bounds and percentile bounds."""
    median = latency.at(50.0)
    others = [percentile_text(item, latency.runs) for item in latency.percentiles if item.percent != 50.0]
    bounds = f" [{seconds_text(median.low)}, {seconds_text(median.high)}]" if math.isfinite(median.high) else ""
    return (
        f"median {seconds_text(median.value)}{bounds}; {'; '.join(others)}" if others else f"median {seconds_text(median.value)}"
    )


def runs_sentence(latency: Latency) -> str:
    """How many runs."""
    state = "until the times settled" if latency.settled else "and the times had not settled"
    confidence = latency.percentiles[0].confidence
    return (
        f"{plural(latency.runs, 'run')} after {latency.warm_up} to warm up, {state}; bounds hold at {100 * confidence:g} % each"
    )


def noise_sentence(profile: ModelProfile) -> str:
    """The A/A self-test."""
    timing = profile.noise
    interval = f"[{timing.low:.3f}, {timing.high:.3f}]"
    state = "TOO NOISY to tell 2 % apart" if profile.noisy else "quiet enough to tell 2 % apart"
    return f"against itself: {timing.ratio:.3f}x the time {interval} at {100 * timing.confidence:g} %, {state}"


def cold_sentence(profile: ModelProfile) -> str:
    """Cold start and memory."""
    cold = profile.cold
    start = f"runtime imported in {seconds_text(cold.imported)}, model loaded in {seconds_text(cold.loaded)}"
    runs = f"first run {seconds_text(cold.first)}, second {seconds_text(cold.second)}"
    if cold.peak is None:
        return f"{start}, {runs}"
    model = f" ({bytes_text(max(0, cold.peak - cold.base))} for the model)" if cold.base is not None else ""
    return f"{start}, {runs}; peak memory {bytes_text(cold.peak)}{model}"


def reconciled_sentence(level: Level) -> str:
    """Where the wall time goes."""
    parts = level.reconciled
    rest = [("from kernel to kernel", parts.executor), ("around the executor", parts.around), ("in Python", parts.binding)]
    named = " ".join(f"{'-' if value < 0 else '+'} {seconds_text(abs(value))} {name}" for name, value in rest)
    kernels = f"{seconds_text(parts.kernels)} in {plural(len(level.kernels), 'kernel')} ({percent(parts.explained)})"
    return f"wall {seconds_text(parts.wall)} = {kernels} {named}"


def profiler_sentence(level: Level) -> str:
    """What the profiler itself costs."""
    parts = level.reconciled
    took = f"the profiler adds {seconds_text(max(0.0, parts.profiled - parts.wall))} to a run"
    return f"{took}; {seconds_text(parts.inside)} of that lay inside kernels and was taken off"


def mapped_sentence(level: Level) -> str:
    """How much of the time has a place in the user's model."""
    inserted = f", {percent(level.inserted)} in changes of layout that the runtime put in" if level.inserted else ""
    return f"{percent(level.mapped)} of the kernel time has a module path{inserted}"


def parallel_sentence(level: Level) -> str:
    """The critical path and what several workers could reach."""
    total, found = level.seconds, level.parallel
    if not found.critical or not total:
        return "critical path: not known, for what each module reads is not"
    best = total / found.critical
    path = f"critical path {seconds_text(found.critical)} of {seconds_text(total)}"
    if best < 1.02:
        return f"{path}: all but a chain, no parallel executor gains anything"
    spans = ", ".join(f"{total / span:.2f}x with {workers}" for workers, span in found.makespan.items() if span)
    return f"{path}: no parallel executor is more than {best:.2f}x as fast; {spans} workers"


def budget_value(name: str, value: float) -> str:
    """A measured or allowed value in its own unit."""
    if math.isinf(value):
        return "unknown"
    if percent_of(name) is not None:
        return seconds_text(value)
    if name in ("size", "memory"):
        return bytes_text(int(value))
    return percent(value) if name == "norm-share" else f"{value:.3g}"


def budget_sentence(budget: Budget) -> str:
    """``p99 within 5 ms: between 1.9 ms and 2.1 ms``."""
    name = budget.measure
    low, high = budget_value(name, budget.low), budget_value(name, budget.high)
    measured = low if low == high else f"between {low} and {high}"
    limit = budget_value(name, budget.limit)
    words = {"within": f"within {limit}", "over": f"OVER {limit}", "cannot tell": f"cannot be told from {limit} here"}
    return f"{name} {words[budget.verdict]}: {measured}"
