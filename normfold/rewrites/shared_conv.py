"""shared-conv: a weight read by several layers, or a layer read by several norms, is copied where that lets norms go.

    x1 -> Conv W -> BN1      becomes      x1 -> Conv W1          x -> Conv W -> BN1, BN2      becomes      x -> Conv W1
    x2 -> Conv W -> BN2                   x2 -> Conv W2                                                    x -> Conv W2

    W1 = a1 W,  W2 = a2 W      one W' can serve all readers only where their gauges are equal

Equal norms need no copy: the affine step folds them into the one weight, and then nothing is done here.  A copy of a weight costs
its bytes and no time; a copy of a layer is also computed twice, so that it is made with `--objective norms` only.  Copies are
made within the clone budget (0 by default), as few as do; what the budget forbids is said with the bytes that it takes.

Source: the shared heads of RetinaNet and EfficientDet (Lin et al. 2017, arXiv 1708.02002; Tan et al. 2020, arXiv 1911.09070), one
norm a pyramid level.  Whether a copy helps is found out by trying the affine step with it.  It does not copy layers that reach
their norms through other operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normfold.graph import Array, Graph, Node, Value
from normfold.ops.affine import batch_norm_constants
from normfold.ops.wiring import is_foldable
from normfold.record import Applied
from normfold.rewrites import affine
from normfold.rewrites.following import regauged
from normfold.rewrites.refusals import over_budget
from normfold.rewrites.rewrite import Fate, Policy, Rewrite, Rewritten

LINEAR = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
SAME = 1e-12  # relative; copies that come out so alike are one weight
TRIALS = 12  # more copies than this are not tried one by one


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Copy what must be copied so that more norms go; `graph` itself is not changed."""
    norms = {node.output.name for node in graph.nodes if node.kind == "BatchNormalization"}
    copies = _candidates(graph, policy) if norms and policy.uses("affine") else []
    if not copies:
        return Rewritten(graph)
    trial = _Trial(graph, policy, norms)
    before = trial.deleted([])
    stuck = {place for place, node in enumerate(graph.nodes) if node.output.name in norms - before}
    copies = [copy for copy in copies if copy.fork < 0 or not stuck.isdisjoint(copy.norms)]
    if not stuck or not copies or not len(trial.deleted(copies)) > len(before):
        return Rewritten(graph)
    needed = _fewest(copies, trial)
    every = trial.deleted([copy for copy, _ in needed])
    chosen = _affordable(needed, policy.clone_budget)
    after = trial.deleted(chosen)
    if len(after) <= len(before):
        chosen, after = [], before
    result = Rewritten(_copied(graph, chosen).validate() if chosen else graph, copied=sum(copy.bytes for copy in chosen))
    result.applied = [Applied("shared-conv", copy.subject, f"copied {copy.count}x, {copy.bytes:,} bytes") for copy in chosen]
    left = policy.clone_budget - result.copied
    for name in sorted(every - after):
        missing = [copy for copy, lost in needed if copy not in chosen and name in lost]
        missing = missing or [copy for copy, _ in needed if copy not in chosen]
        subject = ", ".join(f"the weight {copy.subject}" for copy in missing[:3]) + (", ..." if len(missing) > 3 else "")
        result.fates.append(Fate(name, "kept", refusal=over_budget(subject, sum(copy.bytes for copy in missing), left)))
    return result


Reader = tuple[int, int]
"""A use of a constant: place of the node in the graph, and slot."""


@dataclass(frozen=True)
class _Copy:
    """A copy that may help.

    groups: who reads which copy of `weight`; the first group keeps the original.  fork: instead, the place of a layer that is
    doubled for the norms at the places `norms`.
    subject: the name of the weight.  size: bytes of one copy.
    """

    weight: str
    subject: str
    size: int
    groups: tuple[tuple[Reader, ...], ...] = ()
    fork: int = -1
    norms: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return 1 if self.fork >= 0 else len(self.groups) - 1

    @property
    def bytes(self) -> int:
        return self.size * self.count


