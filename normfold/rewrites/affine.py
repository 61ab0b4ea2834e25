"""affine: every constant per-channel affine layer is moved until linear layers absorb it.

    x -> BatchNorm -> y            x' = s_x x + t_x  (made by the layers before)
                          becomes  ... and y' = s_y y + t_y is the same tensor

Every tensor v gets a gauge: the new graph stores v' = s v + t, with s, t constant per channel.  A layer y = a x + c is deleted
exactly when s_x = s_y a and t_x = s_y c + t_y; with only the first an addition is left.  All gauges are solved together
(normfold.algebra), under the demands of every operation (normfold.ops), and then absorbed by the constants in float64.

Source: generalises Yvinec et al., "To Fold or Not to Fold" (IJCAI 2022, arXiv 2203.14646) and Jacob et al. 2018, section 3.2.
It does not touch layers that take statistics at run time.  What has to be inserted so that a layer can go (an Add behind a
MatMul, a border map, what is left of a shift) is a question to the target (choices.py).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from normfold.algebra.ratios import Floats
from normfold.algebra.solve import Answer, Solution, solve
from normfold.graph import Graph, Node, Value
from normfold.ops import op_rules
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import AffineLayer, Wiring
from normfold.record import Applied, Refusal
from normfold.rewrites import tracing
from normfold.rewrites.choices import About, Question
from normfold.rewrites.leftover import leave_shift
from normfold.rewrites.ranges import out_of_range
from normfold.rewrites.refusals import REFUSALS, explain
from normfold.rewrites.rewrite import Fate, Policy, Rewrite, Rewritten
from normfold.rewrites.settling import promises_of, settle_names

GUARD = 64.0  # |t| / (|s| rms(x)) beyond this costs other readers of x six bits or more


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Move affine layers as far as `policy` allows; `graph` itself is not changed."""
    barred: dict[str, Refusal] = {}
    inserts = policy.inserts
    while True:
        twin = graph.clone()
        wiring = Wiring(twin, {kind: rule.wire for kind, rule in op_rules().items()}, inserts)
        plan = _Plan(wiring, policy, barred)
        glued = plan.glued()
        if glued:
            barred.update({layer.y.name: REFUSALS["output-is-input"] for layer in glued})
            continue
        regauge = Regauge(wiring, plan.solution.scale, plan.solution.shift)
        plan.absorb(regauge)
        unpaid = plan.unpaid(regauge)
        if unpaid:
            inserts = replace(inserts, denied=inserts.denied | unpaid)
            continue
        broken = out_of_range(regauge)
        if not broken:
            tracing.show(graph, wiring, plan.fate, plan.refused, plan.solution.scale, regauge, GUARD)
            return plan.finish(regauge)
        # A constant left the range of its stored type: the layers that ask for it stay, and everything is solved again.
        blamed = plan.layers_asking_for(broken)
        if not blamed:
            return Rewritten(graph)
        barred.update({layer.y.name: REFUSALS["range"] for layer in blamed})


