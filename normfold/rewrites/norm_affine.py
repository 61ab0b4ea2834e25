"""norm-affine: gamma and beta of LayerNorm, RMSNorm, InstanceNorm and GroupNorm move into the layers that read the norm.

    y = gamma core(x) + beta -> W, b        becomes        y' = core(x) -> W / s_y, b - W t_y / s_y

with the gauge s_y = 1 / gamma, t_y = -beta / gamma on y: all readers must absorb it (q, k and v together, through layout
operations), and it must cost no new node and no new bias.  gamma becomes 1 and beta 0; the statistics stay, and so does the norm.

Source: Ashkboos et al., "SliceGPT" (arXiv 2401.15024) and "QuaRot" (arXiv 2404.00456), which do it by hand for language models.
It does not copy tied weights, whatever the clone budget (a copy is never smaller than the gamma that it would save: an embedding
that is also the output layer stays as it is, and the norm in front of it too), and touches no norm with a zero in gamma.  It
saves parameters, not time; hence with --objective norms only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from normfold.algebra.ratios import Floats
from normfold.algebra.solve import Answer, Wish, solve
from normfold.graph import Graph, Node, Value
from normfold.ops import op_rules
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import Inserts, Wiring, constant_of, spread
from normfold.record import Applied
from normfold.rewrites.ranges import out_of_range
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten
from normfold.rewrites.settling import promises_of, settle_names

KINDS = frozenset(("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"))


class Part(NamedTuple):
    """The affine part y = a core + c of one norm; a and c broadcast to y."""

    node: Node
    a: Floats
    c: Floats


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Move what can go without a new node; `graph` itself is not changed."""
    if policy.objective != "norms" or not any(node.kind in KINDS for node in graph.nodes):
        return Rewritten(graph)
    barred: set[str] = set()
    while True:
        twin = graph.clone()
        wiring = Wiring(twin, {kind: rule.wire for kind, rule in op_rules().items()}, Inserts())
        found = (_part(node, wiring, policy) for node in twin.nodes if node.output.name not in barred)
        parts = [part for part in found if part is not None]
        for layer in wiring.layers:  # all of them stay: they move only as far as they can take it
            wiring.system.pin_scale(layer.unless_scale, "kept", layer.node.label)
            wiring.system.zero_shift(layer.unless_shift, "kept", layer.node.label)
        solution = solve(wiring.system, [_wish(part, wiring) for part in parts])
        moved = [part for part, answer in zip(parts, solution.answers, strict=True) if _granted(answer)]
        if not moved:
            return Rewritten(graph)
        regauge = Regauge(wiring, solution.scale, solution.shift)
        for node in list(twin.nodes):
            rule = op_rules().get(node.kind)
            if rule is not None and rule.absorb is not None and regauge.touches(node):
                rule.absorb(node, regauge)
        unfit = moved if out_of_range(regauge) else [part for part in moved if _grows(part, regauge)]
        if unfit:
            barred.update(part.node.output.name for part in unfit)
            continue
        return _finish(twin, regauge, moved)


def _part(node: Node, wiring: Wiring, policy: Policy) -> Part | None:
    """The affine part of a norm that has one, with finite numbers and without zeros in gamma; None otherwise."""
    if node.kind not in KINDS or len(node.outputs) != 1 or policy.keep(node.label) or wiring.of(node.output).pinned:
        return None
    gamma, rank = constant_of(node.input(1), wiring.graph), node.output.rank
    beta = constant_of(node.input(2), wiring.graph) if node.input(2) is not None else np.zeros(())
    if gamma is None or beta is None or rank is None or not (np.isfinite(gamma).all() and np.isfinite(beta).all()):
        return None
    if not gamma.all() or (np.all(gamma == 1.0) and not beta.any()):
        return None
    if node.kind in ("InstanceNormalization", "GroupNormalization"):
        gamma, beta = (array.reshape(-1, *(1,) * (rank - 2)) for array in (gamma, beta))
    return Part(node, spread(gamma, rank), spread(beta, rank))


def _wish(part: Part, wiring: Wiring) -> Wish:
    """The core keeps the identity gauge: s_y a == 1 and s_y c + t_y == 0."""
    labels = wiring.of(part.node.output)
    fixed = np.zeros((1,) * labels.scale.ndim, dtype=np.int64)
    return Wish(fixed, labels.scale, part.a, fixed, labels.shift, part.c)


def _granted(answer: Answer) -> bool:
    return answer.verdict == "deleted"


def _finish(graph: Graph, regauge: Regauge, moved: list[Part]) -> Rewritten:
    result = Rewritten(graph)
    for part in moved:
        node, gamma, beta = part.node, part.node.inputs[1], part.node.input(2)
        assert gamma is not None and gamma.const is not None
        graph.set_input(node, 1, graph.derived(gamma, np.ones(gamma.const.shape), suffix="one"))
        if beta is not None and beta.const is not None:
            optional = node.kind == "LayerNormalization"
            graph.set_input(node, 2, None if optional else graph.derived(beta, np.zeros(beta.const.shape), suffix="zero"))
        into = ", ".join(_absorbers(node, regauge)) or "its readers"
        result.applied.append(Applied("norm-affine", node.label, f"gamma and beta into {into}"))
    promises = {value: promises_of(value, regauge) for value in graph.values() if value.rank is not None}
    settle_names(graph, promises, {}, regauge)
    graph.validate()
    return result


def _grows(part: Part, regauge: Regauge) -> bool:
    """True when a reader without a bias would get one: that adds more parameters than it saves."""
    return any(name.endswith("(new)") for name in _absorbers(part.node, regauge))


def _absorbers(node: Node, regauge: Regauge) -> list[str]:
    """Names of the parameters behind `node` that took its affine part up."""
    names: list[str] = []
    queue: list[Value] = [node.output]
    seen: set[Node] = {node}
    for value in queue:
        for reader in (use.node for use in value.uses):
            if reader in seen or regauge.is_identity(value):
                continue
            seen.add(reader)
            if reader in regauge.changed:
                names += [name for name in regauge.changed[reader] if name not in names]
            else:
                queue += reader.outputs
    return names


REWRITE = Rewrite("norm-affine", "Move gamma and beta of LayerNorm, RMSNorm, InstanceNorm and GroupNorm into their readers.", run)
