"""Which part of a graph is one linear map per window: read backwards from a value, for `branches` and `chains`.

Conv, Gemm, MatMul by a constant, AveragePool, BatchNormalization in eval mode, and Add, Sub, Mul, Div, Neg with constants per
channel are linear.  What lies between two of them is read by nobody else, or the map ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from normfold.algebra import absorb
from normfold.algebra.branches import Form, Window, identity, point
from normfold.algebra.chains import chained, composed
from normfold.algebra.ratios import Floats
from normfold.graph import Graph, Node, Value, is_float
from normfold.ops.affine import batch_norm_constants
from normfold.ops.wiring import constant_of, is_foldable, spread

WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Frame:
    """Where a map has its channels: `axis` of tensors of `rank`; for axis 1 the axes behind it are windows."""

    rank: int
    axis: int

    @property
    def spatial(self) -> int:
        return self.rank - 2 if self.axis == 1 else 0

    def channels(self, value: Value) -> int | None:
        """Channel count of a value of this frame; None when it has another rank or the count is not known."""
        size = value.shape[self.axis] if value.shape is not None and len(value.shape) == self.rank else None
        return size if isinstance(size, int) else None

    def sizes(self, value: Value) -> tuple[object, ...]:
        """Sizes of the window axes."""
        assert value.shape is not None
        return value.shape[2:] if self.spatial else ()


def frames(value: Value) -> list[Frame]:
    """Convolutions have channels on axis 1, matrix products on the last one."""
    rank = value.rank or 0
    return [Frame(rank, axis) for axis in sorted({1, rank - 1})] if rank >= 2 else []


@dataclass(eq=False)
class Layer:
    """One linear node: its tensor, its form, and how to read (weight, bias) in float64.  biased: the bias is not all zero."""

    node: Node
    x: Value
    form: Form
    read: Callable[[], tuple[Floats, Floats]]
    biased: bool


@dataclass(eq=False)
class LinearMap:
    """Layers that one weight can stand for, from `source` on."""

    source: Value
    frame: Frame
    form: Form
    layers: list[Layer] = field(default_factory=list[Layer])
    biased: bool = False

    def then(self, layer: Layer) -> LinearMap | None:
        """With one more layer behind; None when one weight cannot say that."""
        form = chained(self.form, layer.form, biased=self.biased)
        return form and LinearMap(self.source, self.frame, form, [*self.layers, layer], self.biased or layer.biased)

    @property
    def weighted(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.node.kind in WEIGHTED]

    def cost(self) -> float:
        """Multiplications of all layers per position of the last output."""
        total = 0.0
        for place, layer in enumerate(self.layers):
            sizes, end = self.frame.sizes(layer.node.output), self.frame.sizes(self.layers[-1].node.output)
            known = [size for size in (*sizes, *end) if isinstance(size, int)]
            if len(known) == 2 * len(sizes) and all(known):
                ratio = prod(known[: len(sizes)]) / prod(known[len(sizes) :])
            else:
                ratio = prod(prod(later.form.window.strides) for later in self.layers[place + 1 :])
            total += layer.form.macs * ratio
        return total

    def arrays(self) -> tuple[Floats, Floats]:
        """(weight, bias) in float64."""
        if not self.layers:
            return np.ones(self.form.shape), np.zeros(self.form.outputs)
        first, *rest = self.layers
        result, form = first.read(), first.form
        for layer in rest:
            into = chained(form, layer.form, biased=False)  # `then` has seen to biases in front of padding
            assert into is not None
            result, form = composed(result, form, layer.read(), layer.form, into), into
        return result


def is_inner(value: Value, graph: Graph) -> bool:
    """True when one node reads the value, once, and nobody else sees it."""
    return len(value.uses) == 1 and not graph.is_fixed(value)


def linear_map(
    value: Value,
    graph: Graph,
    frame: Frame,
    keep: Callable[[str], bool],
    *,
    linears: int | None = None,
    inner: bool = True,
    without: tuple[str, ...] = (),
) -> LinearMap | None:
    """The largest map that ends in `value`; None when the channels of `value` are not known.

    linears: look no further than this many Conv, Gemm or MatMul.  inner: `value` itself must have one reader, else it is the
    identity of itself.  keep: decides by label which norms stay.  without: kinds of nodes to stop at.
    """
    found: list[Layer] = []
    while not (linears is not None and sum(layer.node.kind in WEIGHTED for layer in found) >= linears):
        node = value.producer
        if node is None or node.kind in without or not (is_inner(value, graph) or not (inner or found)):
            break
        layer = read_layer(node, graph, frame, keep)
        if layer is None:
            break
        found.append(layer)
        value = layer.x
    channels = frame.channels(value)
    if channels is None:
        return None
    result = LinearMap(value, frame, identity(channels, frame.spatial))
    for layer in reversed(found):
        alone = LinearMap(layer.x, frame, layer.form, [layer], layer.biased)
        result = alone if not result.layers else result.then(layer) or alone
    return result


def read_layer(node: Node, graph: Graph, frame: Frame, keep: Callable[[str], bool]) -> Layer | None:
    """`node` as a linear layer of `frame`; None when it is not one."""
    reader = _READERS.get(node.kind)
    y = node.outputs[0]
    if reader is None or len(node.outputs) != 1 or not is_float(y.dtype) or frame.channels(y) is None:
        return None
    if node.kind == "BatchNormalization" and keep(node.label):
        return None
    layer = reader(node, graph, frame)
    fitting = layer is not None and layer.x.const is None and layer.x.dtype == y.dtype
    return layer if layer is not None and fitting and frame.channels(layer.x) == layer.form.inputs else None


def _window(node: Node, kernel: tuple[int, ...]) -> Window | None:
    """The window of a Conv or pool; None when its padding depends on the input's size."""
    axes = len(kernel)
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID"):
        return None
    pads = [int(pad) for pad in node.attrs.get("pads") or (0,) * 2 * axes]
    strides, dilations = (tuple(map(int, node.attrs.get(key) or (1,) * axes)) for key in ("strides", "dilations"))
    if len(pads) != 2 * axes or len(strides) != axes or len(dilations) != axes or min(pads, default=0) < 0:
        return None
    dilations = tuple(d if k > 1 else 1 for d, k in zip(dilations, kernel, strict=True))
    return Window(kernel, strides, dilations, tuple(pads[:axes]), tuple(pads[axes:]))


