"""What each operation of a step does to the polynomials of its channels."""

from __future__ import annotations

import numpy as np

from normfold.algebra import absorb
from normfold.algebra.cell_match import NotStandard
from normfold.algebra.cells import Poly, concat
from normfold.algebra.ratios import Floats
from normfold.errors import CannotTell
from normfold.graph import Node
from normfold.ops import evaluate
from normfold.ops.affine import batch_norm_constants
from normfold.rewrites.recurrent_symbols import Rule, Step, Symbol


def _strange(node: Node) -> NotStandard:
    return NotStandard("step-operation", f"{node.kind} ({node.label})")


# ---- affine --------------------------------------------------------------------------------------------------------------------


def _matrix(s: Step, node: Node) -> list[Symbol]:
    x, weight = s.symbol(node), s.const(node, 1)
    if weight is None or weight.ndim != 2 or len(x.dims) != 1:
        raise _strange(node)
    alpha, bias = 1.0, None
    if node.kind == "Gemm":
        if node.attrs.get("transA"):
            raise _strange(node)
        weight = weight.T if node.attrs.get("transB") else weight
        alpha = float(node.attrs.get("alpha", 1.0))
        if node.input(2) is not None:
            bias = s.const(node, 2)
            if bias is None:
                raise _strange(node)
    if weight.shape[0] != x.poly.size:
        raise _strange(node)
    poly = s.atoms.linear(x.poly, weight)
    if alpha != 1.0:
        poly = poly.affine(np.full(poly.size, alpha), np.zeros(poly.size))
    if bias is not None:
        shift = _channels(bias, x.lead, (poly.size,), node) * float(node.attrs.get("beta", 1.0))
        poly = poly.affine(np.ones(poly.size), shift)
    return [Symbol(poly, x.lead, (poly.size,))]


def _channels(array: Floats, lead: int, dims: tuple[int, ...], node: Node) -> Floats:
    """A constant as it meets channels of shape `dims`: [prod(dims)], the same in every row of the batch."""
    rank = lead + len(dims)
    if array.ndim > rank:
        raise _strange(node)
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    for axis in range(lead):
        if array.shape[axis] > 1:
            if (array != array.take([0], axis)).any():
                raise NotStandard("batch-mixing", f"{node.kind} ({node.label})")
            array = array.take([0], axis)
    try:
        return np.broadcast_to(array, (1,) * lead + dims).reshape(-1)
    except ValueError:
        raise _strange(node) from None


def _batch_norm(s: Step, node: Node) -> list[Symbol]:
    x, constants = s.symbol(node), batch_norm_constants(node, s.graph)
    if constants is None:
        raise NotStandard("step-operation", f"{node.kind} ({node.label}) with statistics of the batch")
    if x.lead != 1 or constants[0].size != x.dims[0]:
        raise _strange(node)
    a, c = absorb.batch_norm(*constants, float(node.attrs.get("epsilon", 1e-5)))
    spread = [np.broadcast_to(item.reshape((-1,) + (1,) * (len(x.dims) - 1)), x.dims).reshape(-1) for item in (a, c)]
    return [Symbol(x.poly.affine(*spread), x.lead, x.dims)]


def _both(s: Step, node: Node) -> tuple[Symbol, Symbol]:
    """Two operands of one shape; a constant becomes a polynomial of that shape."""
    first, second = node.inputs[:2]
    assert first is not None and second is not None
    if first in s.known and second in s.known:
        a, b = s.known[first], s.known[second]
        shape = node.output.shape
        if a.lead + len(a.dims) != b.lead + len(b.dims) and len(a.dims) != len(b.dims):
            raise _strange(node)
        lead = max(a.lead, b.lead)
        if shape is None or sum(size != 1 for size in shape[:lead]) > 1:  # two batches that stand crosswise
            raise NotStandard("batch-mixing", f"{node.kind} ({node.label})")
        if len(a.dims) == len(b.dims):
            a, b = Symbol(a.poly, lead, a.dims), Symbol(b.poly, lead, b.dims)
        dims = tuple(np.broadcast_shapes(_ranked(a, lead), _ranked(b, lead)))
        return _spread(a, lead, dims), _spread(b, lead, dims)
    slot = 1 if first in s.known else 0
    x, array = s.symbol(node, 1 - slot), s.const(node, slot)
    if array is None:
        raise _strange(node)
    rank = x.lead + len(x.dims)
    if array.ndim > rank:
        raise _strange(node)
    tail = array.shape[max(array.ndim - len(x.dims), 0) :]
    dims = tuple(np.broadcast_shapes(x.dims, tail))
    x = _spread(x, x.lead, dims)
    constant = Symbol(Poly(_channels(array, x.lead, dims, node)), x.lead, dims)
    return (x, constant) if slot == 1 else (constant, x)


def _ranked(x: Symbol, lead: int) -> tuple[int, ...]:
    return x.dims[lead - x.lead :]


def _spread(x: Symbol, lead: int, dims: tuple[int, ...]) -> Symbol:
    own = _ranked(x, lead)
    if own == dims and x.lead == lead:
        return x
    if any(size != 1 for size in x.dims[: lead - x.lead]):
        raise NotStandard("not-a-cell", f"channels of shape {x.dims}")
    rows = np.broadcast_to(np.arange(x.poly.size).reshape(own), dims).reshape(-1)
    return Symbol(x.poly.select(rows), lead, dims)


def _add(s: Step, node: Node) -> list[Symbol]:
    if len(node.inputs) != 2:
        raise _strange(node)
    a, b = _both(s, node)
    poly = b.poly if node.kind == "Add" else b.poly.affine(-np.ones(b.poly.size), np.zeros(b.poly.size))
    return [Symbol(a.poly.plus(poly), a.lead, a.dims)]


