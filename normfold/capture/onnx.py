"""ONNX -> view: every value, node, constant and sub-graph capture of a model, in the vocabulary of the newest opset."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normfold.capture import onnx_check, onnx_shapes
from normfold.capture.onnx_bodies import norms_inside, read_bodies
from normfold.capture.onnx_fallback import fallback_for
from normfold.capture.onnx_infer import infer_node, normalise
from normfold.capture.onnx_modules import module_path, parameter_name
from normfold.capture.onnx_read import read_model
from normfold.capture.onnx_shapes import Typed, numpy_type
from normfold.graph import Constant, Graph, Node, Value
from normfold.ops.bodies import runner
from normfold.record import Record

CAPTURED = "normfold"
"""Key of what a node or value was when it was captured, in the `meta` of its onnx-ir counterpart."""


OUTPUTS = "normfold.outputs"
"""Key of the graph outputs as the model declared them, in the `meta` of the onnx-ir graph."""


@dataclass(frozen=True)
class CapturedNode:
    """What write-back compares with: the node as the view last knew it to stand in the model.

    slots: how many inputs the view showed; inputs beyond them are the model's own.  captures: what its sub-graphs read.
    bodies: the views of its sub-graphs.
    """

    kind: str
    attrs: dict[str, Any]
    slots: int
    captures: tuple[ir.Value, ...] = ()
    bodies: dict[str, Graph] = field(default_factory=dict[str, Graph])


@dataclass(frozen=True)
class CapturedOutput:
    """A graph output as declared: this is the contract with callers."""

    name: str
    type: ir.TypeProtocol | None
    shape: ir.Shape | None
    doc_string: str | None
    metadata: dict[str, str]


def from_onnx(
    model: ir.Model | onnx.ModelProto | str | Path,
    *,
    keep_overridable: bool = False,
    record: Record | None = None,
    folder: Path | None = None,
) -> Graph:
    """The view of an ONNX model; `graph.origin` is an ir.Model that `to_model` writes the edited view back into.

    model: a path (weights stay on disk), a ModelProto (not touched; `folder` is where its external data lies), or an ir.Model
      (owned from now on).
    keep_overridable: initializers that are also graph inputs stay overridable even where all are listed.
    Raises InputRefused, in one line, for a model that is malformed or not understood.
    """
    record = Record() if record is None else record
    source = read_model(model, record, folder)
    return _Builder(source, record, keep_overridable).build()


class _Builder:
    """One walk over the nodes of the main graph."""

    def __init__(self, model: ir.Model, record: Record, keep_overridable: bool) -> None:
        self.model, self.record = model, record
        self.opset = model.opset_imports[""]
        self.graph = Graph(model.graph.name or "", origin=model)
        self.graph.opset = self.opset
        self.graph.infer = infer_node
        self.types = onnx_shapes.infer(model, record)
        self.values: dict[ir.Value, Value] = {}
        self.overridable = self._overridable(keep_overridable)

    def _overridable(self, keep: bool) -> frozenset[str]:
        """Names of initializers whose values callers may replace; see the contract in from_onnx."""
        initializers = self.model.graph.initializers
        listed = [value.name or "" for value in self.model.graph.inputs if value.name in initializers]
        if not listed:
            return frozenset()
        if len(listed) == len(initializers) and not keep:
            self.record.warn(
                "all initializers are also listed as graph inputs, as old exporters did: they are taken as constants; "
                "--keep-overridable leaves them to the caller"
            )
            return frozenset()
        return frozenset(listed)

    def build(self) -> Graph:
        graph, source = self.graph, self.model.graph
        if self.model.ir_version > onnx.IR_VERSION:
            self.record.warn(f"IR version {self.model.ir_version} is newer than this onnx package knows ({int(onnx.IR_VERSION)})")
        if self.opset > onnx.defs.onnx_opset_version():
            self.record.warn(f"opset {self.opset} is newer than this onnx package knows ({onnx.defs.onnx_opset_version()})")
        initializers = source.initializers
        for value in source.inputs:
            if value.name not in initializers:
                graph.inputs.append(self._value(value))
        for value in initializers.values():
            self._constant(value, value.const_value)
        nodes = [node for node in source if not self._constant_node(node)]
        for node in nodes:
            for value in node.outputs:
                if value.name:
                    self._value(value)
        self._reserve_inner_names()
        for node in nodes:
            graph.append(self._node(node))
        for value in source.outputs:
            graph.outputs.append(self.values[value])
        source.meta[OUTPUTS] = tuple(
            CapturedOutput(value.name or "", value.type, value.shape, value.doc_string, dict(value.metadata_props))
            for value in source.outputs
        )
        self._check_weights()
        return graph

    def _value(self, origin: ir.Value) -> Value:
        name = origin.name or ""
        typed = self.types.get(name, Typed(None, None))
        value = self.graph.value(name, typed.shape, typed.dtype, origin=origin)
        self.values[origin] = value
        return value

    def _constant(self, origin: ir.Value, tensor: ir.TensorProtocol | None, *, initializer: bool = True) -> None:
        if tensor is None:
            raise onnx_check.malformed(f"the initializer {onnx_check.show(origin.name or '')} has no data")
        dtype = numpy_type(tensor.dtype.value)
        shape = tuple(int(size) for size in tensor.shape.numpy())
        const = Constant(load=tensor.numpy, shape=shape, dtype=np.dtype(object) if dtype is None else dtype)
        name = origin.name or ""
        value = self.graph.constant(name, const, param=parameter_name(name) if initializer else "", origin=origin)
        value.dtype = dtype
        origin.meta[CAPTURED] = const
        self.values[origin] = value
        if name in self.overridable:
            self.graph.pinned.add(value)

    def _constant_node(self, node: ir.Node) -> bool:
        """Constant nodes become constants and vanish from the view."""
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            return False
        tensor = None
        if len(node.attributes) == 1:
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is None:
            raise onnx_check.malformed(f"the Constant {onnx_check.show(node.outputs[0].name or '')} needs exactly one value")
        self._constant(node.outputs[0], tensor, initializer=False)
        return True

    def _reserve_inner_names(self) -> None:
        """Names inside sub-graphs must stay free: ONNX allows no shadowing."""
        inner: dict[str, None] = {}
        for graph in self.model.graph.subgraphs():
            names = [*graph.initializers, *(value.name for value in graph.inputs)]
            names += [value.name for node in graph for value in node.outputs]
            inner.update(dict.fromkeys(name for name in names if name))
        outer = {value.name for value in self.values.values()}
        for name in inner:
            if name not in outer:
                self.graph.claim(name)

    def _node(self, origin: ir.Node) -> Node:
        inputs = [None if value is None else self.values[value] for value in origin.inputs]
        outputs = [self.values[value] if value.name else self._absent(origin, value) for value in origin.outputs]
        captured = self._captures(origin)
        captures = tuple(self.values[value] for value in captured)
        node = Node(origin.op_type, inputs, outputs, name=origin.name or "", captures=captures, origin=origin)
        normalise(node, self.opset, self.graph)
        node.fallback = fallback_for(node, origin, self.opset, captured)
        node.module = module_path(origin, node)
        node.bodies = read_bodies(node, origin, captured, self.graph, self.model)
        if node.bodies:
            node.fallback = runner(node)
        elif count := norms_inside(origin):
            self.record.warn(
                f"{count} norms inside {onnx_check.show(origin.name or origin.op_type)} ({origin.op_type}) are left as they are: "
                "what it holds could not be looked at as a graph of its own"
            )
        origin.meta[CAPTURED] = CapturedNode(node.kind, dict(node.attrs), len(node.inputs), tuple(captured), node.bodies)
        return node

    def _absent(self, origin: ir.Node, value: ir.Value) -> Value:
        """An optional output that the model left out."""
        made = self.graph.value(f"{origin.outputs[0].name or origin.name or origin.op_type}_unused", origin=value)
        self.values[value] = made
        return made

    def _captures(self, origin: ir.Node) -> list[ir.Value]:
        """Values of the main graph that sub-graphs of `origin` read, at any depth."""
        found: dict[ir.Value, None] = {}
        for graph in onnx_check.subgraphs(origin):
            for node in onnx_check.all_nodes(graph):
                found.update(dict.fromkeys(value for value in node.inputs if value in self.values))
            for inner in (graph, *graph.subgraphs()):
                found.update(dict.fromkeys(value for value in inner.outputs if value in self.values))
        return list(found)

    def _check_weights(self) -> None:
        """Ranks and sizes of convolution weights and norm parameters, once the shapes are known."""
        for node in self.graph.nodes:
            if node.kind in ("Conv", "ConvTranspose"):
                _check_conv(node)
            elif node.kind == "BatchNormalization":
                _check_batch_normalization(node)


def _check_conv(node: Node) -> None:
    x, weight = node.input(0), node.input(1)
    if x is None or weight is None:
        raise onnx_check.malformed(f"{node.kind} {onnx_check.show(node.name)} needs an input and a weight")
    if weight.shape is None or weight.const is None:
        return
    if len(weight.shape) < 3 or (x.rank is not None and x.rank != len(weight.shape)):
        raise onnx_check.malformed(
            f"{node.kind} {onnx_check.show(node.name)} has a weight of dims {list(weight.shape)} for an input of rank {x.rank}"
        )
    group, sizes = node.attrs["group"], weight.const.shape
    outer, inner = (sizes[0], sizes[1] * group) if node.kind == "Conv" else (sizes[0], sizes[0])
    channels = None if x.shape is None else x.shape[1]
    if outer % group or (isinstance(channels, int) and channels != inner):
        raise onnx_check.malformed(
            f"{node.kind} {onnx_check.show(node.name)} has a weight of dims {list(sizes)}, group {group}, for {channels} channels"
        )


def _check_batch_normalization(node: Node) -> None:
    x = node.input(0)
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    for value in node.inputs[1:5]:
        if value is None:
            raise onnx_check.malformed(f"BatchNormalization {onnx_check.show(node.name)} lacks a parameter")
        if value.const is None:
            continue
        if len(value.const.shape) != 1 or (isinstance(channels, int) and value.const.shape[0] != channels):
            raise onnx_check.malformed(
                f"BatchNormalization {onnx_check.show(node.name)} has the parameter {onnx_check.show(value.name)} of dims "
                f"{list(value.const.shape)} for {channels} channels"
            )
