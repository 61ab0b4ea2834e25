"""Matrix products.  Convolutions are in `conv`."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import integer, kernel, need, optional, present, real, text, unsupported


@kernel("MatMul")
def matmul(node: Node, arrays: list[Array | None]) -> list[Array]:
    """numpy's matrix product, batched and broadcast."""
    return [np.matmul(need(node, arrays, 0), need(node, arrays, 1))]


@kernel("Gemm", attrs="alpha beta transA transB")
def gemm(node: Node, arrays: list[Array | None]) -> list[Array]:
    """alpha A' B' + beta C, acting on the last axis of an A of any rank."""
    a, b, c = need(node, arrays, 0), need(node, arrays, 1), optional(arrays, 2)
    if integer(node, "transA", 0):
        if a.ndim != 2:
            raise unsupported(node, f"transA of a tensor of rank {a.ndim}")
        a = a.T
    y = np.matmul(a, b.T if integer(node, "transB", 0) else b)
    alpha, beta = real(node, "alpha", 1.0), real(node, "beta", 1.0)
    if alpha != 1.0:
        y = (y * alpha).astype(y.dtype)
    if c is not None and beta != 0.0:
        y = y + (c if beta == 1.0 else (c * beta).astype(y.dtype))
    return [y]


@kernel("Einsum", attrs="equation")
def einsum(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The sum of products that `equation` names."""
    return [np.einsum(text(node, "equation", "").replace(" ", ""), *present(arrays), optimize=True)]
