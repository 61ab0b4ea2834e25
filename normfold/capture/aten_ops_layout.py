"""Ops that move, pick, join or repeat elements, and ops that do nothing.

What torch itself takes apart when a program becomes functional (flatten, movedim, chunk on most shapes) is not listed.
"""

from __future__ import annotations

import numpy as np

from normfold.capture.aten_spell import END, Arg, Fixed, Read, Spelled, filled, spelling, template_shape
from normfold.graph import Shape


@spelling("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy")
def _reshape(read: Read) -> Spelled | None:
    if read.schema.overload_name == "dtype":
        return None
    shape = template_shape(read.shape("self"), read.out_shape)
    if shape is None:
        return Spelled("Reshape", ["self"], sizes=True)
    return Spelled("Reshape", ["self"], {"shape": shape})


def _permutation(read: Read, order: list[int]) -> Spelled:
    return Spelled("Transpose", ["self"], {"perm": tuple(order)})


@spelling("permute", "permute_copy")
def _permute(read: Read) -> Spelled:
    rank = read.rank("self")
    return _permutation(read, [axis + rank if axis < 0 else axis for axis in read["dims"]])


@spelling("t", "t_copy")
def _t(read: Read) -> Spelled:
    return _permutation(read, list(reversed(range(read.rank("self")))))


@spelling("transpose.int", "transpose_copy")
def _transpose(read: Read) -> Spelled | None:
    rank = read.rank("self")
    if rank == 0:
        return None
    first, second = read.axis("dim0", rank), read.axis("dim1", rank)
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return _permutation(read, order)


@spelling("squeeze", "squeeze_copy")
def _squeeze(read: Read) -> Spelled | None:
    shape = read.shape("self")
    dims = range(len(shape)) if read.get("dim") is None else read.ints("dim")
    if dims is None:
        return None
    axes = tuple(sorted({axis + len(shape) if axis < 0 else axis for axis in dims if shape and shape[axis] == 1}))
    if len(read.out_shape) != len(shape) - len(axes):
        return None
    return Spelled("Squeeze", ["self"], {"axes": axes}) if axes else Spelled("Identity", ["self"])


@spelling("unsqueeze", "unsqueeze_copy")
def _unsqueeze(read: Read) -> Spelled:
    return Spelled("Unsqueeze", ["self"], {"axes": (read.axis("dim", read.rank("self") + 1),)})


@spelling("expand", "expand_copy", "broadcast_to")
def _expand(read: Read) -> Spelled | None:
    """Sizes that stay are written as 1: they survive whatever size comes."""
    source, target = read.shape("self"), read.out_shape
    padded: Shape = (1,) * (len(target) - len(source)) + source
    kept = [1 if before == after else after for before, after in zip(padded, target, strict=True)]
    shape = filled(tuple(kept))
    return Spelled("Expand", ["self"], {"shape": shape}) if shape is not None else Spelled("Expand", ["self"], sizes=True)


@spelling("repeat")
def _repeat(read: Read) -> Spelled | None:
    repeats = read.ints("repeats")
    if repeats is None or len(repeats) != read.rank("self"):
        return None
    return Spelled("Tile", ["self"], {"repeats": repeats})


@spelling("cat", "concat", "concatenate")
def _cat(read: Read) -> Spelled | None:
    tensors = read["tensors"]
    ranks = {len(tensor.meta["val"].shape) for tensor in tensors}
    types = {tensor.meta["val"].dtype for tensor in tensors}
    if len(ranks) != 1 or len(types) != 1:
        return None  # an old habit: empty tensors of one axis are skipped
    return Spelled("Concat", [Arg("tensors", item) for item in range(len(tensors))], {"axis": read.axis("dim", ranks.pop())})


def _split_of(read: Read, sizes: list[int] | None) -> Spelled | None:
    if sizes is None:
        return None
    axis = read.axis("dim", read.rank("self"))
    return Spelled("Split", ["self"], {"axis": axis, "split": tuple(sizes)}, outputs=tuple(range(len(sizes))))


def _traced_sizes(read: Read) -> list[int] | None:
    axis = read.axis("dim", read.rank("self"))
    sizes = [piece.shape[axis] for piece in read.node.meta["val"]]
    return sizes if all(isinstance(size, int) for size in sizes) else None


