"""What every kernel is tested on: one table of nodes, each with float32 inputs, the view's attributes and a judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RNG = np.random.default_rng(7)


@dataclass(frozen=True)
class Case:
    """kind, inputs (float32 where float), attrs as the view holds them, number of outputs.

    judge: "ort" (ONNX Runtime), "onnx" (onnx.reference; where the runtime lacks the op or form).  free: attributes whose
    removal cannot show in this case although they differ from the default.
    """

    kind: str
    inputs: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    judge: str = "ort"
    opset: int = 23
    tolerance: float = 2e-6

    @property
    def label(self) -> str:
        text = "-".join(f"{key}={value}" for key, value in self.attrs.items() if not isinstance(value, np.ndarray))
        return f"{self.kind}[{text}]".replace(" ", "")


def f(*shape: int) -> np.ndarray:
    """Normal numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def p(*shape: int) -> np.ndarray:
    """Positive numbers."""
    return RNG.uniform(0.1, 2.0, shape).astype(np.float32)


def i(low: int, high: int, *shape: int) -> np.ndarray:
    """Integers in [low, high)."""
    return RNG.integers(low, high, shape).astype(np.int64)


def b(*shape: int) -> np.ndarray:
    """Bools."""
    return RNG.random(shape) < 0.5


def a(*values: Any, dtype: Any = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)


CASES: list[Case] = []


def case(
    kind: str, *inputs: Any, outputs: int = 1, judge: str = "ort", opset: int = 23, tolerance: float = 2e-6, **attrs: Any
) -> None:
    CASES.append(Case(kind, inputs, attrs, outputs, judge, opset, tolerance))


# ---- elementwise ----------------------------------------------------------------------------------------------------------
for kind in (
    "Abs Atan Asinh Ceil Cos Cosh Erf Exp Floor Identity IsNaN Neg Reciprocal Round Sign Sin Sinh Tan Tanh Relu Sigmoid "
    "Softplus Softsign HardSwish Mish"
).split():
    case(kind, f(3, 5) * 3)
for kind in ("Acos", "Asin", "Atanh"):
    case(kind, np.clip(f(3, 5) / 3, -0.9, 0.9))
for kind in ("Sqrt", "Log"):
    case(kind, p(3, 5))
case("Acosh", p(3, 5) + 1)
case("Erf", np.linspace(-6, 6, 101, dtype=np.float32))
case("Round", a(0.5, 1.5, 2.5, -0.5, dtype=np.float32))
for kind in ("Add", "Sub", "Mul", "Div"):
    case(kind, f(2, 3, 4), p(3, 1))
    case(kind, i(-9, 9, 5), a(2, -2, 3, -3, 4))
case("Div", a(-7, 7, -7, 7), a(2, -2, -2, 2))
case("Pow", p(2, 3), f(3))
case("Pow", f(2, 3), a(2))
case("Pow", i(-3, 4, 5), a(2.0, dtype=np.float32))
for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    case(kind, i(0, 3, 4, 5), i(0, 3, 5))
for kind in ("And", "Or", "Xor"):
    case(kind, b(4, 5), b(5))
for kind in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    case(kind, i(-99, 99, 4, 5), i(-99, 99, 5))
case("BitwiseNot", i(-99, 99, 4))
case("Not", b(4, 5))
for kind in ("Max", "Min", "Sum", "Mean"):
    case(kind, f(2, 3), f(3), f(2, 1))
