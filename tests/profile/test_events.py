"""The profiler's event file: runs, kernels, and kernels that hold others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normfold.errors import CannotTell
from normfold.profile.events import read_events


def event(name: str, ts: int, dur: int, op: str = "", **arguments: Any) -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur, "ph": "X", "args": {"op_name": op, **arguments} if op else {}}


def run(ts: int, *kernels: dict[str, Any], dur: int = 100) -> list[dict[str, Any]]:
    return [*kernels, event("SequentialExecutor::Execute", ts + 2, dur - 5), event("model_run", ts, dur)]


def written(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text(json.dumps([event("session_initialization", 0, 500), *events]))
    return path


def test_kernels_by_run_the_last_runs_only(tmp_path: Path) -> None:
    shapes = {"input_type_shape": [{"float": [1, 3]}, {"int64": []}], "output_type_shape": [{"float": [3]}]}
    path = written(
        tmp_path / "e.json",
        *run(1000, event("a_kernel_time", 1010, 40, "Conv", **shapes), event("b_kernel_time", 1055, 3, "Relu")),
        *run(2000, event("a_kernel_time", 2010, 10, "Conv", **shapes), event("b_kernel_time", 2020, 5, "Relu")),
        *run(3000, event("a_kernel_time", 3010, 20, "Conv", **shapes), event("b_kernel_time", 3031, 6, "Relu"), dur=90),
    )
    found = read_events(path, last=2)
    assert found.names == ["a", "b"]
    assert found.ops == ["Conv", "Relu"]
    assert found.seconds == pytest.approx(np.array([[10e-6, 5e-6], [20e-6, 6e-6]]))
    assert found.run == pytest.approx([100e-6, 90e-6])
    assert found.executor == pytest.approx([95e-6, 85e-6])
    assert found.shapes[0] == ([("float", [1, 3]), ("int64", [])], [("float", [3])])


def test_a_loop_is_not_counted_twice(tmp_path: Path) -> None:
    inner = [event("inner_kernel_time", 1020 + 10 * i, 8, "Add") for i in range(3)]
    nested = [event("if_kernel_time", 1060, 20, "If"), event("deep_kernel_time", 1062, 10, "Mul")]
    path = written(
        tmp_path / "e.json",
        *run(1000, event("loop_kernel_time", 1015, 70, "Loop"), *inner, *nested, event("after_kernel_time", 1085, 4, "Relu")),
    )
    found = read_events(path, last=1)
    seconds = dict(zip(found.names, found.seconds[0] * 1e6, strict=True))
    assert seconds == pytest.approx({"loop": 70 - 24 - 20, "inner": 24, "if": 10, "deep": 10, "after": 4})
    assert dict(zip(found.names, found.calls[0], strict=True))["inner"] == 3


def test_an_ordinary_kernel_holds_nothing(tmp_path: Path) -> None:
    """Whole microseconds: the next one may seem to start inside."""
    path = written(tmp_path / "e.json", *run(10, event("a_kernel_time", 20, 5, "Conv"), event("b_kernel_time", 24, 0, "Relu")))
    assert read_events(path, last=1).seconds[0] == pytest.approx([5e-6, 0.0])


def test_runs_that_the_profiler_dropped_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(CannotTell, match="kept 1 of 3"):
        read_events(written(tmp_path / "e.json", *run(10, event("a_kernel_time", 20, 5, "Conv"))), last=3)
