"""ONNX Scan and Loop whose bodies are recurrent cells: one layer, proved by the certificate and by ONNX Runtime."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import recurrent_cells as cells
from loop_texts import LOOP, SCAN, feeds, judged, model
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from recurrent_cells import made
from routes import run_onnx

LAYERS = ("LSTM", "GRU", "RNN")


def text(source: str, **options: Any) -> tuple[Outcome, list[str]]:
    """The same for a graph in ONNX's text form; the kinds of its nodes."""
    proto = model(source)
    outcome, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 6))], **options)
    return outcome, [node.op_type for node in result.graph.node]


def scan(inputs: int, outputs: int, axes: tuple[int, int]) -> str:
    """SCAN with directions, and the axes of its sequence and of what it stacks."""
    shapes = ["T, N, 3", "N, T, 3", "N, 3, T"], ["T, N, 4", "N, T, 4", "N, 4, T"]
    said = f"scan_input_directions = [{inputs}], scan_output_directions = [{outputs}], "
    said += f"scan_input_axes = [{axes[0]}], scan_output_axes = [{axes[1]}]"
    changed = SCAN.replace("float[T, N, 3] x", f"float[{shapes[0][axes[0]]}] x").replace(
        "float[T, N, 4] all", f"float[{shapes[1][axes[1]]}] all"
    )
    return changed.replace("num_scan_inputs = 1", f"num_scan_inputs = 1, {said}")


@pytest.mark.parametrize("inputs, outputs", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_directions(inputs: int, outputs: int) -> None:
    outcome, kinds = text(scan(inputs, outputs, (0, 0)))
    assert kinds.count("RNN") == 1 and "Scan" not in kinds and "BatchNormalization" not in kinds
    assert kinds.count("Slice") == (inputs != outputs), "turned only where in and out are in opposite order"
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    assert outcome.applied[0].rule == "collapse-loop"


@pytest.mark.parametrize("axes", [(1, 0), (0, 1), (2, 2), (1, 2)])
def test_axes(axes: tuple[int, int]) -> None:
    _, kinds = text(scan(0, 0, axes))
    assert kinds.count("RNN") == 1 and "Scan" not in kinds


def test_two_sequences_are_one_input() -> None:
    both = SCAN.replace("float[T, N, 3] x,", "float[T, N, 2] p, float[T, N, 1] q,").replace(
        "num_scan_inputs = 1", "num_scan_inputs = 2"
    )
    both = both.replace("float[N, 3] xt)", "float[N, 2] pt, float[N, 1] qt)").replace("(h0, x)", "(h0, p, q)")
    _, kinds = text(both.replace("a = MatMul (xt, w)", "xt = Concat <axis = 1> (pt, qt)\n  a = MatMul (xt, w)"))
    assert kinds.count("RNN") == 1 and "Scan" not in kinds


def test_an_rnn_for_several_rows_is_no_gain() -> None:
    """ONNX Runtime computes it slower than its single operations; the norms go all the same, in the body and in front of it."""
    outcome, kinds = text(scan(0, 0, (0, 0)), objective="latency")
    assert "RNN" not in kinds and "Scan" in kinds
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    _, kinds = text(scan(0, 0, (0, 0)).replace("N, 4]", "1, 4]").replace("N, 3]", "1, 3]"), objective="latency")
    assert "RNN" in kinds and "Scan" not in kinds


FIXED = (
    LOOP.replace("steps = Gather (shape, zero)", "steps = Constant <value = int64 {4}> ()")
    .replace("float[T, N, 3]", "float[6, N, 3]")
    .replace("on = Less (far, limit)", "on = Identity (going)")
)


def test_a_loop_of_a_known_number_of_steps() -> None:
    """Four of the six elements are read."""
    outcome, kinds = text(FIXED)
    assert kinds.count("RNN") == 1 and "Loop" not in kinds
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]


@pytest.mark.parametrize(
    "source",
    [
        LOOP,  # how many steps, and whether all of them, is known at run time
        FIXED.replace("on = Identity (going)", "on = Less (far, limit)"),
        FIXED.replace("int64 {4}", "int64 {0}").replace("-> float[S, N, 4] all", ""),
        FIXED.replace(
            "biased = Add (sum, bias)", "number = Cast <to = 1> (t)\n later = Add (sum, number)\n biased = Add (later, bias)"
        ),
    ],
    ids=["open", "may end early", "no step", "reads its number"],
)
def test_loops_that_stay(source: str) -> None:
    proto = model(source)
    graph = from_onnx(proto)
    tidy(graph)
    outcome = rewrite(graph, Options(objective="norms"))
    assert "Loop" in {node.kind for node in outcome.graph.nodes} and "collapse-loop" not in {
        item.rule for item in outcome.applied
    }
    assert {finding.outcome for finding in outcome.findings} == {"deleted"}, "in the body, as before"


@pytest.mark.parametrize(
    "old, new, code",
    [
        ("next = Tanh (biased)", "next = Sigmoid (biased)", "not-a-cell"),
        ("next = Tanh (biased)", "t = Tanh (biased)\n  next = Add (t, h)", "not-a-cell"),
        ("y = Identity (next)", "y = Identity (biased)", "state-read"),
    ],
)
def test_bodies_that_are_no_cell_are_folded_by_themselves(old: str, new: str, code: str) -> None:
    outcome, kinds = text(SCAN.replace(old, new))
    assert kinds.count("Scan") == 1 and not set(kinds) & set(LAYERS)
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    outcome, _ = text(SCAN.replace(old, new), skip=("loop-bodies",))
    assert {finding.refusal.code for finding in outcome.findings if finding.refusal} == {code}


