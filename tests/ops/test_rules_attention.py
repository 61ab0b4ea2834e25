"""Rules of attention: what passes a mixing matrix, judged by the float64 certificate and by both routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from build import Builder
from judge import judged, outcome
from normfold.graph import Value
from routes import aten, by_onnx, randomised

HEADS = ("N", 2, 5, 3)


def values(b: Builder, signed: bool = True) -> Value:
    """V [N, 2, 5, 3] with one gauge for each head and channel, out of a BN that nothing in front of it can absorb."""
    y = b.op("Sigmoid", b.input("v", ("N", 6, 5)), shape=("N", 6, 5))
    y = b.op("Reshape", b.bn(y, signed=signed, name="bn"), shape=("N", 2, 3, 5), target=(0, 2, 3, 5))
    return b.op("Transpose", y, shape=HEADS, perm=(0, 1, 3, 2))


def merged(b: Builder, y: Value) -> Value:
    """A linear layer over the channels of all heads together."""
    y = b.op("Transpose", y, shape=("N", 5, 2, 3), perm=(0, 2, 1, 3))
    return b.gemm(b.op("Reshape", y, shape=("N", 5, 6), target=(0, 5, 6)), 4)


def scores(b: Builder, name: str = "q") -> Value:
    """Scores [N, 2, 5, 5] made by a product."""
    q = b.op("Sigmoid", b.input(name, HEADS), shape=HEADS)
    return b.op("MatMul", q, b.weight(3, 5), shape=("N", 2, 5, 5))


def softmax(b: Builder, x: Value, axis: int = 3) -> Value:
    return b.op("Softmax", x, shape=x.shape or (), axis=axis)


def test_what_an_average_over_positions_lets_through() -> None:
    b = Builder()
    y = b.op("MatMul", softmax(b, scores(b)), values(b), shape=HEADS)
    assert outcome(b, merged(b, y)) == "deleted"


def test_bn_behind_the_average_goes_into_what_made_the_values() -> None:
    b = Builder()
    v = b.op("Transpose", b.conv(b.input("v", ("N", 4, 5)), 3), shape=("N", 5, 3), perm=(0, 2, 1))
    p = softmax(
        b, b.op("MatMul", b.op("Sigmoid", b.input("q", ("N", 5, 3)), shape=("N", 5, 3)), b.weight(3, 5), shape=("N", 5, 5)), 2
    )
    y = b.op("Transpose", b.op("MatMul", p, v, shape=("N", 5, 3)), shape=("N", 3, 5), perm=(0, 2, 1))
    assert outcome(b, b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=("N", 3, 5))) == "deleted"


def test_the_mirror_image_averages_too() -> None:
    """V^T P^T: the values stand on the left, the softmax is transposed."""
    b = Builder()
    v = b.op("Transpose", values(b), shape=("N", 2, 3, 5), perm=(0, 1, 3, 2))
    p = b.op("Transpose", softmax(b, scores(b)), shape=("N", 2, 5, 5), perm=(0, 1, 3, 2))
    y = b.op("MatMul", v, p, shape=("N", 2, 3, 5))
    assert outcome(b, merged(b, b.op("Transpose", y, shape=HEADS, perm=(0, 1, 3, 2)))) == "deleted"


@pytest.mark.parametrize("what", ["other axis", "transposed", "sigmoid", "right operand", "dropped column"])
def test_a_matrix_that_does_not_average_takes_the_scale_alone(what: str) -> None:
    b = Builder()
    v, s = values(b, signed=False), scores(b)
    p = softmax(b, s, 2) if what == "other axis" else softmax(b, s)
    if what == "transposed":
        p = b.op("Transpose", p, shape=("N", 2, 5, 5), perm=(0, 1, 3, 2))
    if what == "sigmoid":
        p = b.op("Sigmoid", s, shape=("N", 2, 5, 5))
    if what == "dropped column":
        p = b.op("Slice", p, shape=("N", 2, 5, 5), starts=(0,), ends=(5,), axes=(3,), steps=(1,))
    if what == "right operand":
        y = b.op("MatMul", b.op("Transpose", v, shape=("N", 2, 3, 5), perm=(0, 1, 3, 2)), p, shape=("N", 2, 3, 5))
        y = b.op("Transpose", y, shape=HEADS, perm=(0, 1, 3, 2))
    else:
        y = b.op("MatMul", p, v, shape=HEADS)
    b.output(merged(b, y))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == "shift" and fate.refusal is not None and fate.refusal.code == "gate"


def test_gauges_that_vary_along_the_summed_axis_stay() -> None:
    b = Builder()
    y = b.bn(b.op("Sigmoid", b.input("v", ("N", 5, 3)), shape=("N", 5, 3)), name="bn")
    p = softmax(b, b.op("Sigmoid", b.input("q", ("N", 5, 5)), shape=("N", 5, 5)), 2)
    assert outcome(b, b.gemm(b.op("MatMul", p, y, shape=("N", 5, 3)), 4)) == "kept"


def test_two_moving_tensors_keep_their_gauges() -> None:
    b = Builder()
    q = b.bn(b.op("Sigmoid", b.input("q", ("N", 5, 3)), shape=("N", 5, 3)), name="bn")
    k = b.gemm(b.input("k", ("N", 3, 4)), 5)
    b.output(b.gemm(b.op("MatMul", q, k, shape=("N", 5, 5)), 4))
    assert judged(b.graph)["bn"].outcome == "kept"


def test_a_matrix_times_itself_is_no_mixing() -> None:
    b = Builder()
    y = b.bn(b.op("Sigmoid", b.input("v", ("N", 4, 4)), shape=("N", 4, 4)), name="bn")
    assert outcome(b, b.gemm(b.op("MatMul", y, y, shape=("N", 4, 4)), 3)) == "kept"


OPEN = np.triu(np.full((5, 5), -np.inf), 1)  # causal: the first position is always seen
SHUT = np.where(np.arange(5)[:, None] == 2, -np.inf, 0.0) + np.zeros((5, 5))  # one query sees nothing
MASKS: dict[str, tuple[Callable[[Builder, Value], Value], bool]] = {
    "causal": (lambda b, s: b.op("Add", s, b.const(OPEN), shape=s.shape), True),
    "bias of positions": (lambda b, s: b.op("Add", b.const(np.ones((2, 5, 5))), s, shape=s.shape), True),
    "large negative": (lambda b, s: b.op("Add", s, b.const(np.where(SHUT < 0, -1e9, 0)), shape=s.shape), True),
    "all masked": (lambda b, s: b.op("Add", s, b.const(SHUT), shape=s.shape), False),
    "per query": (lambda b, s: b.op("Add", s, b.const(SHUT[:, :1]), shape=s.shape), False),
    "not a number": (lambda b, s: b.op("Add", s, b.const(np.full(5, np.nan)), shape=s.shape), False),
    "at run time": (lambda b, s: b.op("Add", s, b.input("mask", (5, 5)), shape=s.shape), False),
    "two masks": (lambda b, s: b.op("Add", b.op("Add", s, b.const(OPEN), shape=s.shape), b.const(OPEN.T), shape=s.shape), False),
    "where, causal": (lambda b, s: _where(b, OPEN < 0, s), True),
    "where, all masked": (lambda b, s: _where(b, SHUT < 0, s), False),
}


def _where(b: Builder, closed: Any, s: Value) -> Value:
    return b.op("Where", b.graph.constant("closed", closed), b.const(-np.inf), s, shape=s.shape)


@pytest.mark.parametrize("name", MASKS)
def test_a_row_that_may_be_masked_whole_takes_no_shift(name: str) -> None:
    mask, proved = MASKS[name]
    b = Builder()
    y = b.op("MatMul", softmax(b, mask(b, scores(b))), values(b, signed=False), shape=HEADS)
    assert outcome(b, merged(b, y)) == ("deleted" if proved else "shift")


def test_a_mask_that_the_caller_may_override_proves_nothing() -> None:
    b = Builder()
    s = scores(b)
    mask = b.const(OPEN)
    b.graph.pinned.add(mask)
    y = b.op("MatMul", softmax(b, b.op("Add", s, mask, shape=s.shape)), values(b, signed=False), shape=HEADS)
    assert outcome(b, merged(b, y)) == "shift"


# ---- attention as one op -------------------------------------------------------------------------------------------


def one_op(b: Builder, q_heads: int, kv_heads: int, mask: Value | None = None, **attrs: Any) -> Value:
    """ONNX's Attention with heads side by side: V [N, 5, kv_heads * 3]."""
    q = b.input("q", ("N", 5, q_heads * 4))
    k = b.input("k", ("N", 5, kv_heads * 4))
    v = b.op("Sigmoid", b.input("v", ("N", kv_heads * 3, 5)), shape=("N", kv_heads * 3, 5))
    v = b.op("Transpose", b.bn(v, signed=False, name="bn"), shape=("N", 5, kv_heads * 3), perm=(0, 2, 1))
    inputs = [q, k, v] + ([] if mask is None else [mask])
    y = b.op("Attention", *inputs, shape=("N", 5, q_heads * 3), q_num_heads=q_heads, kv_num_heads=kv_heads, **attrs)
    return b.gemm(y, 4)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(1, 1), (2, 2), (4, 2)])
