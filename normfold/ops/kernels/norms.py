"""Normalization layers."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.layout import positive_axes
from normfold.ops.kernels.registry import attr_ints, axis_of, integer, kernel, need, optional, real, unsupported


def along(array: Array, rank: int, axis: int) -> Array:
    """A [C] array shaped to broadcast along `axis` of a tensor of `rank` axes."""
    return array.reshape([-1 if i == axis else 1 for i in range(rank)])


def _moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance, kept dims; two passes, so that a large mean costs no digits."""
    mean = np.mean(x, axis=axes, keepdims=True)
    return mean, np.mean(np.square(x - mean), axis=axes, keepdims=True)


@kernel("BatchNormalization", attrs="epsilon momentum training_mode")
def batch_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """gamma (x - mean) / sqrt(var + epsilon) + beta along axis 1; statistics of the batch when training_mode is 1."""
    x, gamma, beta, mean, var = (need(node, arrays, slot) for slot in range(5))
    epsilon, rank = real(node, "epsilon", 1e-5), x.ndim
    extra: list[Array] = []
    if integer(node, "training_mode", 0):
        momentum = real(node, "momentum", 0.9)
        batch_mean, batch_var = (item.reshape(-1) for item in _moments(x, (0, *range(2, rank))))
        extra = [mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum)]
        mean, var = batch_mean, batch_var
    scale = gamma / np.sqrt(var + epsilon)
    y = (x - along(mean, rank, 1)) * along(scale, rank, 1) + along(beta, rank, 1)
    return [y.astype(x.dtype, copy=False), *extra][: max(1, len(node.outputs))]


@kernel("InstanceNormalization", attrs="epsilon")
def instance_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Statistics of each plane; gamma, beta [C]."""
    x, gamma, beta = (need(node, arrays, slot) for slot in range(3))
    mean, var = _moments(x, tuple(range(2, x.ndim)))
    return [(x - mean) / np.sqrt(var + real(node, "epsilon", 1e-5)) * along(gamma, x.ndim, 1) + along(beta, x.ndim, 1)]


@kernel("GroupNormalization", attrs="epsilon num_groups stash_type")
def group_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Statistics of each group of channels; gamma, beta [C] (opset 21)."""
    x, gamma, beta = (need(node, arrays, slot) for slot in range(3))
    groups = integer(node, "num_groups", 0)
    if groups < 1 or x.shape[1] % groups or gamma.size != x.shape[1] or beta.size != x.shape[1]:
        raise unsupported(node, f"{groups} groups, {x.shape[1]} channels and a scale of {gamma.size}")
    parts = x.reshape(x.shape[0], groups, -1)
    mean, var = _moments(parts, (2,))
    core = ((parts - mean) / np.sqrt(var + real(node, "epsilon", 1e-5))).reshape(x.shape)
    return [core * along(gamma, x.ndim, 1) + along(beta, x.ndim, 1)]


@kernel("LayerNormalization", attrs="axis epsilon stash_type")
def layer_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Statistics over `axis` and all behind it; gamma and beta broadcast from the right.  Also mean and 1 / deviation."""
    x, gamma, beta = need(node, arrays, 0), optional(arrays, 1), optional(arrays, 2)
    mean, var = _moments(x, tuple(range(axis_of(node, x.ndim, -1), x.ndim)))
    inverse = 1 / np.sqrt(var + real(node, "epsilon", 1e-5))
    y = (x - mean) * inverse
    y = y if gamma is None else y * gamma
    return [y if beta is None else y + beta, mean, inverse][: max(1, len(node.outputs))]


@kernel("RMSNormalization", attrs="axis epsilon stash_type")
def rms_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x / sqrt(mean(x^2) + epsilon) over `axis` and all behind it, times gamma."""
    x, gamma = need(node, arrays, 0), optional(arrays, 1)
    square = np.mean(np.square(x), axis=tuple(range(axis_of(node, x.ndim, -1), x.ndim)), keepdims=True)
    y = x / np.sqrt(square + real(node, "epsilon", 1e-5))
    return [y if gamma is None else y * gamma]


@kernel("LpNormalization", attrs="axis p")
def lp_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x over its p-norm along `axis`; 0 where the norm is 0."""
    x, p = need(node, arrays, 0), integer(node, "p", 2)
    if p not in (1, 2):
        raise unsupported(node, f"p {p}")
    axis = axis_of(node, x.ndim, -1)
    size = np.sum(np.abs(x) ** p, axis=axis, keepdims=True)
    size = np.sqrt(size) if p == 2 else size
    return [np.where(size == 0, np.zeros_like(x), x / size)]


@kernel("MeanVarianceNormalization", attrs="axes")
def mean_variance_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """(x - mean) / (deviation + 1e-9), as ONNX's function body spells it."""
    x = need(node, arrays, 0)
    mean, var = _moments(x, positive_axes(node, attr_ints(node, "axes") or (0, 2, 3), x.ndim))
    return [(x - mean) / (np.sqrt(var) + 1e-9)]


@kernel("LRN", attrs="alpha beta bias size")
def local_response_normalization(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    x, size = need(node, arrays, 0), integer(node, "size", 0)
    if size < 1 or size % 2 == 0:
        raise unsupported(node, f"size {size}")  # on which side an even window is longer differs between implementations
    before = (size - 1) // 2
    square = np.pad(np.square(x), [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    total = np.zeros_like(x)
    for offset in range(size):
        total += square[:, offset : offset + x.shape[1]]
    return [x / (real(node, "bias", 1.0) + real(node, "alpha", 1e-4) / size * total) ** real(node, "beta", 0.75)]
