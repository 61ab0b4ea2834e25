"""Where a difference begins: the rewrite that made it, the layers it was made on, the first value that parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Node, Value
from normfold.record import Comparison
from normfold.verify.certificate import certify
from normfold.verify.inputs import Feed

_AROUND = 3  # nodes looked at in each direction for a layer that a rewrite names


def first_failure(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The comparison that says most about where a difference began: the algebra of the first wrong node, else the first value.

    Comparisons of a certificate stand in topological order.
    """
    failed = [item for item in comparisons if not item.passed and item.gate != "reference"]
    return next((item for item in failed if item.gate == "G1"), failed[0] if failed else None)


def first_wrong_step(
    before: Graph, steps: Sequence[Graph], feed: Feed, *, given: Mapping[str, Array] | None = None
) -> tuple[int, Comparison] | None:
    """The first of several successive rewritten views that fails its certificate on `feed`, and how; None when all pass.

    A step that cannot be evaluated is passed over.
    """
    for place, after in enumerate(steps):
        try:
            found = certify(before, after, feed.arrays, family=feed.label, given=given).comparisons
        except CannotTell:
            continue
        failed = first_failure(found)
        if failed is not None:
            return place, failed
    return None


def suspects(before: Graph, after: Graph, subject: str, targets: Collection[str]) -> list[str]:
    """Those of the layers `targets` (labels of nodes of `before`) that the value `subject` of `after` has to do with.

    A rewritten node took up what stood around it: the layers that made the values which its own values now stand for, then those
    a few nodes further.
    """
    value = next((item for item in (*after.values(), *after.outputs) if item.name == subject), None)
    node = None if value is None else value.producer
    if value is None or node is None or not targets:
        return []
    wanted = set(targets)
    made = {item.name: node for node in before.nodes for item in node.outputs}
    around: list[Value] = [value, *(item for item in node.inputs if item is not None and item.const is None)]
    meant = [made[name] for item in around for name in _originals(item) if name in made]
    found = [item.label for item in meant if item.label in wanted]
    for _ in range(_AROUND):
        if found:
            break
        meant = list(dict.fromkeys(other for item in meant for other in _neighbours(item)))
        found = [item.label for item in meant if item.label in wanted]
    return list(dict.fromkeys(found))


def _originals(value: Value) -> list[str]:
    return [gauge.original for gauge in value.gauges] or [value.name]


def _neighbours(node: Node) -> list[Node]:
    before = [value.producer for value in node.inputs if value is not None and value.producer is not None]
    return before + [use.node for value in node.outputs for use in value.uses]