def test_attention_passes_the_gauge_of_each_head(q_heads: int, kv_heads: int, causal: int) -> None:
    b = Builder()
    assert outcome(b, one_op(b, q_heads, kv_heads, is_causal=causal)) == "deleted"


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_attention_with_heads_on_an_axis_of_their_own(kv_heads: int) -> None:
    b = Builder()
    v = b.op("Sigmoid", b.input("v", ("N", kv_heads * 3, 5)), shape=("N", kv_heads * 3, 5))
    v = b.op("Reshape", b.bn(v, signed=True, name="bn"), shape=("N", kv_heads, 3, 5), target=(0, kv_heads, 3, 5))
    v = b.op("Transpose", v, shape=("N", kv_heads, 5, 3), perm=(0, 1, 3, 2))
    y = b.op("Attention", b.input("q", ("N", 4, 5, 2)), b.input("k", ("N", kv_heads, 5, 2)), v, shape=("N", 4, 5, 3))
    y = b.op("Reshape", b.op("Transpose", y, shape=("N", 5, 4, 3), perm=(0, 2, 1, 3)), shape=("N", 5, 12), target=(0, 5, 12))
    assert outcome(b, b.gemm(y, 3)) == "deleted"


@pytest.mark.parametrize("why", ["window", "float mask", "bool mask", "mask of the caller", "causal and a mask"])
def test_attention_takes_no_shift_where_a_query_may_see_nothing(why: str) -> None:
    b = Builder()
    mask: Value | None = None
    attrs: dict[str, Any] = {"window": {"left_window_size": 1}, "causal and a mask": {"is_causal": 1}}.get(why, {})
    if why == "mask of the caller":
        mask = b.input("mask", (5, 5))
    elif why == "bool mask":
        mask = b.graph.constant("mask", SHUT == 0)
    elif why != "window":
        mask = b.const(OPEN.T if "causal" in why else SHUT)
    assert outcome(b, one_op(b, 2, 2, mask, **attrs)) == "shift"


