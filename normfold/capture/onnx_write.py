"""View -> ONNX: the model that a view was captured from is edited in place until it says what the view says.

What the view did not change is not touched: nodes, names, metadata, sub-graphs, and weights that lie on disk stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfold.capture.onnx import CAPTURED, OUTPUTS, CapturedNode, CapturedOutput
from normfold.capture.onnx_bodies import write_body
from normfold.capture.onnx_check import all_nodes, subgraphs
from normfold.capture.onnx_make import contradicts, equal, initializer, ir_shape, ir_shape_of, ir_type, tensor
from normfold.capture.onnx_spell import Spelling, spell_attributes, spell_node, split_kind
from normfold.capture.static import STATIC
from normfold.graph import Constant, Graph, Node, Value


def to_model(graph: Graph) -> ir.Model:
    """Write the edits of the view into `graph.origin` and return it.

    Names, order and types of graph inputs and outputs, opset, IR version and metadata stay.  It may be called again after
    further edits, and with a clone of the view: what counts is the view that is written last.
    Raises InputRefused where the model's opset has no spelling for a node that a rewrite made.
    """
    return _Writer(graph).write()


def begin_model(view: Graph, like: ir.Model) -> None:
    """Give a body that a rewrite made an empty model to be written into, with its outputs as it declares them."""
    graph = ir.Graph([], [], nodes=[], opset_imports=like.opset_imports, name=view.name)
    declared = ((value.name, ir_type(value), ir_shape_of(value)) for value in view.outputs)
    graph.meta[OUTPUTS] = tuple(CapturedOutput(name, kind, shape, None, {}) for name, kind, shape in declared)
    view.origin = ir.Model(graph, ir_version=like.ir_version)


class _Writer:
    """One run of `to_model`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.model: ir.Model = graph.origin
        self.opset = self.model.opset_imports[""]
        target = self.model.graph
        self.initializers = list(target.initializers.values())
        self.constant_nodes = [node for node in target if _is_constant(node)]
        self.listed = {value for value in target.inputs if value.is_initializer()}
        self.made: list[ir.Value] = []  # new initializers
        self.found: dict[Value, ir.Value] = {}

    def write(self) -> ir.Model:
        target = self.model.graph
        target.initializers.clear()  # so that names can move freely; they are registered again below
        self._inputs()
        nodes = [self._node(node) for node in self.graph.nodes]
        outputs = self._outputs(nodes)
        self._place(nodes, outputs)
        self._register(outputs)
        target.outputs.clear()
        target.outputs.extend(outputs)
        return self.model

    # ---- values ---------------------------------------------------------------------------------------------------

    def _inputs(self) -> None:
        """Those of a model stay; those of a body may have been exchanged."""
        target = self.model.graph.inputs
        held = [value for value in target if value not in self.listed]
        wanted = [self._new_input(value) if value.origin is None else self._existing(value) for value in self.graph.inputs]
        if len(wanted) != len(held) or any(a is not b for a, b in zip(wanted, held, strict=True)):
            listed = [value for value in target if value in self.listed]
            target.clear()
            target.extend([*wanted, *listed])

    def _new_input(self, value: Value) -> ir.Value:
        value.origin = self.found[value] = made = ir.Value(name=value.name, type=ir_type(value), shape=ir_shape_of(value))
        return made

    def value(self, value: Value) -> ir.Value:
        """The counterpart of a value of the view."""
        found = self.found.get(value)
        if found is None:
            assert value.const is not None, f"{value.name!r} has no producer"
            found = self.found[value] = self._constant(value, value.const)
        return found

    def _existing(self, value: Value) -> ir.Value:
        origin: ir.Value = value.origin
        origin.name = value.name
        self.found[value] = origin
        return origin

    def _constant(self, value: Value, const: Constant) -> ir.Value:
        origin: ir.Value | None = value.origin
        if origin is not None and origin.name == value.name and origin.meta.get(CAPTURED) is const:
            return origin
        made = initializer(value.name, tensor(const))
        made.meta[CAPTURED] = const
        value.origin = made
        self.made.append(made)
        return made

    # ---- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> ir.Node:
        origin: ir.Node | None = node.origin
        captured: CapturedNode | None = None if origin is None else origin.meta.get(CAPTURED)
        if (
            origin is None
            or captured is None
            or _bare(captured.kind) != _bare(node.kind)
            or len(origin.outputs) != len(node.outputs)
        ):
            return self._new(node)
        self._rewire(node, origin, captured)
        changed = [key for key in node.attrs if _changed(node, key, captured)]
        spelling = Spelling()
        if changed:
            spell_attributes(node, changed, self.opset, spelling)
        for attribute in spelling.attributes:
            origin.attributes[attribute.name] = attribute
        for key in captured.attrs:
            if key not in node.attrs and key in origin.attributes:
                del origin.attributes[key]
        self._extra_inputs(node, origin, spelling)
        _refresh_kernel(node, origin)
        for value, held in zip(node.outputs, origin.outputs, strict=True):
            self._output(value, held)
        if node.name:
            origin.name = node.name
        outer = {value.name: self.value(value) for value in node.captures}
        if any(captured.bodies.get(name) is not view for name, view in node.bodies.items()):
            for name, view in node.bodies.items():
                origin.attributes[name] = write_body(view, name, outer, self.model)
        else:
            self._rewire_captures(node, origin, captured)
        captures = tuple(outer.values())
        origin.meta[CAPTURED] = CapturedNode(node.kind, dict(node.attrs), len(node.inputs), captures, node.bodies)
        return origin

    def _rewire(self, node: Node, origin: ir.Node, captured: CapturedNode) -> None:
        shorter = captured.slots > len(node.inputs)
        for slot in range(max(len(node.inputs), captured.slots)):
            value = node.input(slot)
            wanted = None if value is None else self.value(value)
            held = origin.inputs[slot] if slot < len(origin.inputs) else None
            if wanted is held:
                continue
            if slot >= len(origin.inputs):
                origin.resize_inputs(slot + 1)
            origin.replace_input_with(slot, wanted)
            shorter = shorter or wanted is None
        if shorter:  # an empty name at the end means the same, and crashes fusions of ONNX Runtime (SkipLayerNormFusion)
            count = len(origin.inputs)
            while count and origin.inputs[count - 1] is None:
                count -= 1
            origin.resize_inputs(count)

    def _rewire_captures(self, node: Node, origin: ir.Node, captured: CapturedNode) -> None:
        """Nodes of sub-graphs read the new counterpart of a value whose producer was replaced."""
        for old, value in zip(captured.captures, node.captures, strict=True):
            new = self.value(value)
            if new is not old:
                inner = {item for graph in subgraphs(origin) for item in all_nodes(graph)}
                for use in old.uses():
                    if use.node in inner:
                        use.node.replace_input_with(use.idx, new)

    def _output(self, value: Value, held: ir.Value) -> None:
        if held.name or value.uses or self.graph.is_output(value):  # an optional output that nobody reads stays absent
            held.name = value.name
        if held.shape is not None and value.shape is not None and contradicts(held.shape, value.shape):
            held.shape = ir_shape(value.shape)
        value.origin = held
        self.found[value] = held

    def _new(self, node: Node) -> ir.Node:
        spelling = spell_node(node, self.opset)
        domain, name = split_kind(node.kind)
        inputs = [
            None if value is None or slot in spelling.dropped else self.value(value) for slot, value in enumerate(node.inputs)
        ]
        while inputs and inputs[-1] is None:
            inputs.pop()
        made = ir.Node(
            domain,
            name,
            inputs,
            spelling.attributes,
            num_outputs=len(node.outputs),
            name=node.name or f"{name}_{node.output.name}",
        )
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        if node.module:
            made.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", node.module, node.output.name])
        self._extra_inputs(node, made, spelling)
        for value, held in zip(node.outputs, made.outputs, strict=True):
            held.name = value.name
            held.type, held.shape = ir_type(value), ir_shape_of(value)
            value.origin = held
            self.found[value] = held
        outer = {value.name: self.value(value) for value in node.captures}
        for name, view in node.bodies.items():
            made.attributes[name] = write_body(view, name, outer, self.model)
        made.meta[CAPTURED] = CapturedNode(node.kind, dict(node.attrs), len(node.inputs), tuple(outer.values()), node.bodies)
        node.origin = made
        return made

    def _extra_inputs(self, node: Node, target: ir.Node, spelling: Spelling) -> None:
        """Parameters that the view holds as attributes and this opset reads as inputs."""
        for slot, array in spelling.inputs.items():
            made = initializer(self.graph.claim(f"{node.output.name}_in{slot}"), ir.Tensor(np.asarray(array, order="C")))
            self.made.append(made)
            if slot >= len(target.inputs):
                target.resize_inputs(slot + 1)
            target.replace_input_with(slot, made)

    # ---- the graph ------------------------------------------------------------------------------------------------

    def _outputs(self, nodes: list[ir.Node]) -> list[ir.Value]:
        """The graph's outputs under the names they were promised by; an Identity where a value cannot carry the name."""
        promised: tuple[CapturedOutput, ...] = self.model.graph.meta[OUTPUTS]
        result: list[ir.Value] = []
        for value, promise in zip(self.graph.outputs, promised, strict=True):
            found = self.value(value)
            if found.name != promise.name or found in result:
                copy = ir.Node("", "Identity", [found], num_outputs=1, name=f"Identity_{promise.name}")
                nodes.append(copy)
                found = copy.outputs[0]
                found.name = promise.name
            if not found.is_graph_input():
                found.type, found.shape, found.doc_string = promise.type, promise.shape, promise.doc_string
                found.metadata_props.update(promise.metadata)
            result.append(found)
        return result

    def _place(self, nodes: list[ir.Node], outputs: list[ir.Value]) -> None:
        """The nodes in the view's order, each Constant node that is still read in front of its first reader."""
        target = self.model.graph
        waiting = {node.outputs[0]: node for node in self.constant_nodes}
        for value in self.found.values():  # Constant nodes that an earlier writing had taken out
            producer = value.producer()
            if producer is not None and value not in waiting and _is_constant(producer):
                waiting[value] = producer
        ordered: list[ir.Node] = []
        for node in nodes:
            for value in _reads(node):
                if value in waiting:
                    ordered.append(waiting.pop(value))
            ordered.append(node)
        ordered += [waiting.pop(value) for value in outputs if value in waiting]
        target.remove(list(target))
        target.extend(ordered)

    def _register(self, outputs: list[ir.Value]) -> None:
        """Initializers that are read, those that callers may override, and the inputs that list them.

        From IR version 4 on a listed initializer is one that callers may override: where all were listed and are taken as
        constants, none stays in the list, or what the rewrites did not touch would become overridable.
        """
        target = self.model.graph
        used = {value for node in target for value in _reads(node)} | set(outputs)
        overridable = {value.origin for value in self.graph.pinned}
        read = [value for node in target for value in node.inputs if value is not None]  # also by what an earlier writing made
        candidates = dict.fromkeys([*self.initializers, *self.found.values(), *self.made, *read])
        kept = [
            value
            for value in candidates
            if value.const_value is not None and value.producer() is None and (value in used or value in overridable)
        ]
        for value in kept:
            target.initializers.add(value)
        whole = self.model.ir_version < 4  # there every initializer had to be listed
        stays = set(kept) if whole else overridable
        wanted = [value for value in target.inputs if value not in self.listed or value in stays]
        if whole:
            present = set(wanted)
            wanted += [value for value in kept if value not in present]
        if len(wanted) != len(target.inputs) or any(a is not b for a, b in zip(wanted, target.inputs, strict=True)):
            target.inputs.clear()
            target.inputs.extend(wanted)


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _reads(node: ir.Node) -> list[ir.Value]:
    """What a node and its sub-graphs read."""
    values = [value for value in node.inputs if value is not None]
    for graph in subgraphs(node):
        values += [value for inner in all_nodes(graph) for value in inner.inputs if value is not None]
    return values


def _bare(kind: str) -> str:
    """An old spelling that can be told by now is the same operation."""
    return kind.removeprefix("legacy::")


def _changed(node: Node, key: str, captured: CapturedNode) -> bool:
    """True when an attribute must be written: not where a constant that the node reads says it."""
    if key in captured.attrs:
        return not equal(captured.attrs[key], node.attrs[key])
    slots = [slot for slot, (name, _) in STATIC.get(node.kind, {}).items() if name == key]
    given = node.input(slots[0]) if slots else None
    return given is None or given.const is None


def _refresh_kernel(node: Node, origin: ir.Node) -> None:
    """kernel_shape repeats the weight's sizes."""
    if node.kind in ("Conv", "ConvTranspose") and "kernel_shape" in origin.attributes:
        weight = node.input(1)
        if weight is not None and weight.const is not None:
            sizes = list(weight.const.shape[2:])
            if list(origin.attributes["kernel_shape"].as_ints()) != sizes:
                origin.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", sizes)
