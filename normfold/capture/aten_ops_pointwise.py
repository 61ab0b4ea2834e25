"""Arithmetic, comparisons and activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from normfold.capture.aten_spell import Arg, Fixed, Read, Spelled, spelling
from normfold.graph import is_float

_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "rsub": "Sub", "maximum": "Max", "minimum": "Min"}


@spelling("add", "sub", "mul", "div", "rsub", "maximum", "minimum", "subtract", "multiply", "divide", "true_divide")
def _arithmetic(read: Read) -> Spelled | None:
    op = {"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"}.get(read.op, read.op)
    if not read.same_type("self", "other") or read.get("alpha", 1) != 1 or read.get("rounding_mode") is not None:
        return None
    if not is_float(read.out_dtype) and (op == "div" or read.out_dtype is None or read.out_dtype.kind not in "iu"):
        return None
    inputs: list[str | Arg | Fixed] = ["other", "self"] if op == "rsub" else ["self", "other"]
    return Spelled(_BINARY[op], inputs)


@spelling("pow.Tensor_Scalar", "pow.Tensor_Tensor")
def _pow(read: Read) -> Spelled | None:
    if not read.same_type("self", "exponent") or not is_float(read.out_dtype):
        return None
    return Spelled("Pow", ["self", "exponent"])


@spelling("rsqrt")
def _rsqrt(read: Read) -> Spelled | None:
    """ONNX has no such op; frozen norms written out (torchvision, DETR) compute their scale with it."""
    if not read.same_type("self") or not is_float(read.out_dtype):
        return None
    return Spelled("Pow", ["self", Fixed(np.array(-0.5, read.out_dtype))])


@spelling("square")
def _square(read: Read) -> Spelled | None:
    return Spelled("Mul", ["self", "self"]) if read.same_type("self") else None


_COMPARE = {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal"}


@spelling("gt", "lt", "ge", "le", "eq")
def _compare(read: Read) -> Spelled | None:
    dtype, other = read.dtype("self"), read["other"]
    if dtype is None or (read.is_tensor("other") and read.dtype("other") != dtype):
        return None
    if not read.is_tensor("other") and (
        not isinstance(other, (int, float)) or (isinstance(other, float) and not is_float(dtype))
    ):
        return None
    return Spelled(_COMPARE[read.op], ["self", "other"], literal_dtype=dtype)


@spelling("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(read: Read) -> Spelled | None:
    return Spelled("Where", ["condition", "self", "other"]) if read.same_type("self", "other") else None


@spelling("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(read: Read) -> Spelled | None:
    return Spelled("Where", ["mask", "value", "self"]) if read.same_type("self", "value") else None


_BOOL = {f"{prefix}{name.lower()}": name for name in ("And", "Or", "Xor", "Not") for prefix in ("logical_", "bitwise_", "__")}


@spelling(*(name + "__" * name.startswith("__") for name in _BOOL))
def _logical(read: Read) -> Spelled | None:
    kind = _BOOL[read.op.removesuffix("__")]
    names = ["self"] if kind == "Not" else ["self", "other"]
    if any(not read.is_tensor(name) or read.meta(name).dtype.is_floating_point for name in names):
        return None
    return Spelled(kind, list(names)) if read.same_type(*names) and read.result.dtype is torch.bool else None


_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "abs": "Abs",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "sign": "Sign",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "selu": "Selu",
}


@spelling(*_UNARY)
def _unary(read: Read) -> Spelled | None:
    attrs = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805} if read.op == "selu" else {}
    return Spelled(_UNARY[read.op], ["self"], attrs) if read.same_type("self") and is_float(read.out_dtype) else None


def _activation(read: Read, kind: str, attrs: dict[str, Any]) -> Spelled | None:
    return Spelled(kind, ["self"], attrs) if read.same_type("self") and is_float(read.out_dtype) else None


@spelling("leaky_relu")
def _leaky(read: Read) -> Spelled | None:
    return _activation(read, "LeakyRelu", {"alpha": float(read["negative_slope"])})


@spelling("silu")
def _silu(read: Read) -> Spelled | None:
    return _activation(read, "Swish", {"alpha": 1.0})


@spelling("gelu")
def _gelu(read: Read) -> Spelled | None:
    return _activation(read, "Gelu", {"approximate": read["approximate"]})


@spelling("elu")
def _elu(read: Read) -> Spelled | None:
    plain = read["scale"] == 1 and read["input_scale"] == 1
    return _activation(read, "Elu", {"alpha": float(read["alpha"])}) if plain else None


@spelling("hardsigmoid")
def _hardsigmoid(read: Read) -> Spelled | None:
    return _activation(read, "HardSigmoid", {"alpha": 1.0 / 6.0, "beta": 0.5})


@spelling("celu")
def _celu(read: Read) -> Spelled | None:
    return _activation(read, "Celu", {"alpha": float(read["alpha"])})


@spelling("prelu", "_prelu_kernel")
def _prelu(read: Read) -> Spelled | None:
    """The slope is seen as [C, 1, ..., 1]: along axis 1 of the input."""
    rank, slope = read.rank("self"), read.meta("weight").shape
    if not read.same_type("self", "weight") or not isinstance(read.meta("weight").numel(), int):
        return None
    if read.op == "_prelu_kernel":
        return None if len(slope) != rank else Spelled("PRelu", ["self", "weight"])
    count = int(slope.numel())
    shape = (count,) + (1,) * max(rank - 2, 0)
    return Spelled("PRelu", ["self", Arg("weight", shape=shape)])


def _clip(read: Read, low: Any, high: Any) -> Spelled | None:
    bounds = {"min": low, "max": high}
    if not all(bound is None or isinstance(bound, (int, float)) for bound in bounds.values()):
        return None
    floats = is_float(read.out_dtype)
    if not read.same_type("self") or (not floats and any(isinstance(bound, float) for bound in bounds.values())):
        return None
    attrs = {key: float(bound) if floats else bound for key, bound in bounds.items() if bound is not None}
    return Spelled("Clip", ["self"], attrs)


@spelling("clamp.default", "clip.default")
def _clamp(read: Read) -> Spelled | None:
    return _clip(read, read["min"], read["max"])


@spelling("clamp_min.default")
def _clamp_min(read: Read) -> Spelled | None:
    return _clip(read, read["min"], None)


@spelling("clamp_max.default")
def _clamp_max(read: Read) -> Spelled | None:
    return _clip(read, None, read["max"])


@spelling("hardtanh")
def _hardtanh(read: Read) -> Spelled | None:
    return _clip(read, read["min_val"], read["max_val"])


@spelling("relu6")
def _relu6(read: Read) -> Spelled | None:
    return _clip(read, 0.0, 6.0)
