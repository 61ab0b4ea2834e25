"""What was read of nodes that are replaced is read of what stands for them: readers, graph outputs, names, gauges."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.algebra.cell_match import NotStandard
from normfold.capture.tidy import tidy
from normfold.graph import Graph, Value
from normfold.ops.bodies import runner


def hand_over(graph: Graph, pairs: Sequence[tuple[Value, Value]]) -> None:
    """Give the readers of each (old, new) the new one.  Raises NotStandard where a sub-graph reads the old."""
    for old, new in pairs:
        if old.captured:
            raise NotStandard("state-read", "a sub-graph")
        graph.stand_in(old, new)


def keep_for_bodies(graph: Graph, old: Value, new: Value) -> bool:
    """Make `old`, which bodies read by its name, a copy of `new`; they learn its shape.  False where that cannot be."""
    node = old.producer
    if node is None or len(node.outputs) > 1 or node.captures or graph.is_output(old):
        return False
    for slot in range(len(node.inputs)):
        graph.set_input(node, slot, new if slot == 0 else None)
    del node.inputs[1:]
    node.kind, node.attrs, node.fallback, node.origin = "Identity", {}, None, None
    old.shape, old.dtype = new.shape, new.dtype
    for reader in {use.node for use in old.uses if use.slot < 0 and use.node.bodies}:
        twins = {name: body.clone() for name, body in reader.bodies.items()}
        for body in twins.values():
            for inner in body.inputs:
                if inner.name == old.name:
                    inner.shape, inner.dtype = old.shape, old.dtype
            tidy(body)
        reader.bodies = twins
        reader.fallback = runner(reader)
    return True


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
