"""Attributes of an ONNX node in the vocabulary of the view: newest names, defaults filled in, noise left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normfold.capture.onnx_shapes import numpy_type
from normfold.capture.static import REDUCTIONS
from normfold.graph import Node, Value

_TYPE_NAMES = frozenset(("to", "dtype", "output_datatype", "output_dtype"))

DEFAULTS: dict[str, dict[str, Any]] = {
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "BatchNormalization": {"epsilon": 1e-5, "training_mode": 0},
    "InstanceNormalization": {"epsilon": 1e-5},
    "GroupNormalization": {"epsilon": 1e-5},
    "LayerNormalization": {"epsilon": 1e-5, "axis": -1},
    "RMSNormalization": {"epsilon": 1e-5, "axis": -1},
    "LRN": {"alpha": 1e-4, "beta": 0.75, "bias": 1.0},
    "Softmax": {"axis": -1},
    "LogSoftmax": {"axis": -1},
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Concat": {"axis": 1},
    "Split": {"axis": 0},
    "Gather": {"axis": 0},
    "Flatten": {"axis": 1},
    "DepthToSpace": {"mode": "DCR"},
    "Resize": {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"},
    "LSTM": {"direction": "forward", "layout": 0},
    "GRU": {"direction": "forward", "layout": 0, "linear_before_reset": 0},
    "RNN": {"direction": "forward", "layout": 0},
    "Conv": {"group": 1},
    "ConvTranspose": {"group": 1},
    "MaxPool": {"ceil_mode": 0},
    "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
    "LpPool": {"ceil_mode": 0, "p": 2},
    **{kind: {"keepdims": 1} for kind in REDUCTIONS},
}
"""kind -> attributes that the view always holds, with ONNX's defaults."""


DROPPED = frozenset(("consumed_inputs",))


@lru_cache(maxsize=4096)
def schema(kind: str, opset: int) -> onnx.defs.OpSchema | None:
    """ONNX's own description of a standard op at this opset, None when there is none."""
    try:
        return onnx.defs.get_schema(kind, min(opset, onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=4096)
def attribute_types(kind: str, opset: int) -> dict[str, ir.AttributeType]:
    """Name -> type of the attributes that a standard op has at this opset."""
    found: Any = schema(kind, opset)
    return {} if found is None else {name: ir.AttributeType(int(item.type.value)) for name, item in found.attributes.items()}


@lru_cache(maxsize=4096)
def _schema_defaults(kind: str, opset: int) -> dict[str, Any]:
    found = schema(kind, opset)
    if found is None:
        return {}
    defaults: dict[str, Any] = {}
    for name, attribute in found.attributes.items():
        if attribute.default_value.type:
            defaults[name] = plain(ir.serde.deserialize_attribute(attribute.default_value))
    return defaults


def plain(attribute: ir.Attr) -> Any:
    """The value in plain types; None for graphs, types and references."""
    kind, value = attribute.type, attribute.value
    if attribute.is_ref() or value is None:
        return None
    if kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return value
    if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return tuple(value)
    if kind == ir.AttributeType.TENSOR:
        return value.numpy()
    return None


def read_attributes(node: ir.Node, opset: int) -> dict[str, Any]:
    """Attributes in plain types.  Element types become numpy types; what equals its default is left out.

    Raises ValueError for an element type that numpy has not (strings).
    """
    attrs: dict[str, Any] = {}
    standard = node.domain in ("", "ai.onnx")
    for name, attribute in node.attributes.items():
        value = plain(attribute)
        if value is None or name in DROPPED:
            continue
        if standard and name in _TYPE_NAMES and isinstance(value, int):
            dtype = numpy_type(value)
            if dtype is None:
                raise ValueError(f"element type {value}")
            value = dtype
        attrs[name] = value
    if standard:
        known = DEFAULTS.get(node.op_type, {})
        for name, value in _schema_defaults(node.op_type, opset).items():
            if name not in known and name in attrs and type(attrs[name]) is type(value) and attrs[name] == value:
                del attrs[name]
    return attrs


def fill_defaults(node: Node) -> None:
    """Put in what `DEFAULTS` and the shapes of weights say; to be called once, after old spellings are gone."""
    for name, value in DEFAULTS.get(node.kind, {}).items():
        node.attrs.setdefault(name, float(np.float32(value)) if isinstance(value, float) else value)
    window = _WINDOWS.get(node.kind)
    if window is not None:
        window(node)


def _conv(node: Node) -> None:
    weight = node.input(1)
    kernel = node.attrs.pop("kernel_shape", None)  # the weight says it, and stays right when it is replaced
    if weight is not None and weight.shape is not None:
        kernel = weight.shape[2:]
    if kernel is not None:
        _window(node, kernel)


def _conv_transpose(node: Node) -> None:
    weight = node.input(1)
    kernel = node.attrs.pop("kernel_shape", None)
    if weight is not None and weight.shape is not None:
        kernel = weight.shape[2:]
    if kernel is None:
        return
    node.attrs.setdefault("output_padding", (0,) * len(kernel))
    if "output_shape" in node.attrs:  # overrides pads by a rule that changed between versions: left as it is
        node.attrs.setdefault("strides", (1,) * len(kernel))
        node.attrs.setdefault("dilations", (1,) * len(kernel))
        node.attrs.pop("pads", None)
        return
    _window(node, kernel, transposed=True)


def _pool(node: Node) -> None:
    if "kernel_shape" in node.attrs:
        _window(node, node.attrs["kernel_shape"])


def _window(node: Node, kernel: Sequence[Any], *, transposed: bool = False) -> None:
    """strides, dilations and pads of a sliding window; auto_pad resolved into pads where the sizes allow."""
    attrs, count = node.attrs, len(kernel)
    attrs.setdefault("strides", (1,) * count)
    attrs.setdefault("dilations", (1,) * count)
    mode = attrs.pop("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        attrs.setdefault("pads", (0,) * (2 * count))
        return
    attrs.pop("pads", None)  # meaningless beside auto_pad
    if mode == "VALID":
        attrs["pads"] = (0,) * (2 * count)
        return
    x = node.input(0)
    before: list[int] = []
    after: list[int] = []
    for axis, (size, stride, dilation) in enumerate(zip(kernel, attrs["strides"], attrs["dilations"], strict=True)):
        total = _same_pad(_size(x, axis + 2), size, stride, dilation, attrs["output_padding"][axis] if transposed else None)
        if total is None or (transposed and (total < 0 or total % 2)):  # which side gets the odd one changed between versions
            attrs["auto_pad"] = mode
            return
        before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        after.append(total - before[-1])
    attrs["pads"] = (*before, *after)


def _size(value: Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or axis >= len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _same_pad(size: int | None, kernel: Any, stride: int, dilation: int, output_padding: int | None) -> int | None:
    """Rows that auto_pad SAME adds in all; None when it depends on a size that is not known."""
    if not isinstance(kernel, int):
        return None
    reach = (kernel - 1) * dilation + 1
    if output_padding is not None:
        return output_padding + reach - stride
    if stride == 1:
        return reach - 1
    if size is None:
        return None
    return max((-(-size // stride) - 1) * stride + reach - size, 0)


_WINDOWS: dict[str, Callable[[Node], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
}
