"""What looks like the same work at every step and is not, or must be seen from outside, is left to the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recurrent_cells as cells
from normfold.capture.aten import from_aten
from normfold.capture.program import export_module
from normfold.capture.tidy import tidy
from normfold.graph import Graph, Node, Use
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import hoist_unrolled
from normfold.rewrites.rewrite import Policy
from recurrent_cells import Loop, made
from routes import aten

INPUTS, H, T = 5, 3, 4
PRODUCTS = ("Gemm", "MatMul")


class Steps(nn.Module):
    """f(m, x_t, t) for the places of x, added up with a factor each: nothing joins them."""

    def __init__(self, step: Callable[[Any, Tensor, int], Tensor], places: Any = range(T)) -> None:
        super().__init__()
        self.step, self.places = step, places
        self.w, self.norm = nn.Linear(INPUTS, H), nn.LayerNorm(H)
        self.own = nn.ModuleList(nn.Linear(INPUTS, H) for _ in range(T))
        self.rows = nn.Parameter(torch.randn(2, H))

    def forward(self, x: Tensor) -> Tensor:
        results = [self.step(self, x[:, t], t) * (t + 1) for t in self.places]
        return torch.stack([sum(results[1:], results[0])] * 2)


def view(module: nn.Module) -> Graph:
    torch.manual_seed(3)
    graph = from_aten(export_module(made(module), (torch.randn(2, T, INPUTS),)))
    tidy(graph)
    return graph


def products(graph: Graph) -> int:
    return sum(node.kind in PRODUCTS for node in graph.nodes)


STAYS: dict[str, nn.Module] = {
    "weights of their own": Steps(lambda m, x, t: m.own[t](x)),
    "no product": Steps(lambda m, x, t: torch.relu(x)),
    "places with gaps": Steps(lambda m, x, t: m.w(x), (0, 1, 3)),
    "one place": Steps(lambda m, x, t: m.w(x), (1,)),
    "too few to gain": Steps(lambda m, x, t: m.w(x) * t, (0, 1)),
    "rows mixed in front": Steps(lambda m, x, t: m.w(x - x.mean(0))),
    "rows swapped in front": Steps(lambda m, x, t: m.w(torch.cat([x[1:], x[:1]]))),
    "a softmax over rows in front": Steps(lambda m, x, t: m.w(torch.softmax(x, 0))),
}


@pytest.mark.parametrize("name", STAYS)
def test_left_alone(name: str) -> None:
    graph = view(STAYS[name])
    result = hoist_unrolled.run(graph, Policy())
    assert result.graph is graph and not result.applied


@pytest.mark.parametrize(
    "step",
    [
        lambda m, x, t: m.w(x) + m.rows,
        lambda m, x, t: torch.softmax(m.w(x), 0),
        lambda m, x, t: m.w(x).amax(0, keepdim=True).expand(2, -1),
        lambda m, x, t: m.w(x).t() @ m.rows,
        lambda m, x, t: m.w(x).flip(0),
    ],
)
def test_what_mixes_rows_ends_the_way(step: Any) -> None:
    """The product goes, what reads rows of one step alone does not."""
    taken = aten(made(Steps(step)), torch.randn(2, T, INPUTS))
    assert taken.error <= 2e-5 and products(taken.outcome.graph) <= 1 + T


def test_order_of_steps_and_rows() -> None:
    """Every element at its place: the certificate has no other oracle for tensors that are new."""
    module = made(Steps(lambda m, x, t: m.w(x) * (t + 1)))
    taken = aten(module, torch.randn(3, T, INPUTS))
    assert taken.error <= 2e-5 and products(taken.outcome.graph) == 1


def test_a_norm_to_be_kept_stays_at_every_step() -> None:
    graph = view(Steps(lambda m, x, t: m.norm(m.w(x))))
    for keep, left in ((lambda label: label == "norm", T), (lambda label: False, 1)):
        result = hoist_unrolled.run(graph, Policy(keep=keep))
        assert products(result.graph) == 1
        assert sum(node.kind == "LayerNormalization" for node in result.graph.nodes) == left


def test_what_a_sub_graph_reads_stays() -> None:
    graph = view(Steps(lambda m, x, t: m.w(x)))
    product = next(node for node in graph.nodes if node.kind in PRODUCTS)
    reader = Node("If", [], [graph.value("seen", (2, H), product.output.dtype)], {}, captures=(product.output,))
    graph.append(reader)
    graph.outputs.append(reader.output)
    assert Use(reader, -1) in product.output.uses
    result = hoist_unrolled.run(graph, Policy())
    assert result.graph is graph


def test_weights_that_callers_may_override_stay_theirs() -> None:
    graph = view(Steps(lambda m, x, t: m.w(x)))
    weight = next(node for node in graph.nodes if node.kind in PRODUCTS).inputs[1]
    assert weight is not None
    graph.pinned.add(weight)
    result = hoist_unrolled.run(graph, Policy())
    (product,) = (node for node in result.graph.nodes if node.kind in PRODUCTS)
    assert product.inputs[1] in result.graph.pinned


def test_norms_of_steps_are_told_as_before() -> None:
    """Layer norms of the loop stand once for all steps afterwards; every one of them says what it said."""
    graph = view(Steps(lambda m, x, t: torch.tanh(m.norm(m.w(x)))))
    outcome = rewrite(graph, Options())
    assert [item.refusal.code for item in outcome.findings if item.refusal is not None] == ["run-time-statistics"] * T
    (norm,) = (node for node in outcome.graph.nodes if node.kind == "LayerNormalization")
    assert {outcome.stands_for[finding.node] for finding in outcome.findings if finding.node in outcome.stands_for} <= {
        norm.output.name
    }


def test_the_recurrence_itself_stays() -> None:
    """Products of h and what only the loop reads are never put together: each step waits for the one before."""
    graph = view(Loop(cells.LayerNormed(INPUTS, H), "all"))
    outcome = rewrite(graph, Options())
    labels = [node.label for node in outcome.graph.nodes if node.kind in PRODUCTS]
    assert labels.count("cell.x2h") == 1 and labels.count("cell.h2h") >= T - 1


def test_nothing_is_left_to_do_afterwards() -> None:
    graph = view(Loop(cells.NormOnCell(INPUTS, H), "heads"))
    once = hoist_unrolled.run(graph, Policy())
    assert once.applied and once.graph is not graph
    assert not hoist_unrolled.run(once.graph, Policy()).applied
