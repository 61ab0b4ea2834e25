"""Activations that numpy computes.  Those that need erf are in `special`."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import axis_of, kernel, need, real


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@kernel("Relu")
def relu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """max(x, 0)."""
    return [np.maximum(need(node, arrays, 0), 0)]


@kernel("LeakyRelu", attrs="alpha")
def leaky_relu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x, times alpha where negative."""
    x = need(node, arrays, 0)
    return [np.where(x < 0, x * real(node, "alpha", 0.01), x)]


@kernel("ThresholdedRelu", attrs="alpha")
def thresholded_relu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x where x > alpha, else 0."""
    x = need(node, arrays, 0)
    return [np.where(x > real(node, "alpha", 1.0), x, np.zeros_like(x))]


@kernel("Elu", attrs="alpha")
def elu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x, alpha (exp(x) - 1) where negative."""
    x = need(node, arrays, 0)
    return [np.where(x < 0, real(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0)), x)]


@kernel("Celu", attrs="alpha")
def celu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """max(x, 0) + min(0, alpha (exp(x / alpha) - 1))."""
    x, alpha = need(node, arrays, 0), real(node, "alpha", 1.0)
    return [np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))]


@kernel("Selu", attrs="alpha gamma")
def selu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """gamma x, gamma alpha (exp(x) - 1) where not positive."""
    x = need(node, arrays, 0)
    # the defaults of the ONNX specification, which are float32 numbers
    alpha, gamma = real(node, "alpha", 1.67326319217681884765625), real(node, "gamma", 1.05070102214813232421875)
    return [gamma * np.where(x <= 0, alpha * np.expm1(np.minimum(x, 0)), x)]


@kernel("Sigmoid")
def sigmoid_kernel(node: Node, arrays: list[Array | None]) -> list[Array]:
    """1 / (1 + exp(-x))."""
    return [sigmoid(need(node, arrays, 0))]


@kernel("Swish", attrs="alpha")
def swish(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x * sigmoid(alpha x)."""
    x = need(node, arrays, 0)
    return [x * sigmoid(x * real(node, "alpha", 1.0))]


@kernel("HardSigmoid", attrs="alpha beta")
def hard_sigmoid(node: Node, arrays: list[Array | None]) -> list[Array]:
    """alpha x + beta, clipped to [0, 1]."""
    x = need(node, arrays, 0)
    return [np.clip(x * real(node, "alpha", 0.2) + real(node, "beta", 0.5), 0, 1)]


@kernel("HardSwish")
def hard_swish(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x HardSigmoid(x) with alpha 1/6, beta 1/2."""
    x = need(node, arrays, 0)
    return [x * np.clip(x / 6 + 0.5, 0, 1)]


@kernel("Tanh")
def tanh(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The hyperbolic tangent."""
    return [np.tanh(need(node, arrays, 0))]


@kernel("Softplus")
def softplus_kernel(node: Node, arrays: list[Array | None]) -> list[Array]:
    """log(1 + exp(x))."""
    return [softplus(need(node, arrays, 0))]


@kernel("Softsign")
def softsign(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x / (1 + |x|)."""
    x = need(node, arrays, 0)
    return [x / (1 + np.abs(x))]


@kernel("Mish")
def mish(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x tanh(softplus(x))."""
    x = need(node, arrays, 0)
    return [x * np.tanh(softplus(x))]


@kernel("Shrink", attrs="bias lambd")
def shrink(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Towards zero by bias outside [-lambd, lambd], 0 inside."""
    x, bias, lambd = need(node, arrays, 0), real(node, "bias", 0.0), real(node, "lambd", 0.5)
    return [np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, np.zeros_like(x)))]


@kernel("Softmax", attrs="axis")
def softmax(node: Node, arrays: list[Array | None]) -> list[Array]:
    """exp(x) over its sum along `axis`."""
    x = need(node, arrays, 0)
    axis = axis_of(node, x.ndim, -1)
    weight = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return [weight / np.sum(weight, axis=axis, keepdims=True)]


@kernel("LogSoftmax", attrs="axis")
def log_softmax(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x - log(sum(exp(x))) along `axis`."""
    x = need(node, arrays, 0)
    axis = axis_of(node, x.ndim, -1)
    shifted = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return [shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))]


@kernel("Hardmax", attrs="axis")
def hardmax(node: Node, arrays: list[Array | None]) -> list[Array]:
    """1 at the first maximum along `axis`, 0 elsewhere."""
    x = need(node, arrays, 0)
    axis = axis_of(node, x.ndim, -1)
    result = np.zeros_like(x)
    np.put_along_axis(result, np.expand_dims(np.argmax(x, axis=axis), axis), 1, axis=axis)
    return [result]
