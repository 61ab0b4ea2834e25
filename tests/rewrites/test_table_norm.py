"""Norms of rows of a constant table: the table is normalised, once, and only where every row is normalised by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from build import Builder
from normfold.graph import Array, Graph, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run
from routes import aten, by_onnx, randomised

T = torch.export.Dim("T", min=2, max=64)


class _Words(nn.Module):
    """Tokens [N, T] -> table -> norm -> linear."""

    def __init__(self, norm: nn.Module, width: int = 6, *, channels_first: bool = False) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(11, width, padding_idx=0), norm, nn.Linear(width, 3)
        self.channels_first = channels_first

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.channels_first else self.norm(x)
        return torch.tanh(self.head(x))


def _tokens() -> torch.Tensor:
    return torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("objective", ["latency", "norms"])
@pytest.mark.parametrize("dynamic", [None, ({1: T},)], ids=["fixed", "open length"])
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_layer_norm_is_deleted_into_the_table(route: Any, dynamic: Any, objective: str) -> None:
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    taken = route(_Words(norm).eval(), _tokens(), dynamic=dynamic, objective=objective)
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5
    assert taken.outcome.findings[0].into == ["table.weight"]
    assert [node.kind for node in taken.outcome.graph.nodes][:2] in (["Gather", "Gemm"], ["Gather", "MatMul"])


@pytest.mark.parametrize(
    ("norm", "channels_first"),
    [
        (nn.LayerNorm(6, elementwise_affine=False), False),
        (nn.LayerNorm(6, bias=False, eps=0.3), False),
        (nn.RMSNorm(6, eps=1e-6), False),
        (nn.BatchNorm1d(6), True),
    ],
    ids=["no affine part", "no bias", "rms", "batch"],
)
def test_other_norms(norm: nn.Module, channels_first: bool) -> None:
    module = randomised(_Words(norm, channels_first=channels_first))
    taken = aten(module, _tokens(), objective="latency")
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5


def test_a_batch_norm_through_a_transpose_by_onnx() -> None:
    taken = by_onnx(randomised(_Words(nn.BatchNorm1d(6), channels_first=True)), _tokens(), objective="latency")
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5


class _Tied(nn.Module):
    """The table is read as it is by the output layer: LayerNorm must not reach it there."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(self.norm(self.table(tokens))), self.table.weight)


def test_a_tied_table_is_copied_within_the_budget_only() -> None:
    """QuaRot#30: folding into a tied embedding changes its twin."""
    taken = aten(_Tied().eval(), _tokens())
    assert taken.outcomes == ["kept"] and taken.codes == ["clone-budget"] and taken.error <= 2e-5
    refusal = taken.outcome.findings[0].refusal
    assert refusal is not None and "264 bytes" in refusal.reason and "--clone-budget to 264" in refusal.fix
    enough = rewrite(taken.before, Options(clone_budget=264))
    assert [finding.outcome for finding in enough.findings] == ["deleted"]
    _judge(taken.before, enough, {next(iter(taken.before.inputs)).name: _tokens().numpy()})
    assert rewrite(taken.before, Options(clone_budget=263)).findings[0].outcome == "kept"


