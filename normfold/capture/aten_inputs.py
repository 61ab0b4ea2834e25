"""Between what a user passes and gets (any pytree) and the inputs and outputs of the view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import Node as FxNode
from torch.utils import _pytree as pytree

from normfold.capture.aten_values import outputs_of, to_array
from normfold.errors import UsageError
from normfold.graph import Array, Graph, Value


def flatten_inputs(ep: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> dict[str, Array]:
    """Arrays for the view's inputs, by name, from the arguments of a call.

    Python numbers, strings and None are part of how the program was captured and get no array.  Raises UsageError when the
    arguments are nested differently from those that the program was captured with.
    """
    spec = ep.call_spec.in_spec
    assert spec is not None
    given = dict(kwargs or {})
    expected = list(spec.child(1).context)
    if set(given) == set(expected):
        given = {key: given[key] for key in expected}
    leaves, structure = pytree.tree_flatten((tuple(args), given))
    specs = [item for item in ep.graph_signature.input_specs if item.kind == InputKind.USER_INPUT]
    if structure != spec and not _alike(structure, spec):
        raise UsageError(
            f"inputs nested as {_shown(spec)} were expected, but {_shown(structure)} came; "
            "pass the same positional and keyword arguments as at capture"
        )
    arrays: dict[str, Array] = {}
    for leaf, item in zip(leaves, specs, strict=True):
        if not isinstance(item.arg, ConstantArgument):
            arrays[str(item.arg.name)] = to_array(leaf) if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
    return arrays


def _alike(one: pytree.TreeSpec, other: pytree.TreeSpec) -> bool:
    """Equal but for torch.Size in place of a tuple, and the order of keys."""
    kinds = {torch.Size: tuple}
    if kinds.get(one.type, one.type) != kinds.get(other.type, other.type) or one.num_children != other.num_children:
        return False
    if one.type is dict:
        return list(one.context) == list(other.context) and all(map(_alike, one.children(), other.children()))
    return one.context == other.context and all(map(_alike, one.children(), other.children()))


def _shown(spec: pytree.TreeSpec) -> str:
    if spec.is_leaf():
        return "*"
    parts = [_shown(child) for child in spec.children()]
    if spec.type is dict:
        return "{" + ", ".join(f"{key}: {part}" for key, part in zip(spec.context, parts, strict=True)) + "}"
    return "(" + ", ".join(parts) + ")"


def user_outputs(graph: Graph) -> list[Value]:
    """The outputs of the view that the user gets (not what is written to buffers and inputs), in their flattened order."""
    return [value for value, kind in _kinds(graph) if kind == OutputKind.USER_OUTPUT]


def flatten_outputs(graph: Graph, result: Any) -> dict[str, Array]:
    """What a call of the program returned, as arrays by the names of `user_outputs`.

    Numbers that the program does not compute, strings and None have no array.
    """
    ep = graph.origin
    leaves = iter(pytree.tree_leaves(result, is_leaf=lambda leaf: leaf is None))
    named = iter(user_outputs(graph))
    arrays: dict[str, Array] = {}
    for argument, spec in zip(outputs_of(ep), ep.graph_signature.output_specs, strict=True):
        if spec.kind != OutputKind.USER_OUTPUT:
            continue
        leaf = next(leaves)
        if isinstance(argument, FxNode):
            arrays[next(named).name] = to_array(leaf) if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
    return arrays


def _kinds(graph: Graph) -> list[tuple[Value, Any]]:
    ep = graph.origin
    assert isinstance(ep, ExportedProgram)
    kinds = [
        spec.kind
        for argument, spec in zip(outputs_of(ep), ep.graph_signature.output_specs, strict=True)
        if isinstance(argument, FxNode) and argument.meta.get("val") is not None
    ]
    return list(zip(graph.outputs, kinds, strict=True))
