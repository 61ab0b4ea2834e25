"""What is known of small integer tensors before the model runs: shape arithmetic, element by element, with named sizes.

``Shape(x)`` of a value [N, 3, 8, 8] is known to be (N, 3, 8, 8); gathering its elements 1 and 2 gives (3, 8): constants, although
the whole is none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import numpy as np

from normfold.capture.static import known_count
from normfold.graph import Array, Dim, Graph, Node, Value

_LIMIT = 64  # elements
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul}


class KnownDims:
    """Elements of integer vectors and scalars; a name stands for a size that only the caller knows, None for anything."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[Value, tuple[Dim, ...]] = {}

    def of(self, value: Value | None) -> tuple[Dim, ...] | None:
        """The elements of a vector (of a scalar: one), None when nothing is known."""
        if value is None:
            return None
        found = self._known.get(value)
        if found is None and value.const is not None and value not in self.graph.pinned:
            const = value.const
            if const.dtype.kind in "iu" and len(const.shape) <= 1 and const.size <= _LIMIT:
                found = self._known[value] = tuple(int(item) for item in const.read().reshape(-1))
        return found

    def visit(self, node: Node) -> Array | None:
        """Learn the output of `node`; returns it when all of it is a constant."""
        rule = _RULES.get(node.kind)
        if rule is None or len(node.outputs) != 1 or node.captures:
            return None
        known = rule(node, self)
        if known is None or len(known) > _LIMIT:
            return None
        self._known[node.output] = known
        numbers = [item for item in known if isinstance(item, int)]
        shape, dtype = node.output.shape, node.output.dtype
        if len(numbers) < len(known) or dtype is None or dtype.kind not in "iu" or shape is None:
            return None
        if known_count(shape) not in (None, len(known)) or len(shape) > 1:
            return None
        return np.asarray(numbers, dtype=dtype).reshape(() if not shape else (-1,))


def _shape(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    return x.shape[node.attrs.get("start", 0) : node.attrs.get("end", len(x.shape))]


def _size(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    x = node.inputs[0]
    return None if x is None else (known_count(x.shape),)


def _gather(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    x, index = dims.of(node.inputs[0]), node.input(1)
    picked = dims.of(index)
    if x is None or picked is None or index is None or node.inputs[0] is None or node.inputs[0].rank != 1:
        return None
    numbers = [item for item in picked if isinstance(item, int) and -len(x) <= item < len(x)]
    return tuple(x[item] for item in numbers) if len(numbers) == len(picked) else None


def _slice(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    x, attrs = dims.of(node.inputs[0]), node.attrs
    if x is None or any(len(attrs.get(key, ())) != 1 for key in ("starts", "ends", "steps")) or attrs.get("axes") != (0,):
        return None
    (start,), (end,), (step,) = attrs["starts"], attrs["ends"], attrs["steps"]
    if step == 0 or (step < 0 and end < -len(x)):
        return x[start::step] if step else None
    return x[start:end:step]


def _concat(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    parts = [dims.of(value) for value in node.inputs]
    if any(value is None or value.rank != 1 for value in node.inputs):
        return None
    if all(part is None for part in parts):
        return None
    result: list[Dim] = []
    for part, value in zip(parts, node.inputs, strict=True):
        count = known_count(None if value is None else value.shape)
        if part is None and (count is None or count > _LIMIT):
            return None
        result += part if part is not None else [None] * (count or 0)
    return tuple(result)


def _same(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    """The same elements in the same order: Unsqueeze, Squeeze, Reshape to a vector or scalar, Identity."""
    output = node.output
    return dims.of(node.inputs[0]) if output.rank is not None and output.rank <= 1 else None


def _cast(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    to = node.output.dtype
    known = dims.of(node.inputs[0])
    if to is None or to.kind not in "iu" or known is None:
        return None
    limits = np.iinfo(to)
    if any(isinstance(item, int) and not limits.min <= item <= limits.max for item in known):
        return None
    return known


def _arithmetic(node: Node, dims: KnownDims) -> tuple[Dim, ...] | None:
    left, right = dims.of(node.inputs[0]), dims.of(node.inputs[1])
    if left is None or right is None or (len(left) != len(right) and 1 not in (len(left), len(right))):
        return None
    count = max(len(left), len(right))
    return tuple(_combine(node.kind, a, b) for a, b in zip(_stretch(left, count), _stretch(right, count), strict=True))


def _stretch(items: Sequence[Dim], count: int) -> Sequence[Dim]:
    return list(items) * count if len(items) == 1 else items


def _combine(kind: str, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        if kind == "Div":  # ONNX divides integers towards zero
            return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        result = _ARITHMETIC[kind](a, b)
        return result if abs(result) < 1 << 31 else None
    if (kind in ("Mul", "Div") and b == 1) or (kind in ("Add", "Sub") and b == 0):
        return a
    if (kind == "Mul" and a == 1) or (kind == "Add" and a == 0):
        return b
    return None


_RULES: dict[str, Callable[[Node, KnownDims], tuple[Dim, ...] | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Cast": _cast,
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Reshape", "Identity"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
}
