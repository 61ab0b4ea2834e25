"""Gather, scatter, sort and search."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import axis_of, integer, ints, kernel, need, number, text, unsupported

_REDUCTIONS: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


@kernel("Gather", attrs="axis")
def gather(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Slices along `axis`; negative indices count from the end."""
    x, indices = need(node, arrays, 0), need(node, arrays, 1)
    return [np.take(x, indices, axis=axis_of(node, x.ndim, 0))]


@kernel("GatherElements", attrs="axis")
def gather_elements(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Other axes of the indices may be shorter than the data's."""
    x, indices = need(node, arrays, 0), need(node, arrays, 1)
    return [x[_element_index(indices, axis_of(node, x.ndim, 0))]]


def _element_index(indices: Array, axis: int) -> tuple[Array, ...]:
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return tuple(grid)


@kernel("GatherND", attrs="batch_dims")
def gather_nd(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Slices named by index tuples, within equal leading batch dims."""
    x, indices, batch = need(node, arrays, 0), need(node, arrays, 1), integer(node, "batch_dims", 0)
    lead = indices.shape[:batch]
    axes: list[Array] = list(np.indices(lead, sparse=True))
    grid = [index.reshape(*index.shape, *(1,) * (indices.ndim - 1 - batch)) for index in axes]
    return [x[(*grid, *np.moveaxis(indices, -1, 0))]]


@kernel("ScatterElements", attrs="axis reduction")
def scatter_elements(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x with single elements set or combined; indices count along `axis`."""
    x, indices, updates = (need(node, arrays, slot) for slot in range(3))
    return [_scatter(node, x, _element_index(indices, axis_of(node, x.ndim, 0)), updates)]


@kernel("ScatterND", attrs="reduction")
def scatter_nd(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x with slices, named by index tuples, set or combined."""
    x, indices, updates = (need(node, arrays, slot) for slot in range(3))
    return [_scatter(node, x, tuple(np.moveaxis(indices, -1, 0)), updates)]


def _scatter(node: Node, x: Array, index: tuple[Array, ...], updates: Array) -> Array:
    result, reduction = x.copy(), text(node, "reduction", "none")
    if reduction == "none":
        result[index] = updates
    elif reduction in _REDUCTIONS:
        _REDUCTIONS[reduction].at(result, index, updates)
    else:
        raise unsupported(node, f"reduction {reduction!r}")
    return result


@kernel("TopK", attrs="axis largest sorted k")
def top_k(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Ties go to the lower index; the result is sorted whatever `sorted` says (it then leaves the order open)."""
    x, k = need(node, arrays, 0), ints(node, arrays, "k", 1)
    if k is None:
        raise unsupported(node, "no k")
    axis = axis_of(node, x.ndim, -1)
    if integer(node, "largest", 1):
        # descending and stable: sort the reversed axis upwards, then read it from the end
        order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    index = np.take(order, np.arange(k[0]), axis=axis)
    return [np.take_along_axis(x, index, axis=axis), index.astype(np.int64)]


@kernel("ArgMax", "ArgMin", attrs="axis keepdims select_last_index")
def arg_extreme(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The first, or last, index of the extreme along `axis`."""
    x = need(node, arrays, 0)
    axis = axis_of(node, x.ndim, 0)
    find = np.argmax if node.kind == "ArgMax" else np.argmin
    if integer(node, "select_last_index", 0):
        index = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis)
    else:
        index = find(x, axis=axis)
    index = np.asarray(index, dtype=np.int64)
    return [np.expand_dims(index, axis) if integer(node, "keepdims", 1) else index]


@kernel("CumSum", attrs="exclusive reverse axis")
def cum_sum(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Running sum along `axis`; exclusive leaves the own element out, reverse runs from the end."""
    x, axis = need(node, arrays, 0), number(node, arrays, "axis", 1)
    if axis is None:
        raise unsupported(node, "no axis")
    reverse = integer(node, "reverse", 0)
    x = np.flip(x, axis) if reverse else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    if integer(node, "exclusive", 0):
        head = np.zeros_like(np.take(total, [0], axis=axis))
        total = np.concatenate([head, np.take(total, np.arange(x.shape[axis] - 1), axis=axis)], axis=axis)
    return [np.flip(total, axis) if reverse else total]
