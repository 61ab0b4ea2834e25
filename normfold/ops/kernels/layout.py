"""Ops that move elements and compute none."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import (
    attr_ints,
    axis_of,
    integer,
    ints,
    kernel,
    need,
    number,
    present,
    text,
    unsupported,
)


def positive_axes(node: Node, axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Axes made >= 0, checked for range and repetition."""
    result = tuple(axis + rank if axis < 0 else axis for axis in axes)
    if len(set(result)) != len(result) or any(not 0 <= axis < rank for axis in result):
        raise unsupported(node, f"axes {axes} of a tensor of rank {rank}")
    return result


@kernel("Reshape", attrs="shape allowzero")
def reshape(node: Node, arrays: list[Array | None]) -> list[Array]:
    """0 copies the size of the input (unless allowzero), -1 is what is left."""
    x, shape = need(node, arrays, 0), ints(node, arrays, "shape", 1)
    if shape is None:
        raise unsupported(node, "no shape")
    if not integer(node, "allowzero", 0):
        shape = tuple(x.shape[i] if size == 0 else size for i, size in enumerate(shape))
    return [np.reshape(x, shape)]


@kernel("Flatten", attrs="axis")
def flatten(node: Node, arrays: list[Array | None]) -> list[Array]:
    """[prod(shape[:axis]), prod(shape[axis:])]."""
    x, axis = need(node, arrays, 0), integer(node, "axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [np.reshape(x, (int(np.prod(x.shape[:axis], dtype=np.int64)), int(np.prod(x.shape[axis:], dtype=np.int64))))]


@kernel("Transpose", attrs="perm")
def transpose(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Axis i of the result is axis perm[i] of x; all reversed when absent."""
    return [np.transpose(need(node, arrays, 0), attr_ints(node, "perm"))]


@kernel("Squeeze", attrs="axes")
def squeeze(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Without the axes named, or without all of size 1."""
    x, axes = need(node, arrays, 0), ints(node, arrays, "axes", 1)
    return [np.squeeze(x, axis=None if axes is None else positive_axes(node, axes, x.ndim))]


@kernel("Unsqueeze", attrs="axes")
def unsqueeze(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Axes count in the result."""
    x, axes = need(node, arrays, 0), ints(node, arrays, "axes", 1)
    if axes is None:
        raise unsupported(node, "no axes")
    return [np.expand_dims(x, positive_axes(node, axes, x.ndim + len(axes)))]


@kernel("Concat", attrs="axis")
def concat(node: Node, arrays: list[Array | None]) -> list[Array]:
    """All inputs, one behind the other along `axis`."""
    items = present(arrays)
    return [np.concatenate(items, axis=axis_of(node, items[0].ndim, 0))]


@kernel("Split", attrs="axis split num_outputs")
def split(node: Node, arrays: list[Array | None]) -> list[Array]:
    """By the sizes in `split`, else into equal parts, the last one smaller."""
    x, sizes = need(node, arrays, 0), ints(node, arrays, "split", 1)
    axis, parts = axis_of(node, x.ndim, 0), len(node.outputs)
    if sizes is None:
        size = -(-x.shape[axis] // parts)
        sizes = (*(size,) * (parts - 1), x.shape[axis] - size * (parts - 1))
    if len(sizes) != parts or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise unsupported(node, f"sizes {sizes} for {parts} outputs of an axis of {x.shape[axis]}")
    return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


@kernel("Slice", attrs="starts ends axes steps")
def slice_(node: Node, arrays: list[Array | None]) -> list[Array]:
    """numpy's slices: out-of-range bounds are clamped, negative ones count from the end."""
    x = need(node, arrays, 0)
    starts, ends = ints(node, arrays, "starts", 1), ints(node, arrays, "ends", 2)
    if starts is None or ends is None:
        raise unsupported(node, "no starts or ends")
    axes = ints(node, arrays, "axes", 3) or tuple(range(len(starts)))
    steps = ints(node, arrays, "steps", 4) or (1,) * len(starts)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(positive_axes(node, axes, x.ndim), starts, ends, steps, strict=True):
        # an end before the beginning, walking backwards, means "to the very first"; numpy would count it from the end
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return [x[tuple(index)]]


@kernel("Expand", attrs="shape")
def expand(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Two-way broadcasting: a size of 1 in `shape` keeps the input's."""
    x, shape = need(node, arrays, 0), ints(node, arrays, "shape", 1)
    if shape is None:
        raise unsupported(node, "no shape")
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))]


@kernel("Tile", attrs="repeats")
def tile(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x repeated along each axis."""
    x, repeats = need(node, arrays, 0), ints(node, arrays, "repeats", 1)
    if repeats is None or len(repeats) != x.ndim:
        raise unsupported(node, f"repeats {repeats} for a tensor of rank {x.ndim}")
    return [np.tile(x, repeats)]


_PAD_MODES: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap", "constant": "constant"}


@kernel("Pad", attrs="mode pads constant_value axes")
def pad(node: Node, arrays: list[Array | None]) -> list[Array]:
    """All four modes; negative pads crop."""
    x, pads = need(node, arrays, 0), ints(node, arrays, "pads", 1)
    value, axes = number(node, arrays, "constant_value", 2), ints(node, arrays, "axes", 3)
    if pads is None:
        raise unsupported(node, "no pads")
    axes = tuple(range(x.ndim)) if axes is None else positive_axes(node, axes, x.ndim)
    if len(pads) != 2 * len(axes):
        raise unsupported(node, f"{len(pads)} pads for {len(axes)} axes")
    mode = text(node, "mode", "constant")
    if mode not in _PAD_MODES:
        raise unsupported(node, f"mode {mode!r}")
    width, index = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        width[axis] = (max(before, 0), max(after, 0))
        index[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    x = x[tuple(index)]
    if mode == "constant":
        return [np.pad(x, width, mode="constant", constant_values=0 if value is None else value)]
    return [np.pad(x, width, mode=_PAD_MODES[mode])]


@kernel("DepthToSpace", attrs="blocksize mode")
def depth_to_space(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Blocks of channels spread over the plane; DCR: depth first, CRD: channel first."""
    x, block, mode = need(node, arrays, 0), integer(node, "blocksize", 0), text(node, "mode", "DCR")
    n, c, h, w = x.shape
    if mode == "DCR":
        parts = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        parts = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        raise unsupported(node, f"mode {mode!r}")
    return [parts.reshape(n, c // block**2, h * block, w * block)]


@kernel("SpaceToDepth", attrs="blocksize mode")
def space_to_depth(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The inverse of DepthToSpace: blocks of the plane stacked into channels."""
    x, block, mode = need(node, arrays, 0), integer(node, "blocksize", 0), text(node, "mode", "DCR")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block)
    if mode == "DCR":
        parts = parts.transpose(0, 3, 5, 1, 2, 4)
    elif mode == "CRD":
        parts = parts.transpose(0, 1, 3, 5, 2, 4)
    else:
        raise unsupported(node, f"mode {mode!r}")
    return [parts.reshape(n, c * block**2, h // block, w // block)]


@kernel("ReverseSequence", attrs="batch_axis time_axis")
def reverse_sequence(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The first lengths[b] steps of each sequence b reversed, the rest kept."""
    x, lengths = need(node, arrays, 0), need(node, arrays, 1)
    batch, time = integer(node, "batch_axis", 1), integer(node, "time_axis", 0)
    if {batch, time} != {0, 1}:
        raise unsupported(node, f"batch_axis {batch}, time_axis {time}")
    result = x.copy()
    for item, length in enumerate(lengths.tolist()):
        row, new = (x[item], result[item]) if batch == 0 else (x[:, item], result[:, item])
        new[:length] = row[:length][::-1]
    return [result]


@kernel("Trilu", attrs="upper k")
def trilu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The upper or lower triangle of the last two axes, from diagonal k."""
    x, k = need(node, arrays, 0), number(node, arrays, "k", 1) or 0
    return [np.triu(x, k) if integer(node, "upper", 1) else np.tril(x, k)]
