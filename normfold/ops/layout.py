"""Operations that move elements: the output's labels are the same operation on the input's labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normfold.algebra import labels as lab
from normfold.algebra.ratios import Ints
from normfold.graph import Node, Value, is_float
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring

Move = Callable[[Ints], Ints | None]


def _data(node: Node) -> Value | None:
    x = node.inputs[0]
    return None if x is None or x.const is not None or x.shape is None else x


def _carry(node: Node, w: Wiring, move: Move, output: int = 0) -> bool:
    """Set the labels of an output to `move` of the input's; False (and nothing done) where that cannot be followed."""
    x = _data(node)
    if x is None:
        return False
    scale, shift = (move(item) for item in w.of(x))
    y = node.outputs[output]
    if scale is None or shift is None or scale.ndim != y.rank or shift.ndim != y.rank:
        return False
    w.set(y, scale, shift)
    return True


def _wire_same(node: Node, w: Wiring) -> None:
    """Identity, Dropout in eval, Cast between float types."""
    x = _data(node)
    if x is None or not is_float(x.dtype) or len(node.outputs) > 1 or not _carry(node, w, lambda item: item):
        w.pin_node(node)


def _wire_transpose(node: Node, w: Wiring) -> None:
    perm = node.attrs.get("perm")
    if perm is None or not _carry(node, w, lambda item: np.transpose(item, perm)):
        w.pin_node(node)


def _wire_reshape(node: Node, w: Wiring) -> None:
    x, y = _data(node), node.output
    if x is None or x.shape is None or y.shape is None:
        return w.pin_node(node)
    before, after = x.shape, y.shape
    if not _carry(node, w, lambda item: lab.reshape(item, before, after)):
        return w.pin_node(node)
    return None


def _wire_slice(node: Node, w: Wiring) -> None:
    starts, ends = node.attrs.get("starts"), node.attrs.get("ends")
    x = _data(node)
    if x is None or x.rank is None or starts is None or ends is None or (node.input(3) is not None and "axes" not in node.attrs):
        return w.pin_node(node)
    if node.input(4) is not None and "steps" not in node.attrs:
        return w.pin_node(node)
    axes = [int(axis) % x.rank for axis in node.attrs.get("axes", range(len(starts)))]
    steps = node.attrs.get("steps") or [1] * len(starts)

    def move(item: Ints) -> Ints:
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            item = lab.strided(item, axis, int(start), int(end), int(step))
        return item

    if not _carry(node, w, move):
        return w.pin_node(node)
    return None


def _wire_split(node: Node, w: Wiring) -> None:
    x, sizes = _data(node), node.attrs.get("split")
    if x is None or x.rank is None:
        return w.pin_node(node)
    axis = int(node.attrs.get("axis", 0)) % x.rank
    if sizes is None:
        sizes = [y.shape[axis] if y.shape is not None else None for y in node.outputs]
    known = [int(size) for size in sizes if isinstance(size, (int, np.integer))]
    if len(sizes) != len(node.outputs) or len(known) != len(sizes):
        return w.pin_node(node)
    edges = np.concatenate([[0], np.cumsum(known)])
    for i in range(len(node.outputs)):
        start, end = int(edges[i]), int(edges[i + 1])
        if not _carry(node, w, lambda item, start=start, end=end: lab.strided(item, axis, start, end, 1), i):
            return w.pin_node(node)
    return None


def _wire_concat(node: Node, w: Wiring) -> None:
    values, y = [v for v in node.inputs if v is not None], node.output
    if y.rank is None or any(v.const is not None or v.rank != y.rank for v in values):
        return w.pin_node(node)
    axis = int(node.attrs.get("axis", 0)) % y.rank
    sizes = [v.shape[axis] if v.shape is not None else None for v in values]
    scale = lab.concat([w.of(v).scale for v in values], axis, sizes)
    shift = lab.concat([w.of(v).shift for v in values], axis, sizes)
    if scale is None or shift is None:
        return w.pin_node(node)
    w.set(y, scale, shift)
    return None


def _wire_gather(node: Node, w: Wiring) -> None:
    """Gather of a tensor by a constant index."""
    x, index = _data(node), node.inputs[1]
    if x is None or x.rank is None or index is None or index.const is None or index in w.graph.pinned:
        return w.pin_node(node)
    axis, where = int(node.attrs.get("axis", 0)) % x.rank, index.const.read().astype(np.int64)
    if not _carry(node, w, lambda item: lab.take(item, axis, where)):
        return w.pin_node(node)
    return None


def _wire_expand(node: Node, w: Wiring) -> None:
    """Expand (labels broadcast with it); Tile along axes where the gauge does not vary."""
    rank = node.output.rank
    x = _data(node)
    if rank is None or x is None:
        return w.pin_node(node)
    if node.kind == "Tile":
        repeats = node.attrs.get("repeats")
        moving = set(lab.varying(w.of(x).scale)) | set(lab.varying(w.of(x).shift))
        if repeats is None or any(int(repeats[axis]) != 1 for axis in moving):
            return w.pin_node(node)
    if not _carry(node, w, lambda item: lab.raise_rank(item, rank)):
        return w.pin_node(node)
    return None


