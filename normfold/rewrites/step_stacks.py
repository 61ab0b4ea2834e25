"""Tensors that are joined by a Concat after the same was done to each of them: what they were before that.

h_0 -> f -> y_0                                h_0
h_1 -> f -> y_1 -> Concat      found are       h_1     and the nodes of f
"""

from __future__ import annotations

from collections.abc import Iterator

from normfold.graph import Graph, Node, Value
from normfold.rewrites.recurrent_compare import Constants
from normfold.rewrites.row_wise import PRODUCTS, attributes, is_rows
from normfold.rewrites.step_lines import FEWEST, Line


def stacks(graph: Graph) -> Iterator[tuple[Line, set[Node]]]:
    """What every Concat joins, rolled back through what was done alike to all of it and is read by nobody else."""
    constants = Constants(graph)
    for node in graph.nodes:
        if node.kind == "Concat" and len(node.inputs) >= FEWEST and None not in node.inputs:
            found = _rolled_back(node, graph, constants)
            if found is not None:
                yield found


def _rolled_back(concat: Node, graph: Graph, constants: Constants) -> tuple[Line, set[Node]] | None:
    readers: set[Node] = {concat}
    level = [value for value in concat.inputs if value is not None]
    unsqueezed = [value.producer for value in level if value.producer is not None and value.producer.kind == "Unsqueeze"]
    if len(unsqueezed) == len(level) and all(_read_by(value, readers, graph) for value in level):
        readers = set(unsqueezed)
        level = [node.inputs[0] for node in unsqueezed if node.inputs[0] is not None]
    nodes: set[Node] = set()
    while (above := _above(level, readers, graph, constants)) is not None:
        readers = {value.producer for value in level if value.producer is not None}
        nodes |= readers
        level = above
    if not any(node.kind in PRODUCTS for node in nodes):
        return None
    return Line(level[0].shape or (), {value: place for place, value in enumerate(level)}), nodes


def _read_by(value: Value, readers: set[Node], graph: Graph) -> bool:
    return not graph.is_fixed(value) and all(use.node in readers for use in value.uses)


def _above(level: list[Value], readers: set[Node], graph: Graph, constants: Constants) -> list[Value] | None:
    """What the makers of `level` read, one tensor each; None where they are not alike, or somebody else reads a result."""
    found: list[Value] = []
    keys: set[object] = set()
    for value in level:
        node = value.producer
        if node is None or len(node.outputs) != 1 or not _read_by(value, readers, graph):
            return None
        moving = [slot for slot, item in enumerate(node.inputs) if item is not None and item.const is None]
        attrs = attributes(node, moving) if len(moving) == 1 else None
        if attrs is None:
            return None
        source = node.inputs[moving[0]]
        assert source is not None
        others = tuple(None if item is None or item is source else constants.key(item) for item in node.inputs)
        keys.add((node.kind, repr(sorted(attrs.items())), moving[0], others, source.shape))
        found.append(source)
    distinct = len(set(found)) == len(found) and len(keys) == 1
    return found if distinct and all(is_rows(value) for value in found) else None
