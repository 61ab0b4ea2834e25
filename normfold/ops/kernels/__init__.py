"""Kernels: what each op kind computes, on numpy arrays, in whatever float type comes in.

`evaluate` runs one node: by its kernel, else by the node's own `fallback` (the source framework's arithmetic).  Light kernels
are pure numpy and serve constant folding; the others import torch when they first run.
"""

from __future__ import annotations

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import BFLOAT16, Array, Node, is_float
from normfold.ops.kernels import (
    activations,
    attention,
    conv,
    elementwise,
    indexing,
    layout,
    linear,
    make,
    norms,
    pooling,
    quantize,
    recurrent,
    reduce,
    resize,
    signal,
    special,
)
from normfold.ops.kernels.registry import ATTRIBUTES, KERNELS, LIGHT_KINDS, Kernel, kernel, unsupported

__all__ = ["KERNELS", "LIGHT", "Kernel", "can_evaluate", "evaluate", "is_light", "kernel"]

# importing the families registers their kernels
_FAMILIES = (
    activations, attention, conv, elementwise, indexing, layout, linear, make, norms, pooling, quantize, recurrent, reduce,
    resize, signal, special,
)  # fmt: skip
LIGHT: frozenset[str] = frozenset(LIGHT_KINDS)
_FAILURES = (ValueError, IndexError, TypeError, KeyError, RuntimeError, AttributeError, ArithmeticError, MemoryError)
_HALVES = (np.dtype(np.float16), BFLOAT16)


def is_light(kind: str) -> bool:
    """True when `kind` is evaluated by numpy alone."""
    return kind in LIGHT


def can_evaluate(node: Node) -> bool:
    """True when `evaluate` has something to run for this node.  It may still meet a form that it refuses."""
    return node.kind in KERNELS or node.fallback is not None


def evaluate(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The node's outputs for these inputs (followed by its captures, for a `fallback` that reads them).

    Half-precision arrays are computed in float32 and rounded once.  Inputs are never written to; outputs may be views of them.
    Raises CannotTell for an op without kernel and fallback, and for forms that the kernel does not compute.
    """
    try:
        with np.errstate(all="ignore"):  # Inf and NaN are results like any other
            function = _function_of(node)
            if node.kind != "Cast" and any(array is not None and array.dtype in _HALVES for array in arrays):
                return _in_float32(function, node, arrays)
            return [np.asarray(item) for item in function(node, arrays)]
    except _FAILURES as error:
        shapes = ", ".join("-" if array is None else f"{array.dtype}{list(array.shape)}" for array in arrays)
        raise CannotTell(f"evaluating {node.kind} {node.label!r} on ({shapes}) failed: {error}") from error


def _function_of(node: Node) -> Kernel:
    """The kernel of a node whose attributes it understands all, else what calls the node's fallback."""
    function, fallback = KERNELS.get(node.kind), node.fallback
    unknown = sorted(name for name in node.attrs if name not in ATTRIBUTES.get(node.kind, ()) and not name.startswith("_"))
    if function is not None and not unknown:
        return function
    if fallback is not None:
        return lambda _, arrays: fallback(arrays)
    if function is not None:
        raise unsupported(node, f"the attribute {', '.join(unknown)}")
    raise CannotTell(
        f"op {node.kind} ({node.label!r}) has no float64 evaluation, so the models cannot be compared through it; "
        f"register a kernel with normfold.ops.kernels.kernel({node.kind!r})"
    )


def _in_float32(function: Kernel, node: Node, arrays: list[Array | None]) -> list[Array]:
    half = next(array.dtype for array in arrays if array is not None and array.dtype in _HALVES)
    wide: list[Array | None] = [
        array.astype(np.float32) if array is not None and array.dtype in _HALVES else array for array in arrays
    ]
    results: list[Array] = []
    for slot, item in enumerate(function(node, wide)):
        result = np.asarray(item)
        if result.dtype == np.float32:
            declared = node.outputs[slot].dtype if slot < len(node.outputs) else None
            result = result.astype(declared if declared is not None and is_float(declared) else half)
        results.append(result)
    return results
