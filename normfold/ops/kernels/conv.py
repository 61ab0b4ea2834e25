"""Convolutions of any rank, in numpy: one matrix product per group on unrolled windows (im2col), in slabs of bounded memory."""

from __future__ import annotations

import itertools

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import attr_ints, integer, kernel, need, optional, text, unsupported
from normfold.ops.kernels.windows import Window, padded, tap, window_of

_SLAB_BYTES = 64 << 20  # largest unrolled matrix held at once


@kernel("Conv", attrs="auto_pad dilations group kernel_shape pads strides")
def conv(node: Node, arrays: list[Array | None]) -> list[Array]:
    """y[n, o] = b[o] + sum over i and window of W[o, i] x[n, i].  x [N, C, ...], W [O, C / group, ...], b [O]."""
    x, weight, bias = need(node, arrays, 0), need(node, arrays, 1), optional(arrays, 2)
    group = integer(node, "group", 1)
    _check(node, x, weight, group, x.shape[1] if x.ndim > 1 else 0, weight.shape[1] * group)
    window = window_of(node, x.shape[2:], weight.shape[2:])
    y = _convolve(padded(x, window.before, window.after, 0), weight, window, group)
    return [y if bias is None else y + bias.reshape(-1, *(1,) * (x.ndim - 2))]


def _check(node: Node, x: Array, weight: Array, group: int, channels: int, expected: int) -> None:
    shape = attr_ints(node, "kernel_shape")
    if x.ndim < 3 or weight.ndim != x.ndim or group < 1 or channels != expected or weight.shape[0] % group:
        raise unsupported(node, f"input {list(x.shape)}, weight {list(weight.shape)} and group {group}")
    if shape is not None and shape != weight.shape[2:]:
        raise unsupported(node, f"kernel_shape {shape} and a weight of shape {list(weight.shape)}")


