"""Recurrent cells written by hand: those that are one LSTM, GRU or RNN in other words, and those that only look like one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from routes import randomised

State = tuple[Tensor, ...]


class Cell(nn.Module):
    """One step: (x_t, state) -> state, of which the first part is h."""

    states = 1
    gates = 1

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.x2h = nn.Linear(inputs, self.gates * hidden)
        self.h2h = nn.Linear(hidden, self.gates * hidden, bias=False)

    def forward(self, x: Tensor, state: State) -> State:
        raise NotImplementedError


class Normed(Cell):
    """BN(W x) + BN(U h) + b (Cooijmans et al. 2017)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.bn_x, self.bn_h = nn.BatchNorm1d(self.gates * hidden), nn.BatchNorm1d(self.gates * hidden)
        self.bias = nn.Parameter(torch.randn(self.gates * hidden) * 0.3)

    def sums(self, x: Tensor, h: Tensor) -> Tensor:
        return self.bn_h(self.h2h(h)) + self.bn_x(self.x2h(x)) + self.bias


# ---- LSTM ----------------------------------------------------------------------------------------------------------------------


class PlainLSTM(Cell):
    states, gates = 2, 4

    def forward(self, x: Tensor, state: State) -> State:
        i, f, g, o = (self.x2h(x) + self.h2h(state[0])).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class BNLSTM(Normed):
    """Gates in an order of their own."""

    states, gates = 2, 4

    def forward(self, x: Tensor, state: State) -> State:
        f, i, o, g = self.sums(x, state[0]).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class OneSigmoid(Normed):
    """All sigmoids at once, gates picked out of [B, 4, H]; operands the other way round; a forget bias added at each step."""

    states, gates = 2, 4

    def forward(self, x: Tensor, state: State) -> State:
        gates = self.sums(x, state[0]).view(x.shape[0], 4, self.hidden)
        i, o, f = torch.sigmoid(gates[:, 1:] + torch.tensor([0.0, 0.0, 1.0]).view(3, 1)).unbind(1)
        c = torch.tanh(gates[:, 0]) * i + state[1] * f
        return torch.tanh(c) * o, c


class FourLinears(nn.Module):
    """Each gate from a layer of [x, h] of its own."""

    states = 2

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(nn.Linear(inputs + hidden, hidden) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(4))

    def forward(self, x: Tensor, state: State) -> State:
        joined = torch.cat([x, state[0]], 1)
        g, o, f, i = (norm(layer(joined)) for layer, norm in zip(self.layers, self.norms, strict=True))
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class OneState(PlainLSTM):
    """h and c carried in one tensor."""

    states = 1

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.hidden = 2 * hidden

    def forward(self, x: Tensor, state: State) -> State:
        return (torch.cat(super().forward(x, state[0].chunk(2, 1)), 1),)


class Library(nn.Module):
    """nn.LSTMCell, nn.GRUCell, nn.RNNCell."""

    def __init__(self, kind: type[Any], inputs: int, hidden: int, **options: Any) -> None:
        super().__init__()
        self.cell, self.hidden = kind(inputs, hidden, **options), hidden
        self.states = 2 if kind is nn.LSTMCell else 1

    def forward(self, x: Tensor, state: State) -> State:
        new = self.cell(x, state if self.states == 2 else state[0])
        return new if self.states == 2 else (new,)


# ---- GRU and RNN ---------------------------------------------------------------------------------------------------------------


class GRU(Cell):
    """The reset gate behind the product, as torch has it; norms on both sides."""

    gates = 3

    def __init__(self, inputs: int, hidden: int, turned: bool = False) -> None:
        super().__init__(inputs, hidden)
        self.turned = turned
        self.bn_x, self.bn_h = nn.BatchNorm1d(3 * hidden), nn.BatchNorm1d(3 * hidden)

    def forward(self, x: Tensor, state: State) -> State:
        (h,) = state
        n_x, r_x, z_x = self.bn_x(self.x2h(x)).chunk(3, 1)
        n_h, r_h, z_h = self.bn_h(self.h2h(h)).chunk(3, 1)
        z, r = torch.sigmoid(z_x + z_h), torch.sigmoid(r_x + r_h)
        n = torch.tanh(n_x + r * n_h)
        return (z * n + (1 - z) * h if self.turned else (1 - z) * n + z * h,)


