"""The states of an unrolled loop of two steps, where no third step tells which tensors are the same state."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.graph import Graph, Value
from normfold.rewrites.recurrent_build import fits_state
from normfold.rewrites.recurrent_compare import Comparison, Constants, Differs
from normfold.rewrites.recurrent_start import starts_from_zero
from normfold.rewrites.recurrent_states import Recurrence, closed
from normfold.rewrites.recurrent_steps import Steps


def recurrences_of_two(graph: Graph, steps: Steps, constants: Constants) -> list[Recurrence]:
    """Every closed recurrence whose step 1 makes of x_1 and a state what step 0 makes of x_0 and a start; none is no error.

    A part of step 0 that an exporter has computed from its start is taken for what step 1 makes of zeros, and that is tried.
    """
    if not steps.regular or steps.count != 2:
        return []
    leaves = [leaf for leaf in steps.crossing(0) if leaf not in steps.element and leaf.producer is not None]
    role: dict[Value, Value] = {}  # leaf -> the root that is the same state one step later
    read: dict[Value, set[Value]] = {}  # root -> the leaves that it reads
    for leaf in leaves:
        for root in _made_alike(steps, leaf):
            walk = _Walk(steps, leaves, constants)
            try:
                walk.walk(root, leaf)
            except Differs:
                continue
            if leaf in walk.read:
                role[leaf], read[root] = root, walk.read
                break
    reads = {root: {role[leaf] for leaf in used} for root, used in read.items() if used <= role.keys()}
    leaf_of = {root: leaf for leaf, root in role.items()}
    found = [_item(graph, steps, leaves, constants, [(leaf_of[root], root) for root in group]) for group in closed(reads)]
    return [item for item in found if item is not None]


def _made_alike(steps: Steps, leaf: Value) -> list[Value]:
    """Values of step 1 from an operation as the one that made `leaf`."""
    maker = leaf.producer
    assert maker is not None
    kind, place = maker.kind, maker.outputs.index(leaf)
    of_kind = [value for value, mask in steps.masks.items() if mask == steps.upto(1) and value.producer is not None]
    return [v for v in of_kind if v.producer is not None and v.producer.kind == kind and v.producer.outputs.index(v) == place]


def _item(
    graph: Graph, steps: Steps, leaves: Sequence[Value], constants: Constants, group: Sequence[tuple[Value, Value]]
) -> Recurrence | None:
    """The recurrence of (leaf, root) pairs; None where its start is neither met whole in step 0 nor zero."""
    walk = _Walk(steps, leaves, constants)
    try:
        for leaf, root in group:
            walk.walk(root, leaf)
    except Differs:
        return None
    mine = [leaf for leaf, _ in group]
    item = Recurrence(steps, 1, mine, [[leaf, root] for leaf, root in group], None)
    if walk.computed or not walk.met.keys() >= set(mine):
        return item if starts_from_zero(item) else None
    item.start = [walk.met[leaf] for leaf in mine]
    return item if all(fits_state(graph, value, leaf) for value, leaf in zip(item.start, mine, strict=True)) else None


class _Walk(Comparison):
    """Compares step 0 with step 1.  computed: some of step 0 are constants where step 1 reads the state."""

    def __init__(self, steps: Steps, leaves: Sequence[Value], constants: Constants) -> None:
        super().__init__(steps, leaves, constants, 1, 0)
        self.read: set[Value] = set()
        self.computed = False

    def _inside(self, a: Value, b: Value) -> list[tuple[Value, Value]]:
        if a in self.leaves:
            self.read.add(a)
        elif a.const is None and b.const is not None and self.steps.mask(a) == self.steps.upto(0):
            self.computed = True
            self.read |= self._leaves_under(a)
            return []
        return super()._inside(a, b)

    def _leaves_under(self, value: Value) -> set[Value]:
        """The leaves that a value of step 0 is computed from.  Raises Differs where it is computed from x_0 beside them."""
        found: set[Value] = set()
        seen, stack = {value}, [value]
        while stack:
            item = stack.pop()
            if item in self.leaves:
                found.add(item)
                continue
            if item in self.steps.element or item.producer is None:
                raise Differs(item.producer)
            fresh = [x for x in item.producer.inputs if x is not None and self.steps.mask(x) and x not in seen]
            seen.update(fresh)
            stack += fresh
        return found
