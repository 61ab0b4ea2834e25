"""What the body of a loop does to elements of its sequences alone, row by row, around a product with a fixed weight."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from normfold.graph import Graph, Node, Value
from normfold.rewrites.rewrite import Policy
from normfold.rewrites.row_wise import NORMS, PRODUCTS, Attributes, attributes, row_size

_Found = dict[Node, Attributes]


def alike(body: Graph, elements: Mapping[Value, object], steady: Collection[Value], policy: Policy) -> _Found:
    """Nodes that can be done once for the elements of all steps, with their attributes there, in order.

    elements: a value that a step takes from a sequence -> what tells in which order the sequence is walked through.  Values of
    different orders never meet in one node.  steady: values that are the same at every step, besides constants.
    Only what leads to a product, or comes from one without growing, is found.
    """
    order = dict(elements)
    found: _Found = {}
    for node in body.nodes:
        moving = {slot: value for slot, value in enumerate(node.inputs) if value is not None and value in order}
        others = [value for value in node.inputs if value is not None and value not in order]
        fixed = all(value.const is not None or value in steady for value in others)
        kept = node.kind in NORMS and policy.keep(node.label)
        seen = any(value.captured for value in node.outputs)  # by a body in the body
        if not moving or not fixed or kept or seen or len({order[value] for value in moving.values()}) > 1:
            continue
        attrs = attributes(node, moving)
        if attrs is None:
            continue
        if node.kind in PRODUCTS or sum(map(row_size, node.outputs)) <= sum(map(row_size, moving.values())):
            found[node] = attrs
            order.update(dict.fromkeys(node.outputs, next(order[value] for value in moving.values())))
    return _around_products(found)


def _around_products(found: _Found) -> _Found:
    """Those of `found` that lead to a product, or come from one."""
    behind: set[Node] = set()
    for node in found:
        if node.kind in PRODUCTS or any(value is not None and value.producer in behind for value in node.inputs):
            behind.add(node)
    before: set[Node] = set()
    for node in reversed(found):
        if node.kind in PRODUCTS or any(use.node in before for value in node.outputs for use in value.uses):
            before.add(node)
    return {node: attrs for node, attrs in found.items() if node in behind or node in before}
