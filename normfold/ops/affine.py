"""Affine layers y = a x + c: eval-mode BatchNormalization and Add, Sub, Mul, Div, Sum with a constant; and sums of tensors."""

from __future__ import annotations

import numpy as np

from normfold.algebra import absorb
from normfold.algebra.labels import Labels, raise_rank, varying
from normfold.algebra.ratios import Floats, Ints
from normfold.graph import Graph, Node, Value
from normfold.ops.linear import bias_behind
from normfold.ops.regauge import Regauge
from normfold.ops.rule import OpRule
from normfold.ops.wiring import AffineLayer, Wiring, collapse, constant_of, is_foldable, join_all, spread


def batch_norm_constants(node: Node, graph: Graph) -> tuple[Floats, Floats, Floats, Floats] | None:
    """(gamma, beta, mean, var) of an eval-mode BatchNormalization with finite, foldable constants; None otherwise."""
    arrays = [constant_of(node.input(slot), graph) for slot in range(1, 5)]
    if node.attrs.get("training_mode", 0) or len(node.outputs) != 1 or any(array is None for array in arrays):
        return None
    gamma, beta, mean, var = (array for array in arrays if array is not None)
    with np.errstate(all="ignore"):
        a, c = absorb.batch_norm(gamma, beta, mean, var, float(node.attrs.get("epsilon", 1e-5)))
    # an infinite variance gives a scale of zero: a checkpoint that is broken, not a channel that was pruned
    healthy = np.isfinite(a).all() and np.isfinite(c).all() and (var >= 0).all() and np.isfinite(var).all()
    return (gamma, beta, mean, var) if healthy else None


def _wire_batch_norm(node: Node, w: Wiring) -> None:
    x, y = node.inputs[0], node.output
    constants = batch_norm_constants(node, w.graph)
    if x is None or constants is None or x.rank is None or x.rank < 2:
        return w.pin_node(node)
    gamma, beta, mean, var = constants
    a, c = absorb.batch_norm(gamma, beta, mean, var, float(node.attrs.get("epsilon", 1e-5)))
    shape = (1, -1) + (1,) * (x.rank - 2)
    labels = w.of(x)
    axes = {1, *varying(labels.scale), *varying(labels.shift)}
    w.set_fresh(y, axes)
    layer = AffineLayer("norm", node, 0, x, y, a.reshape(shape), c.reshape(shape), rms=np.sqrt(var + mean**2).reshape(shape))
    if axes != {1}:
        # Its own parameters run along axis 1 alone: when it stays it cannot take up gauges that vary elsewhere.
        layer.unless_scale = np.concatenate([labels.scale.ravel(), w.of(y).scale.ravel()])
        layer.unless_shift = np.concatenate([labels.shift.ravel(), w.of(y).shift.ravel()])
    w.layer(layer)
    return None


def _absorb_batch_norm(node: Node, g: Regauge) -> None:
    x = node.inputs[0]
    assert x is not None
    gamma, beta, mean, var = (v.const.float64() for v in node.inputs[1:5] if v is not None and v.const is not None)
    a, c = absorb.batch_norm(gamma, beta, mean, var, float(node.attrs.get("epsilon", 1e-5)))
    gauges = g.ends(x, node.output, gamma.size, gamma.size)
    ratio = gauges.s_y / gauges.s_x
    new_a = a * ratio
    g.replace(node, 1, gamma * ratio)
    g.replace(node, 2, gauges.s_y * c + gauges.t_y - new_a * gauges.t_x + mean * new_a)


def _split(node: Node, w: Wiring) -> tuple[int, Floats] | None:
    """(slot of the tensor, the constant) of a binary op between a tensor and a float constant."""
    first, second = node.inputs
    if first is not None and first.const is None and is_foldable(second, w.graph):
        constant = constant_of(second, w.graph)
        return None if constant is None or not np.isfinite(constant).all() else (0, constant)
    if second is not None and second.const is None and is_foldable(first, w.graph):
        constant = constant_of(first, w.graph)
        return None if constant is None or not np.isfinite(constant).all() else (1, constant)
    return None


