"""Finds which step of an unrolled loop every tensor belongs to, and what crosses from step to step.

A tensor depends on a set of x_t (a bit mask).  What depends on x_0 ... x_t, and on nothing later, belongs to step t.  What
step t + 1 reads of step t, rolled back through affine operations, is the state.  A reversed loop is the same with the steps
counted from the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from normfold.graph import Graph, Value
from normfold.rewrites.recurrent_sources import Source, sources

_ONE_INPUT = frozenset(
    "BatchNormalization Neg Split Slice Gather Reshape Flatten Squeeze Unsqueeze Transpose Identity Cast".split()
)
_WITH_CONSTANT = frozenset("Gemm MatMul Add Sub Mul Div".split())


class Steps:
    """Which step every value belongs to, for a set of sources read in one direction.

    first, count: the places [first, first + count) of the sequences; place(t) is that of step t.
    """

    def __init__(self, graph: Graph, taken_from: Sequence[Source], *, reverse: bool) -> None:
        self.graph, self.sources, self.reverse = graph, list(taken_from), reverse
        places = sorted({place for source in taken_from for place in source.taken.values()})
        self.first, self.count = places[0], places[-1] - places[0] + 1
        self.regular = len(places) == self.count and all(set(source.taken.values()) == set(places) for source in self.sources)
        self.element: dict[Value, tuple[int, int]] = {}  # (source, step)
        for number, source in enumerate(self.sources):
            for value, place in source.taken.items():
                self.element[value] = number, self.step_at(place)
        self.masks: dict[Value, int] = {value: 1 << step for value, (_, step) in self.element.items()}
        for node in graph.nodes:
            mask = 0
            for value in (*node.inputs, *node.captures):
                if value is not None and value in self.masks:
                    mask |= self.masks[value]
            if mask:
                for value in node.outputs:
                    self.masks.setdefault(value, mask)

    def include(self, states: Collection[Value]) -> None:
        """Of a single step: what its states alone lead to belongs to it as well."""
        for node in self.graph.nodes:
            if any(value in states or (value is not None and self.mask(value)) for value in node.inputs):
                self.masks.update(dict.fromkeys(node.outputs, 1))

    def step_at(self, place: int) -> int:
        return self.first + self.count - 1 - place if self.reverse else place - self.first

    def mask(self, value: Value) -> int:
        return self.masks.get(value, 0)

    def upto(self, step: int) -> int:
        """The mask of what belongs to `step`."""
        return (1 << (step + 1)) - 1

    def crossing(self, step: int) -> list[Value]:
        """What step + 1 reads of `step`, rolled back."""
        mine, then = self.upto(step), self.upto(step + 1)
        found: dict[Value, None] = {}
        for node in self.graph.nodes:
            if not any(self.masks.get(value) == then for value in node.outputs):
                continue
            read = [value for value in node.inputs if value is not None and self.mask(value)]
            masks = {self.masks[value] for value in read}
            if any(mask != then and mask != mine and mask & (mask + 1) == 0 and mask < mine and step for mask in masks):
                continue  # it collects steps
            for value in read:
                if self.masks[value] == mine and value not in self.element:
                    found.update(dict.fromkeys(self._rolled(value)))
        return list(found)

    def _rolled(self, value: Value) -> list[Value]:
        """The values of which `value` is an affine image."""
        node, mask = value.producer, self.masks[value]
        if node is None:
            return [value]
        moving = [item for item in node.inputs if item is not None and item.const is None]
        if not all(self.mask(item) == mask for item in moving):
            return [value]
        affine = node.kind in _ONE_INPUT or (node.kind in _WITH_CONSTANT and len(moving) == 1)
        if (affine and len(moving) == 1) or node.kind == "Concat":
            return [root for item in moving for root in self._rolled(item)]
        return [value]


def loops(graph: Graph, shortest: int) -> Iterator[Steps]:
    """Sequences read for `shortest` steps or more: each alone, then those of one length together; forwards and backwards."""
    found = [source for source in sources(graph) if len(set(source.taken.values())) >= shortest]
    groups: list[list[Source]] = [[source] for source in found]

    def places(source: Source) -> tuple[int, ...]:
        return tuple(sorted(set(source.taken.values())))

    for _, alike in itertools.groupby(sorted(found, key=places), key=places):
        together = list(alike)
        if len(together) > 1:
            groups.append(together)
    for group in groups:
        for reverse in (False, True):
            yield Steps(graph, group, reverse=reverse)
