"""A loop whose input was projected ahead, for all steps at once: the projection goes into the layer's own input weight.

x -> MatMul V, Add d -> x_t -> gates          becomes          x -> x_t -> layer with W V, W d + b
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normfold.algebra.cell_match import Cell
from normfold.algebra.ratios import Floats
from normfold.graph import Graph, Node, Value
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_symbols import layout


def before_projection(source: Source, cell: Cell, graph: Graph) -> tuple[Source, Cell]:
    """What the elements are taken from, before affine maps of its last axis, and the cell that reads that instead.

    Only where that takes fewer multiplications.  taken stays: elements are told apart by their place alone.
    """
    value, w, wb = source.value, cell.w, cell.wb
    element = next(iter(source.taken))
    found = layout(element.shape)
    last = (value.rank or 0) - 1
    if found is None or len(found[1]) != 1 or source.axis == last or element.shape is None or element.shape[-1] == 1:
        return source, cell
    best, changed = value, cell
    rows = w.shape[0] * w.shape[1]
    left = rows * w.shape[2]  # multiplications of an element: those of the layer, and of what is done ahead for it alone
    above, alone = value, True
    while (step := _map(value, graph)) is not None:
        readers = [use.node for use in value.uses]
        alone &= all(_is_taken(node, source) or node.output is above for node in readers) and not graph.is_fixed(value)
        above = value
        value, matrix, shift = step
        wb = wb + w @ shift
        w = w if matrix is None else w @ matrix.T
        left += matrix.size if alone and matrix is not None else 0
        if rows * w.shape[2] <= left:
            best, changed, left = value, replace(cell, w=w, wb=wb), rows * w.shape[2]
    return (source, cell) if best is source.value else (replace(source, value=best), changed)


def _is_taken(node: Node, source: Source) -> bool:
    """True for what takes elements, or everything on the way to that."""
    return any(output in source.taken for output in node.outputs) or node.kind in ("Slice", "Identity")


def _map(value: Value, graph: Graph) -> tuple[Value, Floats | None, Floats] | None:
    """(x, V [inputs, outputs] or None, d [outputs]) where `value` = x V + d on the last axis."""
    node = value.producer
    if node is None or value.shape is None or not isinstance(value.shape[-1], int):
        return None
    size = value.shape[-1]
    x, weight = node.input(0), _array(node, 1, graph)
    if node.kind in ("Gemm", "MatMul"):
        if x is None or x.const is not None or weight is None or weight.ndim != 2 or x.rank != value.rank:
            return None
        if node.kind == "MatMul":
            return x, weight, np.zeros(size)
        attrs = node.attrs
        shift = np.zeros(size)
        if node.input(2) is not None:
            bias = _array(node, 2, graph)
            if bias is None or bias.ndim > 1:
                return None
            shift = np.broadcast_to(bias * float(attrs.get("beta", 1.0)), (size,))
        if attrs.get("transA"):
            return None
        return x, (weight.T if attrs.get("transB") else weight) * float(attrs.get("alpha", 1.0)), shift
    if node.kind == "Add":
        for slot in (0, 1):
            bias, other = _array(node, slot, graph), node.inputs[1 - slot]
            if bias is not None and other is not None and other.const is None and other.shape == value.shape:
                flat = bias.reshape(-1) if bias.size in (1, size) and (bias.ndim == 0 or bias.shape[-1] == bias.size) else None
                return None if flat is None else (other, None, np.broadcast_to(flat, (size,)))
    return None


def _array(node: Node, slot: int, graph: Graph) -> Floats | None:
    value = node.input(slot)
    return None if value is None or value.const is None or value in graph.pinned else value.const.float64()
