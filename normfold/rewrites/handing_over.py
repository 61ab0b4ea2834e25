"""What was read of nodes that are replaced is read of what stands for them: readers, graph outputs, names, gauges."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.algebra.cell_match import NotStandard
from normfold.graph import Graph, Value


def hand_over(graph: Graph, pairs: Sequence[tuple[Value, Value]]) -> None:
    """Give the readers of each (old, new) the new one.  Raises NotStandard where a sub-graph reads the old."""
    for old, new in pairs:
        if old.captured:
            raise NotStandard("state-read", "a sub-graph")
        graph.replace_uses(old, new)
        graph.outputs = [new if value is old else value for value in graph.outputs]


def take_names(graph: Graph, pairs: Sequence[tuple[Value, Value]]) -> None:
    """Drop what nobody reads, and give what is left of the new ones the names of the old; of two the first."""
    graph.prune()
    alive = set(graph.values())
    for old, new in pairs:
        if new in alive:
            alive.remove(new)
            graph.rename(new, old.name)
            new.gauges = old.gauges
            if graph.is_output(new) and new.rank == old.rank:
                new.shape = old.shape  # what callers are told of it, where more is known now, too


def name_apart(graph: Graph) -> None:
    """Give new nodes names of their own: values that went have freed theirs, nodes that were named after them have not."""
    taken = {node.name for node in graph.nodes if node.origin is not None}
    for node in graph.nodes:
        if node.origin is None:
            name, count = node.name, 0
            while node.name in taken:
                count += 1
                node.name = f"{name}_{count}"
            taken.add(node.name)
