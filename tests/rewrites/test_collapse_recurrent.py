"""Loops over time through the ATen route: which become one layer, what is left of them, and that the program says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import recurrent_cells as cells
from normfold.capture.aten import from_aten
from normfold.capture.aten_inputs import flatten_inputs
from normfold.capture.aten_write import to_program
from normfold.capture.program import export_module
from normfold.capture.tidy import tidy
from normfold.graph import Graph
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import collapse_recurrent
from normfold.rewrites.recurrent_refusals import RECURRENT
from normfold.rewrites.rewrite import Policy, Rewritten
from normfold.verify.certificate import certificate
from recurrent_cells import Both, Library, Loop, Stacked, made
from routes import flat

INPUTS, H, T = 5, 3, 4
LAYERS = ("LSTM", "GRU", "RNN")


def layers(graph: Graph) -> list[str]:
    return [node.kind for node in graph.nodes if node.kind in LAYERS]


def norms(graph: Graph) -> int:
    return sum(node.kind == "BatchNormalization" for node in graph.nodes)


def collapse(module: nn.Module, *args: Tensor, dynamic: Any = None) -> Rewritten:
    """Collapse, hold the result to the certificate, write it as a program and run that against the module."""
    program = export_module(module, args, dynamic_shapes=dynamic)
    graph = from_aten(program)
    tidy(graph)
    names = [value.name for value in graph.values()]
    result = collapse_recurrent.run(graph, Policy("norms"))
    assert names == [value.name for value in graph.values()], "the graph that was given must not change"
    failed = [item for item in certificate(graph, result.graph, flatten_inputs(program, args)) if not item.passed]
    assert not failed, failed[:3]
    if result.applied:
        written = to_program(result.graph).module()
        trials = [args] if dynamic is None else [args, tuple(torch.randn(7, *item.shape[1:]) for item in args)]
        with torch.no_grad():
            for trial in trials:
                for one, two in zip(flat(module(*trial)), flat(written(*trial)), strict=True):
                    torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-6)
    return result


def x() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(2, T, INPUTS)


GOOD: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "lstm": (lambda: Loop(cells.PlainLSTM(INPUTS, H)), ["LSTM"]),
    "bn-lstm, reversed, all steps": (lambda: Loop(cells.BNLSTM(INPUTS, H), "all", reverse=True), ["LSTM"]),
    "bn-lstm, states": (lambda: Loop(cells.BNLSTM(INPUTS, H), "states"), ["LSTM"]),
    "bn-lstm, heads": (lambda: Loop(cells.BNLSTM(INPUTS, H), "heads"), ["LSTM"]),
    "one sigmoid for all gates": (lambda: Loop(cells.OneSigmoid(INPUTS, H)), ["LSTM"]),
    "a layer a gate": (lambda: Loop(cells.FourLinears(INPUTS, H)), ["LSTM"]),
    "h and c in one tensor": (lambda: Loop(cells.OneState(INPUTS, H)), ["LSTM"]),
    "one channel": (lambda: Loop(cells.BNLSTM(1, 1)), ["LSTM"]),
    "nn.LSTMCell": (lambda: Loop(Library(nn.LSTMCell, INPUTS, H)), ["LSTM"]),
    "nn.GRUCell": (lambda: Loop(Library(nn.GRUCell, INPUTS, H, bias=False)), ["GRU"]),
    "nn.RNNCell": (lambda: Loop(Library(nn.RNNCell, INPUTS, H)), ["RNN"]),
    "nn.RNNCell, relu": (lambda: Loop(Library(nn.RNNCell, INPUTS, H, nonlinearity="relu")), ["RNN"]),
    "gru": (lambda: Loop(cells.GRU(INPUTS, H)), ["GRU"]),
    "gru, 1 - z": (lambda: Loop(cells.GRU(INPUTS, H, turned=True), reverse=True), ["GRU"]),
    "gru of one channel": (lambda: Loop(cells.GRU(INPUTS, 1)), ["GRU"]),
    "gru, reset first": (lambda: Loop(cells.GRUFirst(INPUTS, H), "all"), ["GRU"]),
    "gru, reset first, 1 - z": (lambda: Loop(cells.GRUFirst(INPUTS, H, turned=True), reverse=True), ["GRU"]),
    "rnn": (lambda: Loop(cells.RNN(INPUTS, H)), ["RNN"]),
    "rnn, relu": (lambda: Loop(cells.RNN(INPUTS, H, "relu"), "all"), ["RNN"]),
    "two directions": (lambda: Both(cells.BNLSTM, INPUTS, H), ["LSTM", "LSTM"]),
    "two layers of two directions": (lambda: Both(cells.RNN, INPUTS, H, layers=2), ["RNN"] * 4),
    "two layers in one loop": (lambda: Stacked(cells.BNLSTM(INPUTS, H), cells.GRU(H, 2)), ["LSTM", "GRU"]),
}


FAST = (
    "bn-lstm, reversed, all steps", "one sigmoid for all gates", "a layer a gate", "nn.LSTMCell", "gru", "gru, reset first",
    "rnn, relu", "two directions", "two layers in one loop",
)  # fmt: skip


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in GOOD])
def test_collapsed(name: str) -> None:
    torch.manual_seed(1)
    make, expected = GOOD[name]
    module = made(make())
    result = collapse(module, x() if name != "one channel" else torch.randn(3, T, 1))
    assert sorted(layers(result.graph)) == sorted(expected)
    assert norms(result.graph) == 0
    assert len(result.applied) == len(expected)
    steps = {value.name for node in result.graph.nodes for value in node.outputs if node.kind in ("Sigmoid", "Tanh")}
    assert not steps, "nothing of the loop is left"
    assert {fate.outcome for fate in result.fates} <= {"deleted"}


BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "norm on c on its way to h": (lambda: Loop(cells.NormOnCell(INPUTS, H)), "cell-state-affine"),
    "norm on c": (lambda: Loop(cells.NormedCell(INPUTS, H)), "cell-state-affine"),
    "peephole": (lambda: Loop(cells.Peephole(INPUTS, H)), "peephole"),
    "coupled gates": (lambda: Loop(cells.Coupled(INPUTS, H)), "coupled-gates"),
    "hard sigmoid": (lambda: Loop(cells.HardSigmoid(INPUTS, H)), "step-operation"),
    "layer norm": (lambda: Loop(cells.LayerNormed(INPUTS, H)), "step-operation"),
    "residual": (lambda: Loop(cells.Residual(INPUTS, H)), "not-a-cell"),
    "mean over the batch": (lambda: Loop(cells.Leaking(INPUTS, H)), "step-operation"),
    "rows shuffled": (lambda: Loop(cells.Shuffled(INPUTS, H)), "batch-mixing"),
    "c of every step is read": (lambda: cells.Reads(cells.BNLSTM(INPUTS, H)), "state-read"),
    "statistics per step": (lambda: cells.PerStep(T, INPUTS, H), "step-parameters"),
}


SLOW = ("norm on c", "residual", "layer norm", "mean over the batch")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BAD])
def test_refused(name: str) -> None:
    torch.manual_seed(1)
    make, code = BAD[name]
    result = collapse(made(make()), x())
    assert not result.applied and not layers(result.graph)
    codes = {fate.refusal.code for fate in result.fates if fate.refusal is not None}
    assert codes == {code}


def test_every_code_has_a_case() -> None:
    open_loops = {"loop-length", "empty-sequence"}  # test_collapse_open_loop.py has these
    assert {code for _, code in BAD.values()} == set(RECURRENT) - open_loops
    for refusal in RECURRENT.values():
        assert len(refusal.reason) > 20 and len(refusal.fix) > 10


def test_projection_ahead() -> None:
    """What was done to all x_t at once goes into the input weight; an input that is not a loop's alone stays."""
    torch.manual_seed(1)
    result = collapse(made(cells.Projected(INPUTS, H)), x())
    (node,) = (node for node in result.graph.nodes if node.kind == "LSTM")
    assert node.inputs[1] is not None and node.inputs[1].shape == (1, 4 * H, INPUTS)
    assert [item.kind for item in result.graph.nodes if item.kind in ("Gemm", "MatMul", "Add")] == ["Gemm"]


