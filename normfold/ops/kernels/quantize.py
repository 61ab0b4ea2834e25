"""Linear quantization."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.norms import along
from normfold.ops.kernels.registry import axis_of, integer, kernel, need, optional, unsupported


def _spread(node: Node, parameter: Array, x: Array) -> Array:
    """A scale or zero point shaped to broadcast over x: one for all, or one per index of `axis`."""
    if integer(node, "block_size", 0):
        raise unsupported(node, f"block_size {node.attrs['block_size']}")
    if parameter.size == 1:
        return parameter.reshape(())
    return along(parameter, x.ndim, axis_of(node, x.ndim, 1))


@kernel("DequantizeLinear", attrs="axis block_size output_dtype")
def dequantize_linear(node: Node, arrays: list[Array | None]) -> list[Array]:
    """(x - zero_point) * scale."""
    x, scale, zero = need(node, arrays, 0), need(node, arrays, 1), optional(arrays, 2)
    if x.dtype.kind not in "iu":
        raise unsupported(node, f"type {x.dtype}")
    shifted = x.astype(np.int64) - (0 if zero is None else _spread(node, zero.astype(np.int64), x))
    return [shifted.astype(scale.dtype) * _spread(node, scale, x)]


@kernel("QuantizeLinear", attrs="axis block_size output_dtype precision saturate")
def quantize_linear(node: Node, arrays: list[Array | None]) -> list[Array]:
    """round(x / scale) + zero_point, saturated; ties go to even."""
    x, scale, zero = need(node, arrays, 0), need(node, arrays, 1), optional(arrays, 2)
    wanted: Any = node.attrs.get("output_dtype")
    kind = zero.dtype if zero is not None else np.dtype(wanted or np.uint8)
    if kind.kind not in "iu":
        raise unsupported(node, f"type {kind}")
    limits = np.iinfo(kind)
    level = np.rint(x / _spread(node, scale, x)) + (0 if zero is None else _spread(node, zero.astype(x.dtype), x))
    return [np.clip(level, limits.min, limits.max).astype(kind)]


@kernel("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node, arrays: list[Array | None]) -> list[Array]:
    """uint8 over the range of x widened to hold 0: levels, scale, zero point."""
    x = need(node, arrays, 0)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255 or 1.0
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return [np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8), np.asarray(scale, x.dtype), zero.astype(np.uint8)]


@kernel("MatMulInteger")
def matmul_integer(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The product of integers less their zero points, in int32; zero points per row of A or column of B."""
    a, b = need(node, arrays, 0).astype(np.int32), need(node, arrays, 1).astype(np.int32)
    a_zero, b_zero = optional(arrays, 2), optional(arrays, 3)
    if a_zero is not None:
        a = a - (a_zero.astype(np.int32)[..., None] if a_zero.ndim == 1 and a_zero.size > 1 else a_zero.astype(np.int32))
    if b_zero is not None:
        b = b - b_zero.astype(np.int32)
    return [np.matmul(a, b)]
