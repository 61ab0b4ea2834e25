"""Slopes turned over so that negative gammas pass: everything goes, or nothing is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from build import Builder
from judge import feeds_for, proved
from normfold.graph import Graph, Value
from normfold.rewrites import affine, mirrored_slope
from normfold.rewrites.rewrite import Policy
from routes import aten, by_onnx, randomised

IMAGE = (2, 4, 6, 6)


class _Stream(nn.Module):
    """Pre-activation on a stream whose sign the other branch holds: BN - activation - conv, added to the stream."""

    def __init__(self, activation: nn.Module, negative: list[int], slope: Any = None) -> None:
        super().__init__()
        self.stem, self.norm, self.activation = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), activation
        self.inner, self.end = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 3, 1)
        randomised(self, signed=False)
        with torch.no_grad():
            self.norm.weight[negative] *= -1
            # the shift of a norm on a stream of ReLUs has no way out; its scale is what is looked at here
            self.norm.bias.zero_()
            self.norm.running_mean = torch.zeros(6)
            if slope is not None and isinstance(activation, nn.PReLU):
                activation.weight.copy_(torch.tensor(slope))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.end(x[:, :, 1:-1, 1:-1] + self.inner(self.activation(self.norm(x))))


ACTIVATIONS = {
    "leaky": lambda: nn.LeakyReLU(0.2),
    "leaky, negative slope": lambda: nn.LeakyReLU(-0.5),
    "prelu": lambda: nn.PReLU(6),
    "prelu, one slope": lambda: nn.PReLU(1),
}


@pytest.mark.parametrize("route", [aten, by_onnx])
@pytest.mark.parametrize("negative", [[1, 4], list(range(6))], ids=["two", "all"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_negative_gammas_pass(name: str, negative: list[int], route: Any) -> None:
    torch.manual_seed(0)
    slope = np.linspace(-0.7, 1.8, 6) if name == "prelu" else None
    taken = route(_Stream(ACTIVATIONS[name](), negative, slope), torch.randn(IMAGE))
    assert taken.error <= 2e-5
    assert taken.outcomes == ["deleted"], taken.codes
    kinds = [node.kind for node in taken.outcome.graph.nodes]
    assert "Mul" not in kinds
    mixed = len(negative) < 6
    assert ("PRelu" in kinds) == (mixed or "prelu" in name) and ("LeakyRelu" in kinds) == (not mixed and "leaky" in name)


def _graph(slope: float = 0.1, *, negative: bool = True, kind: str = "LeakyRelu") -> Graph:
    """The stream of above, without a shift."""
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 6))
    gamma = np.array([-0.5, 1.0, 2.0, -1.5, 1.0, 0.5]) if negative else np.ones(6)
    y = b.bn(x, gamma=gamma, name="bn")
    inputs: list[Value] = [y] if kind == "LeakyRelu" else [y, b.const(np.full((6, 1, 1), slope))]
    z = b.op(kind, *inputs, shape=y.shape or (), **({"alpha": slope} if kind == "LeakyRelu" else {}))
    return b.output(b.conv(b.add(x, b.conv(z, 6)), 3))


@pytest.mark.parametrize("slope", [0.0, 1e-5])
@pytest.mark.parametrize("kind", ["LeakyRelu", "PRelu"])
def test_slopes_near_zero_stay(slope: float, kind: str) -> None:
    graph = _graph(slope, kind=kind)
    assert mirrored_slope.run(graph, Policy("norms")).graph is graph


def test_positive_gammas_need_nothing() -> None:
    graph = _graph(negative=False)
    assert mirrored_slope.run(graph, Policy("norms")).graph is graph


def test_a_slope_for_each_channel_is_a_question_to_the_target() -> None:
    torch.manual_seed(0)
    module = _Stream(nn.LeakyReLU(0.2), [1, 4])
    taken = by_onnx(module, torch.randn(IMAGE), objective="latency")
    assert taken.outcomes == ["kept"] and taken.codes == ["sign"]
    whole = by_onnx(_Stream(nn.LeakyReLU(0.2), list(range(6))), torch.randn(IMAGE), objective="latency")
    assert whole.outcomes == ["deleted"]


def test_where_the_scale_has_no_way_out_nothing_is_touched() -> None:
    """The activation's output is a graph output: its scale is one, whatever the slope."""
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 6))
    y = b.op("LeakyRelu", b.bn(x, signed=True, name="bn"), shape=x.shape or (), alpha=0.1)
    graph = b.output(y, b.conv(b.relu(x), 3))
    assert mirrored_slope.run(graph, Policy("norms")).graph is graph


def test_the_copy_computes_the_same_before_the_affine_step() -> None:
    torch.manual_seed(0)
    graph = _graph()
    result = mirrored_slope.run(graph, Policy("norms"))
    assert result.graph is not graph and [item.target for item in result.applied] != []
    proved(graph, result.graph, feeds_for(graph))
    moved = affine.run(result.graph, Policy("norms"))
    assert [fate.outcome for fate in moved.fates if fate.output == "bn"] == ["shift"]
    proved(graph, moved.graph)
