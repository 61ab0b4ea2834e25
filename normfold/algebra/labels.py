"""Label arrays: which unknown holds at which index of a tensor.

A tensor has two integer arrays (labels of scale unknowns, labels of shift unknowns) that broadcast to its shape: an axis of size
1 does not vary.  Layout operations are the same operation on the label array.  Label 0 is the pinned unknown (scale 1, shift 0).
Dimensions may be symbolic; a label array only needs the size of axes along which it varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from normfold.algebra.ratios import Floats, Ints

Dims = Sequence[int | str | None]


class Labels(NamedTuple):
    """Scale and shift labels of one tensor, each of the tensor's rank."""

    scale: Ints
    shift: Ints

    @property
    def pinned(self) -> bool:
        """True when nothing of this tensor can move."""
        return not self.scale.any() and not self.shift.any()


def identity(rank: int) -> Labels:
    """Labels of a tensor that keeps the gauge (1, 0)."""
    return Labels(np.zeros((1,) * rank, dtype=np.int64), np.zeros((1,) * rank, dtype=np.int64))


def varying(labels: Ints | Floats) -> tuple[int, ...]:
    """Axes along which an array of labels (or of constants to go with them) varies."""
    return tuple(axis for axis, size in enumerate(labels.shape) if size > 1)


def raise_rank(labels: Ints, rank: int) -> Ints:
    """Broadcast to a higher rank as numpy does: new axes in front."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def widen(labels: Ints, axis: int, size: int | str | None) -> Ints | None:
    """Spread `labels` along `axis` to its full size; None when that size is not a number."""
    if labels.shape[axis] > 1 or size == 1:
        return labels
    return np.repeat(labels, size, axis=axis) if isinstance(size, int) else None


def take(labels: Ints, axis: int, index: Ints) -> Ints:
    """Gather along `axis` with an index of any shape (new axes take the place of `axis`)."""
    if labels.shape[axis] == 1:
        return labels.reshape(labels.shape[:axis] + (1,) * index.ndim + labels.shape[axis + 1 :])
    return np.take(labels, index, axis=axis)


def strided(labels: Ints, axis: int, start: int, end: int, step: int) -> Ints:
    """Slice along `axis`."""
    if labels.shape[axis] == 1:
        return labels
    cut = [slice(None)] * labels.ndim
    size = labels.shape[axis]
    first, last, stride = slice(start, end, step).indices(size)
    cut[axis] = slice(first, last if last >= 0 else None, stride)
    return labels[tuple(cut)]


def concat(parts: Sequence[Ints], axis: int, sizes: Dims) -> Ints | None:
    """Concatenate along `axis`; `sizes` are the parts' sizes there.  None when a varying part has an unknown size."""
    if all(part.shape == parts[0].shape and np.array_equal(part, parts[0]) and part.shape[axis] == 1 for part in parts):
        return parts[0]
    wide = [widen(part, axis, size) for part, size in zip(parts, sizes, strict=True)]
    known = [part for part in wide if part is not None]
    if len(known) < len(wide):
        return None
    other = np.broadcast_shapes(*((*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in known))
    full = [np.broadcast_to(part, (*other[:axis], part.shape[axis], *other[axis + 1 :])) for part in known]
    return np.concatenate(full, axis=axis)


def reshape(labels: Ints, before: Dims, after: Dims) -> Ints | None:
    """Reshape (row-major); None when it cannot be followed through unknown sizes."""
    if labels.size == 1:
        return labels.reshape((1,) * len(after))
    shape: list[int] = []
    spread = list(labels.shape)
    for axes_in, axes_out in _groups(before, after):
        if all(labels.shape[axis] == 1 for axis in axes_in):
            shape += [1] * len(axes_out)
            continue
        if not all(isinstance(before[axis], int) for axis in axes_in):
            return None
        sizes = [after[axis] for axis in axes_out]
        total = int(np.prod([spread_size for axis in axes_in if isinstance(spread_size := before[axis], int)]))
        known = int(np.prod([size for size in sizes if isinstance(size, int)]))
        unknown = [size for size in sizes if not isinstance(size, int)]
        if len(unknown) > 1 or known == 0 or total % known or (not unknown and known != total):
            return None
        shape += [size if isinstance(size, int) else total // known for size in sizes]
        for axis in axes_in:
            size = before[axis]
            assert isinstance(size, int)
            spread[axis] = size
    return np.broadcast_to(labels, spread).reshape(shape)


def _groups(before: Dims, after: Dims) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of `before` and `after` that hold the same elements; at most one run is matched without proof by size."""

    def matched(front: Dims, back: Dims) -> list[tuple[int, int]]:
        """Lengths of runs with equal products, from the start, as far as sizes are known."""
        runs: list[tuple[int, int]] = []
        i = j = 0
        while i < len(front) and j < len(back):
            di, dj = front[i], back[j]
            if di is not None and di == dj:
                runs.append((1, 1))
                i, j = i + 1, j + 1
                continue
            ni, nj, pi, pj = i, j, 1, 1
            while True:
                if pi <= pj and ni < len(front) and isinstance(step := front[ni], int) and (pi < pj or ni == i):
                    pi, ni = pi * step, ni + 1
                elif pj <= pi and nj < len(back) and isinstance(step := back[nj], int) and (pj < pi or nj == j):
                    pj, nj = pj * step, nj + 1
                else:
                    break
                if pi == pj and ni > i and nj > j:
                    break
            if pi != pj or ni == i or nj == j or pi == 0:
                break
            runs.append((ni - i, nj - j))
            i, j = ni, nj
        return runs

    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    for count_in, count_out in matched(before, after):
        groups.append((list(range(i, i + count_in)), list(range(j, j + count_out))))
        i, j = i + count_in, j + count_out
    tail: list[tuple[list[int], list[int]]] = []
    end_in, end_out = len(before), len(after)
    for count_in, count_out in matched(before[i:][::-1], after[j:][::-1]):
        tail.append((list(range(end_in - count_in, end_in)), list(range(end_out - count_out, end_out))))
        end_in, end_out = end_in - count_in, end_out - count_out
    if end_in > i or end_out > j:
        groups.append((list(range(i, end_in)), list(range(j, end_out))))
    return groups + tail[::-1]
