"""mirrored-slope: LeakyReLU and PReLU take a negative scale when their slope is turned over.

    x -> BatchNorm (a < 0) -> LeakyReLU a -> y     becomes     x -> BatchNorm -> Mul -1 -> PReLU 1/a -> Mul -a -> y

    leaky(x; a) = -a leaky(-x; 1/a)      x [N, C, ...], a one number or [C, 1, ...], for a != 0; channels of positive scale keep a

Elsewhere a norm with negative gammas whose input is fixed in sign (a residual stream, say) stops in front of the activation.  The
two Muls are there for the affine step, which must be able to take all of them up: where it is not, nothing is done.

Source: follows from the definitions (He et al., Delving Deep into Rectifiers, ICCV 2015, arXiv 1502.01852, equation 1).
It does not touch ReLU (no slope to turn over) nor slopes below 1e-3 (their inverse costs bits).  A LeakyReLU whose channels
differ in sign becomes a PReLU, which costs more where LeakyReLU is fused with the layer before it: a question to the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from normfold.algebra.ratios import Bools, Floats
from normfold.algebra.solve import solve
from normfold.graph import Graph, Node, Value
from normfold.ops import op_rules
from normfold.ops.wiring import Wiring, collapse, constant_of, spread
from normfold.record import Applied
from normfold.rewrites import affine
from normfold.rewrites.choices import Question
from normfold.rewrites.merged import become, unpromised
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten

LEAST = 1e-3  # slopes nearer to zero are left alone


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Turn slopes over where more norms go by it; `graph` itself is not changed."""
    if not any(_slope(node, graph) is not None for node in graph.nodes):
        return Rewritten(graph)
    plain = affine.run(graph, policy)
    if not any(fate.refusal is not None and fate.refusal.code == "sign" for fate in plain.fates):
        return Rewritten(graph)
    mirrors = _mirrors(graph, policy)
    while mirrors:
        twin, muls = _mirrored(graph, mirrors)
        trial = affine.run(twin, policy)
        left = {node.name for node in trial.graph.nodes} & set(muls)
        if not left:
            break
        mirrors = [mirror for mirror in mirrors if mirror.node.output.name not in {muls[name] for name in left}]
    else:
        return Rewritten(graph)
    layers = {fate.output for fate in plain.fates}
    if _gone(trial, layers) <= _gone(plain, layers):
        return Rewritten(graph)
    applied = [Applied("mirrored-slope", mirror.node.label, f"{mirror.said} turned over") for mirror in mirrors]
    return Rewritten(twin, applied)


@dataclass(eq=False)
class _Mirror:
    """node: the activation.  slope: a, broadcastable to its input, as `negative`: which of it get a negative scale."""

    node: Node
    slope: Floats
    negative: Bools

    @property
    def said(self) -> str:
        return f"the slope of {int(self.negative.sum())} of {self.negative.size} channels"


def _gone(result: Rewritten, layers: Collection[str]) -> tuple[int, int]:
    """How many of `layers` went whole, and how many up to an addition."""
    outcomes = Counter(fate.outcome for fate in result.fates if fate.output in layers)
    return outcomes["deleted"], outcomes["shift"]


def _slope(node: Node, graph: Graph) -> Floats | None:
    """a of an activation whose slope may be turned over, of its input's rank; None for everything else."""
    x = node.input(0)
    if node.kind not in ("LeakyRelu", "PRelu") or x is None or x.const is not None or x.rank is None:
        return None
    if node.kind == "LeakyRelu":
        return np.full((1,) * x.rank, float(node.attrs.get("alpha", 0.01)))
    slope = constant_of(node.input(1), graph)
    return spread(slope, x.rank) if slope is not None and slope.ndim <= x.rank else None


def _mirrors(graph: Graph, policy: Policy) -> list[_Mirror]:
    """Where the layers would want a negative scale in front of an activation, if it took one."""
    passing = {node.kind: _pass for node in graph.nodes if node.kind in ("LeakyRelu", "PRelu")}
    wiring = Wiring(graph, {**{kind: rule.wire for kind, rule in op_rules().items()}, **passing}, policy.inserts)
    layers = [layer for layer in wiring.layers if layer.a.all() and not policy.keep(layer.node.label)]
    scale = solve(wiring.system, [wiring.wish(layer) for layer in layers]).scale
    mirrors: list[_Mirror] = []
    for node in graph.nodes:
        slope, x = _slope(node, graph), node.input(0)
        if slope is None or x is None:
            continue
        negative = scale[wiring.of(x).scale] < 0
        slope, negative = np.broadcast_arrays(slope, negative)
        turned = slope[negative]
        if (
            not turned.size
            or not np.isfinite(turned).all()
            or not ((np.abs(turned) >= LEAST) & (np.abs(turned) <= 1 / LEAST)).all()
        ):
            continue
        if node.kind == "LeakyRelu" and not negative.all() and policy.answer(Question("slope-per-channel", node.label)) == "no":
            continue
        mirrors.append(_Mirror(node, slope, negative))
    return mirrors


def _pass(node: Node, w: Wiring) -> None:
    """As the activation's own rule, without the demand on the sign."""
    x = node.inputs[0]
    if x is None or x.const is not None or _slope(node, w.graph) is None:
        return w.pin_node(node)
    w.zero_shift(x, "activation", node)
    scale = w.of(x).scale
    return w.set(node.output, scale, np.zeros((1,) * scale.ndim, dtype=np.int64))


def _mirrored(graph: Graph, mirrors: Collection[_Mirror]) -> tuple[Graph, dict[str, str]]:
    """A copy of the graph with every slope turned over; and the names of the new Muls with the output that each serves."""
    twin = graph.clone()
    same = dict(zip(graph.nodes, twin.nodes, strict=True))
    muls: dict[str, str] = {}
    for mirror in mirrors:
        node = same[mirror.node]
        x, y = node.inputs[0], node.output
        assert x is not None
        entry, end = unpromised(twin, x, "mirrored"), unpromised(twin, y, "mirrored")
        turned = np.where(mirror.negative, 1.0 / np.where(mirror.negative, mirror.slope, 1.0), mirror.slope)
        before = Node("Mul", [x, _constant(twin, x, np.where(mirror.negative, -1.0, 1.0))], [entry], name=entry.name)
        behind = [end, _constant(twin, y, np.where(mirror.negative, -mirror.slope, 1.0))]
        if node.kind == "LeakyRelu" and mirror.negative.all():
            inner = Node("LeakyRelu", [entry], [end], {"alpha": float(turned.flat[0])}, node.name, node.module)
        else:
            slope = collapse(turned)
            inputs: list[Value | None] = [entry, twin.derived(x, slope.reshape(slope.shape[1:]), suffix="slope")]
            inner = Node("PRelu", inputs, [end], {}, node.name, node.module)
        twin.insert_before(node, before)
        twin.insert_before(node, inner)
        become(twin, node, "Mul", list(behind), {})
        node.name, node.module = end.name, ""
        muls |= {entry.name: y.name, end.name: y.name}
    return twin.validate(), muls


def _constant(graph: Graph, like: Value, array: Floats) -> Value:
    return graph.derived(like, collapse(array), suffix="slope")


REWRITE = Rewrite("mirrored-slope", "Turn the slope of a LeakyReLU or PReLU over where that lets negative gammas pass.", run)
