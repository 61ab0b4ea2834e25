"""empty-channels: a channel that every reader multiplies by zero is emptied where it is made, so that gamma need not be zero.

    conv W, b -> (Concat, Reshape, pool, ReLU, sum ...) -> BatchNorm (gamma[i] = 0)
    becomes the same with W[i] = 0, b[i] = 0 and a[i] = 1, c[i] as before: y[i] = c[i] either way

In the terms of the affine algebra the channel's scale is zero, x' = 0 x + 0, in the whole class of tensors that share it.  That
is allowed where layers with constants make all members of the class and nothing reads them but such norms: every operation
that only passes a scale on maps zero to zero.  It frees the affine solver, which a zero gamma would stop.

Source: channel pruning by scaling factors, Liu et al., "Network Slimming" (ICCV 2017, arXiv 1708.06519), for exact zeros only.
Nothing is removed here, and no constant is moved behind the norm (constant-channels does that).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from normfold.algebra.ratios import Bools, Ints
from normfold.graph import Gauge, Graph, Node
from normfold.ops import op_rules
from normfold.ops.affine import batch_norm_constants
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import AffineLayer, Inserts, Wiring
from normfold.record import Applied
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten

_NEVER_DIVIDES = frozenset("Add Sub Sum Concat Expand Slice Tile Gather Pad".split())  # absorbs s = 0 of its input, too


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Empty what can be emptied, from the last norm backwards; `graph` itself is not changed."""
    if not any(_has_zeros(node, graph) for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    freed: Counter[str] = Counter()
    while found := _one_pass(twin, policy):
        freed += found
    applied = [Applied("empty-channels", label, f"{count} channels with gamma zero freed") for label, count in freed.items()]
    return Rewritten(twin.validate(), applied) if applied else Rewritten(graph)


def _has_zeros(node: Node, graph: Graph) -> bool:
    constants = batch_norm_constants(node, graph) if node.kind == "BatchNormalization" else None
    return constants is not None and not constants[0].all()


def _one_pass(graph: Graph, policy: Policy) -> Counter[str]:
    """Empty the classes that can be emptied at once; how many channels of which norms were freed."""
    wiring = Wiring(graph, {kind: rule.wire for kind, rule in op_rules().items()}, Inserts())
    system = wiring.system
    system.build()
    roots, _ = system.magnitude.find(np.arange(system.scale_count))
    layers = [la for la in wiring.layers if la.kind == "norm" and not la.a.all() and not policy.keep(la.node.label)]
    wanted = np.zeros(len(roots), dtype=np.bool_)
    for layer in layers:
        wanted[roots[_labels(layer, wiring, zero=True)]] = True
    for labels in _read(wiring):
        wanted[roots[labels]] = False
    wanted[roots[0]] = False
    while True:  # a norm that is freed in this pass keeps its output
        freed = [layer for layer in layers if wanted[roots[_labels(layer, wiring, zero=True)]].any()]
        kept = [roots[wiring.of(layer.y).scale.ravel()] for layer in freed]
        if not any(wanted[labels].any() for labels in kept):
            break
        for labels in kept:
            wanted[labels] = False
    empty = wanted[roots]
    regauge = Regauge(wiring, np.where(empty, 0.0, 1.0), np.zeros(system.shift_count))
    masks = {layer: _emptied(layer, wiring, empty) for layer in freed}
    if not any(mask.any() for mask in masks.values()):
        return Counter()
    _absorb(wiring, regauge, {layer.node for layer in freed})
    for layer, mask in masks.items():
        _revive(layer.node, mask, graph)
    return Counter({layer.node.label: int(mask.sum()) for layer, mask in masks.items()})


def _labels(layer: AffineLayer, wiring: Wiring, *, zero: bool) -> Ints:
    """Scale labels of x where a is zero, or where it is not."""
    labels, a = np.broadcast_arrays(wiring.of(layer.x).scale, layer.a)
    return labels[(a == 0) == zero]


def _read(wiring: Wiring) -> Iterator[Ints]:
    """Scale labels of everything that an operation with constants divides by, or otherwise needs."""
    norms = {layer.node: layer for layer in wiring.layers if layer.kind == "norm"}
    for node in wiring.graph.nodes:
        rule = op_rules().get(node.kind)
        mixes = node.kind in ("MatMul", "Mul") and all(value is not None and value.const is None for value in node.inputs)
        if rule is None or rule.absorb is None or node.kind in _NEVER_DIVIDES or mixes:
            continue
        if node in norms:
            yield _labels(norms[node], wiring, zero=False)
            continue
        for value in node.inputs:
            if value is not None and value.const is None:
                yield wiring.of(value).scale.ravel()


def _emptied(layer: AffineLayer, wiring: Wiring, empty: Bools) -> Bools:
    """Mask [C] of the zero gammas whose channel of x is empty everywhere."""
    found, _ = np.broadcast_arrays(empty[wiring.of(layer.x).scale], layer.a)
    return found.all(axis=tuple(axis for axis in range(found.ndim) if axis != 1)) & (layer.a.ravel() == 0)


def _absorb(wiring: Wiring, regauge: Regauge, freed: set[Node]) -> None:
    """Put the zeros into the constants of the layers that make the channels, and record what the values hold now."""
    graph = wiring.graph
    changed = [value for value in graph.values() if value.rank is not None and not regauge.is_identity(value)]
    scales = {value: regauge.scale(value) for value in changed}
    for node in list(graph.nodes):
        rule = op_rules().get(node.kind)
        if rule is not None and rule.absorb is not None and node not in freed and regauge.touches(node):
            rule.absorb(node, regauge)
    for value, s in scales.items():
        before = value.gauges or (Gauge(value.name, np.ones(()), np.zeros(())),)
        value.gauges = tuple(Gauge(gauge.original, s * gauge.scale, s * gauge.shift) for gauge in before)


def _revive(node: Node, emptied: Bools, graph: Graph) -> None:
    """a = 1 at channels that hold zero now; c as it was."""
    constants = batch_norm_constants(node, graph)
    assert constants is not None
    gamma, beta, mean, var = constants
    neutral = np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
    for slot, array in ((1, np.where(emptied, neutral, gamma)), (2, np.where(emptied, beta + mean, beta))):
        old = node.inputs[slot]
        assert old is not None
        graph.set_input(node, slot, graph.derived(old, array))


REWRITE = Rewrite("empty-channels", "Empty channels that every norm behind them multiplies by zero.", run)
