"""Reductions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.layout import positive_axes
from normfold.ops.kernels.registry import integer, ints, kernel, need, unsupported

_Reduction = Callable[[Array, tuple[int, ...]], Array]


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    return np.sum(x, axis=axes, keepdims=True, dtype=x.dtype)


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    if x.dtype.kind in "iu":
        count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
        return np.trunc(np.sum(x, axis=axes, keepdims=True) / count).astype(x.dtype)
    return np.mean(x, axis=axes, keepdims=True, dtype=x.dtype)


def _max(x: Array, axes: tuple[int, ...]) -> Array:
    return np.max(x, axis=axes, keepdims=True)


def _min(x: Array, axes: tuple[int, ...]) -> Array:
    return np.min(x, axis=axes, keepdims=True)


def _prod(x: Array, axes: tuple[int, ...]) -> Array:
    return np.prod(x, axis=axes, keepdims=True, dtype=x.dtype)


def _l1(x: Array, axes: tuple[int, ...]) -> Array:
    return _sum(np.abs(x), axes)


def _l2(x: Array, axes: tuple[int, ...]) -> Array:
    return np.sqrt(_sum(x * x, axes)).astype(x.dtype)


def _sum_square(x: Array, axes: tuple[int, ...]) -> Array:
    return _sum(x * x, axes)


def _log_sum(x: Array, axes: tuple[int, ...]) -> Array:
    return np.log(_sum(x, axes)).astype(x.dtype)


def _log_sum_exp(x: Array, axes: tuple[int, ...]) -> Array:
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    return np.log(_sum(np.exp(x - top), axes)) + top


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceProd": _prod,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
}


def _register(kind: str, function: _Reduction) -> None:
    @kernel(kind, attrs="axes keepdims noop_with_empty_axes")
    def run(node: Node, arrays: list[Array | None]) -> list[Array]:
        x, axes = need(node, arrays, 0), ints(node, arrays, "axes", 1) or ()
        if not axes and integer(node, "noop_with_empty_axes", 0):
            if kind not in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
                raise unsupported(node, "no axes and noop_with_empty_axes 1")  # specifications differ on the elementwise part
            return [x]
        axes = positive_axes(node, axes, x.ndim) if axes else tuple(range(x.ndim))
        result = function(x, axes)
        return [result if integer(node, "keepdims", 1) else np.squeeze(result, axis=axes)]


for _kind, _function in _REDUCTIONS.items():
    _register(_kind, _function)
