"""Conv, ConvTranspose, Gemm and MatMul by a constant: they absorb any gauge of their input and produce any of their output."""

from __future__ import annotations

import numpy as np

from normfold.algebra import absorb
from normfold.graph import Graph, Node, Value
from normfold.ops.attention import wire_mixing
from normfold.ops.border_map import add_border_map
from normfold.ops.regauge import Regauge
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring, is_foldable


def zero_padded(node: Node) -> bool:
    """True unless the window provably never leaves the input."""
    if node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return True
    return any(pad != 0 for pad in node.attrs.get("pads", ()))


def _foldable(node: Node, graph: Graph, weight: int = 1, bias: int = 2) -> bool:
    if not is_foldable(node.input(weight), graph):
        return False
    return node.input(bias) is None or is_foldable(node.input(bias), graph)


def _pin(node: Node, w: Wiring) -> None:
    """Of a layer that cannot fold: everything keeps its gauge, and where the weight is no constant that is the reason."""
    weight = node.input(1)
    w.pin_node(node, "computed-weight" if weight is not None and weight.const is None else "no-rule")


def _wire_conv(node: Node, w: Wiring) -> None:
    x, weight, y = node.inputs[0], node.inputs[1], node.output
    if x is None or weight is None or not _foldable(node, w.graph):
        return _pin(node, w)
    w.even_out(x, {1})
    may_map = w.inserts.border_map and not y.captured and y.name not in w.inserts.denied
    if node.kind == "ConvTranspose":
        # Even without padding a constant input gives one output per phase and border.
        w.zero_shift(x, "transposed-conv", node, relaxable=may_map)
    elif zero_padded(node):
        w.zero_shift(x, "zero-padding", node, relaxable=may_map)
    w.set_fresh(y, (1,))
    w.weight(weight, node, x, y, (node.kind, int(node.attrs.get("group", 1))))
    return None


def _absorb_conv(node: Node, g: Regauge) -> None:
    weight, groups = _constant(node, 1), int(node.attrs.get("group", 1))
    gauges = g.ends(_input(node), node.output, weight.shape[1] * groups, weight.shape[0])
    bias = _constant(node, 2) if node.input(2) is not None else np.zeros(weight.shape[0])
    like = node.inputs[1]
    assert like is not None
    if g.rescales(_input(node), node.output):
        g.replace(node, 1, absorb.conv_weight(weight, gauges, groups))
    taps = absorb.conv_taps(weight, gauges, groups)
    g.set_bias(node, 2, absorb.conv_bias(bias, taps, gauges), like)
    if taps.any() and zero_padded(node):
        inside = taps.reshape(len(taps), -1).sum(axis=1).reshape(-1, *(1,) * (weight.ndim - 2))
        add_border_map(node, -taps[:, None], inside, like, g)


def _absorb_conv_transpose(node: Node, g: Regauge) -> None:
    weight, groups = _constant(node, 1), int(node.attrs.get("group", 1))
    outputs = weight.shape[1] * groups
    gauges = g.ends(_input(node), node.output, weight.shape[0], outputs)
    bias = _constant(node, 2) if node.input(2) is not None else np.zeros(outputs)
    like = node.inputs[1]
    assert like is not None
    if g.rescales(_input(node), node.output):
        g.replace(node, 1, absorb.conv_transpose_weight(weight, gauges, groups))
    g.set_bias(node, 2, gauges.s_y * bias + gauges.t_y, like)
    taps = absorb.conv_transpose_taps(weight, gauges, groups)
    if taps.any():
        add_border_map(node, -taps[None], np.zeros((outputs, *(1,) * (weight.ndim - 2))), like, g)


def _wire_gemm(node: Node, w: Wiring) -> None:
    x, weight, y = node.inputs[0], node.inputs[1], node.output
    rank = x.rank if x is not None else None
    scaled_away = node.attrs.get("beta", 1.0) == 0.0 or node.attrs.get("alpha", 1.0) == 0.0
    if x is None or weight is None or rank is None or not _foldable(node, w.graph) or weight.rank != 2 or scaled_away:
        return _pin(node, w)
    features = rank - 2 if node.attrs.get("transA", 0) else rank - 1
    w.even_out(x, {features})
    w.set_fresh(y, (y.rank - 1 if y.rank else 0,))
    w.weight(weight, node, x, y, ("matrix", int(node.attrs.get("transB", 0))))
    return None


