"""Reads a functional ExportedProgram into the view.

The program is never written to: it is the view's `origin`, and `aten_write.to_program` builds a new one from it and the edited
view.  Calls with a twin in the view's vocabulary take its name (`aten_ops`); everything else is kept as "aten::name" with a
fallback that evaluates it with torch's own arithmetic.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node as FxNode

from normfold.capture.aten_eval import run
from normfold.capture.aten_ops import spell
from normfold.capture.aten_reader import OVERLOAD, Reader, opaque_kind
from normfold.capture.aten_spell import Arg, Fixed, Read, Spelled
from normfold.capture.aten_values import (
    Absent,
    Call,
    Literal,
    Recipe,
    Slot,
    is_size,
    map_slots,
    numpy_dtype,
    outputs_of,
    to_array,
)
from normfold.capture.program import functional
from normfold.graph import Array, Constant, Graph, Value
from normfold.record import Record

_FACTORIES = {"aten::zeros", "aten::ones", "aten::full", "aten::arange", "aten::scalar_tensor", "aten::eye", "aten::linspace"}
_LARGEST_RECIPE = 2**24  # elements; what a program makes beyond that is not read as a constant


def from_aten(ep: ExportedProgram, record: Record | None = None) -> Graph:
    """The view of `ep`.

    A program that is not functional yet is decomposed first.  Inputs and outputs are the tensors (and computed sizes) of the
    signature, in its order: what is written to buffers and inputs comes first, then what the user gets.
    """
    return _Capture(functional(ep), record or Record()).read()


class _Capture(Reader):
    def read(self) -> Graph:
        for node in self.ep.graph.nodes:
            if node.op == "call_function":
                self._call(node)
        for argument in outputs_of(self.ep):
            if isinstance(argument, FxNode) and self.is_value(argument):
                self.graph.outputs.append(self.value(argument))
        return self.graph

    # ---- calls -----------------------------------------------------------------------------------------------------------------

    def _call(self, node: FxNode) -> None:
        meta = node.meta.get("val")
        if node.target is operator.getitem:
            source, place = node.args
            if isinstance(source, FxNode) and isinstance(place, int) and place in self.parts.get(source, {}):
                self.values[node] = self.parts[source][place]
            return
        if is_size(node):
            if not self.from_inputs(node) and isinstance(node.target, OVERLOAD):
                self.size(node)  # made from data: what it reads must stay as it is
            return
        if meta is None or (isinstance(meta, (tuple, list)) and not meta):
            return  # an assertion: written back from the captured program
        if self._recipe(node):
            return
        parts: list[Any] = [user.args[1] for user in node.users if user.target is operator.getitem and user.users]
        read = Read(node, set(parts), self.names)
        spelled = spell(read)
        if spelled is None or not self._spelled(read, spelled):
            self.opaque(node)

    def _recipe(self, node: FxNode) -> bool:
        """A tensor that the program makes of numbers alone is a constant."""
        schema, meta = getattr(node.target, "_schema", None), node.meta["val"]
        if schema is None or schema.name not in _FACTORIES or node.all_input_nodes or not isinstance(meta, torch.Tensor):
            return False
        dtype = numpy_dtype(meta.dtype)
        shape: tuple[Any, ...] = tuple(meta.shape)
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
                inputs.append(self.graph.constant(f"{node.name}_index", const, origin=Absent(const)))
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
            if isinstance(argument, FxNode) and is_size(argument) and (spelled.sizes or not self.from_inputs(argument)):
                inputs.append(self.size(argument))
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
        attrs = dict(spelled.attrs)
        if spelled.sizes:  # ONNX reads other things at these inputs: a kernel that does not know this name leaves it to torch
            attrs["computed"] = opaque_kind(node.target)
        call = Call(node.target, args, kwargs, node, spelled.outputs, spelled.kind, attrs, fixed, twins)
        self.append(node, call, inputs, self.results(node, spelled.outputs))
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
            return True, self.graph.constant(name, const, origin=Absent(const))
        if isinstance(argument, (bool, int, float)):
            dtype = spelled.literal_dtype or read.out_dtype
            const = Constant(np.asarray(argument, np.float64 if isinstance(argument, float) else np.int64).astype(dtype))
            return True, self.graph.constant(name, const, origin=Literal(argument, const))
        if not isinstance(argument, FxNode) or not self.is_value(argument) or is_size(argument):
            return False, None
        value = self.value(argument)
        if arg.shape is None or value.shape == arg.shape:
            return True, value
        return (True, self.in_shape(value, arg.shape)) if value.const is not None else (False, None)
