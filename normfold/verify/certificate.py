"""The certificate: judges the rewrite itself, in float64, before any constant was rounded.

The original and the rewritten graph are evaluated side by side, and every value of the rewritten graph that
promises something (v' = s v + t; without a recorded gauge, equality with the original's value of that name) is held to it:
max |v' - (s v + t)| <= 1e-11 max(|s v| + |t|) per channel.  Where that fails, the original is evaluated again with its
parameters and inputs moved by an ulp of float64: a layer that magnifies rounding (a norm of equal inputs) makes values that
mean nothing, and a difference within 8 times that movement is no difference.

G1 (`node_by_node`) goes along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Value
from normfold.record import Comparison
from normfold.verify.evaluate import Walk
from normfold.verify.judged import Given, Judged
from normfold.verify.node_by_node import NodeByNode
from normfold.verify.promises import Held, Reference, promises_of


@dataclass(frozen=True)
class Certified:
    """comparisons: of both gates.  outputs: the original's outputs in float64, to judge the runtimes by."""

    comparisons: list[Comparison]
    outputs: dict[str, Array]


def certificate(
    before: Graph, after: Graph, feeds: Mapping[str, Array], *, family: str = "", algebra: bool = True, given: Given = None
) -> list[Comparison]:
    """Judge `after`, whose rewritten constants are still float64, against `before`; a difference is a failed comparison.

    algebra: also G1.  Raises CannotTell where an op of `before` cannot be evaluated.
    """
    return certify(before, after, feeds, family=family, algebra=algebra, given=given).comparisons


def certify(
    before: Graph, after: Graph, feeds: Mapping[str, Array], *, family: str = "", algebra: bool = True, given: Given = None
) -> Certified:
    """`certificate`, with the original's outputs."""
    promises = promises_of(after, before)
    reference = Reference(before, feeds, (gauge.original for gauges in promises.values() for gauge in gauges), given)
    judged = Judged(family)
    forced = NodeByNode(before, after, feeds, promises, judged, given) if algebra else None
    walk = Walk(after, feeds, given=given)
    met: dict[Value, Held] = {}
    blind = {node.kind for node in before.nodes if any(value.name in (given or {}) for value in node.outputs)}

    def meet(value: Value, array: Array) -> None:
        for gauge in promises.get(value, ()):
            held = judged.promise(value, array, gauge, reference.take(gauge.original))
            if held is not None and (value not in met or held.open is None):
                met[value] = held

    for value in after.inputs:
        meet(value, walk.read(value))
    if forced is not None:
        forced.inputs(met)
    for node in after.nodes:
        met.clear()
        try:
            results = walk.results_of(node)
        except CannotTell as error:
            reference.finish()  # raises, where the original cannot be evaluated either
            if node.kind in blind:
                raise
            judged.missing(node.output.name, f"it can no longer be evaluated: {error}")
            break
        walk.settle(node, results)
        for value, array in zip(node.outputs, results, strict=True):
            meet(value, array)
        del results
        if forced is not None:
            forced.node(node, met)
    for value in after.outputs:
        if value.const is not None:
            meet(value, walk.read(value))
        if value not in promises:
            judged.missing(value.name, f"the original has no value {value.name!r} to compare with")
        elif not any(gauge.identity and gauge.original == value.name for gauge in promises[value]):
            judged.missing(value.name, "an output keeps its values: no scale and no shift may be left on it")
    outputs = reference.finish()
    judged.reconsider(before, feeds, given)
    return Certified(judged.comparisons, outputs)
