"""Sequences of which single elements are taken at constant places: where an unrolled loop gets its x_t from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from normfold.graph import Graph, Node, Value

END = 1 << 31
_MOVES = frozenset("Identity Gather Slice Squeeze Unsqueeze Transpose Split Reshape Flatten".split())


@dataclass(eq=False)
class Source:
    """A sequence whose elements along `axis` are taken one by one: taken[value] = place."""

    value: Value
    axis: int
    taken: dict[Value, int] = field(default_factory=dict[Value, int])


class _Bases:
    """What elements are taken from, told through slices that take everything and through equal operations that are repeated."""

    def __init__(self) -> None:
        self._known: dict[Value, Value] = {}
        self._made: dict[tuple[object, ...], Value] = {}

    def of(self, value: Value) -> Value:
        if value not in self._known:
            self._known[value] = self._base(value)
        return self._known[value]

    def _base(self, value: Value) -> Value:
        node = value.producer
        source = node.inputs[0] if node is not None and node.kind in _MOVES and node.inputs else None
        if node is None or source is None or source.const is not None:
            return value
        base = self.of(source)
        if node.kind == "Identity" or (node.kind == "Slice" and takes_all(node)):
            return base
        others = [item for item in node.inputs[1:] if item is not None]
        if any(item.const is None or item.const.size > 16 for item in others):
            return value
        numbers = tuple(item.const.read().tobytes() for item in others if item.const is not None)
        key = (node.kind, repr(sorted(node.attrs.items())), node.outputs.index(value), base, numbers)
        return self._made.setdefault(key, value)


def takes_all(node: Node) -> bool:
    """True for a Slice that cuts nothing off, whatever the sizes are."""
    attrs = node.attrs
    rows = [attrs.get(key) for key in ("starts", "ends", "steps")]
    if any(row is None for row in rows):
        return False
    return all(start == 0 and end >= END and step == 1 for start, end, step in zip(*rows, strict=True))


def sources(graph: Graph) -> list[Source]:
    """Sequences of which two or more single elements are taken."""
    found: dict[tuple[Value, int], Source] = {}
    bases = _Bases()
    for node in graph.nodes:
        if any(value in graph.pinned for value in node.inputs[1:]):
            continue
        for value, axis, place in _taken(node):
            x = node.inputs[0]
            assert x is not None
            base = bases.of(x)
            length = None if base.shape is None else base.shape[axis]
            if place < 0 and not isinstance(length, int):
                continue
            place += length if place < 0 and isinstance(length, int) else 0
            flipped = _flipped(base, axis)
            if flipped is not None and isinstance(length, int):
                base, place = bases.of(flipped), length - 1 - place
            source = found.setdefault((base, axis), Source(base, axis))
            source.taken[value] = place
    return [source for source in found.values() if len(set(source.taken.values())) > 1]


def _flipped(value: Value, axis: int) -> Value | None:
    """x, where `value` is x with its elements along `axis` in the opposite order."""
    node = value.producer
    if node is None or node.kind != "Slice" or node.inputs[0] is None or value.rank is None:
        return None
    axes, steps, starts, ends = (node.attrs.get(key, ()) for key in ("axes", "steps", "starts", "ends"))
    plain = len(axes) == 1 and axes[0] % value.rank == axis and steps == (-1,) and starts == (-1,) and ends[0] <= -END
    return node.inputs[0] if plain else None


def _taken(node: Node) -> Iterator[tuple[Value, int, int]]:
    """(output, axis, place) of every element that `node` takes; a place below zero counts from the end."""
    x = node.input(0)
    if x is None or x.const is not None or x.rank is None:
        return
    if node.kind == "Gather" and node.inputs[1] is not None and node.inputs[1].const is not None:
        index = node.inputs[1].const
        if index.size == 1 and len(index.shape) <= 1:
            yield node.output, int(node.attrs.get("axis", 0)) % x.rank, int(index.read().reshape(()))
    elif node.kind == "Slice" and all(key in node.attrs for key in ("starts", "ends", "axes", "steps")):
        rows = zip(*(node.attrs[key] for key in ("starts", "ends", "axes", "steps")), strict=True)
        real = [row for row in rows if not (row[0] == 0 and row[1] >= END and row[3] == 1)]
        if len(real) == 1:
            start, end, axis, step = real[0]
            last = end >= END and start == -1
            if step == 1 and (end - start == 1 or last) and (start >= 0) == (end > 0 or last is False):
                yield node.output, axis % x.rank, start
    elif node.kind == "Split" and set(node.attrs.get("split", ())) == {1}:
        for place, value in enumerate(node.outputs):
            yield value, int(node.attrs.get("axis", 0)) % x.rank, place
