"""The clock on the runtimes: what is set up and what is refused; the times themselves are not judged here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch

from normfold.errors import CannotTell, UsageError
from normfold.profile.sessions import LEVELS, compare_onnx, compare_torch, onnx_session


def model(path: Path, op: str = "Relu", domain: str = "") -> Path:
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = oh.make_graph([oh.make_node(op, ["x"], ["y"], domain=domain)], "g", [x], [y])
    opsets = [oh.make_opsetid("", 20), *([oh.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(oh.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


FEEDS = {"x": np.ones((2, 3), np.float32)}


def test_two_files_are_compared(tmp_path: Path) -> None:
    timing = compare_onnx(model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx", "Sigmoid"), FEEDS, seconds=0.2)
    assert (timing.runtime, timing.level, timing.threads) == ("ONNX Runtime", "all", 1)
    assert timing.before > 0
    assert timing.after > 0
    assert timing.low <= timing.ratio <= timing.high
    assert timing.runs >= 2


@pytest.mark.parametrize("level", LEVELS)
def test_levels_and_threads_reach_the_session(tmp_path: Path, level: str) -> None:
    options = onnx_session(model(tmp_path / "a.onnx"), level=level, threads=2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level.name == LEVELS[level]


def test_what_the_runtime_does_not_take_cannot_be_told(tmp_path: Path) -> None:
    good, unknown = model(tmp_path / "a.onnx"), model(tmp_path / "b.onnx", "Mystery", "nowhere")
    with pytest.raises(CannotTell, match=r"cannot load .*b\.onnx"):
        compare_onnx(good, unknown, FEEDS, seconds=0.1)
    with pytest.raises(CannotTell, match=r"cannot run .*a\.onnx with the example inputs") as caught:
        compare_onnx(good, good, {"x": np.ones((9, 9), np.float32)}, seconds=0.1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="disabled, basic, extended, all; got 'fast'"):
        compare_onnx(good, good, FEEDS, level="fast")


def test_torch_is_run_without_gradients_on_the_threads_asked_for() -> None:
    seen: set[tuple[bool, int, int, str]] = set()

    def watching(x: Any, *, name: str) -> None:
        seen.add((torch.is_grad_enabled(), torch.get_num_threads(), int(x), name))

    known = torch.get_num_threads()
    timing = compare_torch(watching, watching, (torch.tensor(3),), {"name": "n"}, threads=2, seconds=0.1)
    assert seen == {(False, 2, 3, "n")}
    assert torch.get_num_threads() == known
    assert (timing.runtime, timing.level) == ("PyTorch", "eager")
