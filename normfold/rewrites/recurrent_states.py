"""The states of an unrolled loop: those that depend on nothing but each other and x_t, traced from step 0 to the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from normfold.graph import Graph, Value
from normfold.rewrites.recurrent_compare import Comparison, Constants, Differs
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_steps import Steps


@dataclass(eq=False)
class Recurrence:
    """States that depend on nothing but each other and x_t.

    states[s]: the values of state s after each step.  leaves[s]: the value before the reference step.
    start[s]: the value before step 0; None when step 0 is not like the others.  differs: where a step is not like the reference.
    """

    steps: Steps
    reference: int
    leaves: list[Value]
    states: list[list[Value]]
    start: list[Value] | None
    differs: Differs | None = None

    @property
    def complete(self) -> bool:
        """True when every step makes every state."""
        return all(len(values) == self.steps.count for values in self.states)

    @property
    def news(self) -> list[Value]:
        """The values after the reference step."""
        return [values[self.reference] for values in self.states]

    def moved(self, twin: Graph) -> Recurrence:
        """The same recurrence in a clone of its graph."""
        values = {value.name: value for value in (*twin.values(), *twin.constants())}

        def of(value: Value) -> Value:
            return values[value.name]

        steps = self.steps
        taken = [Source(of(s.value), s.axis, {of(v): place for v, place in s.taken.items()}) for s in steps.sources]
        begin = None if self.start is None else [of(value) for value in self.start]
        states = [[of(value) for value in row] for row in self.states]
        leaves = [of(value) for value in self.leaves]
        return Recurrence(Steps(twin, taken, reverse=steps.reverse), self.reference, leaves, states, begin)


REFERENCE = 1


def recurrences(steps: Steps, constants: Constants) -> list[Recurrence]:
    """Every closed recurrence of three steps or more.  Raises Differs when there are states, but steps that are not alike."""
    if not steps.regular or steps.count < 3:
        return []
    leaves, roots = steps.crossing(REFERENCE - 1), steps.crossing(REFERENCE)
    if not leaves or not roots:
        return []
    found = _follow(steps, constants, leaves, roots)
    return [_started(item, constants) for item in found]


def _follow(steps: Steps, constants: Constants, leaves: list[Value], roots: list[Value]) -> list[Recurrence]:
    """States by the role that they play, traced from the reference to the last step."""
    role: dict[Value, Value] = {}  # leaf -> the root that is the same state one step later
    reads: dict[Value, set[Value]] = {}  # root -> the roots, one step before, that it reads
    later: dict[Value, Value] = {}  # root -> the same state one step later
    failures: list[Differs] = []
    by_kind: dict[tuple[str, int], list[Value]] = {}
    for value, mask in steps.masks.items():
        if mask == steps.upto(REFERENCE + 1) and value.producer is not None:
            by_kind.setdefault((value.producer.kind, value.producer.outputs.index(value)), []).append(value)
    for root in roots:
        assert root.producer is not None
        for twin in by_kind.get((root.producer.kind, root.producer.outputs.index(root)), []):
            walk = Comparison(steps, leaves, constants, REFERENCE, REFERENCE + 1)
            try:
                walk.walk(root, twin)
            except Differs as failure:
                failures.append(failure)
                continue
            if not set(walk.met.values()) <= set(roots) or any(role.get(a, b) is not b for a, b in walk.met.items()):
                continue
            role.update(walk.met)
            reads[root], later[root] = set(walk.met.values()), twin
            break
    result: list[Recurrence] = []
    for group in closed(reads):
        inverse = {role[leaf]: leaf for leaf in role if role[leaf] in group}
        if set(inverse) == set(group):
            result.append(
                Recurrence(steps, REFERENCE, [inverse[root] for root in group], [[inverse[r], r, later[r]] for r in group], None)
            )
    if not result and failures:
        raise next((failure for failure in failures if failure.parameters), failures[0])
    for item in result:
        _to_the_end(item, constants)
    return result


def closed(reads: dict[Value, set[Value]]) -> list[list[Value]]:
    """Groups of roots that all read each other, directly or not, and nothing else."""
    reach: dict[Value, set[Value]] = {}
    for root in reads:
        seen: set[Value] = set()
        stack = list(reads[root])
        while stack:
            item = stack.pop()
            if item not in seen:
                seen.add(item)
                stack += list(reads.get(item, ()))
        reach[root] = seen
    groups: list[list[Value]] = []
    for root, seen in reach.items():
        group = [item for item in reads if item in seen]
        if root in seen and seen <= set(reads) and all(reach[item] == seen for item in group) and group not in groups:
            groups.append(group)
    return groups


def _to_the_end(item: Recurrence, constants: Constants) -> None:
    """Fill in the states of all later steps, as far as the steps are like the reference (`differs` says where not)."""
    steps = item.steps
    readers: dict[Value, list[Value]] = {}
    for step in range(item.reference + 2, steps.count):
        mine = steps.upto(step)
        for place, root in enumerate(item.news):
            assert root.producer is not None
            found = None
            for twin in _candidates(steps, [values[-1] for values in item.states], mine, root, readers):
                trial = Comparison(steps, item.leaves, constants, item.reference, step)
                try:
                    trial.walk(root, twin)
                except Differs as failure:
                    item.differs = item.differs if item.differs is not None and item.differs.parameters else failure
                    continue
                expected = dict(zip(item.leaves, (values[step - 1] for values in item.states), strict=True))
                if all(expected[leaf] is value for leaf, value in trial.met.items()):
                    found = twin
                    break
            if found is None:
                return
            item.states[place].append(found)
    item.differs = None


def _candidates(steps: Steps, before: list[Value], mask: int, root: Value, readers: dict[Value, list[Value]]) -> Iterator[Value]:
    """Values of a step that are made as `root` is, found by following the readers of the state before."""
    assert root.producer is not None
    kind, place = root.producer.kind, root.producer.outputs.index(root)
    seen: set[Value] = set()
    queue = list(before)
    while queue:
        value = queue.pop(0)
        for use in value.uses:
            if use.slot < 0:
                continue
            for output in use.node.outputs:
                if output in seen or steps.mask(output) & ~mask:
                    continue
                seen.add(output)
                if use.node.kind == kind and use.node.outputs.index(output) == place and steps.mask(output) == mask:
                    yield output
                queue.append(output)


def _started(item: Recurrence, constants: Constants) -> Recurrence:
    """Find what the states are before step 0, where step 0 is like the others."""
    walk = Comparison(item.steps, item.leaves, constants, item.reference, 0)
    if not item.complete:
        return item
    try:
        for place, root in enumerate(item.news):
            walk.walk(root, item.states[place][0])
    except Differs as failure:
        item.differs = failure
        return item
    if all(leaf in walk.met for leaf in item.leaves):
        item.start = [walk.met[leaf] for leaf in item.leaves]
    return item
