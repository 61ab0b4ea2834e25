"""nn.LSTMCell, nn.GRUCell and nn.RNNCell in operations that the view knows; torch keeps each as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear


def _lstm(x: Tensor, states: list[Tensor], *weights: Tensor) -> tuple[Tensor, Tensor]:
    h, c = states
    i, f, g, o = _gates(x, h, *weights).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gates(x: Tensor, h: Tensor, w: Tensor, r: Tensor, wb: Tensor | None = None, rb: Tensor | None = None) -> Tensor:
    return linear(x, w, wb) + linear(h, r, rb)


def _gru(x: Tensor, h: Tensor, w: Tensor, r: Tensor, wb: Tensor | None = None, rb: Tensor | None = None) -> Tensor:
    x_r, x_z, x_n = linear(x, w, wb).chunk(3, 1)
    h_r, h_z, h_n = linear(h, r, rb).chunk(3, 1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (h - n) * z + n


def _rnn_tanh(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    return torch.tanh(_gates(x, h, *weights))


def _rnn_relu(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
    return torch.relu(_gates(x, h, *weights))


CELLS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.lstm_cell.default: _lstm,
    torch.ops.aten.gru_cell.default: _gru,
    torch.ops.aten.rnn_tanh_cell.default: _rnn_tanh,
    torch.ops.aten.rnn_relu_cell.default: _rnn_relu,
}
