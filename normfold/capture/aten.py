"""Reads a functional ExportedProgram into the view.

The program is never written to: it is the view's `origin`, and `aten_write.to_program` builds a new one from it and the edited
view.  Calls with a twin in the view's vocabulary take its name (`aten_ops`); everything else is kept as "aten::name" with a
fallback that evaluates it with torch's own arithmetic.
"""

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

from normfold.capture.aten_eval import fallback_of, run
from normfold.capture.aten_ops import spell
from normfold.capture.aten_spell import Arg, Fixed, Read, Spelled
from normfold.capture.aten_values import (
    Absent,
    Call,
    Literal,
    Recipe,
    Slot,
    Stored,
    constant_of,
    map_slots,
    numpy_dtype,
    shape_of,
    signature_of,
    storage_key,
    to_array,
)
from normfold.capture.program import dim_names, functional
from normfold.graph import Array, Constant, Graph, Node, Value, is_float
from normfold.record import Record

_FACTORIES = {"aten::zeros", "aten::ones", "aten::full", "aten::arange", "aten::scalar_tensor", "aten::eye", "aten::linspace"}
_LARGEST_RECIPE = 2**24  # elements; what a program makes beyond that is not read as a constant
_OVERLOAD = type(torch.ops.aten.add.Tensor)
_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)


@dataclass(frozen=True)
class State:
    """A buffer that the program writes to: its content is known at run time only."""

    placeholder: str


def from_aten(ep: ExportedProgram, record: Record | None = None) -> Graph:
    """The view of `ep`.

    A program that is not functional yet is decomposed first.  Inputs and outputs are the tensors (and computed sizes) of the
    signature, in its order: what is written to buffers and inputs comes first, then what the user gets.
    """
    return _Capture(functional(ep), record or Record()).graph


