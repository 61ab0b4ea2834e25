"""The machine that something was measured on: what it says of itself, and its peaks as they can be measured.

The peaks are those of the runtime that is profiled, with its threads: a float32 MatMul by a constant for operations (2 n^3), and
an addition of two arrays for bandwidth, once far larger than any cache (3 arrays of 16 MiB) and once within it (3 of 256 KiB).
Each is the best of many short calls: a peak is what nothing disturbed.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from normfold.graph import Array
from normfold.profile.result import Machine
from normfold.profile.sessions import session_options

_PACKAGES = ("normfold", "onnxruntime", "numpy", "torch", "onnx")
_MATRIX, _LARGE, _SMALL = 384, 1 << 22, 1 << 16
_TRIES = 7  # at least, for each


def describe(affinity: tuple[int, ...] = ()) -> Machine:
    """What the system says, without the peaks; what it does not say is "unknown" or 0."""
    cpuinfo = _read("/proc/cpuinfo")
    model = next((line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "")
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    total = next((line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")), "0")
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    return Machine(
        cpu=model or platform.processor() or platform.machine() or "unknown",
        cores=affinity or tuple(allowed),
        memory=int(total) * 1024,
        system=f"{platform.system()} {platform.release()}",
        governor=governor or "unknown",
        virtual="hypervisor" in cpuinfo,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        versions=_versions(),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def measure_peaks(threads: int, spinning: bool, seconds: float = 2.0) -> dict[str, float]:
    """{"flops", "bandwidth", "cache"}: float32 operations and bytes a second; about `seconds` for all three."""
    best = _best(_session("MatMul", [_MATRIX, _MATRIX], threads, spinning), [_MATRIX, _MATRIX], 1, seconds / 3)
    large = _best(_session("Add", [_LARGE], threads, spinning), [_LARGE], 1, seconds / 3)
    small = _best(_session("Add", [_SMALL], threads, spinning), [_SMALL], 10, seconds / 3)
    return {"flops": 2.0 * _MATRIX**3 / best, "bandwidth": 12.0 * _LARGE / large, "cache": 12.0 * _SMALL / small}


def _session(op: str, sizes: list[int], threads: int, spinning: bool) -> Any:
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes) for name in ("a" if op == "MatMul" else "ab")]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sizes)
    weights = [numpy_helper.from_array(_random(sizes), "b")] if op == "MatMul" else []  # a constant is packed beforehand
    graph = helper.make_graph([helper.make_node(op, ["a", "b"], ["y"])], "peak", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = session_options(threads=threads, spinning=spinning)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _best(session: Any, sizes: list[int], repeats: int, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest call, outputs written to memory that is there already."""
    import onnxruntime as ort

    runtime: Any = ort
    binding: Any = session.io_binding()
    held: list[Any] = []  # keeps the memory that is bound
    for name in (*(item.name for item in session.get_inputs()), "y"):
        held.append(runtime.OrtValue.ortvalue_from_numpy(_random(sizes)))
        bind = binding.bind_output if name == "y" else binding.bind_input
        bind(name, "cpu", 0, np.float32, sizes, held[-1].data_ptr())
    times: list[float] = []
    began = clock()
    while len(times) < _TRIES or clock() - began < seconds:
        start = clock()
        for _ in range(repeats):
            session.run_with_iobinding(binding)
        times.append((clock() - start) / repeats)
    return min(times)


def _random(sizes: list[int]) -> Array:
    return np.random.default_rng(0).standard_normal(sizes, dtype=np.float32)