def _absorb_gemm(node: Node, g: Regauge) -> None:
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    stored = _constant(node, 1)
    weight = stored.T if node.attrs.get("transB", 0) else stored
    gauges = g.ends(_input(node), node.output, *weight.shape)
    offset = absorb.matrix_offset(alpha * weight, gauges)
    bias = _constant(node, 2) if node.input(2) is not None else np.zeros(weight.shape[1])
    like = node.inputs[1]
    assert like is not None
    if g.rescales(_input(node), node.output):
        folded = absorb.matrix(weight, gauges)
        g.replace(node, 1, folded.T if node.attrs.get("transB", 0) else folded)
    if np.any(offset != 0.0):
        g.set_bias(node, 2, gauges.s_y * bias + offset / beta, like)
    elif node.input(2) is not None:
        g.set_bias(node, 2, gauges.s_y * bias, like)


def _matmul_ends(node: Node, graph: Graph) -> tuple[Value, Value, bool] | None:
    """(data, weight, weight on the right) of a MatMul by a constant matrix."""
    left, right = node.inputs
    if left is not None and is_foldable(right, graph) and right is not None and right.rank == 2 and left.const is None:
        return left, right, True
    if right is not None and is_foldable(left, graph) and left is not None and left.rank == 2 and right.const is None:
        return (right, left, False) if (right.rank or 0) >= 2 else None
    return None


def _wire_matmul(node: Node, w: Wiring) -> None:
    ends, y = _matmul_ends(node, w.graph), node.output
    if ends is None:
        return wire_mixing(node, w)
    x, weight, on_right = ends
    back = 1 if on_right else 2
    if x.rank is None or y.rank is None:
        return w.pin_node(node)
    w.even_out(x, {x.rank - back})
    w.set_fresh(y, (y.rank - back,))
    w.weight(weight, node, x, y, ("matrix", 0 if on_right else 1))
    if y.captured:  # a sub-graph reads it by name: no Add can come between
        w.zero_shift(x, "captured", node)
    # It has no bias of its own: a shift costs an Add.
    if bias_behind(node, w.graph) is not None:
        return None
    # Outputs first: where a bias has to come in anyway, the shift of the input costs nothing more.
    for tier, value in enumerate((y, x)):
        if w.inserts.bias and y.name not in w.inserts.denied:
            w.system.wish_zero_shift(w.of(value).shift, tier=tier)
        else:
            w.zero_shift(value, "needs-bias", node)
    return None


def _absorb_matmul(node: Node, g: Regauge) -> None:
    ends = _matmul_ends(node, g.graph)
    if ends is None:  # a product of two computed tensors holds no constant
        return
    x, like, on_right = ends
    stored = like.const.float64() if like.const is not None else np.zeros((0, 0))
    weight = stored if on_right else stored.T
    gauges = g.ends(x, node.output, *weight.shape)
    offset = absorb.matrix_offset(weight, gauges)
    if g.rescales(x, node.output):
        folded = absorb.matrix(weight, gauges)
        g.replace(node, 1 if on_right else 0, folded if on_right else folded.T)
    if np.any(offset != 0.0):
        offset = offset if on_right else offset[:, None]
        place = bias_behind(node, g.graph)
        if place is not None:
            return _into_bias(node, *place, offset, g)
        g.add_behind(node, offset, like, "bias")  # of rank 1: it fuses into Gemm in most runtimes
        g.note_bias(node, like)
    return None


def bias_behind(node: Node, graph: Graph) -> tuple[Node, int] | None:
    """(Add, slot of its constant) where that Add alone reads a MatMul by a constant: the bias of a linear layer on tokens."""
    y = node.output
    if _matmul_ends(node, graph) is None or len(y.uses) != 1 or graph.is_fixed(y) or y.uses[0].node.kind != "Add":
        return None
    add, slot = y.uses[0].node, 1 - y.uses[0].slot
    return (add, slot) if len(add.inputs) == 2 and is_foldable(add.inputs[slot], graph) else None


def _into_bias(node: Node, add: Node, slot: int, offset: absorb.Floats, g: Regauge) -> None:
    """Let the bias behind a MatMul take `offset` up; the Add's own absorption, which comes later, scales it with the rest."""
    y, old = node.output, add.inputs[slot]
    assert old is not None and old.const is not None
    g.replace(add, slot, old.const.float64() + offset / g.scale(y))
    g.changed.setdefault(node, []).append(old.param or old.name)
    g.moved[y] = (y, offset)


def _input(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _constant(node: Node, slot: int) -> absorb.Floats:
    value = node.inputs[slot]
    assert value is not None and value.const is not None
    return value.const.float64()


RULES = (
    OpRule("Conv", _wire_conv, _absorb_conv),
    OpRule("ConvTranspose", _wire_conv, _absorb_conv_transpose),
    OpRule("Gemm", _wire_gemm, _absorb_gemm),
    OpRule("MatMul", _wire_matmul, _absorb_matmul),
)