class GRUFirst(Cell):
    """The reset gate in front of the product (Cho et al. 2014)."""

    gates = 2

    def __init__(self, inputs: int, hidden: int, turned: bool = False) -> None:
        super().__init__(inputs, hidden)
        self.turned = turned
        self.bn = nn.BatchNorm1d(2 * hidden)
        self.new_x, self.new_h = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.bn_n = nn.BatchNorm1d(hidden)

    def forward(self, x: Tensor, state: State) -> State:
        (h,) = state
        z, r = torch.sigmoid(self.bn(self.x2h(x) + self.h2h(h))).chunk(2, 1)
        n = torch.tanh(self.new_x(x) + self.bn_n(self.new_h(r * h)))
        return (h + z * (n - h) if self.turned else n + z * (h - n),)


class RNN(Normed):
    def __init__(self, inputs: int, hidden: int, activation: str = "tanh") -> None:
        super().__init__(inputs, hidden)
        self.activation = getattr(torch, activation)

    def forward(self, x: Tensor, state: State) -> State:
        return (self.activation(0.5 * self.sums(x, state[0])),)


# ---- what is none of the three -------------------------------------------------------------------------------------------------


class NormOnCell(BNLSTM):
    """Cooijmans et al. in full: h = o tanh(BN(c))."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.bn_c = nn.BatchNorm1d(hidden)

    def forward(self, x: Tensor, state: State) -> State:
        f, i, o, g = self.sums(x, state[0]).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.bn_c(c)), c


class NormedCell(NormOnCell):
    """The cell state itself is normalised."""

    def forward(self, x: Tensor, state: State) -> State:
        f, i, o, g = self.sums(x, state[0]).chunk(4, 1)
        c = self.bn_c(torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(c), c


class Peephole(BNLSTM):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.peep = nn.Parameter(torch.randn(hidden))

    def forward(self, x: Tensor, state: State) -> State:
        f, i, o, g = self.sums(x, state[0]).chunk(4, 1)
        c = torch.sigmoid(f + self.peep * state[1]) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Coupled(BNLSTM):
    def forward(self, x: Tensor, state: State) -> State:
        _, i, o, g = self.sums(x, state[0]).chunk(4, 1)
        i = torch.sigmoid(i)
        c = (1 - i) * state[1] + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class HardSigmoid(BNLSTM):
    def forward(self, x: Tensor, state: State) -> State:
        f, i, o, g = self.sums(x, state[0]).chunk(4, 1)
        gate = nn.functional.hardsigmoid
        c = gate(f) * state[1] + gate(i) * torch.tanh(g)
        return gate(o) * torch.tanh(c), c


class LayerNormed(BNLSTM):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.ln = nn.LayerNorm(4 * hidden)

    def forward(self, x: Tensor, state: State) -> State:
        f, i, o, g = self.ln(self.sums(x, state[0])).chunk(4, 1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Residual(BNLSTM):
    """h = o tanh(c) + h before."""

    def forward(self, x: Tensor, state: State) -> State:
        h, c = super().forward(x, state)
        return h + state[0], c


class Leaking(BNLSTM):
    """Every row of the batch reads the mean state of all."""

    def forward(self, x: Tensor, state: State) -> State:
        return super().forward(x, (state[0] - state[0].mean(0, keepdim=True), state[1]))


class Shuffled(BNLSTM):
    """Every row of the batch reads the state of another."""

    def forward(self, x: Tensor, state: State) -> State:
        return super().forward(x, (torch.cat([state[0][1:], state[0][:1]]), state[1]))


class NoReset(Cell):
    """A minimal gated unit: h' = (1 - z) tanh(W x + U h) + z h."""

    gates = 2

    def forward(self, x: Tensor, state: State) -> State:
        z, n = (self.x2h(x) + self.h2h(state[0])).chunk(2, 1)
        z = torch.sigmoid(z)
        return ((1 - z) * torch.tanh(n) + z * state[0],)


