"""What every step does alike is done once: through both adapters, with norms, heads, open batches; and what must stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recurrent_cells as cells
from normfold.graph import Graph
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import hoist_unrolled
from normfold.rewrites.rewrite import Policy
from recurrent_cells import Loop, made
from routes import Taken, aten, by_onnx

INPUTS, H, T = 5, 3, 4
PRODUCTS = ("Gemm", "MatMul")
BATCH = torch.export.Dim("B", min=1, max=64)


def x(batch: int = 2, steps: int = T) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(batch, steps, INPUTS)


def count(graph: Graph, *kinds: str) -> int:
    return sum(node.kind in kinds for node in graph.nodes)


def some(names: Iterable[str], *fast: str) -> list[Any]:
    """All names, those that are not `fast` marked as slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def hoisted(graph: Graph) -> list[str]:
    return [item.target for item in hoist_unrolled.run(graph, Policy()).applied]


class Frames(nn.Module):
    """One encoder for every element of a sequence, the results joined; no step reads another."""

    def __init__(self, encode: Callable[[Any, Tensor], Tensor] | None = None, take: Any = None, join: Any = None) -> None:
        super().__init__()
        self.w, self.v, self.norm = nn.Linear(INPUTS, H), nn.Linear(H, 2), nn.LayerNorm(H)
        self.encode = encode or (lambda m, item: torch.relu(m.norm(m.w(item))))
        self.take = take or (lambda x, t: x[:, t])
        self.join = join or (lambda items: torch.stack(items, 1))

    def forward(self, x: Tensor) -> Any:
        return self.join([self.encode(self, self.take(x, t)) for t in range(T)])


class FourGates(nn.Module):
    """A layer for each gate, hard sigmoids: four products of the input."""

    states, hidden = 1, H

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(INPUTS, H, bias=place == 0) for place in range(4))
        self.own = nn.ModuleList(nn.Linear(H, H) for _ in range(4))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        a, b, c, d = (inner(x) + own(state[0]) for inner, own in zip(self.inner, self.own, strict=True))
        return (torch.tanh(a) * torch.nn.functional.hardsigmoid(b) + torch.tanh(c) * torch.relu(d),)


LOOPS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # products of the steps that stay; of all steps
    "layer norm, all steps": (lambda: Loop(cells.LayerNormed(INPUTS, H), "all"), T, 2),
    "norm on c, heads, reversed": (lambda: Loop(cells.NormOnCell(INPUTS, H), "heads", reverse=True), T, 2),
    "a layer a gate": (lambda: Loop(FourGates()), 4 * T, 5),
    "statistics per step": (lambda: cells.PerStep(T, INPUTS, H), T, 2),
    "a head a step behind an LSTM": (lambda: Loop(cells.BNLSTM(INPUTS, H), "heads"), 0, 1),
    "frames": (Frames, 0, 1),
}  # fmt: skip


def _alone(taken: Taken, module: nn.Module, steps: int, all_steps: int) -> None:
    graph = taken.outcome.graph
    assert taken.error <= 2e-5
    assert steps + all_steps - 1 <= count(graph, *PRODUCTS) <= steps + all_steps, "step 0 may have been computed ahead"
    assert "hoist-unrolled" in {item.rule for item in taken.outcome.applied}
    without = rewrite(taken.before, Options(objective="norms", skip=("hoist-unrolled",)))
    assert [item.outcome for item in without.findings] == taken.outcomes, "norms go or stay as without it"
    assert [item.refusal for item in without.findings] == [item.refusal for item in taken.outcome.findings]
    assert len(graph.nodes) < len(without.graph.nodes)


@pytest.mark.parametrize("name", some(LOOPS, "norm on c, heads, reversed", "statistics per step", "frames"))
def test_through_export(name: str) -> None:
    torch.manual_seed(1)
    make, *expected = LOOPS[name]
    module = made(make())
    _alone(aten(module, x()), module, *expected)


