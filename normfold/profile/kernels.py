"""One level of the runtime: every kernel with its time, its place in the user's model, its cost and its slack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from normfold.errors import CannotTell, WorkerCrashed
from normfold.export.worker import run_task
from normfold.graph import Array
from normfold.profile.clock import Interval
from normfold.profile.cost import Tensor, operations, traffic
from normfold.profile.critical_path import WORKERS, critical_path, makespan
from normfold.profile.mapping import Mapped, map_kernels
from normfold.profile.origin import Original
from normfold.profile.result import Bound, Kernel, Layer, Level, Machine, Parallel, Reconciled, Setting

TASKS = "normfold.profile.tasks"
_RESAMPLES = 1000
_PLAUSIBLE = 10e-6  # no more than this is believed to be the profiler's, beyond what the chain shows


@dataclass(frozen=True)
class Feeds:
    """Arrays in an .npz file, and the names of the inputs that they are for."""

    path: Path
    names: list[str]


def write_feeds(arrays: dict[str, Array], path: Path) -> Feeds:
    """Raises CannotTell for inputs that are not plain arrays."""
    if any(not isinstance(array, np.ndarray) or array.dtype == object for array in cast("dict[str, Any]", arrays).values()):
        raise CannotTell("the model takes inputs that are not arrays of numbers, which the profile cannot hand over")
    np.savez(path, *arrays.values(), allow_pickle=False)
    return Feeds(path, list(arrays))


def shared(setting: Setting, feeds: Feeds, level: str) -> dict[str, Any]:
    """The arguments that all measuring tasks take."""
    return {
        "feeds": str(feeds.path),
        "names": feeds.names,
        "level": level,
        "threads": setting.threads,
        "spinning": setting.spinning,
        "affinity": list(setting.affinity),
    }


def measure_level(
    original: Original, where: Path, feeds: Feeds, level: str, setting: Setting, machine: Machine, folder: Path, seconds: float
) -> Level:
    """Profile `original` at one level of the runtime, in a worker process.

    where: the folder that its external data lies in.  folder: for temporary files.
    Raises CannotTell where the runtime does not take or run the model, WorkerCrashed where it dies.
    """
    model, optimized, out = (folder / f"{level}{suffix}" for suffix in (".model", ".onnx", ".npz"))
    model.write_bytes(original.model.SerializeToString())
    arguments = {
        "model": str(model),
        "folder": str(where.resolve()),
        "optimized": str(optimized),
        "seconds": seconds,
        "out": str(out),
        **shared(setting, feeds, level),
    }
    answer = ask("kernels", arguments, f"profiling at level {level}")
    graph = onnx.ModelProto.FromString(optimized.read_bytes())
    mapped = map_kernels(original, graph)
    with np.load(out, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    for path in (model, optimized, out, optimized.with_name(f"{optimized.name}.data")):
        path.unlink(missing_ok=True)
    return _level(level, answer, found, mapped, machine, setting.confidence)


def ask(task: str, arguments: dict[str, Any], subject: str, seconds: float = 900.0) -> Any:
    """Run a measuring task in a worker process.  Raises CannotTell with the worker's complaint, WorkerCrashed when it died."""
    try:
        return run_task(f"{TASKS}:{task}", arguments, subject=subject, seconds=seconds)
    except WorkerCrashed as error:
        text = str(error)
        if text.startswith(f"{subject} failed: "):
            raise CannotTell(f"ONNX Runtime cannot do this, {text}") from error
        raise


def _level(
    name: str, answer: dict[str, Any], found: dict[str, Array], mapped: dict[str, Mapped], machine: Machine, confidence: float
) -> Level:
    shown, calls = robust(found["seconds"]), found["calls"].mean(axis=0)
    wall, run, executor, profiled = (float(robust(found[key]).mean()) for key in ("bare", "run", "executor", "wall"))
    around, binding = max(run - executor, 0.0), max(profiled - run, 0.0)
    overhead = fitted(shown.mean(axis=0), calls, float(found["overhead"]), wall - around - binding)
    every = without(shown, overhead, found["calls"])
    seconds = every.mean(axis=0)
    items = [mapped.get(key) or Mapped(key, op) for key, op in zip(answer["names"], answer["ops"], strict=True)]
    place = {item.name: index for index, item in enumerate(items)}
    kernels: list[Kernel] = []
    for item, op, time, count, shapes in zip(items, answer["ops"], seconds, calls, answer["shapes"], strict=True):
        kernel = _kernel(item, op, float(time), float(count), shapes, machine)
        kernel.reads = sorted(place[other] for other in item.reads if other in place)
        kernels.append(kernel)
    share = _norm_share(kernels, every, confidence)
    total = float(seconds.sum())
    reconciled = Reconciled(
        wall=wall,
        kernels=total,
        executor=wall - total - around - binding,
        around=around,
        binding=binding,
        profiled=profiled,
        inside=float(shown.mean(axis=0).sum()) - total,
    )
    known = sum(kernel.seconds for kernel in kernels if kernel.module and not kernel.inserted)
    return Level(
        name=name,
        runs=len(every),
        kernels=kernels,
        reconciled=reconciled,
        mapped=known / total if total else 0.0,
        inserted=sum(kernel.seconds for kernel in kernels if kernel.inserted) / total if total else 0.0,
        norms=share.ratio,
        norms_low=share.low,
        norms_high=share.high,
        parallel=_parallel(kernels, items),
        layers=layers(kernels),
    )


def robust(times: Array) -> Array:
    """Times of runs [runs, ...], each column winsorised (Tukey 1962): what is beyond two quantiles is pulled onto them.

    Their means add up, as medians do not, and a run that was interrupted in one kernel does not count there.  Interruptions only
    ever add time, so that more is cut off above: up to two of five runs may be disturbed in one place.
    """
    low, high = np.quantile(times, [0.2, 0.6], axis=0)
    return np.clip(times, low, high)


