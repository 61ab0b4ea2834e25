"""Rules of LSTM, GRU and RNN: their input weights absorb any gauge; judged by the certificate and by both routes."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from build import Builder
from judge import judged, outcome, rewritten
from normfold.capture.aten_write import to_program
from normfold.graph import Value
from normfold.rewrites import affine
from normfold.rewrites.rewrite import Policy
from routes import aten, by_onnx, randomised

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
H = 3


def source(b: Builder, layout: int = 0) -> Value:
    """[T, N, 5] (or [N, T, 5]) out of a BN that nothing in front of it can absorb."""
    y = b.bn(b.op("Sigmoid", b.input("x", ("N", 5, "T")), shape=("N", 5, "T")), signed=True, name="bn")
    return b.op("Transpose", y, shape=("N", "T", 5) if layout else ("T", "N", 5), perm=(0, 2, 1) if layout else (2, 0, 1))


def recurrent(
    b: Builder, kind: str, x: Value, direction: str = "forward", bias: bool = True, rest: Any = (), **attrs: Any
) -> Value:
    directions, rows = 2 if direction == "bidirectional" else 1, GATES[kind] * H
    inputs = [x, b.weight(directions, rows, 5), b.weight(directions, rows, H)]
    inputs += [b.weight(directions, 2 * rows) if bias else None, *rest]
    shape = ("N", "T", directions, H) if attrs.get("layout") else ("T", directions, "N", H)
    return b.op(kind, *inputs, shape=shape, direction=direction, hidden_size=H, **{"layout": 0} | attrs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", GATES)
def test_the_input_weights_take_up_what_stands_in_front(kind: str, direction: str, bias: bool) -> None:
    b = Builder()
    b.output(recurrent(b, kind, source(b), direction, bias))
    result = rewritten(b.graph, "latency")
    assert [fate.outcome for fate in result.fates] == ["deleted"]


@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize("form", [{"clip": 0.5}, {"layout": 1}, {"activations": ("HardSigmoid", "Softsign")}])
def test_forms_of_gru(form: dict[str, Any], reset: int) -> None:
    b = Builder()
    y = recurrent(b, "GRU", source(b, form.get("layout", 0)), linear_before_reset=reset, **form)
    assert outcome(b, y, "latency") == "deleted"


def test_a_weight_shared_by_two_cells_needs_one_gauge() -> None:
    b = Builder()
    outputs = []
    weight, inner = b.weight(1, 4 * H, 5), b.weight(1, 4 * H, H)
    for name in ("x", "z"):
        y = b.bn(b.op("Sigmoid", b.input(name, ("N", 5, "T")), shape=("N", 5, "T")), name=f"bn_{name}")
        y = b.op("Transpose", y, shape=("T", "N", 5), perm=(2, 0, 1))
        outputs.append(b.op("LSTM", y, weight, inner, shape=("T", 1, "N", H), direction="forward", hidden_size=H, layout=0))
    b.output(*outputs)
    outcomes = [fate.outcome for fate in judged(b.graph).values()]
    assert outcomes.count("deleted") == 1


def test_states_and_outputs_keep_their_gauge() -> None:
    b = Builder()
    state = b.bn(b.op("Sigmoid", b.input("h", (1, H, 2)), shape=(1, H, 2)), name="bn")
    state = b.op("Transpose", state, shape=(1, 2, H), perm=(0, 2, 1))
    y = recurrent(b, "GRU", b.input("x", ("T", 2, 5)), rest=[None, state])
    assert outcome(b, y) == "kept"
    b = Builder()
    y = recurrent(b, "LSTM", b.input("x", ("T", 2, 5)))
    y = b.op("Squeeze", y, shape=("T", 2, H), axes=(1,))
    y = b.op("Transpose", y, shape=("T", H, 2), perm=(0, 2, 1))
    assert outcome(b, b.op("Sigmoid", b.bn(y, name="bn"), shape=("T", H, 2))) == "kept"


@pytest.mark.parametrize("slot", [1, 3])
@pytest.mark.parametrize("how", ["overridable", "computed"])
def test_weights_that_are_not_ours_pin(slot: int, how: str) -> None:
    b = Builder()
    y = recurrent(b, "RNN", source(b))
    node = y.producer
    assert node is not None
    value = node.inputs[slot]
    assert value is not None
    if how == "overridable":
        b.graph.pinned.add(value)
    else:
        b.graph.set_input(node, slot, b.input("given", value.shape or ()))
    assert outcome(b, y) == "kept"


def test_lengths_change_nothing() -> None:
    b = Builder()
    y = recurrent(b, "LSTM", source(b), "bidirectional", rest=[b.graph.constant("lengths", np.array([2, 1], np.int32))])
    assert outcome(b, y) == "deleted"


class _Between(nn.Module):
    """BN, a recurrent layer, BN, Linear."""

    def __init__(self, cell: nn.Module, size: int) -> None:
        super().__init__()
        self.before, self.cell, self.after, self.end = nn.BatchNorm1d(5), cell, nn.BatchNorm1d(size), nn.Linear(size, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.cell(self.before(torch.tanh(x)).transpose(1, 2))
        return self.end(self.after(y.transpose(1, 2)).transpose(1, 2))


CELLS: dict[str, tuple[Any, int]] = {
    "lstm": (lambda: nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True), 8),
    "gru": (lambda: nn.GRU(5, 4, batch_first=True), 4),
    "rnn": (lambda: nn.RNN(5, 4, nonlinearity="relu", batch_first=True), 4),
    "tanh rnn": (lambda: nn.RNN(5, 4, batch_first=True, bidirectional=True), 8),
    "lstm without bias": (lambda: nn.LSTM(5, 4, 2, bias=False, batch_first=True, bidirectional=True), 8),
    "gru without bias": (lambda: nn.GRU(5, 4, 2, bias=False, batch_first=True), 4),
    "rnn without bias": (lambda: nn.RNN(5, 4, bias=False, nonlinearity="relu", batch_first=True, bidirectional=True), 8),
    "lstm with projection, without bias": (lambda: nn.LSTM(5, 4, proj_size=2, bias=False, batch_first=True), 2),
    "lstm with projection": (lambda: nn.LSTM(5, 4, proj_size=2, batch_first=True), 2),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", CELLS)
def test_bn_lstm_bn_linear(name: str) -> None:
    make, size = CELLS[name]
    module, x = randomised(_Between(make(), size)), torch.randn(2, 5, 6)
    taken = aten(module, x)
    assert taken.error <= 2e-5
    assert taken.outcomes == ["deleted", "deleted"]
    assert all(finding.into for finding in taken.outcome.findings)
    if "rnn" in name or "projection" in name:
        return  # the exporter knows neither
    taken = by_onnx(module, x)
    assert taken.error <= 2e-5 and taken.outcomes == ["deleted", "deleted"]


def test_biases_that_torch_gets_are_called_as_it_calls_them() -> None:
    """The program is saved and loaded; its parameters fit the same module with biases."""
    module, x = randomised(_Between(nn.LSTM(5, 4, 2, bias=False, batch_first=True), 4)), torch.randn(2, 5, 6)
    stored = BytesIO()
    torch.export.save(to_program(aten(module, x).outcome.graph), stored)
    stored.seek(0)
    program = torch.export.load(stored)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), module(x), rtol=2e-5, atol=1e-6)
    mine = {name.removeprefix("cell."): item for name, item in program.state_dict.items() if name.startswith("cell.")}
    twin = nn.LSTM(5, 4, 2, batch_first=True)
    twin.load_state_dict(mine)
    assert all(isinstance(item, nn.Parameter) for item in mine.values())
    assert not any(mine[name].any() for name in ("bias_hh_l0", "bias_ih_l1", "bias_hh_l1")) and mine["bias_ih_l0"].all()


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({}, "deleted"),
        ({"train": True}, "kept"),
        ({"num_layers": 3}, "kept"),  # does not fit the number of parameters
        ({"has_biases": False}, "kept"),
    ],
)
def test_forms_of_torch_that_are_not_known_are_pinned(attrs: dict[str, Any], expected: str) -> None:
    b = Builder()
    form = {"has_biases": True, "num_layers": 2, "bidirectional": False, "train": False, "batch_first": False}
    sizes = ((9, 5), (9, 3), (9,), (9,), (9, 3), (9, 3), (9,), (9,))
    inputs = [source(b), b.const(np.zeros((2, 2, 3))), *(b.weight(*size) for size in sizes)]
    y, state = b.op("aten::gru.input", *inputs, shape=(("T", "N", 3), (2, "N", 3)), outputs=2, **form | attrs)
    b.output(y, state)
    assert [fate.outcome for fate in affine.run(b.graph, Policy("norms")).fates] == [expected]
