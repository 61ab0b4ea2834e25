"""A stable text form of the view, for golden files and for people."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.graph.graph import Graph
from normfold.graph.node import Node
from normfold.graph.values import Value


def _type(value: Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name
    if value.shape is None:
        return dtype
    return f"{dtype}[{', '.join('?' if dim is None else str(dim) for dim in value.shape)}]"


def _attr(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} {list(value.shape)}>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_attr(item) for item in value) + "]"
    return str(value)


def _operand(value: Value | None) -> str:
    if value is None:
        return "_"
    if value.const is None:
        return f"%{value.name}"
    if value.const.size == 1 and value.dtype is not None and value.dtype.kind in "biuf":
        return _attr(value.const.read().reshape(()).item())
    return f"@{value.param or value.name}:{_type(value)}"


def node_text(node: Node) -> str:
    """One line: ``%y: float32[N, 8] = Gemm(%x, @weight:float32[8, 4]) {transB=1} # module``."""
    outputs = ", ".join(f"%{value.name}: {_type(value)}" for value in node.outputs)
    inputs = ", ".join(_operand(value) for value in node.inputs)
    attrs = ", ".join(f"{key}={_attr(node.attrs[key])}" for key in sorted(node.attrs))
    return (
        f"{outputs} = {node.kind}({inputs})" + (f" {{{attrs}}}" if attrs else "") + (f"  # {node.module}" if node.module else "")
    )


def to_text(graph: Graph) -> str:
    """The whole graph, one line a node, no weights and no addresses: equal graphs give equal text."""
    head = ", ".join(f"%{value.name}: {_type(value)}" for value in graph.inputs)
    tail = ", ".join(_operand(value) for value in graph.outputs)
    body = "\n".join(f"  {node_text(node)}" for node in graph.nodes)
    return f"graph {graph.name}({head}) {{\n{body}\n  return {tail}\n}}\n"