case("Mod", i(-9, 9, 6), a(4, -4, 3, -3, 5, -5))
case("Mod", f(6), p(6), fmod=1)
case("BitShift", a(1, 2, 200, dtype=np.uint8), a(1, 2, 3, dtype=np.uint8), direction="LEFT")
case("BitShift", a(1, 2, 200, dtype=np.uint8), a(1, 2, 3, dtype=np.uint8), direction="RIGHT")
case("IsInf", a(np.inf, -np.inf, 1, np.nan, dtype=np.float32))
case("IsInf", a(np.inf, -np.inf, 1, np.nan, dtype=np.float32), detect_negative=0)
case("IsInf", a(np.inf, -np.inf, 1, np.nan, dtype=np.float32), detect_positive=0)
case("Clip", f(4, 5), min=-0.5, max=0.25)
case("Clip", i(-9, 9, 7), min=np.int64(-2), max=np.int64(3))
case("Where", b(3, 1), f(2, 3, 4), f(4))
case("PRelu", f(2, 3, 4), f(3, 1))
case("Cast", f(9) * 4, to=np.dtype(np.int64))
case("Cast", a(0, 3, -1), to=np.dtype(bool))
case("Cast", b(4), to=np.dtype(np.float32))
case("Cast", a(3, -4, 5), to=np.dtype(np.float16))
case("CastLike", f(9) * 4, a(1, dtype=np.int32))
case("Dropout", f(3, 4), outputs=2)

# ---- activations ------------------------------------------------------------------------------------------------------------
case("LeakyRelu", f(3, 5), alpha=0.3)
case("LeakyRelu", f(3, 5), alpha=-0.3)
case("ThresholdedRelu", f(3, 5), alpha=0.3)
case("Elu", f(3, 5), alpha=0.7)
case("Celu", f(3, 5), alpha=0.7)
case("Selu", f(3, 5))
case("Selu", f(3, 5), alpha=0.8, gamma=1.3)
case("Swish", f(3, 5), opset=24, judge="onnx")
case("Swish", f(3, 5), opset=24, judge="onnx", alpha=1.7)
case("HardSigmoid", f(3, 5) * 3, alpha=0.3, beta=0.4)
case("Shrink", f(3, 5), bias=0.2, lambd=0.3)
case("Gelu", f(3, 5) * 2)
case("Gelu", f(3, 5) * 2, approximate="tanh")
for kind in ("Softmax", "LogSoftmax", "Hardmax"):
    case(kind, f(2, 3, 4) * 4)
    case(kind, f(2, 3, 4) * 4, axis=1)
case("Softmax", f(2, 3, 4) + 1000)
case("LogSoftmax", f(2, 3, 4) + 1000)

# ---- layout -----------------------------------------------------------------------------------------------------------------
case("Reshape", f(2, 3, 4), shape=(0, -1, 2))
case("Reshape", np.zeros((0, 3), np.float32), shape=(3, 0), allowzero=1)
case("Flatten", f(2, 3, 4), axis=2)
case("Flatten", f(2, 3, 4), axis=0)
case("Flatten", f(2, 3, 4), axis=-1)
case("Transpose", f(2, 3, 4))
case("Transpose", f(2, 3, 4), perm=(1, 2, 0))
case("Squeeze", f(1, 3, 1, 4))
case("Squeeze", f(1, 3, 1, 4), axes=(-2,))
case("Unsqueeze", f(3, 4), axes=(0, -1))
case("Concat", f(2, 3), f(2, 1), axis=1)
case("Concat", f(2, 3), f(1, 3), axis=-2)
case("Split", f(2, 7), axis=1, split=(2, 5), outputs=2)
case("Split", f(7, 2), num_outputs=3, outputs=3)
case("Split", f(2, 6), axis=-1, num_outputs=2, outputs=2)
case("Slice", f(5, 6), starts=(1, -3), ends=(4, 100))
case("Slice", f(5, 6), starts=(-1,), ends=(-100,), axes=(-1,), steps=(-2,))
case("Slice", f(5, 6), starts=(4, 5), ends=(0, 1), axes=(0, 1), steps=(-1, -3))
case("Expand", f(3, 1), shape=(2, 1, 4))
case("Tile", f(2, 3), repeats=(2, 3))
for mode in ("constant", "reflect", "edge", "wrap"):
    case("Pad", f(3, 4, 5), mode=mode, pads=(0, 1, 2, 0, 2, 1))
