"""Rules of norms with statistics at run time: what their parameters make, what their cores take; judged by the certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from build import Builder
from judge import judged, rewritten
from normfold.graph import Value
from routes import aten, by_onnx, randomised

IMAGE = ("N", 8, 5, 5)
KINDS = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")


def norm(b: Builder, kind: str, x: Value, *, bias: bool = True, shape: tuple[int, ...] | None = None) -> Value:
    """A norm of [N, 8, 5, 5]: over the last two axes (LayerNorm, RMSNorm), planes, or 4 groups of 2 channels."""
    along = ((5, 5) if kind in KINDS[:2] else (8,)) if shape is None else shape
    parameters = [b.const(b.rng.uniform(0.5, 1.5, along)), b.const(b.rng.standard_normal(along))]
    attrs: dict[str, Any] = {"epsilon": 1e-3}
    attrs |= {"axis": 2} if kind in KINDS[:2] else {}
    attrs |= {"num_groups": 4} if kind == "GroupNormalization" else {}
    return b.op(kind, x, *parameters[: 1 if kind == "RMSNormalization" or not bias else 2], shape=IMAGE, **attrs)


def source(b: Builder) -> Value:
    """A tensor that nothing can change."""
    return b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)


def end(b: Builder, y: Value) -> None:
    b.output(b.op("Sigmoid", y, shape=y.shape or ()))


def constant(b: Builder, kind: str, x: Value, array: Any) -> Value:
    return b.op(kind, x, b.const(array), shape=x.shape or (), name="k")


ALONG = {
    "LayerNormalization": (5, 5),
    "RMSNormalization": (5, 5),
    "InstanceNormalization": (8, 1, 1),
    "GroupNormalization": (8, 1, 1),
}


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_parameters_take_up_what_stands_behind(kind: str, op: str) -> None:
    b = Builder()
    y = norm(b, kind, source(b))
    end(b, constant(b, op, y, b.rng.uniform(0.5, 2, ALONG[kind]) * np.where(b.rng.random(ALONG[kind]) < 0.4, -1, 1)))
    fates = judged(b.graph, "latency")
    if kind == "RMSNormalization" and op == "Add":
        assert not fates  # it has no beta, and both sides of the addition are fixed
    else:
        assert fates["k"].outcome == "deleted"


@pytest.mark.parametrize("kind", KINDS)
def test_a_gauge_along_other_axes_is_not_theirs(kind: str) -> None:
    b = Builder()
    other = (8, 1, 1) if kind in KINDS[:2] else (5, 1)
    end(b, constant(b, "Mul", norm(b, kind, source(b)), b.rng.uniform(0.5, 2, other)))
    assert judged(b.graph)["k"].outcome == "kept"


@pytest.mark.parametrize("shape", [(5, 5), (5,), (1,), (5, 1)])
def test_parameters_that_broadcast_keep_their_shape(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = norm(b, "LayerNormalization", source(b), shape=shape)
    end(b, constant(b, "Mul", constant(b, "Add", y, b.rng.standard_normal(shape)), b.rng.uniform(0.5, 2, shape)))
    result = rewritten(b.graph)
    assert {fate.outcome for fate in result.fates} == {"deleted"}
    (node,) = [node for node in result.graph.nodes if node.kind == "LayerNormalization"]
    assert [value.shape for value in node.inputs[1:] if value is not None] == [shape, shape]


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_a_layer_norm_without_bias_gets_one_only_when_it_needs_it(op: str) -> None:
    b = Builder()
    y = norm(b, "LayerNormalization", source(b), bias=False)
    end(b, constant(b, op, y, b.rng.uniform(0.5, 2, 5)))
    result = rewritten(b.graph, "latency")
    assert [fate.outcome for fate in result.fates] == ["deleted"]
    (node,) = [node for node in result.graph.nodes if node.kind == "LayerNormalization"]
    assert len(node.inputs) == (3 if op == "Add" else 2)


@pytest.mark.parametrize("factor", [3.0, -0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_one_factor_goes_into_epsilon_and_its_sign_into_gamma(kind: str, factor: float) -> None:
    b = Builder()
    end(b, norm(b, kind, constant(b, "Mul", source(b), factor)))
    result = rewritten(b.graph, "latency")
    assert [fate.outcome for fate in result.fates] == ["deleted"]
    (node,) = [node for node in result.graph.nodes if node.kind == kind]
    assert node.attrs["epsilon"] == pytest.approx(1e-3 / factor**2)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_of_different_size_stay(kind: str) -> None:
    b = Builder()
    end(b, norm(b, kind, constant(b, "Mul", source(b), b.rng.uniform(0.5, 2, (8, 1, 1)))))
    assert judged(b.graph)["k"].outcome == "kept"


@pytest.mark.parametrize(
    ("kind", "signs", "expected"),
    [
        ("InstanceNormalization", [1, -1, -1, 1, 1, 1, -1, 1], "deleted"),
        ("GroupNormalization", [1, 1, -1, -1, 1, 1, -1, -1], "deleted"),
        ("GroupNormalization", [1, -1, -1, -1, 1, 1, -1, -1], "kept"),
        ("LayerNormalization", [1, 1, -1, -1, 1, 1, -1, -1], "kept"),
    ],
)
def test_one_size_with_a_sign_for_each_core(kind: str, signs: list[int], expected: str) -> None:
    b = Builder()
    end(b, norm(b, kind, constant(b, "Mul", source(b), 2.0 * np.array(signs).reshape(8, 1, 1))))
    assert judged(b.graph)["k"].outcome == expected


SHIFTS = {
    "one": (),
    "by row": (5, 1),
    "by channel": (8, 1, 1),
    "by group": (4, 1, 1),
}


@pytest.mark.parametrize("along", SHIFTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_mean_takes_away(kind: str, along: str) -> None:
    b = Builder()
    addend = b.rng.standard_normal(SHIFTS[along])
    addend = np.repeat(addend, 2, axis=0) if along == "by group" else addend
    end(b, norm(b, kind, constant(b, "Add", source(b), addend)))
    gone = {
        "LayerNormalization": {"one", "by channel", "by group"},
        "InstanceNormalization": {"one", "by channel", "by group"},
        "GroupNormalization": {"one", "by group"},
        "RMSNormalization": set[str](),
    }[kind]
    assert judged(b.graph, "latency")["k"].outcome == ("deleted" if along in gone else "kept")


@pytest.mark.parametrize("why", ["overridable", "computed"])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_whose_parameters_are_not_ours_are_pinned(kind: str, why: str) -> None:
    b = Builder()
    y = norm(b, kind, constant(b, "Mul", source(b), 3.0))
    node = y.producer
    assert node is not None
    gamma = node.inputs[1]
    assert gamma is not None
    if why == "overridable":
        b.graph.pinned.add(gamma)
    else:
        b.graph.set_input(node, 1, b.input("gamma", gamma.shape or ()))
    b.output(b.op("Sigmoid", y, shape=IMAGE))
    assert judged(b.graph)["k"].outcome == "kept"


def test_a_layer_norm_whose_statistics_are_read_is_pinned() -> None:
    b = Builder()
    y, mean, deviation = b.op(
        "LayerNormalization", constant(b, "Mul", source(b), 3.0), b.const(np.ones((5, 5))),
        shape=(IMAGE, ("N", 8, 1, 1), ("N", 8, 1, 1)), outputs=3, axis=2, epsilon=1e-3,
    )  # fmt: skip
    b.output(b.op("Sigmoid", y, shape=IMAGE), mean, deviation)
    assert judged(b.graph)["k"].outcome == "kept"


def test_two_norms_with_one_gamma_get_one_each() -> None:
    b = Builder()
    x = source(b)
    first, second = norm(b, "LayerNormalization", x), norm(b, "LayerNormalization", x)
    for slot in (1, 2):
        b.graph.set_input(second.producer, slot, first.producer.inputs[slot])
    b.output(b.op("Sigmoid", constant(b, "Mul", first, b.rng.uniform(0.5, 2, 5)), shape=IMAGE), second)
    assert judged(b.graph)["k"].outcome == "deleted"


def test_an_epsilon_that_leaves_float32_is_refused() -> None:
    b = Builder()
    end(b, norm(b, "LayerNormalization", constant(b, "Mul", source(b), 1e20)))
    fate = judged(b.graph)["k"]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "range"


def test_open_sizes_along_the_normalised_axes() -> None:
    b = Builder()
    shape = ("N", "T", "C")
    x = b.op("Mul", b.op("Sigmoid", b.input("x", shape), shape=shape), b.const(2.0), shape=shape, name="k")
    parameters = [b.const(b.rng.uniform(0.5, 1.5, (1,))) for _ in range(2)]
    y = b.op("LayerNormalization", x, *parameters, shape=shape, axis=1, epsilon=1e-3)
    b.output(b.op("Sigmoid", y, shape=shape))
    assert judged(b.graph, T=3, C=4)["k"].outcome == "deleted"


# ---- from torch ----------------------------------------------------------------------------------------------------


class _Around(nn.Module):
    """x * 4 - 1 in front of a norm, BN behind it: all of it goes into the norm in between."""

    def __init__(self, norm: nn.Module, rms: bool) -> None:
        super().__init__()
        self.norm, self.rms, self.behind = norm, rms, nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(torch.tanh(x) * 4 - (0 if self.rms else 1))
        if isinstance(self.norm, (nn.LayerNorm, nn.RMSNorm)):
            y = y.permute(0, 3, 1, 2)
        y = self.behind(y)
        return torch.relu(y) if self.rms else torch.sigmoid(y)


NORMS = {
    "layer": lambda: nn.LayerNorm(6, eps=1e-3),
    "layer without bias": lambda: nn.LayerNorm(6, bias=False),
    "layer without parameters": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "group": lambda: nn.GroupNorm(3, 6),
    "group without parameters": lambda: nn.GroupNorm(2, 6, affine=False),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance without parameters": lambda: nn.InstanceNorm2d(6),
    "rms": lambda: nn.RMSNorm(6, eps=1e-2),
}


@pytest.mark.parametrize("name", NORMS)
def test_between_arithmetic_and_bn(name: str) -> None:
    module = randomised(_Around(NORMS[name](), name == "rms"))
    with torch.no_grad():
        for parameter in module.norm.parameters():
            parameter.copy_(torch.rand(parameter.shape) + 0.5)
    x = torch.randn(2, 5, 4, 6) if "layer" in name or name == "rms" else torch.randn(2, 6, 4, 5)
    taken = aten(module, x)
    assert taken.error <= 2e-5 and taken.outcomes[-1] == ("shift" if name == "rms" else "deleted")
    assert not any(node.kind in ("Mul", "Sub") for node in taken.outcome.graph.nodes)
    if name == "rms":
        return  # the exporter takes it apart
    taken = by_onnx(module, x)
    assert taken.error <= 2e-5 and taken.outcomes[-1] == "deleted"