class _Plan:
    """One attempt: wishes, their solution, and the edits that follow from it."""

    def __init__(self, wiring: Wiring, policy: Policy, barred: dict[str, Refusal]) -> None:
        self.wiring, self.graph, self.policy = wiring, wiring.graph, policy
        self.refused: dict[AffineLayer, Refusal] = {}
        wanted: list[AffineLayer] = []
        left: list[AffineLayer] = []
        for layer in wiring.layers:
            refusal = barred.get(layer.y.name) or _not_wanted(layer, self.graph, policy)
            if refusal is None:
                wanted.append(layer)
            else:
                self.refused[layer] = refusal
                left.append(layer)
        wanted.sort(key=lambda layer: (layer.kind != "norm", -_elements(layer.y)))
        for layer in left:
            wiring.system.pin_scale(layer.unless_scale, "kept", layer.node.label)
            wiring.system.zero_shift(layer.unless_shift, "kept", layer.node.label)
        self.layers = wanted
        self.guarded: set[AffineLayer] = set()
        self.solution: Solution = solve(wiring.system, [wiring.wish(layer) for layer in wanted], self._guard)
        self.fate = dict(zip(wanted, self.solution.answers, strict=True))

    def _guard(self, scale: Floats, shift: Floats, answers: list[Answer]) -> list[int]:
        """Deleted layers that shift a tensor with other readers so far that those lose bits."""
        labels = {layer: self.wiring.of(layer.x) for layer in self.layers}
        refused: list[int] = []
        for index, (layer, answer) in enumerate(zip(self.layers, answers, strict=True)):
            if answer.verdict != "deleted" or layer.rms is None or len(layer.x.uses) < 2:
                continue
            s, t = scale[labels[layer].scale], shift[labels[layer].shift]
            with np.errstate(divide="ignore", invalid="ignore"):
                if np.any((t != 0) & ~(np.abs(t) <= GUARD * np.abs(s) * layer.rms)):
                    refused.append(index)
                    self.guarded.add(layer)
        return refused

    def glued(self) -> list[AffineLayer]:
        """Layers whose deletion would make a graph output one tensor with a graph input or with another output."""
        deleted = {layer.y: layer for layer, answer in self.fate.items() if answer.verdict == "deleted"}
        claimed: set[Value] = set()
        found: list[AffineLayer] = []
        for output in self.graph.outputs:
            layer = source = None
            while (source or output) in deleted:
                layer = deleted[source or output]
                source = layer.x
            if layer is None or source is None:
                continue
            if source in claimed or source.producer is None or self.graph.is_fixed(source):
                found.append(deleted[output])
            claimed.add(source)
        return found

    def absorb(self, regauge: Regauge) -> None:
        """Put the gauges into the constants of every node that stays."""
        gone = {layer.node for layer, answer in self.fate.items() if answer.verdict != "kept"}
        for node in list(self.graph.nodes):
            rule = op_rules().get(node.kind)
            if rule is not None and rule.absorb is not None and node not in gone and regauge.touches(node):
                rule.absorb(node, regauge)

    def unpaid(self, regauge: Regauge) -> frozenset[str]:
        """Outputs behind which something was put that the chooser does not want there.

        Regions that gauges connect get one bill: what goes in a region against what comes there.
        """
        if not regauge.added:
            return frozenset()
        region = _regions(self.graph, regauge)
        saves: Counter[Node] = Counter()
        for layer, answer in self.fate.items():
            if answer.verdict == "deleted":
                saves[region[layer.node]] += _elements(layer.y)
        for value, _ in regauge.added:
            assert value.producer is not None
            saves[region[value.producer]] -= _elements(value)
        unwanted: set[str] = set()
        for value, what in regauge.added:
            assert value.producer is not None
            about: About = "border-map" if what == "border map" else "bias-add"
            question = Question(about, value.name, _elements(value), saves[region[value.producer]])
            word = self.policy.answer(question)
            if word == "no" or (word != "yes" and question.saves <= 0):
                unwanted.add(value.name)
        return frozenset(unwanted)

    def layers_asking_for(self, nodes: list[Node]) -> list[AffineLayer]:
        """Granted layers whose scales are tied to those around `nodes`."""
        values = [v for node in nodes for v in (*node.inputs, *node.outputs) if v is not None and v.const is None]
        roots = {int(root) for v in values for root in self.wiring.system.magnitude.find(self.wiring.of(v).scale.ravel())[0]}
        asking: list[AffineLayer] = []
        for layer, answer in self.fate.items():
            own, _ = self.wiring.system.magnitude.find(self.wiring.of(layer.x).scale.ravel())
            if answer.verdict != "kept" and not roots.isdisjoint(own.tolist()):
                asking.append(layer)
        return asking

    def finish(self, regauge: Regauge) -> Rewritten:
        """Delete what can go, leave additions, record gauges, name values."""
        result = Rewritten(self.graph)
        for layer, answer in self.fate.items():
            if answer.verdict == "kept":  # so that others can name it as what stopped them
                self.wiring.system.pin_scale(layer.unless_scale, "kept", layer.node.label)
                self.wiring.system.zero_shift(layer.unless_shift, "kept", layer.node.label)
        moving = {value for value in self.graph.values() if not regauge.is_identity(value)}
        layers = {layer.node for layer in self.wiring.layers}
        for layer in self.wiring.layers:
            answer = self.fate.get(layer)
            verdict = answer.verdict if answer is not None else "kept"
            fate = Fate(layer.y.name, verdict)
            if verdict == "deleted":
                fate.into = _absorbers(layer, regauge, moving, layers)
                result.applied.append(Applied("affine", layer.node.label, f"deleted into {', '.join(fate.into) or 'nothing'}"))
            elif answer is not None and layer.kind == "norm":  # of the others nobody asks
                guarded = layer in self.guarded and answer.stage in ("", "shift")
                fate.refusal = REFUSALS["precision"] if guarded else explain(layer, answer, self.wiring)
            else:
                fate.refusal = self.refused.get(layer)
            if verdict == "shift":
                result.applied.append(Applied("affine", layer.node.label, "reduced to an addition"))
            result.fates.append(fate)
        promises = {value: promises_of(value, regauge) for value in self.graph.values() if value.rank is not None}
        for layer, answer in self.fate.items():
            if answer.verdict == "shift":
                leave_shift(layer, regauge, self.policy.answer(Question("leftover-shift", layer.node.label, _elements(layer.y))))
        merged: dict[Value, list[Value]] = {}
        order = {node: position for position, node in enumerate(self.graph.nodes)}
        deleted = sorted((la for la, answer in self.fate.items() if answer.verdict == "deleted"), key=lambda la: order[la.node])
        for layer in deleted:
            source = self.graph.bypass(layer.node, layer.slot)
            merged.setdefault(source, []).extend([layer.y, *merged.pop(layer.y, [])])
        settle_names(self.graph, promises, merged, regauge)
        result.inserted = dict(Counter(what for _, what in regauge.added))
        self.graph.validate()
        return result