def _mul(s: Step, node: Node) -> list[Symbol]:
    a, b = _both(s, node)
    return [Symbol(s.atoms.times(a.poly, b.poly), a.lead, a.dims)]


def _div(s: Step, node: Node) -> list[Symbol]:
    a, b = _both(s, node)
    if not b.poly.is_const or not b.poly.const.all():
        raise _strange(node)
    return [Symbol(a.poly.affine(1.0 / b.poly.const, np.zeros(a.poly.size)), a.lead, a.dims)]


def _neg(s: Step, node: Node) -> list[Symbol]:
    x = s.symbol(node)
    return [Symbol(x.poly.affine(-np.ones(x.poly.size), np.zeros(x.poly.size)), x.lead, x.dims)]


def _function(s: Step, node: Node) -> list[Symbol]:
    x = s.symbol(node)
    return [Symbol(s.atoms.apply(node.kind, x.poly), x.lead, x.dims)]


# ---- layout --------------------------------------------------------------------------------------------------------------------


def _same(s: Step, node: Node) -> list[Symbol]:
    return [s.symbol(node)]


def _cast(s: Step, node: Node) -> list[Symbol]:
    x = node.inputs[0]
    if x is None or x.dtype != node.output.dtype:
        raise _strange(node)
    return [s.symbol(node)]


def _moved(s: Step, node: Node) -> list[Symbol]:
    """Ops that move channels: done to the channels' numbers, batch axes being of size 1."""
    x = s.symbol(node)
    numbers = np.arange(x.poly.size).reshape((1,) * x.lead + x.dims)
    _check_batch(x, node)
    constants = [s.const(node, slot) for slot in range(1, len(node.inputs))]
    try:
        results = evaluate(node, [numbers, *constants])
    except (CannotTell, ValueError, IndexError):
        raise _strange(node) from None
    lead = _lead_behind(x, node)
    return [Symbol(x.poly.select(item.reshape(-1).astype(np.int64)), lead, item.shape[lead:]) for item in results]


def _check_batch(x: Symbol, node: Node) -> None:
    """Raises NotStandard where the batch axes are cut, picked from or moved."""
    attrs, rank = node.attrs, x.lead + len(x.dims)
    if node.kind == "Transpose":
        bad = tuple(attrs.get("perm", ()))[: x.lead] != tuple(range(x.lead))
    elif node.kind == "Slice":
        rows = zip(*(attrs.get(key, ()) for key in ("axes", "starts", "ends", "steps")), strict=True)
        bad = "axes" not in attrs or any(
            axis % rank < x.lead and not (start == 0 and end >= 1 << 31 and step == 1) for axis, start, end, step in rows
        )
    elif node.kind in ("Split", "Gather"):
        bad = int(attrs.get("axis", 0)) % rank < x.lead
    else:
        bad = "axes" not in attrs
    if bad:
        raise NotStandard("batch-mixing", f"{node.kind} ({node.label})")


def _lead_behind(x: Symbol, node: Node) -> int:
    rank = x.lead + len(x.dims)
    if node.kind == "Squeeze":
        return x.lead - sum(axis % rank < x.lead for axis in node.attrs["axes"])
    if node.kind == "Unsqueeze":
        lead, out = x.lead, rank + len(node.attrs["axes"])
        for axis in sorted(axis % out for axis in node.attrs["axes"]):
            lead += axis < lead or (axis == lead and x.lead == 0)
        return lead
    return x.lead


def _reshape(s: Step, node: Node) -> list[Symbol]:
    """Channels split or joined; the batch keeps its axis (or gains and loses axes of size 1)."""
    x, shape, source = s.symbol(node), node.output.shape, node.inputs[0]
    if shape is None or source is None or source.shape is None:
        raise _strange(node)
    before = [size for size in source.shape[: x.lead] if size != 1]
    for lead in (x.lead, *range(len(shape), -1, -1)):
        dims = shape[lead:]
        if lead > len(shape) or not all(isinstance(size, int) for size in dims):
            continue
        sizes = tuple(size for size in dims if isinstance(size, int))
        after = [size for size in shape[:lead] if size != 1]
        known = len(before) == len(after) and all(a == b or not isinstance(b, int) for a, b in zip(before, after, strict=True))
        if int(np.prod(sizes)) == x.poly.size and known:
            return [Symbol(x.poly, lead, sizes)]
    raise NotStandard("batch-mixing", f"{node.kind} ({node.label})")


def _concat(s: Step, node: Node) -> list[Symbol]:
    parts = [s.symbol(node, slot) for slot in range(len(node.inputs))]
    first = parts[0]
    axis = int(node.attrs["axis"]) % (first.lead + len(first.dims)) - first.lead
    if axis < 0 or any(part.lead != first.lead or len(part.dims) != len(first.dims) for part in parts):
        raise NotStandard("batch-mixing", f"{node.kind} ({node.label})")
    starts = np.cumsum([0, *(part.poly.size for part in parts)])
    numbers = [start + np.arange(part.poly.size).reshape(part.dims) for start, part in zip(starts, parts, strict=False)]
    joined = np.concatenate(numbers, axis=axis)
    return [Symbol(concat([part.poly for part in parts]).select(joined.reshape(-1)), first.lead, joined.shape)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Gemm", "MatMul"), _matrix),
    **dict.fromkeys(("Add", "Sub"), _add),
    **dict.fromkeys(("Sigmoid", "Tanh", "Relu"), _function),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Split", "Slice", "Gather", "Transpose", "Squeeze", "Unsqueeze"), _moved),
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    "BatchNormalization": _batch_norm,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Cast": _cast,
    "Concat": _concat,
}
