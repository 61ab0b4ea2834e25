"""The arguments of a captured call: which inputs of the node stand in them, and what is written of them.

A call is written again as it was captured as long as its inputs fit where the old ones stood.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node as FxNode

from normfold.capture.aten_values import Absent, Call, Literal, Recipe, Slot, Stored, map_slots
from normfold.graph import Value

aten = torch.ops.aten
RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def fits(value: Value | None, slot: Slot | None) -> bool:
    """True when `value` may stand at `slot` of the captured call."""
    if slot is None:
        return value is None
    if slot.number:
        return value is not None and is_intact(value, Literal)
    return value is None or not slot.flat or value.const is not None


def required_slots(call: Call) -> set[int]:
    """Inputs that the operator does not do without (the bias of addmm)."""
    schema = getattr(call.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    optional = (
        {argument.name for argument in schema.arguments if isinstance(argument.type, torch.OptionalType)} if schema else set()
    )
    return {item.index for name, item in given.items() if isinstance(item, Slot) and name not in optional}


def slots_of(call: Call) -> Iterable[Slot]:
    """Where inputs of the node stand in the call, however deep."""
    found: list[Slot] = []

    def collect(leaf: Any) -> Any:
        if isinstance(leaf, Slot):
            found.append(leaf)
        return leaf

    map_slots((call.args, call.kwargs), collect)
    return found


def is_intact(value: Value, origin: type) -> bool:
    """True when the value is a constant of that origin and still holds what was captured."""
    return isinstance(value.origin, origin) and value.const is not None and value.origin.const is value.const


def is_captured(value: Value) -> bool:
    """True when the value is a constant that still holds what was captured, whatever it came from."""
    return any(is_intact(value, origin) for origin in (Stored, Literal, Absent, Recipe))


def with_biases(call: Call, inputs: int) -> Call:
    """`call` itself, but for a recurrent layer that has got biases: then as many `inputs` stand in it as its node has now."""
    if call.target not in RECURRENT or inputs <= len(call.seen):
        return call
    x, states, weights, _, *rest = call.args
    now = [Slot(index) for index in range(len(call.seen) - len(weights), inputs)]
    return replace(call, args=(x, states, now, True, *rest), attrs=call.attrs | {"has_biases": True})


def trimmed(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without those that only repeat the operator's defaults."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return args, kwargs
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    while args:
        argument = positional[len(args) - 1]
        if not argument.has_default_value() or isinstance(args[-1], FxNode) or not _same(args[-1], argument.default_value):
            break
        args = args[:-1]
    defaults = {argument.name: argument for argument in schema.arguments if argument.has_default_value()}
    kept = {
        key: item
        for key, item in kwargs.items()
        if isinstance(item, FxNode) or key not in defaults or not _same(item, defaults[key].default_value)
    }
    return args, kept


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) or isinstance(other, (list, tuple)):
        return isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and list(one) == list(other)
    return type(one) is type(other) and one == other