def _not_wanted(layer: AffineLayer, graph: Graph, policy: Policy) -> Refusal | None:
    """Why a layer is not even tried."""
    if policy.keep(layer.node.label):
        return REFUSALS["asked-to-keep"]
    if layer.y.captured:
        return REFUSALS["captured"]
    if graph.is_output(layer.y) and (layer.x.producer is None or graph.is_fixed(layer.x)):
        return REFUSALS["output-is-input"]
    if not layer.a.all():
        return REFUSALS["zero-gamma"]
    return None


def _regions(graph: Graph, regauge: Regauge) -> dict[Node, Node]:
    """For every node one that stands for its region: nodes are joined by the tensors between them that changed their gauge."""
    stands_for = {node: node for node in graph.nodes}

    def root(node: Node) -> Node:
        while stands_for[node] is not node:
            stands_for[node] = stands_for[stands_for[node]]
            node = stands_for[node]
        return node

    for value in graph.values():
        if value.rank is not None and not regauge.is_identity(value):
            around = [use.node for use in value.uses] + ([value.producer] if value.producer is not None else [])
            for node in around[1:]:
                stands_for[root(node)] = root(around[0])
    return {node: root(node) for node in graph.nodes}


def _elements(value: Value) -> int:
    """Elements of a tensor with symbolic sizes counted as one: the order in which deletions are tried."""
    return int(np.prod([dim for dim in value.shape or () if isinstance(dim, int)], dtype=np.int64))


def _absorbers(layer: AffineLayer, regauge: Regauge, moving: Collection[Value], layers: Collection[Node]) -> list[str]:
    """Names of the parameters next to the layer that took it up, through operations that only carry it.

    moving: values whose gauge is not the identity; layers: the nodes of all layers.
    """
    names: list[str] = []
    queue: deque[Value] = deque([layer.x, layer.y])
    seen: set[Node] = {layer.node}
    while queue and len(seen) < 200:
        value = queue.popleft()
        if value not in moving:
            continue
        for node in ([value.producer] if value.producer is not None else []) + [use.node for use in value.uses]:
            if node in seen:
                continue
            seen.add(node)
            if node in regauge.changed:
                names += [name for name in regauge.changed[node] if name not in names]
            elif node not in layers:
                queue.extend(v for v in (*node.inputs, *node.outputs) if v is not None and v.const is None)
    return names


REWRITE = Rewrite("affine", "Move BatchNorm and every constant per-channel affine layer until linear layers absorb it.", run)
