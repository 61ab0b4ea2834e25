"""Who stopped a layer: the demands that contradict its wish, and the paths of values that lead to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from normfold.algebra.conflict import Links, Rows, contradiction
from normfold.algebra.labels import raise_rank
from normfold.algebra.ratios import Floats, Ints
from normfold.algebra.solve import Answer
from normfold.algebra.system import Demand
from normfold.graph import Node, Value
from normfold.ops.wiring import AffineLayer
from normfold.rewrites.trace import Hop, Side, Stop
from normfold.rewrites.view import View


def find_stops(layer: AffineLayer, answer: Answer, view: View) -> list[Stop]:
    """The demands that together contradict the layer at the first element of `answer.conflict`; [] where they are not found."""
    search = _Shifts if answer.stage == "shift" else _Scales
    return search(layer, answer, view).stops()


class _Search:
    """What both searches share: the layer's labels at one element, and walks over the values that bear some labels."""

    axis: int  # of Labels: 0 scales, 1 shifts

    def __init__(self, layer: AffineLayer, answer: Answer, view: View) -> None:
        self.layer, self.view, self.stage = layer, view, answer.stage
        self.own = view.node_of(layer)
        self.ends: tuple[tuple[Side, Value], ...] = (("input", view.value(layer.x)), ("output", view.value(layer.y)))
        assert answer.conflict is not None
        self.at = int(np.flatnonzero(answer.conflict)[0])
        self.shape = answer.conflict.shape
        self.x, self.y = (self.element(view.labels(value)[self.axis]) for _, value in self.ends)
        self.demands = list(self.all_demands())

    def all_demands(self) -> Iterator[Demand]:
        raise NotImplementedError

    def element(self, labels: Ints | Floats) -> int:
        """The label (or number) at the conflicting element."""
        raised = labels.reshape((1,) * (len(self.shape) - labels.ndim) + labels.shape)
        return np.broadcast_to(raised, self.shape).ravel()[self.at].item()

    def bears(self, value: Value, labels: Collection[int]) -> bool:
        return bool(np.isin(self.view.labels(value)[self.axis], list(labels)).any())

    def origin(self, side: Side, value: Value) -> Stop:
        """`value` was born with the identity: walk back to whatever gave it that."""
        path: list[Hop] = []
        asking = {self.view.node(demand.asker): demand for demand in reversed(self.demands) if demand.code != "sign"}
        while value.producer is not None:
            node = value.producer
            demand = asking.get(node)
            before = next((v for v in self.view.touching(node) if v not in node.outputs and self.bears(v, {0})), None)
            if demand is not None or before is None:
                return Stop(side, demand.code if demand is not None else "no-rule", node.kind, node.label, "", path)
            path = [*path, Hop(node.kind, node.label, before.name)]
            value = before
        return Stop(side, "graph-input", "", "", f"graph input {value.name}", path)

    def towards(self, starts: Sequence[tuple[Side, Value]], labels: Collection[int], demand: Demand) -> Stop:
        """The shortest walk over values that bear `labels` to the one on which `demand` was made."""
        asker = self.view.node(demand.asker)
        target = set(np.unique(demand.labels).tolist()) & set(labels)
        queue: deque[tuple[Side, Value, list[Hop]]] = deque((side, value, []) for side, value in starts)
        seen = {value for _, value in starts}
        while queue:
            side, value, path = queue.popleft()
            who = self._asks(value, asker, demand) if self.bears(value, target) else None
            if who is not None:
                return Stop(side, demand.code, *who, path)
            for node in self.view.around(value):
                if node is self.own:
                    continue
                for other in self.view.touching(node):
                    if other not in seen and self.bears(other, labels):
                        seen.add(other)
                        queue.append((side, other, [*path, Hop(node.kind, node.label, other.name)]))
        op, name = (asker.kind, asker.label) if asker is not None else ("", "")
        return Stop(starts[0][0], demand.code, op, name, demand.subject, [])

    def _asks(self, value: Value, asker: Node | None, demand: Demand) -> tuple[str, str, str] | None:
        """(op, name, subject) when `demand` was made on this value; None otherwise."""
        if asker is not None:
            touches = asker in self.view.around(value) or value.captured
            return (asker.kind, asker.label, demand.subject) if touches else None
        if demand.code == "graph-output":
            return ("", "", demand.subject) if demand.subject == f"graph output {value.name}" else None
        for node in self.view.around(value):
            if demand.subject == node.label or demand.subject.endswith(f" of {node.label}"):
                return node.kind, node.label, demand.subject
        return None