def without(shown: Array, overhead: float, calls: Array) -> Array:
    """Times without what the profiler adds to each call; a tenth always remains, so that small kernels keep their proportions."""
    return np.maximum(shown - overhead * calls, 0.1 * shown)


def fitted(shown: Array, calls: Array, overhead: float, limit: float) -> float:
    """Seconds that the profiler adds to every call of a kernel: `overhead`, or more where the kernels would not fit into `limit`.

    shown, calls: of the kernels [K].  limit: what a run without the profiler leaves for its kernels.  The profiler's work between
    two kernels also drives their data out of the caches, which a chain of empty kernels does not show.
    """

    def left(each: float) -> float:
        return float(without(shown, each, calls).sum())

    low, high = overhead, overhead + _PLAUSIBLE
    limit = max(limit, left(low) / 2.0)  # around a net of a few microseconds the rest is too coarse to say more
    if left(low) <= limit:
        return low
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if left(middle) > limit else (low, middle)
    return high


def _kernel(item: Mapped, op: str, seconds: float, calls: float, shapes: Sequence[Sequence[Tensor]], machine: Machine) -> Kernel:
    inputs, outputs = shapes
    flops = operations(op, [sizes for _, sizes in inputs], [sizes for _, sizes in outputs])
    primary = item.primary
    kernel = Kernel(
        name=item.name,
        op=op,
        seconds=seconds,
        calls=calls,
        layer=primary.layer if primary is not None else item.name,
        members=[node.name for node in item.members],
        module=primary is not None and primary.module,
        inserted=item.inserted,
        norm=item.norm,
        flops=None if flops is None else flops * calls,
        bytes=traffic([*inputs, *outputs]) * calls,
    )
    kernel.bound, kernel.attained = roof(kernel.flops, kernel.bytes, seconds, machine)
    return kernel


def roof(flops: float | None, count: float | None, seconds: float, machine: Machine) -> tuple[Bound, float | None]:
    """Which roof is lower, and which part of it was reached (above 1: the data came from the cache, not from memory).

    Williams, Waterman and Patterson 2009: no faster than flops / peak, nor than bytes / bandwidth.
    """
    if flops is None or count is None or not machine.flops or not machine.bandwidth:
        return "", None
    compute, memory = flops / machine.flops, count / machine.bandwidth
    return ("compute" if compute > memory else "memory"), (max(compute, memory) / seconds if seconds > 0 else None)


def _norm_share(kernels: list[Kernel], seconds: Array, confidence: float) -> Interval:
    """The part of the kernel time that norms take, with its percentile bootstrap interval over the runs."""
    norms = np.array([bool(kernel.norm) for kernel in kernels], dtype=bool)
    part, whole = seconds[:, norms].sum(axis=1), np.maximum(seconds.sum(axis=1), 1e-12)
    drawn = np.random.default_rng(0).integers(0, len(whole), size=(_RESAMPLES, len(whole)))
    ratios = part[drawn].sum(axis=1) / whole[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    ratio = float(part.sum() / whole.sum())
    return Interval(ratio, min(float(low), ratio), max(float(high), ratio))


def _parallel(kernels: list[Kernel], items: list[Mapped]) -> Parallel:
    """Fill in start and slack; a kernel in a sub-graph counts to the one that holds it."""
    place = {kernel.name: index for index, kernel in enumerate(kernels)}
    lasting = [0.0 if item.owner in place else kernel.seconds for item, kernel in zip(items, kernels, strict=True)]
    for item, kernel in zip(items, kernels, strict=True):
        if item.owner in place:
            lasting[place[item.owner]] += kernel.seconds
    reads = [[j for j in kernel.reads if j < i] for i, kernel in enumerate(kernels)]
    paths = critical_path(lasting, reads)
    on_path = set(paths.path)
    for index, kernel in enumerate(kernels):
        holder = place.get(items[index].owner, index)
        kernel.start, kernel.slack, kernel.critical = paths.start[holder], paths.slack[holder], holder in on_path
    spans = {str(workers): makespan(lasting, reads, paths.tail, workers) for workers in WORKERS}
    return Parallel(paths.length, spans, [kernels[index].name for index in paths.path])


def layers(kernels: Sequence[Kernel]) -> list[Layer]:
    """Kernels of one layer together, the dearest layer first."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.layer, []).append(kernel)
    total = sum(kernel.seconds for kernel in kernels) or 1.0
    rows = [_layer(name, group, total) for name, group in groups.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def _layer(name: str, group: list[Kernel], total: float) -> Layer:
    seconds = sum(kernel.seconds for kernel in group)
    by_time = sorted(group, key=lambda kernel: -kernel.seconds)
    known = [kernel for kernel in group if kernel.flops is not None and kernel.bytes is not None]
    reached = [kernel for kernel in known if kernel.attained is not None]
    return Layer(
        name=name,
        seconds=seconds,
        share=seconds / total,
        ops=list(dict.fromkeys(kernel.op for kernel in by_time)),
        kernels=[kernel.name for kernel in group],
        members=list(dict.fromkeys(member for kernel in group for member in kernel.members)),
        flops=sum(kernel.flops or 0.0 for kernel in known) if known else None,
        bytes=sum(kernel.bytes or 0.0 for kernel in known) if known else None,
        bound=by_time[0].bound,
        attained=sum((kernel.attained or 0.0) * kernel.seconds for kernel in reached) / seconds if reached and seconds else None,
        slack=min(kernel.slack for kernel in group),
        critical=any(kernel.critical for kernel in group),
        norm=sum(kernel.seconds for kernel in group if kernel.norm),
    )
