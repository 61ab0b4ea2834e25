"""Gather: from a constant table (an embedding), which makes any gauge; of a computed tensor by a constant index.

table' = s_y table + t_y       along every axis of the table but the one that is looked up
"""

from __future__ import annotations

import numpy as np

from normfold.algebra import labels as lab
from normfold.graph import Node, Value
from normfold.ops.layout import absorb_constants, wire_pick
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring, is_foldable


def _wire_gather(node: Node, w: Wiring) -> None:
    data, index = node.inputs
    if data is None or data.const is None:
        return wire_pick(node, w)
    rank = data.rank
    if rank is None or index is None or index.rank is None or node.output.rank != rank - 1 + index.rank:
        return w.pin_node(node)
    axis = int(node.attrs.get("axis", 0)) % rank
    place = np.zeros((1,) * index.rank, dtype=np.int64)
    kept = set(range(rank)) - {axis}
    if not is_foldable(data, w.graph) or not _is_table(data, axis, w):
        shape = w.fresh_shape(data, kept)
        if shape is None:
            return w.pin_node(node)
        w.set(node.output, *(lab.take(item, axis, place) for item in (w.system.new_scales(shape), w.system.new_shifts(shape))))
        w.pin(node.output, "shared-weight", f"the weight {data.param or data.name} of {node.label}")
        return None
    if w.of(data).pinned:  # all that look things up in one table share its gauge
        w.set_fresh(data, kept)
    w.set(node.output, *(lab.take(item, axis, place) for item in w.of(data)))
    return None


def _is_table(data: Value, axis: int, w: Wiring) -> bool:
    """True when everything that reads `data` looks things up along `axis`: then another table may take its place."""
    return not w.graph.is_fixed(data) and all(
        use.node.kind == "Gather" and use.slot == 0 and int(use.node.attrs.get("axis", 0)) % (data.rank or 1) == axis
        for use in data.uses
    )


RULES = (OpRule("Gather", _wire_gather, absorb_constants),)
