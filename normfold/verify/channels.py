"""Comparing two tensors channel by channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.graph import Array

Axes = tuple[int, ...]


def channel_axis(rank: int) -> Axes:
    """The axis that channels are taken to run along: 1, or the only one."""
    return (1,) if rank > 1 else tuple(range(rank))


def varying_axes(rank: int, *arrays: Array) -> Axes:
    """The axes of a tensor of `rank` along which arrays that broadcast to it vary."""
    axes = {axis + rank - array.ndim for array in arrays for axis, size in enumerate(array.shape) if size > 1}
    return tuple(sorted(axes))


def largest(array: Array, keep: Axes) -> Array:
    """The maximum over all axes but `keep`, flat; 0 where there is no element.  NaN counts as infinite."""
    if array.size == 0:
        return np.zeros(1)
    array = np.where(np.isnan(array), np.inf, array)
    return np.max(array, axis=tuple(axis for axis in range(array.ndim) if axis not in keep), initial=0.0).reshape(-1)


def extent(array: Array, keep: Axes) -> Array:
    """The largest absolute value of each channel, flat; NaN where a channel holds NaN.  Makes no large temporary."""
    if array.size == 0:
        return np.zeros(1)
    axes = tuple(axis for axis in range(array.ndim) if axis not in keep)
    return np.abs(np.maximum(np.max(array, axis=axes), -np.min(array, axis=axes))).reshape(-1)


def per_channel(array: Array, shape: tuple[int, ...], keep: Axes) -> Array:
    """One number for each channel of a tensor of `shape`, of an array that varies along `keep` at most; flat."""
    return np.broadcast_to(array, [size if axis in keep else 1 for axis, size in enumerate(shape)]).reshape(-1)


def named(shape: tuple[int, ...], keep: Axes, place: int) -> str:
    """How a report names one channel: "channel 3", "channel (2, 5) of axes (1, 3)"; "" where there is none."""
    if not keep or 0 in shape:
        return ""
    index = tuple(int(i) for i in np.unravel_index(place, [shape[axis] for axis in keep]))
    if len(keep) == 1:
        return f"channel {index[0]}" if keep == (1,) or len(shape) == 1 else f"channel {index[0]} of axis {keep[0]}"
    return f"channel {index} of axes {keep}"


@dataclass(frozen=True)
class Pattern:
    """Where two tensors have NaN and infinities in different places."""

    count: int
    where: str


def finite_pattern(a: Array, b: Array) -> Pattern | None:
    """None when NaN, +Inf and -Inf stand in the same places."""
    different = (np.isnan(a) != np.isnan(b)) | (np.isposinf(a) != np.isposinf(b)) | (np.isneginf(a) != np.isneginf(b))
    count = int(np.count_nonzero(different))
    if not count:
        return None
    first = tuple(int(i) for i in np.argwhere(different)[0])
    return Pattern(count, f"NaN or Inf differ in {count} elements, first at {first}")
