"""Sequences that are taken apart at once, as the unoptimised PyTorch exporter spells a split, become a Split."""

from __future__ import annotations

import numpy as np

from normfold.graph import Graph, Node, Value


def split_sequences(graph: Graph) -> int:
    """Put a Split in place of each SplitToSequence that only SequenceAt at known places read; returns how many."""
    found = [(node, sizes) for node in graph.nodes if (sizes := _sizes(node, graph)) is not None]
    for node, sizes in found:
        _replace(node, sizes, graph)
    return len(found)


def _sizes(node: Node, graph: Graph) -> list[int] | None:
    """Sizes of the parts; None for everything that is not such a split."""
    x = node.input(0)
    if node.kind != "SplitToSequence" or x is None or x.shape is None or not x.shape or graph.is_fixed(node.output):
        return None
    whole, split = x.shape[int(node.attrs.get("axis", 0)) % len(x.shape)], node.input(1)
    if split is None:
        sizes = [1] * whole if isinstance(whole, int) and node.attrs.get("keepdims", 1) else None
    elif split.const is None or split in graph.pinned:
        sizes = None
    elif split.const.shape:
        sizes = [int(size) for size in split.const.read()]
        sizes = None if isinstance(whole, int) and sum(sizes) != whole else sizes
    else:
        step = int(split.const.read())
        parts = range(0, whole, step) if isinstance(whole, int) and step > 0 else None
        sizes = None if parts is None or not isinstance(whole, int) else [min(step, whole - start) for start in parts]
    if not sizes or any(_place(use.node, len(sizes), graph) is None for use in node.output.uses):
        return None
    return sizes


def _place(node: Node, count: int, graph: Graph) -> int | None:
    """Which part a SequenceAt takes; None where that is not known, or seen from outside."""
    index = node.input(1)
    if node.kind != "SequenceAt" or index is None or index.const is None or index in graph.pinned or graph.is_fixed(node.output):
        return None
    place = int(np.asarray(index.const.read()).reshape(()))
    place += count if place < 0 else 0
    return place if 0 <= place < count else None


def _replace(node: Node, sizes: list[int], graph: Graph) -> None:
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    axis = int(node.attrs.get("axis", 0)) % len(x.shape)
    parts: list[Value] = []
    for place, size in enumerate(sizes):
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        parts.append(graph.value(f"{node.output.name}_{place}", shape, x.dtype))
    split = Node("Split", [x], parts, {"axis": axis, "split": tuple(sizes)}, node.name, node.module)
    graph.insert_before(node, split)
    names: dict[Value, str] = {}
    readers = [use.node for use in node.output.uses]
    for reader in readers:
        place = _place(reader, len(sizes), graph)
        assert place is not None
        old, new = reader.output, parts[place]
        graph.replace_uses(old, new)
        names.setdefault(new, old.name)
    graph.remove([*readers, node])
    for value, name in names.items():
        graph.rename(value, name)