def test_a_weight_that_others_read_too_is_copied_within_the_budget() -> None:
    shared = SCAN.replace("last, all = Scan", "other = MatMul (h0, u)\n  start = Sigmoid (other)\n  last, all = Scan")
    shared = shared.replace("}> (h0, x)", "}> (start, x)")
    assert "Scan" in text(shared, clone_budget=63)[1]
    _, kinds = text(shared, clone_budget=64)
    assert "Scan" not in kinds and kinds.count("RNN") == 1


def test_what_is_to_be_kept_keeps_the_loop() -> None:
    outcome, kinds = text(SCAN, keep=("an",))
    assert "Scan" in kinds
    assert {finding.node: finding.outcome for finding in outcome.findings} == {"an": "kept", "bn": "deleted"}


def test_a_number_of_steps_that_callers_may_change_stays() -> None:
    proto = model(FIXED)
    proto.graph.node.remove(next(node for node in proto.graph.node if list(node.output) == ["steps"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(4, np.int64), "steps"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("steps", onnx.TensorProto.INT64, []))
    graph = from_onnx(proto)
    tidy(graph)
    assert "Loop" in {node.kind for node in rewrite(graph, Options(objective="norms")).graph.nodes}


def test_one_row_is_not_run_in_the_place_of_a_batch_of_zeros() -> None:
    """The sequence has one row and the zeros five: the loop spreads it over them, the layer refuses it."""
    source = SCAN.replace("float[T, N, 3] x, float[N, 4] h0", "float[T, M, 3] x, float[N, 2] like").replace(
        "last, all = Scan",
        "size = Shape <start = 0, end = 1> (like)\n  four = Constant <value = int64[1] {4}> ()\n"
        "  shape = Concat <axis = 0> (size, four)\n  h0 = ConstantOfShape (shape)\n  last, all = Scan",
    )
    proto = model(source.replace("float[N, 3] xt", "float[M, 3] xt"))
    graph = from_onnx(proto)
    tidy(graph)
    outcome = rewrite(graph, Options(objective="norms"))
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("x", (4, 1, 3)), ("like", (5, 2)))}
    assert run_onnx(proto.SerializeToString(), feed)[0].shape == (5, 4)
    assert "RNN" in {node.kind for node in outcome.graph.nodes}
    with pytest.raises(Exception, match="initial_h"):
        run_onnx(proto_bytes(to_model(outcome.graph)), feed)


class Scanned(nn.Module):
    """A cell in torch's scan."""

    def __init__(self, cell: Any, *, reverse: bool = False, learnt: bool = False) -> None:
        super().__init__()
        self.cell, self.reverse, self.head = cell, reverse, nn.Linear(cell.hidden, 2)
        self.first = nn.Parameter(torch.randn(cell.states, cell.hidden)) if learnt else None

    def forward(self, x: Tensor) -> Any:
        from torch._higher_order_ops.scan import scan as torch_scan

        if self.first is None:
            start = tuple(x.new_zeros(x.shape[0], self.cell.hidden) for _ in range(self.cell.states))
        else:
            start = tuple(row.expand(x.shape[0], -1).clone() for row in self.first)

        def step(state: Any, xt: Tensor) -> Any:
            state = self.cell(xt, state)
            return tuple(item.clone() for item in state), state[0].clone()

        last, every = torch_scan(step, start, x, dim=1, reverse=self.reverse)
        return self.head(every), *last


TORCH: dict[str, tuple[Any, str]] = {
    "BN-LSTM": (lambda: Scanned(cells.BNLSTM(3, 4)), "LSTM"),
    "BN-LSTM, learnt start, reversed": (lambda: Scanned(cells.BNLSTM(3, 4), reverse=True, learnt=True), "LSTM"),
    "GRU": (lambda: Scanned(cells.GRU(3, 4)), "GRU"),
    "peephole": (lambda: Scanned(cells.Peephole(3, 4)), "Scan"),
    "BN on c": (lambda: Scanned(cells.NormOnCell(3, 4)), "Scan"),
}


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_exports(name: str) -> None:
    make, kind = TORCH[name]
    sizes = {0: torch.export.Dim("N"), 1: torch.export.Dim("T")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            made(make()), (torch.randn(2, 5, 3),), dynamo=True, optimize=False, verbose=False, dynamic_shapes=(sizes,)
        )
    assert program is not None
    proto = program.model_proto
    rng = np.random.default_rng(0)
    name = proto.graph.input[0].name
    given = [{name: rng.standard_normal((n, t, 3)).astype(np.float32)} for n, t in ((2, 5), (1, 1), (3, 8))]
    outcome, result = judged(proto, given)
    kinds = [node.op_type for node in result.graph.node]
    assert kinds.count(kind) == 1 and len(set(kinds) & {*LAYERS, "Scan"}) == 1
    assert {finding.outcome for finding in outcome.findings} <= {"deleted"} or kind == "Scan"
