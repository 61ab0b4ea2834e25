"""Loops of two steps become one layer as longer ones do; what uses a block twice and is no loop stays what it is, unnamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import recurrent_cells as cells
from normfold.rewrites.recurrent_refusals import RECURRENT
from recurrent_cells import Loop, made
from routes import Taken, aten, by_onnx

INPUTS, H = 5, 3
LAYERS = ("LSTM", "GRU", "RNN")
Route = Callable[..., Taken]


def layers(taken: Taken) -> list[str]:
    return [node.kind for node in taken.outcome.graph.nodes if node.kind in LAYERS]


def x() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 2, INPUTS)


def open_batch() -> Any:
    return ({0: torch.export.Dim("B", min=1, max=64)},)


GOOD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lstm": (lambda: Loop(cells.BNLSTM(INPUTS, H), "all", reverse=True), "LSTM"),
    "lstm, states": (lambda: Loop(cells.BNLSTM(INPUTS, H), "states"), "LSTM"),
    "lstm, heads": (lambda: Loop(cells.BNLSTM(INPUTS, H), "heads"), "LSTM"),
    "nn.LSTMCell": (lambda: Loop(cells.Library(nn.LSTMCell, INPUTS, H)), "LSTM"),
    "gru": (lambda: Loop(cells.GRU(INPUTS, H), "all"), "GRU"),
    "gru, reset first": (lambda: Loop(cells.GRUFirst(INPUTS, H), reverse=True), "GRU"),
    "rnn": (lambda: Loop(cells.RNN(INPUTS, H), "all", reverse=True), "RNN"),
}
FAST = (("lstm", aten, False), ("lstm", by_onnx, True), ("gru", aten, True), ("gru", by_onnx, False), ("rnn", aten, False))
CASES = [
    case if case in FAST else pytest.param(*case, marks=pytest.mark.slow)
    for case in ((name, route, is_open) for name in GOOD for route in (aten, by_onnx) for is_open in (False, True))
]


@pytest.mark.parametrize(("name", "route", "is_open"), CASES)
def test_collapsed(name: str, route: Route, is_open: bool) -> None:
    torch.manual_seed(1)
    make, kind = GOOD[name]
    taken = route(made(make()), x(), dynamic=open_batch() if is_open else None)
    assert layers(taken) == [kind]
    assert not {"Tanh", "Sigmoid", "BatchNormalization"} & {node.kind for node in taken.outcome.graph.nodes}
    assert taken.error < 1e-6


def test_learnt_start() -> None:
    """Read at run time it is handed over; where an exporter has computed a part of step 0 from it nothing can be told."""
    torch.manual_seed(1)
    module = made(Loop(cells.BNLSTM(INPUTS, H), learnt=True))
    for dynamic, expected in ((open_batch(), ["LSTM"]), (None, [])):
        taken = aten(module, x(), dynamic=dynamic)
        assert layers(taken) == expected and taken.error < 1e-6 and not taken.codes


class TwoStarts(nn.Module):
    """One cell run twice over the same sequence, from two starts."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop(cells.BNLSTM(INPUTS, H), "states")

    def forward(self, x: Tensor, h: Tensor, c: Tensor, other: Tensor) -> Any:
        return (*self.loop(x, h, c), *self.loop(x, other, c))


def test_loops_that_differ_in_their_start_alone() -> None:
    taken = aten(made(TwoStarts()), x(), *(torch.randn(2, H) for _ in range(3)))
    assert layers(taken) == ["LSTM", "LSTM"] and taken.error < 1e-6


def test_start_that_is_broadcast() -> None:
    """One row of states for the whole batch: there is no step to leave in front of a layer."""
    taken = aten(made(Loop(cells.BNLSTM(INPUTS, H), "all")), x(), torch.randn(1, H), torch.randn(1, H))
    assert layers(taken) == [] and taken.error < 1e-6


def test_cells_that_no_layer_has() -> None:
    torch.manual_seed(1)
    taken = aten(made(Loop(cells.NormOnCell(INPUTS, H))), x())
    assert layers(taken) == [] and set(taken.codes) == {"cell-state-affine"}


class Shared(nn.Module):
    """One block on both elements of x; `way` says how they come together."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        # a norm on an input of the graph, before an activation: nothing takes it up
        self.norm, self.inner = nn.BatchNorm1d(INPUTS), nn.BatchNorm1d(INPUTS)
        self.one, self.two = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)

    def block(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.inner(self.one(torch.tanh(self.norm(x))))))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, 0], x[:, 1]
        if self.way == "siamese":
            return (self.block(a) - self.block(b)).abs()
        if self.way == "mlp":
            return self.block(torch.relu(self.block(b) + self.block(a)))
        if self.way == "chained":
            return self.block(b + self.block(a))
        if self.way == "residual block twice":
            y = a + b
            y = y + self.block(y)
            return y + self.block(y)
        h = x.new_zeros(2, INPUTS)
        if self.way == "one of two states":
            h = torch.tanh(self.norm(a) + self.one(h) + self.two(h))
            return torch.tanh(self.norm(b) + self.one(h) + self.two(torch.relu(self.inner(a))))
        for item in (a, b):  # a loop of two steps indeed, but of no cell
            h = torch.relu(torch.tanh(self.norm(item) + self.one(h)) - 0.1)
        return h


@pytest.mark.parametrize(
    "way", ["siamese", "mlp", "chained", "residual block twice", "one of two states", "two steps of no cell"]
)
def test_blocks_that_are_used_twice(way: str) -> None:
    torch.manual_seed(1)
    taken = aten(made(Shared(way)), x())
    assert layers(taken) == [] and not set(taken.codes) & set(RECURRENT)
    assert not any(item.rule == "collapse-recurrent" for item in taken.outcome.applied)
    assert taken.norms_left(), "norms that stay, and could be given a wrong reason"


class Frames(nn.Module):
    """Two frames of a video through one convolutional step, its state from frame to frame."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h, self.h2h = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4, *x.shape[3:])
        for frame in x.unbind(1):
            h = torch.tanh(self.norm(torch.relu(self.x2h(frame) + self.h2h(h))))
        return h


def test_frames() -> None:
    torch.manual_seed(1)
    taken = aten(made(Frames()), torch.randn(1, 2, 2, 4, 4), objective="latency")
    assert layers(taken) == [] and taken.norms_left() and not set(taken.codes) & set(RECURRENT)
