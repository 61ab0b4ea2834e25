"""Activations that commute with a positive scale, Abs, Neg.  Others (Sigmoid, SiLU, GELU, Tanh, Softmax, ReLU6): no rule, pinned.

LeakyReLU and PReLU could also take s < 0 with slope' = 1 / slope and s_y = s / slope; but then the magnitude of s_y hangs on the
sign of s, which is solved for apart.  So that is a rewrite of its own; here such a layer is refused with `sign`.
"""

from __future__ import annotations

import numpy as np

from normfold.graph import Node, Value
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring, constant_of


def _wire_homogeneous(node: Node, w: Wiring) -> None:
    """f(s x) == s f(x) for s > 0, f(0) == 0: the scale passes when it is positive, the shift must be zero."""
    x = node.inputs[0]
    if x is None or x.const is not None:
        return w.pin_node(node)
    return _pass_positive(x, node, w)


def _pass_positive(x: Value, node: Node, w: Wiring) -> None:
    w.positive(x, node)
    w.zero_shift(x, "activation", node)
    scale = w.of(x).scale
    w.set(node.output, scale, np.zeros((1,) * scale.ndim, dtype=np.int64))


def _wire_prelu(node: Node, w: Wiring) -> None:
    x, slope = node.inputs
    if x is None or slope is None or slope.const is None or (slope.rank or 0) > (x.rank or 0):
        return w.pin_node(node)
    return _wire_homogeneous(node, w)


def _wire_clip(node: Node, w: Wiring) -> None:
    """Clip(min=0) without an upper bound is ReLU, Clip(max=0) without a lower one its mirror; every other Clip is pinned."""
    lower, upper = node.attrs.get("min"), node.attrs.get("max")
    computed = any(node.input(slot) is not None and name not in node.attrs for slot, name in ((1, "min"), (2, "max")))
    largest = float(np.finfo(np.float32).max)
    bounds = [float(bound) for bound in (lower, upper) if bound is not None and abs(float(bound)) < largest]
    reachable = (lower is not None and float(lower) >= largest) or (upper is not None and float(upper) <= -largest)
    if computed or reachable or bounds != [0.0]:
        return w.pin_node(node)
    return _wire_homogeneous(node, w)


def _wire_abs(node: Node, w: Wiring) -> None:
    """|s x| == |s| |x|: the output's scale has the magnitude of the input's, and is positive whatever the input's sign."""
    x = node.inputs[0]
    if x is None or x.const is not None:
        return w.pin_node(node)
    w.zero_shift(x, "activation", node)
    scale = w.of(x).scale
    w.set(node.output, w.system.new_scales(scale.shape), np.zeros((1,) * scale.ndim, dtype=np.int64))
    w.system.join_magnitude(w.of(node.output).scale, scale)
    w.positive(node.output, node)
    return None


def _wire_neg(node: Node, w: Wiring) -> None:
    """-(s x + t) == s (-x) - t."""
    x = node.inputs[0]
    if x is None or x.const is not None:
        return w.pin_node(node)
    labels = w.of(x)
    shift = labels.shift
    if shift.any():
        shift = w.system.new_shifts(shift.shape)
        w.system.sum_shifts(shift, [(-1.0, labels.shift)])
    w.set(node.output, labels.scale, shift)
    return None


def _wire_max_zero(node: Node, w: Wiring) -> None:
    """Max(x, 0) is ReLU and Min(x, 0) its mirror; every other form is pinned."""
    values = [v for v in node.inputs if v is not None]
    tensors = [v for v in values if v.const is None]
    constants = [array for v in values if (array := constant_of(v, w.graph)) is not None]
    if (
        len(tensors) != 1
        or len(values) != 2
        or len(constants) != 1
        or constants[0].any()
        or tensors[0].shape != node.output.shape
    ):
        return w.pin_node(node)
    return _pass_positive(tensors[0], node, w)


RULES = (
    OpRule("Relu", _wire_homogeneous),
    OpRule("LeakyRelu", _wire_homogeneous),
    OpRule("PRelu", _wire_prelu),
    OpRule("Clip", _wire_clip),
    OpRule("Max", _wire_max_zero),
    OpRule("Min", _wire_max_zero),
    OpRule("Abs", _wire_abs),
    OpRule("Neg", _wire_neg),
)
