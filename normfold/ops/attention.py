"""Attention: products with a matrix computed at run time, of which the softmax may prove that it only averages.

With y = P V and P kept as it is, P (s V + t) == s (P V) + t (P 1) for s and t constant along the axis that is summed: a scale
always passes, a shift where the rows of P sum to one.  That they do must be proved: a row whose every entry is masked is NaN, or
zeros, whatever V holds.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from normfold.algebra.labels import Labels, raise_rank
from normfold.algebra.ratios import Ints
from normfold.graph import Array, Dim, Node, Value, is_float
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring

_DEPTH = 64  # operations looked through; beyond that nothing is proved


def wire_mixing(node: Node, w: Wiring) -> None:
    """MatMul of two computed tensors: where one of them keeps its gauge, it mixes what the other holds."""
    left, right = node.inputs
    rank = node.output.rank
    if left is None or right is None or rank is None or min(left.rank or 0, right.rank or 0) < 2:
        return w.pin_node(node)
    moving = [value for value in (left, right) if value.const is None and not w.of(value).pinned]
    if len(moving) != 1 or left is right:
        return w.pin_node(node)
    (data,) = moving
    mixer, summed = (left, -2) if data is right else (right, -1)
    assert data.rank is not None and mixer.rank is not None
    w.even_out(data, set(range(data.rank)) - {data.rank + summed})
    if mixer.const is not None or not _averages(mixer, mixer.rank - (1 if data is right else 2), w.graph.pinned):
        w.zero_shift(data, "gate", node)
    w.set(node.output, *(raise_rank(item, rank) for item in w.of(data)))
    return None


def _averages(value: Value, axis: int, pinned: Container[Value]) -> bool:
    """True when the entries of `value` along `axis` provably sum to one."""
    found = _softmax_behind(value)
    if found is None or found[1] != axis:
        return False
    softmax = found[0]
    scores = softmax.inputs[0]
    return scores is not None and _never_all_masked(scores, int(softmax.attrs["axis"]), pinned)


def _softmax_behind(value: Value) -> tuple[Node, int] | None:
    """The Softmax that made `value`, through operations that only move its entries, and the axis along which it sums to one."""
    moves: list[Node] = []
    node = value.producer
    while node is not None and node.kind in _MOVES and len(node.outputs) == 1 and len(moves) < _DEPTH:
        moves.append(node)
        x = node.input(0)
        node = None if x is None else x.producer
    if node is None or node.kind != "Softmax":
        return None
    axis = int(node.attrs["axis"])
    for move in reversed(moves):
        x, y = move.inputs[0], move.output
        if x is None or x.shape is None or y.shape is None or not is_float(x.dtype):
            return None
        if move.kind == "Transpose":
            axis = list(move.attrs["perm"]).index(axis)
        elif move.kind in ("Reshape", "Expand"):
            after = axis + len(y.shape) - len(x.shape)
            rows = move.kind == "Expand" or after == len(y.shape) - 1
            if not rows or x.shape[axis] is None or x.shape[axis] != y.shape[after]:
                return None
            axis = after
    return node, axis


_MOVES = frozenset(("Identity", "Dropout", "Cast", "Transpose", "Reshape", "Expand"))


def _never_all_masked(scores: Value, axis: int, pinned: Container[Value]) -> bool:
    """True when along `axis` some entry of `scores` is always finite: softmax then gives a row that sums to one."""
    if _finite(scores, pinned):
        return True
    node = scores.producer
    if node is None or scores.rank is None or node.kind not in ("Add", "Where"):
        return False
    first, second = (_open(value, pinned) for value in node.inputs[-2:])
    if first is None or second is None:
        return False
    if node.kind == "Add":
        entries = first & second
    else:
        condition = node.inputs[0]
        if condition is None or condition.const is None or condition in pinned:
            return False
        entries = np.where(condition.const.read(), first, second)
    back = axis - scores.rank
    return bool((entries.any(axis=back) if entries.ndim >= -back else entries).all())


def _open(value: Value | None, pinned: Container[Value]) -> Array | None:
    """Which entries are finite, in a shape that broadcasts to the value's; None where that cannot be told."""
    if value is None or value in pinned:
        return None
    if value.const is not None and is_float(value.dtype):
        array = value.const.float64()
        return None if np.any(np.isnan(array) | (array == np.inf)) else np.isfinite(array)
    return np.ones((), dtype=np.bool_) if _finite(value, pinned) else None


def _finite(value: Value, pinned: Container[Value]) -> bool:
    """True for what no mask went into: an entry can become infinite by overflow alone."""
    queue: list[Value | None] = [value]
    seen: set[Value] = set()
    while queue:
        item = queue.pop()
        if item is None or item in pinned:
            return False
        if item in seen:
            continue
        seen.add(item)
        if item.const is not None:
            if not is_float(item.dtype) or not np.isfinite(item.const.float64()).all():
                return False
            continue
        node = item.producer
        if node is None:
            return False
        if node.kind in _PRODUCTS:
            continue
        operands = _operands(node)
        if operands is None:
            return False
        queue += operands
    return True


