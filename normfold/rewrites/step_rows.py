"""Writes layers of steps once, on the rows of all steps laid on each other: [T B, ...] in the place of T times [B, ...]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normfold.graph import Dim, Graph, Node, Value
from normfold.rewrites.recurrent_collect import collect
from normfold.rewrites.row_wise import NORMS
from normfold.rewrites.step_lines import Layer, Line


class Rows:
    """Layers of one graph that share their places, to be replaced in it."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.graph, self.layers = graph, layers
        self.gone = {node for layer in layers for node in layer.nodes}
        self.made: dict[Line, Value] = {}
        self.cut: dict[tuple[Line, frozenset[int]], Value] = {}
        self.names: list[tuple[Value, Value]] = []  # what stood for one step, what stands for it now

    def written(self) -> dict[str, str] | None:
        """Replace the layers; returns norms by the names of their outputs, before and now.  None where that cannot be."""
        norms: dict[str, Value] = {}
        for layer in self.layers:
            self._once(layer)
            if layer.first.kind in NORMS:
                norms |= dict.fromkeys((node.output.name for node in layer.nodes), self.made[layer.outputs[0]])
        for layer in self.layers:
            for line in layer.outputs:
                self._hand_out(line)
        if not self.graph.sort():
            return None
        self.graph.prune()
        alive = set(self.graph.values())
        for old, new in self.names:
            if new in alive and self.graph.is_free(old.name):
                self.graph.rename(new, old.name)
                new.gauges = old.gauges
        return {name: value.name for name, value in norms.items()}

    # ---- rows --------------------------------------------------------------------------------------------------------------

    def _once(self, layer: Layer) -> None:
        """One node for all steps."""
        first, places = layer.first, layer.places
        inputs = [self._rows(item, places) if isinstance(item, Line) else item for item in layer.inputs]
        outputs: list[Value] = []
        for value, line in zip(first.outputs, layer.outputs, strict=True):
            size = value.shape[0] if value.shape else None
            count = len(places) * size if isinstance(size, int) else None
            self.made[line] = self._value(f"{value.name}_steps", (count, *line.shape[1:]), value)
            outputs.append(self.made[line])
        self.graph.append(Node(first.kind, inputs, outputs, dict(layer.attrs), f"{first.name}_steps", first.module))

    def _rows(self, line: Line, places: frozenset[int]) -> Value:
        """What a layer at `places` reads of a line, as rows: those of the first place, then those of the second, ..."""
        if line.made is not None:
            return self.made[line]
        key = line, places
        if key not in self.cut:
            self.cut[key] = self._from_sequence(line, places) if line.source is not None else self._concat(line)
        return self.cut[key]

    def _concat(self, line: Line) -> Value:
        values = sorted(line.members, key=line.members.__getitem__)
        size = line.shape[0]
        count = len(values) * size if isinstance(size, int) else None
        return self._add("Concat", list(values), (count, *line.shape[1:]), values[0], "steps", axis=0)

    def _from_sequence(self, line: Line, places: frozenset[int]) -> Value:
        source = line.source
        assert source is not None and source.value.shape is not None
        value, axis, shape = source.value, source.axis, source.value.shape
        first, count = min(places), len(places)
        if shape[axis] != count:
            sizes = (*shape[:axis], count, *shape[axis + 1 :])
            rows = {"starts": (first,), "ends": (first + count,), "axes": (axis,), "steps": (1,)}
            value = self._add("Slice", [value], sizes, value, "part", **rows)
        if any(size != 1 for size in shape[:axis]):
            perm = (axis, *(place for place in range(len(shape)) if place != axis))
            value = self._add(
                "Transpose", [value], [(value.shape or shape)[place] for place in perm], value, "in_turn", perm=perm
            )
        size = line.shape[0]
        total = count * size if isinstance(size, int) else None
        if value.rank == len(line.shape) and axis == 0:
            return value
        return self._add("Reshape", [value], (total, *line.shape[1:]), value, "rows", shape=(-1, *line.shape[1:]))

    # ---- what reads the results --------------------------------------------------------------------------------------------

    def _hand_out(self, line: Line) -> None:
        """Give everything else that reads results of single steps what it needs."""
        needed = self._needed(line)
        if not needed:
            return
        rows, first, count = self.made[line], min(line.places), len(line.places)
        size, rest = line.shape[0], line.shape[1:]
        shape = (count, size if isinstance(size, int) else -1, *rest)
        sequence = self._add("Reshape", [rows], (count, size, *rest), rows, "sequence", shape=shape)
        collect(self.graph, sequence, {value: place - first for value, place in needed.items()})
        needed = self._needed(line)
        places = sorted(set(needed.values()))
        if isinstance(size, int) and 2 * len(places) > count:
            like = next(iter(needed))
            parts = [self._value(f"{like.name}_step", line.shape, like) for _ in range(count)]
            name = f"{rows.name}_split"
            self.graph.append(Node("Split", [rows], parts, {"axis": 0, "split": (size,) * count}, name, self._module(like)))
            of = {place: parts[place - first] for place in places}
        else:
            of = {place: self._step(sequence, place - first, line) for place in places}
        for value, place in needed.items():
            self._stands_for(of[place], value)

    def _needed(self, line: Line) -> dict[Value, int]:
        def outside(value: Value) -> bool:
            return any(use.node not in self.gone for use in value.uses)

        return {value: place for value, place in line.members.items() if self.graph.is_output(value) or outside(value)}

    def _step(self, sequence: Value, place: int, line: Line) -> Value:
        index = self.graph.constant(f"{sequence.name}_at", np.array(place, np.int64))
        return self._add("Gather", [sequence, index], line.shape, sequence, "step", axis=0)

    def _stands_for(self, new: Value, old: Value) -> None:
        for use in list(old.uses):
            if use.node not in self.gone:
                self.graph.set_input(use.node, use.slot, new)
        self.graph.outputs = [new if value is old else value for value in self.graph.outputs]
        self.names.append((old, new))

    # ---- nodes -------------------------------------------------------------------------------------------------------------

    def _value(self, name: str, shape: Sequence[Dim], like: Value) -> Value:
        return self.graph.fresh(name, shape, like.dtype)

    def _add(
        self, kind: str, inputs: list[Value | None], sizes: Sequence[Dim], like: Value, suffix: str, **attrs: object
    ) -> Value:
        made = self._value(f"{like.name}_{suffix}", sizes, like)
        self.graph.append(Node(kind, inputs, [made], dict(attrs), made.name, self._module(like)))
        return made

    def _module(self, like: Value) -> str:
        return like.producer.module if like.producer is not None else ""