# ---- loops ---------------------------------------------------------------------------------------------------------------------


class Loop(nn.Module):
    """A Python loop over x [B, T, I].

    give: "last", "all" (what the head makes of the last h, of every h), "states" (also the last states), "heads" (a head a step).
    """

    def __init__(self, cell: Any, give: str = "last", *, reverse: bool = False, learnt: bool = False) -> None:
        super().__init__()
        self.give, self.reverse = give, reverse
        self.cell: Any = cell
        self.head = nn.Linear(cell.hidden, 3)
        self.first = nn.ParameterList(nn.Parameter(torch.randn(1, cell.hidden)) for _ in range(cell.states if learnt else 0))

    def start(self, x: Tensor) -> State:
        if len(self.first):
            return tuple(item.expand(x.shape[0], -1) for item in self.first)
        return tuple(x.new_zeros(x.shape[0], self.cell.hidden) for _ in range(self.cell.states))

    def states(self, x: Tensor, state: State) -> tuple[list[Tensor], State]:
        steps: list[Tensor] = []
        times = range(x.shape[1])
        for t in reversed(times) if self.reverse else times:
            state = self.cell(x[:, t], state)
            steps.append(state[0])
        return steps[::-1] if self.reverse else steps, state

    def forward(self, x: Tensor, *given: Tensor) -> Any:
        steps, state = self.states(x, given or self.start(x))
        if self.give == "heads":
            return torch.stack([self.head(torch.relu(self.head.bias.sum() + h)) for h in steps], 1)
        if self.give == "states":
            return self.head(state[0]), *state
        return self.head(torch.stack(steps, 1) if self.give == "all" else state[0])


class Both(nn.Module):
    """Two directions by hand; with `layers` two of such layers."""

    def __init__(self, make: Any, inputs: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        sizes = [inputs, *[2 * hidden] * (layers - 1)]
        self.forwards = nn.ModuleList(Loop(make(size, hidden)) for size in sizes)
        self.backwards = nn.ModuleList(Loop(make(size, hidden), reverse=True) for size in sizes)
        self.head = nn.Linear(2 * hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(len(self.forwards)):
            loops: list[Any] = [self.forwards[layer], self.backwards[layer]]
            a, b = (loop.states(x, loop.start(x))[0] for loop in loops)
            x = torch.stack([torch.cat(pair, 1) for pair in zip(a, b, strict=True)], 1)
        return self.head(x)


class Stacked(nn.Module):
    """Two layers in one loop over time."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = Loop(first), Loop(second)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.first.start(x), self.second.start(x)
        for t in range(x.shape[1]):
            one = self.first.cell(x[:, t], one)
            two = self.second.cell(one[0], two)
        return self.second.head(two[0])


class Projected(nn.Module):
    """W x + b for all steps at once, before the loop."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.loop = Loop(BNLSTM(4 * hidden, hidden))
        self.project = nn.Linear(inputs, 4 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(self.project(x) + 0.5)


class Reads(Loop):
    """What c was at every step is read."""

    def forward(self, x: Tensor, *given: Tensor) -> Any:
        state, read = self.start(x), []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            read.append(state[1])
        return self.head(torch.stack(read, 1)), state[0]


class PerStep(nn.Module):
    """Statistics of their own at every step."""

    def __init__(self, steps: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.loop = Loop(BNLSTM(inputs, hidden))
        self.norms = nn.ModuleList(nn.BatchNorm1d(4 * hidden) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        cell, state = self.loop.cell, self.loop.start(x)
        for t in range(x.shape[1]):
            norm: Any = self.norms[t]
            f, i, o, g = (norm(cell.h2h(state[0])) + cell.x2h(x[:, t])).chunk(4, 1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(c), c
        return self.loop.head(state[0])


def made(module: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with statistics that look trained."""
    return randomised(module, seed=seed)
