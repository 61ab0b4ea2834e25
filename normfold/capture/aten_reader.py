"""The view while it is being read from a program: inputs, constants, sizes, and nodes that are kept as they are."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import Node as FxNode

from normfold.capture.aten_eval import fallback_of
from normfold.capture.aten_spell import Read
from normfold.capture.aten_values import (
    SIZES,
    Call,
    Recipe,
    Slot,
    Stored,
    constant_of,
    is_size,
    map_slots,
    numpy_dtype,
    shape_of,
    signature_of,
    storage_key,
    to_array,
)
from normfold.capture.program import dim_names
from normfold.graph import Array, Constant, Graph, Node, Value, is_float
from normfold.record import Record

OVERLOAD = type(torch.ops.aten.add.Tensor)


@dataclass(frozen=True)
class State:
    """A buffer that the program writes to: its content is known at run time only."""

    placeholder: str


class Reader:
    """Inputs and constants of a program in a new view; nodes are appended by `aten.from_aten`."""

    def __init__(self, ep: ExportedProgram, record: Record) -> None:
        self.ep, self.record = ep, record
        self.names = dim_names(ep)
        self.graph = Graph("main", ep)
        self.values: dict[FxNode, Value] = {}
        self.parts: dict[FxNode, dict[int, Value]] = {}
        self.reshaped: dict[tuple[str, tuple[int, ...]], Value] = {}
        self.order = {node: place for place, node in enumerate(ep.graph.nodes)}
        self.by_name = {node.name: node for node in ep.graph.nodes}
        for node in ep.graph.nodes:
            if node.op != "output":
                self.graph.claim(node.name)
        self._placeholders()
        self.input_sizes = self._input_sizes()

    # ---- inputs and constants ------------------------------------------------------------------------------------------------

    def _placeholders(self) -> None:
        signature, mutated = self.ep.graph_signature, set[Any]()
        for spec in signature.output_specs:
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
                mutated.add(storage_key(stored_tensor(self.ep, str(spec.target))))
        tied: dict[Any, tuple[FxNode, list[str], list[FxNode]]] = {}
        nodes = [node for node in self.ep.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(nodes, signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                if not isinstance(spec.arg, ConstantArgument):
                    self.values[node] = self.new(node.name, node.meta["val"], node)
                    self.graph.inputs.append(self.values[node])
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                tensor = stored_tensor(self.ep, str(spec.target))
                key = storage_key(tensor)
                readable = numpy_dtype(tensor.dtype) is not None and tensor.layout == torch.strided
                if key in mutated or not readable:
                    self._state(node, str(spec.target), tensor)
                    continue
                first = tied.setdefault(key, (node, [], []))
                first[1].append(str(spec.target))
                first[2].append(node)
        for node, targets, twins in tied.values():
            const = constant_of(stored_tensor(self.ep, targets[0]))
            value = Value(node.name, const.shape, const.dtype, const, targets[0])
            value.origin = Stored(node.name, tuple(targets), const)
            self.values.update(dict.fromkeys(twins, value))

    def _state(self, node: FxNode, target: str, tensor: torch.Tensor) -> None:
        """A buffer whose content is known at run time only."""
        value = self.new(node.name, node.meta["val"], node)
        value.param = target
        self.record.warn(f"the model writes to {target}; what reads it stays as it is")

        def evaluate(_: list[Array | None]) -> list[Array]:
            array = to_array(tensor)
            return [array.astype(np.float64) if is_float(array.dtype) else array]

        readable = numpy_dtype(tensor.dtype) is not None and tensor.layout == torch.strided
        state = Node("aten::state", [], [value], {}, node.name, fallback=evaluate if readable else None, origin=State(node.name))
        self.graph.append(state)
        self.values[node] = value

    def new(self, name: str, meta: Any, origin: FxNode | None) -> Value:
        """A value of a name that is already claimed."""
        if isinstance(meta, torch.Tensor):
            return Value(name, shape_of(meta.shape, self.names), numpy_dtype(meta.dtype), origin=origin)
        kinds = {torch.SymFloat: np.float64, float: np.float64, torch.SymBool: np.bool_, bool: np.bool_}
        return Value(name, (), np.dtype(kinds.get(type(meta), np.int64)), origin=origin)

    # ---- sizes -----------------------------------------------------------------------------------------------------------------

    def _input_sizes(self) -> dict[str, tuple[FxNode, int]]:
        """Symbolic sizes that an input shows directly: expression -> (input, axis)."""
        found: dict[str, tuple[FxNode, int]] = {}
        for node, value in self.values.items():
            if value.const is None and value.producer is None and isinstance(node.meta["val"], torch.Tensor):
                for axis, size in enumerate(node.meta["val"].shape):
                    if isinstance(size, torch.SymInt):
                        found.setdefault(str(size), (node, axis))
        return found

    def is_value(self, node: FxNode) -> bool:
        return node in self.values or is_size(node) or isinstance(node.meta.get("val"), torch.Tensor)

    def from_inputs(self, node: FxNode) -> bool:
        """True for a size that is computed from the sizes of inputs alone."""
        if node.op == "placeholder":
            return node in self.values and self.values[node].producer is None
        if node.op != "call_function" or not is_size(node):
            return False
        if str(node.meta["val"]) in self.input_sizes:
            return True
        if node.target is torch.ops.aten.sym_size.int:
            source = node.args[0]
            return isinstance(source, FxNode) and source.op == "placeholder"
        if isinstance(node.target, OVERLOAD):
            return False
        return all(self.from_inputs(source) for source in node.all_input_nodes)

    def size(self, node: FxNode) -> Value:
        """The value of a computed size; its computation enters the view when it is first read."""
        if node not in self.values:
            source = self.input_sizes.get(str(node.meta["val"]))
            if source is not None:
                call = Call(torch.ops.aten.sym_size.int, (Slot(0), source[1]), {}, node, (None,), "aten::sym_size", {})
                self.append(node, call, [self.values[source[0]]], self.results(node, (None,)))
            else:
                self.opaque(node)
        return self.values[node]

    def value(self, node: FxNode) -> Value:
        if node in self.values:
            return self.values[node]
        if is_size(node):
            return self.size(node)
        raise KeyError(f"{node.name} is read before it is computed")

    # ---- nodes --------------------------------------------------------------------------------------------------------------

    def results(self, node: FxNode, picks: tuple[int | None, ...]) -> list[Value]:
        """Values for what the call returns, under the names that the program has for them."""
        if picks == (None,):
            self.values[node] = self.new(node.name, node.meta["val"], node)
            return [self.values[node]]
        readers = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        results: list[Value] = []
        for pick in picks:
            assert pick is not None
            reader = readers.get(pick)
            name = self.graph.claim(f"{node.name}_{pick}") if reader is None else reader.name
            results.append(self.new(name, node.meta["val"][pick], reader))
        self.parts[node] = {pick: value for pick, value in zip(picks, results, strict=True) if pick is not None}
        return results

    def append(self, node: FxNode, call: Call, inputs: list[Value | None], outputs: list[Value]) -> None:
        call.order = self.order[node]
        call.seen = tuple("" if value is None else self.signature(value) for value in inputs)
        loose = [False]

        def check(argument: Any) -> Any:
            loose[0] |= isinstance(argument, FxNode) and argument.op != "get_attr"
            return argument

        map_slots((call.args, call.kwargs), check)
        types = tuple(None if value is None else value.dtype for value in inputs)
        fallback = None if loose[0] else fallback_of(call, types)
        module = module_of(node)
        self.graph.append(Node(call.kind, inputs, outputs, dict(call.attrs), node.name, module, (), fallback, call))

    def signature(self, value: Value) -> str:
        origin = value.origin
        if isinstance(origin, FxNode):
            return signature_of(origin.meta.get("val"))
        if isinstance(origin, (Stored, Recipe)) and value.dtype is not None:
            node = self.by_name[origin.placeholder] if isinstance(origin, Stored) else origin.node
            return signature_of(node.meta["val"])
        return ""

    def in_shape(self, value: Value, shape: tuple[int, ...]) -> Value:
        """A constant seen in another shape."""
        if (value.name, shape) not in self.reshaped:
            assert value.const is not None
            source = value.const
            const = Constant(load=lambda: source.read().reshape(shape), shape=shape, dtype=source.dtype)
            origin = value.origin
            twin = self.graph.constant(f"{value.name}_seen", const, param=value.param)
            twin.origin = Stored(origin.placeholder, origin.names, const) if isinstance(origin, Stored) else None
            self.reshaped[value.name, shape] = twin
        return self.reshaped[value.name, shape]

    def opaque(self, node: FxNode) -> None:
        """Keep the call as it is: every tensor and size among its arguments is an input."""
        inputs: list[Value | None] = []

        def leaf(argument: Any) -> Any:
            if not isinstance(argument, FxNode) or argument.op == "get_attr" or not self.is_value(argument):
                return argument
            inputs.append(self.value(argument))
            return Slot(len(inputs) - 1, integer=is_size(argument))

        args, kwargs = map_slots(tuple(node.args), leaf), map_slots(dict(node.kwargs), leaf)
        meta = node.meta.get("val")
        picks: tuple[int | None, ...] = (None,)
        if isinstance(meta, (tuple, list)):
            picks = tuple(place for place, part in enumerate(meta) if isinstance(part, (torch.Tensor, *SIZES)))
        call = Call(node.target, args, kwargs, node, picks, opaque_kind(node.target), _plain_arguments(node))
        self.append(node, call, inputs, self.results(node, picks))


def stored_tensor(ep: ExportedProgram, target: str) -> torch.Tensor:
    """The tensor of a parameter, buffer or lifted constant."""
    if target in ep.state_dict:
        return ep.state_dict[target]
    tensor = ep.constants[target]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def opaque_kind(target: Any) -> str:
    """How the view calls an op without twin: "aten::lstm.input", "operator::mul"."""
    if target is torch.ops.aten.sym_size.int:
        return "aten::sym_size"
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
    namespace = getattr(target, "namespace", None) or getattr(target, "__module__", "python")
    name = getattr(target, "_name", None) or getattr(target, "__name__", str(target))
    return f"{str(namespace).lstrip('_')}::{name}"


def _plain_arguments(node: FxNode) -> dict[str, Any]:
    """The arguments of an opaque call that are numbers or text, by name: for people and for rules that know the op."""
    attrs: dict[str, Any] = {}
    for name, argument in Read(node, set(), {}).args.items():
        items = argument if isinstance(argument, (list, tuple)) else [argument]
        if items and all(isinstance(item, (bool, int, float, str)) for item in items):
            attrs[name] = tuple(items) if isinstance(argument, (list, tuple)) else argument
    return attrs


def module_of(node: FxNode) -> str:
    """The user's path of the module that made the call: the deepest entry of its module stack."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    if path.startswith("_empty_nn_module_stack"):
        return ""
    path = re.sub(r"^L(__self__|\['self'\])\.?", "", path)
    return re.sub(r"@\d+", "", path)
