"""What an op costs: float operations and bytes, from the shapes that the runtime saw.

Operations: a multiply-add is two, an exponential, a root or a division one; a comparison or a copy none of its own but one an
element where that is all the op does.  Bytes: every input read once and every output written once, the traffic that no
implementation avoids.  The table is by op type, as the runtime names it; an op without an entry costs its bytes only.

    Conv             2 |Y| |W| / M                        X [N, C, ...], W [M, C/g, k...], Y [N, M, ...]
    ConvTranspose    2 |X| |W| / C                        W [C, M/g, k...]
    Gemm, MatMul     2 |Y| K
    LSTM, GRU, RNN   2 T B (|W| + |R|)                    X [T, B, I], W [D, g H, I], R [D, g H, H]
    norms            8 |X|, LpNormalization 3; BatchNormalization 2 (a x + c)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Sizes = Sequence[int]
Tensor = tuple[str, Sizes]
"""(element type as ONNX Runtime writes it, sizes)."""

_WIDTH = {
    "float": 4,
    "double": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "uint64": 8,
    "int32": 4,
    "uint32": 4,
    "int16": 2,
    "uint16": 2,
    "complex64": 8,
    "complex128": 16,
    "string": 16,
}  # all others: one byte


def size(sizes: Sizes) -> int:
    """Elements of a tensor."""
    return math.prod(sizes)


def traffic(tensors: Sequence[Tensor]) -> float:
    """Bytes of these tensors."""
    return float(sum(size(sizes) * _WIDTH.get(kind, 1) for kind, sizes in tensors))


def operations(op: str, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> float | None:
    """Float operations of one call; None for an op that the table does not know."""
    if not outputs:
        return None
    count = _COUNTS.get(op)
    if count is not None:
        return count(inputs, outputs) if inputs else None
    each = _EACH.get(op)
    if each is not None:
        return each * float(max(size(item) for item in (*inputs[:1], outputs[0])))
    return None


def _conv(inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> float | None:
    weight = inputs[1] if len(inputs) > 1 else ()
    return 2.0 * size(outputs[0]) * size(weight) / weight[0] if len(weight) > 2 and weight[0] else None


def _conv_transpose(inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> float | None:
    weight = inputs[1] if len(inputs) > 1 else ()
    return 2.0 * size(inputs[0]) * size(weight) / weight[0] if len(weight) > 2 and weight[0] else None


def _matmul(inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> float | None:
    """K from the sizes alone, for either operand may be stored transposed: |A| |B| / |Y| = K^2 in every batch."""
    if len(inputs) < 2:
        return None
    a, b, y = inputs[0], inputs[1], outputs[0]
    if len(a) > 2 or len(b) > 2:
        shared = set(a[-2:]) & set(b[-2:]) if len(a) > 1 and len(b) > 1 else set(a[-1:])
        inner = a[-1] if a and a[-1] in shared else (a[-2] if len(a) > 1 else 1)
        return 2.0 * size(y) * inner
    return 2.0 * size(y) * math.sqrt(size(a) * size(b) / max(size(y), 1)) if len(a) == len(b) == 2 else 2.0 * size(y) * a[-1]


def _recurrent(inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> float | None:
    if len(inputs) < 3 or len(inputs[0]) < 2:
        return None
    steps, batch = inputs[0][0], inputs[0][1]
    return 2.0 * steps * batch * (size(inputs[1]) + size(inputs[2]))


def _attention(inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> float | None:
    """Q K' and the product with V: 4 |Q| times the length of K, heads side by side in the last axis or on their own."""
    if len(inputs) < 3 or len(inputs[0]) < 3:
        return None
    return 4.0 * size(inputs[0]) * inputs[1][-2]


_COUNTS: dict[str, Callable[[Sequence[Sizes], Sequence[Sizes]], float | None]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv", "DeformConv"), _conv),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "QGemm"), _matmul),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
}
_EACH: dict[str, float] = {
    **dict.fromkeys(
        "Add Sub Mul Div Relu LeakyRelu PRelu Clip Abs Neg Max Min Sqrt Exp Log Pow Reciprocal Equal Greater Less Where Floor "
        "Ceil Round Sign Not And Or GreaterOrEqual LessOrEqual ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd "
        "GlobalAveragePool GlobalMaxPool AveragePool MaxPool CumSum Resize Upsample Sin Cos Mod ThresholdedRelu".split(),
        1.0,
    ),
    **dict.fromkeys(("ReduceL2", "ReduceL1", "ReduceSumSquare", "BatchNormalization", "QuantizeLinear", "DequantizeLinear"), 2.0),
    **dict.fromkeys(("Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "LpNormalization"), 3.0),
    **dict.fromkeys(("Sigmoid", "Tanh", "Erf", "Softmax", "LogSoftmax", "QuickGelu", "Mish"), 5.0),
    **dict.fromkeys(
        "LayerNormalization SkipLayerNormalization InstanceNormalization GroupNormalization GroupNorm RMSNormalization "
        "SimplifiedLayerNormalization SkipSimplifiedLayerNormalization Gelu FastGelu BiasGelu".split(),
        8.0,
    ),
    **dict.fromkeys(
        "Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather Expand Tile Pad Cast Identity Shape ReorderInput "
        "ReorderOutput DepthToSpace SpaceToDepth GatherND GatherElements ScatterND Dropout".split(),
        0.0,
    ),
}