@pytest.mark.parametrize("kind", ["float", "bool"])
def test_attention_takes_a_shift_where_a_constant_mask_leaves_something(kind: str) -> None:
    b = Builder()
    mask = b.const(OPEN) if kind == "float" else b.graph.constant("mask", OPEN == 0)
    assert outcome(b, one_op(b, 2, 2, mask)) == "deleted"


@pytest.mark.parametrize("role", ["query", "key", "cache"])
def test_what_attention_compares_keeps_its_gauge(role: str) -> None:
    b = Builder()
    y = b.op("Sigmoid", b.input("v", ("N", 6, 5)), shape=("N", 6, 5))
    y = b.op("Transpose", b.bn(y, name="bn"), shape=("N", 5, 6), perm=(0, 2, 1))
    other, past = b.input("x", ("N", 5, 6)), b.input("past", ("N", 2, 4, 3))
    inputs = {"query": [y, other, other], "key": [other, y, y], "cache": [other, other, y, None, past, past]}[role]
    y = b.op("Attention", *inputs, shape=("N", 5, 6), q_num_heads=2, kv_num_heads=2)
    assert outcome(b, b.gemm(y, 4)) == "kept"


# ---- from torch ----------------------------------------------------------------------------------------------------


class _SelfAttention(nn.Module):
    """q, k and v out of linear layers, a norm on the values or behind attention (as in BoTNet)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        heads = 4 if how == "grouped" else 2
        self.q, self.k, self.v = nn.Linear(6, 4 * heads), nn.Linear(6, 8, bias=False), nn.Linear(6, 6)
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(3 * heads, 4)

    def _heads(self, x: torch.Tensor, size: int) -> torch.Tensor:
        return x.reshape(x.shape[0], 5, -1, size).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        v = self.v(x)
        if self.how == "grouped":
            v = self.norm(torch.tanh(v).transpose(1, 2)).transpose(1, 2)
        q, k, v = self._heads(self.q(x), 4), self._heads(self.k(x), 4), self._heads(v, 3)
        if self.how == "spelled":
            y = torch.softmax(q @ k.transpose(-1, -2) * 0.5, dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.how == "causal", enable_gqa=self.how == "grouped")
        y = y.transpose(1, 2).flatten(2)
        if self.how == "grouped":
            return self.out(y)
        return torch.sigmoid(self.norm(y.transpose(1, 2)))


@pytest.mark.parametrize(("how", "dynamic"), [("spelled", False), ("fused", True), ("causal", True), ("grouped", True)])
def test_attention_from_torch(how: str, dynamic: bool) -> None:
    module = randomised(_SelfAttention(how))
    sizes = {"x": {0: torch.export.Dim("n", min=2)}} if dynamic else None
    first = aten(module, torch.randn(3, 5, 6), dynamic=sizes)
    assert first.outcomes == ["deleted"] and first.error <= 2e-5
    if how != "grouped":  # the exporter has no grouped heads
        second = by_onnx(module, torch.randn(3, 5, 6), dynamic=sizes)
        assert second.outcomes == ["deleted"] and second.error <= 2e-5
