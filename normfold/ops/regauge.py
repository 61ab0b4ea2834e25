"""The other end of the label phase: gauges are known, constants take them up."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from normfold.algebra.absorb import Gauges
from normfold.algebra.labels import Labels
from normfold.algebra.ratios import Floats
from normfold.graph import Array, Graph, Node, Value
from normfold.ops.wiring import Wiring


class Regauge:
    """Scale and shift of every value, and the edits that put them into constants.

    changed: parameter names that were replaced, by node.
    numbers: attributes that were given a new number, and the type in which it will be stored, by node.
    added: the old outputs behind which something was put, and what ("bias Add", "border map").
    stands_for: an inserted value -> the value of the old graph whose regauged form it is.
    moved: a value whose regauged form is now made by an inserted Add -> (that form, what the Add adds; None: not a constant).
    """

    def __init__(self, wiring: Wiring, scale: Floats, shift: Floats) -> None:
        self.graph: Graph = wiring.graph
        self._wiring = wiring
        self._scale, self._shift = scale, shift
        self._made: dict[tuple[Value, bytes], Value] = {}
        self._shared: set[Value] = set()
        self.changed: dict[Node, list[str]] = {}
        self.numbers: dict[Node, tuple[float, np.dtype[Any]]] = {}
        self.added: list[tuple[Value, str]] = []
        self.stands_for: dict[Value, Value] = {}
        self.moved: dict[Value, tuple[Value, Floats | None]] = {}

    def labels(self, value: Value) -> Labels:
        return self._wiring.of(self.stands_for.get(value, value))

    def scale(self, value: Value) -> Floats:
        """s of `value`, broadcastable to its shape."""
        return self._scale[self.labels(value).scale]

    def shift(self, value: Value) -> Floats:
        """t of `value`, broadcastable to its shape."""
        return self._shift[self.labels(value).shift]

    def is_identity(self, value: Value) -> bool:
        return bool(np.all(self.scale(value) == 1.0) and np.all(self.shift(value) == 0.0))

    def touches(self, node: Node) -> bool:
        """True when something that `node` reads or writes changed its gauge."""
        return any(v is not None and v.const is None and not self.is_identity(v) for v in (*node.inputs, *node.outputs))

    def channels(self, value: Value, size: int) -> tuple[Floats, Floats]:
        """(s, t) of `value` along its one varying axis, each of shape [size]."""
        return np.broadcast_to(self.scale(value).ravel(), (size,)), np.broadcast_to(self.shift(value).ravel(), (size,))

    def ends(self, x: Value, y: Value, inputs: int, outputs: int) -> Gauges:
        """Gauges of a layer between the `inputs` channels of x and the `outputs` channels of y."""
        return Gauges(*self.channels(x, inputs), *self.channels(y, outputs))

    def rescales(self, *values: Value) -> bool:
        """True when one of `values` has a scale other than one."""
        return any(bool(np.any(self.scale(value) != 1.0)) for value in values)

    def replace(self, node: Node, slot: int, array: Array) -> None:
        """Give `node` a new float64 constant at `slot`; equal replacements of one shared constant stay shared."""
        old = node.inputs[slot]
        assert old is not None and old.const is not None
        if array.ndim < 2 and array.shape == old.const.shape and np.array_equal(array, old.const.float64(), equal_nan=True):
            return  # (large weights are compared by their gauges, which costs nothing: `rescales`)
        shared = len(old.uses) > 1 or old in self._shared
        if shared:
            self._shared.add(old)
        key = (old, hashlib.blake2b(np.ascontiguousarray(array).data).digest() if shared else b"")
        new = self._made.get(key)
        if new is None or not shared:
            new = self.graph.derived(old, np.asarray(array, order="C"))
            self._made[key] = new
        self.graph.set_input(node, slot, new)
        self.changed.setdefault(node, []).append(old.param or old.name)

    def set_number(self, node: Node, name: str, value: float, dtype: np.dtype[Any]) -> None:
        """Give the attribute `name` of `node` another number, which an artefact stores as `dtype`."""
        node.attrs[name] = value
        self.numbers[node] = (value, dtype)
        self.changed.setdefault(node, []).append(f"{node.label} {name}")

    def set_bias(self, node: Node, slot: int, array: Array, like: Value) -> None:
        """Replace the bias of `node` at `slot`, or give it one (named after the weight `like`)."""
        if node.input(slot) is not None:
            self.replace(node, slot, array)
        elif np.any(array != 0.0):
            self.give_bias(node, slot, array, like)
            self.note_bias(node, like)

    def give_bias(self, node: Node, slot: int, array: Array, like: Value) -> None:
        """Put a bias at `slot`, where none is; one weight at many steps gets one bias, too."""
        key = (like, b"bias%d" % slot + hashlib.blake2b(np.ascontiguousarray(array).data).digest())
        value = self._made.get(key)
        if value is None:
            value = self._made[key] = self.graph.derived(like, array, suffix="bias")
            value.param = ""
        self.graph.set_input(node, slot, value)

    def add_behind(self, node: Node, addend: Array | Value, like: Value, suffix: str) -> None:
        """Put ``Add(y, addend)`` behind `node`: the sum takes over the readers of y.

        addend: a float64 array to be stored in `like`'s type, or a value made by a node in front of `node`'s readers.
        """
        graph, y = self.graph, node.output
        total = graph.value(f"{y.name}_{suffix}", y.shape, y.dtype)
        graph.replace_uses(y, total)
        graph.outputs = [total if value is y else value for value in graph.outputs]
        if isinstance(addend, Value):
            anchor, term = addend.producer or node, addend
            self.moved[y] = (total, None)
        else:
            anchor, term = node, graph.derived(like, addend, suffix=suffix)
            term.param = ""
            self.moved[y] = (total, addend)
        label = f"{node.name}_{suffix}" if node.name else ""
        graph.insert_after(anchor, Node("Add", [y, term], [total], name=label, module=node.module))
        self.added.append((y, "border map" if suffix == "border" else f"{suffix} Add"))
        self.stands_for[total] = y

    def note_bias(self, node: Node, like: Value) -> None:
        """Record that `node` got a bias beside the weight `like`."""
        weight = like.param or like.name
        owner, _, last = weight.rpartition("weight")
        recurrent = last.startswith("_ih_l")  # as torch calls them: weight_ih_l0, bias_ih_l0
        name = f"{owner}bias{last}" if owner + last != weight and (not last or recurrent) else f"{weight} bias"
        self.changed.setdefault(node, []).append(f"{name} (new)")