def _bias(node: Node, graph: Graph, outputs: int) -> Floats | None:
    """The bias at slot 2 as [outputs], zero when there is none; None when it is not a constant per output."""
    value = node.input(2)
    if value is None:
        return np.zeros(outputs)
    array = constant_of(value, graph)
    if array is None or array.size not in (1, outputs) or array.shape[-1:] not in ((), (array.size,)):
        return None
    return np.broadcast_to(array.reshape(-1), (outputs,))


def _conv(node: Node, graph: Graph, frame: Frame) -> Layer | None:
    x, weight = node.inputs[0], node.input(1)
    if not frame.spatial or x is None or not is_foldable(weight, graph) or weight is None or weight.const is None:
        return None
    const, groups = weight.const, int(node.attrs.get("group", 1))
    bias, window = _bias(node, graph, const.shape[0]), _window(node, const.shape[2:])
    if bias is None or window is None or weight.dtype != x.dtype or len(const.shape) != frame.rank:
        return None
    form = Form(const.shape[1] * groups, const.shape[0], groups, window)
    return Layer(node, x, form, lambda: (const.float64(), bias), bool(bias.any()))


def _matrix(node: Node, graph: Graph, frame: Frame) -> Layer | None:
    """Gemm or MatMul on the last axis by a constant on the right."""
    x, weight, attrs = node.inputs[0], node.inputs[1], node.attrs
    foldable = weight is not None and is_foldable(weight, graph) and weight.const is not None
    if frame.spatial or x is None or weight is None or not foldable or weight.rank != 2 or weight.dtype != x.dtype:
        return None
    if frame.axis != frame.rank - 1 or attrs.get("transA", 0):
        return None
    const, turned = weight.const, bool(attrs.get("transB", 0))
    assert const is not None
    outputs, inputs = const.shape if turned else const.shape[::-1]
    bias = _bias(node, graph, outputs)
    if bias is None:
        return None
    alpha, offset = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0)) * bias

    def read() -> tuple[Floats, Floats]:
        stored = const.float64()
        return alpha * (stored if turned else stored.T), offset

    return Layer(node, x, Form(inputs, outputs, 1, point(0)), read, bool(offset.any()))


