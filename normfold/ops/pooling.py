"""Pools, reductions and resizing: averages whose weights sum to one, sums, maxima and minima."""

from __future__ import annotations

from math import prod

import numpy as np

from normfold.algebra.labels import varying
from normfold.algebra.ratios import Ints
from normfold.graph import Node, Shape, Value
from normfold.ops.linear import zero_padded
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring

FEW = 8  # shifts that vary along a reduced axis are added up when they are not more than this; else they must be the same


def _data(node: Node) -> Value | None:
    """The input, when it is computed and of known rank."""
    x = node.inputs[0]
    return None if x is None or x.const is not None or x.rank is None else x


def _window(node: Node, w: Wiring) -> Value | None:
    """The input of a pool, one gauge over each window."""
    x = _data(node)
    if x is not None:
        w.even_out(x, {0, 1})
    return x


def _wire_max_pool(node: Node, w: Wiring) -> None:
    x = _window(node, w)
    if x is None:
        return w.pin_node(node)
    w.positive(x, node)
    if len(node.outputs) > 1:
        w.zero_shift(x, "pool-indices", node)
        w.set_identity(node.outputs[1])
    w.set(node.output, *w.of(x))  # padding is -inf: any shift passes
    return None


def _wire_average_pool(node: Node, w: Wiring) -> None:
    """The weights of a window sum to one unless padding counts; of windows over the border, what counts is not agreed upon."""
    x = _window(node, w)
    if x is None:
        return w.pin_node(node)
    counted = node.attrs.get("count_include_pad", 0) and (zero_padded(node) or node.attrs.get("ceil_mode", 0))
    if counted:
        w.zero_shift(x, "zero-padding", node)
    w.set(node.output, *w.of(x))
    return None


def _wire_global_average_pool(node: Node, w: Wiring) -> None:
    x = _window(node, w)
    if x is None:
        return w.pin_node(node)
    w.set(node.output, *w.of(x))
    return None


def _wire_torch_average(node: Node, w: Wiring) -> None:
    """What torch averages in ways that ONNX cannot say: the last axes, as many as the name says."""
    x, attrs = _data(node), node.attrs
    if x is None or x.rank != node.output.rank or x.rank is None or len(node.outputs) != 1:
        return w.pin_node(node)
    spatial = next(int(letter) for letter in node.kind if letter.isdigit())
    w.even_out(x, set(range(x.rank - spatial)))
    counted = attrs.get("count_include_pad") and any(attrs.get("padding", (1,)))
    if "divisor_override" in attrs or counted:
        w.zero_shift(x, "zero-padding", node)
    w.set(node.output, *w.of(x))
    return None


_RESAMPLERS = (
    "nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d",
    "nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "bilinear2d_aa", "bicubic2d_aa",
)  # fmt: skip


# ---- reductions ----------------------------------------------------------------------------------------------------------


def _reduced(node: Node) -> tuple[Value, tuple[int, ...]] | None:
    """The input and the axes that are gone, where both are known."""
    x, axes = _data(node), node.attrs.get("axes")
    if x is None or x.rank is None or axes is None:
        return None
    return x, tuple(int(axis) % x.rank for axis in axes)


def _squeezed(node: Node, labels: Ints, axes: tuple[int, ...]) -> Ints:
    if node.attrs.get("keepdims", 1):
        return labels
    return labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in axes])


def _wire_extremum(node: Node, w: Wiring) -> None:
    """max(s x + t) == s max(x) + t for one s > 0 and one t along the reduced axes."""
    found = _reduced(node)
    if found is None:
        return w.pin_node(node)
    x, axes = found
    w.even_out(x, set(range(x.rank or 0)) - set(axes))
    w.positive(x, node)
    w.set(node.output, *(_squeezed(node, item, axes) for item in w.of(x)))
    return None


