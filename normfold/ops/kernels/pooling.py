"""Pools of any rank."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import attr_ints, integer, kernel, need, optional, text, unsupported
from normfold.ops.kernels.windows import Window, padded, tap, window_of

_POOL = "auto_pad ceil_mode dilations kernel_shape pads strides"


def _geometry(node: Node, x: Array) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """The window, the output sizes, and how far behind the padding the last windows reach (ceil_mode)."""
    shape = attr_ints(node, "kernel_shape")
    if shape is None or x.ndim < 3:
        raise unsupported(node, f"kernel_shape {shape} on a tensor of rank {x.ndim}")
    window = window_of(node, x.shape[2:], shape)
    # auto_pad other than NOTSET fixes the size itself; rounding up would add nothing but for SAME it is exact anyway
    ceil = bool(integer(node, "ceil_mode", 0)) and text(node, "auto_pad", "NOTSET") in ("NOTSET", "")
    outputs: list[int] = []
    for size, span, s, b, a in zip(x.shape[2:], window.spans, window.strides, window.before, window.after, strict=True):
        room = size + b + a - span
        count = (-(-room // s) if ceil else room // s) + 1
        if ceil and (count - 1) * s >= size + b:  # a window that would start in the padding behind is left out
            count -= 1
        outputs.append(max(count, 0))
    reach = tuple(
        max((n - 1) * s + span - (size + b + a), 0)
        for n, s, span, size, b, a in zip(
            outputs, window.strides, window.spans, x.shape[2:], window.before, window.after, strict=True
        )
    )
    return window, tuple(outputs), reach


def _taps(x: Array, window: Window, outputs: tuple[int, ...]) -> Iterator[Array]:
    for offset in itertools.product(*map(range, window.kernel)):
        yield tap(x, window, offset, outputs)


def _add_up(x: Array, window: Window, outputs: tuple[int, ...]) -> Array:
    """The sum over each window of a padded x."""
    total = np.zeros((*x.shape[:2], *outputs), dtype=x.dtype)
    for part in _taps(x, window, outputs):
        total += part
    return total


@kernel("AveragePool", attrs=f"{_POOL} count_include_pad")
def average_pool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The mean of each window; padding counts when count_include_pad, what lies behind it (ceil_mode) never does."""
    x = need(node, arrays, 0)
    window, outputs, reach = _geometry(node, x)
    after = tuple(a + r for a, r in zip(window.after, reach, strict=True))
    ones = np.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if integer(node, "count_include_pad", 0):
        ones = padded(padded(ones, window.before, window.after, 1), (0,) * len(reach), reach, 0)
    else:
        ones = padded(ones, window.before, after, 0)
    total = _add_up(padded(x, window.before, after, 0), window, outputs)
    return [total / _add_up(ones, window, outputs)]


@kernel("LpPool", attrs=f"{_POOL} p")
def lp_pool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """(sum |x|^p)^(1/p) over each window."""
    x, p = need(node, arrays, 0), integer(node, "p", 2)
    window, outputs, reach = _geometry(node, x)
    after = tuple(a + r for a, r in zip(window.after, reach, strict=True))
    return [_add_up(padded(np.abs(x) ** p, window.before, after, 0), window, outputs) ** (1.0 / p)]


def _lowest(x: Array) -> float:
    return -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min


@kernel("MaxPool", attrs=f"{_POOL} storage_order")
def max_pool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The largest element of each window, and its index in the flat input (the first of equals)."""
    x = need(node, arrays, 0)
    window, outputs, reach = _geometry(node, x)
    after = tuple(a + r for a, r in zip(window.after, reach, strict=True))
    wide = padded(x, window.before, after, _lowest(x))
    if len(node.outputs) < 2:
        return [functools.reduce(np.maximum, _taps(wide, window, outputs)).copy()]
    if integer(node, "storage_order", 0):
        raise unsupported(node, "storage_order 1")
    flat = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    where = padded(flat, window.before, after, -1)
    best = np.full((*x.shape[:2], *outputs), _lowest(x), dtype=x.dtype)
    index = np.full(best.shape, -1, dtype=np.int64)
    for part, place in zip(_taps(wide, window, outputs), _taps(where, window, outputs), strict=True):
        better = ((part > best) | np.isnan(part) & ~np.isnan(best) | (index < 0)) & (place >= 0)
        best, index = np.where(better, part, best), np.where(better, place, index)
    return [best, index]


@kernel("MaxUnpool", attrs="kernel_shape pads strides output_shape")
def max_unpool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Zeros with each x put at its flat index."""
    x, index, shape = need(node, arrays, 0), need(node, arrays, 1), optional(arrays, 2)
    kernel_shape = attr_ints(node, "kernel_shape") or ()
    window = window_of(node, x.shape[2:], kernel_shape)
    sizes = tuple(
        (n - 1) * s + k - b - a
        for n, s, k, b, a in zip(x.shape[2:], window.strides, kernel_shape, window.before, window.after, strict=True)
    )
    inferred = (*x.shape[:2], *sizes)
    wanted = inferred if shape is None else tuple(map(int, shape))
    if wanted != inferred:
        raise unsupported(node, f"output_shape {wanted} other than the inferred {inferred}")  # runtimes disagree on the indices
    y = np.zeros(int(np.prod(wanted, dtype=np.int64)), dtype=x.dtype)
    y[index.reshape(-1)] = x.reshape(-1)
    return [y.reshape(wanted)]


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@kernel("GlobalAveragePool")
def global_average_pool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The mean over all spatial axes, kept with size 1."""
    x = need(node, arrays, 0)
    return [np.mean(x, axis=_spatial(x), keepdims=True)]


@kernel("GlobalMaxPool")
def global_max_pool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The maximum over all spatial axes, kept with size 1."""
    x = need(node, arrays, 0)
    return [np.max(x, axis=_spatial(x), keepdims=True)]


@kernel("GlobalLpPool", attrs="p")
def global_lp_pool(node: Node, arrays: list[Array | None]) -> list[Array]:
    """(sum |x|^p)^(1/p) over all spatial axes, kept with size 1."""
    x, p = need(node, arrays, 0), integer(node, "p", 2)
    return [np.sum(np.abs(x) ** p, axis=_spatial(x), keepdims=True) ** (1.0 / p)]
