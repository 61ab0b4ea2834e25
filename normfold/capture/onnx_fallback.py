"""Float64 evaluation of single ONNX nodes that normfold has no kernel for, by onnx's reference implementation.

The reference knows old opsets in part only: forms that it would compute wrongly are computed here or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normfold.errors import CannotTell
from normfold.graph import Array, Node, is_float

Fallback = Callable[[list[Array | None]], list[Array]]


def fallback_for(node: Node, origin: ir.Node, opset: int, captured: list[ir.Value]) -> Fallback | None:
    """What evaluates `node`: a function of its inputs, followed by its captures.  None where nothing can be trusted to."""
    if origin.domain not in ("", "ai.onnx"):
        return None
    if node.kind in ("legacy::Softmax", "legacy::LogSoftmax", "legacy::Hardmax"):
        return _flat(node)
    if node.kind == "legacy::Dropout" and 7 <= opset < 12:
        return _dropout
    if node.kind.startswith("legacy::") and node.kind != "legacy::Cast":
        return None
    if len(node.inputs) < len(origin.inputs):  # an old form that the view holds in another one
        return None
    return _Reference(origin, opset, captured)


def _dropout(arrays: list[Array | None]) -> list[Array]:
    """Inference: everything is let through, the mask says so."""
    (x,) = (array for array in arrays[:1] if array is not None)
    return [x, np.ones(x.shape, dtype=bool)]


def _flat(node: Node) -> Fallback:
    """Softmax and kin before opset 13: everything from `axis` on is one vector."""
    axis, kind = int(node.attrs["axis"]), node.kind.removeprefix("legacy::")

    def run(arrays: list[Array | None]) -> list[Array]:
        (x,) = (array for array in arrays[:1] if array is not None)
        start = axis % x.ndim if x.ndim else 0
        rows = x.reshape((int(np.prod(x.shape[:start], dtype=np.int64)), -1)) if x.size else x.reshape(1, 0)
        if not x.size:
            return [x]
        if kind == "Hardmax":
            result = np.zeros_like(rows)
            result[np.arange(len(rows)), rows.argmax(axis=1)] = 1
        else:
            moved = rows - rows.max(axis=1, keepdims=True)
            total = np.exp(moved).sum(axis=1, keepdims=True)
            result = np.exp(moved) / total if kind == "Softmax" else moved - np.log(total)
        return [result.reshape(x.shape).astype(x.dtype)]

    return run


class _Reference:
    """One node run by onnx.reference; the evaluator is made when first asked for."""

    def __init__(self, origin: ir.Node, opset: int, captured: list[ir.Value]) -> None:
        self._origin, self._opset, self._captured = origin, opset, captured
        self._evaluator: Any = None
        self._names: list[str] = []

    def __call__(self, arrays: list[Array | None]) -> list[Array]:
        evaluator = self._evaluator or self._make()
        feeds = {name: array for name, array in zip(self._names, arrays, strict=False) if name and array is not None}
        try:
            outputs: list[Any] = evaluator.run(None, feeds)
        except Exception as error:  # the reference raises whatever numpy, or its own checks, raise
            detail = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise CannotTell(
                f"onnx.reference cannot evaluate {self._origin.op_type} {self._origin.name!r} ({detail}); "
                "compare the models with the runtime alone"
            ) from error
        wide = any(array is not None and array.dtype == np.float64 for array in arrays)
        results = [np.asarray(item) for item in outputs]
        return [item.astype(np.float64) if wide and is_float(item.dtype) else item for item in results]

    def _make(self) -> Any:
        from onnx.reference import ReferenceEvaluator

        proto = ir.serde.serialize_node(self._origin)
        self._names = [*proto.input, *(str(value.name) for value in self._captured)]
        graph = onnx.GraphProto(name="node", node=[proto])
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(self._names) if name)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output if name)
        opsets = [onnx.helper.make_opsetid("", min(self._opset, onnx.defs.onnx_opset_version()))]
        self._evaluator = ReferenceEvaluator(onnx.ModelProto(graph=graph, opset_import=opsets))
        return self._evaluator
