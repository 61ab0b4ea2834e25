"""Biases and additions that the norm behind them subtracts again: dropped when that is exact, left alone otherwise."""

from __future__ import annotations

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
from normfold.rewrites import dead_shift
from normfold.rewrites.rewrite import Policy
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run
from routes import Taken, aten, by_onnx

N = torch.export.Dim("N", min=1, max=9)
IMAGE = ("N", 4, 6, 6)


def _biases(taken: Taken) -> list[bool]:
    """Which convolutions and linear layers still have a bias."""
    nodes = [node for node in taken.outcome.graph.nodes if node.kind in ("Conv", "ConvTranspose", "Gemm")]
    return [node.input(2) is not None for node in nodes]


class _Style(nn.Module):
    """Conv - InstanceNorm - ReLU twice, then a plain convolution, as style transfer networks are built."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.second, self.norm2 = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), nn.InstanceNorm2d(4)
        self.last = nn.Conv2d(4, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        return self.last(torch.relu(self.norm2(self.second(x))))


@pytest.mark.parametrize("dynamic", [None, ({0: N},)], ids=["fixed", "open batch"])
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_biases_in_front_of_instance_norms_go(route: Any, dynamic: Any) -> None:
    torch.manual_seed(0)
    taken = route(_Style().eval(), torch.randn(2, 3, 8, 8), dynamic=dynamic, objective="latency")
    assert taken.error <= 2e-5
    assert _biases(taken) == [False, False, True]


class _Grouped(nn.Module):
    def __init__(self, bias: torch.Tensor, groups: int = 2) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(groups, 4)
        self.conv.bias = nn.Parameter(bias)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.norm(self.conv(x)))


@pytest.mark.parametrize("route", [aten, by_onnx])
@pytest.mark.parametrize(
    ("bias", "groups", "kept"),
    [((3.0, 3, -2, -2), 2, False), ((3.0, 3, 3, -2), 2, True), ((3.0, 1, 3, -2), 4, False), ((3.0, 3, 3, 3), 1, False)],
    ids=["by group", "not by group", "groups of one", "one group"],
)
def test_group_norm_takes_what_is_constant_in_each_group(route: Any, bias: Any, groups: int, kept: bool) -> None:
    taken = route(_Grouped(torch.tensor(bias), groups).eval(), torch.randn(2, 3, 6, 6))
    assert taken.error <= 2e-5
    assert _biases(taken) == [kept]


class _Mixer(nn.Module):
    """LayerNorm over tokens: the bias of each feature is constant there.  The addition of one number a token is not."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(5, 6), where
        self.norm = nn.LayerNorm(7 if where == "tokens" else 6)
        self.register_buffer("shift", torch.randn(7, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        if self.where == "tokens":
            return torch.tanh(self.norm(x.transpose(1, 2)))
        return torch.tanh(self.norm(x + self.shift))


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_layer_norm_over_another_axis_than_the_bias(route: Any) -> None:
    taken = route(_Mixer("tokens").eval(), torch.randn(2, 7, 5))
    assert taken.error <= 2e-5
    assert not any(node.kind == "Add" for node in taken.outcome.graph.nodes) and not any(_biases(taken))


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_layer_norm_over_features_keeps_their_bias_but_not_what_is_added_to_whole_tokens(route: Any) -> None:
    taken = route(_Mixer("features").eval(), torch.randn(2, 7, 5))
    assert taken.error <= 2e-5
    kinds = [node.kind for node in taken.outcome.graph.nodes]
    assert kinds in (["Gemm", "LayerNormalization", "Tanh"], ["MatMul", "Add", "LayerNormalization", "Tanh"])


def test_addmm_whose_bias_is_annihilated_is_written_without_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.full((6,), 0.75))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.addmm(self.bias, x, self.weight, beta=2, alpha=0.5)
            return torch.tanh(nn.functional.layer_norm(y, (6,)))

    taken = aten(Net().eval(), torch.randn(3, 4))
    assert taken.error <= 2e-5
    assert _biases(taken) == [False]


# ---- by hand -------------------------------------------------------------------------------------------------------------------


def _norm(b: Builder, x: Value, kind: str = "InstanceNormalization", **attrs: Any) -> Value:
    assert x.shape is not None
    size = x.shape[-1] if kind == "LayerNormalization" else x.shape[1]
    parameters = [b.const(b.rng.standard_normal(size)), b.const(b.rng.standard_normal(size))]
    return b.op(kind, x, *parameters, shape=x.shape, epsilon=1e-5, name="norm", **attrs)


def _done(graph: Graph, **sizes: int) -> Graph:
    result = dead_shift.run(graph, Policy()).graph
    for seed in range(2):
        feeds = feeds_for(graph, seed, **sizes)
        failed = [item for item in certificate(graph, result, feeds) if not item.passed]
        assert not failed, failed[:3]
    expected, came = run(graph, feeds), run(result, feeds)
    assert list(expected) == list(came)
    for name, array in expected.items():
        assert np.allclose(came[name], array, rtol=1e-9, atol=1e-9)
    return result


def _kinds(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes]


def _has_bias(graph: Graph) -> bool:
    return graph.nodes[0].input(2) is not None


def test_values_in_front_of_the_norm_lose_name_and_gain_a_promise() -> None:
    b = Builder()
    conv = b.conv(b.input("x", IMAGE), 4, name="conv")
    b.output(_norm(b, conv))
    result = _done(b.graph)
    (gauge,) = result.nodes[0].output.gauges
    bias = conv.producer.inputs[2].const.float64()  # type: ignore[union-attr]
    assert gauge.original == "conv" and np.array_equal(gauge.shift.ravel(), -bias) and result.nodes[0].output.name != "conv"
    assert not _has_bias(result) and _has_bias(b.graph)


@pytest.mark.parametrize("kind", ["Add", "Sub", "reversed Add", "reversed Sub"])
def test_additions(kind: str) -> None:
    b = Builder()
    x, k = b.conv(b.input("x", IMAGE), 4), b.const(b.rng.standard_normal((4, 1, 1)))
    y = b.op(kind.split()[-1], *((k, x) if "reversed" in kind else (x, k)), shape=IMAGE)
    b.output(_norm(b, y))
    dropped = kind != "reversed Sub"  # K - x turns x round
    assert _kinds(_done(b.graph)) == ["Conv", "InstanceNormalization"] if dropped else ["Conv", "Sub", "InstanceNormalization"]
    assert _has_bias(_done(b.graph)) == (not dropped)


@pytest.mark.parametrize(
    ("shape", "dropped"),
    [((1,), True), ((4, 1, 1), True), ((1, 6), False), ((6, 1), False), ((1, 4, 1, 1), True), ((4, 6, 6), False)],
)
def test_an_addition_must_be_constant_over_the_plane(shape: tuple[int, ...], dropped: bool) -> None:
    b = Builder()
    y = b.op("Add", b.op("Tanh", b.input("x", IMAGE), shape=IMAGE), b.const(b.rng.standard_normal(shape)), shape=IMAGE)
    b.output(_norm(b, y))
    assert ("Add" not in _kinds(_done(b.graph))) == dropped


def test_an_addition_that_broadcasts_stays() -> None:
    b = Builder()
    x = b.op("Tanh", b.input("x", ("N", 1, 6, 6)), shape=("N", 1, 6, 6))
    b.output(_norm(b, b.op("Add", x, b.const(b.rng.standard_normal((4, 1, 1))), shape=IMAGE)))
    assert "Add" in _kinds(_done(b.graph))


def test_what_others_read_stays() -> None:
    for other in ("reader", "output"):
        b = Builder()
        x = b.conv(b.input("x", IMAGE), 4)
        y = _norm(b, x)
        b.output(y, x if other == "output" else b.op("Tanh", x, shape=IMAGE))
        assert dead_shift.run(b.graph, Policy()).graph is b.graph


def test_an_addition_goes_though_its_input_is_read_by_others() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    y = b.op("Add", x, b.const(b.rng.standard_normal((4, 1, 1))), shape=IMAGE)
    b.output(_norm(b, y), b.op("Tanh", x, shape=IMAGE))
    result = _done(b.graph)
    assert "Add" not in _kinds(result) and _has_bias(result)


def test_through_reshape_as_group_norm_is_exported() -> None:
    for bias, dropped in (([1.0, 1, 2, 2], True), ([1.0, 1, 2, 3], False)):
        b = Builder()
        x = b.conv(b.input("x", IMAGE), 4)
        x.producer.inputs[2].const = b.const(np.array(bias)).const  # type: ignore[union-attr]
        y = b.op("Reshape", x, shape=("N", 2, 72), target=(0, 2, -1))
        b.output(_norm(b, y))
        assert _has_bias(_done(b.graph)) != dropped


@pytest.mark.parametrize("kind", ["Add", "Sub"])
def test_what_lies_between_an_addition_and_the_norm_is_promised(kind: str) -> None:
    b = Builder()
    x = b.op("Tanh", b.input("x", IMAGE), shape=IMAGE)
    y = b.op(kind, x, b.const(b.rng.standard_normal((4, 1, 1))), shape=IMAGE)
    b.output(_norm(b, b.op("Reshape", y, shape=("N", 4, 36), target=(0, 4, 36))))
    result = _done(b.graph)
    assert _kinds(result) == ["Tanh", "Reshape", "InstanceNormalization"]
    assert len(result.nodes[1].output.gauges) == 1


def test_a_gemm_with_beta_is_promised() -> None:
    b = Builder()
    x = b.gemm(b.input("x", ("N", 7, 5)), 4)
    x.producer.attrs["beta"] = -0.5  # type: ignore[union-attr]
    y = b.op("Transpose", x, shape=("N", 4, 7), perm=(0, 2, 1))
    b.output(_norm(b, y))
    assert not _has_bias(_done(b.graph))


@pytest.mark.parametrize(("bias", "dropped"), [([1.0, 1, 1, -2, -2, -2], True), ([1.0, 1, -2, -2, 3, 3], False)])
def test_group_norm_groups_neighbouring_channels(bias: list[float], dropped: bool) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 6)
    x.producer.inputs[2].const = b.const(np.array(bias)).const  # type: ignore[union-attr]
    b.output(_norm(b, x, "GroupNormalization", num_groups=2))
    assert _has_bias(_done(b.graph)) != dropped


