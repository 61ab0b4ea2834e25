"""The sequences that a Scan or a Loop walks through, and their exchange for others of which the body reads computed elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from normfold.graph import Graph, Node, Shape, Value
from normfold.ops.bodies import each, runner
from normfold.rewrites.loop_parts import Loop


@dataclass(frozen=True, eq=False)
class Element:
    """What a step takes (`value`, in the body) of `source` (around it), along `axis`.

    order: equal for elements of which step t takes the same place, and as many.
    """

    value: Value
    source: Value
    axis: int
    order: object

    @property
    def perm(self) -> tuple[int, ...]:
        """The axis of the steps first."""
        return (self.axis, *(place for place in range(self.source.rank or 0) if place != self.axis))

    @property
    def sizes(self) -> Shape:
        """Of the sequence as [T, B, ...]."""
        assert self.source.shape is not None
        return tuple(self.source.shape[place] for place in self.perm)


_News = Mapping[Value, tuple[Value, Element]]
"""A value that the body computed -> the sequence [T, B, ...] of it, and the element that it was computed from."""


class ScanInputs:
    """Of a Scan.  body: a copy of its body, which `take` changes and puts into the node."""

    def __init__(self, node: Node) -> None:
        self.node, self.body = node, node.bodies["body"].clone()
        count = int(node.attrs["num_scan_inputs"])
        self.states = len(node.inputs) - count
        axes, directions = (each(node.attrs, f"scan_input_{name}", count) for name in ("axes", "directions"))
        self.elements: list[Element] = []
        for place, value in enumerate(node.inputs[self.states :]):
            assert value is not None
            axis = axes[place] % (value.rank or 1)
            self.elements.append(Element(self.body.inputs[self.states + place], value, axis, directions[place]))

    def take(self, graph: Graph, news: _News) -> None:
        """The body reads slices of sequences in the place of values that it computed; what is dead goes."""
        node, body = self.node, self.body
        held, fresh = body.inputs[len(node.inputs) :], list[Element]()
        for old, (sequence, element) in news.items():
            given = body.fresh(graph.claim(f"{old.name}_t"), old.shape, old.dtype)
            body.stand_in(old, given)
            fresh.append(Element(given, sequence, 0, element.order))
        body.prune()
        kept = [item for item in self.elements if item.value.uses or body.is_output(item.value)] + fresh
        body.inputs = [*body.inputs[: self.states], *(item.value for item in kept), *held]
        wanted = [*node.inputs[: self.states], *(item.source for item in kept)]
        for slot in range(max(len(wanted), len(node.inputs))):
            graph.set_input(node, slot, wanted[slot] if slot < len(wanted) else None)
        del node.inputs[len(wanted) :]
        said = {
            "scan_input_axes": tuple(item.axis for item in kept),
            "scan_input_directions": tuple(item.order for item in kept),
        }
        node.attrs |= {name: row for name, row in said.items() if name in node.attrs or any(row)}
        node.attrs["num_scan_inputs"] = len(kept)
        _put(graph, node, body)


class LoopInputs:
    """Of a Loop over time.  body: a copy of its body, which `take` changes and puts into the node."""

    def __init__(self, node: Node, loop: Loop) -> None:
        self.node, self.body = node, loop.body
        self.takers: dict[Value, Node] = {}
        self.elements: list[Element] = []
        for source in loop.sequences:
            for value in source.taken:
                taker = value.producer
                assert taker is not None
                for item in _without_axis(value, source.axis) if value.rank == source.value.rank else [value]:
                    self.takers[item] = taker
                    self.elements.append(Element(item, source.value, source.axis, (source.value, source.axis)))

    def take(self, graph: Graph, news: _News) -> None:
        """The body takes elements of sequences in the place of values that it computed; what is dead goes."""
        node, body = self.node, self.body
        for old, (sequence, element) in news.items():
            taker = self.takers[element.value]
            while not body.is_free(sequence.name):
                graph.rename(sequence, f"{sequence.name}_all", unique=True)
            outer = body.value(sequence.name, sequence.shape, sequence.dtype)
            body.inputs.append(outer)
            graph.set_captures(node, (*node.captures, sequence))
            index = taker.inputs[1]
            assert index is not None and old.shape is not None
            name = graph.claim(f"{old.name}_t")
            taken = body.fresh(name, old.shape if index.shape == () else (1, *old.shape), old.dtype)
            body.insert_after(taker, Node("Gather", [outer, index], [taken], {"axis": 0}, name, taker.module))
            if index.shape != ():
                name = graph.claim(f"{old.name}_t")
                element_of = body.fresh(name, old.shape, old.dtype)
                maker = taken.producer
                assert maker is not None
                body.insert_after(maker, Node("Squeeze", [taken], [element_of], {"axes": (0,)}, name, taker.module))
                taken = element_of
            body.stand_in(old, taken)
        body.prune()
        _put(graph, node, body)


def _without_axis(value: Value, axis: int) -> list[Value]:
    """What is left of elements that were taken with their axis, of size 1; nothing where something reads them as they are."""
    readers = [use.node for use in value.uses]
    if any(node.kind != "Squeeze" or node.attrs.get("axes") != (axis,) for node in readers):
        return []
    return [node.output for node in readers]


def _put(graph: Graph, node: Node, body: Graph) -> None:
    """Give the node its changed body; it reads no more of the graph around it than that does."""
    read = {value.name for value in body.constants()} | {
        value.name for value in body.inputs if value.uses or body.is_output(value)
    }
    declared = len(node.inputs)
    body.inputs = [*body.inputs[:declared], *(value for value in body.inputs[declared:] if value.name in read)]
    graph.set_captures(node, [value for value in node.captures if value.name in read])
    node.bodies = {"body": body.validate()}
    node.fallback = runner(node)