def _convolve(x: Array, weight: Array, window: Window, group: int) -> Array:
    """`x` is padded already."""
    outputs = tuple((size - span) // s + 1 for size, span, s in zip(x.shape[2:], window.spans, window.strides, strict=True))
    if min(outputs) < 1:
        return np.zeros((x.shape[0], weight.shape[0], *(max(n, 0) for n in outputs)), dtype=x.dtype)
    if group == x.shape[1] and weight.shape[0] == group:
        return _depthwise(x, weight, window, outputs)
    per_row = weight[0].size * group * int(np.prod(outputs[1:], dtype=np.int64)) * x.itemsize
    rows = max(1, _SLAB_BYTES // max(per_row, 1))
    y = np.empty((x.shape[0], weight.shape[0], *outputs), dtype=np.result_type(x, weight))
    for item in range(x.shape[0]):
        for start in range(0, outputs[0], rows):
            stop = min(start + rows, outputs[0])
            first, last = start * window.strides[0], (stop - 1) * window.strides[0] + window.spans[0]
            y[item, :, start:stop] = _slab(x[item, :, first:last], weight, window, group)
    return y


def _slab(x: Array, weight: Array, window: Window, group: int) -> Array:
    """x [C, ...] -> [O, ...] by one matrix product per group."""
    rank = x.ndim - 1
    view = np.lib.stride_tricks.sliding_window_view(x, window.spans, axis=tuple(range(1, rank + 1)))
    view = view[(slice(None), *(slice(None, None, s) for s in window.strides), *(slice(None, None, d) for d in window.dilations))]
    outputs = view.shape[1 : rank + 1]
    columns = view.transpose(0, *range(rank + 1, 2 * rank + 1), *range(1, rank + 1))
    columns = columns.reshape(group, -1, int(np.prod(outputs, dtype=np.int64)))
    return np.matmul(weight.reshape(group, weight.shape[0] // group, -1), columns).reshape(-1, *outputs)


def _depthwise(x: Array, weight: Array, window: Window, outputs: tuple[int, ...]) -> Array:
    """One multiplication and addition per kernel position; no unrolling."""
    y = np.zeros((*x.shape[:2], *outputs), dtype=np.result_type(x, weight))
    for offset in itertools.product(*map(range, window.kernel)):
        scale = weight[(slice(None), 0, *offset)].reshape(-1, *(1,) * len(outputs))
        y += tap(x, window, offset, outputs) * scale
    return y


@kernel("ConvTranspose", attrs="auto_pad dilations group kernel_shape output_padding output_shape pads strides")
def conv_transpose(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The transpose of Conv's map.  x [N, C, ...], W [C, O / group, ...], b [O]."""
    x, weight, bias = need(node, arrays, 0), need(node, arrays, 1), optional(arrays, 2)
    group, rank = integer(node, "group", 1), x.ndim - 2
    _check(node, x, weight, group, x.shape[1] if x.ndim > 1 else 0, weight.shape[0])
    ones = (1,) * rank
    strides, dilations = attr_ints(node, "strides") or ones, attr_ints(node, "dilations") or ones
    window = Window(weight.shape[2:], strides, dilations, (0,) * rank, (0,) * rank)
    extra = attr_ints(node, "output_padding") or (0,) * rank
    full = [s * (n - 1) + span + e for s, n, span, e in zip(strides, x.shape[2:], window.spans, extra, strict=True)]
    before, after = _transpose_pads(node, x.shape[2:], strides, full)
    n, out = x.shape[0], weight.shape[1] * group
    y = np.zeros((n, out, *full), dtype=np.result_type(x, weight))
    columns = x.reshape(n, group, x.shape[1] // group, -1)
    kernels = weight.reshape(group, weight.shape[0] // group, weight.shape[1], *window.kernel)
    for offset in itertools.product(*map(range, window.kernel)):
        part = np.matmul(kernels[(..., *offset)].transpose(0, 2, 1), columns)
        tap(y, window, offset, x.shape[2:])[...] += part.reshape(n, out, *x.shape[2:])
    y = y[(..., *(slice(max(b, 0), size - max(a, 0)) for b, a, size in zip(before, after, full, strict=True)))]
    y = padded(y, tuple(max(-b, 0) for b in before), tuple(max(-a, 0) for a in after), 0)
    return [y if bias is None else y + bias.reshape(-1, *ones)]


def _transpose_pads(
    node: Node, sizes: tuple[int, ...], strides: tuple[int, ...], full: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is cropped before and after each axis; negative where an `output_shape` is larger than the full result."""
    auto, wanted, rank = text(node, "auto_pad", "NOTSET"), attr_ints(node, "output_shape"), len(sizes)
    if auto not in ("NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise unsupported(node, f"auto_pad {auto!r}")
    if not wanted:
        if auto in ("NOTSET", ""):
            pads = attr_ints(node, "pads") or (0,) * (2 * rank)
            return pads[:rank], pads[rank:]
        if auto == "VALID":
            return (0,) * rank, (0,) * rank
        wanted = tuple(size * s for size, s in zip(sizes, strides, strict=True))
    total = [size - want for size, want in zip(full, wanted[-rank:], strict=True)]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if auto == "SAME_UPPER" else (large, small)


@kernel("ConvInteger", attrs="auto_pad dilations group kernel_shape pads strides")
def conv_integer(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Conv of integers less their zero points, in int32; padding stands for the zero point."""
    x, weight = need(node, arrays, 0).astype(np.int32), need(node, arrays, 1).astype(np.int32)
    x_zero, w_zero = optional(arrays, 2), optional(arrays, 3)
    if x_zero is not None:
        x = x - x_zero.astype(np.int32).reshape(())
    if w_zero is not None:
        w_zero = w_zero.astype(np.int32).reshape(-1)
        weight = weight - w_zero.reshape(-1, *(1,) * (weight.ndim - 1))
    return conv(node, [x, weight])


@kernel("Col2Im", attrs="dilations pads strides")
def col2im(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Adds the columns [N, C * prod(block), L] back into an image of `image_shape`; overlaps are summed."""
    x, image, block = need(node, arrays, 0), need(node, arrays, 1), need(node, arrays, 2)
    sizes, kernel_shape = tuple(map(int, image)), tuple(map(int, block))
    window = window_of(node, sizes, kernel_shape)
    full = tuple(b + size + a for b, size, a in zip(window.before, sizes, window.after, strict=True))
    outputs = tuple((size - span) // s + 1 for size, span, s in zip(full, window.spans, window.strides, strict=True))
    columns = x.reshape(x.shape[0], -1, *kernel_shape, *outputs)
    y = np.zeros((*columns.shape[:2], *full), dtype=x.dtype)
    for offset in itertools.product(*map(range, kernel_shape)):
        tap(y, window, offset, outputs)[...] += columns[(slice(None), slice(None), *offset)]
    return [y[(..., *(slice(b, b + size) for b, size in zip(window.before, sizes, strict=True)))]]
