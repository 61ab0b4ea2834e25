"""The view: a framework-free graph, its queries and its edit verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from normfold.graph.node import Node
from normfold.graph.values import Array, Constant, Gauge, Use, Value


class Graph:
    """Nodes in topological order between input and output values.

    Constants are values with `const` set; they are listed nowhere and live as long as somebody reads them.
    `pinned` holds constants that a caller may override at run time: they are never folded or replaced.
    `keep_exact`: constants made by rewrites stay float64 until `round_constants()`, so that a rewrite can be judged in
    float64; when False they are rounded at once (half the memory).
    `infer`: set by an adapter that can; tells the output shapes of a node again once its inputs are better known.
    Every edit keeps producer and use links right; `validate()` checks all of them.
    """

    def __init__(self, name: str = "", origin: Any = None) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.nodes: list[Node] = []
        self.pinned: set[Value] = set()
        self.opset: int | None = None
        self.keep_exact = True
        self.origin = origin
        self.infer: Callable[[Graph, Node], None] | None = None
        self._names: set[str] = set()

    # ---- building -------------------------------------------------------------------------------------------------

    def claim(self, name: str) -> str:
        """Reserve `name`, or the first free `name_1`, `name_2`, ..."""
        unique, count = name, 0
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def value(self, name: str, shape: Any = None, dtype: Any = None, *, param: str = "", origin: Any = None) -> Value:
        """A new value without producer (a graph input, or an output of a node to be added)."""
        return Value(
            self.claim(name),
            None if shape is None else tuple(shape),
            None if dtype is None else np.dtype(dtype),
            param=param,
            origin=origin,
        )

    def fresh(self, name: str, shape: Any = None, dtype: Any = None) -> Value:
        """A new value that stands for none in the graph as captured."""
        made = self.value(name, shape, dtype)
        made.gauges = (Gauge.none(),)
        return made

    def constant(self, name: str, const: Constant | Array, *, param: str = "", origin: Any = None) -> Value:
        """A new constant value."""
        const = const if isinstance(const, Constant) else Constant(const)
        return Value(self.claim(name), const.shape, const.dtype, const=const, param=param, origin=origin)

    def derived(self, like: Value, array: Array, *, suffix: str = "folded") -> Value:
        """A constant computed by a rewrite from `like`: float64 `array`, to be stored in `like`'s type."""
        assert like.dtype is not None
        const = Constant(array, dtype=like.dtype)
        return self.constant(f"{like.name}_{suffix}", const if self.keep_exact else const.rounded(), param=like.param)

    def append(self, node: Node) -> Node:
        """Add `node` behind all others."""
        return self._place(node, len(self.nodes))

    def insert_after(self, anchor: Node, node: Node) -> Node:
        return self._place(node, self.nodes.index(anchor) + 1)

    def insert_before(self, anchor: Node, node: Node) -> Node:
        return self._place(node, self.nodes.index(anchor))

    def insert_at(self, position: int, node: Node) -> Node:
        """Make `node` the one at `position` of `nodes`."""
        return self._place(node, position)

    def _place(self, node: Node, position: int) -> Node:
        self.nodes.insert(position, node)
        for slot, value in enumerate(node.inputs):
            if value is not None:
                value.uses.append(Use(node, slot))
        for value in node.captures:
            value.uses.append(Use(node, -1))
        for value in node.outputs:
            value.producer = node
        return node

    # ---- queries --------------------------------------------------------------------------------------------------

    def constants(self) -> Iterator[Value]:
        """Every constant that somebody reads (or that is a graph output), once, in order of first reading."""
        seen: set[int] = set()
        read = (value for node in self.nodes for value in (*node.inputs, *node.captures))
        for value in (*read, *self.outputs):
            if value is not None and value.const is not None and id(value) not in seen:
                seen.add(id(value))
                yield value

    def values(self) -> Iterator[Value]:
        """Graph inputs and node outputs, in order."""
        yield from self.inputs
        for node in self.nodes:
            yield from node.outputs

    def is_output(self, value: Value) -> bool:
        return any(value is output for output in self.outputs)

    def is_fixed(self, value: Value) -> bool:
        """True when the value's name and content are seen from outside: graph output, capture, override."""
        return value in self.pinned or self.is_output(value) or value.captured

    # ---- edits ----------------------------------------------------------------------------------------------------

    def set_input(self, node: Node, slot: int, value: Value | None) -> None:
        """Make `node` read `value` at `slot`, growing the input list where `slot` lies beyond its end."""
        while len(node.inputs) <= slot:
            node.inputs.append(None)
        old = node.inputs[slot]
        if old is value:
            return
        if old is not None:
            old.uses.remove(Use(node, slot))
        node.inputs[slot] = value
        if value is not None:
            value.uses.append(Use(node, slot))

    def replace_uses(self, old: Value, new: Value) -> None:
        """Make every node that reads `old` read `new`.  Captures and graph outputs must be handled by the caller."""
        for use in list(old.uses):
            if use.slot >= 0:
                self.set_input(use.node, use.slot, new)

    def stand_in(self, old: Value, new: Value) -> None:
        """Make `new` what nodes read and callers get in the place of `old`.  Captures must be handled by the caller."""
        self.replace_uses(old, new)
        self.outputs = [new if value is old else value for value in self.outputs]

    def set_captures(self, node: Node, captures: Iterable[Value]) -> None:
        """Make `captures` what the sub-graphs of `node` read of this graph."""
        for value in node.captures:
            value.uses.remove(Use(node, -1))
        node.captures = tuple(captures)
        for value in node.captures:
            value.uses.append(Use(node, -1))

    def is_free(self, name: str) -> bool:
        """True when no value holds `name`."""
        return name not in self._names

    def rename(self, value: Value, name: str, *, unique: bool = False) -> None:
        """Give `value` exactly `name`, which must be free; with `unique` the first free variant of it."""
        if name == value.name:
            return
        if not unique and not self.is_free(name):
            raise ValueError(f"the name {name!r} is taken; rename or remove its holder first")
        chosen = self.claim(name)
        self._names.discard(value.name)
        value.name = chosen

    def bypass(self, node: Node, slot: int = 0) -> Value:
        """Remove a node with one data input (at `slot`) and one output: its readers read its input.

        When the output is seen from outside the input takes over its name and place; the caller has made sure that this
        is allowed (the input is not itself an output, a graph input, or a constant).
        """
        source, gone = node.inputs[slot], node.output
        assert source is not None
        outside = self.is_output(gone)
        self.replace_uses(gone, source)
        self.outputs = [source if value is gone else value for value in self.outputs]
        self.remove([node])
        if outside:
            self.rename(source, gone.name)
        return source

    def remove(self, nodes: Iterable[Node]) -> None:
        """Remove nodes whose outputs nobody reads any more."""
        gone = set(nodes)
        for node in gone:
            for slot, value in enumerate(node.inputs):
                if value is not None:
                    value.uses.remove(Use(node, slot))
            for value in node.captures:
                value.uses.remove(Use(node, -1))
        for node in gone:
            for value in node.outputs:
                if value.uses or self.is_output(value):
                    raise ValueError(f"{node!r} cannot be removed: its output {value.name!r} is still read")
                self._names.discard(value.name)
        if len(gone) == 1:  # layer after layer goes this way: a copy and one search is far less than a test of every node
            self.nodes = self.nodes.copy()
            self.nodes.remove(*gone)
        else:
            self.nodes = [node for node in self.nodes if node not in gone]

    def prune(self) -> int:
        """Remove nodes that reach no graph output; returns how many."""
        live = {id(value) for value in self.outputs}
        kept: set[Node] = set()
        for node in reversed(self.nodes):
            if any(id(value) in live for value in node.outputs):
                kept.add(node)
                live.update(id(v) for v in (*node.inputs, *node.captures) if v is not None)
        dead = [node for node in self.nodes if node not in kept]
        if dead:
            self.remove(dead)
        return len(dead)

    def sort(self) -> bool:
        """Put the nodes into topological order, a node as late as its first reader wants it; False where they form a circle."""
        ordered: dict[Node, None] = {}
        on_the_way: set[Node] = set()
        for last in self.nodes:
            stack = [last]
            while stack:
                node = stack[-1]
                if node in ordered:
                    stack.pop()
                    continue
                read = (value.producer for value in (*node.inputs, *node.captures) if value is not None)
                waiting = [maker for maker in read if maker is not None and maker not in ordered]
                if not waiting:
                    ordered[node] = None
                    on_the_way.discard(stack.pop())
                elif node in on_the_way:
                    return False
                else:
                    on_the_way.add(node)
                    stack += waiting
        self.nodes = list(ordered)
        return True

    def round_constants(self) -> None:
        """Round every pending constant to its stored type, once."""
        for value in self.constants():
            if value.const is not None and value.const.pending:
                value.const = value.const.rounded()

    def clone(self) -> Graph:
        """An independent copy; constants (immutable), fallbacks and origins are shared."""
        twin = Graph(self.name, self.origin)
        twin.opset, twin.keep_exact, twin._names = self.opset, self.keep_exact, set(self._names)
        twin.infer = self.infer
        copies: dict[int, Value] = {}

        def copy(value: Value | None) -> Value | None:
            if value is None:
                return None
            if id(value) not in copies:
                copies[id(value)] = Value(
                    value.name, value.shape, value.dtype, value.const, value.param, gauges=value.gauges, origin=value.origin
                )
            return copies[id(value)]

        def copies_of(values: Iterable[Value]) -> list[Value]:
            return [twin_value for value in values if (twin_value := copy(value)) is not None]

        twin.inputs = copies_of(self.inputs)
        for node in self.nodes:
            inputs = [copy(value) for value in node.inputs]
            captures = tuple(copies_of(node.captures))
            outputs = copies_of(node.outputs)
            attrs = dict(node.attrs)
            made = Node(node.kind, inputs, outputs, attrs, node.name, node.module, captures, node.fallback, node.origin)
            made.bodies = node.bodies
            twin.append(made)
        twin.outputs = copies_of(self.outputs)
        twin.pinned = set(copies_of(self.pinned))
        return twin

    # ---- checking -------------------------------------------------------------------------------------------------

    def validate(self) -> Graph:
        """Check order, links and names; returns self.  Raises AssertionError: a broken view is a bug, not bad input."""
        known: set[int] = {id(value) for value in self.inputs}
        names: dict[str, Value] = {value.name: value for value in self.inputs}

        def named(value: Value) -> None:
            holder = names.setdefault(value.name, value)
            assert holder is value, f"two values are named {value.name!r}"

        for node in self.nodes:
            for slot, value in enumerate(node.inputs):
                if value is None:
                    continue
                assert value.const is not None or id(value) in known, f"{node!r} reads {value.name!r} before it exists"
                assert Use(node, slot) in value.uses, f"{node!r} is missing among the uses of {value.name!r}"
                named(value)
            for value in node.outputs:
                assert value.producer is node, f"{value.name!r} does not know its producer {node!r}"
                assert id(value) not in known, f"{value.name!r} is produced twice"
                known.add(id(value))
                named(value)
        for value in self.outputs:
            assert value.const is not None or id(value) in known, f"graph output {value.name!r} is not produced"
        members = set(self.nodes)
        for value in (*self.values(), *self.constants()):
            for use in value.uses:
                assert use.node in members, f"{value.name!r} is read by a removed node {use.node!r}"
        return self
