"""A graph as it was before the affine rewrite, together with the labels and answers that the rewrite came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from normfold.algebra.labels import Labels
from normfold.algebra.ratios import Bools, Floats
from normfold.algebra.solve import Answer
from normfold.algebra.system import System
from normfold.graph import Graph, Node, Value
from normfold.ops.wiring import AffineLayer, Wiring

FIRST = 6  # indices that an explanation names


class View:
    """Values and nodes of the graph before; `wiring` belongs to a copy of it that shares the names of values.

    The copy has been given new constants and perhaps new nodes, the graph has not: paths are looked for here.
    scale: s of every scale unknown.
    """

    def __init__(self, graph: Graph, wiring: Wiring, fate: Mapping[AffineLayer, Answer], scale: Floats) -> None:
        self.graph, self.wiring, self.fate, self.scale = graph, wiring, fate, scale
        self.system: System = wiring.system
        self._twins = {value.name: value for value in wiring.graph.values()}
        self._own = {value.name: value for value in graph.values()}

    def node(self, asker: int) -> Node | None:
        """Who stated a demand, None when it was nobody in particular."""
        return self.graph.nodes[asker] if 0 <= asker < len(self.graph.nodes) else None

    def value(self, twin: Value) -> Value:
        return self._own[twin.name]

    def twin(self, value: Value) -> Value:
        return self._twins[value.name]

    def node_of(self, layer: AffineLayer) -> Node:
        node = self.value(layer.y).producer
        assert node is not None
        return node

    def twin_node(self, node: Node) -> Node:
        twin = self.twin(node.output).producer
        assert twin is not None
        return twin

    def labels(self, value: Value) -> Labels:
        return self.wiring.of(self.twin(value))

    def around(self, value: Value) -> Iterator[Node]:
        """The node that makes `value` and those that read it."""
        if value.producer is not None:
            yield value.producer
        yield from dict.fromkeys(use.node for use in value.uses if use.slot >= 0)

    def touching(self, node: Node) -> Iterator[Value]:
        """The tensors that `node` reads and makes."""
        yield from dict.fromkeys(v for v in (*node.inputs, *node.outputs) if v is not None and v.const is None)


def elements_of(mask: Bools) -> tuple[int, int, list[int]]:
    """(how many, of how many, the first few): channels where `mask` varies along one axis, flat positions otherwise."""
    return int(mask.sum()), mask.size, np.flatnonzero(mask)[:FIRST].tolist()
