"""preprocess: a swap of channels (RGB to BGR) in front of a convolution or linear layer goes into its weight.

    x -> Gather(x, p, axis 1) -> (x - mean) / std -> Conv W      becomes      x -> (x - mean') / std' -> Conv W'

    W'[o, p[c]] = W[o, c],  mean'[p[c]] = mean[c],  std'[p[c]] = std[c]        W [O, C, *k], ungrouped

Channels come in the order in which they are stored, and every constant behind is reordered instead.  The swap may be a Gather, a
reversing Slice, or a Concat of what Split, Slice or Gather picked; it may stand before the cast of a uint8 image, and in either
layout (a Transpose between is followed).  The scales and shifts of the preprocessing itself are the affine step's business.

Source: follows from the definition of the sum over input channels.  It does not touch swaps that anything but such layers reads
in the end, grouped convolutions, and choices that drop or repeat a channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from normfold.algebra.ratios import Ints
from normfold.graph import Graph, Node, Value, is_float
from normfold.record import Applied
from normfold.rewrites.following import disown
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten

UNARY = frozenset(
    "Identity Dropout Cast Clip Abs Neg Exp Log Sqrt Relu LeakyRelu Sigmoid Tanh HardSigmoid HardSwish Gelu".split()
)
BINARY = frozenset("Add Sub Mul Div".split())


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Put every swap of channels into the weights behind it; `graph` itself is not changed."""
    if not any(_find(node, graph) is not None for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    result = Rewritten(twin)
    for node in list(twin.nodes):
        found = _find(node, twin)
        if found is not None:
            result.renamed |= found.apply(twin)
            into = ", ".join(dict.fromkeys(reader.label for reader, _, _ in found.weights))
            result.applied.append(Applied("preprocess", node.label, f"swap of channels deleted into {into}"))
    twin.prune()
    twin.validate()
    return result


def _find(node: Node, graph: Graph) -> _Swap | None:
    """What must be reordered so that the swap that ends at `node` can go; None when it is no swap, or something forbids it."""
    if node.kind not in _PICKS or graph.is_fixed(node.output) or not node.output.uses:
        return None
    pick = _pick(node.output)
    if pick is None or pick.source.const is not None or pick.source.shape != node.output.shape:
        return None
    size = (node.output.shape or ())[pick.axis]
    identity = np.arange(size if isinstance(size, int) else 0)
    if not identity.size or not np.array_equal(np.sort(pick.places), identity) or np.array_equal(pick.places, identity):
        return None
    swap = _Swap(node.output, pick.source, np.argsort(pick.places))
    return swap if swap.follow(node.output, pick.axis, graph) and swap.weights and swap.keeps_weights_shared() else None


# ---- what a value picks from another -------------------------------------------------------------------------------------------


class _Pick(NamedTuple):
    """A value that holds `source` at `places` of its `axis`, and all of it along the others.

    bare: the axis was lost on the way (one place was picked).
    """

    source: Value
    axis: int
    places: Ints
    bare: bool = False


def _pick(value: Value) -> _Pick | None:
    """What `value` picks from the one value that it is made of; None when it is made otherwise."""
    node = value.producer
    if node is None or (node.inputs and node.inputs[0] is None):
        return None
    reader = _PICKS.get(node.kind)
    return reader(node, value) if reader is not None else None


def _gather(node: Node, value: Value) -> _Pick | None:
    x, index = node.inputs[0], node.inputs[1]
    if x is None or x.shape is None or index is None or index.const is None or index.const.dtype.kind not in "iu":
        return None
    axis = int(node.attrs.get("axis", 0)) % len(x.shape)
    size, picked = x.shape[axis], index.const.read().astype(np.int64)
    if not isinstance(size, int) or picked.ndim > 1 or (picked < -size).any() or (picked >= size).any():
        return None
    return _Pick(x, axis, picked.reshape(-1) % size, picked.ndim == 0)


def _slice(node: Node, value: Value) -> _Pick | None:
    x = node.inputs[0]
    rows = [node.attrs.get(key) for key in ("axes", "starts", "ends", "steps")]
    if x is None or x.shape is None or any(row is None or len(row) != 1 for row in rows):
        return None
    axis, start, end, step = (int(row[0]) for row in rows if row is not None)
    size = x.shape[axis % len(x.shape)]
    if not isinstance(size, int):
        return None
    first, last, step = slice(start, end, step).indices(size)  # (an end before the first element comes out as -1)
    return _Pick(x, axis % len(x.shape), np.arange(first, last, step))


def _split(node: Node, value: Value) -> _Pick | None:
    x, sizes = node.inputs[0], node.attrs.get("split")
    if x is None or x.rank is None or sizes is None:
        return None
    place = node.outputs.index(value)
    start = int(sum(sizes[:place]))
    return _Pick(x, int(node.attrs.get("axis", 0)) % x.rank, np.arange(start, start + int(sizes[place])))


def _squeeze(node: Node, value: Value) -> _Pick | None:
    """The axis along which one place was picked is taken away."""
    inner = _pick(node.inputs[0]) if node.inputs[0] is not None else None
    axes = node.attrs.get("axes")
    if inner is None or inner.bare or inner.places.size != 1 or axes is None or [int(a) for a in axes] != [inner.axis]:
        return None
    return inner._replace(bare=True)


def _unsqueeze(node: Node, value: Value) -> _Pick | None:
    """The axis along which one place was picked is put back."""
    inner = _pick(node.inputs[0]) if node.inputs[0] is not None else None
    axes = node.attrs.get("axes")
    if inner is None or not inner.bare or axes is None or [int(a) for a in axes] != [inner.axis]:
        return None
    return inner._replace(bare=False)


def _concat(node: Node, value: Value) -> _Pick | None:
    axis = int(node.attrs.get("axis", 0)) % (value.rank or 1)
    picks: list[_Pick] = []
    for part in node.inputs:
        pick = _pick(part) if part is not None else None
        if pick is None or pick.bare or pick.axis != axis or (picks and pick.source is not picks[0].source):
            return None
        picks.append(pick)
    return _Pick(picks[0].source, axis, np.concatenate([pick.places for pick in picks])) if picks else None


def _transposed(node: Node, value: Value) -> _Pick | None:
    """Transpose, GatherND by a column of places, and the Transpose back: a Gather, as an exporter writes it."""
    inner = node.inputs[0].producer if node.inputs[0] is not None else None
    front = inner.inputs[0].producer if inner is not None and inner.kind == "GatherND" and inner.inputs[0] is not None else None
    if inner is None or front is None or front.kind != "Transpose" or inner.attrs.get("batch_dims", 0):
        return None
    source, index, there, back = front.inputs[0], inner.inputs[1], front.attrs.get("perm"), node.attrs.get("perm")
    if source is None or index is None or index.const is None or there is None or back is None:
        return None
    places = index.const.read().astype(np.int64)
    if places.ndim != 2 or places.shape[1] != 1 or [there[axis] for axis in back] != list(range(len(there))):
        return None
    size = source.shape[there[0]] if source.shape is not None else None
    if not isinstance(size, int) or (places < -size).any() or (places >= size).any():
        return None
    return _Pick(source, there[0], places[:, 0] % size)


_PICKS = {
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Transpose": _transposed,
}


# ---- what follows from leaving it out ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Swap:
    """A swap of channels: `value` holds `source` with its channels in another order; `order` puts constants in the source's.

    values: what lies behind, up to the weights.  constants, weights: (node, slot, axis to reorder).
    """

    value: Value
    source: Value
    order: Ints
    values: list[Value] = field(default_factory=list[Value])
    constants: list[tuple[Node, int, int]] = field(default_factory=list[tuple[Node, int, int]])
    weights: list[tuple[Node, int, int]] = field(default_factory=list[tuple[Node, int, int]])

    def follow(self, value: Value, axis: int, graph: Graph) -> bool:
        """Collect what depends on the order of `value` along `axis`; False when something needs it as it is."""
        if graph.is_fixed(value):
            return False
        for node, slot in value.uses:
            weight = _weight(node, slot, axis)
            if weight is not None:
                if not _is_free(node.inputs[weight[0]], graph):
                    return False
                self.weights.append((node, *weight))
                continue
            behind = self._passes(node, slot, axis, graph)
            if behind is None or node.output.shape is None or len(node.outputs) != 1:
                return False
            self.values.append(node.output)
            if not self.follow(node.output, behind, graph):
                return False
        return True

    def _passes(self, node: Node, slot: int, axis: int, graph: Graph) -> int | None:
        """The axis of the output along which the order is kept; None for what mixes, picks or compares channels."""
        x, y = node.inputs[slot], node.output
        if x is None or x.shape is None or y.shape is None:
            return None
        if node.kind == "Transpose" and "perm" in node.attrs:
            return list(node.attrs["perm"]).index(axis)
        if node.kind == "Pad":
            pads, where = node.attrs.get("pads"), node.attrs.get("axes") or range(len(x.shape))
            if pads is None or slot != 0 or (node.input(3) is not None and "axes" not in node.attrs):
                return None
            amount = {int(a) % len(x.shape): (pads[i], pads[i + len(where)]) for i, a in enumerate(where)}
            return axis if amount.get(axis, (0, 0)) == (0, 0) and all(_is_one(v) for v in node.inputs[2:3]) else None
        if node.kind == "BatchNormalization" and slot == 0 and axis == 1 and not node.attrs.get("training_mode", 0):
            if not all(_is_free(value, graph) for value in node.inputs[1:5]):
                return None
            self.constants += [(node, place, 0) for place in range(1, 5)]
            return axis
        if node.kind in UNARY:
            return axis if slot == 0 and all(_is_one(value) for value in node.inputs[1:]) else None
        if node.kind not in BINARY or len(node.inputs) != 2 or len(y.shape) != len(x.shape):
            return None
        other = node.inputs[1 - slot]
        if other is None or other.const is None or not _is_free(other, graph) or len(other.const.shape) > len(x.shape):
            return None
        along = axis - (len(x.shape) - len(other.const.shape))
        if along >= 0 and other.const.shape[along] != 1:
            if other.const.shape[along] != self.order.size:
                return None
            self.constants.append((node, 1 - slot, along))
        return axis

    def keeps_weights_shared(self) -> bool:
        """True when no weight would have to be copied: all that read it are reordered alike."""
        chosen = {(node, slot): axis for node, slot, axis in self.weights}
        for node, slot, axis in self.weights:
            value = node.inputs[slot]
            if value is None or any(chosen.get((use.node, use.slot)) != axis for use in value.uses):
                return False
        return True

    def apply(self, graph: Graph) -> dict[str, str]:
        """Reorder the constants and leave the swap out; returns old names of values -> new ones."""
        made: dict[tuple[Value, int], Value] = {}
        for node, slot, axis in self.constants + self.weights:
            old = node.inputs[slot]
            assert old is not None and old.const is not None
            if (old, axis) not in made:
                array = np.take(old.const.float64(), self.order, axis=axis)
                made[old, axis] = graph.derived(old, array, suffix="reordered")
            graph.set_input(node, slot, made[old, axis])
        graph.replace_uses(self.value, self.source)
        names = [value.name for value in self.values]
        for value in self.values:
            disown(value, graph, "reordered")
        return dict(zip(names, (value.name for value in self.values), strict=True))


def _weight(node: Node, slot: int, axis: int) -> tuple[int, int] | None:
    """(slot of the weight, its axis of input channels) where `node` sums over `axis` of its input at `slot`."""
    x = node.inputs[slot]
    rank = x.rank if x is not None else None
    if rank is None:
        return None
    if node.kind == "Conv" and slot == 0 and axis == 1 and int(node.attrs.get("group", 1)) == 1:
        return 1, 1
    if node.kind == "Gemm" and slot == 0 and axis == (rank - 2 if node.attrs.get("transA", 0) else rank - 1):
        return 1, 1 if node.attrs.get("transB", 0) else 0
    if node.kind == "MatMul" and slot == 0 and axis == rank - 1 and (right := node.inputs[1]) is not None and right.rank == 2:
        return 1, 0
    return None


def _is_free(value: Value | None, graph: Graph) -> bool:
    """True for a constant of floats that nobody outside sees."""
    return value is not None and value.const is not None and is_float(value.dtype) and not graph.is_fixed(value)


def _is_one(value: Value | None) -> bool:
    """True for an absent parameter and for a constant of one element: it treats all channels alike."""
    return value is None or (value.const is not None and value.const.size == 1)


REWRITE = Rewrite("preprocess", "Put a swap of channels in front of a convolution or linear layer into its weight.", run)