class _Stream(nn.Module):
    """The rows are read by the norm and, as they are, by a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.linear = nn.Embedding(11, 6), nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        return x + self.linear(self.norm(x))


@pytest.mark.parametrize("model", [_Tied, _Stream])
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_copies_are_written_right(route: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import routes

    monkeypatch.setattr(routes, "Options", lambda **given: Options(clone_budget="100MB", **given))
    taken = route(model().eval(), _tokens())
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5


# ---- by hand -------------------------------------------------------------------------------------------------------------------


def _judge(before: Graph, outcome: Outcome, feeds: dict[str, Array]) -> None:
    failed = [item for item in certificate(before, outcome.graph, feeds) if not item.passed]
    assert not failed, failed[:3]
    expected, came = run(before, feeds), run(outcome.graph, feeds)
    assert list(expected) == list(came)
    for name, array in expected.items():
        assert np.allclose(came[name], array, rtol=1e-10, atol=1e-10)


def _lookup(b: Builder, row: tuple[int, ...] = (6,), shape: tuple[Any, ...] = ("N", 5)) -> Value:
    index = b.graph.value("i", shape, np.int64)
    b.graph.inputs.append(index)
    return b.op("Gather", b.weight(11, *row), index, shape=(*shape, *row), axis=0)


def _layer(b: Builder, x: Value, axis: int, gamma: tuple[int, ...], name: str = "norm") -> Value:
    parameters = [b.const(b.rng.standard_normal(gamma)), b.const(b.rng.standard_normal(gamma))]
    return b.op("LayerNormalization", x, *parameters, shape=x.shape or (), axis=axis, epsilon=1e-5, name=name)


def _done(b: Builder, **options: Any) -> Outcome:
    outcome = rewrite(b.graph, Options(**options))
    for seed in range(2):
        _judge(b.graph, outcome, {"i": np.random.default_rng(seed).integers(-11, 11, (3, 5))})
    return outcome


def _kinds(outcome: Outcome) -> list[str]:
    return [node.kind for node in outcome.graph.nodes]


@pytest.mark.parametrize(
    ("row", "axis", "gamma", "deleted"),
    [
        ((6,), 2, (6,), True),
        ((4, 6), 3, (6,), True),
        ((4, 6), 2, (4, 6), True),
        ((4, 6), 3, (4, 6), True),
        ((4, 6), 2, (1, 1), True),
        ((6,), 1, (5, 6), False),
        ((6,), 1, (6,), False),
        ((6,), 2, (5, 1), False),
        ((6,), 2, (1, 1, 6), True),
    ],
)
def test_the_norm_must_stay_within_a_row(row: tuple[int, ...], axis: int, gamma: tuple[int, ...], deleted: bool) -> None:
    b = Builder()
    b.output(_layer(b, _lookup(b, row), axis, gamma))
    outcome = _done(b)
    assert [finding.outcome for finding in outcome.findings] == ["deleted" if deleted else "kept"]
    assert _kinds(outcome) == (["Gather"] if deleted else ["Gather", "LayerNormalization"])


def test_through_reshape_and_transpose_of_the_row() -> None:
    b = Builder()
    x = b.op("Reshape", _lookup(b, (24,)), shape=("N", 5, 4, 6), target=(0, 0, 4, 6))
    x = b.op("Transpose", x, shape=("N", 4, 5, 6), perm=(0, 2, 1, 3))
    b.output(_layer(b, x, 3, (6,)))
    assert _kinds(_done(b)) == ["Gather", "Reshape", "Transpose"]


def test_through_a_transpose_within_the_row() -> None:
    b = Builder()
    x = b.op("Reshape", _lookup(b, (24,)), shape=("N", 5, 4, 6), target=(0, 0, 4, 6))
    x = b.op("Transpose", x, shape=("N", 5, 6, 4), perm=(0, 1, 3, 2))
    b.output(_layer(b, x, 3, (4,)))
    assert _kinds(_done(b)) == ["Gather", "Reshape", "Transpose"]


def test_batch_norm_over_a_part_of_the_row_and_over_tokens() -> None:
    for perm, count in (((0, 2, 1, 3), 4), ((0, 1, 2, 3), 5)):
        b = Builder()
        x = b.op("Reshape", _lookup(b, (24,)), shape=("N", 5, 4, 6), target=(0, 0, 4, 6))
        sizes = [("N", 5, 4, 6)[axis] for axis in perm]
        x = b.op("Transpose", x, shape=tuple(sizes), perm=perm)
        b.output(b.op("Sigmoid", b.bn(x, signed=True, var=np.full(count, 1e-9)), shape=tuple(sizes)))
        assert [finding.outcome for finding in _done(b).findings] == ["deleted" if count == 4 else "kept"]


def test_rows_that_are_flattened_into_one_another_stay() -> None:
    b = Builder()
    x = b.op("Reshape", _lookup(b), shape=("N", 30), target=(0, 30))
    b.output(_layer(b, x, 1, (30,)))
    assert _done(b).findings[0].outcome == "kept"


def test_rows_that_are_read_as_they_are_need_a_copy() -> None:
    b = Builder()
    x = _lookup(b)
    y = _layer(b, x, 2, (6,))
    b.output(b.op("Add", x, b.op("Tanh", y, shape=y.shape), shape=y.shape))
    assert _done(b).findings[0].refusal.code == "clone-budget"  # type: ignore[union-attr]
    assert _kinds(_done(b, clone_budget="100%")) == ["Gather", "Gather", "Tanh", "Add"]


def test_rows_that_are_a_graph_output_keep_their_name_and_content() -> None:
    b = Builder()
    x = _lookup(b)
    b.output(x, _layer(b, x, 2, (6,)))
    assert _kinds(_done(b)) == ["Gather", "LayerNormalization"]
    assert _kinds(_done(b, clone_budget="1MB")) == ["Gather", "Gather"]


def test_two_lookups_with_one_norm_need_no_copy_and_two_norms_need_one() -> None:
    b = Builder()
    x = _lookup(b)
    table = x.producer.inputs[0]  # type: ignore[union-attr]
    again = b.op("Gather", table, b.graph.inputs[0], shape=x.shape or (), axis=0)
    first = _layer(b, x, 2, (6,), "first")
    second = b.op("LayerNormalization", again, *first.producer.inputs[1:], shape=x.shape, axis=2, epsilon=1e-5)  # type: ignore
    b.output(first, second)
    outcome = _done(b)
    assert _kinds(outcome) == ["Gather", "Gather"]
    assert len({node.inputs[0] for node in outcome.graph.nodes}) == 1
    second.producer.attrs["epsilon"] = 0.5
    assert [item.refusal.code for item in _done(b).findings if item.refusal] == ["clone-budget"] * 2
    assert _kinds(_done(b, clone_budget=264)) == ["Gather", "Gather"]


def test_two_norms_of_the_same_rows() -> None:
    b = Builder()
    x = _lookup(b)
    b.output(_layer(b, x, 2, (6,), "first"), _layer(b, x, 2, (6,), "second"))
    assert [item.outcome for item in _done(b).findings] == ["kept", "kept"]
    assert _kinds(_done(b, clone_budget=264)) == ["Gather", "Gather"]


def test_what_lies_between_is_read_by_others() -> None:
    b = Builder()
    x = b.op("Reshape", _lookup(b, (24,)), shape=("N", 5, 4, 6), target=(0, 0, 4, 6))
    b.output(_layer(b, x, 3, (6,)), b.op("Tanh", x, shape=x.shape or ()))
    assert _done(b, clone_budget="10MB").findings[0].outcome == "kept"


def _half(b: Builder, scale: float) -> Value:
    x = _lookup(b)
    table = x.producer.inputs[0]  # type: ignore[union-attr]
    b.graph.set_input(x.producer, 0, b.graph.constant("half", (table.const.read() * scale).astype(np.float16)))  # type: ignore
    x.dtype = np.dtype(np.float16)
    return x


def test_half_precision() -> None:
    b = Builder()
    y = _layer(b, _half(b, 1.0), 2, (6,))
    y.dtype = np.dtype(np.float16)
    b.output(y)
    assert _done(b).findings[0].outcome == "deleted"
    y.producer.inputs[1].const = b.const(np.full(6, 1e6)).const  # type: ignore[union-attr]
    outcome = rewrite(b.graph, Options())
    assert outcome.findings[0].refusal is not None and outcome.findings[0].refusal.code == "range"


def test_a_norm_of_another_type_than_the_table_stays() -> None:
    b = Builder()
    x = b.op("Cast", _half(b, 1.0), shape=("N", 5, 6), to=np.dtype(np.float32))
    b.output(_layer(b, x, 2, (6,)))
    assert rewrite(b.graph, Options()).findings[0].outcome == "kept"


def test_an_overridable_table_and_gamma_stay() -> None:
    for slot in (0, 1):
        b = Builder()
        y = _layer(b, _lookup(b), 2, (6,))
        b.output(y)
        norm = y.producer
        assert norm is not None and norm.inputs[0] is not None and norm.inputs[0].producer is not None
        b.graph.pinned.add((norm.inputs[0].producer if slot == 0 else norm).inputs[slot])  # type: ignore[arg-type]
        assert rewrite(b.graph, Options()).findings[0].outcome == "kept"


def test_it_can_be_asked_for_and_switched_off() -> None:
    b = Builder()
    b.output(_layer(b, _lookup(b), 2, (6,)))
    assert _done(b, only=("table-norm",)).findings[0].outcome == "deleted"
    assert _done(b, skip=("table-norm",)).findings[0].outcome == "kept"
    refusal = _done(b, keep=("norm",)).findings[0].refusal
    assert refusal is not None and refusal.code == "asked-to-keep"
