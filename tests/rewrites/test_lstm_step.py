"""One step of an LSTM in gates, states from outside: one LSTM in both routes, or left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from build import Builder
from judge import proved
from normfold.api import optimize
from normfold.graph import Graph
from normfold.rewrites import lstm_step
from normfold.rewrites.rewrite import Policy
from routes import aten, by_onnx, randomised

INPUTS, H, B = 5, 4, 2
SIZES = (B, INPUTS), (B, H), (B, H)


class Streaming(nn.Module):
    """Norms of both products, four gates cut out of one tensor; the caller keeps h and c."""

    def __init__(self, order: str = "ifgo", *, gated: bool = False, peephole: bool = False) -> None:
        super().__init__()
        self.w, self.r = nn.Linear(INPUTS, 4 * H, bias=False), nn.Linear(H, 4 * H)
        self.n1, self.n2, self.end = nn.BatchNorm1d(4 * H), nn.BatchNorm1d(4 * H), nn.Linear(H, 3)
        self.order, self.gated, self.peephole = order, gated, peephole

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        parts = dict(zip(self.order, (self.n1(self.w(x)) + self.n2(self.r(h))).chunk(4, 1), strict=True))
        f = torch.sigmoid(parts["f"] + c if self.peephole else parts["f"])
        c = torch.tanh(parts["g"]) * torch.sigmoid(parts["i"]) + c * f
        h = torch.tanh(c) * torch.sigmoid(parts["o"])
        return (self.end(h), h, c, f) if self.gated else (self.end(h), h, c)


class Cells(nn.Module):
    """Two cells of torch's own on top of each other, whose states are the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.LSTMCell(INPUTS, H), nn.BatchNorm1d(H), nn.LSTMCell(H, H)

    def forward(self, x: Tensor, h1: Tensor, c1: Tensor, h2: Tensor, c2: Tensor) -> tuple[Tensor, ...]:
        h1, c1 = self.one(x, (h1, c1))
        h2, c2 = self.two(self.norm(h1), (h2, c2))
        return h1, c1, h2, c2


class Twice(nn.Module):
    """Two steps of one cell: two layers would need two copies of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Streaming()

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        _, h, c = self.cell(x, h, c)
        return self.cell(x, h, c)[0]


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.kind for node in graph.nodes)


@pytest.mark.parametrize("route", [aten, by_onnx])
@pytest.mark.parametrize("order", ["ifgo", "oigf"])
def test_a_step_becomes_one_layer(order: str, route: Any) -> None:
    torch.manual_seed(0)
    taken = route(randomised(Streaming(order)), *map(torch.randn, SIZES))
    assert taken.error <= 2e-5 and taken.outcomes == ["deleted", "deleted"]
    found = kinds(taken.outcome.graph)
    assert found["LSTM"] == 1 and not found["Sigmoid"] and not found["Tanh"] and not found["BatchNormalization"]


@pytest.mark.parametrize(("route", "is_open"), [(aten, True), (by_onnx, False)])
def test_cells_on_top_of_each_other_with_a_norm_between(route: Any, is_open: bool) -> None:
    torch.manual_seed(0)
    n = torch.export.Dim("N", min=1, max=9)
    sizes = (B, INPUTS), *[(B, H)] * 4
    dynamic = tuple({0: n} for _ in sizes) if is_open else None
    taken = route(randomised(Cells()), *map(torch.randn, sizes), dynamic=dynamic)
    assert taken.error <= 2e-5 and kinds(taken.outcome.graph)["LSTM"] == 2
    assert taken.outcomes == ["deleted"]


@pytest.mark.parametrize(
    "module",
    [Streaming(gated=True), Streaming(peephole=True), Twice(), Streaming().double()],
    ids=["a gate is read", "peephole", "shared weights", "float64"],
)
def test_what_is_left_alone(module: nn.Module) -> None:
    torch.manual_seed(0)
    dtype = next(module.parameters()).dtype
    taken = aten(randomised(module).to(dtype), *(torch.randn(size, dtype=dtype) for size in SIZES))
    assert taken.error <= 2e-5 and not kinds(taken.outcome.graph)["LSTM"]


def test_a_norm_that_is_to_be_kept_keeps_its_step() -> None:
    b = Builder()
    x, h, c = (b.input(name, size) for name, size in zip("xhc", SIZES, strict=True))

    def product(value: Any, size: int) -> Any:
        return b.op("MatMul", value, b.weight(size, 4 * H), shape=(B, 4 * H))

    total = b.add(b.bn(product(x, INPUTS), signed=True, name="bn"), product(h, H))
    gates = b.op("Split", total, shape=((B, H),) * 4, outputs=4, axis=1, split=(H, H, H, H))
    i, f, o = (b.op("Sigmoid", gates[k], shape=(B, H)) for k in (0, 1, 3))
    g = b.op("Tanh", gates[2], shape=(B, H))
    new_c = b.add(b.op("Mul", f, c, shape=(B, H)), b.op("Mul", i, g, shape=(B, H)))
    graph = b.output(b.op("Mul", o, b.op("Tanh", new_c, shape=(B, H)), shape=(B, H)), new_c)
    result = lstm_step.run(graph, Policy("norms"))
    assert kinds(result.graph) == Counter(Unsqueeze=3, LSTM=1, Squeeze=2)
    assert [(fate.output, fate.outcome) for fate in result.fates] == [("bn", "deleted")]
    rng = np.random.default_rng(0)
    proved(graph, result.graph, {value.name: rng.standard_normal(value.shape or ()) for value in graph.inputs})
    assert lstm_step.run(graph, Policy("norms", keep=lambda label: True)).graph is graph


@pytest.mark.slow
def test_the_streaming_model_of_the_zoo(shared: Path) -> None:
    result = optimize(shared / "zoo" / "dtln-onnx" / "model_2.onnx", proof_seconds=10)
    assert result.record.passed and kinds(result.graph)["LSTM"] == 2 and kinds(result.graph)["Sigmoid"] == 1
