"""Ops that make tensors from shapes and parameters."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import attr_ints, integer, ints, kernel, need, optional, unsupported


@kernel("Shape", attrs="start end")
def shape(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The sizes of x from axis `start` to `end`."""
    x, end = need(node, arrays, 0), node.attrs.get("end")
    return [np.asarray(x.shape[integer(node, "start", 0) : None if end is None else int(end)], dtype=np.int64)]


@kernel("Size")
def size(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The number of elements."""
    return [np.asarray(need(node, arrays, 0).size, dtype=np.int64)]


@kernel("Constant", attrs="value value_float value_floats value_int value_ints")
def constant(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The attribute's value."""
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for key in (name, f"{name}s"):
            if key in node.attrs:
                return [np.asarray(node.attrs[key], dtype=dtype)]
    if "value" not in node.attrs:
        raise unsupported(node, "no dense value")
    return [np.asarray(node.attrs["value"])]


@kernel("ConstantOfShape", attrs="value shape")
def constant_of_shape(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Every element is the one of `value`, float32 0 when absent."""
    wanted = ints(node, arrays, "shape", 0)
    if wanted is None:
        raise unsupported(node, "no shape")
    value = np.asarray(node.attrs.get("value", np.zeros(1, np.float32))).reshape(())
    return [np.full(wanted, value, dtype=value.dtype)]


@kernel("Range", attrs="start limit delta stash_type")
def range_(node: Node, arrays: list[Array | None]) -> list[Array]:
    """start + i * delta for i < ceil((limit - start) / delta)."""
    start, limit, delta = (
        np.asarray(node.attrs[name] if name in node.attrs else need(node, arrays, slot)).reshape(())
        for slot, name in enumerate(("start", "limit", "delta"))
    )
    count = max(0, int(np.ceil((limit.astype(np.float64) - start) / delta)))
    return [(start + np.arange(count).astype(start.dtype) * delta).astype(start.dtype)]


@kernel("EyeLike", attrs="k dtype")
def eye_like(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Ones on diagonal k of a matrix of x's shape."""
    x = need(node, arrays, 0)
    if x.ndim != 2:
        raise unsupported(node, f"rank {x.ndim}")
    return [np.eye(*x.shape, k=integer(node, "k", 0), dtype=node.attrs.get("dtype") or x.dtype)]


@kernel("NonZero")
def non_zero(node: Node, arrays: list[Array | None]) -> list[Array]:
    """[rank, count], row-major order."""
    x = need(node, arrays, 0)
    return [np.stack(np.nonzero(np.atleast_1d(x))).astype(np.int64)[: x.ndim]]


@kernel("OneHot", attrs="axis depth")
def one_hot(node: Node, arrays: list[Array | None]) -> list[Array]:
    """values[1] where the index is met (negative ones count from depth), values[0] elsewhere."""
    indices, values = need(node, arrays, 0).astype(np.int64), need(node, arrays, 2)
    depth = ints(node, arrays, "depth", 1)
    if depth is None:
        raise unsupported(node, "no depth")
    axis = integer(node, "axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    steps = np.arange(depth[0]).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    wrapped = np.where(indices < 0, indices + depth[0], indices)
    return [np.where(np.expand_dims(wrapped, axis) == steps, values[1], values[0])]


@kernel("HannWindow", "HammingWindow", "BlackmanWindow", attrs="periodic output_datatype size")
def window(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The cosine windows, periodic (default) or symmetric, in float64 or the type asked for."""
    length = ints(node, arrays, "size", 0)
    if length is None:
        raise unsupported(node, "no size")
    weights = {
        "HannWindow": (0.5, -0.5, 0.0),
        "HammingWindow": (25 / 46, -21 / 46, 0.0),
        "BlackmanWindow": (0.42, -0.5, 0.08),
    }[node.kind]
    turns = 2 * np.pi * np.arange(length[0]) / (length[0] if integer(node, "periodic", 1) else max(length[0] - 1, 1))
    result = sum(weight * np.cos(order * turns) for order, weight in enumerate(weights))
    return [np.asarray(result, dtype=node.attrs.get("output_datatype") or np.float32)]


@kernel("Compress", attrs="axis")
def compress(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The slices along `axis` (of the flat tensor when absent) where the condition holds."""
    x, condition = need(node, arrays, 0), need(node, arrays, 1)
    axis = attr_ints(node, "axis")
    return [np.compress(condition, x, axis=None if axis is None else axis[0])]


@kernel("Unique", attrs="axis sorted")
def unique(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Distinct elements or slices, their first positions, the inverse, the counts."""
    x, axis = need(node, arrays, 0), node.attrs.get("axis")
    values, first, inverse, counts = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=None if axis is None else int(axis)
    )
    inverse = inverse.reshape(-1)
    if not integer(node, "sorted", 1):
        order = np.argsort(first)
        values, first, counts = np.take(values, order, axis=0 if axis is None else int(axis)), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    results: list[Array] = [values, *(item.astype(np.int64) for item in (first, inverse, counts))]
    return results[: max(1, len(node.outputs))]


@kernel("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
def random(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Never evaluated: two runs would differ."""
    raise unsupported(node, "random numbers")


@kernel("Optional", "OptionalHasElement", "OptionalGetElement")
def optional_element(node: Node, arrays: list[Array | None]) -> list[Array]:
    """An optional that holds a tensor, or nothing."""
    x = optional(arrays, 0)
    if node.kind == "OptionalHasElement":
        return [np.asarray(x is not None)]
    return [need(node, arrays, 0)]
