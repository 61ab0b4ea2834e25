"""The event file of ONNX Runtime's profiler as arrays: seconds of every kernel in every run.

Events carry whole microseconds, rounded down.  A kernel that runs others (If, Loop, Scan) spans them: what it shows
here is its own time, without theirs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array

_KERNEL = "_kernel_time"
_HOLDS_OTHERS = frozenset(("If", "Loop", "Scan", "SequenceMap"))
Shapes = list[tuple[str, list[int]]]
"""(element type, sizes) of every tensor."""


@dataclass(frozen=True)
class Events:
    """names, ops: of the kernels [K], in order of first start.  seconds, calls: [runs, K].

    run, executor: seconds of the runs and of the executor in them [runs].
    shapes: [K] of (inputs, outputs), at the first call.
    """

    names: list[str]
    ops: list[str]
    seconds: Array
    calls: Array
    run: Array
    executor: Array
    shapes: list[tuple[Shapes, Shapes]]


def read_events(path: Path, *, last: int) -> Events:
    """The last so many runs of an event file.  Raises CannotTell when it does not hold them."""
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    runs = sorted(_span(item) for item in events if item.get("name") == "model_run")[-last:]
    if len(runs) < last:
        raise CannotTell(f"the profiler of ONNX Runtime kept {len(runs)} of {last} runs: give --seconds less time")
    starts = np.array([begin for begin, _ in runs])
    kernels: dict[str, int] = {}
    ops: list[str] = []
    shapes: list[tuple[Shapes, Shapes]] = []
    rows: list[tuple[int, int, float]] = []
    executor = np.zeros(last)
    held = _without_others([item for item in events if str(item.get("name", "")).endswith(_KERNEL)])
    for item, own in held:
        row = int(np.searchsorted(starts, item["ts"], side="right")) - 1
        if row < 0 or item["ts"] > runs[row][1]:
            continue
        name, arguments = item["name"].removesuffix(_KERNEL), item.get("args", {})
        if name not in kernels:
            kernels[name] = len(kernels)
            ops.append(str(arguments.get("op_name", "")))
            shapes.append((_shapes(arguments.get("input_type_shape")), _shapes(arguments.get("output_type_shape"))))
        rows.append((row, kernels[name], own * 1e-6))
    for item in events:
        if item.get("name") == "SequentialExecutor::Execute":
            row = int(np.searchsorted(starts, item["ts"], side="right")) - 1
            if 0 <= row < last and item["ts"] <= runs[row][1]:
                executor[row] = max(executor[row], item["dur"] * 1e-6)  # sub-graphs have executors of their own, inside
    seconds, calls = np.zeros((last, len(kernels))), np.zeros((last, len(kernels)))
    if rows:
        index = np.array([(row, column) for row, column, _ in rows])
        np.add.at(seconds, (index[:, 0], index[:, 1]), np.array([own for _, _, own in rows]))
        np.add.at(calls, (index[:, 0], index[:, 1]), 1.0)
    durations = np.array([end - begin for begin, end in runs]) * 1e-6
    return Events(list(kernels), ops, seconds, calls, durations, np.minimum(executor, durations), shapes)


def _span(item: dict[str, Any]) -> tuple[int, int]:
    return item["ts"], item["ts"] + item["dur"]


def _without_others(kernels: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Every kernel with its own microseconds: those of kernels that ran inside it are taken off."""
    ordered = sorted(kernels, key=lambda item: (item["ts"], -item["dur"]))
    own = [float(item["dur"]) for item in ordered]
    open_: list[int] = []  # the kernels that hold others and are running, outermost first
    for index, item in enumerate(ordered):
        begin, end = _span(item)
        while open_ and not (begin >= ordered[open_[-1]]["ts"] and end <= _span(ordered[open_[-1]])[1]):
            open_.pop()
        if open_:
            own[open_[-1]] -= item["dur"]
        if item.get("args", {}).get("op_name") in _HOLDS_OTHERS:
            open_.append(index)
    return [(item, max(seconds, 0.0)) for item, seconds in zip(ordered, own, strict=True)]


def _shapes(described: Any) -> Shapes:
    """[{"float": [1, 3]}, ...] as pairs."""
    pairs: Shapes = []
    for entry in described or ():
        for kind, sizes in entry.items():
            pairs.append((str(kind), [int(size) for size in sizes]))
    return pairs
