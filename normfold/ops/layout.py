"""Operations that move elements: the output's labels are the same operation on the input's labels."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from normfold.algebra import labels as lab
from normfold.algebra.ratios import Ints
from normfold.graph import Node, Value, is_float
from normfold.ops.regauge import Regauge
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring, is_foldable, join_all

Move = Callable[[Ints], Ints | None]


def computed(node: Node) -> Value | None:
    """The first input, when it is computed and its shape known."""
    x = node.inputs[0]
    return None if x is None or x.const is not None or x.shape is None else x


def _source(node: Node, w: Wiring, fixed: Collection[int] = ()) -> Value | None:
    """The input; a constant of which the shape at run time is made has a gauge of its own, but along the axes `fixed`."""
    x = node.inputs[0]
    if x is not None and x.const is not None and is_foldable(x, w.graph):
        if w.of(x).pinned:
            w.set_fresh(x, {axis for axis, size in enumerate(x.const.shape) if size > 1} - set(fixed))
        return x
    return computed(node)


def absorb_constants(node: Node, g: Regauge) -> None:
    """Give constants that were handed a gauge the form s K + t."""
    for slot, value in enumerate(node.inputs):
        if value is None or value.const is None or not is_float(value.dtype) or g.labels(value).pinned:
            continue
        s, t = g.scale(value), g.shift(value)
        if np.any(s != 1.0) or np.any(t != 0.0):
            g.replace(node, slot, s * value.const.float64() + t)


def carry(node: Node, w: Wiring, move: Move, output: int = 0, x: Value | None = None) -> bool:
    """Set the labels of an output to `move` of the input's; False (and nothing done) where that cannot be followed."""
    x = computed(node) if x is None else x
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
    x = computed(node)
    if x is None or not is_float(x.dtype) or len(node.outputs) > 1 or not carry(node, w, lambda item: item):
        w.pin_node(node)


def _wire_transpose(node: Node, w: Wiring) -> None:
    perm = node.attrs.get("perm")
    if perm is None or not carry(node, w, lambda item: np.transpose(item, perm)):
        w.pin_node(node)


def _wire_reshape(node: Node, w: Wiring) -> None:
    x, y = computed(node), node.output
    if x is None or x.shape is None or y.shape is None:
        return w.pin_node(node)
    before, after = x.shape, y.shape
    if not carry(node, w, lambda item: lab.reshape(item, before, after)):
        return w.pin_node(node)
    return None


def _wire_slice(node: Node, w: Wiring) -> None:
    """Along axes that are cut at places computed at run time there is one gauge."""
    x, attrs = node.inputs[0], node.attrs
    starts, ends, axes, steps = (attrs.get(name) for name in ("starts", "ends", "axes", "steps"))
    if x is None or x.rank is None or axes is None:
        return w.pin_node(node)
    axes = [int(axis) % x.rank for axis in axes]
    if starts is None or ends is None or steps is None:
        source = _source(node, w, axes)
        if source is None:
            return w.pin_node(node)
        w.even_out(source, set(range(x.rank)) - set(axes))
        if not carry(node, w, lambda item: item, x=source):
            return w.pin_node(node)
        return None

    def move(item: Ints) -> Ints:
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            item = lab.strided(item, axis, int(start), int(end), int(step))
        return item

    if not carry(node, w, move):
        return w.pin_node(node)
    return None


def _wire_split(node: Node, w: Wiring) -> None:
    x, sizes = computed(node), node.attrs.get("split")
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
        if not carry(node, w, lambda item, start=start, end=end: lab.strided(item, axis, start, end, 1), i):
            return w.pin_node(node)
    return None


def _wire_concat(node: Node, w: Wiring) -> None:
    """Labels beside each other; a constant part takes whatever gauge its place asks for."""
    values, y = [v for v in node.inputs if v is not None], node.output
    parts = [v for v in values if v.const is None]
    if y.rank is None or not parts or any(v.rank != y.rank for v in values):
        return w.pin_node(node)
    axis = int(node.attrs.get("axis", 0)) % y.rank
    moving = {place for v in parts for item in w.of(v) for place in lab.varying(item)}
    for value in values:
        if is_foldable(value, w.graph) and w.of(value).pinned:
            w.set_fresh(value, moving | {axis})
    sizes = [v.shape[axis] if v.shape is not None else None for v in values]
    if not all(isinstance(size, int) for size in sizes):
        return _join_parts(node, w, values, axis)
    scale = lab.concat([w.of(v).scale for v in values], axis, sizes)
    shift = lab.concat([w.of(v).shift for v in values], axis, sizes)
    if scale is None or shift is None:
        return w.pin_node(node)
    w.set(y, scale, shift)
    return None


def _join_parts(node: Node, w: Wiring, values: list[Value], axis: int) -> None:
    """Where it is not known how far a part reaches, all parts have one gauge along the axis, and the same one."""
    for value in values:
        w.even_out(value, set(range(value.rank or 0)) - {axis})
    scale = join_all(w, [w.of(value).scale for value in values])
    shifts = [w.of(value).shift for value in values]
    shift = np.broadcast_to(max(shifts, key=lambda item: item.size), np.broadcast_shapes(*(item.shape for item in shifts)))
    for item in shifts:
        w.system.sum_shifts(shift, [(1.0, item)])
    w.set(node.output, scale, shift)


