"""What stays of a norm whose scale could go and whose shift could not: y' = x' + (s_y c + t_y - t_x), in one of three forms.

add        an Add of [C, 1, ...]
depthwise  a 1x1 convolution of weight one with one group a channel and the shift as its bias; for channels on axis 1
norm       the norm itself with a = 1
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.labels import varying
from normfold.algebra.ratios import Floats
from normfold.graph import Node, Value
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import AffineLayer


def leave_shift(layer: AffineLayer, regauge: Regauge, form: str) -> None:
    """Put what is left of `layer` in its place; `form` falls back to "add" where the tensor does not allow it."""
    graph, node = regauge.graph, layer.node
    constant = regauge.scale(layer.y) * layer.c + regauge.shift(layer.y) - regauge.shift(layer.x)
    if form == "norm":
        return _as_norm(layer, regauge, constant)
    output = graph.value(f"{layer.y.name}_shift", layer.y.shape, layer.y.dtype)
    name = f"{node.name}_shift" if node.name else ""
    channels = _channels(layer.x, constant)
    if form == "depthwise" and channels is not None:
        made = _depthwise(layer, regauge, constant, channels, output, name)
    else:
        x, beta = _ends(layer)
        shift = graph.derived(beta, constant.reshape(constant.shape[1:]), suffix="shift")
        made = Node("Add", [x, shift], [output], name=name, module=node.module)
    graph.insert_after(node, made)
    graph.replace_uses(layer.y, output)
    graph.outputs = [output if value is layer.y else value for value in graph.outputs]
    graph.remove([node])
    regauge.stands_for[output] = layer.y
    return None


def _ends(layer: AffineLayer) -> tuple[Value, Value]:
    """(x, beta) of a batch norm."""
    x, beta = layer.node.inputs[layer.slot], layer.node.inputs[2]
    assert x is not None and beta is not None
    return x, beta


def _channels(x: Value, constant: Floats) -> int | None:
    """Channels on axis 1 of a tensor with spatial axes, where the shift varies along them alone; else None."""
    if x.shape is None or len(x.shape) < 3 or not set(varying(constant)) <= {1}:
        return None
    return x.shape[1] if isinstance(x.shape[1], int) else None


def _depthwise(layer: AffineLayer, regauge: Regauge, constant: Floats, channels: int, output: Value, name: str) -> Node:
    graph, (x, beta) = regauge.graph, _ends(layer)
    spatial = len(x.shape or ()) - 2
    ones, none = (1,) * spatial, (0,) * spatial
    weight = graph.derived(beta, np.ones((channels, 1, *ones)), suffix="one")
    weight.param = ""
    bias = graph.derived(beta, np.broadcast_to(constant.ravel(), (channels,)).copy(), suffix="shift")
    attrs = {"kernel_shape": ones, "strides": ones, "dilations": ones, "pads": none + none, "group": channels}
    return Node("Conv", [x, weight, bias], [output], attrs, name=name, module=layer.node.module)


def _as_norm(layer: AffineLayer, regauge: Regauge, constant: Floats) -> None:
    """gamma' = sqrt(var + eps), beta' = mean + shift: a = 1, c = shift."""
    graph, node = regauge.graph, layer.node
    gamma, beta, mean, var = (v for v in node.inputs[1:5] if v is not None)
    assert mean.const is not None and var.const is not None
    neutral = np.sqrt(var.const.float64() + float(node.attrs.get("epsilon", 1e-5)))
    graph.set_input(node, 1, graph.derived(gamma, neutral))
    graph.set_input(node, 2, graph.derived(beta, mean.const.float64() + np.broadcast_to(constant.ravel(), neutral.shape)))
