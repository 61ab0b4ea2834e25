"""The label phase: every tensor of a graph gets labels, every operation states what it demands of them.

One forward pass: producers get fresh labels, layout operations carry them along, an operation without a rule pins what it
touches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from normfold.algebra.labels import Labels, identity, raise_rank, varying
from normfold.algebra.ratios import Floats, Ints
from normfold.algebra.solve import Wish
from normfold.algebra.system import System
from normfold.graph import Array, Graph, Node, Value, is_float

LayerKind = Literal["norm", "add", "mul"]
MAX_FRESH = 1 << 20  # a tensor that would need more unknowns than this keeps its gauge


@dataclass(eq=False)
class AffineLayer:
    """A candidate for deletion: y = a x + c with constants a and c.

    kind: "norm" (can absorb and produce any gauge when it stays), "add" (a == 1), "mul" (c == 0).
    slot: which input of `node` is x.
    rms: root mean square of x by channel, broadcastable to x, where the layer's own statistics tell it.
    """

    kind: LayerKind
    node: Node
    slot: int
    x: Value
    y: Value
    a: Floats
    c: Floats
    unless_scale: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    unless_shift: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rms: Floats | None = None


@dataclass(frozen=True)
class Inserts:
    """Which nodes may be put in so that a layer can go.

    bias: an Add behind a MatMul, which has no bias.  shift: what is left of a layer whose scale alone could go.
    border_map: an Add of what a zero-padded convolution makes of a shifted input.
    denied: outputs (by name) behind which nothing may be put all the same.
    """

    bias: bool = False
    shift: bool = False
    border_map: bool = False
    denied: frozenset[str] = frozenset()


_READ_SIZES = frozenset(("Shape", "Size", "aten::sym_size"))  # whatever the elements are
Role = tuple[str | int, ...]
Rule = Callable[[Node, "Wiring"], None]


class Wiring:
    """Labels of all values of `graph` and the system of demands on them.

    rules: one function an op kind.  inserts: the new nodes that gauges may ask for.
    """

    def __init__(self, graph: Graph, rules: Mapping[str, Rule], inserts: Inserts) -> None:
        self.graph = graph
        self.system = System()
        self.inserts = inserts
        self.layers: list[AffineLayer] = []
        self._labels: dict[Value, Labels] = {}
        self._weights: dict[Value, list[tuple[Node, Role, Ints, Ints]]] = {}
        for value in graph.inputs:
            self.set_identity(value)
        for number, node in enumerate(graph.nodes):
            self.system.asker = number
            rule = rules.get(node.kind)
            known = all(value.rank is not None for value in (*node.inputs, *node.outputs) if value is not None)
            if node.kind in _READ_SIZES:
                self.set_identity(node.output)
            elif rule is None or not known or not any(is_float(value.dtype) for value in node.outputs):
                self.pin_node(node)
            else:
                rule(node, self)
            for value in node.captures:
                self.pin(value, "captured", f"a sub-graph of {node.label}")
        self.system.asker = -1
        for value in graph.outputs:
            self.pin(value, "graph-output", f"graph output {value.name}")
        self._tie_shared_weights()

    # ---- labels ---------------------------------------------------------------------------------------------------

    def of(self, value: Value) -> Labels:
        """Labels of a value; constants and values not yet seen have the identity."""
        found = self._labels.get(value)
        return found if found is not None else identity(value.rank or 0)

    def set(self, value: Value, scale: Ints, shift: Ints) -> None:
        self._labels[value] = Labels(scale, shift)

    def set_identity(self, value: Value) -> None:
        self._labels[value] = identity(value.rank or 0)

    def fresh_shape(self, value: Value, axes: Collection[int]) -> tuple[int, ...] | None:
        """Label shape that varies along `axes`; None when a size is unknown or the labels would be too many."""
        assert value.shape is not None
        sizes = [value.shape[axis] if axis in axes else 1 for axis in range(len(value.shape))]
        shape = tuple(size for size in sizes if isinstance(size, int))
        return shape if len(shape) == len(sizes) and 0 < int(np.prod(shape)) <= MAX_FRESH else None

    def set_fresh(self, value: Value, axes: Collection[int]) -> bool:
        """Fresh labels along `axes`; False (and the identity) when that is impossible."""
        shape = self.fresh_shape(value, axes)
        if shape is None:
            self.set_identity(value)
            return False
        self.set(value, self.system.new_scales(shape), self.system.new_shifts(shape))
        return True

    # ---- demands --------------------------------------------------------------------------------------------------

    def pin(self, value: Value, code: str, subject: str) -> None:
        """Demand the identity of `value`."""
        labels = self.of(value)
        self.system.pin_scale(labels.scale, code, subject)
        self.system.zero_shift(labels.shift, code, subject)

    def pin_node(self, node: Node, code: str = "no-rule") -> None:
        """No rule: everything the node reads and writes keeps the identity."""
        for value in node.inputs:
            if value is not None and value.const is None:
                self.pin(value, code, f"{node.kind} ({node.label})")
        for value in node.outputs:
            self.set_identity(value)

    def zero_shift(self, value: Value, code: str, node: Node, *, relaxable: bool = False) -> None:
        self.system.zero_shift(self.of(value).shift, code, f"{node.kind} ({node.label})", relaxable=relaxable)

    def positive(self, value: Value, node: Node) -> None:
        self.system.demand_positive(self.of(value).scale, f"{node.kind} ({node.label})")

    def even_out(self, value: Value, keep: Collection[int]) -> None:
        """Demand one gauge along every axis but those in `keep`: what mixes elements along an axis takes no other."""
        self.even_scale(value, keep)
        self.even_shift(value, keep)

    def even_scale(self, value: Value, keep: Collection[int]) -> None:
        """Demand one scale along every axis but those in `keep`."""
        labels = self.of(value)
        self.set(value, _evened(labels.scale, keep, self.system.join_scale), labels.shift)

    def even_shift(self, value: Value, keep: Collection[int]) -> None:
        """Demand one shift along every axis but those in `keep`."""
        labels = self.of(value)
        self.set(value, labels.scale, _evened(labels.shift, keep, lambda a, b: self.system.sum_shifts(a, [(1.0, b)])))

    def weight(self, value: Value, node: Node, x: Value, y: Value, role: Role) -> None:
        """Register that `node` folds the scales of x and y into the constant `value`.

        role: which axes of the weight are inputs and outputs; only equal roles can share one W'.
        """
        self._weights.setdefault(value, []).append((node, role, self.of(x).scale.ravel(), self.of(y).scale.ravel()))

    def layer(self, layer: AffineLayer) -> None:
        self.layers.append(layer)

    def _tie_shared_weights(self) -> None:
        """One weight read by several layers: one W' must serve all of them, so their gauges are the same.

        A reader that cannot fold (another op, another role) keeps the weight as it is.
        """
        for value, readers in self._weights.items():
            foreign = len(value.uses) > len(readers) or self.graph.is_fixed(value)
            if foreign or len({role for _, role, _, _ in readers}) > 1:
                for node, _, x, y in readers:
                    for labels in (x, y):
                        self.system.pin_scale(labels, "shared-weight", f"the weight {value.param or value.name} of {node.label}")
                continue
            (_, _, x, y), *others = readers
            for _, _, other_x, other_y in others:
                self.system.join_scale(x, other_x)
                self.system.join_scale(y, other_y)

    def wish(self, layer: AffineLayer) -> Wish:
        """The layer as labels, for the solver."""
        x, y = self.of(layer.x), self.of(layer.y)
        rank = y.scale.ndim
        return Wish(
            raise_rank(x.scale, rank),
            y.scale,
            layer.a,
            raise_rank(x.shift, rank),
            y.shift,
            layer.c,
            layer.unless_scale,
            layer.unless_shift,
            shift_form=layer.kind == "norm" and self.inserts.shift,
            late=layer.kind != "norm",
        )


def _evened(item: Ints, keep: Collection[int], same: Callable[[Ints, Ints], None]) -> Ints:
    """`item` at index 0 of every axis that is not kept, after demanding that the others are the same."""
    for axis in varying(item):
        if axis not in keep:
            first = np.take(item, [0], axis=axis)
            same(item, first)
            item = first
    return item


def constant_of(value: Value | None, graph: Graph) -> Array | None:
    """The float64 array of a constant that may be replaced; None for everything else."""
    return value.const.float64() if value is not None and value.const is not None and is_foldable(value, graph) else None


def is_foldable(value: Value | None, graph: Graph) -> bool:
    """True for a float constant that may be replaced (nobody reads the data here)."""
    return value is not None and value.const is not None and is_float(value.dtype) and value not in graph.pinned


def spread(array: Array, rank: int) -> Array:
    """Raise to `rank` by leading axes of size 1."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def collapse(array: Array) -> Array:
    """Give every axis along which `array` is constant the size 1."""
    for axis, size in enumerate(array.shape):
        if size > 1:
            first = np.take(array, [0], axis=axis)
            if bool(np.all(array == first)):
                array = first
    return array


def join_all(wiring: Wiring, labels: Sequence[Ints]) -> Ints:
    """Demand equal scales of arrays that broadcast together; returns labels of the broadcast shape."""
    shape = np.broadcast_shapes(*(item.shape for item in labels))
    first = max(labels, key=lambda item: (item.shape == shape, item.size))
    result = np.broadcast_to(first, shape)
    for item in labels:
        if item is not first:
            wiring.system.join_scale(result, item)
    return result
