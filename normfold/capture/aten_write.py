"""Writes an edited view back as an ExportedProgram.

A new FX graph is made, node by node, from the view: a call that is as captured is written again with its (perhaps other)
inputs, anything else is spelled by `aten_lower`.  Parameters that nobody reads any more are not written.  The captured
program, its tensors and its metadata are never written to.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, ExportGraphSignature, InputKind, InputSpec
from torch.fx import Graph as FxGraph
from torch.fx import Node as FxNode

from normfold.capture.aten_arguments import fits, is_captured, is_intact, required_slots, slots_of, trimmed, with_biases
from normfold.capture.aten_lower import Emitter
from normfold.capture.aten_lower_ops import LOWERINGS
from normfold.capture.aten_reader import State
from normfold.capture.aten_state import Constants, legal
from normfold.capture.aten_values import Absent, Call, Literal, Recipe, Slot, Stored, is_size, map_slots, outputs_of, signature_of
from normfold.graph import Graph, Node, Value

_KEPT_META = ("nn_module_stack", "stack_trace")


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def to_program(graph: Graph) -> ExportedProgram:
    """The functional program that computes what `graph` computes; `graph` must come from `from_aten`.

    Constants are rounded to their stored type.  Names of inputs and parameters, the structure of inputs and outputs, dynamic
    sizes and what is written to buffers stay as captured.  Raises ValueError for a node that has no spelling in ATen.
    """
    return _Writer(graph).program()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        assert isinstance(graph.origin, ExportedProgram), "a view made by from_aten was expected"
        self.view, self.ep = graph, graph.origin
        self.fx = FxGraph()
        self.env: dict[int, FxNode] = {}
        self.copies: dict[FxNode, FxNode | None] = {}
        self.live = {v.origin: v for v in graph.values() if isinstance(v.origin, FxNode) and not v.gauges}
        self.constants = Constants(self.ep, graph, self.fx)
        self.emitter = Emitter(self.fx, self.constants.fake_mode, self._operand)
        self.stacks: dict[str, dict[str, Any]] = {}
        for node in graph.nodes:
            if isinstance(node.origin, Call) and node.module not in self.stacks:
                self.stacks[node.module] = {key: node.origin.main.meta[key] for key in _KEPT_META if key in node.origin.main.meta}
        self.asserts = [node for node in self.ep.graph.nodes if _is_assertion(node)]
        self.order = {node: place for place, node in enumerate(self.ep.graph.nodes)}

    def program(self) -> ExportedProgram:
        leading, trailing = self._inputs()
        for node in self.view.nodes:
            if isinstance(node.origin, Call):
                self._assertions(node.origin.order)
            self._emit(node)
        self._assertions(len(self.order))
        output_specs = self._outputs()
        specs = [*leading, *self.constants.specs(), *trailing]
        signature = ExportGraphSignature(specs, output_specs)
        state_dict, constants = self.constants.tensors()
        program = ExportedProgram(
            root=self.ep.graph_module,
            graph=self.fx,
            graph_signature=signature,
            state_dict=state_dict,
            range_constraints=dict(self.ep.range_constraints),
            module_call_graph=self._calls(),
            example_inputs=self.ep.example_inputs,
            constants=constants,
            verifiers=list(self.ep.verifiers),
        )
        # The guards are those of the captured program: what was traced above for metadata adds nothing to the contract.
        vars(program)["_guards_code"] = list(vars(self.ep).get("_guards_code", []))
        program.validate()
        return program

    # ---- inputs and outputs --------------------------------------------------------------------------------------------------

    def _inputs(self) -> tuple[list[InputSpec], list[InputSpec]]:
        """Placeholders of the user's inputs, tokens and custom objects; their specs before and behind the constants."""
        leading: list[InputSpec] = []
        trailing: list[InputSpec] = []
        nodes = [node for node in self.ep.graph.nodes if node.op == "placeholder"]
        by_origin = {value.origin: value for value in self.view.inputs}
        for node, spec in zip(nodes, self.ep.graph_signature.input_specs, strict=True):
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                continue
            copy = self.constants.placeholder(node.name, node.meta, front=False)
            self.copies[node] = copy
            if node in by_origin:
                self.env[id(by_origin[node])] = copy
            (leading if spec.kind == InputKind.TOKEN else trailing).append(spec)
        return leading, trailing

    def _outputs(self) -> list[Any]:
        output = self.ep.graph.output_node()
        values = iter(self.view.outputs)
        results: list[Any] = []
        specs: list[Any] = []
        for argument, spec in zip(outputs_of(self.ep), self.ep.graph_signature.output_specs, strict=True):
            result: Any = argument
            if isinstance(argument, FxNode):
                if isinstance(argument.meta.get("val"), torch.Tensor) or is_size(argument):
                    result = self._operand(next(values))
                else:
                    result = self._copy(argument)
                assert isinstance(result, FxNode), f"output {argument.name!r} is lost"
                if not isinstance(spec.arg, ConstantArgument):
                    spec = dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=result.name))
            results.append(result)
            specs.append(spec)
        written = self.fx.output(tuple(results))
        written.meta.update({key: item for key, item in output.meta.items() if key not in ("val", "from_node")})
        written.meta["val"] = tuple(item.meta.get("val") if isinstance(item, FxNode) else item for item in results)
        return specs

    def _calls(self) -> list[Any]:
        """The root's entry (how inputs and outputs are nested) and those without names of nodes that may be gone."""
        root, *rest = self.ep.module_call_graph
        signature = root.signature
        if signature is not None:
            signature = dataclasses.replace(signature, inputs=[], outputs=[])
        return [dataclasses.replace(root, signature=signature), *(entry for entry in rest if entry.signature is None)]

    # ---- nodes ---------------------------------------------------------------------------------------------------------------

    def _emit(self, node: Node) -> None:
        call = with_biases(node.origin, len(node.inputs)) if isinstance(node.origin, Call) else None
        if isinstance(node.origin, State):
            self.env[id(node.output)] = self.constants.state(node.origin.placeholder)
        elif call is not None and self._as_captured(node, call):
            self._emit_call(node, call)
        elif node.kind in LOWERINGS and "computed" not in node.attrs:
            base = node.origin.main.meta if isinstance(node.origin, Call) else self.stacks.get(node.module, {})
            self.emitter.start({key: base[key] for key in _KEPT_META if key in base}, node.output.name)
            written = LOWERINGS[node.kind](self.emitter, node)
            for value, result in zip(node.outputs, written if isinstance(written, list) else [written], strict=True):
                self.env[id(value)] = result
        else:
            changed = "was changed" if isinstance(node.origin, Call) else "was inserted"
            raise ValueError(f"{node!r} {changed}, and ATen has no spelling for it; kinds that have one: {sorted(LOWERINGS)}")

    def _as_captured(self, node: Node, call: Call) -> bool:
        """True when the captured call, given the node's inputs, still says what the node says."""
        if node.kind != call.kind or node.attrs != call.attrs:
            return False
        slots = {slot.index: slot for slot in slots_of(call)}
        required = required_slots(call)
        for place, value in enumerate(node.inputs):
            if value is None and place in required:
                return False
            if place in call.fixed:
                if value is None or value.const is not call.fixed[place]:
                    return False
            elif place in call.twins:
                if value is not node.inputs[call.twins[place]]:
                    return False
            elif not fits(value, slots.get(place)):
                return False
        return len(node.outputs) == len(call.picks)

    def _emit_call(self, node: Node, call: Call) -> None:
        early = self.copies.get(call.main) if is_size(call.main) else None
        if early is not None:  # something needed this size before
            self.env[id(node.output)] = early
            return
        fresh = any(value is not None and value.const is not None and not is_captured(value) for value in node.inputs)
        changed = False

        def fill(leaf: Any) -> Any:
            nonlocal changed
            if isinstance(leaf, FxNode):
                copy = self._copy(leaf)
                assert copy is not None, f"{leaf.name!r}, which {node!r} needs, is gone"
                return copy
            if not isinstance(leaf, Slot):
                return leaf
            value = node.input(leaf.index)
            argument = None if value is None else self._argument(value, leaf, keep_none=not fresh)
            seen = call.seen[leaf.index] if leaf.index < len(call.seen) else ""
            now = signature_of(argument.meta.get("val")) if isinstance(argument, FxNode) else ""
            changed = changed or now != seen
            return argument

        args, kwargs = trimmed(call.target, map_slots(call.args, fill), map_slots(call.kwargs, fill))
        single = call.picks == (None,)
        name = legal(node.output.name) if single else call.main.name
        # A view wants the strides that it was captured with; what a removed layer leaves behind may lie differently in memory.
        target = torch.ops.aten.reshape.default if call.target in _VIEWS else call.target
        written = self.fx.create_node("call_function", target, args, kwargs, name)
        written.meta.update(_kept_meta(call.main))
        if changed:
            written.meta["val"] = self.emitter.trace(target, args, kwargs)
        if single:
            self.env[id(node.output)] = written
            return
        for pick, value in zip(call.picks, node.outputs, strict=True):
            if value.uses or self.view.is_output(value):
                part = self.fx.create_node("call_function", operator.getitem, (written, pick), {}, legal(value.name))
                part.meta.update(
                    _kept_meta(value.origin) if isinstance(value.origin, FxNode) else self.stacks.get(node.module, {})
                )
                part.meta["val"] = written.meta["val"][pick]
                self.env[id(value)] = part

    def _argument(self, value: Value, slot: Slot, *, keep_none: bool) -> Any:
        """What stands for `value` in a captured call: numbers and None stay what they were."""
        if is_intact(value, Literal):
            return value.origin.number
        if is_intact(value, Absent) and keep_none:
            return None
        if value.const is not None and slot.flat and not is_intact(value, Stored):
            return self.constants.node(value, flat=True)
        return self._operand(value, as_stored=True)

    def _operand(self, value: Value, as_stored: bool = False) -> FxNode:
        """The node that holds `value`.  as_stored: a parameter may be handed over in the shape in which it is stored."""
        if value.const is None:
            return self.env[id(value)]
        if is_intact(value, Recipe):
            copy = self._copy(value.origin.node)
            assert copy is not None
            return copy
        return self.constants.node(value, as_stored=as_stored)

    def _copy(self, node: FxNode) -> FxNode | None:
        """A node of the captured program in the new one: sizes, recipes, sub-graphs, assertions; None when it cannot be had."""
        if node in self.copies:
            return self.copies[node]
        if node in self.live and id(self.live[node]) in self.env:
            return self.env[id(self.live[node])]
        self.copies[node] = None
        if node.op == "get_attr":
            written: FxNode | None = self.fx.create_node("get_attr", node.target, (), {}, node.name)
        elif node.op != "call_function" or (isinstance(node.meta.get("val"), torch.Tensor) and node.all_input_nodes):
            return None
        else:
            sources = {source: self._copy(source) for source in node.all_input_nodes}
            if any(copy is None for copy in sources.values()):
                return None
            args = map_slots(tuple(node.args), lambda leaf: sources.get(leaf, leaf) if isinstance(leaf, FxNode) else leaf)
            kwargs = map_slots(dict(node.kwargs), lambda leaf: sources.get(leaf, leaf) if isinstance(leaf, FxNode) else leaf)
            written = self.fx.create_node("call_function", node.target, args, kwargs, node.name)
        written.meta.update(_kept_meta(node))
        self.copies[node] = written
        return written

    def _assertions(self, before: int) -> None:
        """Write the assertions that stood before this place, as far as what they read still exists."""
        while self.asserts and self.order[self.asserts[0]] < before:
            self._copy(self.asserts.pop(0))


def _kept_meta(node: FxNode) -> dict[str, Any]:
    """Metadata but for the history of passes, which holds addresses: equal programs must give equal files."""
    return {key: item for key, item in node.meta.items() if key != "from_node"}


def _is_assertion(node: FxNode) -> bool:
    if node.op != "call_function" or node.target is operator.getitem or node.users:
        return False
    return node.meta.get("val") is None and node.target is not torch.ops.aten._assert_tensor_metadata.default