def _average(node: Node, graph: Graph, frame: Frame) -> Layer | None:
    """A pool whose every window is divided by the same number."""
    x, kernel = node.inputs[0], tuple(map(int, node.attrs.get("kernel_shape", ())))
    window, count = _window(node, kernel), frame.channels(node.output)
    if x is None or window is None or count is None or not frame.spatial or len(kernel) != frame.spatial:
        return None
    padded = any((*window.before, *window.after))
    if (padded and not node.attrs.get("count_include_pad", 0)) or node.attrs.get("ceil_mode", 0):
        return None
    form = Form(count, count, count, window)
    return Layer(node, x, form, lambda: (np.full(form.shape, 1.0 / prod(kernel)), np.zeros(count)), False)


def _per_channel(node: Node, x: Value | None, frame: Frame, a: Floats, c: Floats) -> Layer | None:
    if x is None or not (np.isfinite(a).all() and np.isfinite(c).all()):
        return None
    form = identity(a.size, frame.spatial)
    return Layer(node, x, form, lambda: (a.reshape(form.shape), c), bool(c.any()))


def _norm(node: Node, graph: Graph, frame: Frame) -> Layer | None:
    constants = batch_norm_constants(node, graph)
    if constants is None or frame.axis != 1:
        return None
    return _per_channel(node, node.inputs[0], frame, *absorb.batch_norm(*constants, float(node.attrs.get("epsilon", 1e-5))))


def _arithmetic(node: Node, graph: Graph, frame: Frame) -> Layer | None:
    """Add, Sub, Mul, Div of a tensor and a constant per channel, in either order."""
    count, kind = frame.channels(node.output), node.kind
    slots = [slot for slot, value in enumerate(node.inputs) if value is not None and value.const is None]
    if count is None or len(node.inputs) != 2 or len(slots) != 1:
        return None
    x, constant = node.inputs[slots[0]], constant_of(node.inputs[1 - slots[0]], graph)
    if x is None or constant is None or constant.ndim > frame.rank or (kind == "Div" and (slots[0] or not constant.all())):
        return None
    shape = spread(constant, frame.rank).shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != frame.axis) or shape[frame.axis] not in (1, count):
        return None
    k, ones = np.broadcast_to(constant.reshape(-1), (count,)), np.ones(count)
    if kind in ("Mul", "Div"):
        return _per_channel(node, x, frame, k if kind == "Mul" else 1.0 / k, 0.0 * ones)
    if kind == "Add":
        return _per_channel(node, x, frame, ones, k)
    return _per_channel(node, x, frame, ones, -k) if not slots[0] else _per_channel(node, x, frame, -ones, k)


def _negation(node: Node, graph: Graph, frame: Frame) -> Layer | None:
    count = frame.channels(node.output)
    return None if count is None else _per_channel(node, node.inputs[0], frame, -np.ones(count), np.zeros(count))


_READERS: dict[str, Callable[[Node, Graph, Frame], Layer | None]] = {
    "Conv": _conv,
    "Gemm": _matrix,
    "MatMul": _matrix,
    "AveragePool": _average,
    "BatchNormalization": _norm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Neg": _negation,
}
