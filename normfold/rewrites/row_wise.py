"""Operations that treat every row of their input alone: what they do to a batch they do to several batches laid on each other.

op(x) is row-wise when op(concat(x_0, x_1)) = concat(op(x_0), op(x_1)), all along axis 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from normfold.graph import Node, Shape, Value, is_float

PRODUCTS = frozenset(("Gemm", "MatMul"))
NORMS = frozenset(("BatchNormalization", "LayerNormalization", "RMSNormalization"))
Attributes = dict[str, Any]


def attributes(node: Node, moving: Collection[int]) -> Attributes | None:
    """Attributes with which `node` does the same to the rows of all steps; None where it does not treat each row alone.

    moving: slots at which rows of every step come in; what stands at the others is one tensor for all steps.
    """
    rule = _RULES.get(node.kind)
    if rule is None or node.captures or not moving or any(isinstance(item, np.ndarray) for item in node.attrs.values()):
        return None
    rows = [value for slot in sorted(moving) if (value := node.input(slot)) is not None]
    if not all(is_rows(value) for value in (*rows, *node.outputs)):
        return None
    counts = {_shape(value)[0] for value in rows}
    if len(counts) > 1 or (len(rows) > 1 and None in counts):
        return None
    if any(isinstance(count, int) and _shape(value)[0] not in (count, None) for count in counts for value in node.outputs):
        return None
    return rule(node, moving)


def is_rows(value: Value) -> bool:
    """True for a float tensor of rows of known sizes."""
    return bool(value.shape) and is_float(value.dtype) and all(isinstance(size, int) for size in value.shape[1:])


def _shape(value: Value | None) -> Shape:
    assert value is not None and value.shape is not None
    return value.shape


def _spares_rows(value: Value | None, rank: int) -> bool:
    """True for an operand that is the same for every row of a tensor of that rank."""
    if value is None:
        return True
    return value.shape is not None and (len(value.shape) < rank or (len(value.shape) == rank and value.shape[0] == 1))


def _pointwise(node: Node, moving: Collection[int]) -> Attributes | None:
    rank = len(_shape(node.output))
    fits = all(
        len(_shape(value)) == rank if slot in moving else _spares_rows(value, rank) for slot, value in enumerate(node.inputs)
    )
    return node.attrs if fits else None


def _first(node: Node, moving: Collection[int], count: int = 1) -> bool:
    """True where the rows come in at slot 0 alone, and `count` outputs go."""
    return set(moving) == {0} and len(node.outputs) == count


def _product(node: Node, moving: Collection[int]) -> Attributes | None:
    x, weight = node.input(0), node.input(1)
    if not _first(node, moving) or weight is None or weight.rank != 2 or node.attrs.get("transA"):
        return None
    rank = len(_shape(node.output))
    return node.attrs if rank == len(_shape(x)) > 1 and _spares_rows(node.input(2), rank) else None


def _batch_norm(node: Node, moving: Collection[int]) -> Attributes | None:
    plain = _first(node, moving) and not node.attrs.get("training_mode") and len(_shape(node.output)) > 1
    return node.attrs if plain else None


def _along_axis(node: Node, moving: Collection[int]) -> Attributes | None:
    """What works along one axis, or from there on to the last: not along that of the rows."""
    rank = len(_shape(node.inputs[0]))
    axis = int(node.attrs.get("axis", -1))
    alone = _first(node, moving) and all(_spares_rows(value, rank) for value in node.inputs[1:])
    return node.attrs if alone and axis % rank > 0 else None


def _joined(node: Node, moving: Collection[int]) -> Attributes | None:
    axis = int(node.attrs["axis"]) % len(_shape(node.output))
    return node.attrs if len(moving) == len(node.inputs) and axis > 0 else None


def _split(node: Node, moving: Collection[int]) -> Attributes | None:
    known = "split" in node.attrs and _first(node, moving, len(node.outputs))
    return node.attrs if known and int(node.attrs.get("axis", 0)) % len(_shape(node.inputs[0])) > 0 else None


def _slice(node: Node, moving: Collection[int]) -> Attributes | None:
    known = all(key in node.attrs for key in ("starts", "ends", "axes", "steps")) and _first(node, moving)
    return node.attrs if known and all(axis % len(_shape(node.inputs[0])) > 0 for axis in node.attrs["axes"]) else None


def _pick(node: Node, moving: Collection[int]) -> Attributes | None:
    index, rank = node.input(1), len(_shape(node.inputs[0]))
    constant = index is not None and index.const is not None and len(index.const.shape) <= 1
    return node.attrs if constant and _first(node, moving) and int(node.attrs.get("axis", 0)) % rank > 0 else None


def _axes(node: Node, moving: Collection[int]) -> Attributes | None:
    """Squeeze, Unsqueeze and the reductions."""
    rank = len(_shape(node.output if node.kind == "Unsqueeze" else node.inputs[0]))
    axes = node.attrs.get("axes")
    return node.attrs if axes and _first(node, moving) and all(axis % rank > 0 for axis in axes) else None


def _transpose(node: Node, moving: Collection[int]) -> Attributes | None:
    perm = node.attrs.get("perm")
    return node.attrs if perm and perm[0] == 0 and _first(node, moving) else None


def _reshape(node: Node, moving: Collection[int]) -> Attributes | None:
    """Rows keep their elements, whatever becomes of the axes behind."""
    before, after = row_size(node.inputs[0]), row_size(node.output)
    static = "shape" in node.attrs and _first(node, moving)
    return {"shape": (-1, *_shape(node.output)[1:])} if static and before == after != 0 else None


def row_size(value: Value | None) -> int:
    """Elements of one row."""
    return math.prod(size for size in _shape(value)[1:] if isinstance(size, int))


Rule = Callable[[Node, Collection[int]], Attributes | None]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        """Add Sub Mul Div Pow Max Min Sum PRelu Relu Sigmoid Tanh Abs Neg Exp Sqrt Reciprocal LeakyRelu Clip
        Identity""".split(),
        _pointwise,
    ),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"), _along_axis),
    **dict.fromkeys("Squeeze Unsqueeze ReduceMean ReduceSum ReduceMax ReduceMin".split(), _axes),
    "BatchNormalization": _batch_norm,
    "Concat": _joined,
    "Split": _split,
    "Slice": _slice,
    "Gather": _pick,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
