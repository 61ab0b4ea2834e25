"""Sentences of the report: numbers said plainly, and the same in every output format."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.record import Comparison, Timing

GATES = {
    "G1": "algebra in float64",
    "G2": "stored weights in float64",
    "G3": "in the runtime",
    "certificate": "every surviving tensor in float64",
    "contract": "names, order, types, shapes",
    "reference": "the original's runtime against float64",
    "value": "values inside",
}


def shown(text: str) -> str:
    """`text` with control and escape characters written out, so that a name cannot steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def plural(count: int, word: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def bytes_text(count: int) -> str:
    """``12.3 MiB``."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count:,} B" if unit == "B" else f"{size:,.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """``1.23 ms`` with three digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1.0 or unit == "us":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds:.3g} s"


def latency_sentence(timing: Timing) -> str:
    """What was measured, the ratio with its interval, and the verdict in words."""
    level = "default level (all)" if timing.level == "all" else f"level {timing.level}"
    where = f"{timing.runtime}, {level}, {plural(timing.threads, 'thread')}"
    digits = 2 if timing.high - timing.low >= 0.02 else 3
    interval = f"[{timing.low:.{digits}f}, {timing.high:.{digits}f}] at {100 * timing.confidence:g} %"
    ratio = f"{timing.ratio:.{digits}f}x the time {interval}"
    times = f"{seconds_text(timing.before)} before, {seconds_text(timing.after)} after"
    return f"{where}: {times}, {ratio}: {verdict_words(timing)}"


def verdict_words(timing: Timing) -> str:
    """The verdict as a clause."""
    if timing.verdict == "faster":
        return f"{1 / timing.ratio:.2f} times as fast"
    if timing.verdict == "slower":
        return f"slower, {100 * (timing.ratio - 1):.1f} % more time"
    if timing.verdict == "too noisy to tell":
        return f"too noisy to tell (before against itself: [{timing.self_low:.2f}, {timing.self_high:.2f}])"
    return timing.verdict


def share(comparison: Comparison) -> float:
    """How much of what is allowed the error uses; infinite when nothing is allowed or the error is no number."""
    if comparison.error == 0:
        return 0.0
    ratio = comparison.error / comparison.allowed if comparison.allowed > 0 else float("inf")
    return ratio if ratio == ratio else float("inf")


def gate_sentence(gate: str, comparisons: Sequence[Comparison]) -> str:
    """One line on all comparisons of a gate: how many, over which inputs, how close the worst one came."""
    worst = max(comparisons, key=share)
    failed = sum(not item.passed for item in comparisons)
    families = sorted({item.family for item in comparisons if item.family})
    over = f" over {plural(len(families), 'kind')} of input" if families else ""
    what = f" ({GATES[gate]})" if gate in GATES else ""
    state = f"{failed:,} of {plural(len(comparisons), 'comparison')} failed" if failed else plural(len(comparisons), "comparison")
    return f"{gate}{what}: {state}{over}; the worst used {_percent(share(worst))} of what is allowed"


def verification_word(comparisons: Sequence[Comparison]) -> str:
    """Passed, FAILED, or "cannot tell" when only the original's own reference is in doubt."""
    if any(not item.passed and item.gate != "reference" for item in comparisons):
        return "FAILED"
    return "passed" if all(item.passed for item in comparisons) else "cannot tell"


def failure_sentence(comparison: Comparison) -> str:
    """A comparison that failed: where, by how much."""
    where = f", {shown(comparison.where)}" if comparison.where else ""
    family = f" on {shown(comparison.family)} inputs" if comparison.family else ""
    amount = f"error {comparison.error:.3g}, allowed {comparison.allowed:.3g}"
    return f"{comparison.gate} of {shown(comparison.subject)}{where}{family}: {amount}"


def _percent(ratio: float) -> str:
    if ratio == float("inf"):
        return "more than all"
    if ratio and ratio < 0.001:
        return "less than 0.1 %"
    return f"{100 * ratio:.3g} %"


def difference(before: int, after: int) -> str:
    """``-23 (-19 %)``, empty when nothing changed."""
    if before == after:
        return "no change"
    percent = f" ({100 * (after - before) / before:+.0f} %)" if before and abs(after - before) / before >= 0.005 else ""
    return f"{after - before:+,}{percent}"
