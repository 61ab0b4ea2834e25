"""The full scale of an output: the magnitude that a bounded function behind it is accurate to a part of.

A runtime computes sigmoid to a part of one, not of its value: ONNX Runtime gives 3.6e-7 at -15 (3.1e-7 is right) and zero below
-18.  Of scores that are all that small its rounding is no longer small beside them, and says nothing against it.
"""

from __future__ import annotations

from normfold.graph import Graph, Value

_BOUNDED = frozenset("Sigmoid HardSigmoid Softmax Tanh Erf Sin Cos Softsign".split())
_CARRIED = frozenset("Identity Cast Dropout Transpose Reshape Flatten Squeeze Unsqueeze Slice Gather Split Expand Tile".split())


def full_scales(graph: Graph) -> dict[str, float]:
    """Output name -> full scale, for outputs that have one: 1 behind a bounded function, through layout and Concat."""
    found = {value.name: _full_scale(value) for value in graph.outputs}
    return {name: scale for name, scale in found.items() if scale}


def _full_scale(value: Value) -> float:
    node = value.producer
    while node is not None and node.kind in _CARRIED and node.inputs[0] is not None:
        node = node.inputs[0].producer
    if node is None:
        return 0.0
    if node.kind == "Concat":
        return min((_full_scale(item) for item in node.inputs if item is not None), default=0.0)
    return 1.0 if node.kind in _BOUNDED else 0.0