def _wire_add(node: Node, w: Wiring) -> None:
    if len(node.inputs) != 2:
        return _wire_sum(node, w)
    split = _split(node, w)
    if split is None:
        return _wire_sum(node, w)
    slot, constant = split
    x, y = node.inputs[slot], node.output
    assert x is not None and y.rank is not None
    k = spread(collapse(constant), y.rank)
    scale, x_shift = raise_rank(w.of(x).scale, y.rank), raise_rank(w.of(x).shift, y.rank)
    shape = w.fresh_shape(y, _shift_axes(x_shift, k))
    if shape is None:
        shape = x_shift.shape
    w.set(y, scale, w.system.new_shifts(shape))
    if node.kind == "Sub" and slot == 1:  # K - x: it flips the sign, it is passed through but not deleted
        return None
    if x.producer is not None and x.producer.kind == "MatMul" and bias_behind(x.producer, w.graph) == (node, 1 - slot):
        return None  # the bias of a linear layer: it takes up what the MatMul needs, and stays
    if _keeps_shape(x, constant) and all(size == 1 or shape[axis] > 1 for axis, size in enumerate(k.shape)):
        sign = -1.0 if node.kind == "Sub" else 1.0
        w.layer(AffineLayer("add", node, slot, x, y, np.ones((1,) * y.rank), sign * k))
    return None


def _shift_axes(x_shift: Ints, k: Floats) -> set[int]:
    """Axes along which the sum's shift may vary: those of x; where x cannot move the one of K (preprocessing).

    A K over several axes (an attention bias, say) would ask for as many unknowns as it has elements.
    """
    own = varying(x_shift) or varying(k)
    return set(own) if x_shift.any() or len(own) < 2 else set()


def _keeps_shape(x: Value, constant: Floats) -> bool:
    """True when the constant surely does not broadcast x to a larger shape: only then can the layer go."""
    assert x.shape is not None
    if constant.ndim > len(x.shape):
        return False
    sizes = x.shape[len(x.shape) - constant.ndim :]
    return all(size in (1, own) for size, own in zip(constant.shape, sizes, strict=True))


def _absorb_add(node: Node, g: Regauge) -> None:
    slot = next((i for i, v in enumerate(node.inputs) if v is not None and v.const is not None), None)
    if slot is None or len(node.inputs) != 2:
        return
    x, old = node.inputs[1 - slot], node.inputs[slot]
    assert x is not None and old is not None and old.const is not None
    s, t_x, t_y = g.scale(node.output), g.shift(x), g.shift(node.output)
    constant = old.const.float64()
    if node.kind == "Sub":  # x' - K' with K' = s K + t_x - t_y;  K' - x' with K' = s K + t_x + t_y
        new = s * constant + t_x + (t_y if slot == 0 else -t_y)
    else:
        new = s * constant + t_y - t_x
    g.replace(node, slot, _trim(new, old.shape))


def _trim(array: Floats, shape: object) -> Floats:
    """Drop leading axes of size 1 that the old constant did not have."""
    rank = len(shape) if isinstance(shape, tuple) else 0
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array


def _wire_sum(node: Node, w: Wiring) -> None:
    """Add, Sub or Sum of tensors: one common scale, the signed sum of the shifts."""
    values, y = [v for v in node.inputs if v is not None], node.output
    if any(v.const is not None for v in values) or y.rank is None:
        return w.pin_node(node)
    labels = [Labels(*(raise_rank(item, y.rank) for item in w.of(v))) for v in values]
    scale = join_all(w, [item.scale for item in labels])
    parts = [(-1.0 if node.kind == "Sub" and i else 1.0, item.shift) for i, item in enumerate(labels) if item.shift.any()]
    if not parts:
        shift: Ints = np.zeros((1,) * y.rank, dtype=np.int64)
    elif len(parts) == 1 and parts[0][0] == 1.0:
        shift = parts[0][1]
    else:
        shift = w.system.new_shifts(np.broadcast_shapes(*(part.shape for _, part in parts)))
        w.system.sum_shifts(shift, parts)
    w.set(y, scale, shift)
    return None


