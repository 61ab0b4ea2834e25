"""What all steps of a loop do alike to the elements of one sequence, whether the steps read each other or not.

x_0 -> f -> y_0,  x_1 -> f -> y_1, ...          the line x, the layer f with its one set of constants, the line y
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from normfold.graph import Graph, Node, Shape, Value
from normfold.rewrites.recurrent_compare import Constants
from normfold.rewrites.recurrent_sources import Source, sources
from normfold.rewrites.row_wise import PRODUCTS, attributes, is_rows

FEWEST = 2  # steps


@dataclass(eq=False)
class Line:
    """Tensors of one shape, at least one at each place of a sequence.

    source: what they are taken from; made: the layer that makes them; neither where they are to be joined first.
    """

    shape: Shape
    members: dict[Value, int] = field(default_factory=dict[Value, int])
    source: Source | None = None
    made: Layer | None = None

    @property
    def places(self) -> frozenset[int]:
        return frozenset(self.members.values())


@dataclass(eq=False)
class Layer:
    """One operation that stands at every place with the same constants.

    attrs: those with which it does the same to the rows of all steps.  inputs: lines, what all steps share, None.
    """

    attrs: dict[str, Any]
    inputs: tuple[Line | Value | None, ...]
    outputs: list[Line]
    nodes: dict[Node, int] = field(default_factory=dict[Node, int])

    @property
    def places(self) -> frozenset[int]:
        return frozenset(self.nodes.values())

    @property
    def first(self) -> Node:
        return next(iter(self.nodes))

    @property
    def lines(self) -> list[Line]:
        return [item for item in self.inputs if isinstance(item, Line)]


class Lines:
    """All layers over given lines, in topological order.  only: the nodes that may belong to them; all by default."""

    def __init__(self, graph: Graph, roots: Iterable[Line], only: Collection[Node] | None = None) -> None:
        self.graph = graph
        self.constants = Constants(graph)
        self.of: dict[Value, tuple[Line, int]] = {}
        self.layers: dict[object, Layer] = {}
        for line in roots:
            for value, place in line.members.items():
                self.of.setdefault(value, (line, place))
        for node in graph.nodes:
            if only is None or node in only:
                self._visit(node)

    def _visit(self, node: Node) -> None:
        found = [self.of.get(value) if value is not None else None for value in node.inputs]
        places = {item[1] for item in found if item is not None}
        if len(places) != 1 or any(self._is_root(value) for value in node.outputs):
            return
        attrs = attributes(node, [slot for slot, item in enumerate(found) if item is not None])
        if attrs is None or _only_stacked(node):
            return
        inputs = tuple(item[0] if item is not None else value for value, item in zip(node.inputs, found, strict=True))
        key = node.kind, repr(sorted(attrs.items())), tuple(self._key(item) for item in inputs), len(node.outputs)
        layer = self.layers.get(key)
        if layer is None:
            layer = self.layers[key] = Layer(attrs, inputs, [])
            layer.outputs = [Line(value.shape or (), made=layer) for value in node.outputs]
        if any(value.shape != line.shape for value, line in zip(node.outputs, layer.outputs, strict=True)):
            return
        (place,) = places
        layer.nodes[node] = place
        for value, line in zip(node.outputs, layer.outputs, strict=True):
            if value in self.of:
                del self.of[value][0].members[value]
            line.members[value] = place
            self.of[value] = line, place

    def _is_root(self, value: Value) -> bool:
        """True for an element of a sequence, but for one that is a part of such an element."""
        line, _ = self.of.get(value, (None, 0))
        return line is not None and (line.source is None or line.source.value not in self.of)

    def _key(self, item: Line | Value | None) -> object:
        return self.constants.key(item) if isinstance(item, Value) else item


def _only_stacked(node: Node) -> bool:
    """True for an axis that is put in so that a Concat can join the steps along it."""
    uses = node.output.uses
    return node.kind == "Unsqueeze" and bool(uses) and all(use.node.kind == "Concat" for use in uses)


def sequences(graph: Graph) -> list[Line]:
    """The elements of every sequence of which several are taken."""
    found: list[Line] = []
    for source in sources(graph):
        by_shape: dict[Shape | None, Line] = {}
        for value, place in source.taken.items():
            for element in (value, *_squeezed(value, source)):
                if is_rows(element) and place >= 0:
                    line = by_shape.setdefault(element.shape, Line(element.shape or (), source=source))
                    line.members[element] = place
        found += by_shape.values()
    return found


def _squeezed(value: Value, source: Source) -> Iterator[Value]:
    """The elements without the axis along which they were cut."""
    if value.rank == source.value.rank:
        for use in value.uses:
            axes = use.node.attrs.get("axes", ())
            if use.node.kind == "Squeeze" and len(axes) == 1 and axes[0] % (value.rank or 1) == source.axis:
                yield use.node.output


def components(lines: Lines, allowed: Callable[[Layer], bool]) -> list[list[Layer]]:
    """Layers that can be done for all steps at once and belong to a product, joined where they share lines."""
    layers = list(lines.layers.values())
    able: dict[Layer, None] = {}
    for layer in layers:
        if _regular(layer) and allowed(layer) and all(line.made is None or line.made in able for line in layer.lines):
            able[layer] = None
    wanted: set[Layer] = set()
    for layer in able:
        behind = any(line.made in wanted for line in layer.lines)
        if layer.first.kind in PRODUCTS or behind:
            stack = [layer]
            while stack:
                item = stack.pop()
                wanted.add(item)
                stack += [line.made for line in item.lines if line.made is not None and line.made not in wanted]
    return _joined([layer for layer in able if layer in wanted])


def _regular(layer: Layer) -> bool:
    """True where it stands at every place between two, as what it reads does."""
    places = layer.places
    if len(places) < FEWEST or max(places) - min(places) + 1 != len(places):
        return False
    return all(line.places == places if line.made is not None else line.places >= places for line in layer.lines)


def _joined(layers: Sequence[Layer]) -> list[list[Layer]]:
    groups: list[tuple[set[Line], list[Layer]]] = []
    for layer in layers:
        own = {*layer.lines, *layer.outputs}
        touching = [group for group in groups if group[0] & own]
        groups = [group for group in groups if group not in touching]
        groups.append((own.union(*(group[0] for group in touching)), [item for group in touching for item in group[1]] + [layer]))
    order = {layer: place for place, layer in enumerate(layers)}
    return [sorted(group[1], key=order.__getitem__) for group in groups]
