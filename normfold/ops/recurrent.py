"""LSTM, GRU and RNN: the input's weights absorb any gauge of the input; state and output keep theirs.

    W' = W / s_x        Wb' = Wb - W (t_x / s_x)

leaves every W x + Wb as it was, and with it the gates, whatever the activations, peepholes, clipping and lengths.  A layer
without biases gets them where t_x asks for one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from normfold.algebra.ratios import Floats
from normfold.graph import Node, Value
from normfold.ops.regauge import Regauge
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring, is_foldable


def _wire_input_side(node: Node, w: Wiring, weights: list[Value | None], biases: list[Value | None]) -> None:
    """Demands of a recurrent op whose input meets `weights`; a bias of None may be put in."""
    x = node.input(0)
    constants = [*weights, *(bias for bias in biases if bias is not None)]
    if x is None or x.const is not None or x.rank != 3 or not weights or not all(is_foldable(v, w.graph) for v in constants):
        return w.pin_node(node)
    w.even_out(x, {2})
    for value in node.inputs[1:]:
        if value is not None and value.const is None:
            w.pin(value, "no-rule", f"{node.kind} ({node.label})")
    for value in node.outputs:
        w.set_identity(value)
    for weight in weights:
        if weight is not None:
            w.weight(weight, node, x, node.output, ("recurrent", weight.rank or 0))
    return None


def _wire_onnx(node: Node, w: Wiring) -> None:
    weight = node.input(1)
    if weight is None or weight.rank != 3:
        return w.pin_node(node)
    return _wire_input_side(node, w, [weight], [node.input(3)])


def _absorb_onnx(node: Node, g: Regauge) -> None:
    """W [directions, gates * hidden, inputs], B [directions, Wb and Rb: 2 * gates * hidden]."""
    x, like, bias = node.inputs[0], node.inputs[1], node.input(3)
    assert x is not None and like is not None and like.const is not None
    weight = like.const.float64()
    directions, rows, inputs = weight.shape
    s, t = g.channels(x, inputs)
    if g.rescales(x):
        g.replace(node, 1, weight / s)
    if np.any(t != 0.0):
        both = bias.const.float64().copy() if bias is not None and bias.const is not None else np.zeros((directions, 2 * rows))
        both[:, :rows] -= weight @ (t / s)
        g.set_bias(node, 3, both, like)


class _Layout(NamedTuple):
    """Where torch's op holds its parameters: behind `first` inputs, `step` of them a layer and direction.

    weights, biases: slots of weight_ih and bias_ih (None without biases) that the input meets, one a direction.
    """

    first: int
    step: int
    weights: list[int]
    biases: list[int] | None


def _layout(node: Node) -> _Layout | None:
    attrs = node.attrs
    first = 3 if node.kind == "aten::lstm.input" else 2  # behind the input and the states
    directions, layers = (2 if attrs.get("bidirectional") else 1), attrs.get("num_layers")
    if not isinstance(layers, int) or attrs.get("train") or layers < 1:
        return None
    step, rest = divmod(len(node.inputs) - first, directions * layers)  # weights, biases, perhaps a projection
    biased = bool(attrs.get("has_biases"))
    if rest or step not in ((4, 5) if biased else (2, 3)):
        return None
    weights = [first + direction * step for direction in range(directions)]
    return _Layout(first, step, weights, [slot + 2 for slot in weights] if biased else None)


def _wire_torch(node: Node, w: Wiring) -> None:
    layout, x = _layout(node), node.input(0)
    if layout is None or x is None:
        return w.pin_node(node)
    biases = [node.input(slot) for slot in layout.biases or []]
    if None in biases:
        return w.pin_node(node)
    if layout.biases is None and any(_rows(node, slot) is None for slot in _all_weights(node, layout)):
        w.zero_shift(x, "needs-bias", node)
    return _wire_input_side(node, w, [node.input(slot) for slot in layout.weights], biases)


def _all_weights(node: Node, layout: _Layout) -> range:
    """Slots of weight_ih of all layers and directions; weight_hh follows each."""
    return range(layout.first, len(node.inputs), layout.step)


def _rows(node: Node, slot: int) -> int | None:
    """Rows of the weight at `slot`, gates times hidden; None when they are not known."""
    value = node.input(slot)
    rows = value.shape[0] if value is not None and value.shape else None
    return rows if isinstance(rows, int) else None


def _absorb_torch(node: Node, g: Regauge) -> None:
    layout, x = _layout(node), node.inputs[0]
    assert layout is not None and x is not None
    added: list[Floats] = []
    for slot in layout.weights:
        value = node.inputs[slot]
        assert value is not None and value.const is not None
        weight = value.const.float64()
        s, t = g.channels(x, weight.shape[1])
        if g.rescales(x):
            g.replace(node, slot, weight / s)
        added.append(weight @ (t / s))
    if not any(item.any() for item in added):
        return None
    if layout.biases is None:
        return _give_biases(node, layout, added, g)
    for slot, item in zip(layout.biases, added, strict=True):
        bias = node.inputs[slot]
        assert bias is not None and bias.const is not None
        g.replace(node, slot, bias.const.float64() - item)
    return None


def _give_biases(node: Node, layout: _Layout, added: list[Floats], g: Regauge) -> None:
    """-`added`, one a direction, as the first layer's bias_ih; zeros elsewhere: torch has biases everywhere or nowhere."""
    starts = _all_weights(node, layout)
    rows = [_rows(node, start) for start in starts]
    inputs = list(node.inputs[: layout.first])
    for start in starts:
        inputs += [*node.inputs[start : start + 2], None, None, *node.inputs[start + 2 : start + layout.step]]
    for slot, value in enumerate(inputs):
        g.graph.set_input(node, slot, value)
    node.attrs["has_biases"] = True
    for number, count in enumerate(rows):
        start = layout.first + number * (layout.step + 2)
        like = node.inputs[start]
        assert like is not None and count is not None
        g.give_bias(node, start + 2, -added[number] if number < len(added) else np.zeros(count), like)
        g.give_bias(node, start + 3, np.zeros(count), like)
        if number < len(added):
            g.note_bias(node, like)


RULES = (
    *(OpRule(kind, _wire_onnx, _absorb_onnx) for kind in ("LSTM", "GRU", "RNN")),
    *(OpRule(f"aten::{kind}.input", _wire_torch, _absorb_torch) for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")),
)