def _operands(node: Node) -> list[Value | None] | None:
    """The inputs that decide whether the output is finite; None for operations of which that is not known."""
    if node.kind in _ARITHMETIC:
        return list(node.inputs)
    if node.kind == "Where":
        return node.inputs[1:]
    if node.kind == "Div":
        divisor = node.inputs[1]
        return list(node.inputs) if divisor is not None and divisor.const is not None and divisor.const.float64().all() else None
    if node.kind == "Pad" and node.attrs.get("mode", "constant") == "constant":
        computed = node.input(2) is not None and "constant_value" not in node.attrs
        return None if computed or not np.isfinite(float(node.attrs.get("constant_value") or 0.0)) else node.inputs[:1]
    return node.inputs[:1] if node.kind in _LAYOUT else None


_PRODUCTS = frozenset("MatMul Gemm Conv ConvTranspose Softmax Sigmoid Tanh BatchNormalization LayerNormalization Relu".split())
_ARITHMETIC = frozenset("Add Sub Mul Sum Concat".split())
_LAYOUT = frozenset(
    """Identity Dropout Cast Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Gather GatherElements Tile Expand Pad
    Neg""".split()
)


# ---- attention as one op ---------------------------------------------------------------------------------------------------


def _wire_attention(node: Node, w: Wiring) -> None:
    """ONNX's Attention (opset 23): V [N, heads, T, d], or [N, T, heads * d] with the heads side by side."""
    v, y = node.input(2), node.output
    if v is None or v.const is not None or v.rank not in (3, 4) or y.rank != v.rank or len(node.outputs) > 1:
        return w.pin_node(node)
    if any(node.input(slot) is not None for slot in (4, 5, 6)):  # a cache, or lengths
        return w.pin_node(node)
    q, attrs = node.inputs[0], node.attrs
    heads = [value.shape[1] if value is not None and value.shape is not None else None for value in (q, v)]
    if v.rank == 3:
        heads = [attrs.get("q_num_heads"), attrs.get("kv_num_heads")]
    if None in heads:
        return w.pin_node(node)
    windowed = attrs.get("left_window_size", -1) >= 0 or attrs.get("right_window_size", -1) >= 0
    mask = node.input(3)
    proved = not windowed and (mask is None or (not attrs.get("is_causal", 0) and _mask_leaves_open(mask, w.graph.pinned)))
    _pass_values(node, w, v, heads, proved)
    return None


def _wire_scaled_dot_product(node: Node, w: Wiring) -> None:
    """torch's scaled_dot_product_attention: V [..., heads, T, d]."""
    if len(node.inputs) < 3 or len(node.outputs) != 1:
        return w.pin_node(node)
    q, v = node.inputs[0], node.inputs[2]
    if q is None or v is None or v.const is not None or v.shape is None or q.shape is None or len(v.shape) != node.output.rank:
        return w.pin_node(node)
    if float(node.attrs.get("dropout_p", 0.0)) != 0.0 or len(v.shape) < 2:
        return w.pin_node(node)
    grouped = bool(node.attrs.get("enable_gqa")) and min(len(v.shape), len(q.shape)) > 2
    others = [value for value in node.inputs[3:] if value is not None]  # a mask; a scale computed at run time
    proved = all(_mask_leaves_open(value, w.graph.pinned) for value in others) and (not others or not node.attrs.get("is_causal"))
    _pass_values(node, w, v, (q.shape[-3], v.shape[-3]) if grouped else (1, 1), proved)
    return None


def _mask_leaves_open(mask: Value, pinned: Container[Value]) -> bool:
    """True for a constant mask that leaves every query an entry."""
    if mask.const is None or mask in pinned or mask.const.size == 0 or mask.const.dtype.kind not in "bf" or not mask.const.shape:
        return False
    array = mask.const.read()
    return bool((array if array.dtype == np.bool_ else np.isfinite(array) & (array < np.inf)).any(axis=-1).all())


def _pass_values(node: Node, w: Wiring, v: Value, heads: Sequence[Dim], proved: bool) -> None:
    """Queries and keys keep their gauge; that of the values passes, one for all positions."""
    assert v.rank is not None
    flat = v.rank == 3 and node.kind == "Attention"
    w.even_out(v, set(range(v.rank)) - {v.rank - 2})
    labels = w.of(v)
    if heads[0] != heads[1]:  # grouped heads: each head of V serves a run of heads of Q
        spread = _repeat_heads(labels, heads, flat)
        if spread is None:
            return w.pin_node(node)
        labels = spread
    for value in node.inputs:
        if value is not None and value is not v and value.const is None:
            w.pin(value, "no-rule", f"{node.kind} ({node.label})")
    if sum(value is v for value in node.inputs) > 1:  # it is key or query too
        w.pin(v, "no-rule", f"{node.kind} ({node.label})")
    if not proved:
        w.zero_shift(v, "gate", node)
    w.set(node.output, *labels)
    return None


def _repeat_heads(labels: Labels, heads: Sequence[Dim], flat: bool) -> Labels | None:
    q, kv = heads
    if not isinstance(q, int) or not isinstance(kv, int) or kv < 1 or q % kv:
        return None

    def repeated(item: Ints) -> Ints:
        if not flat:
            return item if item.shape[-3] == 1 else np.repeat(item, q // kv, axis=-3)
        if item.shape[-1] == 1:
            return item
        apart = item.reshape(*item.shape[:-1], kv, -1)
        return np.repeat(apart, q // kv, axis=-2).reshape(*item.shape[:-1], -1)

    return Labels(repeated(labels.scale), repeated(labels.shift))


RULES = (
    OpRule("Attention", _wire_attention),
    OpRule("aten::scaled_dot_product_attention", _wire_scaled_dot_product),
)
