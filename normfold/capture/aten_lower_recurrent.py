"""LSTM, GRU and RNN of the view in ATen: torch's gate order, weights as parameters of their own, reversed sequences by flips.

    LSTM   i, o, f, c  ->  i, f, g, o          GRU   z, r, h  ->  r, z, n          one direction, no peepholes, no lengths

A GRU with linear_before_reset = 0 has no twin in ATen: it is written step by step.
"""

from __future__ import annotations

import operator

import numpy as np
import torch
from torch.fx import Node as FxNode

from normfold.capture.aten_lower import Emitter, lowering
from normfold.graph import Array, Node

aten = torch.ops.aten

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_KNOWN = frozenset(("hidden_size", "direction", "linear_before_reset", "activations"))


@lowering(*_ORDER)
def _recurrent(e: Emitter, node: Node) -> list[FxNode]:
    attrs, order = node.attrs, _ORDER[node.kind]
    activations = tuple(str(name) for name in attrs.get("activations") or ())
    plain = not activations or (node.kind == "RNN" and activations in (("Tanh",), ("Relu",)))
    direction = attrs.get("direction", "forward")
    if not plain or direction == "bidirectional" or node.input(4) is not None or node.input(7) is not None or set(attrs) - _KNOWN:
        raise ValueError(f"{node!r}: ATen has no {node.kind} like it")
    x, hidden = e.input(node), int(attrs["hidden_size"])
    if direction == "reverse":
        x = e.step(aten.flip.default, x, [0])
    states = [_start(e, node, slot, x, hidden) for slot in ((5, 6) if node.kind == "LSTM" else (5,))]
    if node.kind == "GRU" and not attrs.get("linear_before_reset"):
        results = _gru_unrolled(e, node, x, states[0], hidden)
    else:
        weights = _weights(e, node, order, hidden)
        options = (len(weights) == 4, 1, 0.0, False, False, False)
        targets = {"LSTM": aten.lstm.input, "GRU": aten.gru.input, "RNN": aten.rnn_tanh.input}
        target = aten.rnn_relu.input if activations == ("Relu",) else targets[node.kind]
        called = e.step(target, x, states if node.kind == "LSTM" else states[0], weights, *options)
        results = [e.step(operator.getitem, called, place) for place in range(len(states) + 1)]
    every = results[0]
    if direction == "reverse":
        every = e.step(aten.flip.default, every, [0])
    return [e.call(aten.unsqueeze.default, every, 1), *results[1:]]


def _start(e: Emitter, node: Node, slot: int, x: FxNode, hidden: int) -> FxNode:
    given = e.optional(node, slot)
    return e.step(aten.new_zeros.default, x, [1, e.size(x, 1), hidden], pin_memory=False) if given is None else given


def _arrays(node: Node, order: tuple[int, ...], hidden: int) -> list[Array]:
    """W [g H, I], R [g H, H] and, where there are any, the biases [g H] of both, in torch's order."""
    found: list[Array] = []
    for slot in (1, 2, 3):
        value = node.input(slot)
        if value is None:
            continue
        if value.const is None or value.shape is None or value.shape[0] != 1:
            raise ValueError(f"{node!r}: its weights must be constants of one direction")
        array = value.const.read()[0]
        for part in np.split(array, 2) if slot == 3 else [array]:
            gates = part.reshape(len(order), hidden, *part.shape[1:])
            found.append(np.ascontiguousarray(gates[list(order)].reshape(part.shape)))
    return found


def _weights(e: Emitter, node: Node, order: tuple[int, ...], hidden: int) -> list[FxNode]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    slots = (1, 2, 3, 3)
    arrays = zip(names, slots, _arrays(node, order, hidden), strict=False)
    return [e.constant(node, slot, name, array) for name, slot, array in arrays]


def _gru_unrolled(e: Emitter, node: Node, x: FxNode, start: FxNode, hidden: int) -> list[FxNode]:
    """n = tanh(W x + R (r h) + b): the reset gate acts on h, step by step."""
    count = x.meta["val"].shape[0]
    if not isinstance(count, int):
        raise ValueError(f"{node!r}: ATen has no GRU that resets h before the product, and its length is not fixed")
    arrays = _arrays(node, (0, 1, 2), hidden)
    w = e.constant(node, 1, "weight_ih", arrays[0])
    biases = [e.constant(node, 3, "bias_ih", arrays[2])] if len(arrays) > 2 else []
    gates_r = e.constant(node, 2, "weight_hh_gates", arrays[1][: 2 * hidden])
    new_r = e.constant(node, 2, "weight_hh_new", arrays[1][2 * hidden :])
    gates_b = [e.constant(node, 3, "bias_hh_gates", arrays[3][: 2 * hidden])] if biases else []
    new_b = [e.constant(node, 3, "bias_hh_new", arrays[3][2 * hidden :])] if biases else []
    projected = e.step(aten.linear.default, x, w, *biases)
    h = e.step(aten.squeeze.dim, start, 0)
    steps: list[FxNode] = []
    for t in range(count):
        row = e.step(aten.select.int, projected, 0, t)
        gates = e.step(aten.linear.default, h, gates_r, *gates_b)
        both = e.step(aten.sigmoid.default, e.step(aten.add.Tensor, e.step(aten.slice.Tensor, row, 1, 0, 2 * hidden), gates))
        z = e.step(aten.slice.Tensor, both, 1, 0, hidden)
        reset = e.step(aten.mul.Tensor, e.step(aten.slice.Tensor, both, 1, hidden, 2 * hidden), h)
        inner = e.step(aten.linear.default, reset, new_r, *new_b)
        own = e.step(aten.slice.Tensor, row, 1, 2 * hidden, 3 * hidden)
        new = e.step(aten.tanh.default, e.step(aten.add.Tensor, own, inner))
        h = e.step(aten.add.Tensor, new, e.step(aten.mul.Tensor, z, e.step(aten.sub.Tensor, h, new)))
        steps.append(e.step(aten.unsqueeze.default, h, 0))
    return [e.step(aten.cat.default, steps, 0), steps[-1]]
