"""What is measured in a process of its own, where nothing of normfold, torch or the report is in memory or in the way.

Each function is run by `normfold.export.worker.run_task`: JSON in, JSON out, arrays by file.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from normfold.graph import Array
from normfold.profile.clock import compare_made
from normfold.profile.events import read_events
from normfold.profile.sessions import onnx_session, session_options

RUNS = 50_000  # single runs at most
_WINDOW, _STABLE, _WARM = 5, 0.02, 0.25
_CHAIN, _CHAINS = 40, 10
_SLOW = 0.05  # seconds of a run, of which fewer are made then
_TURN, _PROFILED = 6, 600  # runs in a row with and without the profiler; profiled runs at most (it stops at a million events)


def pin(affinity: list[int]) -> None:
    """Stay on these logical processors."""
    if affinity:
        os.sched_setaffinity(0, affinity)


def read_feeds(path: str, names: list[str]) -> dict[str, Array]:
    """The arrays of an .npz file written by `numpy.savez(path, *arrays)`."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}


def cold(
    path: str, feeds: str, names: list[str], level: str, threads: int, spinning: bool, affinity: list[int]
) -> dict[str, float | int | None]:
    """Import the runtime, load the model, run it twice.  The file was read before, so it comes from the system's cache."""
    pin(affinity)
    arrays = read_feeds(feeds, names)
    started = time.perf_counter()
    import onnxruntime  # noqa: F401  # pyright: ignore[reportUnusedImport]

    imported, base = time.perf_counter(), _resident("VmRSS")
    session = onnx_session(Path(path), level=level, threads=threads, spinning=spinning)
    loaded = time.perf_counter()
    session.run(None, arrays)
    first = time.perf_counter()
    session.run(None, arrays)
    second = time.perf_counter()
    return {
        "imported": imported - started,
        "loaded": loaded - imported,
        "first": first - loaded,
        "second": second - first,
        "base": base,
        "peak": _resident("VmHWM"),
    }


def _resident(field: str) -> int | None:
    """Resident memory of this process in bytes, None off Linux.  (ru_maxrss would hold the parent's size as well.)"""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def latency(
    path: str,
    feeds: str,
    names: list[str],
    level: str,
    threads: int,
    spinning: bool,
    affinity: list[int],
    seconds: float,
    least: int,
    out: str,
) -> dict[str, Any]:
    """Times of single runs, written to `out` as float64: for about `seconds`, four times as long where `least` runs need it."""
    pin(affinity)
    arrays = read_feeds(feeds, names)
    session = onnx_session(Path(path), level=level, threads=threads, spinning=spinning)
    gc.collect()
    gc.disable()
    warm, settled = warm_up(lambda: session.run(None, arrays), seconds * _WARM)
    np.save(out, np.asarray(single_runs(lambda: session.run(None, arrays), seconds, least)))
    return {"warm_up": warm, "settled": settled}


def single_runs(run: Callable[[], object], seconds: float, least: int) -> list[float]:
    """Times of single runs for about `seconds`, up to four times as long where `least` runs need it."""
    times: list[float] = []
    began = now = time.perf_counter()
    while len(times) < RUNS:
        spent = now - began
        if spent >= seconds and (len(times) >= least or spent >= 4.0 * seconds):
            break
        run()
        then, now = now, time.perf_counter()
        times.append(now - then)
    return times


def warm_up(run: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter) -> tuple[int, bool]:
    """Run until the times settle (medians of two windows in a row differ by less than 2 %) or the time is over.

    Returns how many runs that took, and whether they settled.
    """
    began, past = clock(), list[float]()
    while True:
        start = clock()
        run()
        past.append(clock() - start)
        if len(past) >= 2 * _WINDOW and len(past) % _WINDOW == 0:
            last, earlier = statistics.median(past[-_WINDOW:]), statistics.median(past[-2 * _WINDOW : -_WINDOW])
            if abs(last - earlier) <= _STABLE * earlier:
                return len(past), True
        if clock() - began >= seconds:
            return len(past), False


