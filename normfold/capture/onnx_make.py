"""Values and shapes of onnx-ir made from those of the view."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.capture.onnx_shapes import onnx_type
from normfold.graph import Array, Constant, Shape, Value


def initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A value that holds `tensor`, not yet registered in a graph."""
    tensor.name = name
    sizes = [int(size) for size in tensor.shape.numpy()]
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(sizes), const_value=tensor)


def tensor(const: Constant) -> ir.TensorProtocol:
    """The constant in its stored type; rounded when it is written, so that only one copy exists until then."""

    def read() -> ir.Tensor[Array]:
        return ir.Tensor(np.asarray(const.rounded().read(), order="C"))

    return ir.LazyTensor(read, dtype=onnx_type(const.dtype), shape=ir.Shape(const.shape))


def ir_shape(shape: Shape) -> ir.Shape:
    """Sizes, names and unknown sizes."""
    return ir.Shape(list(shape))


def ir_type(value: Value) -> ir.TensorType | None:
    """The declared type of a value, None where it is not known."""
    return None if value.dtype is None else ir.TensorType(onnx_type(value.dtype))


def ir_shape_of(value: Value) -> ir.Shape | None:
    """The declared shape of a value; ONNX has none without a type."""
    return None if value.shape is None or value.dtype is None else ir_shape(value.shape)


def contradicts(held: ir.Shape, shape: Shape) -> bool:
    """True when what the model states of a value is no longer so."""
    if len(held) != len(shape):
        return True
    return any(isinstance(old, int) and isinstance(new, int) and old != new for old, new in zip(held, shape, strict=True))


def equal(left: Any, right: Any) -> bool:
    """Equality of attribute values, arrays included."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return (
            isinstance(left, np.ndarray)
            and isinstance(right, np.ndarray)
            and left.dtype == right.dtype
            and np.array_equal(left, right)
        )
    return bool(left == right)
