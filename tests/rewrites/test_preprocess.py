"""Preprocessing in front of the first layer: swaps of channels go into its weight, scales and unpadded shifts do as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from build import Builder
from judge import feeds_for
from normfold.graph import Array, Graph, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import preprocess
from normfold.rewrites.rewrite import Policy
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run
from routes import aten, by_onnx

N = torch.export.Dim("N", min=1, max=9)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def _normalised(x: torch.Tensor) -> torch.Tensor:
    return (x / 255 - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


Steps = Callable[[torch.Tensor], torch.Tensor]
SWAPS: dict[str, tuple[Steps, bool]] = {  # name -> (preprocessing, channels last)
    "index": (lambda x: _normalised(x[:, [2, 1, 0]].float()), False),
    "another order": (lambda x: _normalised(x.float()[:, [1, 2, 0]]), False),
    "flip": (lambda x: _normalised(x.flip(1).float()), False),
    "flip behind the scale": (lambda x: (x.float() * 0.0078 - 1).flip(1), False),
    "slices": (lambda x: _normalised(torch.cat([x[:, 2:3], x[:, 1:2], x[:, 0:1]], 1).float()), False),
    "stack": (lambda x: _normalised(torch.stack([x[:, 2], x[:, 1], x[:, 0]], 1).float()), False),
    "flip of channels last": (lambda x: _normalised(_last(x.flip(-1)).float()), True),
    "index of channels last": (lambda x: _normalised(_last(x[..., [2, 1, 0]]).float()), True),
    "flip of the transposed": (lambda x: _normalised(_last(x).flip(1).float()), True),
}


class _Net(nn.Module):
    def __init__(self, steps: Steps, padding: int = 0, **more: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.conv = steps, nn.Conv2d(3, 6, 3, padding=padding, **more)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(self.steps(x)))


def _image(last: bool = False) -> torch.Tensor:
    shape = (2, 6, 7, 3) if last else (2, 3, 6, 7)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def _kinds(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_from_a_uint8_image(route: Any, swap: str, padding: int) -> None:
    steps, last = SWAPS[swap]
    taken = route(_Net(steps, padding).eval(), _image(last), objective="latency")
    assert taken.error <= 2e-5
    shift = ["Sub"] if padding else []  # what is padded with zeros takes no shift without an addition
    assert _kinds(taken.outcome.graph) == (["Transpose"] if last else []) + ["Cast", *shift, "Conv", "Tanh"]


def test_split_and_concat() -> None:
    def steps(x: torch.Tensor) -> torch.Tensor:
        red, green, blue = x.split(1, 1)
        return _normalised(torch.cat([blue, green, red], 1).float())

    taken = aten(_Net(steps).eval(), _image(), objective="latency")
    assert taken.error <= 2e-5 and _kinds(taken.outcome.graph) == ["Cast", "Conv", "Tanh"]


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_with_an_open_batch(route: Any) -> None:
    steps, _ = SWAPS["flip"]
    taken = route(_Net(steps, 1).eval(), _image(), dynamic=({0: N},), objective="latency")
    assert taken.error <= 2e-5 and _kinds(taken.outcome.graph) == ["Cast", "Sub", "Conv", "Tanh"]


@pytest.mark.parametrize("route", [aten, by_onnx])
@pytest.mark.parametrize(
    ("steps", "padded"),
    [
        (lambda x: x.float() / 255, ["Cast", "Conv", "Tanh"]),
        (lambda x: x.float() * 0.0078 - 1, ["Cast", "Sub", "Conv", "Tanh"]),
        (lambda x: (x.float() + 3) * 0.5 + MEAN.view(3, 1, 1), ["Cast", "Add", "Conv", "Tanh"]),
        (lambda x: -MEAN.view(3, 1, 1) + x.float() / 127.5 - 1, ["Cast", "Add", "Conv", "Tanh"]),
    ],
    ids=["scale", "scale and shift", "sums and products", "three shifts"],
)
def test_chains_of_constants(route: Any, steps: Steps, padded: list[str]) -> None:
    taken = route(_Net(steps).eval(), _image(), objective="latency")
    assert taken.error <= 2e-5 and _kinds(taken.outcome.graph) == ["Cast", "Conv", "Tanh"]
    taken = route(_Net(steps, 1).eval(), _image(), objective="latency")
    kinds = ["Add" if kind == "Sub" else kind for kind in _kinds(taken.outcome.graph)]
    assert taken.error <= 2e-5 and kinds == ["Add" if kind == "Sub" else kind for kind in padded]


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_grouped_convolutions_keep_the_swap(route: Any) -> None:
    steps, _ = SWAPS["flip"]
    taken = route(_Net(steps, groups=3).eval(), _image(), objective="latency")
    assert taken.error <= 2e-5
    assert "Slice" in _kinds(taken.outcome.graph)


def test_a_batch_norm_in_front_of_the_convolution_keeps_its_finding() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
            self.bn.running_mean, self.bn.running_var = torch.tensor([9.0, -5, 1]), torch.tensor([1e-6, 400, 3])
            self.bn.weight = nn.Parameter(torch.tensor([-1.0, 2, 0.5]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.conv(self.bn(x.flip(1))))

    for route in (aten, by_onnx):
        taken = route(Net().eval(), torch.randn(2, 3, 6, 6), objective="latency")
        assert taken.error <= 2e-5 and _kinds(taken.outcome.graph) == ["BatchNormalization", "Conv", "Tanh"]
        assert taken.outcomes == ["kept"] and taken.codes == ["zero-padding"]


# ---- by hand -------------------------------------------------------------------------------------------------------------------

IMAGE = ("N", 3, 6, 6)


def _swap(b: Builder, x: Value, order: tuple[int, ...] = (2, 0, 1), axis: int = 1) -> Value:
    index = b.graph.constant("order", np.array(order))
    assert x.shape is not None
    return b.op("Gather", x, index, shape=(*x.shape[:axis], len(order), *x.shape[axis + 1 :]), axis=axis)


def _done(graph: Graph) -> Graph:
    before = [node.kind for node in graph.nodes]
    outcome = rewrite(graph, Options(only=("preprocess", "affine")))
    for result in (preprocess.run(graph, Policy()).graph, outcome.graph):
        feeds: dict[str, Array] = feeds_for(graph)
        failed = [item for item in certificate(graph, result, feeds) if not item.passed]
        assert not failed, failed[:3]
        expected, came = run(graph, feeds), run(result, feeds)
        assert list(expected) == list(came)
        for name, array in expected.items():
            assert np.allclose(came[name], array, rtol=1e-10, atol=1e-10)
    assert [node.kind for node in graph.nodes] == before
    return preprocess.run(graph, Policy()).graph


def _goes(b: Builder) -> bool:
    result = _done(b.graph)
    return not any(node.kind in ("Gather", "Slice", "Concat") for node in result.nodes)


def test_through_elementwise_operations_and_padding_of_the_plane() -> None:
    b = Builder()
    x = b.op("Add", b.const(b.rng.standard_normal((3, 1, 1))), _swap(b, b.input("x", IMAGE)), shape=IMAGE)
    x = b.op("Pad", b.relu(x), shape=("N", 3, 8, 8), pads=(0, 0, 1, 1, 0, 0, 1, 1), mode="constant", constant_value=0.5)
    b.output(b.conv(b.op("Clip", x, shape=x.shape, min=-1.0, max=2.0), 4, 3))
    assert _goes(b)


def test_padding_of_the_channels_keeps_the_order() -> None:
    b = Builder()
    x = _swap(b, b.input("x", IMAGE))
    x = b.op("Pad", x, shape=("N", 4, 6, 6), pads=(0, 1, 0, 0, 0, 0, 0, 0), mode="constant", constant_value=0.5)
    b.output(b.conv(x, 4, 3))
    assert not _goes(b)


def test_into_two_layers_that_read_it() -> None:
    b = Builder()
    x = _swap(b, b.input("x", IMAGE))
    b.output(b.add(b.conv(x, 4), b.conv(b.op("Mul", x, b.const(2.0), shape=IMAGE), 4)))
    assert _goes(b)


@pytest.mark.parametrize("kind", ["Gemm", "Gemm, plain weight", "MatMul"])
def test_linear_layers_over_the_last_axis(kind: str) -> None:
    b = Builder()
    x = _swap(b, b.input("x", ("N", 5, 3)), axis=2)
    if kind == "MatMul":
        b.output(b.op("MatMul", x, b.weight(3, 4), shape=("N", 5, 4)))
    elif kind == "Gemm":
        b.output(b.gemm(x, 4))
    else:
        attrs = {"alpha": 0.5, "beta": 1.0, "transA": 0, "transB": 0}
        b.output(b.op("Gemm", x, b.weight(3, 4), shape=("N", 5, 4), **attrs))
    assert _goes(b)


@pytest.mark.parametrize(
    ("order", "goes"), [((2, 0, 1), True), ((-1, 1, 0), True), ((0, 1, 2), False), ((0, 0, 1), False), ((1, 0), False)]
)
def test_only_a_change_of_order(order: tuple[int, ...], goes: bool) -> None:
    b = Builder()
    b.output(b.conv(_swap(b, b.input("x", IMAGE), order), 4))
    assert (preprocess.run(b.graph, Policy()).graph is not b.graph) == goes
    assert _goes(b) == goes


@pytest.mark.parametrize("reader", ["softmax", "output", "both slots", "another axis", "left of a product", "sum with a tensor"])
def test_what_needs_the_order_keeps_it(reader: str) -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    y = _swap(b, x)
    if reader == "softmax":
        b.output(b.conv(y, 4), b.op("Softmax", y, shape=IMAGE, axis=1))
    elif reader == "output":
        b.output(b.conv(y, 4), y)
    elif reader == "both slots":
        b.output(b.conv(b.op("Mul", y, y, shape=IMAGE), 4))
    elif reader == "another axis":
        b.output(b.gemm(y, 4))
    elif reader == "left of a product":
        b.output(b.op("MatMul", b.weight(5, 6), y, shape=("N", 3, 5, 6)))
    else:
        b.output(b.conv(b.add(x, y), 4))
    assert not _goes(b)


def test_a_swap_along_one_of_two_equal_axes_is_told_by_its_axis() -> None:
    b = Builder()
    b.output(b.conv(_swap(b, b.input("x", ("N", 6, 6, 6)), (5, 4, 3, 2, 1, 0), axis=2), 4))
    assert not _goes(b)


def test_a_weight_that_others_read_in_the_old_order_stays() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    y, z = b.conv(_swap(b, x), 4), b.conv(x, 4)
    b.graph.set_input(z.producer, 1, y.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    b.output(y, z)
    assert not _goes(b)
    b = Builder()
    x = _swap(b, b.input("x", IMAGE))
    y, z = b.conv(x, 4), b.conv(b.relu(x), 4)
    b.graph.set_input(z.producer, 1, y.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    b.output(y, z)
    assert _goes(b)
    assert len({node.inputs[1] for node in _done(b.graph).nodes if node.kind == "Conv"}) == 1


def test_pinned_constants_stay() -> None:
    for slot in (0, 1):
        b = Builder()
        mean = b.const(b.rng.standard_normal((3, 1, 1)))
        y = b.conv(b.op("Sub", _swap(b, b.input("x", IMAGE)), mean, shape=IMAGE), 4)
        b.graph.pinned.add(mean if slot == 0 else y.producer.inputs[1])  # type: ignore[union-attr, arg-type]
        b.output(y)
        assert preprocess.run(b.graph, Policy()).graph is b.graph


def test_slices_of_two_tensors_are_no_swap() -> None:
    b = Builder()
    x, z = b.input("x", IMAGE), b.input("z", IMAGE)
    parts = [
        b.op("Slice", value, shape=("N", 1, 6, 6), axes=(1,), starts=(i,), ends=(i + 1,), steps=(1,))
        for i, value in ((2, x), (1, z), (0, x))
    ]
    b.output(b.conv(b.concat(*parts), 4))
    assert not _goes(b)


def test_with_zero_gammas_and_another_concat() -> None:
    """The channels that hold something else now are not mistaken for constants, nor for what they were."""
    b = Builder()
    x = b.relu(_swap(b, b.input("x", IMAGE)))
    stem = b.conv(x, 4, 1)
    other = b.relu(b.bn(b.conv(stem, 4), gamma=np.array([0.0, 1, 0, 2])))
    b.output(b.conv(b.concat(other, b.relu(stem)), 3), b.conv(stem, 2))
    outcome = rewrite(b.graph, Options(objective="norms"))
    assert {item.rule for item in outcome.applied} >= {"preprocess", "empty-channels"}
    assert all(item.passed for item in certificate(b.graph, outcome.graph, feeds_for(b.graph)))


def test_it_can_be_switched_off() -> None:
    b = Builder()
    b.output(b.conv(_swap(b, b.input("x", IMAGE)), 4))
    assert "Gather" in _kinds(rewrite(b.graph, Options(skip=("preprocess",))).graph)
    assert "Gather" not in _kinds(rewrite(b.graph, Options(only=("preprocess",))).graph)