def _wire_mul(node: Node, w: Wiring) -> None:
    split, y = _split(node, w), node.output
    if split is None:
        return _wire_gate(node, w) if node.kind == "Mul" else w.pin_node(node)
    slot, constant = split
    x = node.inputs[slot]
    assert x is not None and y.rank is not None
    factor = spread(collapse(constant), y.rank)
    if node.kind == "Div":
        if slot == 1 or not factor.all():
            return w.pin_node(node)
        factor = 1.0 / factor
    labels = w.of(x)
    scale, shift = raise_rank(labels.scale, y.rank), raise_rank(labels.shift, y.rank)
    shape = w.fresh_shape(y, {*varying(scale), *varying(factor)})
    if shape is None or not np.isfinite(factor).all():
        return w.pin_node(node)
    w.set(y, w.system.new_scales(shape), shift)
    if not _keeps_shape(x, constant):
        w.zero_shift(x, "no-rule", node)
        return None
    w.layer(AffineLayer("mul", node, slot, x, y, factor, np.zeros((1,) * y.rank), unless_shift=shift.ravel()))
    return None


def _absorb_mul(node: Node, g: Regauge) -> None:
    slot = next((i for i, v in enumerate(node.inputs) if v is not None and v.const is not None), None)
    if slot is None:
        return
    x, old = node.inputs[1 - slot], node.inputs[slot]
    assert x is not None and old is not None and old.const is not None
    ratio = g.scale(node.output) / spread(g.scale(x), node.output.rank or 0)
    constant = old.const.float64()
    g.replace(node, slot, _trim(constant / ratio if node.kind == "Div" else constant * ratio, old.shape))


def _wire_gate(node: Node, w: Wiring) -> None:
    """Mul of a tensor by a tensor that keeps its gauge (squeeze-and-excitation): the scale passes, the shift may not.

    Of two that could move the one that is broadcast is the gate, and is made to keep its gauge.
    """
    values, y = [v for v in node.inputs if v is not None], node.output
    moving = [v for v in values if not w.of(v).pinned]
    if len(moving) == 2:
        gates = [one for one, other in (values, values[::-1]) if _is_broadcast(one, other)]
        if len(gates) == 1:
            w.pin(gates[0], "no-rule", f"{node.kind} ({node.label})")
            moving.remove(gates[0])
    if len(moving) != 1 or len(values) != 2 or values[0] is values[1] or y.rank is None:
        return w.pin_node(node)
    w.zero_shift(moving[0], "gate", node)
    w.set(y, raise_rank(w.of(moving[0]).scale, y.rank), np.zeros((1,) * y.rank, dtype=np.int64))
    return None


def _is_broadcast(value: Value, other: Value) -> bool:
    """True when `value` is spread over an axis along which `other` has elements of its own."""
    one, two = value.shape or (), other.shape or ()
    rank = max(len(one), len(two))
    pairs = zip((1,) * (rank - len(one)) + tuple(one), (1,) * (rank - len(two)) + tuple(two), strict=True)
    return any(a == 1 and b != 1 for a, b in pairs)


RULES = (
    OpRule("BatchNormalization", _wire_batch_norm, _absorb_batch_norm),
    OpRule("Add", _wire_add, _absorb_add),
    OpRule("Sub", _wire_add, _absorb_add),
    OpRule("Sum", _wire_add, _absorb_add),
    OpRule("Mul", _wire_mul, _absorb_mul),
    OpRule("Div", _wire_mul, _absorb_mul),
)
