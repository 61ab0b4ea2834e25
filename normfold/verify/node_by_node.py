"""G1: every rewritten node works on reference inputs, in float64.

Every promised value is replaced by what it should be before the next node reads it, so that errors do not travel; a node's
outputs must agree to 1e-12 of their componentwise magnitude (`magnitude`).  Nodes that stand as in the original, between values
that do, are not looked at.  A failure is judged again like one of the certificate: branches that cancelled leave a merged weight
smaller than what the original's sum lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normfold.graph import Array, Gauge, Graph, Node, Value, is_float
from normfold.verify.channels import channel_axis, extent, finite_pattern, largest, named
from normfold.verify.evaluate import Walk
from normfold.verify.judged import TINY, Given, Judged
from normfold.verify.magnitude import magnitude
from normfold.verify.promises import Held

ALGEBRA = 1e-12


class NodeByNode:
    """The rewritten graph on reference inputs: G1."""

    def __init__(
        self,
        before: Graph,
        after: Graph,
        feeds: Mapping[str, Array],
        promises: Mapping[Value, tuple[Gauge, ...]],
        judged: Judged,
        given: Given,
    ) -> None:
        self.values = Walk(after, feeds, given=given)
        self.sizes: dict[Value, Held | Array] = {}  # of the values that are held; a promise is worked out when somebody asks
        self.judged = judged
        self.after = after
        producers = {value.name: node for node in before.nodes for value in node.outputs}
        plain = {value for value, gauges in promises.items() if any(g.identity and g.original == value.name for g in gauges)}
        self.untouched = {
            node
            for node in after.nodes
            if all(value in plain for value in node.outputs)
            and all(value is None or value.const is not None or value in plain for value in (*node.inputs, *node.captures))
            and _same(node, producers.get(node.output.name))
        }

    def inputs(self, met: Mapping[Value, Held]) -> None:
        """Graph inputs, which a rewrite leaves as they are."""
        for value in self.after.inputs:
            self.sizes[value] = met.get(value) or _absolute(self.values.read(value))

    def node(self, node: Node, met: Mapping[Value, Held]) -> None:
        """Judge one node against its outputs' promises, then let these stand for it."""
        promised = [met[value] for value in node.outputs if value in met]
        if node in self.untouched and len(promised) == len(node.outputs):
            self._settle(node, [held.expected for held in promised], promised)
            return
        arrays = self.values.inputs_of(node)
        results = self.values.results_of(node)
        sizes = magnitude(node, [self._size(value) for value in (*node.inputs, *node.captures)], arrays, results)
        self._settle(node, results, sizes)
        for value, array, size in zip(node.outputs, results, sizes, strict=True):
            held = met.get(value)
            if held is None or held.expected.shape != array.shape or not is_float(array.dtype) or not array.size:
                continue
            expected = held.instead_of(array, held.expected)
            self._compare(value, array, expected, np.maximum(size, held.instead_of(size, held.magnitude)), held)
            self.values.replace(value, expected)
            if value in self.sizes:
                self.sizes[value] = held if held.open is None else held.instead_of(size, held.magnitude)

    def _settle(self, node: Node, results: Sequence[Array], sizes: Sequence[Held | Array]) -> None:
        self.values.settle(node, results)
        self.sizes.update(zip(node.outputs, sizes, strict=True))
        for value in [*node.outputs, *(value for value in (*node.inputs, *node.captures) if value is not None)]:
            if not self.values.holds(value):
                self.sizes.pop(value, None)

    def _size(self, value: Value | None) -> Array | None:
        """The magnitude of what a node reads."""
        if value is None:
            return None
        if value.const is not None:
            return _absolute(self.values.read(value))
        size = self.sizes[value]
        return size.magnitude if isinstance(size, Held) else size

    def _compare(self, value: Value, array: Array, expected: Array, size: Array, held: Held) -> None:
        keep = channel_axis(array.ndim)
        with np.errstate(all="ignore"):
            ratios = extent((array - expected) / np.maximum(size, TINY), keep)
        if not np.isfinite(ratios).all():
            pattern = finite_pattern(array, expected)
            if pattern is not None:
                self.judged.add("G1", value.name, float("inf"), ALGEBRA, pattern.where)
                return
            with np.errstate(all="ignore"):
                ratio = np.abs(array - expected) / np.maximum(size, TINY)
                ratios = largest(np.where(np.isfinite(expected), ratio, 0.0), keep)
        worst = int(np.argmax(ratios))
        self.judged.add("G1", value.name, float(ratios[worst]), ALGEBRA, named(array.shape, keep, worst))
        if ratios[worst] > ALGEBRA:  # terms that the original adds up, and that one weight now holds, may have cancelled
            with np.errstate(all="ignore"):
                errors = extent(array - expected, keep)
            self.judged.doubt(held, keep, errors, ratios, array.shape)


def _absolute(array: Array) -> Array:
    return np.abs(array) if is_float(array.dtype) else array


def _same(node: Node, other: Node | None) -> bool:
    """True when both are one op with the same attributes and constants, reading values of the same names."""
    if (
        other is None
        or node.kind != other.kind
        or len(node.inputs) != len(other.inputs)
        or node.attrs.keys() != other.attrs.keys()
    ):
        return False
    if [value.name for value in node.outputs] != [value.name for value in other.outputs]:
        return False
    if not all(_equal(node.attrs[name], other.attrs[name]) for name in node.attrs):
        return False
    return all(_same_value(a, b) for a, b in zip((*node.inputs, *node.captures), (*other.inputs, *other.captures), strict=False))


def _same_value(a: Value | None, b: Value | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.const is None or b.const is None:
        return a.const is b.const and a.name == b.name
    return a.const is b.const or (a.const.shape == b.const.shape and _equal(a.const.read(), b.const.read()))


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")