def test_double_precision_stays() -> None:
    """ONNX Runtime has no LSTM of doubles."""
    graph = from_aten(export_module(made(Loop(cells.BNLSTM(INPUTS, H))).double(), (x().double(),)))
    tidy(graph)
    result = collapse_recurrent.run(graph, Policy("norms"))
    assert not result.applied
    assert {fate.refusal.code for fate in result.fates if fate.refusal is not None} == {"not-a-cell"}


def test_reasons_reach_the_findings() -> None:
    """The norms that the affine step folds into the weights of the steps go; the one on c says why it stays."""
    torch.manual_seed(1)
    graph = from_aten(export_module(made(Loop(cells.NormOnCell(INPUTS, H))), (x(),)))
    tidy(graph)
    findings = rewrite(graph, Options(objective="norms")).findings
    kept = {item.name: item.refusal.code for item in findings if item.refusal is not None}
    assert kept == {"cell.bn_c": "cell-state-affine"}
    assert {item.outcome for item in findings if item.name != "cell.bn_c"} == {"deleted"}


def test_open_batch() -> None:
    size = torch.export.Dim("B", min=1, max=64)
    for loop in (Loop(cells.BNLSTM(INPUTS, H), "all", reverse=True), Loop(cells.GRU(INPUTS, H))):
        result = collapse(made(loop), x(), dynamic=({0: size},))
        assert len(layers(result.graph)) == 1 and norms(result.graph) == 0


