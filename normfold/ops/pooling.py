"""Pools, means and resizes: averages with weights that sum to one, and maxima."""

from __future__ import annotations

from normfold.algebra.ratios import Ints
from normfold.graph import Node, Value
from normfold.ops.linear import zero_padded
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring


def _window(node: Node, w: Wiring) -> Value | None:
    """The input of a pool, one gauge over each window."""
    x = node.inputs[0]
    if x is None or x.const is not None or x.rank is None:
        return None
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
    x = _window(node, w)
    if x is None:
        return w.pin_node(node)
    weights_sum_to_one = not zero_padded(node) or not node.attrs.get("count_include_pad", 0)
    if not weights_sum_to_one or node.attrs.get("divisor_override") or (node.attrs.get("ceil_mode") and zero_padded(node)):
        w.zero_shift(x, "zero-padding", node)
    w.set(node.output, *w.of(x))
    return None


def _wire_global_average_pool(node: Node, w: Wiring) -> None:
    x = _window(node, w)
    if x is None:
        return w.pin_node(node)
    w.set(node.output, *w.of(x))
    return None


def _wire_reduce(node: Node, w: Wiring) -> None:
    """ReduceMean (any shift) and ReduceSum (no shift) over axes along which the gauge does not vary."""
    x, axes = node.inputs[0], node.attrs.get("axes")
    if x is None or x.const is not None or x.rank is None or axes is None:
        return w.pin_node(node)
    axes = tuple(int(axis) % x.rank for axis in axes)
    w.even_out(x, set(range(x.rank)) - set(axes))
    if node.kind == "ReduceSum" and axes:
        w.zero_shift(x, "sum", node)

    def reduced(labels: Ints) -> Ints:
        return (
            labels if node.attrs.get("keepdims", 1) else labels.reshape([n for i, n in enumerate(labels.shape) if i not in axes])
        )

    labels = w.of(x)
    w.set(node.output, reduced(labels.scale), reduced(labels.shift))
    return None


def _wire_resize(node: Node, w: Wiring) -> None:
    x = node.inputs[0]
    mode = node.attrs.get("mode", "nearest")
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if x is None or x.const is not None or x.rank is None or mode not in ("nearest", "linear", "cubic"):
        return w.pin_node(node)
    y = node.output
    assert x.shape is not None and y.shape is not None
    # An axis along which the gauge varies is not resized.
    w.even_out(x, {axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size == y.shape[axis]})
    if crops:
        w.zero_shift(x, "resize-extrapolation", node)
    w.set(y, *w.of(x))
    return None


RULES = (
    OpRule("MaxPool", _wire_max_pool),
    OpRule("AveragePool", _wire_average_pool),
    OpRule("GlobalAveragePool", _wire_global_average_pool),
    OpRule("GlobalMaxPool", _wire_max_pool),
    OpRule("ReduceMean", _wire_reduce),
    OpRule("ReduceSum", _wire_reduce),
    OpRule("Resize", _wire_resize),
)
