"""Reads one step of an unrolled recurrence as polynomials (`algebra.cells`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normfold.algebra.cell_match import NotStandard
from normfold.algebra.cells import Atoms, Poly
from normfold.algebra.ratios import Floats
from normfold.graph import Graph, Node, Shape, Value
from normfold.rewrites.recurrent_steps import Steps


@dataclass(frozen=True, eq=False)
class Symbol:
    """A tensor of one step: `lead` axes for the batch, then channels of shape `dims`, flattened in `poly`."""

    poly: Poly
    lead: int
    dims: tuple[int, ...]


def layout(shape: Shape | None) -> tuple[int, tuple[int, ...]] | None:
    """(number of batch axes, channel sizes) of an x_t or a state.

    Channels are the last axis that is not 1, or all axes but the first where several of these are not 1; None where their
    sizes are not known.
    """
    if shape is None or not shape:
        return None
    axis = len(shape) - 1
    while axis > 1 and shape[axis] == 1:
        axis -= 1
    if sum(size != 1 for size in shape[:axis]) > 1:
        axis = 1
    dims = [size for size in shape[axis:] if isinstance(size, int)]
    return (axis, tuple(dims)) if len(dims) == len(shape) - axis else None


class Step:
    """The reference step: what its values are in terms of x_t and the states before."""

    def __init__(self, graph: Graph, steps: Steps, leaves: list[Value], reference: int, rules: Mapping[str, Rule]) -> None:
        self.graph, self.steps, self.reference, self.rules = graph, steps, reference, rules
        self.atoms = Atoms()
        self.known: dict[Value, Symbol] = {}
        self.nodes: dict[Node, None] = {}  # met on the way
        for number in range(len(steps.sources)):
            mine = [value for value, place in steps.element.items() if place == (number, reference)]
            for value in mine:
                self._unknown(value, "input", str(number))
        for number, value in enumerate(leaves):
            self._unknown(value, "state", str(number))

    def _unknown(self, value: Value, kind: str, name: str) -> None:
        found = layout(value.shape)
        if found is None:
            raise NotStandard("not-a-cell", f"{value.name} of shape {value.shape}")
        lead, dims = found
        size = int(np.prod(dims))
        twin = next((b for b, item in enumerate(self.atoms.blocks) if (item.kind, item.name) == (kind, name)), None)
        poly = self.atoms.unknown(kind, name, size) if twin is None else self.atoms.whole(twin)
        if poly.size != size:
            raise NotStandard("not-a-cell", f"{value.name} of shape {value.shape}")
        self.known[value] = Symbol(poly, lead, dims)

    def of(self, value: Value) -> Symbol:
        """The polynomial of `value`.  Raises NotStandard for an operation that no cell has."""
        stack = [value]
        while stack:
            item = stack[-1]
            if item in self.known:
                stack.pop()
                continue
            node = item.producer
            if node is None:
                raise NotStandard("not-a-cell", f"it reads {item.name}")
            waiting = [v for v in node.inputs if v is not None and v.const is None and v not in self.known]
            if waiting:
                if any(not self.steps.mask(v) for v in waiting):
                    raise NotStandard("step-operation", f"{node.kind} reads {waiting[0].name}, which is computed at run time")
                stack += waiting
                continue
            self._visit(node)
            stack.pop()
        return self.known[value]

    def check_states(self, leaves: Sequence[Value], news: Sequence[Symbol]) -> None:
        """Raises NotStandard where a state has another layout after the step than before it."""
        if any(
            (new.lead, new.dims) != (self.known[leaf].lead, self.known[leaf].dims) for leaf, new in zip(leaves, news, strict=True)
        ):
            raise NotStandard("not-a-cell", "the state changes its shape")

    def _visit(self, node: Node) -> None:
        self.nodes[node] = None
        rule = self.rules.get(node.kind)
        if rule is None or node.captures:
            raise NotStandard("step-operation", f"{node.kind} ({node.label})")
        for value, symbol in zip(node.outputs, rule(self, node), strict=False):
            self.known[value] = symbol

    def symbol(self, node: Node, slot: int = 0) -> Symbol:
        value = node.inputs[slot]
        if value is None or value not in self.known:
            raise NotStandard("step-operation", f"{node.kind} ({node.label})")
        return self.known[value]

    def const(self, node: Node, slot: int) -> Floats | None:
        value = node.input(slot)
        if value is None or value.const is None or value in self.graph.pinned:
            return None
        return value.const.float64()


Rule = Callable[[Step, Node], list[Symbol]]