def wire_pick(node: Node, w: Wiring) -> None:
    """Gather of a computed tensor by a constant index; along an axis that is picked from at run time there is one gauge."""
    x, index = computed(node), node.inputs[1]
    if x is None or x.rank is None or index is None or index.rank is None:
        return w.pin_node(node)
    axis = int(node.attrs.get("axis", 0)) % x.rank
    if index.const is None or index in w.graph.pinned:
        w.even_out(x, set(range(x.rank)) - {axis})
        where = np.zeros((1,) * index.rank, dtype=np.int64)
    else:
        where = index.const.read().astype(np.int64)
    if not carry(node, w, lambda item: lab.take(item, axis, where)):
        return w.pin_node(node)
    return None


def _wire_gather_nd(node: Node, w: Wiring) -> None:
    """GatherND by constant indices of one axis is a Gather along the first one."""
    index = node.inputs[1]
    if index is None or index.const is None or index in w.graph.pinned or node.attrs.get("batch_dims", 0):
        return w.pin_node(node)
    where = index.const.read().astype(np.int64)
    if where.ndim == 0 or where.shape[-1] != 1 or not carry(node, w, lambda item: lab.take(item, 0, where[..., 0])):
        return w.pin_node(node)
    return None


def _wire_expand(node: Node, w: Wiring) -> None:
    """Broadcasting spreads one gauge over the new elements."""
    rank, x = node.output.rank, _source(node, w)
    if rank is None or x is None or not carry(node, w, lambda item: lab.raise_rank(item, rank), x=x):
        return w.pin_node(node)
    return None


def _wire_tile(node: Node, w: Wiring) -> None:
    """The labels are tiled with the elements; how often must be known along axes where the gauge varies."""
    x, repeats = _source(node, w), node.attrs.get("repeats")
    if x is None or x.rank is None or (repeats is not None and len(repeats) != x.rank):
        return w.pin_node(node)

    def move(item: Ints) -> Ints | None:
        moving = lab.varying(item)
        if repeats is None:
            return None if moving else item
        return np.tile(item, [int(count) if axis in moving else 1 for axis, count in enumerate(repeats)])

    if not carry(node, w, move, x=x):
        return w.pin_node(node)
    return None


def _wire_squeeze(node: Node, w: Wiring) -> None:
    x, y, axes = computed(node), node.output, node.attrs.get("axes")
    if x is None or x.rank is None or y.rank is None or axes is None:
        return w.pin_node(node)
    gone = {int(axis) % x.rank for axis in axes}

    def move(item: Ints) -> Ints | None:
        return item.reshape([size for axis, size in enumerate(item.shape) if axis not in gone])

    if not carry(node, w, move):
        return w.pin_node(node)
    return None


def _wire_unsqueeze(node: Node, w: Wiring) -> None:
    y, axes = node.output, node.attrs.get("axes")
    if y.rank is None or axes is None:
        return w.pin_node(node)
    new = tuple(int(axis) % y.rank for axis in axes)
    if not carry(node, w, lambda item: np.expand_dims(item, new)):
        return w.pin_node(node)
    return None


def _wire_space_to_depth(node: Node, w: Wiring) -> None:
    """Output channel = (dy, dx, c): the channel labels repeat; spatial sizes may be dynamic."""
    x, block = computed(node), int(node.attrs.get("blocksize", 0))
    if x is None or x.rank != 4 or not _along_channels(x, w):
        return w.pin_node(node)

    def move(item: Ints) -> Ints:
        return item if item.size == 1 else np.tile(item, (1, block * block, 1, 1))

    if not carry(node, w, move):
        return w.pin_node(node)
    return None


def _wire_depth_to_space(node: Node, w: Wiring) -> None:
    """PixelShuffle: the block * block channels that become one channel are given one gauge; spatial sizes may be dynamic."""
    x, block = computed(node), int(node.attrs.get("blocksize", 0))
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


RULES = (
    OpRule("Identity", _wire_same),
    OpRule("Dropout", _wire_same),
    OpRule("Cast", _wire_same),
    OpRule("Transpose", _wire_transpose),
    OpRule("Reshape", _wire_reshape),
    OpRule("Flatten", _wire_reshape),
    OpRule("Slice", _wire_slice, absorb_constants),
    OpRule("Split", _wire_split),
    OpRule("Concat", _wire_concat, absorb_constants),
    OpRule("GatherND", _wire_gather_nd),
    OpRule("Expand", _wire_expand, absorb_constants),
    OpRule("Tile", _wire_tile, absorb_constants),
    OpRule("Squeeze", _wire_squeeze),
    OpRule("Unsqueeze", _wire_unsqueeze),
    OpRule("DepthToSpace", _wire_depth_to_space),
    OpRule("SpaceToDepth", _wire_space_to_depth),
)