def compare(
    before: str,
    after: str,
    feeds: list[str],
    names: list[list[str]],
    level: str,
    threads: int,
    spinning: bool,
    affinity: list[int],
    seconds: float,
    confidence: float,
) -> dict[str, Any]:
    """The interleaved comparison of two files, each with its own inputs; a Timing as a dictionary."""
    pin(affinity)

    def maker(path: str, arrays: dict[str, Array]) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            session = onnx_session(Path(path), level=level, threads=threads, spinning=spinning)
            session.run(None, arrays)
            return lambda: session.run(None, arrays)

        return make

    first, second = (read_feeds(path, listed) for path, listed in zip(feeds, names, strict=True))
    timing = compare_made(
        maker(before, first),
        maker(after, second),
        seconds=seconds,
        confidence=confidence,
        runtime="ONNX Runtime",
        level=level,
        threads=threads,
    )
    return asdict(timing)


def kernels(
    model: str,
    folder: str,
    optimized: str,
    feeds: str,
    names: list[str],
    level: str,
    threads: int,
    spinning: bool,
    affinity: list[int],
    seconds: float,
    out: str,
) -> dict[str, Any]:
    """Runs with the profiler and without, in turns for about `seconds`; the profiled session saves its graph as `optimized`.

    model: serialized ModelProto whose external data lies in `folder`.  out: .npz for the durations of every kernel in every
    profiled run; the first run of each turn is left out, for it finds the other session's data in the caches.
    """
    import onnxruntime as ort

    pin(affinity)
    arrays = read_feeds(feeds, names)
    data = Path(model).read_bytes()

    def session(profiled: bool) -> Any:
        options = session_options(level=level, threads=threads, spinning=spinning)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        if profiled:
            options.optimized_model_filepath = optimized
            weights = f"{Path(optimized).name}.data"
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            options.enable_profiling = True
            options.profile_file_prefix = f"{optimized}.events"
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    watched, plain = session(True), session(False)
    gc.disable()
    began = time.perf_counter()
    watched.run(None, arrays)
    warm_up(lambda: plain.run(None, arrays), max(seconds * _WARM, 0.02))
    wall, bare = list[float](), list[float]()
    least = (4 if min(_turn(plain, arrays)) > _SLOW else 8) * _TURN
    while len(wall) < least or (time.perf_counter() - began < seconds and len(wall) < _PROFILED):
        bare += _turn(plain, arrays)
        wall += _turn(watched, arrays)
    events = Path(watched.end_profiling())
    found = read_events(events, last=len(wall))
    events.unlink()
    kept = np.arange(len(wall)) % _TURN > 0
    np.savez(
        out,
        seconds=found.seconds[kept],
        calls=found.calls[kept],
        run=found.run[kept],
        executor=found.executor[kept],
        wall=np.asarray(wall)[kept],
        bare=np.asarray(bare)[kept],
        overhead=np.asarray(profiler_overhead(threads, spinning, f"{optimized}.chain")),
    )
    return {"names": found.names, "ops": found.ops, "shapes": found.shapes}


def profiler_overhead(threads: int, spinning: bool, prefix: str) -> float:
    """Seconds that the profiler adds to what it says of one kernel: on a chain of Relus of one element, what each shows with it
    less what each takes without it.  (Its rounding down to whole microseconds is in that difference too.)
    """
    import onnx
    import onnxruntime as ort
    from onnx import helper

    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("v0", f"v{_CHAIN}")]
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], f"n{i}") for i in range(_CHAIN)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    arrays = {"v0": np.ones(1, np.float32)}
    sessions: list[Any] = []
    for profiled in (True, False):
        options = session_options(level="disabled", threads=threads, spinning=spinning)
        options.enable_profiling, options.profile_file_prefix = profiled, prefix
        sessions.append(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
    bare = list[float]()
    for _ in range(_CHAINS):
        bare += _turn(sessions[1], arrays)[1:]
        _turn(sessions[0], arrays)
    events = Path(sessions[0].end_profiling())
    shown = np.median(read_events(events, last=_CHAINS * _TURN).seconds, axis=0).mean()
    events.unlink()
    return max(0.0, float(shown - np.median(bare) / _CHAIN))


def _turn(session: Any, arrays: dict[str, Array]) -> list[float]:
    times: list[float] = []
    for _ in range(_TURN):
        start = time.perf_counter()
        session.run(None, arrays)
        times.append(time.perf_counter() - start)
    return times


def peaks(threads: int, spinning: bool, affinity: list[int], seconds: float) -> dict[str, float]:
    """Measured peaks of this machine; see normfold.profile.machine."""
    from normfold.profile.machine import measure_peaks

    pin(affinity)
    return measure_peaks(threads, spinning, seconds)
