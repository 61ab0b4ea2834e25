"""Unrolled loops of ONNX files: how exporters take x_t and put steps together, and what the file says afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import recurrent_cells as cells
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array
from normfold.rewrites import collapse_recurrent
from normfold.rewrites.rewrite import Policy, Rewritten
from normfold.verify.certificate import certificate
from recurrent_cells import Loop, made
from routes import exported, flat, run_onnx

T, HIDDEN = 4, 3


def collapse(model: onnx.ModelProto, feeds: dict[str, Array]) -> Rewritten:
    """Collapse, hold the result to the certificate, and run the written file against the original."""
    graph = from_onnx(model)
    tidy(graph)
    result = collapse_recurrent.run(graph, Policy("norms"))
    failed = [item for item in certificate(graph, result.graph, feeds) if not item.passed]
    assert not failed, failed[:3]
    data = proto_bytes(to_model(result.graph))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for one, two in zip(run_onnx(model.SerializeToString(), feeds), run_onnx(data, feeds), strict=True):
        np.testing.assert_allclose(two, one, rtol=2e-5, atol=2e-6)
    return result


def count(result: Rewritten, kind: str) -> int:
    return sum(node.kind == kind for node in result.graph.nodes)


@pytest.mark.parametrize("optimize", [False, True])
def test_exported(optimize: bool) -> None:
    """What the exporter has computed of step 0 stays in front of the layer."""
    torch.manual_seed(1)
    module, x = made(Loop(cells.BNLSTM(5, HIDDEN), "all", reverse=True)), torch.randn(2, T, 5)
    model = exported(module, x)
    if optimize:
        program = torch.onnx.export(module, (x,), dynamo=True, optimize=True, verbose=False)
        assert program is not None
        model = program.model_proto
    result = collapse(model, {model.graph.input[0].name: x.numpy()})
    assert count(result, "LSTM") == 1 and count(result, "BatchNormalization") <= 1
    assert len(result.graph.nodes) <= 24


def test_open_batch() -> None:
    torch.manual_seed(1)
    module = made(Loop(cells.GRUFirst(5, HIDDEN), "all"))
    model = exported(module, torch.randn(2, T, 5), dynamic=({0: torch.export.Dim("B")},))
    result = collapse(model, {model.graph.input[0].name: torch.randn(6, T, 5).numpy()})
    assert [node.kind for node in result.graph.nodes if node.kind in ("GRU", "Tanh", "BatchNormalization", "Gather")] == ["GRU"]


class Unrolled(nn.Module):
    """nn.RNN, which the exporter unrolls."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, HIDDEN, num_layers=2, bidirectional=True, batch_first=True, nonlinearity="relu")

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x)


@pytest.mark.slow
def test_rnn_that_the_exporter_unrolled() -> None:
    torch.manual_seed(1)
    model = exported(made(Unrolled()), torch.randn(2, T, 5), dynamic=({0: torch.export.Dim("B")},))
    result = collapse(model, {model.graph.input[0].name: torch.randn(6, T, 5).numpy()})
    kinds = [node.kind for node in result.graph.nodes]
    assert kinds.count("RNN") == 4 and not {"Relu", "MatMul", "Gemm"} & set(kinds)


class Taken(nn.Module):
    """x_t taken from [B, T, I] in the ways people write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.loop = way, Loop(cells.PlainLSTM(4, HIDDEN))

    def steps(self, x: Tensor) -> list[Tensor]:
        if self.way == "slices":
            return [x[:, t : t + 1].squeeze(1) for t in range(T)]
        if self.way == "unbind":
            return list(x.unbind(1))
        if self.way == "split":
            return [part.squeeze(1) for part in x.split(1, 1)]
        if self.way == "time first":
            return [x.transpose(0, 1)[t] for t in range(T)]
        if self.way == "from the end":
            return [x[:, t - T] for t in range(T)]
        if self.way == "maps":
            return [x.view(-1, T, 2, 2)[:, t].flatten(1) for t in range(T)]
        if self.way == "columns":
            return [x.transpose(1, 2)[:, :, t] for t in range(T)]
        return [x[:, t : t + 1].view(-1, 4) for t in range(T)]

    def forward(self, x: Tensor) -> Any:
        state, steps = self.loop.start(x), []
        for step in self.steps(x):
            state = self.loop.cell(step, state)
            steps.append(state[0])
        return torch.cat(steps, 1), state[1]


WAYS = ("slices", "unbind", "maps", "split", "time first", "from the end", "columns", "views")


@pytest.mark.parametrize("way", [*WAYS[:3], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[3:])])
def test_where_x_comes_from(way: str) -> None:
    torch.manual_seed(1)
    module, x = made(Taken(way)), torch.randn(2, T, 4)
    model = exported(module, x)
    result = collapse(model, {model.graph.input[0].name: x.numpy()})
    assert count(result, "LSTM") == 1 and count(result, "Sigmoid") == 0
    assert count(result, "Concat") == 0, "the steps are joined by a Reshape"
    with torch.no_grad():
        expected = flat(module(x))
    came = run_onnx(proto_bytes(to_model(result.graph)), {model.graph.input[0].name: x.numpy()})
    for one, two in zip(expected, came, strict=True):
        np.testing.assert_allclose(two, one.numpy(), rtol=2e-5, atol=2e-6)