def _wire_total(node: Node, w: Wiring) -> None:
    """One scale along the reduced axes; the shifts are averaged (ReduceMean) or added up (ReduceSum) with the elements."""
    found = _reduced(node)
    if found is None:
        return w.pin_node(node)
    x, axes = found
    assert x.shape is not None
    keep = set(range(len(x.shape))) - set(axes)
    w.even_scale(x, keep)
    moving = [axis for axis in varying(w.of(x).shift) if axis in axes]
    if prod(w.of(x).shift.shape[axis] for axis in moving) > FEW:
        w.even_shift(x, keep)
        moving = []
    repeats = [x.shape[axis] for axis in axes if axis not in moving]  # times that each shift occurs
    known = [size for size in repeats if isinstance(size, int)]
    if node.kind == "ReduceSum" and len(known) < len(repeats):
        w.zero_shift(x, "sum", node)
        known = [0]
    scale, shift = w.of(x)
    parts = [shift]
    for axis in moving:
        parts = [np.take(part, [i], axis=axis) for part in parts for i in range(shift.shape[axis])]
    factor = float(prod(known)) if node.kind == "ReduceSum" else 1.0 / len(parts)
    if shift.any() and (len(parts) > 1 or factor != 1.0):
        shift = w.system.new_shifts(parts[0].shape)
        w.system.sum_shifts(shift, [(factor, part) for part in parts])
    w.set(node.output, _squeezed(node, scale, axes), _squeezed(node, shift, axes))
    return None


# ---- resizing ------------------------------------------------------------------------------------------------------------


def _wire_resize(node: Node, w: Wiring) -> None:
    """Every element is a mean of its neighbours; along an axis where the gauge varies nothing may be resampled."""
    x, y, mode = _data(node), node.output, node.attrs.get("mode", "nearest")
    if x is None or x.shape is None or y.shape is None or mode not in ("nearest", "linear", "cubic"):
        return w.pin_node(node)
    w.even_out(x, _untouched(node, x.shape, y.shape))
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        if float(node.attrs.get("extrapolation_value", 0.0)) != 0.0:
            return w.pin_node(node)
        w.zero_shift(x, "resize-extrapolation", node)
    w.set(y, *w.of(x))
    return None


def _untouched(node: Node, before: Shape, after: Shape) -> set[int]:
    """Axes that provably keep every element: an equal size alone does not say so (2 rows resized by 1.25 are 2 rows)."""
    rank, attrs = len(before), node.attrs
    axes = [int(axis) % rank for axis in attrs.get("axes", range(rank))]
    kept = set(range(rank)) - set(axes)
    if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return kept
    scales, given = attrs.get("scales"), node.input(2)
    if scales is not None:
        factors = [float(factor) for factor in scales]
        return kept | {axis for axis, factor in zip(axes, factors, strict=False) if factor == 1.0}
    computed = given is not None and given.const is None and "computed" not in attrs
    if computed or attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return kept
    return kept | {axis for axis in axes if isinstance(before[axis], int) and before[axis] == after[axis]}


RULES = (
    OpRule("MaxPool", _wire_max_pool),
    OpRule("GlobalMaxPool", _wire_max_pool),
    OpRule("AveragePool", _wire_average_pool),
    OpRule("GlobalAveragePool", _wire_global_average_pool),
    OpRule("ReduceMean", _wire_total),
    OpRule("ReduceSum", _wire_total),
    OpRule("ReduceMax", _wire_extremum),
    OpRule("ReduceMin", _wire_extremum),
    OpRule("Resize", _wire_resize),
    *(OpRule(f"aten::avg_pool{n}d", _wire_torch_average) for n in (1, 2, 3)),
    *(OpRule(f"aten::{prefix}adaptive_avg_pool{n}d", _wire_torch_average) for prefix in ("", "_") for n in (1, 2, 3)),
    *(
        OpRule(f"aten::{prefix}upsample_{kind}{overload}", _wire_torch_average)
        for prefix in ("", "_")
        for kind in _RESAMPLERS
        for overload in ("", ".vec")
    ),
)
