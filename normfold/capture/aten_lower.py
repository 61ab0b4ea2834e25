"""Writes nodes of the view in ATen: those that a rewrite inserted, and those whose attributes it changed.

How each kind is spelled is in `aten_lower_ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Graph as FxGraph
from torch.fx import Node as FxNode
from torch.utils import _pytree as pytree

from normfold.capture.aten_arguments import RECURRENT
from normfold.capture.aten_state import legal
from normfold.capture.aten_values import Absent
from normfold.graph import Array, Constant, Node, Use, Value

aten = torch.ops.aten


class Emitter:
    """Writes calls with their metadata into an FX graph."""

    def __init__(self, fx: FxGraph, fake_mode: Any, operand: Callable[[Value], FxNode]) -> None:
        self.fx, self.fake_mode, self._operand = fx, fake_mode, operand
        self._meta: dict[str, Any] = {}
        self._name = ""
        self._made: list[Value] = []  # constants are told by identity: they must live as long as the writer

    def start(self, meta: dict[str, Any], name: str) -> None:
        """Begin a node of the view: metadata (module path) of its calls, name of the last one."""
        self._meta, self._name = meta, legal(name)

    def trace(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What the call returns, traced with symbolic sizes; no guard is added for it."""

        def meta_of(leaf: Any) -> Any:
            return leaf.meta["val"] if isinstance(leaf, FxNode) else leaf

        args, kwargs = pytree.tree_map(meta_of, (args, kwargs))
        shapes = self.fake_mode.shape_env
        # Only the Python twins of these know symbolic sizes.
        python = enable_python_dispatcher() if target in RECURRENT else nullcontext()
        with self.fake_mode, torch.no_grad(), python:
            if shapes is None:
                return target(*args, **kwargs)
            with shapes.suppress_guards():
                return target(*args, **kwargs)

    def step(self, target: Any, *args: Any, **kwargs: Any) -> FxNode:
        """A call on the way to the result."""
        return self._write(target, args, kwargs, None)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> FxNode:
        """The call that gives the result."""
        return self._write(target, args, kwargs, self._name)

    def _write(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None) -> FxNode:
        node = self.fx.create_node("call_function", target, args, kwargs, name)
        node.meta.update(self._meta)
        node.meta["val"] = self.trace(target, args, kwargs)
        return node

    def input(self, node: Node, slot: int = 0) -> FxNode:
        """The node behind an input that must be there."""
        value = node.input(slot)
        if value is None:
            raise ValueError(f"{node!r} needs its input {slot}")
        return self._operand(value)

    def optional(self, node: Node, slot: int) -> FxNode | None:
        value = node.input(slot)
        return None if value is None else self._operand(value)

    def constant(self, node: Node, slot: int, name: str, array: Array) -> FxNode:
        """A parameter beside what `node` reads at `slot`, in that one's type."""
        like = node.input(slot)
        assert like is not None and like.dtype is not None
        const = Constant(array, dtype=like.dtype)
        owner = like.param.rpartition(".")[0]
        param = f"{owner}.{name}" if owner else f"{like.name}_{name}"
        value = Value(param, const.shape, const.dtype, const, param, uses=[Use(node, slot)])
        self._made.append(value)
        return self._operand(value)

    def affine(self, node: Node) -> list[FxNode | None]:
        """gamma and beta (inputs 1 and 2); None for both where the captured layer had neither and both are as captured."""
        values = [node.input(1), node.input(2)]
        if all(value is None or (isinstance(value.origin, Absent) and value.origin.const is value.const) for value in values):
            return [None, None]
        return [None if value is None else self._operand(value) for value in values]

    def size(self, node: FxNode, axis: int) -> Any:
        """A size of a written node: a number, or a call that computes it."""
        size = node.meta["val"].shape[axis]
        return size if isinstance(size, int) else self.step(aten.sym_size.int, node, axis)


Lowering = Callable[[Emitter, Node], FxNode | list[FxNode]]
LOWERINGS: dict[str, Lowering] = {}


def lowering(*kinds: str) -> Callable[[Lowering], Lowering]:
    """Register how a kind is spelled."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(kinds, function))
        return function

    return register