@spelling("split", "split_with_sizes", "chunk", "split_copy", "split_with_sizes_copy", "unsafe_split", "unsafe_chunk")
def _split(read: Read) -> Spelled | None:
    return _split_of(read, _traced_sizes(read))


@spelling("slice.Tensor", "slice_copy")
def _slice(read: Read) -> Spelled | None:
    axis = read.axis("dim", read.rank("self"))
    start, end, step = read["start"], read["end"], read["step"]
    start = 0 if start is None else start
    end = END if end is None else end
    if not isinstance(step, int):
        return None
    if not isinstance(start, int) or not isinstance(end, int):
        return Spelled("Slice", ["self"], {"axes": (axis,), "steps": (step,)}, sizes=True)
    if start == 0 and step == 1 and (end >= END or read.shape("self") == read.out_shape):
        return Spelled("Identity", ["self"])
    return Spelled("Slice", ["self"], {"starts": (start,), "ends": (end,), "axes": (axis,), "steps": (step,)})


@spelling("flip")
def _flip(read: Read) -> Spelled | None:
    """A slice that runs backwards, from the last element to before the first."""
    dims, rank = read.ints("dims"), read.rank("self")
    if not dims:
        return None
    axes, count = tuple(axis + rank if axis < 0 else axis for axis in dims), len(dims)
    attrs = {"starts": (-1,) * count, "ends": (-END - 1,) * count, "axes": axes, "steps": (-1,) * count}
    return Spelled("Slice", ["self"], attrs)


@spelling("select.int", "select_copy")
def _select(read: Read) -> Spelled | None:
    index = read["index"]
    if not isinstance(index, int):
        return None
    return Spelled("Gather", ["self", Fixed(np.array(index, np.int64))], {"axis": read.axis("dim", read.rank("self"))})


@spelling("index_select")
def _index_select(read: Read) -> Spelled | None:
    if read.rank("index") != 1 or read.rank("self") == 0:
        return None
    return Spelled("Gather", ["self", "index"], {"axis": read.axis("dim", read.rank("self"))})


@spelling("index.Tensor")
def _index(read: Read) -> Spelled | None:
    used = [place for place, index in enumerate(read["indices"]) if index is not None]
    if len(used) != 1 or read["indices"][used[0]].meta["val"].dtype.is_floating_point:
        return None
    dtype = read["indices"][used[0]].meta["val"].dtype
    if str(dtype) not in ("torch.int64", "torch.int32"):
        return None  # a mask
    return Spelled("Gather", ["self", Arg("indices", used[0])], {"axis": used[0]})


@spelling("gather")
def _gather(read: Read) -> Spelled | None:
    if read.rank("self") == 0:
        return None
    same = read.shape("index")[: read.rank("self")]
    axis = read.axis("dim", read.rank("self"))
    fits = all(size == other for place, (size, other) in enumerate(zip(same, read.shape("self"), strict=True)) if place != axis)
    return Spelled("GatherElements", ["self", "index"], {"axis": axis}) if fits else None


@spelling("pixel_shuffle")
def _pixel_shuffle(read: Read) -> Spelled | None:
    if read.rank("self") != 4:
        return None
    return Spelled("DepthToSpace", ["self"], {"blocksize": read["upscale_factor"], "mode": "CRD"})


# ---- ops that do nothing -------------------------------------------------------------------------------------------------


@spelling("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "positive", "alias_copy", "detach_copy")
def _identity(read: Read) -> Spelled:
    return Spelled("Identity", ["self"])


@spelling("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(read: Read) -> Spelled | None:
    return None if read["train"] else Spelled("Identity", ["input"])


@spelling("native_dropout")
def _native_dropout(read: Read) -> Spelled | None:
    return None if read["train"] or read.picked - {0} else Spelled("Identity", ["input"], outputs=(0,))


@spelling("_to_copy", "to", "type_as", "float", "half", "double")
def _to(read: Read) -> Spelled | None:
    if read.out_dtype is None or read.dtype("self") is None:
        return None
    if read.out_dtype == read.dtype("self"):
        return Spelled("Identity", ["self"])
    return Spelled("Cast", ["self"], {"to": read.out_dtype})
