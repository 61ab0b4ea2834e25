"""Fourier transforms, and determinants."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import integer, ints, kernel, need, number, unsupported


@kernel("DFT", attrs="axis dft_length inverse onesided")
def dft(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x [..., 1 or 2] (real, or real and imaginary) transformed along `axis`; the result has 2 in the last axis."""
    x, length, axis = need(node, arrays, 0), ints(node, arrays, "dft_length", 1), number(node, arrays, "axis", 2)
    axis = -2 if axis is None else axis
    axis = axis + x.ndim if axis < 0 else axis
    if x.shape[-1] not in (1, 2) or axis == x.ndim - 1:
        raise unsupported(node, f"axis {axis} of shape {list(x.shape)}")
    signal = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    n, onesided = (length[0] if length else x.shape[axis]), integer(node, "onesided", 0)
    if integer(node, "inverse", 0):
        if onesided:
            raise unsupported(node, "inverse and onesided")
        result = np.fft.ifft(signal, n, axis=axis)
    else:
        result = np.fft.fft(signal, n, axis=axis)
        result = np.take(result, np.arange(n // 2 + 1), axis=axis) if onesided else result
    return [np.stack([result.real, result.imag], axis=-1).astype(x.dtype)]


@kernel("STFT", attrs="frame_length frame_step onesided")
def stft(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x [N, L, 1 or 2] in frames of `frame_length` every `frame_step`, windowed, transformed: [N, frames, bins, 2]."""
    x, step = need(node, arrays, 0), ints(node, arrays, "frame_step", 1)
    window = arrays[2] if len(arrays) > 2 else None
    length = ints(node, arrays, "frame_length", 3)
    size = length[0] if length else (x.shape[1] if window is None else window.shape[0])
    if step is None:
        raise unsupported(node, "no frame_step")
    signal = x if x.ndim == 2 else (x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1])
    frames = np.lib.stride_tricks.sliding_window_view(signal, size, axis=1)[:, :: step[0]]
    spectrum = np.fft.fft(frames if window is None else frames * window, axis=-1)
    if integer(node, "onesided", 1):
        spectrum = spectrum[..., : size // 2 + 1]
    return [np.stack([spectrum.real, spectrum.imag], axis=-1).astype(x.dtype)]


@kernel("Det")
def det(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The determinant of the last two axes."""
    return [np.asarray(np.linalg.det(need(node, arrays, 0)))]
