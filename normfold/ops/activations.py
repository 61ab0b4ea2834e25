"""Activations that commute with a positive scale.  Others (Sigmoid, SiLU, GELU, Tanh, Softmax, ReLU6) have no rule: pinned."""

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
    """Clip(min=0) without an upper bound is ReLU; every other Clip is pinned."""
    lower, upper = node.attrs.get("min"), node.attrs.get("max")
    computed = any(node.input(slot) is not None and name not in node.attrs for slot, name in ((1, "min"), (2, "max")))
    unbounded = upper is None or float(upper) == float("inf") or float(upper) >= float(np.finfo(np.float32).max)
    if computed or lower is None or float(lower) != 0.0 or not unbounded:
        return w.pin_node(node)
    return _wire_homogeneous(node, w)


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
)