class _Capture:
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
        for node in ep.graph.nodes:
            if node.op == "call_function":
                self._call(node)
        output = ep.graph.output_node()
        for argument in output.args[0]:
            if isinstance(argument, FxNode) and self._is_value(argument):
                self.graph.outputs.append(self._value(argument))

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
                    self.values[node] = self._new(node.name, node.meta["val"], node)
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
        value = self._new(node.name, node.meta["val"], node)
        value.param = target

        def evaluate(_: list[Array | None]) -> list[Array]:
            array = to_array(tensor)
            return [array.astype(np.float64) if is_float(array.dtype) else array]

        readable = numpy_dtype(tensor.dtype) is not None and tensor.layout == torch.strided
        state = Node("aten::state", [], [value], {}, node.name, fallback=evaluate if readable else None, origin=State(node.name))
        self.graph.append(state)
        self.values[node] = value

    def _new(self, name: str, meta: Any, origin: FxNode | None) -> Value:
        """A value of a name that is already claimed."""
        if isinstance(meta, torch.Tensor):
            return Value(name, shape_of(meta.shape, self.names), numpy_dtype(meta.dtype), origin=origin)
        kinds = {torch.SymFloat: np.float64, float: np.float64, torch.SymBool: np.bool_, bool: np.bool_}
        return Value(name, (), np.dtype(kinds.get(type(meta), np.int64)), origin=origin)

    def _constant(self, name: str, const: Constant, origin: Any) -> Value:
        return self.graph.constant(name, const, origin=origin)

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

    def _is_size(self, node: FxNode) -> bool:
        return isinstance(node.meta.get("val"), _SIZES)

    def _is_value(self, node: FxNode) -> bool:
        return node in self.values or self._is_size(node) or isinstance(node.meta.get("val"), torch.Tensor)

    def _from_inputs(self, node: FxNode) -> bool:
        """True for a size that is computed from the sizes of inputs alone."""
        if node.op == "placeholder":
            return node in self.values and self.values[node].producer is None
        if node.op != "call_function" or not self._is_size(node):
            return False
        if str(node.meta["val"]) in self.input_sizes:
            return True
        if node.target is torch.ops.aten.sym_size.int:
            source = node.args[0]
            return isinstance(source, FxNode) and source.op == "placeholder"
        if isinstance(node.target, _OVERLOAD):
            return False
        return all(self._from_inputs(source) for source in node.all_input_nodes)

    def _size(self, node: FxNode) -> Value:
        """The value of a computed size; its computation enters the view when it is first read."""
        if node not in self.values:
            source = self.input_sizes.get(str(node.meta["val"]))
            if source is not None:
                call = Call(torch.ops.aten.sym_size.int, (Slot(0), source[1]), {}, node, (None,), "aten::sym_size", {})
                self._append(node, call, [self.values[source[0]]], self._results(node, (None,)))
            else:
                self._opaque(node)
        return self.values[node]

    def _value(self, node: FxNode) -> Value:
        if node in self.values:
            return self.values[node]
        if self._is_size(node):
            return self._size(node)
        raise KeyError(f"{node.name} is read before it is computed")

    # ---- calls -----------------------------------------------------------------------------------------------------------------

    def _call(self, node: FxNode) -> None:
        meta = node.meta.get("val")
        if node.target is operator.getitem:
            source, place = node.args
            if isinstance(source, FxNode) and isinstance(place, int) and place in self.parts.get(source, {}):
                self.values[node] = self.parts[source][place]
            return
        if self._is_size(node):
            if not self._from_inputs(node) and isinstance(node.target, _OVERLOAD):
                self._size(node)  # made from data: what it reads must stay as it is
            return
        if meta is None or (isinstance(meta, (tuple, list)) and not meta):
            return  # an assertion: written back from the captured program
        if self._recipe(node):
            return
        picked = {int(user.args[1]) for user in node.users if user.target is operator.getitem}
        read = Read(node, picked, self.names)
        spelled = spell(read)
        if spelled is None or not self._spelled(read, spelled):
            self._opaque(node)

    def _recipe(self, node: FxNode) -> bool:
        """A tensor that the program makes of numbers alone is a constant."""
        schema, meta = getattr(node.target, "_schema", None), node.meta["val"]
        if schema is None or schema.name not in _FACTORIES or node.all_input_nodes or not isinstance(meta, torch.Tensor):
            return False
        dtype, shape = numpy_dtype(meta.dtype), tuple(meta.shape)
        if dtype is None or not all(isinstance(dim, int) for dim in shape) or meta.numel() > _LARGEST_RECIPE:
            return False

        def load() -> Array:
            kwargs = {key: item for key, item in node.kwargs.items() if key not in ("device", "pin_memory", "layout")}
            return to_array(run(node.target, node.args, kwargs, None))

        const = Constant(load=load, shape=shape, dtype=dtype)
        value = Value(node.name, const.shape, dtype, const, origin=Recipe(node, const))
        self.values[node] = value
        return True

    def _spelled(self, read: Read, spelled: Spelled) -> bool:
        """Append the call as `spelled`; False when an input cannot be seen that way."""
        node = read.node
        inputs: list[Value | None] = []
        fixed: dict[int, Constant] = {}
        twins: dict[int, int] = {}
        slots: dict[tuple[str, int | None], Slot] = {}
        numbers = {argument.name for argument in read.schema.arguments if str(argument.type) in ("number", "Optional[number]")}
        for place, entry in enumerate(spelled.inputs):
            if isinstance(entry, Fixed):
                const = Constant(entry.array)
                inputs.append(self._constant(f"{node.name}_index", const, Absent(const)))
                fixed[place] = const
                continue
            arg = entry if isinstance(entry, Arg) else Arg(entry)
            seen, value = self._input(read, spelled, arg)
            if not seen:
                return False
            inputs.append(value)
            slot = slots.setdefault((arg.name, arg.item), Slot(place, number=arg.name in numbers, flat=arg.flat))
            if slot.index != place:
                twins[place] = slot.index
        while inputs and inputs[-1] is None:
            inputs.pop()

        def leaf(argument: Any) -> Any:
            if isinstance(argument, FxNode) and self._is_size(argument) and (spelled.sizes or not self._from_inputs(argument)):
                inputs.append(self._size(argument))
                return Slot(len(inputs) - 1, integer=True)
            return argument

        bound: dict[str, Any] = {}
        for name, argument in (read.args | spelled.replaced).items():
            if (name, None) in slots:
                bound[name] = slots[name, None]
            elif isinstance(argument, (list, tuple)):
                bound[name] = [slots.get((name, item)) or map_slots(part, leaf) for item, part in enumerate(argument)]
            else:
                bound[name] = map_slots(argument, leaf)
        args = tuple(bound[argument.name] for argument in read.schema.arguments if not argument.kwarg_only)
        kwargs = {argument.name: bound[argument.name] for argument in read.schema.arguments if argument.kwarg_only}
        left = [False]

        def check(argument: Any) -> Any:
            left[0] |= isinstance(argument, FxNode) and isinstance(argument.meta.get("val"), torch.Tensor)
            return argument

        map_slots((args, kwargs), check)
        if left[0]:
            return False  # a tensor argument that the twin has no place for
        if spelled.kind == "Identity" and inputs[0] is not None and inputs[0].const is not None and not self._is_output(node):
            self._alias(node, spelled.outputs, inputs[0])
            return True
        call = Call(node.target, args, kwargs, node, spelled.outputs, spelled.kind, spelled.attrs, fixed, twins)
        self._append(node, call, inputs, self._results(node, spelled.outputs))
        return True

    def _is_output(self, node: FxNode) -> bool:
        users = [*node.users, *(user for part in node.users if part.target is operator.getitem for user in part.users)]
        return any(user.op == "output" for user in users)

    def _alias(self, node: FxNode, outputs: tuple[int | None, ...], value: Value) -> None:
        if outputs == (None,):
            self.values[node] = value
        else:
            self.parts[node] = {place: value for place in outputs if place is not None}

    def _input(self, read: Read, spelled: Spelled, arg: Arg) -> tuple[bool, Value | None]:
        """(could be seen, the value)."""
        argument = read[arg.name] if arg.item is None else read[arg.name][arg.item]
        name = f"{read.node.name}_{arg.name}"
        if argument is None:
            if arg.absent is None:
                return True, None
            const = Constant(arg.absent)
            return True, self._constant(name, const, Absent(const))
        if isinstance(argument, (bool, int, float)):
            dtype = spelled.literal_dtype or read.out_dtype
            const = Constant(np.asarray(argument, np.float64 if isinstance(argument, float) else np.int64).astype(dtype))
            return True, self._constant(name, const, Literal(argument, const))
        if not isinstance(argument, FxNode) or not self._is_value(argument) or self._is_size(argument):
            return False, None
        value = self._value(argument)
        if arg.shape is None or value.shape == arg.shape:
            return True, value
        return (True, self._in_shape(value, arg.shape)) if value.const is not None else (False, None)

    def _in_shape(self, value: Value, shape: tuple[int, ...]) -> Value:
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

    def _opaque(self, node: FxNode) -> None:
        """Keep the call as it is: every tensor and size among its arguments is an input."""
        inputs: list[Value | None] = []

        def leaf(argument: Any) -> Any:
            if not isinstance(argument, FxNode) or argument.op == "get_attr" or not self._is_value(argument):
                return argument
            inputs.append(self._value(argument))
            return Slot(len(inputs) - 1, integer=self._is_size(argument))

        args, kwargs = map_slots(tuple(node.args), leaf), map_slots(dict(node.kwargs), leaf)
        meta = node.meta.get("val")
        picks: tuple[int | None, ...] = (None,)
        if isinstance(meta, (tuple, list)):
            picks = tuple(place for place, part in enumerate(meta) if isinstance(part, (torch.Tensor, *_SIZES)))
        call = Call(node.target, args, kwargs, node, picks, opaque_kind(node.target), _plain_arguments(node))
        self._append(node, call, inputs, self._results(node, picks))

    def _results(self, node: FxNode, picks: tuple[int | None, ...]) -> list[Value]:
        """Values for what the call returns, under the names that the program has for them."""
        if picks == (None,):
            self.values[node] = self._new(node.name, node.meta["val"], node)
            return [self.values[node]]
        readers = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        results: list[Value] = []
        for pick in picks:
            assert pick is not None
            reader = readers.get(pick)
            name = self.graph.claim(f"{node.name}_{pick}") if reader is None else reader.name
            results.append(self._new(name, node.meta["val"][pick], reader))
        self.parts[node] = {pick: value for pick, value in zip(picks, results, strict=True) if pick is not None}
        return results

    def _append(self, node: FxNode, call: Call, inputs: list[Value | None], outputs: list[Value]) -> None:
        call.order = self.order[node]
        call.seen = tuple("" if value is None else self._signature(value) for value in inputs)
        loose = [False]

        def check(argument: Any) -> Any:
            loose[0] |= isinstance(argument, FxNode) and argument.op != "get_attr"
            return argument

        map_slots((call.args, call.kwargs), check)
        types = tuple(None if value is None else value.dtype for value in inputs)
        fallback = None if loose[0] else fallback_of(call, types)
        module = module_of(node)
        self.graph.append(Node(call.kind, inputs, outputs, dict(call.attrs), node.name, module, (), fallback, call))

    def _signature(self, value: Value) -> str:
        origin = value.origin
        if isinstance(origin, FxNode):
            return signature_of(origin.meta.get("val"))
        if isinstance(origin, (Stored, Recipe)) and value.dtype is not None:
            node = self.by_name[origin.placeholder] if isinstance(origin, Stored) else origin.node
            return signature_of(node.meta["val"])
        return ""


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