def test_layer_norm_over_more_than_one_axis() -> None:
    for bias, dropped in ((np.full(4, 0.3), True), (np.array([0.3, 0.3, 0.3, 0.4]), False)):
        b = Builder()
        x = b.conv(b.input("x", IMAGE), 4)
        x.producer.inputs[2].const = b.const(bias).const  # type: ignore[union-attr]
        b.output(_norm(b, x, "LayerNormalization", axis=1))
        assert _has_bias(_done(b.graph)) != dropped


@pytest.mark.parametrize("training", [0, 1])
def test_batch_norm_only_with_the_statistics_of_the_batch(training: int) -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 4))
    y.producer.attrs["training_mode"] = training  # type: ignore[union-attr]
    b.output(y)
    assert _has_bias(_done(b.graph, N=3)) == (not training)


def test_batch_norm_whose_new_statistics_are_read_keeps_the_bias() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    parameters = [b.const(b.rng.uniform(0.5, 2, 4)) for _ in range(4)]
    shapes = (IMAGE, (4,), (4,))
    y, mean, _ = b.op("BatchNormalization", x, *parameters, shape=shapes, outputs=3, epsilon=1e-5, training_mode=1)
    b.output(y, mean)
    assert dead_shift.run(b.graph, Policy()).graph is b.graph


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_not_finite_stays(value: float) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    x.producer.inputs[2].const = b.const(np.array([1, value, 1, 1])).const  # type: ignore[union-attr]
    b.output(_norm(b, x))
    assert dead_shift.run(b.graph, Policy()).graph is b.graph


