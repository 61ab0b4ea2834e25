"""Steps that are put together again: where a Concat joins elements of one sequence in a row, it reads that sequence.

h -> Gather 0, Gather 1, ... -> Unsqueeze -> Concat          becomes          h -> Transpose
"""

from __future__ import annotations

from collections.abc import Mapping

from normfold.graph import Dim, Graph, Node, Value

SHORTEST = 2


class _Run:
    """Inputs from `first` on that hold the elements at start, start + step, ..., laid along axis `at` (None: as they are)."""

    def __init__(self, first: int, start: int, at: int | None) -> None:
        self.first, self.start, self.at, self.count, self.step = first, start, at, 1, 0

    def takes(self, place: int, at: int | None) -> bool:
        step = place - self.start - self.step * (self.count - 1)
        if at != self.at or (self.count > 1 and step != self.step) or abs(step) != 1:
            return False
        self.step, self.count = step, self.count + 1
        return True


def collect(graph: Graph, sequence: Value, places: Mapping[Value, int]) -> None:
    """Rewire every Concat of elements of `sequence` [T, B, ...].  places: value [B, ...] -> its place."""
    readers: dict[Node, None] = {}
    for value in places:
        for use in value.uses:
            nodes = [use.node, *(other.node for output in use.node.outputs for other in output.uses)]
            readers.update(dict.fromkeys(node for node in nodes if node.kind == "Concat"))
    for node in readers:
        if not node.output.captured:
            _rewire(graph, node, sequence, places)


def _element(value: Value | None, places: Mapping[Value, int]) -> tuple[int, int | None] | None:
    """(place, axis that was put in) of one input of a Concat."""
    if value is None:
        return None
    if value in places:
        return places[value], None
    node = value.producer
    source = node.inputs[0] if node is not None and node.kind in ("Unsqueeze", "Reshape") and node.inputs else None
    if node is None or source is None or source not in places or source.shape is None or value.shape is None:
        return None
    rank = len(source.shape) + 1
    if node.kind == "Unsqueeze":
        axes = node.attrs.get("axes", ())
        return (places[source], int(axes[0]) % rank) if len(axes) == 1 else None
    for axis in range(rank):
        if value.shape == (*source.shape[:axis], 1, *source.shape[axis:]):
            return places[source], axis
    return None


def _rewire(graph: Graph, node: Node, sequence: Value, places: Mapping[Value, int]) -> None:
    rank = len(node.output.shape or ())
    if not rank:
        return
    axis = int(node.attrs["axis"]) % rank
    runs: list[_Run] = []
    open_run: _Run | None = None
    for slot, value in enumerate(node.inputs):
        element = _element(value, places)
        if element is None or (axis != element[1] if element[1] is not None else not _mergeable(sequence, axis)):
            open_run = None
        elif open_run is None or not open_run.takes(*element):
            open_run = _Run(slot, *element)
            runs.append(open_run)
    inputs: list[Value | None] = []
    last = 0
    for run in runs:
        if run.count >= SHORTEST:
            inputs += [*node.inputs[last : run.first], _joined(graph, node, sequence, run, axis)]
            last = run.first + run.count
    inputs += node.inputs[last:]
    if len(inputs) == len(node.inputs):
        return
    if len(inputs) > 1:
        for slot in range(len(node.inputs)):
            graph.set_input(node, slot, None)
        node.inputs.clear()
        for slot, value in enumerate(inputs):
            graph.set_input(node, slot, value)
        node.origin = None
        return
    (whole,) = inputs
    assert whole is not None
    old = node.output
    graph.stand_in(old, whole)
    graph.remove([node])
    if whole is not sequence or graph.is_output(whole):
        graph.rename(whole, old.name)
        whole.gauges = old.gauges


def first_to(axis: int, rank: int) -> tuple[int, ...]:
    """The perm that moves axis 0 to `axis`."""
    return (*range(1, axis + 1), 0, *range(axis + 1, rank))


def _mergeable(sequence: Value, axis: int) -> bool:
    """True where the axis of the steps can be merged into axis `axis` of the elements: all sizes from there on are known."""
    shape = sequence.shape or ()
    return axis + 1 < len(shape) and all(isinstance(size, int) for size in shape[axis + 1 if axis else 2 :])


def _joined(graph: Graph, node: Node, sequence: Value, run: _Run, axis: int) -> Value:
    """The elements of a run, as one input of the Concat."""
    shape = list(sequence.shape or ())
    value, name = sequence, node.output.name

    def add(kind: str, source: Value, sizes: list[Dim], **attrs: object) -> Value:
        made = graph.fresh(f"{name}_{kind.lower()}", sizes, source.dtype)
        graph.insert_before(node, Node(kind, [source], [made], dict(attrs), made.name, node.module))
        return made

    if run.count != shape[0] or run.step < 0:
        end = run.start + run.step * run.count
        end = -(1 << 62) if end < 0 else end
        shape = [run.count, *shape[1:]]
        value = add("Slice", value, shape, starts=(run.start,), ends=(end,), axes=(0,), steps=(run.step,))
    if run.at is not None:
        perm = first_to(axis, len(shape))
        return value if axis == 0 else add("Transpose", value, [shape[place] for place in perm], perm=perm)
    if axis == 0:
        return add("Reshape", value, [None, *shape[2:]], shape=(-1, *shape[2:]))
    perm = first_to(axis, len(shape))
    value = add("Transpose", value, [shape[place] for place in perm], perm=perm)
    size, behind = shape[axis + 1], shape[axis + 2 :]
    assert isinstance(size, int)
    sizes = [*shape[1 : axis + 1], run.count * size, *behind]
    return add("Reshape", value, sizes, shape=(*[0] * axis, run.count * size, *behind))
