"""Where the scale and the shift of a chosen norm go: read from a solution of the affine rewrite, only when somebody watches.

`normfold explain` runs the rewrites under `watching(...)`; everybody else pays for one look at a context variable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from normfold.algebra.ratios import Floats, Ints, Ratios
from normfold.algebra.solve import Answer
from normfold.graph import Graph, Node, Value
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import AffineLayer, Wiring
from normfold.record import Refusal
from normfold.rewrites.stops import find_stops
from normfold.rewrites.trace import Absorbed, Hop, Range, Region, Side, Stop, Trace
from normfold.rewrites.view import View, elements_of

_OFFSETS = {  # constants that add to the output
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "BatchNormalization"), (2,)),
    **dict.fromkeys(("Add", "Sub", "Sum"), (0, 1)),
}


class _Watch:
    """The norms that are looked at, by their labels, and what was seen, by the names of their outputs."""

    def __init__(self, labels: Collection[str]) -> None:
        self.labels = frozenset(labels)
        self.seen: dict[str, Trace] = {}


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching(labels: Collection[str]) -> Generator[dict[str, Trace]]:
    """Within the body the affine rewrite traces the layers with these labels; yields the traces, by output."""
    watch = _Watch(labels)
    token = _WATCH.set(watch)
    try:
        yield watch.seen
    finally:
        _WATCH.reset(token)


def show(
    graph: Graph,
    wiring: Wiring,
    fate: Mapping[AffineLayer, Answer],
    refused: Mapping[AffineLayer, Refusal],
    scale: Floats,
    regauge: Regauge,
    guard: float,
) -> None:
    """Hand a solution to whoever watches, before the graph is edited by it.

    graph: as it was before; wiring belongs to its copy.  refused: the layers that were not even tried.  scale: s of every
    unknown.  regauge: the gauges, with the constants already replaced.  guard: the bound of the precision rule.
    """
    watch = _WATCH.get()
    if watch is None:
        return
    layers = [layer for layer in wiring.layers if layer.node.label in watch.labels]
    if not layers:
        return
    view = View(graph, wiring, fate, scale)
    for layer in layers:
        known = watch.seen.get(layer.y.name)
        if known is None or not known.regions:  # a later run of the rewrite says more than a refusal in an earlier one
            trace = watch.seen[layer.y.name] = _trace(layer, view, regauge, guard)
            if layer in refused:
                _untried(layer, refused[layer].code, trace, view)


def _trace(layer: AffineLayer, view: View, regauge: Regauge, guard: float) -> Trace:
    answer = view.fate.get(layer)
    trace = Trace(
        layer.node.label,
        layer.a.size,
        _range(layer.a),
        _range(layer.c),
        negative=int((layer.a < 0).sum()),
        zero=int((layer.a == 0).sum()),
    )
    if answer is not None and answer.verdict != "kept":
        _travel(layer, trace, view, regauge)
    if answer is None or answer.verdict == "deleted":
        return trace
    trace.stage = answer.stage
    if answer.conflict is not None:
        trace.conflicts, trace.of, trace.first = elements_of(answer.conflict)
        trace.stops = find_stops(layer, answer, view)
    elif layer.rms is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(layer.c) / (np.abs(layer.a) * layer.rms)
        beyond = ~(ratio <= guard) & (layer.c != 0)
        if beyond.any():
            trace.conflicts, trace.of, trace.first = elements_of(beyond)
            trace.lost = _range(ratio[beyond])
            readers = [node for node in view.around(view.value(layer.x)) if view.value(layer.x) not in node.outputs]
            trace.stops = [_here("input", "precision", node) for node in readers if node is not view.node_of(layer)]
    return trace


def _untried(layer: AffineLayer, code: str, trace: Trace, view: View) -> None:
    """Name what stands beside a layer that was refused at sight."""
    y = view.value(layer.y)
    if code == "captured":
        trace.stops = [_here("output", code, use.node) for use in y.uses if use.slot < 0]
    elif code == "zero-gamma":
        trace.conflicts, trace.of, trace.first = elements_of(layer.a == 0)


def _here(side: Side, code: str, node: Node) -> Stop:
    return Stop(side, code, node.kind, node.label, "", [])


def _travel(layer: AffineLayer, trace: Trace, view: View, regauge: Regauge) -> None:
    """Walk from both ends of the layer through all that only passes a gauge on, and on through other deleted layers."""
    links = Ratios(view.system.scale_count)
    for a, b, _ in view.system.joins(signed=False):
        links.join(a, b)
    roots, _ = links.find(np.arange(view.system.scale_count))
    gone = {view.node_of(other): other for other, answer in view.fate.items() if answer.verdict != "kept"}
    queue: deque[tuple[Side, str, Value, list[Hop]]] = deque()
    queue.append(("input", "", view.value(layer.x), []))
    queue.append(("output", "", view.value(layer.y), []))
    visited: set[Value] = set()
    absorbed: set[tuple[Node, Side]] = set()
    while queue:
        side, beyond, start, path = queue.popleft()
        if start in visited:
            continue
        paths = _spread(start, path, roots, gone, view)
        visited |= set(paths)
        moved = [value for value in paths if not regauge.is_identity(view.twin(value))]
        if not moved:
            continue
        trace.regions.append(_region(side, beyond, moved, paths, view, regauge))
        for value in moved:
            for node in view.around(value):
                if node in gone:
                    other = gone[node]
                    if other is not layer and other.kind == "norm" and other.node.label not in trace.partners:
                        trace.partners.append(other.node.label)
                    ends = view.value(other.x), view.value(other.y)
                    far = ends[1] if value is ends[0] else ends[0]
                    if other is not layer and far not in visited:
                        queue.append((side, other.node.label, far, [*paths[value], Hop(node.kind, node.label, far.name)]))
                elif (node, side) not in absorbed:
                    absorbed.add((node, side))
                    trace.absorbed += _taken(node, value, side, paths, view, regauge)


def _spread(start: Value, path: list[Hop], roots: Ints, gone: Collection[Node], view: View) -> dict[Value, list[Hop]]:
    """Values that share scales with `start`, each with the shortest path to it (`path` leads to `start`)."""

    def classes(value: Value) -> Ints:
        found = np.unique(roots[view.labels(value).scale])
        return found[found != roots[0]]

    paths = {start: path}
    queue = deque([(start, classes(start))])
    while queue:
        value, own = queue.popleft()
        for node in view.around(value):
            if node in gone:
                continue
            for other in view.touching(node):
                if other not in paths and np.isin(theirs := classes(other), own).any():
                    paths[other] = [*paths[value], Hop(node.kind, node.label, other.name)]
                    queue.append((other, theirs))
    return paths


def _region(
    side: Side, beyond: str, moved: list[Value], paths: Mapping[Value, list[Hop]], view: View, regauge: Regauge
) -> Region:
    scales = [regauge.scale(view.twin(value)) for value in moved]
    shifts = [regauge.shift(view.twin(value)) for value in moved]
    ops: list[str] = []
    for value in moved:
        for node in view.around(value):
            others = [other for other in view.touching(node) if other is not value and other in paths]
            text = f"{node.kind} ({node.label})"
            if others and text not in ops:
                ops.append(text)
    return Region(side, beyond, [value.name for value in moved], ops, _range(*scales), _range(*shifts))


def _taken(
    node: Node, value: Value, side: Side, paths: Mapping[Value, list[Hop]], view: View, regauge: Regauge
) -> Iterator[Absorbed]:
    """What the constants of `node` took up."""
    twin = view.twin_node(node)
    reads, writes = any(v in paths for v in node.inputs if v is not None), any(v in paths for v in node.outputs)
    role = "passes" if reads and writes else "writes" if writes else "reads"
    s_y = regauge.scale(view.twin(node.output)).ravel()
    for slot, new in enumerate(twin.inputs):
        old = node.input(slot)
        if new is None or new.const is None or (old is not None and old.name == new.name):
            continue
        after, before = new.const.float64(), None if old is None or old.const is None else old.const.float64()
        factor = offset = None
        if before is None or before.shape != after.shape:
            offset = _range(after)
        elif slot not in _OFFSETS.get(node.kind, ()):
            factor = _factor(before, after)
        else:
            scaled = s_y * before if s_y.size in (1, before.size) else before
            factor, offset = _factor(before, scaled), _range(after - scaled)
            factor = None if factor == (1.0, 1.0) else factor
        name = (old.param or old.name) if old is not None else f"{node.label}.bias (new)"
        yield Absorbed(name, node.kind, node.label, role, side, factor, offset, paths[value])
    behind = regauge.moved.get(twin.output)
    if behind is not None:
        offset = None if behind[1] is None else _range(behind[1])
        yield Absorbed(f"{node.label}.Add behind it (new)", "Add", node.label, role, side, None, offset, paths[value])


def _factor(before: Floats, after: Floats) -> Range | None:
    """Range of after / before where before is not zero; None where it is zero everywhere."""
    if not before.any():
        return None
    return _range(after[before != 0] / before[before != 0])


def _range(*arrays: Floats) -> Range:
    parts = [array for array in arrays if array.size]
    if not parts:
        return Range(0.0, 0.0)
    return Range(min(float(array.min()) for array in parts), max(float(array.max()) for array in parts))
