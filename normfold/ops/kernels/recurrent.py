"""LSTM, GRU and RNN with ONNX's gate orders, both directions, peepholes, clipping and sequence lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.activations import sigmoid, softplus
from normfold.ops.kernels.registry import integer, kernel, need, optional, text, unsupported

_Activation = Callable[[Array], Array]


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _softsign(x: Array) -> Array:
    return x / (1 + np.abs(x))


_PLAIN: dict[str, _Activation] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": _relu,
    "softplus": softplus,
    "softsign": _softsign,
}
# with (alpha, beta); the defaults are ONNX's
_PARAMETRIC: dict[str, tuple[Callable[[Array, float, float], Array], float, float]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, 1.0, 0.0),
    "leakyrelu": (lambda x, alpha, beta: np.where(x < 0, alpha * x, x), 0.01, 0.0),
    "thresholdedrelu": (lambda x, alpha, beta: np.where(x > alpha, x, 0), 1.0, 0.0),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), 0.2, 0.5),
    "elu": (lambda x, alpha, beta: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x), 1.0, 0.0),
}


def _activations(node: Node, defaults: tuple[str, ...], directions: int) -> list[list[_Activation]]:
    """One list of activations per direction.  Parameters are accepted only where their assignment is unambiguous."""
    names: Any = node.attrs.get("activations") or defaults * directions
    names = [name.decode().lower() if isinstance(name, bytes) else str(name).lower() for name in names]
    if len(names) != len(defaults) * directions:
        raise unsupported(node, f"activations {names}")
    alphas, betas = list(node.attrs.get("activation_alpha") or ()), list(node.attrs.get("activation_beta") or ())
    parametric = [name for name in names if name in _PARAMETRIC]
    if any(values and len(values) not in (len(parametric), len(names)) for values in (alphas, betas)):
        raise unsupported(node, f"{len(alphas)} activation_alpha and {len(betas)} activation_beta for {names}")
    functions: list[_Activation] = []
    used = 0
    for place, name in enumerate(names):
        if name in _PLAIN:
            functions.append(_PLAIN[name])
            continue
        if name not in _PARAMETRIC:
            raise unsupported(node, f"activation {name!r}")
        function, alpha, beta = _PARAMETRIC[name]
        if alphas:
            alpha = float(alphas[place if len(alphas) == len(names) else used])
        if betas:
            beta = float(betas[place if len(betas) == len(names) else used])
        used += 1
        functions.append(_bound(function, alpha, beta))
    step = len(defaults)
    return [functions[d * step : (d + 1) * step] for d in range(directions)]


def _bound(function: Callable[[Array, float, float], Array], alpha: float, beta: float) -> _Activation:
    return lambda x: function(x, alpha, beta)


@dataclass(frozen=True)
class _Cell:
    """One direction: weights W [g H, I], R [g H, H], bias Wb, Rb [g H], peephole P, activations, clip."""

    w: Array
    r: Array
    wb: Array
    rb: Array
    p: Array | None
    f: list[_Activation]
    clip: float | None
    coupled: bool = False
    before_reset: bool = True

    def bound(self, x: Array) -> Array:
        """Clipped to [-clip, clip], where the node asks for it."""
        return x if self.clip is None else np.clip(x, -self.clip, self.clip)


_State = tuple[Array, ...]
_Step = Callable[[_Cell, Array, _State], _State]


def _rnn_step(cell: _Cell, x: Array, state: _State) -> _State:
    """h = f(x W^T + h R^T + b)."""
    (h,) = state
    return (cell.f[0](cell.bound(x + h @ cell.r.T + cell.rb)),)


def _gru_step(cell: _Cell, x: Array, state: _State) -> _State:
    """Gates z, r, h; h' = (1 - z) g + z h."""
    (h,) = state
    n = h.shape[-1]
    recurrent = h @ cell.r[: 2 * n].T + cell.rb[: 2 * n]
    z = cell.f[0](cell.bound(x[:, :n] + recurrent[:, :n]))
    r = cell.f[0](cell.bound(x[:, n : 2 * n] + recurrent[:, n:]))
    if cell.before_reset:  # linear_before_reset 0: the reset gate acts on h
        inner = (r * h) @ cell.r[2 * n :].T + cell.rb[2 * n :]
    else:
        inner = r * (h @ cell.r[2 * n :].T + cell.rb[2 * n :])
    g = cell.f[1](cell.bound(x[:, 2 * n :] + inner))
    return ((1 - z) * g + z * h,)


def _lstm_step(cell: _Cell, x: Array, state: _State) -> _State:
    """Gates i, o, f, c; c' = f c + i g, h' = o h(c')."""
    h, c = state
    gates = x + h @ cell.r.T + cell.rb
    i, o, f, g = np.split(gates, 4, axis=1)
    pi, po, pf = (0, 0, 0) if cell.p is None else np.split(cell.p, 3)
    i = cell.f[0](cell.bound(i + pi * c))
    f = 1 - i if cell.coupled else cell.f[0](cell.bound(f + pf * c))
    c = f * c + i * cell.f[1](cell.bound(g))
    o = cell.f[0](cell.bound(o + po * c))
    return (o * cell.f[2](c), c)


