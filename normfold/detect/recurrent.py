"""Which norms stand on a recurrent path: inside an unrolled loop, or beside a recurrent layer.  Found from the graph.

An unrolled loop is what applies one weight again to what came out of applying it:

    W h -> norm -> ... -> W h' -> norm -> ...       every step with the same W

Everything from the first to the last of these products is inside; so is what joins it by additions alone (the norm of W x_t),
and what its twins at other steps show to be the same layer: it reads the same statistics, or the product of the same weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from normfold.detect.find import find_norms
from normfold.graph import Graph, Node, NormSpec, Value
from normfold.record import Recurrence

RECURRENT = frozenset(
    ("LSTM", "GRU", "RNN", "Scan", "Loop", *(f"aten::{kind}.input" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")))
)
_WEIGHTED = frozenset("Gemm MatMul Conv ConvTranspose".split())
_SUMS = frozenset("Add Sub Sum".split())
_JOINING = _SUMS | frozenset(
    "Identity Dropout Cast Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Concat Gather GatherND Expand".split()
)
_PASSING = _JOINING | frozenset(  # what stands between a norm and the recurrent layer that it belongs to
    """Mul Div Relu LeakyRelu PRelu Clip Sigmoid Tanh Elu Gelu HardSwish HardSigmoid Softplus MaxPool AveragePool
    GlobalAveragePool ReduceMean ReduceMax""".split()
)
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a place in a list of modules: one for each step
_CHAINS = 8  # loops looked for among the readers of one weight


def recurrences(graph: Graph, specs: Iterable[NormSpec]) -> dict[Node, Recurrence]:
    """Where each norm of `specs` stands, by its node; those on no recurrent path are left out."""
    specs = list(specs)
    inside, borders = _inside(graph, specs)
    others = [spec for spec in specs if spec.node not in inside]
    beside = {spec.node: place for spec in others if (place := _beside(spec, borders)) is not None}
    return beside | inside | _in_bodies(graph)


def _in_bodies(graph: Graph) -> dict[Node, Recurrence]:
    """Of a Loop or Scan; what stands in a branch of an If stands where the If does."""
    found: dict[Node, Recurrence] = {}
    for node in graph.nodes:
        for body in node.bodies.values():
            if node.kind in ("Loop", "Scan"):
                found |= {spec.node: Recurrence("body", statistics=_statistics(spec, 2)) for spec in find_norms(body)}
            else:
                found |= recurrences(body, find_norms(body))
    return found


# ---- beside a recurrent layer ----------------------------------------------------------------------------------------------


def _beside(spec: NormSpec, borders: set[Node]) -> Recurrence | None:
    """In front of a recurrent layer, behind one, or between two: with nothing but what passes on in between."""
    before = _meets(spec.input, lambda value: [(value.producer, value.producer.inputs)] if value.producer else [], borders)
    behind = _meets(spec.output, lambda value: [(use.node, use.node.outputs) for use in value.uses], borders)
    if not before and not behind:
        return None
    return Recurrence("between" if before and behind else "behind" if before else "front", statistics=_statistics(spec, 2))


_Around = Callable[[Value], Sequence[tuple[Node, Sequence[Value | None]]]]


def _meets(start: Value, around: _Around, borders: set[Node]) -> bool:
    """True when a walk from `start` comes to a recurrent layer.  `around`: neighbouring nodes, and where to go on from each."""
    queue, seen = [start], {start}
    while queue:
        for node, beyond in around(queue.pop()):
            if node.kind in RECURRENT or node in borders:
                return True
            if node.kind in _PASSING:
                fresh = [value for value in beyond if value is not None and value.const is None and value not in seen]
                seen.update(fresh)
                queue += fresh
    return False


def _statistics(spec: NormSpec, sharing: int) -> Literal["shared", "own", "run time"]:
    if spec.kind != "batch" or spec.training or spec.mean is None or spec.var is None:
        return "run time"
    return "shared" if sharing > 1 else "own"


# ---- inside an unrolled loop -----------------------------------------------------------------------------------------------


def _inside(graph: Graph, specs: list[NormSpec]) -> tuple[dict[Node, Recurrence], set[Node]]:
    """The norms inside unrolled loops; and these, with the products that the loops are made of: where a loop begins and ends."""
    readers: dict[object, list[Node]] = {}
    for node in graph.nodes:
        weight = _weight(node)
        if weight is not None:
            readers.setdefault(weight, []).append(node)
    masks = _masks(graph, [node for nodes in readers.values() if len(nodes) > 1 for node in nodes])
    loops = [chain for nodes in readers.values() if len(nodes) > 1 for chain in _chains(nodes, masks)]
    if not loops:
        return {}, set()
    inside: set[Node] = set()
    for chain in loops:
        inside |= _reached(chain[0]) & _reaching(chain[-1])
    chosen = {spec.node for spec in specs if spec.node in inside or _joins(spec.output, inside)}
    marks = {spec.node: _marks(spec) for spec in specs}
    known = {mark for node in chosen for mark in marks[node]}
    chosen |= {node for node, own in marks.items() if own & known}
    weights = {_weight(maker) for spec in specs if spec.node in chosen and (maker := _maker(spec)) is not None}
    borders = {node for nodes in readers.values() for node in nodes if _weight(node) in weights or _joins(node.output, inside)}
    borders |= chosen.union(*loops)
    shared: dict[object, int] = {}
    for spec in specs:
        if spec.node in chosen:
            shared[_own(spec)] = shared.get(_own(spec), 0) + 1
    places: dict[Node, Recurrence] = {}
    for spec in specs:
        if spec.node in chosen:
            count = shared[_own(spec)]
            steps = count if count > 1 else max(len(chain) for chain in loops)
            places[spec.node] = Recurrence("inside", steps, _statistics(spec, count))
    return places, borders


def _weight(node: Node) -> object:
    """What tells the weight of a product: equal weights are one, wherever an exporter put its copies."""
    if node.kind not in _WEIGHTED:
        return None
    value = next((value for value in node.inputs[1::-1] if value is not None and value.const is not None), None)
    return None if value is None or value.const is None or len(value.const.shape) < 2 else _same(value)


def _same(value: Value) -> object:
    assert value.const is not None
    return value.param or value


def _masks(graph: Graph, marked: Iterable[Node]) -> dict[Node, int]:
    """For every node the `marked` ones that it is or reads, directly or not: a bit each, in graph order."""
    own = set(marked)
    masks: dict[Node, int] = {}
    count = 0
    for node in graph.nodes:
        mask = 0
        for value in (*node.inputs, *node.captures):
            if value is not None and value.producer is not None:
                mask |= masks.get(value.producer, 0)  # 0: of the graph around this one
        if node in own:
            mask |= 1 << count
            count += 1
        masks[node] = mask
    return masks


def _chains(nodes: list[Node], masks: dict[Node, int]) -> list[list[Node]]:
    """Of the readers of one weight, in graph order, the runs in which each reads what became of the first."""
    firsts = 0  # the bits of those that read no other
    chains: dict[int, list[Node]] = {}  # by the bit of the first
    for node in nodes:
        before = masks[node] & firsts
        if before:
            chains[before & -before].append(node)
        else:
            own = 1 << (masks[node].bit_length() - 1)  # bits are given in graph order: a node's own is its highest
            firsts |= own
            chains[own] = [node]
    return [chain for chain in chains.values() if len(chain) > 1][:_CHAINS]


def _reached(start: Node) -> set[Node]:
    seen, queue = {start}, [start]
    while queue:
        fresh = [use.node for value in queue.pop().outputs for use in value.uses if use.node not in seen]
        seen.update(fresh)
        queue += fresh
    return seen


def _reaching(start: Node) -> set[Node]:
    seen, queue = {start}, [start]
    while queue:
        makers = (value.producer for value in queue.pop().inputs if value is not None and value.producer is not None)
        fresh = [node for node in makers if node not in seen]
        seen.update(fresh)
        queue += fresh
    return seen


def _joins(value: Value, inside: set[Node]) -> bool:
    """True when it is added to what is inside the loop, through what only moves elements and adds."""
    queue, seen = [value], {value}
    while queue:
        for use in queue.pop().uses:
            if use.node.kind in _SUMS and use.node in inside:
                return True
            if use.node.kind in _JOINING:
                queue += [item for item in use.node.outputs if item not in seen]
                seen.update(use.node.outputs)
    return False


def _own(spec: NormSpec) -> object:
    """What tells the statistics of a norm: its module, or the constant that holds them."""
    held = spec.node.input(3) or spec.node.input(1)
    return spec.node if held is None or held.const is None else _same(held)


def _marks(spec: NormSpec) -> set[object]:
    """What tells a norm from all but its twins at other steps."""
    found: set[object] = {("statistics", _own(spec))}
    if spec.var is not None and (pattern := _NUMBER.sub("#", spec.node.module)) != spec.node.module:
        found.add(("one of a list", pattern, spec.var.shape))
    maker = _maker(spec)
    if maker is not None:
        found.add(("weight", _weight(maker)))
    return found


def _maker(spec: NormSpec) -> Node | None:
    """The product straight in front of a norm; a bias may lie between."""
    maker = spec.input.producer
    if maker is not None and maker.kind in _SUMS:
        maker = next((value.producer for value in maker.inputs if value is not None and value.producer is not None), None)
    return maker if maker is not None and _weight(maker) is not None else None
