"""Bodies of Loop, Scan and If as views of their own: read, and written back (`normfold.ops.bodies` evaluates them).

What a body reads of the enclosing graph by name is a constant of its view where it is a constant there, and an input otherwise.
The inputs and outputs of a view keep their values, so a rewrite of the body keeps what one step computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from normfold.capture.onnx_check import all_nodes, subgraphs
from normfold.capture.onnx_shapes import onnx_type
from normfold.capture.tidy import tidy
from normfold.errors import NormfoldError
from normfold.graph import Graph, Node, Value
from normfold.load.quiet import quiet

_NORMS = frozenset(
    "BatchNormalization InstanceNormalization GroupNormalization LayerNormalization RMSNormalization LpNormalization".split()
)
_HOLDERS = frozenset(("Loop", "Scan", "If"))
_PRODUCTS = frozenset(("Gemm", "MatMul"))


def read_bodies(node: Node, origin: ir.Node, captured: Sequence[ir.Value], graph: Graph, model: ir.Model) -> dict[str, Graph]:
    """Views of the bodies of `node` by attribute name, where norms stand in them, or products in that of a loop.

    Empty where one cannot be viewed.

    captured: what the bodies read of the enclosing graph, whose views are `node.captures`.
    """
    from normfold.capture.onnx import from_onnx

    if node.kind not in _HOLDERS or not (norms_inside(origin) or _steps(node, origin)):
        return {}
    if node.kind == "Scan" and model.opset_imports.get("", 9) < 9:  # it had a batch axis of its own, and lengths in front
        return {}
    graphs = {name: item.as_graph() for name, item in origin.attributes.items() if item.type == ir.AttributeType.GRAPH}
    views: dict[str, Graph] = {}
    for name, body in graphs.items():
        try:
            proto = _standalone(node, body, dict(zip(captured, node.captures, strict=True)), graph, model)
            views[name] = from_onnx(proto)
        except (NormfoldError, KeyError, TypeError, ValueError):
            return {}
        tidy(views[name])
    return views


def _steps(node: Node, origin: ir.Node) -> bool:
    """True for a loop whose steps multiply by matrices: it may be a recurrent layer, or project its input."""
    return node.kind != "If" and any(inner.op_type in _PRODUCTS for body in subgraphs(origin) for inner in body)


def norms_inside(origin: ir.Node) -> int:
    """How many norms stand in the sub-graphs of a node, at any depth."""
    return sum(inner.op_type in _NORMS for body in subgraphs(origin) for inner in all_nodes(body))


def _standalone(node: Node, body: ir.Graph, outer: Mapping[ir.Value, Value], graph: Graph, model: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_graph(body)
    proto.name = proto.name or "body"
    if node.kind == "Scan":
        _type_scan_inputs(node, proto)
    read = {name for inner in all_nodes(body) for value in inner.inputs if value is not None and (name := value.name)}
    for held in outer.values():
        if held.name not in read:
            continue
        if held.const is not None and held not in graph.pinned:
            proto.initializer.append(
                ir.serde.serialize_tensor(ir.Tensor(np.asarray(held.const.read(), order="C"), name=held.name))
            )
        else:
            if held.dtype is None:
                raise TypeError(held.name)
            kind = onnx_type(held.dtype).value
            proto.input.append(onnx.helper.make_tensor_value_info(held.name, kind, held.shape))
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return onnx.helper.make_model(proto, opset_imports=opsets, ir_version=model.ir_version)


def _type_scan_inputs(node: Node, proto: onnx.GraphProto) -> None:
    """Inputs of a Scan's body that declare no type have that of what the node reads: whole states, slices of the rest."""
    count = int(node.attrs["num_scan_inputs"])
    axes = node.attrs.get("scan_input_axes") or (0,) * count
    states = len(node.inputs) - count
    for slot, (value, item) in enumerate(zip(node.inputs, proto.input, strict=True)):
        if item.HasField("type") or value is None or value.dtype is None:
            continue
        shape = value.shape
        if shape is not None and slot >= states:
            axis = int(axes[slot - states]) % len(shape)
            shape = shape[:axis] + shape[axis + 1 :]
        item.CopyFrom(onnx.helper.make_tensor_value_info(item.name, onnx_type(value.dtype).value, shape))


# ---- writing ---------------------------------------------------------------------------------------------------------------


def write_body(view: Graph, name: str, outer: Mapping[str, ir.Value], model: ir.Model) -> ir.Attr:
    """The attribute `name` that holds `view` as a graph of `model`, reading the values of `outer` by name."""
    from normfold.capture.onnx_write import begin_model, to_model

    twin = view.clone()
    twin.round_constants()
    if twin.origin is None:
        begin_model(twin, model)
    body = ir.serde.serialize_graph(to_model(twin).graph)
    for given in [item for item in body.input if item.name in outer]:
        body.input.remove(given)
    for constant in [item for item in body.initializer if item.name in outer]:
        body.initializer.remove(constant)
    holder = onnx.helper.make_node("If", [], [])
    holder.attribute.append(onnx.helper.make_attribute(name, body))
    wrapper = onnx.GraphProto(name="wrapper", node=[holder])
    wrapper.input.extend(onnx.ValueInfoProto(name=item) for item in outer)
    with quiet("onnx_ir"):
        made = ir.serde.deserialize_graph(wrapper)
    for value in list(made.inputs):
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, outer[str(value.name)])
    (node,) = made
    return ir.AttrGraph(name, node.attributes[name].as_graph())