class _Scales(_Search):
    """Scales and signs: equalities between labels, so a contradiction is a chain of them."""

    axis = 0

    def all_demands(self) -> Iterator[Demand]:
        system = self.view.system
        yield from system.scale_pins
        if self.stage == "sign":
            yield from system.positive
        for other, answer in self.view.fate.items():
            if answer.verdict == "kept" and other.unless_scale.size:
                yield Demand(other.unless_scale, "kept", other.node.label)

    def stops(self) -> list[Stop]:
        joins = list(self.view.system.joins(signed=self.stage == "sign"))
        granted = [other for other, answer in self.view.fate.items() if answer.verdict != "kept" and other is not self.layer]
        parts: list[tuple[Ints, Ints, int]] = [(a, b, i) for i, (a, b, _) in enumerate(joins)]
        for index, other in enumerate(granted):
            x, y = (self.view.wiring.of(value).scale for value in (other.x, other.y))
            x, y, _ = np.broadcast_arrays(raise_rank(x, y.ndim), y, other.a)
            parts.append((x.ravel(), y.ravel(), len(joins) + index))
        for index, demand in enumerate(self.demands):
            labels = np.unique(demand.labels)
            parts.append((labels[labels > 0], np.zeros((labels > 0).sum(), dtype=np.int64), -1 - index))
        a, b = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        links = Links(a, b, np.concatenate([np.full(part[0].size, part[2]) for part in parts]))
        around = links.chain(self.x, (self.y,)) if self.x and self.y else None
        ends = [links.chain(label, (0,)) for label in (self.x, self.y)]
        if around is not None and (any(end is None for end in ends) or len(around) < sum(len(end or ()) for end in ends)):
            return self._loop(around, joins, granted)
        found: list[Stop] = []
        for (side, value), label, chain in zip(self.ends, (self.x, self.y), ends, strict=True):
            if chain is None:
                return []
            if not chain:
                found.append(self.origin(side, value))
                continue
            labels = {label, *(step for _, step in chain if step)}
            found.append(self.towards([(side, value)], labels, self.demands[-1 - chain[-1][0]]))
        return found

    def _loop(self, chain: list[tuple[int, int]], joins: list[tuple[Ints, Ints, int]], granted: list[AffineLayer]) -> list[Stop]:
        """Input and output are tied to each other elsewhere: name every deleted layer, else every op, on the way."""
        layers = [granted[tag - len(joins)] for tag, _ in chain if tag >= len(joins)]
        labels = {self.x, *(label for _, label in chain)}
        if layers:
            nodes = [(layer.node.kind, layer.node.label, self.view.node_of(layer)) for layer in layers]
            return [self._beside("other-scale", node, labels) for _, _, node in nodes]
        askers = dict.fromkeys(joins[tag][2] for tag, _ in chain)
        return [self._beside("one-scale", node, labels) for node in map(self.view.node, askers) if node is not None]

    def _beside(self, code: str, node: Node, labels: Collection[int]) -> Stop:
        asker = self.view.graph.nodes.index(node)
        return self.towards(self.ends, labels, Demand(np.array(sorted(labels)), code, f"{node.kind} ({node.label})", asker))


class _Shifts(_Search):
    """Shifts: linear equations, so a contradiction is a smallest set of them."""

    axis = 1

    def all_demands(self) -> Iterator[Demand]:
        system = self.view.system
        yield from system.shift_zeros
        for other, answer in self.view.fate.items():
            if answer.verdict == "kept" and other.unless_shift.size:
                yield Demand(other.unless_shift, "kept", other.node.label)
        yield from system.relaxable_zeros

    def stops(self) -> list[Stop]:
        view = self.view
        sums = list(view.system.sums())
        deleted = [other for other, answer in view.fate.items() if answer.verdict == "deleted"]
        scale, s_y = view.scale, view.scale[view.labels(self.ends[1][1]).scale]
        rhs = np.array([float(self.element(s_y)) * float(self.element(self.layer.c))])
        target = Rows(np.array([[self.x, self.y]]), np.array([[1.0, -1.0]]), rhs, np.zeros(1, dtype=np.int64))
        groups = [Rows(term, coef, np.zeros(len(term)), np.full(len(term), i)) for i, (term, coef, _) in enumerate(sums)]
        for index, other in enumerate(deleted):
            x, y = (view.wiring.of(value) for value in (other.x, other.y))
            t_x, t_y, right = np.broadcast_arrays(raise_rank(x.shift, y.shift.ndim), y.shift, scale[y.scale] * other.c)
            term = np.stack([t_x.ravel(), t_y.ravel()], axis=1)
            groups.append(
                Rows(term, np.broadcast_to([1.0, -1.0], term.shape), right.ravel(), np.full(right.size, len(sums) + index))
            )
        for index, demand in enumerate(self.demands):
            labels = np.unique(demand.labels)
            labels = labels[labels > 0][:, None]
            groups.append(Rows(labels, np.ones(labels.shape), np.zeros(len(labels)), np.full(len(labels), -1 - index)))
        relaxable = len(view.system.relaxable_zeros)
        proof = contradiction(groups[: len(groups) - relaxable], target) if relaxable else None
        proof = contradiction(groups, target) if proof is None else proof
        return [] if proof is None else self._named(proof, sums, deleted)

    def _named(
        self, proof: list[tuple[int, list[int]]], sums: list[tuple[Ints, Floats, int]], deleted: list[AffineLayer]
    ) -> list[Stop]:
        labels = {self.x, self.y, *(label for _, used in proof for label in used)} - {0}
        found = [self.origin(side, value) for (side, value), label in zip(self.ends, (self.x, self.y), strict=True) if label == 0]
        for tag, used in proof:
            if tag < 0:
                demand = self.demands[-1 - tag]
                found.append(self.towards(self.ends, labels, demand._replace(labels=np.array(used))))
            elif tag >= len(sums):
                node = self.view.node_of(deleted[tag - len(sums)])
                asker = self.view.graph.nodes.index(node)
                demand = Demand(np.array(used or [0]), "other-shift", f"{node.kind} ({node.label})", asker)
                found.append(self.towards(self.ends, labels, demand))
        order: dict[Side, int] = {"input": 0, "output": 1}
        return sorted(found, key=lambda stop: (order[stop.side], len(stop.path)))