def _direction(cell: _Cell, step: _Step, x: Array, state: _State, lengths: Array, reverse: bool) -> tuple[Array, _State]:
    """x [T, N, I] -> every h [T, N, H] (0 behind a sequence's end) and the last state."""
    projected = x @ cell.w.T + cell.wb
    every = np.zeros((*x.shape[:2], state[0].shape[-1]), dtype=x.dtype)
    for t in range(x.shape[0]):
        # a reversed sequence is walked from its own last step to its first
        place = np.where(t < lengths, lengths - 1 - t if reverse else t, t)
        rows = np.arange(x.shape[1])
        alive = (t < lengths)[:, None]
        new = step(cell, projected[place, rows], state)
        state = tuple(np.where(alive, fresh, old) for fresh, old in zip(new, state, strict=True))
        every[place, rows] = np.where(alive, state[0], 0)
    return every, state


def _run(
    node: Node, arrays: list[Array | None], gates: int, defaults: tuple[str, ...], step: _Step, *, cell_slot: int | None = None
) -> list[Array]:
    x, w, r = (need(node, arrays, slot) for slot in range(3))
    bias, lengths, first_h = optional(arrays, 3), optional(arrays, 4), optional(arrays, 5)
    hidden, layout, clip = r.shape[2], integer(node, "layout", 0), node.attrs.get("clip")
    direction = text(node, "direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise unsupported(node, f"direction {direction!r}")
    if w.shape[1] != gates * hidden or integer(node, "hidden_size", hidden) != hidden:
        raise unsupported(node, f"hidden_size {node.attrs.get('hidden_size')} and weights {list(w.shape)}, {list(r.shape)}")
    if w.shape[0] != (2 if direction == "bidirectional" else 1):
        raise unsupported(node, f"direction {direction!r} and {w.shape[0]} sets of weights")
    x = np.swapaxes(x, 0, 1) if layout else x
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else lengths
    activations = _activations(node, defaults, w.shape[0])
    sequences: list[Array] = []
    finals: list[_State] = []
    for d in range(w.shape[0]):
        both = np.zeros(2 * gates * hidden, dtype=x.dtype) if bias is None else bias[d]
        peephole = optional(arrays, 7) if cell_slot is not None else None
        cell = _Cell(
            w[d], r[d], both[: gates * hidden], both[gates * hidden :], None if peephole is None else peephole[d],
            activations[d], None if clip is None else float(clip), bool(integer(node, "input_forget", 0)),
            not integer(node, "linear_before_reset", 0),
        )  # fmt: skip
        starts = [first_h] if cell_slot is None else [first_h, optional(arrays, cell_slot)]
        state = tuple(_start(item, d, batch, hidden, layout, x) for item in starts)
        reverse = direction == "reverse" or d == 1
        every, state = _direction(cell, step, x, state, lengths, reverse)
        sequences.append(every)
        finals.append(state)
    y = np.stack(sequences, axis=1)  # [T, D, N, H]
    last = [np.stack([state[i] for state in finals]) for i in range(len(finals[0]))]
    if layout:
        y, last = y.transpose(2, 0, 1, 3), [np.swapaxes(item, 0, 1) for item in last]
    return [y, *last][: max(1, len(node.outputs))]


def _start(state: Array | None, d: int, batch: int, hidden: int, layout: int, x: Array) -> Array:
    if state is None:
        return np.zeros((batch, hidden), dtype=x.dtype)
    return state[:, d] if layout else state[d]


_COMMON = "activation_alpha activation_beta activations clip direction hidden_size layout"


@kernel("RNN", attrs=_COMMON)
def rnn(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x [T, N, I], W [D, H, I], R [D, H, H], B [D, 2H] -> y [T, D, N, H], y_h [D, N, H]."""
    return _run(node, arrays, 1, ("Tanh",), _rnn_step)


@kernel("GRU", attrs=f"{_COMMON} linear_before_reset")
def gru(node: Node, arrays: list[Array | None]) -> list[Array]:
    """As RNN with the gates z, r, h."""
    return _run(node, arrays, 3, ("Sigmoid", "Tanh"), _gru_step)


@kernel("LSTM", attrs=f"{_COMMON} input_forget")
def lstm(node: Node, arrays: list[Array | None]) -> list[Array]:
    """As RNN with the gates i, o, f, c, peepholes [D, 3H] and a third output y_c."""
    return _run(node, arrays, 4, ("Sigmoid", "Tanh", "Tanh"), _lstm_step, cell_slot=6)