def test_a_pinned_bias_stays() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    b.graph.pinned.add(x.producer.inputs[2])  # type: ignore[union-attr, arg-type]
    b.output(_norm(b, x))
    assert dead_shift.run(b.graph, Policy()).graph is b.graph


def test_rms_norm_and_activations_in_between_keep_it() -> None:
    b = Builder()
    x = b.gemm(b.input("x", ("N", 5)), 4)
    b.output(b.op("RMSNormalization", x, b.const(np.ones(4)), shape=("N", 4), axis=1, epsilon=1e-5))
    assert dead_shift.run(b.graph, Policy()).graph is b.graph
    b = Builder()
    b.output(_norm(b, b.relu(b.conv(b.input("x", IMAGE), 4))))
    assert dead_shift.run(b.graph, Policy()).graph is b.graph


def test_with_other_rewrites_and_switched_off() -> None:
    b = Builder()
    x = b.bn(b.conv(b.input("x", IMAGE), 4), signed=True, gamma=np.array([-1e-3, 2, 0.0, 1]), var=np.full(4, 1e-8))
    b.output(_norm(b, b.conv(x, 4, name="second")))
    for options, rules in (({}, 1), ({"skip": ("dead-shift",)}, 0), ({"only": ("dead-shift",)}, 1)):
        outcome = rewrite(b.graph, Options(objective="norms", **options))  # type: ignore[arg-type]
        assert sum(item.rule == "dead-shift" for item in outcome.applied) == rules
        feeds: dict[str, Array] = feeds_for(b.graph)
        assert all(item.passed for item in certificate(b.graph, outcome.graph, feeds))
