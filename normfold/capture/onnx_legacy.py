"""Old spellings of ONNX ops (opset 1 to 19) put into the vocabulary of the newest opset.

A form whose meaning cannot be said in today's attributes becomes ``legacy::Op``: nothing is known of it, nothing touches it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from normfold.capture.onnx_shapes import numpy_type
from normfold.capture.static import known_count
from normfold.graph import Graph, Node, Value

_BINARY = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")
)  # fmt: skip
_SOFTMAX = frozenset(("Softmax", "LogSoftmax", "Hardmax"))
_TYPE_NAMES = frozenset(onnx.TensorProto.DataType.keys())


def modernise(node: Node, opset: int, graph: Graph, used_outputs: int) -> None:
    """Rewrite `node`, whose attributes are as the model spells them, in place.

    used_outputs: how many outputs the node has by name (an optional output that is named is asked for).
    """
    if opset < 7 and node.kind in _BINARY:
        _broadcast(node)
    elif opset < 13 and node.kind in _SOFTMAX:
        _softmax(node)
    else:
        rule = _RULES.get(node.kind)
        if rule is not None:
            rule(node, opset, graph, used_outputs)


def _opaque(node: Node) -> None:
    node.kind = f"legacy::{node.kind}"


def _broadcast(node: Node) -> None:
    """Before opset 7 broadcasting was asked for, and `axis` said where the smaller operand is laid."""
    wanted, axis = node.attrs.pop("broadcast", 0), node.attrs.pop("axis", None)
    if not wanted:
        return  # equal shapes
    a, b = node.input(0), node.input(1)
    ranks = (None, None) if a is None or b is None else (a.rank, b.rank)
    if axis is not None and (ranks[0] is None or ranks[1] is None or axis % max(ranks[0], 1) + ranks[1] != ranks[0]):
        scalar = b is not None and known_count(b.shape) == 1 and ranks[0] is not None and (ranks[1] or 0) <= ranks[0]
        if not scalar:
            _opaque(node)
            node.attrs.update(broadcast=wanted, axis=axis)


def _softmax(node: Node) -> None:
    """Before opset 13 everything from `axis` on was one vector: the same only where what follows `axis` has one element."""
    x, axis = node.input(0), node.attrs.get("axis", 1)
    rank = None if x is None else x.rank
    if rank is not None and -rank <= axis < rank and x is not None and x.shape is not None:
        axis %= rank
        if all(size == 1 for size in x.shape[axis + 1 :]):
            node.attrs["axis"] = axis
            return
    elif rank is None and axis == -1:
        return
    node.attrs["axis"] = axis
    _opaque(node)


def _batch_normalization(node: Node, opset: int, graph: Graph, used: int) -> None:
    spatial, is_test = node.attrs.pop("spatial", 1), node.attrs.pop("is_test", 0)
    if opset < 7:
        training = not is_test
    elif opset < 14:
        training = used > 1
    else:
        training = bool(node.attrs.get("training_mode", 0))
    if not spatial or len(node.inputs) < 5:
        _opaque(node)
        return
    node.attrs["training_mode"] = int(training)
    if not training:
        node.attrs.pop("momentum", None)


def _dropout(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset < 7:
        training = not node.attrs.pop("is_test", 0)
    else:
        mode = node.input(2)
        training = mode is not None and (mode.const is None or mode in graph.pinned or bool(mode.const.read().any()))
    if training or used > 1:
        _opaque(node)
        return
    for name in ("ratio", "seed"):
        node.attrs.pop(name, None)


def _clip(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset >= 11:
        return
    for name, limit in (("min", np.finfo(np.float32).min), ("max", np.finfo(np.float32).max)):
        if node.attrs.get(name) == float(limit):
            del node.attrs[name]


def _pad(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset < 2 and "paddings" in node.attrs:
        node.attrs["pads"] = node.attrs.pop("paddings")
    if opset < 11:
        node.attrs["constant_value"] = node.attrs.pop("value", 0.0)


def _concat(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset < 4:
        node.attrs.setdefault("axis", 1)


def _cast(node: Node, opset: int, graph: Graph, used: int) -> None:
    to = node.attrs.get("to")
    if opset < 6 and isinstance(to, str):
        dtype = numpy_type(onnx.TensorProto.DataType.Value(to)) if to in _TYPE_NAMES else None
        if dtype is None:
            _opaque(node)
        else:
            node.attrs["to"] = dtype


def _tile(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset < 6:  # Tile(x, tiles, axis)
        _opaque(node)


def _prelu(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset >= 7:
        return
    x, slope = node.input(0), node.input(1)
    if slope is not None and x is not None and x.rank is not None and x.rank <= 2:
        return  # the channel axis is the last one
    if slope is None or known_count(slope.shape) != 1:
        _opaque(node)


def _group_normalization(node: Node, opset: int, graph: Graph, used: int) -> None:
    if opset < 21:  # scale and bias ran over groups, not channels
        _opaque(node)


def _lstm(node: Node, opset: int, graph: Graph, used: int) -> None:
    node.attrs.pop("output_sequence", None)


def _gemm(node: Node, opset: int, graph: Graph, used: int) -> None:
    node.attrs.pop("broadcast", None)


def _resize(node: Node, opset: int, graph: Graph, used: int) -> None:
    """Upsample and the Resize of opset 10: x and scales, corners aligned to the left edge."""
    if node.kind == "Resize" and opset >= 11:
        return
    scales: Any = node.attrs.get("scales")
    given: Value | None = node.input(1)
    if scales is None and given is not None and given.const is not None and given not in graph.pinned:
        scales = tuple(float(item) for item in given.const.read().reshape(-1))
    mode = node.attrs.get("mode", "nearest")
    if scales is None or mode not in ("nearest", "linear", "bilinear", "cubic"):
        _opaque(node)
        return
    node.kind = "Resize"
    node.attrs.pop("width_scale", None)
    node.attrs.pop("height_scale", None)
    node.attrs.update(
        mode="linear" if mode == "bilinear" else mode,
        scales=scales,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    node.inputs = node.inputs[:1]


_Rule = Callable[[Node, int, Graph, int], None]
_RULES: dict[str, _Rule] = {
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "Clip": _clip,
    "Pad": _pad,
    "Concat": _concat,
    "Cast": _cast,
    "Tile": _tile,
    "PRelu": _prelu,
    "GroupNormalization": _group_normalization,
    "LSTM": _lstm,
    "GRU": _lstm,
    "RNN": _lstm,
    "Gemm": _gemm,
    "Upsample": _resize,
    "Resize": _resize,
}