case("Pad", f(3, 4), mode="constant", pads=(1, 2, 0, 1), constant_value=np.float32(1.5))
case("Pad", f(3, 4, 5), pads=(1, 2), axes=(-2,))
case("Pad", f(3, 4, 5), pads=(0, -1, 2, 0, 2, -3))
for mode in ("DCR", "CRD"):
    case("DepthToSpace", f(2, 8, 2, 3), blocksize=2, mode=mode)
case("SpaceToDepth", f(2, 2, 4, 6), blocksize=2)
case("SpaceToDepth", f(2, 2, 4, 6), blocksize=2, mode="CRD", judge="onnx", opset=28)
case("ReverseSequence", f(4, 3, 2), a(4, 2, 3))
case("ReverseSequence", f(3, 4, 2), a(4, 2, 3), batch_axis=0, time_axis=1)
case("Trilu", f(2, 4, 5), k=np.int64(1))
case("Trilu", f(2, 4, 5), upper=0, k=np.int64(-1))
case("Trilu", f(2, 4, 5), upper=0)

# ---- making -----------------------------------------------------------------------------------------------------------------
case("Shape", f(2, 3, 4), start=1)
case("Shape", f(2, 3, 4), end=-1)
case("Size", f(2, 3, 4))
case("Constant", value=f(2, 3))
case("Constant", value_float=1.5)
case("Constant", value_floats=[1.5, 2.0])
case("Constant", value_int=3)
case("Constant", value_ints=[3, 4])
case("ConstantOfShape", a(2, 3))
case("ConstantOfShape", a(2, 3), value=a(7))
case("Range", a(1), a(10), a(4), judge="scalars")
case("Range", a(5), a(-2), a(-3), judge="scalars")
case("EyeLike", f(3, 4))
case("EyeLike", f(3, 4), k=1, dtype=np.dtype(np.int64))
case("NonZero", i(0, 2, 3, 4))
case("OneHot", i(-3, 3, 2, 4), a(5), a(0.5, 2.0, dtype=np.float32))
case("OneHot", i(-3, 3, 2, 4), a(5), a(0.5, 2.0, dtype=np.float32), axis=1)
for kind in ("HannWindow", "HammingWindow", "BlackmanWindow"):
    case(kind, np.array(9))
    case(kind, np.array(9), periodic=0)
    case(kind, np.array(6), output_datatype=np.dtype(np.float64))
case("Compress", f(3, 4), a(True, False, True, dtype=bool), axis=0)
case("Compress", f(3, 4), a(True, False, True, dtype=bool))
case("Unique", a(2, 1, 1, 3, 4, 3), outputs=4)
case("Unique", a(2, 1, 1, 3, 4, 3), outputs=4, sorted=0)
case("Unique", np.array([[1, 0], [1, 0], [0, 2]], dtype=np.float32), outputs=4, axis=0)

# ---- indexing ---------------------------------------------------------------------------------------------------------------
case("Gather", f(4, 5), i(-4, 4, 2, 3))
case("Gather", f(4, 5), i(-5, 5, 2, 3), axis=-1)
case("GatherElements", f(4, 5), i(-4, 4, 2, 3))
case("GatherElements", f(4, 5), i(-5, 5, 2, 3), axis=1)
case("GatherND", f(3, 4, 5), i(0, 3, 6, 2))
case("GatherND", f(3, 4, 5), i(0, 4, 3, 6, 2), batch_dims=1)
case("ScatterElements", f(4, 5), a([3, 1, 0], [0, 2, 1]), f(2, 3))
for reduction in ("add", "mul", "max", "min"):
    case("ScatterElements", f(4, 5), a([3, 1, 1, 4], [0, 2, 2, 2]), f(2, 4), axis=1, reduction=reduction)
    case("ScatterND", f(4, 5), a([3], [1], [1]), f(3, 5), reduction=reduction)
