"""Operations that pass an input through unchanged, bit for bit and in type and shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normfold.graph import Node, Shape, Value, is_float


def no_effect(node: Node) -> int | None:
    """The slot of the input that `node` passes through unchanged, bit for bit and in type and shape; None for all others."""
    rule = _NO_EFFECT.get(node.kind)
    x = node.inputs[0]
    if rule is None or x is None:
        return None
    return rule(node, x)


def _always(node: Node, x: Value) -> int | None:
    return 0


def _cast(node: Node, x: Value) -> int | None:
    return 0 if x.dtype is not None and x.dtype == node.attrs.get("to") else None


def _cast_like(node: Node, x: Value) -> int | None:
    like = node.input(1)
    return 0 if x.dtype is not None and like is not None and x.dtype == like.dtype else None


def _same_shape(node: Node, x: Value) -> int | None:
    """Elements keep their order, so equal sizes mean equal tensors; one unknown size follows from the others."""
    a, b = x.shape, node.output.shape
    if a is None or b is None or len(a) != len(b):
        return None
    differing = [(left, right) for left, right in zip(a, b, strict=True) if not (isinstance(left, int) and left == right)]
    return 0 if not differing or (len(differing) == 1 and all(not isinstance(item, int) for item in differing[0])) else None


def _equal_shapes(left: Shape | None, right: Shape | None) -> bool:
    return left is not None and left == right and None not in left


def _transpose(node: Node, x: Value) -> int | None:
    perm = node.attrs.get("perm")
    return 0 if perm is not None and perm == tuple(range(len(perm))) else None


def _single(node: Node, x: Value) -> int | None:
    return 0 if len(node.inputs) == 1 else None


def _pad(node: Node, x: Value) -> int | None:
    pads = node.attrs.get("pads")
    return 0 if pads is not None and not any(pads) else None


def _expand(node: Node, x: Value) -> int | None:
    return 0 if _equal_shapes(x.shape, node.output.shape) else None


def _slice(node: Node, x: Value) -> int | None:
    whole = _equal_shapes(x.shape, node.output.shape) and all(step == 1 for step in node.attrs.get("steps", (0,)))
    return 0 if whole and all(isinstance(size, int) for size in x.shape or ()) else None


def _neutral(node: Node, x: Value) -> int | None:
    """x * 1, 1 * x, x / 1, x - 0.0, x + (-0.0), and integer x + 0: exact for every x.  (-0.0) + 0.0 is 0.0: not among them."""
    for slot, other in ((0, 1), (1, 0)) if node.kind in ("Mul", "Add") else ((0, 1),):
        value, operand = node.inputs[slot], node.inputs[other]
        if value is None or operand is None or operand.const is None or operand.const.pending:
            continue
        if operand.const.size > 4096 or value.dtype != node.output.dtype or not _equal_shapes(value.shape, node.output.shape):
            continue
        array = operand.const.read()
        if node.kind in ("Mul", "Div"):
            neutral = bool(np.all(array == 1))
        elif is_float(array.dtype):
            signs = np.signbit(array.astype(np.float64))
            neutral = bool(np.all(array == 0) and (np.all(signs) if node.kind == "Add" else not np.any(signs)))
        else:
            neutral = bool(np.all(array == 0))
        if neutral and array.dtype.kind != "b":
            return slot
    return None


_NO_EFFECT: dict[str, Callable[[Node, Value], int | None]] = {
    "Identity": _always,
    "Dropout": _always,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Transpose": _transpose,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _expand,
    "Slice": _slice,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _same_shape),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
    **dict.fromkeys(("Mul", "Div", "Add", "Sub"), _neutral),
}
