"""LayerNorm, RMSNorm, InstanceNorm and GroupNorm: statistics at run time, with gamma and beta of their own.

    core(x) = (x - mean) / sqrt(var + epsilon)       y = gamma core(x) + beta

Their parameters make any gauge of y (RMSNorm has no beta: no shift).  Of x, core(s x + t) == sign(s) core(x) with s^2 epsilon in
place of epsilon, for one magnitude of s and for a t that the mean takes away; gamma takes up the sign.
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.ratios import Floats
from normfold.graph import Graph, Node, Value
from normfold.ops.regauge import Regauge
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring, is_foldable


def _ends(node: Node, graph: Graph) -> tuple[Value, Value] | None:
    """(x, gamma) of a norm whose parameters may be replaced and whose statistics nobody reads; None for all others."""
    x, gamma, beta = node.input(0), node.input(1), node.input(2)
    if x is None or x.const is not None or x.rank is None or len(node.outputs) != 1:
        return None
    if gamma is None or not is_foldable(gamma, graph) or not (beta is None or is_foldable(beta, graph)):
        return None
    return x, gamma


def _wire_layer(node: Node, w: Wiring) -> None:
    """Statistics over `axis` and all axes behind it, for every row of their own."""
    ends, y = _ends(node, w.graph), node.output
    if ends is None or y.rank is None:
        return w.pin_node(node)
    x, gamma = ends
    assert x.rank is not None and gamma.shape is not None
    axis = int(node.attrs["axis"]) % x.rank
    if len(gamma.shape) > x.rank - axis:
        return w.pin_node(node)
    w.even_scale(x, ())
    first = y.rank - len(gamma.shape)
    w.set_fresh(y, {first + place for place, size in enumerate(gamma.shape) if size != 1})
    if node.kind == "RMSNormalization":
        w.zero_shift(x, "activation", node)
        w.set(y, w.of(y).scale, np.zeros((1,) * y.rank, dtype=np.int64))
    else:
        w.even_shift(x, range(axis))
    return None


def _absorb_layer(node: Node, g: Regauge) -> None:
    x, y, gamma = node.inputs[0], node.output, node.inputs[1]
    assert x is not None and gamma is not None and gamma.const is not None and y.rank is not None
    sign = _settle_epsilon(node, g.scale(x), g)
    rank = len(gamma.const.shape)
    s, t = (item.reshape(item.shape[y.rank - rank :]) for item in (g.scale(y), g.shift(y)))
    factor = s * float(sign.reshape(-1)[0])
    if np.any(factor != 1.0):
        g.replace(node, 1, gamma.const.float64() * factor)
    if node.kind != "RMSNormalization":
        beta = node.input(2)
        offset = beta.const.float64() if beta is not None and beta.const is not None else np.zeros(gamma.const.shape)
        g.set_bias(node, 2, offset * s + t, gamma)


def _wire_planes(node: Node, w: Wiring) -> None:
    """InstanceNormalization: statistics of each plane.  GroupNormalization: of each run of channels."""
    ends, y = _ends(node, w.graph), node.output
    channels = ends[0].shape[1] if ends is not None and ends[0].shape is not None and len(ends[0].shape) > 1 else None
    if ends is None or node.input(2) is None or not isinstance(channels, int) or ends[1].shape != (channels,):
        return w.pin_node(node)
    x, groups = ends[0], channels if node.kind == "InstanceNormalization" else int(node.attrs["num_groups"])
    w.even_scale(x, {1})
    w.even_shift(x, {0, 1})
    scale, shift = w.of(x)
    if scale.size > 1:
        by_group = scale.reshape(groups, -1)
        w.system.join_scale(by_group, by_group[:, :1])
        w.system.join_magnitude(by_group[:, 0], by_group[:1, 0])
    if shift.shape[1] > 1 and groups < channels:
        by_group = shift.reshape(len(shift), groups, -1)
        w.system.sum_shifts(by_group, [(1.0, by_group[:, :, :1])])
    w.set_fresh(y, (1,))
    return None


def _absorb_planes(node: Node, g: Regauge) -> None:
    x, gamma, beta = node.inputs[:3]
    assert x is not None and gamma is not None and gamma.const is not None and beta is not None and beta.const is not None
    sign = _settle_epsilon(node, g.scale(x), g)
    s, t = g.channels(node.output, gamma.const.size)
    g.replace(node, 1, gamma.const.float64() * s * np.broadcast_to(sign.reshape(-1), s.shape))
    g.replace(node, 2, beta.const.float64() * s + t)


def _settle_epsilon(node: Node, scale: Floats, g: Regauge) -> Floats:
    """Put s^2 epsilon in place of epsilon; returns the signs of s."""
    magnitude = float(np.abs(scale).reshape(-1)[0])
    if magnitude != 1.0:
        g.set_number(node, "epsilon", float(node.attrs["epsilon"]) * magnitude**2, np.dtype(np.float32))
    return np.sign(scale)


RULES = (
    OpRule("LayerNormalization", _wire_layer, _absorb_layer),
    OpRule("RMSNormalization", _wire_layer, _absorb_layer),
    OpRule("InstanceNormalization", _wire_planes, _absorb_planes),
    OpRule("GroupNormalization", _wire_planes, _absorb_planes),
)