case("ScatterND", f(4, 5), a([3, 1], [0, 2]), f(2))
case("ScatterND", f(4, 5), a([[3, 1], [0, 2], [1, 1]], [[0, 0], [2, 4], [3, 3]]), f(2, 3))
case("TopK", f(3, 6), a(2), outputs=2)
case("TopK", a(1, 3, 3, 2, 3, dtype=np.float32), a(4), outputs=2)
case("TopK", f(6, 3), a(2), axis=0, largest=0, outputs=2)
for kind in ("ArgMax", "ArgMin"):
    case(kind, i(0, 3, 4, 6).astype(np.float32))
    case(kind, i(0, 3, 4, 6).astype(np.float32), axis=1, keepdims=0)
    case(kind, i(0, 3, 4, 6).astype(np.float32), axis=-1, select_last_index=1)
case("CumSum", f(3, 4), np.array(1))
case("CumSum", f(3, 4), np.array(0), exclusive=1)
case("CumSum", f(3, 4), np.array(-1), reverse=1)
case("CumSum", f(3, 4), np.array(-1), reverse=1, exclusive=1)

# ---- reductions ---------------------------------------------------------------------------------------------------------------
for kind in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
             "ReduceLogSum", "ReduceLogSumExp"):  # fmt: skip
    case(kind, p(2, 3, 4))
    case(kind, p(2, 3, 4), axes=(1, -1))
    case(kind, p(2, 3, 4), axes=(1,), keepdims=0)
for kind in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
    case(kind, p(2, 3), noop_with_empty_axes=1)
case("ReduceMean", i(-9, 9, 2, 5), axes=(1,))
case("ReduceLogSumExp", a(1000.0, 1001.0, dtype=np.float32))

# ---- matrix products ----------------------------------------------------------------------------------------------------------
case("MatMul", f(2, 3, 4), f(4, 5))
case("MatMul", f(4), f(2, 4, 5))
case("MatMul", i(-9, 9, 2, 3), i(-9, 9, 3, 2))
case("Gemm", f(2, 3), f(3, 4), f(4))
case("Gemm", f(3, 2), f(4, 3), f(2, 1), alpha=0.5, beta=2.0, transA=1, transB=1)
case("Gemm", f(2, 3), f(3, 4), beta=0.5)
case("Einsum", f(2, 3, 4), f(2, 4, 5), equation="bij, bjk -> bik")

# ---- convolutions -------------------------------------------------------------------------------------------------------------
case("Conv", f(2, 4, 9), f(6, 2, 3), f(6), strides=(2,), dilations=(2,), pads=(1, 2), group=2, kernel_shape=(3,))
case("Conv", f(2, 4, 7, 8), f(4, 1, 3, 2), None, pads=(1, 0, 2, 1), group=4, strides=(1, 2), dilations=(2, 1))
case("Conv", f(2, 4, 7, 8), f(8, 1, 3, 2), f(8), pads=(1, 0, 2, 1), group=4)
case("Conv", f(1, 2, 5, 6, 4), f(3, 2, 2, 3, 2), f(3), pads=(1, 0, 0, 1, 1, 0), strides=(2, 1, 1))
case("Conv", f(1, 3, 8, 7), f(2, 3, 1, 1))
for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    case("Conv", f(1, 2, 7, 8), f(3, 2, 2, 3), auto_pad=auto, strides=(2, 3))
case("Conv", f(1, 2, 7, 8), f(3, 2, 2, 3), auto_pad="SAME_UPPER", dilations=(2, 2), judge="onnx")
case("ConvTranspose", f(2, 4, 5), f(4, 3, 3), f(6), strides=(2,), dilations=(2,), pads=(1, 2), group=2, output_padding=(1,))
case("ConvTranspose", f(2, 4, 5, 3), f(4, 1, 3, 2), None, strides=(2, 3), pads=(1, 0, 0, 1), group=4, output_padding=(1, 2))
case("ConvTranspose", f(1, 4, 5, 3), f(4, 2, 3, 3), f(2), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 0))
case("ConvTranspose", f(1, 2, 3, 2, 2), f(2, 2, 2, 3, 2), f(2), strides=(1, 2, 1))
case("ConvTranspose", f(1, 2, 4, 5), f(2, 3, 3, 3), strides=(2, 2), auto_pad="SAME_UPPER")
case("ConvTranspose", f(1, 2, 4, 5), f(2, 3, 3, 3), strides=(2, 2), auto_pad="SAME_LOWER")
case("ConvTranspose", f(1, 2, 4, 5), f(2, 3, 3, 3), strides=(3, 2), output_shape=(10, 12))
case("ConvTranspose", f(1, 2, 4, 5), f(2, 3, 3, 3), strides=(3, 2), output_shape=(11, 10), auto_pad="SAME_UPPER")
case("ConvInteger", a(*range(32), dtype=np.uint8).reshape(1, 2, 4, 4), a(*range(8), dtype=np.uint8).reshape(2, 1, 2, 2),
     np.array(3, np.uint8), a(1, dtype=np.uint8).reshape(()), pads=(1, 0, 0, 1), strides=(1, 2), group=2)  # fmt: skip