def _wire_squeeze(node: Node, w: Wiring) -> None:
    x, y, axes = _data(node), node.output, node.attrs.get("axes")
    if x is None or x.rank is None or y.rank is None or axes is None:
        return w.pin_node(node)
    gone = {int(axis) % x.rank for axis in axes}

    def move(item: Ints) -> Ints | None:
        return item.reshape([size for axis, size in enumerate(item.shape) if axis not in gone])

    if not _carry(node, w, move):
        return w.pin_node(node)
    return None


def _wire_unsqueeze(node: Node, w: Wiring) -> None:
    y, axes = node.output, node.attrs.get("axes")
    if y.rank is None or axes is None:
        return w.pin_node(node)
    new = tuple(int(axis) % y.rank for axis in axes)
    if not _carry(node, w, lambda item: np.expand_dims(item, new)):
        return w.pin_node(node)
    return None


def _wire_space_to_depth(node: Node, w: Wiring) -> None:
    """Output channel = (dy, dx, c): the channel labels repeat; spatial sizes may be dynamic."""
    x, block = _data(node), int(node.attrs.get("blocksize", 0))
    if x is None or x.rank != 4 or not _along_channels(x, w):
        return w.pin_node(node)

    def move(item: Ints) -> Ints:
        return item if item.size == 1 else np.tile(item, (1, block * block, 1, 1))

    if not _carry(node, w, move):
        return w.pin_node(node)
    return None


def _wire_depth_to_space(node: Node, w: Wiring) -> None:
    """PixelShuffle: the block * block channels that become one channel are given one gauge; spatial sizes may be dynamic."""
    x, block = _data(node), int(node.attrs.get("blocksize", 0))
    channels = x.shape[1] if x is not None and x.shape is not None and x.rank == 4 else None
    if x is None or not isinstance(channels, int) or block < 1 or not _along_channels(x, w):
        return w.pin_node(node)
    inner = channels // (block * block)
    index = np.arange(channels)
    index = index.reshape(inner, -1) if node.attrs.get("mode", "DCR") == "CRD" else index.reshape(-1, inner).T
    scale, shift = (np.broadcast_to(item.ravel(), (channels,)) for item in w.of(x))
    w.system.join_scale(scale[index], scale[index[:, :1]])
    w.system.sum_shifts(shift[index], [(1.0, shift[index[:, :1]])])
    w.set(node.output, scale[index[:, 0]].reshape(1, inner, 1, 1), shift[index[:, 0]].reshape(1, inner, 1, 1))
    return None


def _along_channels(x: Value, w: Wiring) -> bool:
    return all(set(lab.varying(item)) <= {1} for item in w.of(x))


def _wire_pad(node: Node, w: Wiring) -> None:
    """Pad: reflect, edge and wrap copy elements; a constant pad of zero keeps the scale and asks for no shift."""
    x, pads = _data(node), node.attrs.get("pads")
    if x is None or x.rank is None or pads is None or (node.input(3) is not None and "axes" not in node.attrs):
        return w.pin_node(node)
    axes = [int(axis) % x.rank for axis in node.attrs.get("axes") or range(x.rank)]
    amount = {axis: (int(pads[i]), int(pads[i + len(axes)])) for i, axis in enumerate(axes)}
    labels, constant = w.of(x), node.attrs.get("mode", "constant") == "constant"
    computed = node.input(2) is not None and "constant_value" not in node.attrs
    if constant and (computed or float(node.attrs.get("constant_value", 0.0) or 0.0) != 0.0):
        return w.pin_node(node)
    moving = set(lab.varying(labels.scale)) | set(lab.varying(labels.shift))
    padded = [axis for axis, ends in amount.items() if ends != (0, 0) and axis in moving]
    if not constant:
        if padded:
            return w.pin_node(node)
        w.set(node.output, *labels)
        return None
    w.zero_shift(x, "zero-padding", node)
    scale = labels.scale
    for axis in padded:
        if scale.shape[axis] == 1:
            continue
        before, after = amount[axis]
        if before < 0 or after < 0:
            return w.pin_node(node)
        # Zeros are zeros at any scale: the new channels have scales of their own.
        ends = [w.system.new_scales((*scale.shape[:axis], size, *scale.shape[axis + 1 :])) for size in (before, after)]
        scale = np.concatenate([ends[0], scale, ends[1]], axis=axis)
    w.set(node.output, scale, np.zeros((1,) * x.rank, dtype=np.int64))
    return None


RULES = (
    OpRule("Identity", _wire_same),
    OpRule("Dropout", _wire_same),
    OpRule("Cast", _wire_same),
    OpRule("Transpose", _wire_transpose),
    OpRule("Reshape", _wire_reshape),
    OpRule("Flatten", _wire_reshape),
    OpRule("Slice", _wire_slice),
    OpRule("Split", _wire_split),
    OpRule("Concat", _wire_concat),
    OpRule("Gather", _wire_gather),
    OpRule("Expand", _wire_expand),
    OpRule("Tile", _wire_expand),
    OpRule("Squeeze", _wire_squeeze),
    OpRule("Unsqueeze", _wire_unsqueeze),
    OpRule("DepthToSpace", _wire_depth_to_space),
    OpRule("SpaceToDepth", _wire_space_to_depth),
    OpRule("Pad", _wire_pad),
)
