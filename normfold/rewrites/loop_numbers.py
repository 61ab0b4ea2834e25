"""Whole numbers in the body of a Loop: so many times the number of the step, plus a constant, plus sizes of outer tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from normfold.graph import Graph, Node, Value

Size = int | tuple[Value, int]
"""A whole number, or the size of a tensor along an axis."""
Number = dict["str | Size", int]
"""Amounts: of "step" (0, 1, 2, ...), of "one", of sizes."""

_SAME = frozenset("Identity Cast Reshape Squeeze Unsqueeze".split())


def plain(value: Value) -> Value:
    """What `value` is a mere copy of."""
    while value.producer is not None and value.producer.kind == "Identity" and value.producer.inputs[0] is not None:
        value = value.producer.inputs[0]
    return value


def axis_of(value: Value, axis: int) -> Size:
    """The size of `value` along an axis: that of the first tensor of which it is a rearrangement."""
    size = None if value.shape is None else value.shape[axis]
    if isinstance(size, int):
        return size
    node = value.producer
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None or source.rank is None:
        return value, axis
    if node.kind in ("Identity", "Cast"):
        return axis_of(source, axis)
    if node.kind == "Transpose" and "perm" in node.attrs:
        return axis_of(source, int(node.attrs["perm"][axis]))
    if node.kind == "Slice" and "axes" in node.attrs and axis not in {int(item) % source.rank for item in node.attrs["axes"]}:
        return axis_of(source, axis)
    return value, axis


def size_of(value: Value, graph: Graph) -> Size | None:
    """What a whole number of one element is; None where callers may change it, or where it is computed in other ways."""
    if value.const is not None:
        return (
            int(value.const.read().reshape(())) if _whole(value) and value.const.size == 1 and value not in graph.pinned else None
        )
    node = value.producer
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None:
        return None
    if node.kind in _SAME and _whole(value):
        return size_of(source, graph)
    if node.kind == "Shape":
        return _picked(node, None)
    shape = source.producer
    if shape is None or shape.kind != "Shape":
        return None
    if node.kind == "Gather" and node.inputs[1] is not None:
        index = size_of(node.inputs[1], graph)
        return _picked(shape, index) if isinstance(index, int) else None
    if node.kind == "Slice":
        starts, ends, steps = (node.attrs.get(key, ()) for key in ("starts", "ends", "steps"))
        if len(starts) == 1 and starts[0] >= 0 and ends[0] == starts[0] + 1 and steps == (1,):
            return _picked(shape, int(starts[0]))
    return None


def _whole(value: Value) -> bool:
    """True for whole numbers that no sequence is too long for."""
    return value.dtype in (np.dtype(np.int64), np.dtype(np.int32))


def _picked(shape: Node, index: int | None) -> Size | None:
    """An element of Shape(x); its only one where no index is given."""
    x = shape.inputs[0]
    if x is None or x.rank is None:
        return None
    axes = list(range(x.rank))[shape.attrs.get("start", 0) : shape.attrs.get("end", x.rank)]
    if index is None:
        return axis_of(x, axes[0]) if len(axes) == 1 else None
    return axis_of(x, axes[index]) if -len(axes) <= index < len(axes) else None


class Numbers:
    """What is known of the whole numbers of a body.  outer: what the body reads of the graph around it -> what that is there."""

    def __init__(self, body: Graph, number: Value, outer: Mapping[Value, Value], graph: Graph) -> None:
        self.body, self.outer, self.graph = body, outer, graph
        self.known: dict[Value, Number] = {number: {"step": 1}}

    def counter(self, leaf: Value, root: Value, start: Value) -> bool:
        """Learn a state to which every step adds the same, from a constant on; False where it is none."""
        begin, node = size_of(start, self.graph) if _whole(leaf) else None, root.producer
        if not isinstance(begin, int) or node is None or node.kind != "Add":
            return False
        others = [value for value in node.inputs if value is not None and plain(value) is not leaf]
        amount = self.of(others[0]) if len(others) == 1 else None
        if amount is None or not set(amount) <= {"one"}:
            return False
        self.known[leaf] = _clean({"step": amount.get("one", 0), "one": begin})
        return True

    def of(self, value: Value) -> Number | None:
        """`value` at step 0, 1, 2, ...; None where that is not known."""
        if value in self.known:
            return self.known[value]
        if value in self.outer:
            return _amount(size_of(self.outer[value], self.graph))
        if value.const is not None:
            return _amount(size_of(value, self.body))
        node = value.producer
        if node is None or not node.inputs or not _whole(value):
            return None
        first, *others = (None if item is None else self.of(item) for item in node.inputs)
        if node.kind in _SAME and first is not None:
            return first
        if node.kind == "Neg" and first is not None:
            return _clean({key: -amount for key, amount in first.items()})
        if node.kind in ("Add", "Sub") and first is not None and others[0] is not None:
            sign, second = 1 if node.kind == "Add" else -1, others[0]
            return _clean({key: first.get(key, 0) + sign * second.get(key, 0) for key in (*first, *second)})
        return self._size(value)

    def _size(self, value: Value) -> Number | None:
        """Shape arithmetic in the body, of a tensor outside of it."""
        size = size_of(value, self.body)
        if size is None or isinstance(size, int):
            return _amount(size)
        tensor, axis = size
        return _amount(axis_of(self.outer[tensor], axis)) if tensor in self.outer else None


def _amount(size: Size | None) -> Number | None:
    if size is None:
        return None
    return _clean({"one": size}) if isinstance(size, int) else {size: 1}


def _clean(number: Number) -> Number:
    return {key: amount for key, amount in number.items() if amount}
