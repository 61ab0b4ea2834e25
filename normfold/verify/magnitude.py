"""The componentwise magnitude of a node: what its terms add up to when nothing cancels.

Rounding errors of y = W x + b are at most a few units of |W| |x| + |b|, element by element, whatever cancels in y itself
(N. Higham, Accuracy and Stability of Numerical Algorithms, section 3.5).  So the algebra of a rewrite is judged against that:
each op is run by its own kernel on the absolute values of its inputs, with every sign in its formula made positive.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normfold.graph import Array, Node, is_float
from normfold.verify.evaluate import compute

# Sums of products of the inputs, maxima, or mere movements: the op itself, on absolute values.
_LINEAR = frozenset(
    """Add AveragePool Cast CastLike Col2Im Compress Concat Conv ConvTranspose CumSum DepthToSpace Dropout Einsum Expand Flatten
    Gather GatherElements GatherND Gemm GlobalAveragePool GlobalMaxPool Identity MatMul Max MaxPool Mean Mul Pad ReduceMax
    ReduceMean ReduceSum Reshape ReverseSequence Slice SpaceToDepth Split Squeeze Sum Tile Transpose Trilu Unsqueeze
    Where""".split()
)
# Element by element, with a slope of about 1 at most: an error passes on no larger than it came.
_GENTLE = frozenset("Relu Abs Neg Clip Sigmoid Tanh HardSigmoid Softsign Elu Erf Sin Cos Softplus Gelu HardSwish Mish".split())
_ALIKE = {"Sub": "Add", "Min": "Max", "ReduceMin": "ReduceMax"}


def magnitude(node: Node, magnitudes: list[Array | None], arrays: list[Array | None], results: list[Array]) -> list[Array]:
    """The magnitude of each output of `node`.

    magnitudes: those of its inputs.  arrays: the inputs themselves (integers and bools serve as they are).  results: its
    outputs.  An op that is neither linear nor gentle is taken at the largest element of its output, as far as it mixes.
    """
    sizes = [_of(size, array) for size, array in zip(magnitudes, arrays, strict=True)]
    own = [np.abs(item) if is_float(item.dtype) else item for item in results]
    if node.kind in _LINEAR or node.kind in _ALIKE:
        return _finish(compute(_positive(node), sizes), own)
    x = sizes[0] if sizes else None
    if x is None or not is_float(x.dtype) or arrays[0] is None:
        return _whole(own)
    with np.errstate(all="ignore"):
        if node.kind == "Div" and arrays[1] is not None and is_float(arrays[1].dtype):
            return _finish([x / np.abs(arrays[1])], own)
        if node.kind == "LeakyRelu":
            return _finish([x * max(1.0, abs(float(node.attrs.get("alpha", 0.01))))], own)
        if node.kind == "PRelu" and sizes[1] is not None:
            return _finish([x * np.maximum(1.0, sizes[1])], own)
        if node.kind == "BatchNormalization" and not node.attrs.get("training_mode"):
            return _finish(_batch_norm(node, sizes), own)
        if node.kind in _GENTLE:
            return _finish([x], own)
        if node.kind in NORM_AXES:
            return [*_finish([_norm(node, arrays[0], x, sizes[1:])], own), *_whole(own[1:])]
    return _whole(own)


def _whole(own: list[Array]) -> list[Array]:
    """The largest element of each output, everywhere: for ops that mix in ways of their own."""
    return [np.full(item.shape, np.max(item, initial=0.0)) if is_float(item.dtype) else item for item in own]


def _of(size: Array | None, array: Array | None) -> Array | None:
    return array if array is None or not is_float(array.dtype) else size


def _positive(node: Node) -> Node:
    """The node with the signs in its formula made positive."""
    node = replace(node, kind=_ALIKE[node.kind]) if node.kind in _ALIKE else node
    signed = {name: abs(node.attrs[name]) for name in ("alpha", "beta", "constant_value") if node.attrs.get(name) is not None}
    return replace(node, attrs={**node.attrs, **signed}) if signed else node


def _batch_norm(node: Node, sizes: list[Array | None]) -> list[Array]:
    """|a| (|x| + |mean|) + |beta|: BatchNormalization of |x| with the mean's sign turned."""
    x, gamma, beta, mean, var = sizes
    turned = None if mean is None else -mean
    return compute(replace(node, outputs=node.outputs[:1]), [x, gamma, beta, turned, var])


NORM_AXES = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")


def _norm(node: Node, x: Array, size: Array, parameters: list[Array | None]) -> Array:
    """(|x| + |mean|) |gamma| / deviation + |beta|: nearly equal inputs cancel, and what is left is magnified."""
    view, sizes = x, size
    if node.kind == "GroupNormalization":
        groups = int(node.attrs.get("num_groups", 1))
        view, sizes = x.reshape(x.shape[0], groups, -1), size.reshape(size.shape[0], groups, -1)
        axes: tuple[int, ...] = (2,)
    elif node.kind == "InstanceNormalization":
        axes = tuple(range(2, x.ndim))
    else:
        axes = tuple(range(int(node.attrs.get("axis", -1)) % x.ndim, x.ndim))
    mean = 0.0 if node.kind == "RMSNormalization" else np.mean(view, axis=axes, keepdims=True)
    deviation = np.sqrt(np.mean(np.square(view - mean), axis=axes, keepdims=True) + float(node.attrs.get("epsilon", 1e-5)))
    core = (sizes + np.max(sizes, axis=axes, keepdims=True)) / deviation
    gamma, beta = (float(np.max(item, initial=0.0)) if item is not None else None for item in (*parameters, None, None)[:2])
    return core.reshape(x.shape) * (1.0 if gamma is None else gamma) + (0.0 if beta is None else beta)


def _finish(sizes: list[Array], own: list[Array]) -> list[Array]:
    """At least the outputs themselves (NaN and Inf included, which are judged by their pattern)."""
    return [np.maximum(size, mine) if is_float(mine.dtype) else mine for size, mine in zip(sizes, own, strict=False)]
