"""One node of a captured model told again: its spelling and its output shapes, once its inputs are better known.

Whole-graph inference stops where a shape is computed; constant folding computes it, and then the nodes behind it can be told.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from normfold.capture.onnx_attrs import fill_defaults, read_attributes, schema
from normfold.capture.onnx_check import subgraphs
from normfold.capture.onnx_legacy import modernise
from normfold.capture.onnx_shapes import Typed, onnx_type, read_type
from normfold.capture.static import settle, static_shape
from normfold.graph import Array, Graph, Node, Value

_DATA = 64  # elements of a constant that shape inference may want to read
_RETOLD = frozenset(
    f"legacy::{kind}"
    for kind in ("Softmax", "LogSoftmax", "Hardmax", "PRelu", "Add", "Sub", "Mul", "Div", "Pow", "Equal", "Greater", "Less")
)


def normalise(node: Node, opset: int, graph: Graph) -> None:
    """Kind and attributes of `node` from its origin, in today's vocabulary."""
    origin: ir.Node = node.origin
    standard = origin.domain in ("", "ai.onnx")
    node.kind = origin.op_type if standard else f"{origin.domain}::{origin.op_type}"
    try:
        node.attrs = read_attributes(origin, opset)
    except ValueError:  # an element type that numpy has not
        node.kind, standard = f"legacy::{node.kind}", False
    if standard and not node.captures and not any(subgraphs(origin)):
        modernise(node, opset, graph, sum(1 for value in origin.outputs if value.name))
        fill_defaults(node)
        settle(node, graph)


def infer_node(graph: Graph, node: Node) -> None:
    """Improve the output shapes of `node` (and its kind, where an old spelling could not be told) in place.

    This is `Graph.infer` of an ONNX view.  Constants that callers may override are not looked at.
    """
    origin: ir.Node | None = node.origin
    if origin is None or origin.domain not in ("", "ai.onnx") or node.captures or any(subgraphs(origin)):
        return
    opset = graph.opset or 1
    if node.kind in _RETOLD:
        normalise(node, opset, graph)
    found = schema(origin.op_type, opset)
    if found is None or all(static_shape(value) is not None for value in node.outputs):
        return
    proto = ir.serde.serialize_node(origin)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for slot, name in enumerate(proto.input):
        if name:
            proto.input[slot] = key = f"in{slot}"
            described = _describe(graph, node, slot)
            types[key] = onnx.TypeProto() if described is None else described[0]
            if described is not None and described[1] is not None:
                data[key] = ir.serde.serialize_tensor(ir.Tensor(np.asarray(described[1], order="C")))
    opsets = [onnx.helper.make_opsetid("", min(opset, onnx.defs.onnx_opset_version()))]
    try:
        inferred = onnx.shape_inference.infer_node_outputs(found, proto, types, data, opset_imports=opsets)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError, TypeError, KeyError):
        return  # the node breaks its own schema: the runtime will say so
    for name, value in zip(proto.output, node.outputs, strict=False):
        if name in inferred and inferred[name].HasField("tensor_type"):
            _improve(value, read_type(inferred[name].tensor_type))


def _describe(graph: Graph, node: Node, slot: int) -> tuple[onnx.TypeProto, Array | None] | None:
    """Type and, where it is small and constant, content of an input: as the view reads it, else as only the model spells it."""
    if slot < len(node.inputs):
        value = node.inputs[slot]
        if value is None or value.dtype is None:
            return None
        sizes = None if value.shape is None else list(value.shape)
        const = None if value in graph.pinned else value.const
        array = None if const is None or const.size > _DATA else const.rounded().read()
        return onnx.helper.make_tensor_type_proto(onnx_type(value.dtype).value, sizes), array
    hidden = node.origin.inputs[slot]
    tensor = None if hidden is None else ir.convenience.get_const_tensor(hidden)
    if tensor is None:
        return None
    kind = onnx.helper.make_tensor_type_proto(tensor.dtype.value, [int(size) for size in tensor.shape.numpy()])
    return kind, tensor.numpy() if tensor.size <= _DATA else None


def _improve(value: Value, found: Typed) -> None:
    """Put in sizes that became known; names stay where nothing better is known."""
    value.dtype = value.dtype or found.dtype
    if found.shape is None or (value.shape is not None and len(found.shape) != len(value.shape)):
        return
    if value.shape is None:
        value.shape = found.shape
    else:
        pairs = zip(value.shape, found.shape, strict=True)
        value.shape = tuple(
            new if old is None or (isinstance(new, int) and not isinstance(old, int)) else old for old, new in pairs
        )