case("ConvInteger", a(*range(18), dtype=np.uint8).reshape(1, 2, 3, 3), a(*range(16), dtype=np.uint8).reshape(2, 2, 2, 2),
     np.array(3, np.uint8), a(1, 5, dtype=np.uint8), judge="onnx")  # fmt: skip
case("Col2Im", f(1, 6 * 2, 6), a(4, 5), a(2, 3), pads=(0, 0, 0, 0), strides=(1, 2), judge="onnx")
case("Col2Im", f(1, 6, 20), a(4, 5), a(2, 3), pads=(1, 1, 0, 1), judge="onnx")
case("Col2Im", f(1, 4, 9), a(5, 5), a(2, 2), dilations=(2, 2), judge="onnx")

# ---- pools --------------------------------------------------------------------------------------------------------------------
for kind in ("AveragePool", "MaxPool", "LpPool"):
    case(kind, f(2, 3, 9), kernel_shape=(3,), strides=(2,), pads=(1, 1))
    case(kind, f(2, 3, 8, 9), kernel_shape=(3, 2), strides=(2, 2), pads=(1, 0, 1, 1), ceil_mode=1)
    case(kind, f(1, 2, 9, 9), kernel_shape=(2, 3), dilations=(2, 2), tolerance=2e-6)
    case(kind, f(1, 2, 7, 8), kernel_shape=(3, 2), strides=(2, 2), auto_pad="SAME_UPPER")
    case(kind, f(1, 2, 7, 8), kernel_shape=(3, 2), strides=(2, 2), auto_pad="SAME_LOWER")
    case(kind, f(1, 2, 4, 5, 6), kernel_shape=(2, 2, 3), strides=(1, 2, 1))
