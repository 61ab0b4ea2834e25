"""Compares the steps of a loop node by node: same operations, same attributes, equal constants."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from normfold.graph import Constant, Graph, Node, Value
from normfold.rewrites.recurrent_steps import Steps


class Constants:
    """Tells equal constants: the same one, or the same bytes; one that callers may override is equal to itself alone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._digests: dict[Constant, bytes] = {}

    def equal(self, a: Value, b: Value) -> bool:
        one, two = a.const, b.const
        if a is b or a in self.graph.pinned or b in self.graph.pinned:
            return a is b
        if one is two:
            return True
        if one is None or two is None or one.shape != two.shape or one.dtype != two.dtype:
            return False
        return self._digest(one) == self._digest(two)

    def key(self, value: Value) -> object:
        """What is equal for equal constants; a value that is computed, or that callers may override, is its own."""
        const = value.const
        if const is None or value in self.graph.pinned:
            return value
        return const.shape, const.dtype, self._digest(const)

    def _digest(self, const: Constant) -> bytes:
        if const not in self._digests:
            array = np.ascontiguousarray(const.read())
            self._digests[const] = hashlib.blake2b(array.tobytes(), key=str(array.dtype).encode()).digest()
        return self._digests[const]


class Differs(Exception):
    """Two steps are not the same.  parameters: they are, but for the content of constants."""

    def __init__(self, node: Node | None, *, parameters: bool = False) -> None:
        super().__init__(node)
        self.node, self.parameters = node, parameters


class Comparison:
    """Walks two steps side by side, from what they make down to what crosses into them.

    leaves: what the reference step reads of the step before it.  met: leaf -> what stands there in the other step.
    pairs: everything that was walked over, value of the reference -> value of the other step.
    """

    def __init__(self, steps: Steps, leaves: Sequence[Value], constants: Constants, reference: int, step: int) -> None:
        self.steps, self.leaves, self.constants = steps, set(leaves), constants
        self.reference, self.step = reference, step
        self.met: dict[Value, Value] = {}
        self.pairs: dict[Value, Value] = {}

    def walk(self, one: Value, two: Value) -> None:
        """Raises Differs where `two` is not to its step what `one` is to the reference."""
        stack = [(one, two)]
        while stack:
            a, b = stack.pop()
            if a in self.pairs:
                if self.pairs[a] is not b and not (a.const is not None and self.constants.equal(self.pairs[a], b)):
                    raise Differs(b.producer)
                continue
            self.pairs[a] = b
            stack += self._inside(a, b)

    def _inside(self, a: Value, b: Value) -> list[tuple[Value, Value]]:
        if a in self.leaves:
            before = self.steps.upto(self.step - 1) if self.step else 0
            if self.steps.mask(b) != before:
                raise Differs(b.producer)
            self.met[a] = b
            return []
        if a.const is not None:
            if b.const is None:
                raise Differs(b.producer)
            if not self.constants.equal(a, b):
                raise Differs(None, parameters=a.const.shape == b.const.shape)
            return []
        if a in self.steps.element:
            if self.steps.element.get(b) != (self.steps.element[a][0], self.step) or a.shape != b.shape:
                raise Differs(b.producer)
            return []
        if not self.steps.mask(a):
            if a is not b:
                raise Differs(b.producer)
            return []
        one, two = a.producer, b.producer
        if one is None or two is None or not _alike(one, two) or one.outputs.index(a) != two.outputs.index(b):
            raise Differs(two)
        pairs: list[tuple[Value, Value]] = []
        for x, y in zip(one.inputs, two.inputs, strict=True):
            if (x is None) != (y is None):
                raise Differs(two)
            if x is not None and y is not None:
                pairs.append((x, y))
        return pairs


def _alike(one: Node, two: Node) -> bool:
    if one.kind != two.kind or len(one.inputs) != len(two.inputs) or len(one.outputs) != len(two.outputs):
        return False
    if one.captures or two.captures or one.attrs.keys() != two.attrs.keys():
        return False
    return all(_equal(one.attrs[key], two.attrs[key]) for key in one.attrs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)
