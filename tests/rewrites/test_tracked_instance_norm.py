"""InstanceNorm with running statistics: one BatchNorm over axis 1, however it was exported, and then folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.helper as oh
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from build import Builder
from normfold.capture.onnx import from_onnx
from normfold.graph import Graph
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import tracked_instance_norm
from normfold.rewrites.rewrite import Policy
from routes import aten, by_onnx, randomised, run_onnx, through_onnx

N = torch.export.Dim("N", min=1, max=9)
H = torch.export.Dim("H", min=4, max=64)


def _net(affine: bool = True, padding: int = 0) -> nn.Module:
    norm = nn.InstanceNorm2d(6, affine=affine, track_running_stats=True)
    return randomised(nn.Sequential(nn.Conv2d(3, 6, 3, padding=padding, groups=3), norm, nn.Sigmoid()))


@pytest.mark.parametrize(
    ("affine", "dynamic"),
    [(True, None), (True, ({0: N},)), (False, None), (False, ({0: N, 2: H},))],
    ids=["fixed", "open batch", "no affine part", "no affine part, open batch and height"],
)
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_it_is_deleted_into_the_convolution(route: Any, affine: bool, dynamic: Any) -> None:
    taken = route(_net(affine), torch.randn(3, 3, 8, 9), dynamic=dynamic, objective="latency")
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5
    assert [node.kind for node in taken.outcome.graph.nodes] == ["Conv", "Sigmoid"]


@pytest.mark.parametrize("size", [(5, 7), (2, 6, 5, 4, 4)], ids=["1d", "3d"])
def test_other_ranks(size: tuple[int, ...]) -> None:
    shape = (2, 6, *size) if len(size) == 2 else size
    kinds = {3: (nn.Conv1d, nn.InstanceNorm1d), 4: (nn.Conv2d, nn.InstanceNorm2d), 5: (nn.Conv3d, nn.InstanceNorm3d)}
    conv, norm = kinds[len(shape)]
    module = randomised(nn.Sequential(conv(6, 4, 2), norm(4, affine=True, track_running_stats=True), nn.Tanh()))
    for route in (aten, by_onnx):
        taken = route(module, torch.randn(shape), objective="latency")
        assert taken.outcomes == ["deleted"] and taken.error <= 2e-5


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_at_the_output_and_in_front_of_an_activation(route: Any) -> None:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    at_the_end = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
    assert route(at_the_end, torch.randn(2, 3, 6, 6)).outcomes == ["deleted"]
    alone = randomised(nn.Sequential(nn.Sigmoid(), norm, nn.Sigmoid()))
    taken = route(alone, torch.randn(2, 4, 6, 6))
    assert taken.outcomes == ["kept"] and taken.codes == ["no-rule"] and taken.error <= 2e-5


def test_without_statistics_it_stays() -> None:
    module = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Sigmoid()))
    for route in (aten, by_onnx):
        taken = route(module, torch.randn(2, 3, 6, 6))
        assert taken.outcomes == ["kept"] and taken.codes == ["run-time-statistics"] and taken.error <= 2e-5


def _onnx(wide: int = 6, **changes: Any) -> Any:
    """Conv -> Reshape [1, 6, 5, 5] -> BatchNorm -> Reshape [2, 3, 5, 5] -> Sigmoid, as a fixed batch of 2 is exported."""
    rng = np.random.default_rng(0)
    once = {"gamma": [1.0, -2, 0.5], "beta": [0.1, 0.2, 0.3], "mean": [1.0, 2, 3], "var": [1e-9, 1, 2]}
    arrays = {name: np.tile(np.array(array, np.float32), wide // 3) for name, array in once.items()}
    arrays |= {"w": rng.standard_normal((3, 2, 1, 1)).astype(np.float32)}
    arrays |= {"there": np.array([1, 6, 5, 5]), "back": np.array([2, 3, 5, 5])}
    arrays |= {name: np.asarray(array, arrays[name].dtype) for name, array in changes.items()}
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("Reshape", ["c", "there"], ["r"]),
        oh.make_node("BatchNormalization", ["r", "gamma", "beta", "mean", "var"], ["n"]),
        oh.make_node("Reshape", ["n", "back"], ["b"]),
        oh.make_node("Sigmoid", ["b"], ["y"]),
    ]
    shape = [int(size) for size in arrays["back"]]
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2, 5, 5])],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=9)


def _run(graph: Graph) -> Any:
    return tracked_instance_norm.run(graph, Policy())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"gamma": [1, 2, 3, 1, 2, 4]}, False),
        ({"mean": [1, 2, 3, 1, np.nan, 3]}, False),
        ({"mean": [1, np.nan, 3, 1, np.nan, 3]}, True),
        ({"back": [3, 2, 5, 5]}, False),
        ({"back": [2, 3, 25, 1]}, False),
        ({"back": [1, 6, 5, 5]}, False),
    ],
    ids=["as exported", "samples differ", "NaN in one sample", "NaN in all", "other batch", "other plane", "not taken back"],
)
def test_only_what_repeats_for_every_sample(changes: dict[str, Any], found: bool) -> None:
    model = _onnx(**changes)
    graph = from_onnx(model)
    assert (_run(graph).graph is not graph) == found
    x = np.random.default_rng(1).standard_normal((2, 2, 5, 5)).astype(np.float32)
    outcome, _, came = through_onnx(model, {"x": x})
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": x})[0], rtol=0, atol=2e-5, equal_nan=True)
    if found:  # (the affine step alone takes some of the others, which is right as well)
        assert outcome.findings[0].outcome == ("kept" if "mean" in changes else "deleted")


def test_a_plane_that_moves_is_no_instance_norm() -> None:
    """Reshape to [1, 6, 25, 1]: the planes are not the input's own."""
    graph = from_onnx(_onnx(there=[1, 6, 25, 1]))
    assert _run(graph).graph is graph


def test_somebody_else_reads_the_norm() -> None:
    graph = from_onnx(_onnx())
    norm = next(node for node in graph.nodes if node.kind == "BatchNormalization")
    graph.outputs.append(norm.output)
    assert _run(graph).graph is graph


def test_nothing_is_touched_in_other_networks_and_it_can_be_switched_off() -> None:
    b = Builder()
    graph = b.output(b.op("Sigmoid", b.bn(b.conv(b.input("x", ("N", 3, 5, 5)), 4)), shape=("N", 4, 5, 5)))
    assert _run(graph).graph is graph
    only = rewrite(from_onnx(_onnx()), Options(only=("tracked-instance-norm",)))
    assert [node.kind for node in only.graph.nodes] == ["Conv", "BatchNormalization", "Sigmoid"]
    skipped = rewrite(from_onnx(_onnx()), Options(skip=("tracked-instance-norm",)))
    assert [item.rule for item in skipped.applied if item.rule == "tracked-instance-norm"] == []
