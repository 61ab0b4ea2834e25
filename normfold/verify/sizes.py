"""Sizes for the dynamic dimensions of a graph's inputs: two choices, so that nothing is right by the sizes of one example."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from normfold.errors import UsageError
from normfold.graph import Array, Graph, Value


def symbol_of(value: Value, axis: int) -> str:
    """The name that binds a dynamic dimension: its symbol, or "input:axis" where it has none."""
    assert value.shape is not None
    dim = value.shape[axis]
    return dim if isinstance(dim, str) else f"{value.name}:{axis}"


def bindings(
    graph: Graph, example: Mapping[str, Array] | None = None, *, sizes: Mapping[str, int] | None = None
) -> list[dict[str, int]]:
    """Two choices of a size for every symbol of the graph's inputs (one, where there is no symbol).

    example: arrays whose sizes are the first choice.  sizes: given by the caller, the same in both.  Without either the first
    axis of an input is 1, and other axes are 32 in images and 8 elsewhere, each symbol its own.  The second choice has another
    batch (3, or 1 where that is not the first) and other sizes one larger, or two where that would be even: odd planes.
    """
    first: dict[str, int] = {}
    batch: set[str] = set()
    for value in graph.inputs:
        shape = value.shape or ()
        given = None if example is None else example.get(value.name)
        for axis, dim in enumerate(shape):
            symbol = symbol_of(value, axis)
            if isinstance(dim, int) or not (symbol.isidentifier() or ":" in symbol):
                continue
            if axis == 0:
                batch.add(symbol)
            if given is not None and given.ndim == len(shape):
                first[symbol] = given.shape[axis]
            elif symbol not in first:
                taken = [size for name, size in first.items() if name not in batch]
                first[symbol] = 1 if axis == 0 else _free(32 if len(shape) >= 4 else 8, taken)
    first.update({name: size for name, size in (sizes or {}).items() if name in first})
    second = {name: _another(size, name in batch) for name, size in first.items()}
    second.update({name: size for name, size in (sizes or {}).items() if name in first})
    return [first] if first == second else [first, second]


def _free(size: int, taken: list[int]) -> int:
    while size in taken:
        size += 1
    return size


def _another(size: int, batch: bool) -> int:
    if batch:
        return 1 if size > 1 else 3
    return size + 1 if size % 2 == 0 else size + 2


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


def size_of(text: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a dimension like ``2*N + 1`` for bound symbols; None when it cannot be told."""

    def value(node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return sizes.get(node.id)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            return None if left is None or right is None else _OPERATORS[type(node.op)](left, right)
        return None

    if text in sizes:
        return sizes[text]
    try:
        return value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return None


def shape_of(value: Value, sizes: Mapping[str, int], example: Array | None = None) -> tuple[int, ...]:
    """The shape of an input for bound symbols.  Raises UsageError naming what is not known."""
    if value.shape is None:
        if example is not None:
            return example.shape
        raise UsageError(f"the rank of input {value.name!r} is not known; give an example with --input or --data")
    shape: list[int] = []
    for axis, dim in enumerate(value.shape):
        size = dim if isinstance(dim, int) else size_of(symbol_of(value, axis), sizes)
        if size is None and example is not None and example.ndim == len(value.shape):
            size = example.shape[axis]
        if size is None:
            raise UsageError(
                f"axis {axis} of input {value.name!r} is {dim}, whose size is not known; give an example with --input"
            )
        shape.append(size)
    return tuple(shape)
