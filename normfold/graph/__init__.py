"""The vocabulary: values, nodes, the graph view with its edit verbs, norms, and a stable text form.

Nothing here knows torch, onnx or any file format.
"""

from normfold.graph.graph import Graph
from normfold.graph.node import Node
from normfold.graph.norms import NormKind, NormSpec
from normfold.graph.text import node_text, to_text
from normfold.graph.values import BFLOAT16, Array, Constant, Dim, Gauge, Shape, Use, Value, is_float

__all__ = [
    "BFLOAT16",
    "Array",
    "Constant",
    "Dim",
    "Gauge",
    "Graph",
    "Node",
    "NormKind",
    "NormSpec",
    "Shape",
    "Use",
    "Value",
    "is_float",
    "node_text",
    "to_text",
]
