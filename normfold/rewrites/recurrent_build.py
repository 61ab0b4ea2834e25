"""Puts one LSTM, GRU or RNN in the place of a recurrence: its input sequence, its start, its weights, what is read of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from normfold.algebra.cell_match import Cell, NotStandard
from normfold.algebra.ratios import Floats
from normfold.graph import Constant, Dim, Graph, Node, Value
from normfold.rewrites.choices import Question
from normfold.rewrites.ranges import fits
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_states import Recurrence
from normfold.rewrites.recurrent_symbols import layout
from normfold.rewrites.rewrite import Policy

END = (1 << 63) - 1
_MOVES = frozenset("Expand Unsqueeze Squeeze Reshape Identity Slice Gather Split Transpose Cast CastLike".split())
_ZEROS = frozenset(("aten::new_zeros", "aten::zeros", "aten::zeros_like"))


class Writer:
    """Appends nodes in front of `anchor` (a place in the node list)."""

    def __init__(self, graph: Graph, name: str, module: str, place: int) -> None:
        self.graph, self.name, self.module, self.place = graph, name, module, place

    def add(
        self, kind: str, inputs: list[Value | None], sizes: Sequence[Dim], suffix: str, outputs: int = 1, **attrs: object
    ) -> Value:
        like = inputs[0]
        assert like is not None
        values = [self.graph.fresh(f"{self.name}_{suffix}", sizes, like.dtype) for _ in range(outputs)]
        node = Node(kind, inputs, values, dict(attrs), values[0].name, self.module)
        self.graph.insert_at(self.place, node)
        self.place += 1
        return values[0]

    def constant(self, suffix: str, array: Floats, like: Value) -> Value:
        assert like.dtype is not None
        if not fits(array.reshape(-1, array.shape[-1]), like.dtype):
            raise NotStandard("not-a-cell", "the folded weights leave the range of their type")
        const = Constant(np.ascontiguousarray(array), dtype=like.dtype)
        name = f"{self.module}.{suffix}" if self.module else f"{self.name}_{suffix}"
        return self.graph.constant(name, const if self.graph.keep_exact else const.rounded(), param=name if self.module else "")


def writer_of(graph: Graph, label: str, anchors: Sequence[Value]) -> Writer:
    """Writes what stands for the steps called `label`, behind `anchors`."""
    inside = any(node.module == label or node.module.startswith(f"{label}.") for node in graph.nodes)
    return Writer(graph, label.rpartition(".")[2] or "recurrent", label if inside else "", first_place(graph, anchors))


def first_place(graph: Graph, values: Sequence[Value]) -> int:
    """Where all of `values` exist."""
    producers = {value.producer for value in values if value.producer is not None}
    return max((place + 1 for place, node in enumerate(graph.nodes) if node in producers), default=0)


def is_gain(cell: Cell, state: Value, policy: Policy) -> bool:
    """False where the target computes the layer slower than its single operations: an RNN where the batch may have more rows."""
    if cell.kind != "RNN" or policy.answer(Question("rnn-layer")) == "yes":
        return True
    found = layout(state.shape)
    return found is not None and all(size == 1 for size in (state.shape or ())[: found[0]])


def label_of(nodes: Iterable[Node], item: Recurrence) -> str:
    """The module that all operations of a step share, else the name of the last state."""
    paths = [node.module.split(".") for node in nodes if node.module]
    shared = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    return ".".join(shared) or item.states[0][-1].name


def sequence(w: Writer, source: Source, first: int, count: Dim) -> Value:
    """The elements [first, first + count) of a sequence, as [T, B, I]."""
    value, axis = source.value, source.axis
    shape = value.shape
    element = next(iter(source.taken))
    found = layout(element.shape)
    if shape is None or found is None or element.shape is None:
        raise NotStandard("not-a-cell", value.name)
    kept = len(element.shape) == len(shape)
    axes = list(range(len(shape))) if kept else [place for place in range(len(shape)) if place != axis]
    lead = found[0]
    batch = [place for place in axes[:lead] if place != axis]
    channels = [place for place in axes[lead:] if place != axis]
    long = [place for place in batch if shape[place] != 1] or batch[:1]
    wide = [place for place in channels if shape[place] != 1] or channels[:1]
    if not wide or len(long) > 1:
        raise NotStandard("not-a-cell", f"{value.name} of shape {shape}")
    ones = [place for place in (*batch, *channels) if place not in (*long, *wide)]
    if ones:
        shape = [size for place, size in enumerate(shape) if place not in ones]
        value = w.add("Squeeze", [value], shape, "x", axes=tuple(ones))
        moved = {old: new for new, old in enumerate(place for place in range(len(source.value.shape or ())) if place not in ones)}
        axis, long, wide = moved[axis], [moved[place] for place in long], [moved[place] for place in wide]
    perm = (axis, *long, *wide)
    if perm != tuple(range(len(perm))):
        shape = [shape[place] for place in perm]
        value = w.add("Transpose", [value], shape, "x", perm=perm)
    if len(wide) > 1:
        sizes = [size for size in shape[-len(wide) :] if isinstance(size, int)]
        shape = [*shape[: -len(wide)], int(np.prod(sizes))]
        value = w.add("Reshape", [value], shape, "x", shape=(*(0 for _ in shape[:-1]), shape[-1]))
    if not long:
        shape = [shape[0], 1, shape[1]]
        value = w.add("Unsqueeze", [value], shape, "x", axes=(1,))
    if shape[0] != count and isinstance(count, int):
        ends = (first + count,)
        value = w.add("Slice", [value], [count, *shape[1:]], "x", starts=(first,), ends=ends, axes=(0,), steps=(1,))
    return value


def input_sequence(w: Writer, sources: Sequence[Source], leaves: Sequence[Value], first: int, count: Dim) -> Value:
    """What `count` steps from `first` on read of `sources`, joined to one [T, B, I].  leaves: the states between steps."""
    parts = [sequence(w, source, first, count) for source in sources]
    shapes = [part.shape for part in parts if part.shape is not None]
    if len({shape[1] for shape in shapes}) != 1:
        raise NotStandard("not-a-cell", "sequences of several batch sizes")
    if not all(same_batch(parts[0], leaf) for leaf in leaves):
        raise NotStandard("not-a-cell", "one sequence for a whole batch of states")
    if len(parts) == 1:
        return parts[0]
    width = sum(shape[2] for shape in shapes if isinstance(shape[2], int))
    return w.add("Concat", list(parts), (*shapes[0][:2], width), "x", axis=2)


def is_read(graph: Graph, value: Value) -> bool:
    """True when something depends on `value`."""
    return bool(value.uses) or graph.is_output(value)


def is_zero(graph: Graph, value: Value) -> bool:
    """True for a tensor of zeros, made at run time or not."""
    if value.const is not None:
        return value not in graph.pinned and not value.const.read().any()
    node = value.producer
    if node is None:
        return False
    if node.kind == "ConstantOfShape":
        return not np.any(node.attrs.get("value", 0))
    if node.kind in _MOVES and node.inputs[0] is not None:
        return is_zero(graph, node.inputs[0])
    return node.kind in _ZEROS


def fits_state(graph: Graph, value: Value, like: Value) -> bool:
    """True when a state before the first step has the shape of the later ones (`like`), not one that is broadcast to it."""
    if is_zero(graph, value):
        return True
    if value.shape is None or like.shape is None or len(value.shape) != len(like.shape):
        return False
    return not any(a == 1 and b != 1 for a, b in zip(value.shape, like.shape, strict=True))


def same_batch(x: Value, state: Value) -> bool:
    """False where x [T, B, I] surely has another batch than the states, and is broadcast to it."""
    found = layout(state.shape)
    if x.shape is None or state.shape is None or found is None:
        return False
    long = [size for size in state.shape[: found[0]] if size != 1]
    mine, other = x.shape[1], long[0] if long else 1
    return mine == other or (1 not in (mine, other) and not (isinstance(mine, int) and isinstance(other, int)))


def start(w: Writer, value: Value, like: Value, x: Value) -> Value | None:
    """A state before the first step as [1, B, H]; None for zeros.  like: the state between steps.  x: the sequence [T, B, I].

    Zeros of a batch with another name than that of x are handed over: where the sizes are not the same, x of one row was
    broadcast to it, and the layer must not run with that one row.
    """
    found = layout(like.shape)
    if found is None or (is_zero(w.graph, value) and not _of_another_batch(value, found[0], x)):
        return None
    return _as_matrix(w, value, found[0], "start")


def _of_another_batch(value: Value, lead: int, x: Value) -> bool:
    names = [size for size in (value.shape or ())[:lead] if isinstance(size, str)]
    return x.shape is not None and any(name != x.shape[1] for name in names)


def _as_matrix(w: Writer, value: Value, lead: int, suffix: str) -> Value:
    """A state of any layout as [1, B, H]."""
    shape = list(value.shape or ())
    long = [place for place in range(lead) if shape[place] != 1] or list(range(lead))[:1]
    ones = [place for place in range(len(shape)) if place not in long and place != lead]
    if ones:
        shape = [size for place, size in enumerate(shape) if place not in ones]
        value = w.add("Squeeze", [value], shape, suffix, axes=tuple(ones))
    added = (0,) if len(shape) == 2 else (0, 1)
    return w.add("Unsqueeze", [value], [1] * len(added) + shape, suffix, axes=added)


def as_state(w: Writer, matrix: Value, like: Value, batch: Dim, hidden: int) -> Value:
    """[B, H] in the layout of the state that it stands for."""
    shape, found = like.shape, layout(like.shape)
    assert shape is not None and found is not None
    lead = found[0]
    if len(shape) == 2 and lead == 1:
        return matrix
    if lead == 0:
        matrix = w.add("Squeeze", [matrix], [hidden], "h", axes=(0,))
        at = {0}
    else:
        long = next((place for place in range(lead) if shape[place] != 1), 0)
        at = {long, lead}
    axes = tuple(place for place in range(len(shape)) if place not in at)
    return w.add("Unsqueeze", [matrix], list(shape), "h", axes=axes) if axes else matrix


class Built:
    """The new node and how its states are read: last(state) and every h."""

    def __init__(self, w: Writer, item: Recurrence, cell: Cell, x: Value, starts: list[Value | None]) -> None:
        self.w, self.item, self.cell = w, item, cell
        gates, hidden, _ = cell.w.shape
        assert x.shape is not None
        self.batch, self.hidden, self.count = x.shape[1], hidden, x.shape[0]
        flat = [part.reshape(1, gates * hidden, -1) for part in (cell.w, cell.r)]
        self.weights = [w.constant(name, array, x) for name, array in zip("WR", flat, strict=True)]
        bias = np.concatenate([cell.wb.reshape(1, -1), cell.rb.reshape(1, -1)], axis=1)
        if bias.any():
            self.weights.append(w.constant("B", bias, x))
        inputs: list[Value | None] = [x, *self.weights]
        if any(value is not None for value in starts):
            inputs += [None] * (5 - len(inputs)) + starts
            while inputs[-1] is None:
                inputs.pop()
        attrs: dict[str, object] = {"hidden_size": hidden, "direction": "reverse" if item.steps.reverse else "forward"}
        if cell.kind == "GRU":
            attrs["linear_before_reset"] = int(cell.before_reset)
        if cell.activation != "Tanh":
            attrs["activations"] = (cell.activation,)
        every = (self.count, 1, self.batch, hidden)
        w.add(cell.kind, inputs, every, cell.kind.lower(), outputs=len(cell.states) + 1, **attrs)
        self.node = w.graph.nodes[w.place - 1]
        self.node.outputs[0].shape = every
        for value in self.node.outputs[1:]:
            value.shape = (1, self.batch, hidden)
        self.every = w.add("Squeeze", [self.node.output], (self.count, self.batch, hidden), "h", axes=(1,))

    def last_c(self) -> Value:
        """The cell state behind the last step, as [B, H]."""
        return self.w.add("Squeeze", [self.node.outputs[2]], (self.batch, self.hidden), "c", axes=(0,))

    def only_last(self, place: int) -> None:
        """Where nothing but h behind the last step, at `place` of the sequence, is read: read it where the layer gives it."""
        graph, gathers = self.w.graph, [use.node for use in self.every.uses]
        if graph.is_output(self.every) or not gathers:
            return
        for node in gathers:
            index = node.inputs[1] if node.kind == "Gather" else None
            if index is None or index.const is None or int(index.const.read()) != place:
                return
        for node in gathers:
            graph.set_input(node, 1, None)
            graph.set_input(node, 0, self.node.outputs[1])
            node.kind, node.attrs, node.inputs = "Squeeze", {"axes": (0,)}, node.inputs[:1]
        graph.prune()

    def at(self, place: int) -> Value:
        """h at a place of the sequence, as [B, H]."""
        index = self.w.graph.constant(f"{self.w.name}_at", np.array(place, np.int64))
        return self.w.add("Gather", [self.every, index], (self.batch, self.hidden), "h", axis=0)
