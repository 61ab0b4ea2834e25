"""Rules of tables: a constant from which rows are looked up makes any gauge; judged by the certificate and by both routes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from build import Builder
from judge import proved
from normfold.graph import Value
from normfold.rewrites import Rewritten, affine
from normfold.rewrites.rewrite import Policy
from routes import aten, by_onnx, randomised


def indices(b: Builder, name: str, *shape: Any) -> Value:
    value = b.graph.value(name, shape, np.int64)
    b.graph.inputs.append(value)
    return value


def rewritten(b: Builder, **shapes: tuple[int, ...]) -> Rewritten:
    result = affine.run(b.graph, Policy("latency"))
    rng = np.random.default_rng(0)
    proved(b.graph, result.graph, {name: rng.integers(-4, 4, shape) for name, shape in shapes.items()})
    return result


def behind(b: Builder, y: Value, name: str = "bn") -> Value:
    """BN over the last axis of [N, T, C], and a pinned end."""
    n, t, c = y.shape or ()
    y = b.op("Transpose", y, shape=(n, c, t), perm=(0, 2, 1))
    return b.op("Sigmoid", b.bn(y, signed=True, name=name), shape=(n, c, t))


def test_an_embedding_makes_any_gauge() -> None:
    b = Builder()
    y = b.op("Gather", b.weight(7, 5), indices(b, "i", "N", "T"), shape=("N", "T", 5), axis=0)
    b.output(behind(b, y))
    assert [fate.outcome for fate in rewritten(b, i=(2, 3)).fates] == ["deleted"]


@pytest.mark.parametrize("axis", [1, -1])
def test_columns_of_a_table(axis: int) -> None:
    b = Builder()
    y = b.op("Gather", b.weight(5, 7), indices(b, "i", "T"), shape=(5, "T"), axis=axis)
    b.output(b.op("Sigmoid", b.op("Mul", y, b.const(b.rng.uniform(0.5, 2, (5, 1))), shape=(5, "T"), name="k"), shape=(5, "T")))
    assert [fate.outcome for fate in rewritten(b, i=(3,)).fates] == ["deleted"]


def test_rows_of_several_axes_with_a_scalar_index() -> None:
    b = Builder()
    y = b.op("Gather", b.weight(7, 3, 4), indices(b, "i"), shape=(3, 4), axis=0)
    y = b.op("Add", y, b.const(b.rng.standard_normal((3, 4))), shape=(3, 4), name="k")
    b.output(b.op("Sigmoid", y, shape=(3, 4)))
    assert [fate.outcome for fate in rewritten(b, i=()).fates] == ["deleted"]


def test_a_gauge_that_varies_with_the_place_is_not_the_tables() -> None:
    b = Builder()
    y = b.op("Gather", b.weight(7, 5), indices(b, "i", "N", 3), shape=("N", 3, 5), axis=0)
    y = b.op("Mul", y, b.const(b.rng.uniform(0.5, 2, (3, 1))), shape=("N", 3, 5), name="k")
    b.output(b.op("Sigmoid", y, shape=("N", 3, 5)))
    assert [fate.outcome for fate in rewritten(b, i=(2, 3)).fates] == ["kept"]


@pytest.mark.parametrize("same", [True, False])
def test_a_table_read_twice_is_replaced_once(same: bool) -> None:
    b = Builder()
    table = b.weight(7, 5)
    outputs = [b.op("Gather", table, indices(b, name, "N", "T"), shape=("N", "T", 5), axis=0) for name in "ij"]
    y = [behind(b, output, f"bn{place}") for place, output in enumerate(outputs)]
    if same:
        first, second = (node for node in b.graph.nodes if node.kind == "BatchNormalization")
        for slot in range(1, 5):
            b.graph.set_input(second, slot, first.inputs[slot])
    b.output(*y)
    result = rewritten(b, i=(2, 3), j=(3, 2))
    assert sorted(fate.outcome for fate in result.fates) == ["deleted", "deleted" if same else "kept"]
    assert len({node.inputs[0] for node in result.graph.nodes if node.kind == "Gather"}) == 1


@pytest.mark.parametrize("twin", ["output layer", "another axis", "index", "graph output", "overridable"])
def test_a_table_with_another_reader_stays(twin: str) -> None:
    """Known wrong answer 14: the output layer of a language model is tied to its embedding."""
    b = Builder()
    table = b.weight(7, 5)
    y = behind(b, b.op("Gather", table, indices(b, "i", "N", "T"), shape=("N", "T", 5), axis=0))
    if twin == "output layer":
        y = b.op("Transpose", y, shape=("N", "T", 5), perm=(0, 2, 1))
        y = b.op("Gemm", y, table, shape=("N", "T", 7), alpha=1.0, beta=1.0, transA=0, transB=1)
    if twin == "another axis":
        b.graph.outputs.append(b.op("Gather", table, indices(b, "j", 2), shape=(7, 2), axis=1))
    if twin == "index":
        b.graph.outputs.append(b.op("Sigmoid", table, shape=(7, 5)))
    if twin == "graph output":
        b.graph.outputs.append(table)
    if twin == "overridable":
        b.graph.pinned.add(table)
    b.output(y)
    (fate,) = rewritten(b, i=(2, 3), **({"j": (2,)} if twin == "another axis" else {})).fates
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "shared-weight"


class _Language(nn.Module):
    """Embedding (with a padding row), scaled by a number, a norm; the output layer is tied or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 6, padding_idx=0), nn.BatchNorm1d(6)
        self.end = nn.Linear(6, 11, bias=False)
        if tied:
            self.end.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (self.embedding(x) * 6**0.5).transpose(1, 2)
        return self.end(torch.sigmoid(self.norm(y)).transpose(1, 2))


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_from_torch(tied: bool) -> None:
    module, x = randomised(_Language(tied)), torch.randint(0, 11, (3, 4))
    for taken in (aten(module, x), by_onnx(module, x)):
        assert taken.error <= 2e-5  # a tied table is copied, or the norm stays: the output layer sees what it saw
        assert tied or taken.outcomes == ["deleted"]