case("AveragePool", f(2, 3, 7, 9), kernel_shape=(3, 2), strides=(2, 2), pads=(1, 1, 1, 0), count_include_pad=1)
case("AveragePool", f(2, 3, 6, 6), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), count_include_pad=1, ceil_mode=1)
case("MaxPool", f(2, 3, 7, 9), kernel_shape=(3, 2), strides=(2, 1), pads=(1, 1, 1, 0), outputs=2)
case("MaxPool", a(1, 1, 1, 1, dtype=np.float32).reshape(1, 1, 2, 2), kernel_shape=(2, 2), outputs=2)
case("MaxPool", a(*range(-8, 8), dtype=np.int8).reshape(1, 1, 4, 4), kernel_shape=(2, 2), pads=(1, 1, 1, 1))
case("LpPool", f(1, 2, 6, 6), kernel_shape=(2, 2), p=1)
case("MaxUnpool", p(1, 1, 2, 2), a(1, 3, 9, 15).reshape(1, 1, 2, 2), kernel_shape=(2, 2), strides=(2, 2))
case("MaxUnpool", p(1, 1, 2, 2), a(1, 3, 4, 5).reshape(1, 1, 2, 2), kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
for kind in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    case(kind, f(2, 3, 4, 5), opset=21)
case("GlobalLpPool", f(2, 3, 4, 5), p=1, opset=21)

# ---- norms --------------------------------------------------------------------------------------------------------------------
case("BatchNormalization", f(2, 3, 4, 5), f(3), f(3), f(3), p(3), epsilon=0.1)
case("BatchNormalization", f(6, 3), f(3), f(3), f(3), p(3))
case("BatchNormalization", f(2, 3, 4, 5), f(3), f(3), f(3), p(3), training_mode=1, outputs=3)
case("BatchNormalization", f(2, 3, 4, 5), f(3), f(3), f(3), p(3), training_mode=1, momentum=0.6, outputs=3)
case("InstanceNormalization", f(2, 3, 4, 5), f(3), f(3), epsilon=0.1)
case("GroupNormalization", f(2, 6, 4, 5), f(6), f(6), num_groups=3, epsilon=0.1)
case("LayerNormalization", f(2, 3, 4), f(4), f(4), epsilon=0.1)
case("LayerNormalization", f(2, 3, 4), f(3, 4), None, axis=1, outputs=3)
case("RMSNormalization", f(2, 3, 4), f(4), epsilon=0.1)
case("RMSNormalization", f(2, 3, 4), f(3, 4), axis=1)
case("LpNormalization", f(2, 3, 4))
case("LpNormalization", np.zeros((2, 3), np.float32))
case("LpNormalization", f(2, 3, 4), axis=1, p=1)
case("MeanVarianceNormalization", f(2, 3, 4, 5))
case("MeanVarianceNormalization", f(2, 3, 4, 5), axes=(1, 2))
case("MeanVarianceNormalization", f(2, 3, 4, 5) * np.float32(1e-8), judge="onnx", tolerance=1e-5)
case("LRN", f(2, 7, 3, 3), size=3, alpha=0.5, beta=0.6, bias=2.0)
case("LRN", f(2, 7, 3, 3), size=3)
case("LRN", f(2, 7, 3, 2), size=5, alpha=0.5)

# ---- recurrent ----------------------------------------------------------------------------------------------------------------
for kind, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    outs = 3 if kind == "LSTM" else 2

    def cells(directions: int = 1, *, gates: int = gates) -> tuple[np.ndarray, ...]:
        return f(directions, gates * 5, 3) / 2, f(directions, gates * 5, 5) / 2, f(directions, gates * 10) / 2

    case(kind, f(6, 2, 3), *cells(), outputs=outs, hidden_size=5)
    case(kind, f(6, 2, 3), *cells(), outputs=outs, hidden_size=5, direction="reverse")
    state = (f(2, 2, 5), f(2, 2, 5)) if kind == "LSTM" else (f(2, 2, 5),)
    case(kind, f(6, 2, 3), *cells(2), None, *state, outputs=outs, hidden_size=5, direction="bidirectional")
    case(kind, f(6, 3, 3), *cells(2), a(6, 2, 4, dtype=np.int32), outputs=outs, hidden_size=5, direction="bidirectional")
    case(kind, f(6, 3, 3), *cells(), a(6, 2, 4, dtype=np.int32), outputs=outs, hidden_size=5, direction="reverse")
    case(kind, f(6, 2, 3), *cells()[:2], outputs=outs, hidden_size=5, clip=0.3)
    case(kind, f(2, 6, 3), *cells(), outputs=outs, hidden_size=5, layout=1, judge="onnx")
    names = {"RNN": ["Relu"], "GRU": ["HardSigmoid", "Softsign"], "LSTM": ["HardSigmoid", "Relu", "Softsign"]}[kind]
    case(kind, f(6, 2, 3), *cells(), outputs=outs, hidden_size=5, activations=names)
case("RNN", f(6, 2, 3), f(1, 5, 3), f(1, 5, 5), outputs=2, hidden_size=5, activations=["LeakyRelu"], activation_alpha=[0.2])
case("RNN", f(6, 2, 3), f(1, 5, 3), f(1, 5, 5), outputs=2, hidden_size=5, activations=["Affine"], activation_alpha=[0.2],
     activation_beta=[0.3])  # fmt: skip
for kind, names in (("GRU", ["HardSigmoid", "Tanh"]), ("LSTM", ["HardSigmoid", "Tanh", "Tanh"])):
    gates = 3 if kind == "GRU" else 4
    case(kind, f(4, 2, 3), f(1, gates * 5, 3), f(1, gates * 5, 5), outputs=2, hidden_size=5, activations=names,
         activation_alpha=[0.3], activation_beta=[0.4])  # fmt: skip
case("GRU", f(6, 2, 3), f(1, 15, 3), f(1, 15, 5), f(1, 30), outputs=2, hidden_size=5, linear_before_reset=1)
case("LSTM", f(6, 2, 3), f(1, 20, 3), f(1, 20, 5), f(1, 40), None, None, None, f(1, 15), outputs=3, hidden_size=5)
case("LSTM", f(6, 2, 3), f(1, 20, 3), f(1, 20, 5), f(1, 40), None, None, None, f(1, 15), outputs=3, hidden_size=5, input_forget=1)

# ---- resampling ---------------------------------------------------------------------------------------------------------------
for mode in ("nearest", "linear", "cubic"):
    for where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"):
        case("Resize", f(1, 2, 4, 5), mode=mode, scales=a(1, 1, 2.0, 1.6, dtype=np.float32), coordinate_transformation_mode=where)
        case("Resize", f(1, 2, 7, 6), mode=mode, sizes=(1, 2, 3, 4), coordinate_transformation_mode=where, tolerance=1e-5)
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    case("Resize", f(1, 1, 4, 4), mode="nearest", scales=a(1, 1, 1.5, 2.5, dtype=np.float32), nearest_mode=rounding)
    case("Resize", f(1, 1, 4, 4), mode="nearest", scales=a(1, 1, 2.0, 0.5, dtype=np.float32), nearest_mode=rounding,
         coordinate_transformation_mode="asymmetric")  # fmt: skip
case("Resize", f(1, 1, 4, 5), mode="cubic", sizes=(1, 1, 9, 7), cubic_coeff_a=-0.5)
case("Resize", f(1, 1, 4, 5), mode="cubic", sizes=(1, 1, 9, 7), exclude_outside=1)
for mode in ("linear", "cubic"):
    case("Resize", f(1, 1, 9, 8), mode=mode, scales=a(1, 1, 0.4, 0.5, dtype=np.float32), antialias=1)
case("Resize", f(1, 1, 6, 8), mode="linear", sizes=(9, 5), axes=(3, 2))
case("Resize", f(1, 1, 6, 8), mode="linear", sizes=(9, 9), axes=(2, 3), keep_aspect_ratio_policy="not_larger")
case("Resize", f(1, 1, 6, 8), mode="linear", sizes=(9, 9), axes=(2, 3), keep_aspect_ratio_policy="not_smaller")
for extra in ({}, {"extrapolation_value": 2.5}):
    case("Resize", f(1, 1, 6, 8), mode="linear", sizes=(1, 1, 5, 5), coordinate_transformation_mode="tf_crop_and_resize",
         roi=a(0, 0, 0.2, -0.1, 1, 1, 0.7, 1.2, dtype=np.float32), **extra)  # fmt: skip
case("Resize", f(1, 1, 6, 8), mode="linear", sizes=(1, 1, 5, 1), coordinate_transformation_mode="tf_crop_and_resize",
     roi=a(0, 0, 0.2, 0.3, 1, 1, 0.7, 0.6, dtype=np.float32))  # fmt: skip
case("Resize", f(2, 3, 8), mode="linear", scales=a(1, 1, 0.5, dtype=np.float32))
GRID = (RNG.uniform(-1.4, 1.4, (2, 4, 5, 2))).astype(np.float32)
for mode in ("linear", "nearest", "cubic"):
    for border in ("zeros", "border", "reflection"):
        case("GridSample", f(2, 3, 6, 7), GRID, mode=mode, padding_mode=border, opset=20, tolerance=1e-5)
        case("GridSample", f(2, 3, 6, 7), GRID, mode=mode, padding_mode=border, align_corners=1, opset=20, tolerance=1e-5)
case("GridSample", f(1, 2, 4, 5, 6), RNG.uniform(-1.2, 1.2, (1, 2, 3, 4, 3)).astype(np.float32), opset=20)
for corners in (0, 1):
    case("AffineGrid", f(2, 2, 3), a(2, 1, 4, 5), align_corners=corners, opset=20)
    case("AffineGrid", f(2, 3, 4), a(2, 1, 3, 4, 5), align_corners=corners, opset=20)

# ---- quantization -------------------------------------------------------------------------------------------------------------
case("QuantizeLinear", f(2, 3, 4) * 9, p(3) + 0.5, a(3, -4, 5, dtype=np.int8))
case("QuantizeLinear", f(3, 2) * 9, p(3) + 0.5, a(3, 4, 5, dtype=np.uint8), axis=0)
case("QuantizeLinear", f(3, 2) * 9, np.float32(0.5), output_dtype=np.dtype(np.int8))
case("DequantizeLinear", i(-9, 9, 2, 3, 4).astype(np.int8), p(3), a(3, -4, 5, dtype=np.int8))
case("DequantizeLinear", i(-9, 9, 3, 2).astype(np.int8), p(3), axis=0)
case("DequantizeLinear", i(-9, 9, 3, 2).astype(np.int8), np.float32(0.5))
case("DynamicQuantizeLinear", f(20), outputs=3)
case(
    "MatMulInteger",
    i(0, 99, 2, 3).astype(np.uint8),
    i(0, 99, 3, 4).astype(np.uint8),
    np.array(7, np.uint8),
    np.array(5, np.uint8),
)

# ---- attention ----------------------------------------------------------------------------------------------------------------
QKV = (f(2, 4, 3, 8), f(2, 2, 5, 8), f(2, 2, 5, 6))
case("Attention", *QKV)
case("Attention", *QKV, is_causal=1)
case("Attention", *QKV, scale=0.2)
case("Attention", *QKV, left_window_size=1, judge="onnx", opset=25)
case("Attention", *QKV, right_window_size=1, judge="onnx", opset=25)
case("Attention", *QKV, softcap=0.7)
case("Attention", *QKV, f(3, 5))
case("Attention", *QKV, b(2, 1, 3, 5) | (np.arange(5) == 0))
case("Attention", f(2, 3, 8), f(2, 5, 4), f(2, 5, 6), q_num_heads=4, kv_num_heads=2)
case("Attention", f(2, 4, 3, 8), f(2, 2, 5, 8), f(2, 2, 5, 6), None, f(2, 2, 4, 8), f(2, 2, 4, 6), is_causal=1, outputs=3)
case("Attention", *QKV, None, None, None, outputs=4)
case("RotaryEmbedding", f(2, 3, 4, 8), f(6, 4), f(6, 4), i(0, 6, 2, 4))
case("RotaryEmbedding", f(2, 3, 4, 8), f(2, 4, 4), f(2, 4, 4), interleaved=1)
case("RotaryEmbedding", f(2, 4, 24), f(2, 4, 4), f(2, 4, 4), num_heads=3)
case("RotaryEmbedding", f(2, 3, 4, 8), f(2, 4, 2), f(2, 4, 2), rotary_embedding_dim=4)

# ---- signals ------------------------------------------------------------------------------------------------------------------
case("DFT", f(2, 6, 1), tolerance=1e-5)
case("DFT", f(2, 6, 4, 2), np.array(5), np.array(1), tolerance=1e-5)
case("DFT", f(2, 6, 1), onesided=1, tolerance=1e-5)
case("DFT", f(2, 6, 2), inverse=1, tolerance=1e-5)
case("STFT", f(2, 16, 1), np.array(4), np.float32(p(6)), np.array(6), tolerance=1e-5)
case("STFT", f(2, 16, 1), np.array(4), None, np.array(6), onesided=0, tolerance=1e-5)
case("STFT", f(2, 16, 2), np.array(4), np.float32(p(6)), np.array(6), onesided=0, judge="onnx", tolerance=1e-5)
case("Det", f(2, 3, 3), judge="onnx")
