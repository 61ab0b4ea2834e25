"""One step of an unrolled recurrence as the body of a Scan, and what its nodes are called at every other step."""

from __future__ import annotations

from normfold.graph import Graph, Node, Shape, Value, is_float
from normfold.rewrites.recurrent_compare import Comparison, Constants
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_states import Recurrence

_SMALL = 16  # elements: constants up to here stand in the body, where shapes are inferred from them


class AlikeSteps:
    """The steps from `first` to `last`, the last that is like the others, node by node.

    nodes: those of the reference step, in graph order.  twins[t][node]: what stands there at step t.  gone: all of them.
    """

    def __init__(self, graph: Graph, item: Recurrence, constants: Constants, first: int) -> None:
        """Raises Differs where a step is not like the reference."""
        self.item, self.first, self.last = item, first, min(len(values) for values in item.states) - 1
        self.twins = {step: _twins(item, constants, step) for step in range(first, self.last + 1)}
        inside = self.twins[item.reference]
        self.nodes = [node for node in graph.nodes if node in inside]
        self.gone = {twin for twins in self.twins.values() for twin in twins.values()}

    @property
    def count(self) -> int:
        return len(self.twins)

    @property
    def distinct(self) -> bool:
        """False where two steps, or two operations of one, have become one node."""
        return len(self.gone) == len(self.nodes) * self.count

    def read_outside(self, graph: Graph) -> dict[Value, dict[int, Value]]:
        """Values of the reference step -> {step: its value there} where others than these steps read it."""
        found: dict[Value, dict[int, Value]] = {}
        for node in self.nodes:
            for slot, value in enumerate(node.outputs):
                for step, twins in self.twins.items():
                    twin = twins[node].outputs[slot]
                    if graph.is_output(twin) or any(use.node not in self.gone for use in twin.uses):
                        found.setdefault(value, {})[step] = twin
        return found


def _twins(item: Recurrence, constants: Constants, step: int) -> dict[Node, Node]:
    walk = Comparison(item.steps, item.leaves, constants, item.reference, step)
    for new, values in zip(item.news, item.states, strict=True):
        walk.walk(new, values[step])
    own = {one: two for one, two in walk.pairs.items() if _is_inside(one, item)}
    return {one.producer: two.producer for one, two in own.items() if one.producer is not None and two.producer is not None}


def _is_inside(value: Value, item: Recurrence) -> bool:
    given = value in item.leaves or value in item.steps.element
    return not given and value.const is None and bool(item.steps.mask(value))


class StepBody:
    """The reference step as a graph of its own: inputs are the states and a slice of each sequence, then what it captures.

    of: value of the step -> value in the body.  captures: what it reads of the graph around it, by name.
    """

    def __init__(self, graph: Graph, item: Recurrence, nodes: list[Node]) -> None:
        self.graph, self.item = graph, item
        self.view = Graph("step")
        self.view.opset, self.view.keep_exact = graph.opset, graph.keep_exact
        self.of: dict[Value, Value] = {}
        self.captures: list[Value] = []
        for leaf in item.leaves:
            self.of[leaf] = self._input(leaf, leaf.shape)
        self.sources = self._slices(nodes)
        for node in nodes:
            inputs = [None if value is None else self._inner(value) for value in node.inputs]
            outputs = [self._value(value) for value in node.outputs]
            self.view.append(Node(node.kind, inputs, outputs, dict(node.attrs), node.name, node.module, fallback=node.fallback))
        for value in item.news:
            self.hand_out(value)

    def hand_out(self, value: Value) -> Value:
        """One more output of the body: the value of the step under a name of its own."""
        inner = self.of[value]
        if any(inner is other for other in (*self.view.outputs, *self.view.inputs)):
            copy = self._new(value.name, value.shape, value)
            self.view.append(Node("Identity", [inner], [copy], {}, copy.name))
            inner = copy
        self.view.outputs.append(inner)
        return inner

    def _slices(self, nodes: list[Node]) -> list[Source]:
        """An input for every sequence that the step reads, and its element in each form in which it is read."""
        steps = self.item.steps
        read = dict.fromkeys(value for node in nodes for value in node.inputs if value in steps.element)
        slices: dict[int, Value] = {}
        for value in read:
            number, _ = steps.element[value]
            source = steps.sources[number]
            shape = source.value.shape
            assert shape is not None
            if number not in slices:
                slices[number] = self._input(value, (*shape[: source.axis], *shape[source.axis + 1 :]))
            if value.rank == len(shape):
                whole = self._value(value)
                self.view.append(Node("Unsqueeze", [slices[number]], [whole], {"axes": (source.axis,)}, whole.name))
            else:
                self.of[value] = slices[number]
        return [steps.sources[number] for number in slices]

    def _inner(self, value: Value) -> Value:
        if value in self.of:
            return self.of[value]
        const = value.const
        if const is None or value in self.graph.pinned:
            self.of[value] = inner = self.view.value(value.name, value.shape, value.dtype)
            self.view.inputs.append(inner)
            self.captures.append(value)
        elif const.size <= _SMALL or not is_float(const.dtype):
            self.of[value] = inner = self.view.constant(self.graph.claim(value.name), const, param=value.param)
        else:
            self.of[value] = inner = self.view.constant(value.name, const, param=value.param)
            self.captures.append(value)
        return inner

    def _input(self, like: Value, shape: Shape | None) -> Value:
        made = self._new(like.name, shape, like)
        self.view.inputs.append(made)
        return made

    def _value(self, like: Value) -> Value:
        self.of[like] = made = self._new(like.name, like.shape, like)
        return made

    def _new(self, name: str, shape: Shape | None, like: Value) -> Value:
        return self.view.fresh(self.graph.claim(name), shape, like.dtype)