def _candidates(graph: Graph, policy: Policy) -> list[_Copy]:
    """Every shared weight, each reader with a copy of its own; and layers read by several, when they may be doubled."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    found: list[_Copy] = []
    weights: dict[Value, None] = {}
    for node in graph.nodes:
        for slot, value in enumerate(node.inputs[:2]):
            if node.kind in LINEAR and is_foldable(value, graph) and value is not None and (slot == 1 or node.kind == "MatMul"):
                if policy.objective == "norms":
                    found += _forks(node, value, places, graph)
                if len(value.uses) > 1:
                    weights[value] = None
    for value in weights:
        assert value.const is not None
        linear = [(places[use.node], use.slot) for use in value.uses if use.node.kind in LINEAR and use.slot >= 0]
        others = [(places[use.node], use.slot) for use in value.uses if use.node.kind not in LINEAR or use.slot < 0]
        groups = ((tuple(others),) if others or graph.is_fixed(value) else ()) + tuple((reader,) for reader in linear)
        found.append(_Copy(value.name, value.param or value.name, value.const.nbytes, groups))
    return found


def _forks(node: Node, weight: Value, places: dict[Node, int], graph: Graph) -> Iterable[_Copy]:
    """Doubles of a layer that norms read directly beside other readers: one for equal norms each."""
    readers = node.output.uses
    if len(readers) + graph.is_output(node.output) < 2 or node.output.captured or weight.const is None:
        return
    equal: dict[bytes, list[int]] = {}
    for use in readers:
        constants = batch_norm_constants(use.node, graph) if use.node.kind == "BatchNormalization" and use.slot == 0 else None
        if constants is not None:
            key = np.stack(constants).tobytes() + repr(use.node.attrs.get("epsilon")).encode()
            equal.setdefault(key, []).append(places[use.node])
    bias = node.input(2)
    size = weight.const.nbytes + (bias.const.nbytes if bias is not None and bias.const is not None else 0)
    for norms in equal.values():
        yield _Copy(weight.name, weight.param or weight.name, size, fork=places[node], norms=tuple(norms))


def _copied(graph: Graph, copies: Iterable[_Copy], *, tagged: bool = False) -> Graph:
    """`graph` with the copies made.  tagged: every copy of a weight is told by its `param` afterwards."""
    twin = graph.clone()
    nodes = list(twin.nodes)
    for copy in copies:
        if copy.fork >= 0:
            _double(nodes[copy.fork], [nodes[place] for place in copy.norms], copy.weight, twin)
            continue
        for number, group in enumerate(copy.groups):
            if not group:
                continue
            value = nodes[group[0][0]].inputs[group[0][1]] if group[0][1] >= 0 else None
            if value is not None and value.const is not None and number:
                value = twin.constant(f"{value.name}_copy", value.const, param=value.param)
                for place, slot in group:
                    twin.set_input(nodes[place], slot, value)
            if tagged and value is not None:
                value.param = _tag(copy, number)
    return twin


def _double(node: Node, norms: Sequence[Node], weight: str, graph: Graph) -> None:
    """A second node like `node` for `norms`, with a weight of its own (its bias goes apart by itself)."""
    y, inputs = node.output, list(node.inputs)
    for slot, value in enumerate(inputs):
        if value is not None and value.name == weight and value.const is not None:
            inputs[slot] = graph.constant(f"{value.name}_copy", value.const, param=value.param)
    output = graph.value(f"{y.name}_copy", y.shape, y.dtype)
    output.gauges = regauged(y, np.ones(()), np.zeros(()))
    label = f"{node.name}_copy" if node.name else ""
    graph.insert_after(node, Node(node.kind, inputs, [output], dict(node.attrs), label, node.module))
    for norm in norms:
        graph.set_input(norm, 0, output)


def _tag(copy: _Copy, number: int) -> str:
    return f"\0{copy.weight}\0{number}"


class _Trial:
    """What the affine step would do after some copies."""

    def __init__(self, graph: Graph, policy: Policy, norms: set[str]) -> None:
        self.graph, self.policy, self.norms = graph, policy, norms
        self._known: dict[tuple[_Copy, ...], set[str]] = {}

    def deleted(self, copies: Sequence[_Copy]) -> set[str]:
        """Outputs of the norms that go."""
        key = tuple(copies)
        if key not in self._known:
            fates = affine.run(_copied(self.graph, copies), self.policy).fates
            self._known[key] = {fate.output for fate in fates if fate.outcome == "deleted"} & self.norms
        return self._known[key]

    def merged(self, copies: Sequence[_Copy]) -> list[_Copy]:
        """Copies of a weight that come out alike are one; a copy without a twin that differs is none."""
        result = affine.run(_copied(self.graph, copies, tagged=True), self.policy).graph
        arrays = {v.param: v.const.float64() for v in result.constants() if v.const is not None and v.param.startswith("\0")}
        kept = [copy if copy.fork >= 0 else _merge(copy, arrays) for copy in copies]
        return [copy for copy in kept if copy.count > 0]


def _merge(copy: _Copy, arrays: dict[str, Array]) -> _Copy:
    groups: list[list[Reader]] = []
    shown: list[Array | None] = []
    for number, group in enumerate(copy.groups):
        array = arrays.get(_tag(copy, number))
        place = next(
            (i for i, other in enumerate(shown) if array is not None and other is not None and _alike(array, other)), None
        )
        if place is None:
            groups.append(list(group))
            shown.append(array)
        else:
            groups[place] += group
    return replace(copy, groups=tuple(tuple(group) for group in groups))


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= SAME * np.abs(b)))


def _fewest(copies: list[_Copy], trial: _Trial) -> list[tuple[_Copy, set[str]]]:
    """As few of `copies` as delete as many norms, each with the norms that would stay without it."""
    goal = len(trial.deleted(copies))
    merged = trial.merged(copies)
    if len(trial.deleted(merged)) >= goal:
        copies = merged
    if len(copies) > TRIALS:
        return [(copy, set()) for copy in copies]
    kept = sorted(copies, key=lambda copy: (copy.fork < 0, -copy.bytes))  # what costs time, then what costs most, goes first
    for copy in list(kept):
        rest = [other for other in kept if other is not copy]
        if len(trial.deleted(rest)) >= goal:
            kept = rest
    every = trial.deleted(kept)
    return [(copy, every - trial.deleted([other for other in kept if other is not copy])) for copy in kept]


def _affordable(needed: list[tuple[_Copy, set[str]]], budget: int) -> list[_Copy]:
    """The copies that save most norms a byte, as far as the budget goes."""
    chosen: list[_Copy] = []
    for copy, _ in sorted(needed, key=lambda item: item[0].bytes / max(len(item[1]), 1)):
        if sum(other.bytes for other in chosen) + copy.bytes <= budget:
            chosen.append(copy)
    return chosen


REWRITE = Rewrite("shared-conv", "Copy a weight that several layers share, within --clone-budget, where that lets norms go.", run)
