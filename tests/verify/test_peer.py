"""The original in the result's runtime: what that runtime loses by itself is no difference, and hides none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from build import Builder
from normfold.api import optimize
from normfold.graph import Array, Graph
from normfold.verify import Feed, judge, run
from normfold.verify.full_scale import full_scales
from normfold.verify.runtimes import Runner
from routes import randomised


class _Saturated(nn.Module):
    """Scores far below zero: sigmoid gives 1e-26 in torch, and zero in ONNX Runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 40))
        randomised(self)
        with torch.no_grad():
            self.body[-1].weight *= 0.01
            self.body[-1].bias.fill_(-60.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.body(x))


def test_a_sigmoid_that_ends_at_zero_elsewhere_is_no_difference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = optimize(_Saturated(), (torch.randn(2, 3, 8, 8),), outputs=[tmp_path / "net.onnx"])
    assert result.record.passed
    assert [finding.outcome for finding in result.record.findings] == ["deleted"]


def test_full_scale_is_carried_through_layout() -> None:
    b = Builder()
    x = b.input("x", (2, 4))
    y = b.op("Sigmoid", x, shape=(2, 4))
    z = b.op("Softmax", x, shape=(2, 4), axis=1)
    turned = b.op("Transpose", y, shape=(4, 2), perm=(1, 0))
    joined = b.op("Concat", y, z, shape=(2, 8), axis=1)
    mixed = b.op("Concat", y, x, shape=(2, 8), axis=1)
    graph = b.output(turned, joined, mixed, b.relu(y))
    assert full_scales(graph) == {turned.name: 1.0, joined.name: 1.0}


class _Coarse:
    """A runtime that rounds to multiples of `step`, on a graph with `factor` times its output."""

    def __init__(self, graph: Graph, step: float, factor: float = 1.0) -> None:
        self.graph, self.step, self.factor = graph, step, factor
        self.inputs, self.outputs = ["x"], [graph.outputs[0].name]

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        exact = run(self.graph, feeds)
        return {name: (np.round(self.factor * y / self.step) * self.step).astype(np.float32) for name, y in exact.items()}


def _verdict(factor: float, step: float, peer: Callable[[Graph], Runner | None] | None) -> str:
    b = Builder()
    graph = b.output(b.conv(b.input("x", (1, 4, 6, 6)), 5))
    feed = Feed("normal", {"x": np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)})
    make = None if peer is None else lambda: peer(graph)
    return judge(graph, None, _Coarse(graph, 1e-9), _Coarse(graph, step, factor), [feed], peer=make).verdict


def test_what_the_runtime_loses_is_granted_and_no_more() -> None:
    step = 2e-5
    assert _verdict(1.0, step, None) == "different"
    assert _verdict(1.0, step, lambda graph: None) == "different"
    assert _verdict(1.0, step, lambda graph: _Coarse(graph, step)) == "same"
    assert _verdict(1.001, step, lambda graph: _Coarse(graph, step)) == "different"


def test_a_peer_that_computes_something_else_judges_nothing() -> None:
    assert _verdict(1.5, 1e-9, lambda graph: _Coarse(graph, 1e-9, 1.5)) == "cannot tell"
    assert _verdict(1.5, 1e-9, lambda graph: _Coarse(graph, 1e-9)) == "different"
