"""Parameters that newer opsets take as inputs, put into `Node.attrs` where they are known before the model runs.

Both adapters and constant folding use this: an operation reads `attrs["shape"]` whoever spelled it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normfold.graph import Array, Graph, Node, Shape, Value

_LIMIT = 4096  # elements; a parameter is small


def _ints(array: Array) -> Any:
    return tuple(int(item) for item in array.reshape(-1))


def _floats(array: Array) -> Any:
    return tuple(float(item) for item in array.reshape(-1)) or None  # an empty `scales` means absent


def _sizes(array: Array) -> Any:
    return _ints(array) or None


def _number(array: Array) -> Any:
    return array.reshape(()).item() if array.size == 1 and array.dtype.kind in "biuf" else None


_Parameter = tuple[str, Callable[[Array], Any]]
REDUCTIONS = tuple(
    f"Reduce{name}" for name in ("Mean", "Sum", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp")
)
STATIC: dict[str, dict[int, _Parameter]] = {
    "Reshape": {1: ("shape", _ints)},
    "Slice": {1: ("starts", _ints), 2: ("ends", _ints), 3: ("axes", _ints), 4: ("steps", _ints)},
    "Clip": {1: ("min", _number), 2: ("max", _number)},
    "Pad": {1: ("pads", _ints), 2: ("constant_value", _number), 3: ("axes", _ints)},
    "Squeeze": {1: ("axes", _ints)},
    "Unsqueeze": {1: ("axes", _ints)},
    "Expand": {1: ("shape", _ints)},
    "Tile": {1: ("repeats", _ints)},
    "Split": {1: ("split", _ints)},
    "Resize": {2: ("scales", _floats), 3: ("sizes", _sizes)},
    "ConstantOfShape": {0: ("shape", _ints)},
    "TopK": {1: ("k", _number)},
    "Trilu": {1: ("k", _number)},
    "OneHot": {1: ("depth", _number)},
    **{kind: {1: ("axes", _ints)} for kind in REDUCTIONS},
}
"""kind -> input slot -> (attribute, reader)."""

_AXIS_OF_INPUT = frozenset(
    "Concat Gather GatherElements Softmax LogSoftmax Hardmax Flatten LayerNormalization RMSNormalization Split ArgMax ArgMin "
    "TopK ScatterElements LpNormalization Compress".split()
)


def settle(node: Node, graph: Graph) -> None:
    """Put parameters held by constants into `node.attrs`, fill those that follow from shapes, make axes >= 0.

    Constants that a caller may override (`graph.pinned`) are not parameters.  Calling it again changes nothing.
    """
    for slot, (key, read) in STATIC.get(node.kind, {}).items():
        value = node.input(slot)
        if value is None or value.const is None or value in graph.pinned or value.const.size > _LIMIT:
            continue
        found = read(value.const.rounded().read())
        if found is not None:
            node.attrs[key] = found
    x = node.input(0)
    rank = None if x is None else x.rank
    if node.kind in _AXIS_OF_INPUT and rank is not None and node.attrs.get("axis", 0) < 0:
        node.attrs["axis"] += rank
    fill = _FILL.get(node.kind)
    if fill is not None:
        fill(node, x, rank)


def _absent(node: Node, slot: int, key: str) -> bool:
    """True when the parameter is given neither as an attribute nor as an input."""
    return key not in node.attrs and node.input(slot) is None


def _positive(node: Node, key: str, rank: int | None) -> None:
    if rank is not None and key in node.attrs:
        node.attrs[key] = tuple(axis + rank if axis < 0 else axis for axis in node.attrs[key])


def _reduce(node: Node, x: Value | None, rank: int | None) -> None:
    empty = _absent(node, 1, "axes") or node.attrs.get("axes") == ()
    if empty and rank is not None and not node.attrs.get("noop_with_empty_axes"):
        node.attrs["axes"] = tuple(range(rank))
    _positive(node, "axes", rank)


def _slice(node: Node, x: Value | None, rank: int | None) -> None:
    if "starts" in node.attrs:
        count = len(node.attrs["starts"])
        if _absent(node, 3, "axes"):
            node.attrs["axes"] = tuple(range(count))
        if _absent(node, 4, "steps"):
            node.attrs["steps"] = (1,) * count
    _positive(node, "axes", rank)


def _squeeze(node: Node, x: Value | None, rank: int | None) -> None:
    if _absent(node, 1, "axes") and x is not None and static_shape(x) is not None:
        node.attrs["axes"] = tuple(axis for axis, size in enumerate(x.shape or ()) if size == 1)
    _positive(node, "axes", rank)


def _unsqueeze(node: Node, x: Value | None, rank: int | None) -> None:
    _positive(node, "axes", None if rank is None or "axes" not in node.attrs else rank + len(node.attrs["axes"]))


def _pad(node: Node, x: Value | None, rank: int | None) -> None:
    node.attrs.setdefault("mode", "constant")
    _positive(node, "axes", rank)


def _transpose(node: Node, x: Value | None, rank: int | None) -> None:
    if "perm" not in node.attrs and rank is not None:
        node.attrs["perm"] = tuple(reversed(range(rank)))


def _split(node: Node, x: Value | None, rank: int | None) -> None:
    axis = node.attrs.get("axis", 0)
    if not _absent(node, 1, "split") or axis < 0:
        return
    sizes = [value.shape[axis] if value.shape is not None and axis < len(value.shape) else None for value in node.outputs]
    whole = x.shape[axis] if x is not None and x.shape is not None and axis < len(x.shape) else None
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) == len(sizes) and whole == sum(known):
        node.attrs["split"] = known
        node.attrs.pop("num_outputs", None)


_FILL: dict[str, Callable[[Node, Value | None, int | None], None]] = {
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Pad": _pad,
    "Transpose": _transpose,
    "Split": _split,
    **dict.fromkeys(REDUCTIONS, _reduce),
}


def static_shape(value: Value | None) -> tuple[int, ...] | None:
    """The sizes of a value when all of them are known, else None."""
    if value is None or value.shape is None:
        return None
    sizes = tuple(size for size in value.shape if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) else None


def known_count(shape: Shape | None) -> int | None:
    """The number of elements, None when a size is unknown."""
    if shape is None:
        return None
    count = 1
    for size in shape:
        if not isinstance(size, int):
            return None
        count *= size
    return count
