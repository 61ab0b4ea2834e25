"""Element by element: arithmetic, comparison, logic, roots and angles, casts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from normfold.graph import Array, Node, is_float
from normfold.ops.kernels.registry import integer, kernel, need, number, optional, present, text, unsupported

_One = Callable[[Array], Array]
_Two = Callable[[Array, Array], Array]


def _same(x: Array) -> Array:
    return x


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":  # C semantics: towards zero
        quotient = np.abs(a) // np.abs(b)
        return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)
    return np.divide(a, b)


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        return np.power(a.astype(np.float64), b).astype(a.dtype)
    return np.power(a, b.astype(a.dtype))


_UNARY: dict[str, _One] = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "BitwiseNot": np.invert,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Exp": np.exp,
    "Floor": np.floor,
    "Identity": _same,
    "IsNaN": np.isnan,
    "Log": np.log,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Reciprocal": np.reciprocal,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Sqrt": np.sqrt,
    "Tan": np.tan,
}

_BINARY: dict[str, _Two] = {
    "Add": np.add,
    "And": np.logical_and,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Div": _divide,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Mul": np.multiply,
    "Or": np.logical_or,
    "Pow": _power,
    "Sub": np.subtract,
    "Xor": np.logical_xor,
}

_VARIADIC: dict[str, _Two] = {"Max": np.maximum, "Min": np.minimum, "Sum": np.add}


def _register_unary(kind: str, function: _One) -> None:
    @kernel(kind)
    def run(node: Node, arrays: list[Array | None]) -> list[Array]:
        return [function(need(node, arrays, 0))]


def _register_binary(kind: str, function: _Two) -> None:
    @kernel(kind)
    def run(node: Node, arrays: list[Array | None]) -> list[Array]:
        return [function(need(node, arrays, 0), need(node, arrays, 1))]


def _register_variadic(kind: str, function: _Two) -> None:
    @kernel(kind)
    def run(node: Node, arrays: list[Array | None]) -> list[Array]:
        return [functools.reduce(function, present(arrays))]


for _kind, _one in _UNARY.items():
    _register_unary(_kind, _one)
for _kind, _two in _BINARY.items():
    _register_binary(_kind, _two)
for _kind, _two in _VARIADIC.items():
    _register_variadic(_kind, _two)


@kernel("Mean")
def mean(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The mean of all inputs, broadcast."""
    items = present(arrays)
    return [functools.reduce(np.add, items) / len(items)]


@kernel("Mod", attrs="fmod")
def mod(node: Node, arrays: list[Array | None]) -> list[Array]:
    """fmod=1: sign of the dividend (C); fmod=0: sign of the divisor."""
    a, b = need(node, arrays, 0), need(node, arrays, 1)
    return [np.fmod(a, b) if integer(node, "fmod", 0) else np.mod(a, b)]


@kernel("BitShift", attrs="direction")
def bit_shift(node: Node, arrays: list[Array | None]) -> list[Array]:
    """a 2^b or a 2^-b, by `direction`."""
    a, b = need(node, arrays, 0), need(node, arrays, 1)
    direction = text(node, "direction", "")
    if direction not in ("LEFT", "RIGHT"):
        raise unsupported(node, f"direction {direction!r}")
    return [np.left_shift(a, b) if direction == "LEFT" else np.right_shift(a, b)]


@kernel("IsInf", attrs="detect_negative detect_positive")
def is_inf(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Where x is infinite, with the signs asked for."""
    x = need(node, arrays, 0)
    found = np.zeros(x.shape, dtype=bool)
    if integer(node, "detect_negative", 1):
        found |= np.isneginf(x)
    if integer(node, "detect_positive", 1):
        found |= np.isposinf(x)
    return [found]


@kernel("Clip", attrs="min max")
def clip(node: Node, arrays: list[Array | None]) -> list[Array]:
    """min(max(x, lower), upper); an absent bound does not bound."""
    x = need(node, arrays, 0)
    lower, upper = number(node, arrays, "min", 1), number(node, arrays, "max", 2)
    if lower is not None:
        x = np.maximum(x, np.asarray(lower, dtype=x.dtype))
    if upper is not None:
        x = np.minimum(x, np.asarray(upper, dtype=x.dtype))
    return [x]


@kernel("Where")
def where(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The second input where the first holds, else the third."""
    return [np.where(need(node, arrays, 0), need(node, arrays, 1), need(node, arrays, 2))]


@kernel("PRelu")
def prelu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x where x >= 0, else slope * x; slope broadcasts to x from the right."""
    x, slope = need(node, arrays, 0), need(node, arrays, 1)
    return [np.where(x < 0, slope * x, x)]


def convert(x: Array, to: np.dtype[Any]) -> Array:
    """x in the type `to`; float to int goes towards zero, anything but zero is True."""
    if x.dtype == to:
        return x
    with np.errstate(invalid="ignore", over="ignore"):
        if to.kind in "iu" and is_float(x.dtype):
            return np.trunc(x).astype(to)
        return x.astype(to)


@kernel("Cast", attrs="to saturate round_mode")
def cast(node: Node, arrays: list[Array | None]) -> list[Array]:
    """`to` is a numpy dtype.  Types without a numpy twin (strings) are not converted."""
    x, to = need(node, arrays, 0), np.dtype(node.attrs["to"])
    if to.kind not in "biuf" and not is_float(to):
        raise unsupported(node, f"target type {to}")
    return [convert(x, to)]


@kernel("CastLike", attrs="saturate round_mode")
def cast_like(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The first input in the type of the second."""
    return [convert(need(node, arrays, 0), need(node, arrays, 1).dtype)]


@kernel("Dropout", attrs="ratio seed training_mode")
def dropout(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Inference only: the identity, and a mask of True."""
    x, training = need(node, arrays, 0), optional(arrays, 2)
    if node.attrs.get("training_mode") or (training is not None and bool(training.any())):
        raise unsupported(node, "training_mode 1 (random)")
    return [x, np.ones(x.shape, dtype=bool)][: max(1, len(node.outputs))]