@pytest.mark.slow
def test_learnt_start() -> None:
    """With an open batch it is spread at run time; for a fixed one a part of step 0 has been computed from it."""
    size = torch.export.Dim("B", min=1, max=64)
    torch.manual_seed(1)
    module = made(Loop(cells.BNLSTM(INPUTS, H), "all", learnt=True))
    for dynamic, sigmoids, left in ((({0: size},), 0, 0), (None, 3, 1)):
        result = collapse(module, x(), dynamic=dynamic)
        assert layers(result.graph) == ["LSTM"]
        assert sum(node.kind == "Sigmoid" for node in result.graph.nodes) == sigmoids
        assert norms(result.graph) == left, "the norm of x_0, which the affine step folds"
        (joined,) = [node for node in result.graph.nodes if node.kind == "Concat"] or [None]
        assert joined is None or len(joined.inputs) == 2


@pytest.mark.slow
def test_start_that_is_broadcast() -> None:
    """One row of h for the whole batch: step 0 stays."""
    torch.manual_seed(1)
    module = made(Loop(cells.BNLSTM(INPUTS, H), learnt=True))
    module.start = lambda x: tuple(module.first)  # type: ignore[method-assign,assignment]
    size = torch.export.Dim("B", min=2, max=64)
    result = collapse(module, x(), dynamic=({0: size},))
    assert layers(result.graph) == ["LSTM"]


def test_given_start() -> None:
    h, c = torch.randn(2, H), torch.randn(2, H)
    module = made(Loop(cells.BNLSTM(INPUTS, H), "states"))
    program = export_module(module, (x(), h, c))
    graph = from_aten(program)
    tidy(graph)
    result = collapse_recurrent.run(graph, Policy("norms"))
    assert layers(result.graph) == ["LSTM"]
    (node,) = (node for node in result.graph.nodes if node.kind == "LSTM")
    assert node.inputs[5] is not None and node.inputs[6] is not None
    failed = [item for item in certificate(graph, result.graph, flatten_inputs(program, (x(), h, c))) if not item.passed]
    assert not failed
    with torch.no_grad():
        for one, two in zip(module(x(), h, c), to_program(result.graph).module()(x(), h, c), strict=True):
            assert np.allclose(one, two, rtol=2e-5, atol=2e-6)


def test_one_sequence_for_a_batch_of_states() -> None:
    graph = from_aten(export_module(made(Loop(cells.BNLSTM(INPUTS, H))), (x()[:1], torch.randn(2, H), torch.randn(2, H))))
    tidy(graph)
    result = collapse_recurrent.run(graph, Policy("norms"))
    assert not result.applied
    assert {fate.refusal.code for fate in result.fates if fate.refusal is not None} == {"not-a-cell"}


def test_kept_on_request() -> None:
    graph = from_aten(export_module(made(Loop(cells.BNLSTM(INPUTS, H))), (x(),)))
    tidy(graph)
    result = collapse_recurrent.run(graph, Policy("norms", keep=lambda label: label == "cell.bn_h"))
    assert result.graph is graph and not result.applied


@pytest.mark.parametrize(("rows", "expected"), [(1, ["RNN"]), (2, [])])
def test_an_rnn_for_several_rows_is_no_gain(rows: int, expected: list[str]) -> None:
    """ONNX Runtime computes it slower than its single operations; the norms go all the same."""
    torch.manual_seed(1)
    module = made(Loop(cells.RNN(INPUTS, H)))
    for options in (Options(), Options(target="generic")):
        graph = from_aten(export_module(module, (x()[:rows],)))
        tidy(graph)
        outcome = rewrite(graph, options)
        assert layers(outcome.graph) == (expected or ["RNN"] * (options.target == "generic"))
        assert {finding.outcome for finding in outcome.findings} == {"deleted"}
        assert norms(outcome.graph) == 0
