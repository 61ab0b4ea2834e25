"""Pools, means and resizes: averages with weights that sum to one, and maxima."""

from __future__ import annotations

from normfold.algebra.labels import Labels, varying
from normfold.algebra.ratios import Ints
from normfold.graph import Node, Value
from normfold.ops.linear import zero_padded
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring


def _spatial_free(value: Value, w: Wiring, axes: tuple[int, ...]) -> bool:
    """True when the labels of `value` do not vary along `axes`."""
    labels = w.of(value)
    return not (set(varying(labels.scale)) | set(varying(labels.shift))) & set(axes)


def _window(node: Node, w: Wiring) -> Value | None:
    """The input of a pool whose labels vary along batch and channel at most."""
    x = node.inputs[0]
    if x is None or x.const is not None or x.rank is None or not _spatial_free(x, w, tuple(range(2, x.rank))):
        return None
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
    if not _spatial_free(x, w, axes):
        return w.pin_node(node)
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
    labels = w.of(x)
    moving = set(varying(labels.scale)) | set(varying(labels.shift))
    y = node.output
    assert x.shape is not None and y.shape is not None
    # An axis along which the gauge varies must not be resized.
    if any(not isinstance(x.shape[axis], int) or x.shape[axis] != y.shape[axis] for axis in moving):
        return w.pin_node(node)
    if crops:
        w.zero_shift(x, "resize-extrapolation", node)
    w.set(y, *Labels(labels.scale, labels.shift))
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
