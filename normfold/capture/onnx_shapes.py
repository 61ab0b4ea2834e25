"""Shapes and types of every value of an ONNX graph, by onnx's own inference on a message without weights.

Native inference divides by what the model says: `onnx_check.check_attributes` has refused what crashes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from normfold.capture.onnx_proto import message_without
from normfold.capture.onnx_wire import CUT
from normfold.graph import Dim, Shape
from normfold.record import Record

_STANDARD = ("", "ai.onnx")


class Typed(NamedTuple):
    """Shape and element type of a value; None for what is unknown, or no dense tensor of numbers."""

    shape: Shape | None
    dtype: np.dtype[Any] | None


def numpy_type(elem_type: int) -> np.dtype[Any] | None:
    """The numpy type of an ONNX element type; None for strings and undefined."""
    if elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return None
    try:
        return np.dtype(ir.DataType(elem_type).numpy())
    except (ValueError, TypeError, KeyError):
        return None


def onnx_type(dtype: np.dtype[Any]) -> ir.DataType:
    """The ONNX element type of a numpy type."""
    return ir.DataType.from_numpy(np.dtype(dtype))


def infer(model: ir.Model, record: Record) -> dict[str, Typed]:
    """Name -> shape and type of the main graph's values.  Symbolic dims keep their names.

    Where what the file says of its values contradicts their computation, the file is not believed (and that is said).
    """
    proto = message_without(model, lambda tensor: tensor.nbytes > CUT)
    listed = {item.name for item in proto.graph.input}
    held = {item.name for item in proto.graph.initializer}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name not in held and name not in listed and tensor is not None:
            sizes = [int(size) for size in tensor.shape.numpy()]
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.dtype.value, sizes))
    declared = _read(proto.graph)
    try:
        inferred = _run(proto, strict=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, TypeError):
        inferred = _distrust(proto, record)
    result = _read(inferred.graph)
    for name, typed in declared.items():
        found = result.get(name)
        if found is None or found.shape is None:
            result[name] = Typed(typed.shape, typed.dtype if found is None else found.dtype or typed.dtype)
    return result


def _run(proto: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, check_type=strict, strict_mode=strict, data_prop=True)


def _distrust(proto: onnx.ModelProto, record: Record) -> onnx.ModelProto:
    """Inference without what the file says of values that can be inferred."""
    stale = {name for node in proto.graph.node if node.domain in _STANDARD for name in node.output}
    kept = [item for item in proto.graph.value_info if item.name not in stale]
    dropped = len(proto.graph.value_info) - len(kept)
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    del twin.graph.value_info[:]
    twin.graph.value_info.extend(kept)
    for item in twin.graph.output:
        if item.name in stale:
            item.type.tensor_type.ClearField("shape")
    try:
        inferred = _run(twin, strict=True)
        record.warn("shapes that the ONNX model states contradict its nodes; those that follow from the nodes are used")
        return inferred
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, TypeError) as error:
        detail = str(error).strip().split("\n")[0][:200]
        record.warn(f"shape inference is incomplete: {detail}")
    try:
        return _run(twin if dropped else proto, strict=False)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, TypeError):
        return proto


def _read(graph: onnx.GraphProto) -> dict[str, Typed]:
    result: dict[str, Typed] = {}
    for item in (*graph.input, *graph.value_info, *graph.output):
        if item.type.HasField("tensor_type"):
            result[item.name] = read_type(item.type.tensor_type)
    return result


def read_type(tensor_type: Any) -> Typed:
    """Shape and type of a TypeProto.Tensor."""
    shape = None
    if tensor_type.HasField("shape"):
        shape = tuple(_dim(dim) for dim in tensor_type.shape.dim)
    return Typed(shape, numpy_type(tensor_type.elem_type))


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None if dim.HasField("dim_param") else None