@pytest.mark.parametrize("name", some(LOOPS, "a layer a gate", "a head a step behind an LSTM"))
def test_through_onnx(name: str) -> None:
    torch.manual_seed(1)
    make, *expected = LOOPS[name]
    module = made(make())
    _alone(by_onnx(module, x()), module, *expected)


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_open_batch(route: Any) -> None:
    torch.manual_seed(1)
    for module in (Frames(), Loop(cells.HardSigmoid(INPUTS, H), "heads")):
        steps = 6 if isinstance(module, Loop) else T
        taken = route(made(module), x(steps=steps), dynamic=({0: BATCH},))
        assert taken.error <= 2e-5 and hoisted(taken.before)
        assert count(taken.outcome.graph, *PRODUCTS) <= steps + 2


TAKES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "kept axis": lambda x, t: x[:, t : t + 1],
    "squeezed": lambda x, t: x[:, t : t + 1].squeeze(1),
    "time first": lambda x, t: x.transpose(0, 1)[t],
    "time first, kept and squeezed": lambda x, t: x.transpose(0, 1).contiguous()[t : t + 1].squeeze(0),
    "split": lambda x, t: x.split(1, 1)[t].squeeze(1),
    "unbind": lambda x, t: x.unbind(1)[t],
    "from the end": lambda x, t: x[:, t - T],
    "flipped": lambda x, t: x.flip(1)[:, t],
    "a part of it": lambda x, t: x[:, t + 1],
}


@pytest.mark.parametrize("way", some(TAKES, "kept axis", "time first, kept and squeezed", "flipped", "a part of it"))
def test_where_elements_come_from(way: str) -> None:
    torch.manual_seed(1)
    for batch in (1, 2) if way == "kept axis" else (2,):
        taken = aten(made(Frames(take=TAKES[way])), x(batch, T + 2 if way == "a part of it" else T))
        assert taken.error <= 2e-5
        assert count(taken.outcome.graph, *PRODUCTS) == 1 and count(taken.outcome.graph, "Gather", "Split", "Concat") <= 1


JOINS: dict[str, Callable[[list[Tensor]], Any]] = {
    "in front": torch.stack,
    "behind": lambda items: torch.stack(items, 2),
    "side by side": lambda items: torch.cat(items, 1),
    "as a batch": torch.cat,
    "backwards": lambda items: torch.stack(items[::-1], 1),
    "one number each": lambda items: torch.stack([item.sum(1) for item in items], 1),
    "each": tuple,
    "some": lambda items: (items[1], items[1] + items[2], torch.stack(items)),
    "by hand": lambda items: (items[0] * items[1] + items[2], torch.stack(items)),
}


@pytest.mark.parametrize("way", some(JOINS, "side by side", "as a batch", "backwards", "some"))
def test_what_becomes_of_the_results(way: str) -> None:
    torch.manual_seed(1)
    taken = aten(made(Frames(join=JOINS[way])), x())
    assert taken.error <= 2e-5
    assert count(taken.outcome.graph, *PRODUCTS) == 1 and count(taken.outcome.graph, "Concat", "Unsqueeze", "Gather") <= 2


ENCODERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "two layers, norms between": lambda m, item: m.v(torch.relu(m.norm(m.w(torch.tanh(item))))),
    "softmax and residual": lambda m, item: torch.softmax(m.w(item), -1) * m.w(item)[:, :1] + item[:, 1:4],
    "reshaped": lambda m, item: m.w(item.unsqueeze(1)).reshape(-1, 3, 1).squeeze(2).clamp(0, 6),
    "chunks": lambda m, item: torch.cat(m.w(item).chunk(3, 1)[::-1], 1).mean(1, keepdim=True),
    "constants per channel": lambda m, item: m.w(item) * m.v.weight.sum(0) - m.w.bias,
}


@pytest.mark.parametrize("name", some(ENCODERS, "softmax and residual", "chunks"))
def test_what_goes_along(name: str) -> None:
    torch.manual_seed(1)
    taken = aten(made(Frames(ENCODERS[name])), x())
    assert taken.error <= 2e-5
    graph = taken.outcome.graph
    assert count(graph, *PRODUCTS) <= 2 and count(graph, "Gather", "Concat") <= 1, "no step is left by itself"
