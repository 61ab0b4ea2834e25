"""Border maps: what a convolution makes of a shifted input where its window hangs over the border.

A zero-padded convolution reads the shift t of its input inside the picture and zeros outside, so that a constant t becomes a map

    M = -Conv(t / s spread over the grid; W)     added to the output, shape [1, O, *grid]

which is the same as -Conv(plane of ones; K) with one kernel K[o] = sum_i W[o, i] t[i] / s[i] of a single input channel.  A
transposed convolution makes one number a phase and border, even without padding.  For an input of known size the map is a
constant; otherwise the plane is made at run time, as the input to the power of zero (1 for every number, NaN too: IEEE 754).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.algebra.ratios import Floats
from normfold.graph import Node, Value
from normfold.ops.kernels import evaluate
from normfold.ops.regauge import Regauge


def add_border_map(node: Node, kernel: Floats, inside: Floats, like: Value, g: Regauge) -> None:
    """Add Conv(plane of ones; kernel) + inside behind a Conv or ConvTranspose.

    kernel: weight for one input channel, [O, 1, *window] (ConvTranspose: [1, O, *window]).  inside: [O, *ones], what the bias
    has already taken up.  like: the weight whose type the map is stored in.
    """
    x = g.stands_for.get(node.inputs[0], node.inputs[0]) if node.inputs[0] is not None else None
    assert x is not None and x.shape is not None
    attrs = {**node.attrs, "group": 1}
    grid = [size for size in x.shape[2:] if isinstance(size, int)]
    if len(grid) == len(x.shape) - 2:
        (spread,) = evaluate(Node(node.kind, [None, None], [], attrs), [np.ones((1, 1, *grid)), kernel])
        g.add_behind(node, spread + inside, like, "border")
    else:
        g.add_behind(node, _computed(node, attrs, kernel, inside, like, g), like, "border")


def _computed(node: Node, attrs: dict[str, Any], kernel: Floats, inside: Floats, like: Value, g: Regauge) -> Value:
    """Nodes that make the map for an input of any size; returns their output."""
    graph, x, y = g.graph, node.inputs[0], node.output
    assert x is not None and x.shape is not None and y.shape is not None and like.dtype is not None
    zero = graph.constant(f"{like.name}_nought", np.zeros((), like.dtype))
    weight, bias = graph.derived(like, kernel, suffix="border"), graph.derived(like, inside.ravel(), suffix="border_bias")
    weight.param = bias.param = ""
    one = graph.value(f"{y.name}_one", (1, 1, *x.shape[2:]), x.dtype)
    plane = graph.value(f"{y.name}_plane", one.shape, x.dtype)
    spread = graph.value(f"{y.name}_map", (1, *y.shape[1:]), y.dtype)
    cut = {"axes": (0, 1), "starts": (0, 0), "ends": (1, 1), "steps": (1, 1)}
    made = (
        Node("Slice", [x], [one], cut, module=node.module),
        Node("Pow", [one, zero], [plane], module=node.module),
        Node(node.kind, [plane, weight, bias], [spread], attrs, module=node.module),
    )
    anchor = node
    for item in made:
        anchor = graph.insert_after(anchor, item)
    return spread
