"""An ONNX Loop read as a loop over time: it walks through sequences, one element a step, from one end or the other.

Nothing is taken for granted: that it takes the whole of a sequence (or so many elements from the first on, where both numbers are
known), and that nothing else ends it, follows from its numbers.  torch.jit.script writes how often it runs as the size of the
tensor that it takes elements of; torch's while_loop counts, and asks behind each step whether there is one more.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from normfold.algebra.cell_match import NotStandard
from normfold.graph import Graph, Node, Value, is_float
from normfold.rewrites.loop_numbers import Number, Numbers, Size, axis_of, plain, size_of
from normfold.rewrites.loop_parts import Loop, size_along
from normfold.rewrites.recurrent_build import is_read
from normfold.rewrites.recurrent_sources import Source, takes_all

_FOREVER = (1 << 63) - 1
_ONE_LESS: Number = {"one": -1}
_Collected = tuple[Value, Value, int, bool]


def read_loop(graph: Graph, node: Node) -> Loop:
    """A Loop over time.  Raises NotStandard where it is none, or is not seen to be one."""
    return _Reader(graph, node).read()


class _Reader:
    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node, self.body = graph, node, node.bodies["body"].clone()
        self.limit, self.going, *given = node.inputs
        self.starts = [value for value in given if value is not None]
        if len(self.starts) < len(given):
            raise NotStandard("not-a-cell", "a state without a start")
        self.number, self.condition, *rest = self.body.inputs
        self.leaves, held = rest[: len(given)], rest[len(given) :]
        self.on, *self.news = [plain(value) for value in self.body.outputs]
        around = {value.name: value for value in node.captures}
        self.outer = {value: around[value.name] for value in held}
        self.numbers = Numbers(self.body, self.number, self.outer, graph)
        self.lists: list[int] = []  # places of states
        self.states: list[int] = []
        for place, (leaf, new, start) in enumerate(zip(self.leaves, self.news, self.starts, strict=False)):
            if new is leaf:
                self.outer[leaf] = start
            elif leaf.dtype is None:
                self.lists.append(place)
                continue
            elif not self.numbers.counter(leaf, new, start):
                self.states.append(place)
                self._tell(leaf, new, start)
                continue
            if is_read(graph, node.outputs[place]):
                raise NotStandard("state-read", "something else that it carries")

    @staticmethod
    def _tell(leaf: Value, new: Value, start: Value) -> None:
        """Give a state the sizes that it has at the start and behind every step."""
        if (
            leaf.shape is None
            or new.shape is None
            or start.shape is None
            or not len(leaf.shape) == len(new.shape) == len(start.shape)
        ):
            return
        sizes = zip(leaf.shape, new.shape, start.shape, strict=True)
        leaf.shape = tuple(first if first is not None and first == then else size for size, then, first in sizes)

    def read(self) -> Loop:
        states = [self.leaves[place] for place in self.states]
        if not states or not all(is_float(leaf.dtype) for leaf in states):
            raise NotStandard("not-a-cell", "it carries something else than float tensors")
        listed = self._listed()
        collected = [*self._stacked(), *listed]
        news = [self.news[place] for place in self.states]
        length = self._length()
        sequences, backwards = self._sequences([*news, *(item[0] for item in collected)], length)
        return Loop(
            self.body,
            [self.starts[place] for place in self.states],
            states,
            news,
            [self.node.outputs[place] for place in self.states],
            sequences,
            length if isinstance(length, int) else size_along(sequences[0]),
            backwards,
            [(inner, output, axis, backwards) for inner, output, axis, _ in collected],
            is_open=not isinstance(length, int),
            is_listed=bool(listed),
        )

    # ---- what it collects --------------------------------------------------------------------------------------------------

    def _stacked(self) -> list[_Collected]:
        """Outputs that the node itself stacks."""
        pairs = zip(self.news[len(self.leaves) :], self.node.outputs[len(self.leaves) :], strict=True)
        return [(inner, output, 0, False) for inner, output in pairs if is_read(self.graph, output)]

    def _listed(self) -> list[_Collected]:
        """Lists that every step appends an element to, and that are only joined to one tensor behind the loop."""
        found: list[_Collected] = []
        for place in self.lists:
            leaf, made, start, last = self.leaves[place], self.news[place].producer, self.starts[place], self.node.outputs[place]
            if not is_read(self.graph, last):
                continue
            element = made.inputs[1] if made is not None and made.kind == "SequenceInsert" and len(made.inputs) == 2 else None
            if made is None or element is None or made.inputs[0] is not leaf or any(use.node is not made for use in leaf.uses):
                raise NotStandard("state-read", "a list that its steps do more with than append to it")
            if start.producer is None or start.producer.kind != "SequenceEmpty":
                raise NotStandard("state-read", "a list that does not start empty")
            if self.graph.is_output(last) or last.captured:
                raise NotStandard("state-read", "a list")
            found += [_joined(use.node, plain(element)) for use in last.uses if is_read(self.graph, use.node.output)]
        return found

    # ---- sequences ---------------------------------------------------------------------------------------------------------

    def _sequences(self, wanted: Iterable[Value], length: Size) -> tuple[list[Source], bool]:
        """What it takes by the number of its step, and whether it does so from the last element on."""
        takes = [node for node in _nodes(wanted) if node.kind == "Gather" and (base := self._base(node)) and base.const is None]
        found = [self._taken(node, length) for node in takes]
        if not found:
            raise NotStandard("loop-length", "it takes no elements of a sequence by the number of the step")
        if len({backwards for _, backwards in found}) > 1:
            raise NotStandard("not-a-cell", "its sequences are read in different directions")
        merged: dict[tuple[Value, int], Source] = {}
        for source, _ in found:
            merged.setdefault((source.value, source.axis), source).taken.update(source.taken)
        return list(merged.values()), found[0][1]

    def _base(self, node: Node) -> Value | None:
        """What a Gather in the body takes from, outside of it."""
        value = node.inputs[0]
        while value is not None and (maker := value.producer) is not None:
            if maker.kind != "Identity" and not (maker.kind == "Slice" and takes_all(maker)):
                return None
            value = maker.inputs[0]
        return None if value is None else self.outer.get(value)

    def _taken(self, node: Node, length: Size) -> tuple[Source, bool]:
        base, index = self._base(node), node.inputs[1]
        assert base is not None and index is not None
        number = self.numbers.of(index)
        step = 0 if number is None else number.get("step", 0)
        if number is None or base.shape is None or index.shape not in ((), (1,)) or step not in (1, -1):
            raise NotStandard("loop-length", "an element is not taken by the number of its step")
        axis = int(node.attrs.get("axis", 0)) % len(base.shape)
        source, size = Source(base, axis, {node.output: 0}), axis_of(base, axis)
        rest = {key: amount for key, amount in number.items() if key != "step"}
        longer = isinstance(size, int) and isinstance(length, int) and size > length
        if step == 1 and not rest and (size == length or longer):
            return source, False
        if step == -1 and size == length and rest in (_ONE_LESS, _less_one(length)):  # -1 is the last element, too
            return source, True
        raise NotStandard("loop-length", "it is not seen to walk through a whole sequence")

    # ---- how many steps ----------------------------------------------------------------------------------------------------

    def _length(self) -> Size:
        """How many steps there are.  Raises NotStandard where something that is computed decides that."""
        forever = self.limit is None or size_of(self.limit, self.graph) == _FOREVER
        begins = self.going is None or _is_true(self.going, self.graph)
        if self.on is self.condition or _is_true(self.on, self.body):
            found = None if forever or self.limit is None or not begins else size_of(self.limit, self.graph)
            if found is None:
                raise NotStandard("loop-length", "how many steps it makes is computed, or up to the caller")
        elif forever:
            found = self._counted(begins=begins)
        else:
            raise NotStandard("loop-length", "it may end early")
        if isinstance(found, int) and found < 1:
            raise NotStandard("loop-length", "it makes no step")
        return found

    def _counted(self, *, begins: bool) -> Size:
        """while (t < T): t is 1, 2, ... behind the steps, and 0 before the first."""
        node, first = self.on.producer, None if self.going is None else self.going.producer
        if node is None or node.kind != "Less":
            raise NotStandard("loop-length", "it may end early")
        left, right = (None if value is None else self.numbers.of(value) for value in node.inputs)
        length = _single(right)
        if left != {"step": 1, "one": 1} or length is None:
            raise NotStandard("loop-length", "it may end early")
        if begins:  # it asks behind the first step
            if not isinstance(length, int) or length < 1:
                raise NotStandard("loop-length", "it always makes a first step")
            return length
        numbers = [] if first is None or first.kind != "Less" else [size_of(value, self.graph) for value in first.inputs if value]
        if numbers != [0, length]:
            raise NotStandard("loop-length", "it does not always begin")
        return length


def _single(number: Number | None) -> Size | None:
    """The size that a number is, and nothing besides."""
    if not number or len(number) > 1:
        return None
    ((key, amount),) = number.items()
    if key == "one":
        return amount
    return key if amount == 1 and not isinstance(key, str) else None


def _less_one(length: Size) -> Number:
    if isinstance(length, int):
        return {"one": length - 1} if length > 1 else {}
    return {"one": -1, length: 1}


def _joined(node: Node, element: Value) -> _Collected:
    """What joins the elements of a list along an axis of its own."""
    if node.kind == "ConcatFromSequence":
        axis = int(node.attrs["axis"])
        if node.attrs.get("new_axis"):
            return element, node.output, axis % ((element.rank or 0) + 1), False
        maker, rank = element.producer, element.rank or 1
        opened = maker is not None and maker.kind == "Unsqueeze" and [int(item) % rank for item in maker.attrs.get("axes", ())]
        if maker is not None and maker.inputs[0] is not None and opened == [axis % rank]:
            return maker.inputs[0], node.output, axis % rank, False
    raise NotStandard("state-read", f"a list ({node.kind})")


def _is_true(value: Value, graph: Graph) -> bool:
    return value.const is not None and value not in graph.pinned and bool(np.all(value.const.read()))


def _nodes(roots: Iterable[Value]) -> dict[Node, None]:
    """The nodes that `roots` are computed by, in the order in which they are met."""
    seen: dict[Node, None] = {}
    stack = list(roots)
    while stack:
        node = stack.pop().producer
        if node is not None and node not in seen:
            seen[node] = None
            stack += [value for value in (*node.inputs, *node.captures) if value is not None]
    return seen
