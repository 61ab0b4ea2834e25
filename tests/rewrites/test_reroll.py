"""Unrolled loops whose step is no layer of ONNX's become one Scan that computes the same, in ONNX Runtime, for every batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
import recurrent_cells as cells
from normfold.capture.aten import from_aten
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.program import export_module
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Graph, Node
from normfold.pipeline import rolling
from normfold.rewrites import reroll
from normfold.rewrites.choices import recorded
from normfold.rewrites.rewrite import Policy, Rewritten
from normfold.verify.certificate import certificate
from recurrent_cells import Both, Loop, made
from routes import exported, flat, run_onnx

INPUTS, H, T = 5, 3, 6
BATCH = ({0: torch.export.Dim("B", min=1, max=64)},)
ALWAYS = Policy(choose=lambda question: "yes")


def x(batch: int = 2, steps: int = T) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(batch, steps, INPUTS)


def view(model: onnx.ModelProto) -> Graph:
    graph = from_onnx(model)
    tidy(graph)
    return graph


def scans(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.kind == "Scan"]


def backwards(scan: Node) -> bool:
    return any(scan.attrs.get("scan_input_directions", ()))


def rolled(module: nn.Module, *args: Tensor, dynamic: Any = None, also: Tensor | None = None) -> Rewritten:
    """The rewritten view; the file written of it computes in ONNX Runtime what the module does, of `args` and of `also`."""
    model = exported(module, *args, dynamic=dynamic)
    graph = view(model)
    names = [value.name for value in graph.inputs]
    feeds = dict(zip(names, (item.numpy() for item in args), strict=True))
    result = reroll.run(graph, ALWAYS)
    assert not [item for item in certificate(graph, result.graph, feeds) if not item.passed]
    data = proto_bytes(to_model(result.graph))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for given in (args, *([(also, *args[1:])] if also is not None else [])):
        with torch.no_grad():
            expected = flat(module(*given))
        came = run_onnx(data, dict(zip(names, (item.numpy() for item in given), strict=True)))
        for one, two in zip(expected, came, strict=True):
            np.testing.assert_allclose(two, one.numpy(), atol=2e-6)
    return result


class WithContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loop, self.context = Loop(cells.Coupled(INPUTS, H)), nn.Linear(INPUTS, H)

    def forward(self, x: Tensor) -> Any:
        around = torch.relu(self.context(x.mean(1)))
        state, found = self.loop.start(x), []
        for t in range(x.shape[1]):
            h, c = self.loop.cell(x[:, t], state)
            state = h * around, c
            found.append(h)
        return self.loop.head(state[0]), torch.stack(found[2:4])


class Everything(nn.Module):
    """Tensors inside the steps are outputs of their own; the weights of the steps are read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop(cells.Peephole(INPUTS, H))

    def forward(self, x: Tensor) -> Any:
        cell, state, seen = self.loop.cell, self.loop.start(x), []
        for t in range(x.shape[1]):
            state = cell(x[:, t], state)
            seen.append(torch.relu(state[1]))
        return seen[0], seen[3] + seen[4], torch.stack(seen[::-1], 1), cell.h2h(x[:, 0, :H] * 2)


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: Loop(cells.LayerNormed(INPUTS, H), "all"),
    "norm on c, reversed": lambda: Loop(cells.NormOnCell(INPUTS, H), "all", reverse=True),
    "norm on c, the last h": lambda: Loop(cells.NormOnCell(INPUTS, H)),
    "peepholes, learnt start": lambda: Loop(cells.Peephole(INPUTS, H), "states", learnt=True),
    "hard sigmoid, heads": lambda: Loop(cells.HardSigmoid(INPUTS, H), "heads"),
    "coupled gates, every c": lambda: cells.Reads(cells.Coupled(INPUTS, H)),
    "rows read each other": lambda: Loop(cells.Leaking(INPUTS, H), "all"),
    "no reset": lambda: Loop(cells.NoReset(INPUTS, H), "all"),
    "two layers in one loop": lambda: cells.Stacked(cells.LayerNormed(INPUTS, H), cells.NoReset(H, H)),
    "a context": WithContext,
    "everything is read": Everything,
}
FAST = ("norm on c, reversed", "peepholes, learnt start", "a context", "everything is read", "two layers in one loop")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in LOOPS])
def test_one_scan_computes_the_same(name: str) -> None:
    torch.manual_seed(1)
    result = rolled(made(LOOPS[name]()), x())
    *_, scan = scans(result.graph)
    assert {item.rule for item in result.applied} >= {"reroll"}
    left = sum(node.kind in ("Gemm", "MatMul") for node in result.graph.nodes)
    assert left <= 5 + T * ("heads" in name), "no steps but perhaps the first and the last are left"
    assert backwards(scan) == ("reversed" in name)


@pytest.mark.parametrize(("cell", "batch"), [(cells.LayerNormed, 1), (cells.Residual, 3)])
def test_open_batch(cell: Any, batch: int) -> None:
    torch.manual_seed(1)
    result = rolled(made(Loop(cell(INPUTS, H), "heads")), x(), dynamic=BATCH, also=x(batch))
    assert len(scans(result.graph)) == 1


def test_both_directions_and_two_layers() -> None:
    torch.manual_seed(1)
    result = rolled(made(Both(cells.NormOnCell, INPUTS, H, layers=2)), x())
    assert [backwards(scan) for scan in scans(result.graph)].count(True) == 2
    assert len(scans(result.graph)) == 4


@pytest.mark.parametrize("start", ["given", "of another shape"])
def test_starts(start: str) -> None:
    torch.manual_seed(1)
    module = made(Loop(cells.Peephole(INPUTS, H), "states"))
    rows = 2 if start == "given" else 1  # one row for all: the state has another shape behind step 0, which stays
    result = rolled(module, x(), torch.randn(rows, H), torch.randn(rows, H))
    (scan,) = scans(result.graph)
    assert scan.outputs[0].shape == (2, H)
    assert (scan.inputs[0] in result.graph.inputs) == (start == "given")


def test_a_part_of_a_sequence_that_keeps_its_axis() -> None:
    class Part(Loop):
        def forward(self, x: Tensor, *given: Tensor) -> Any:
            state = self.start(x)
            for t in range(1, 5):
                state = self.cell(x[:, t : t + 1].squeeze(1) + x[:, t : t + 1, :].sum(1), state)
            return self.head(state[0])

    torch.manual_seed(1)
    result = rolled(made(Part(cells.NormOnCell(INPUTS, H))), x())
    assert len(scans(result.graph)) == 1


def test_weights_are_held_once() -> None:
    torch.manual_seed(1)
    module = made(Everything())
    graph = view(exported(module, x()))
    held = sum(value.const.nbytes for value in graph.constants() if value.const is not None)
    result = reroll.run(graph, ALWAYS)
    now = [value for value in result.graph.constants() if value.const is not None and value.const.dtype.kind == "f"]
    assert sum(value.const.nbytes for value in now if value.const is not None) <= held
    (weight,) = [value for value in now if value.param.endswith("h2h.weight")]
    assert {use.node.kind for use in weight.uses} >= {"Scan", "MatMul"} or len(weight.uses) > 1


def test_norms_are_followed_into_the_body() -> None:
    torch.manual_seed(1)
    graph = view(exported(made(Loop(cells.LayerNormed(INPUTS, H), "all")), x()))
    result = reroll.run(graph, ALWAYS)
    (scan,) = scans(result.graph)
    inside = {value.name for nodes in (scan.bodies["body"].nodes, result.graph.nodes) for node in nodes for value in node.outputs}
    before = {node.output.name for node in graph.nodes if node.kind == "LayerNormalization"}
    assert len(before) == T and set(result.renamed.values()) <= inside and len(set(result.renamed) & before) >= T - 1


class Changing(Loop):
    """Steps of which each does something else."""

    def forward(self, x: Tensor, *given: Tensor) -> Any:
        state = self.start(x)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t] * (t + 1), state)
        return self.head(state[0])


class NoProduct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            state = torch.tanh(state * 0.5 + x[:, t])
        return state


class Simple(nn.Module):
    """A simple recurrent unit: products of the input alone (Lei et al., arXiv 1709.02755)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Linear(INPUTS, 2 * H), nn.Parameter(torch.rand(H))

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], H)
        for t in range(x.shape[1]):
            a, f = self.w(x[:, t]).chunk(2, 1)
            f = torch.sigmoid(f + self.v * state)
            state = f * state + (1 - f) * a
        return state


STAYS: dict[str, nn.Module] = {
    "factors of their own": Changing(cells.NormOnCell(INPUTS, H)),
    "statistics of their own": cells.PerStep(T, INPUTS, H),
    "no product": NoProduct(),
    "no product of the state": Simple(),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    graph = view(exported(made(STAYS[name]), x()))
    result = reroll.run(graph, ALWAYS)
    assert result.graph is graph and not result.applied


def test_torch_graphs_stay() -> None:
    graph = from_aten(export_module(made(Loop(cells.LayerNormed(INPUTS, H))), (x(),)))
    tidy(graph)
    assert reroll.run(graph, ALWAYS).graph is graph


def test_what_a_sub_graph_reads_stays() -> None:
    graph = view(exported(made(Loop(cells.NormOnCell(INPUTS, H), "all")), x()))
    twin = graph.clone()
    inner = [node for node in twin.nodes if node.kind == "Tanh"][T]
    reader = Node("If", [], [twin.value("read", (2, H), np.float32)], {}, "if", captures=(inner.output,))
    twin.insert_after(inner, reader)
    twin.outputs.append(reader.output)
    assert not reroll.run(twin, ALWAYS).applied


@pytest.mark.parametrize("dims", [[[4 * H, H], [H, 4 * H]], [[H], [1, H], [4 * H]]], ids=["large", "small"])
def test_what_callers_may_override_is_read_by_name(dims: list[list[int]]) -> None:
    torch.manual_seed(1)
    module = made(Loop(cells.Peephole(INPUTS, H), "all"))
    model = exported(module, x())
    weight = next(item for item in model.graph.initializer if list(item.dims) in dims)
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, onnx.TensorProto.FLOAT, list(weight.dims)))
    graph = from_onnx(model, keep_overridable=True)
    tidy(graph)
    result = reroll.run(graph, ALWAYS)
    (scan,) = scans(result.graph)
    assert weight.name in {value.name for value in scan.captures}
    other = np.full(list(weight.dims), 0.1, np.float32)
    feeds = {model.graph.input[0].name: x().numpy(), weight.name: other}
    before, after = (run_onnx(data, feeds) for data in (model.SerializeToString(), proto_bytes(to_model(result.graph))))
    np.testing.assert_allclose(after[0], before[0], atol=2e-6)


def test_answers_decide() -> None:
    torch.manual_seed(1)
    graph = view(exported(made(Loop(cells.LayerNormed(INPUTS, H))), x()))
    for answer, done in (("no", False), ("when long", False), ("yes", True)):
        assert bool(reroll.run(graph, Policy(choose=lambda question, answer=answer: answer)).applied) == done
    assert recorded("onnxruntime", "latency")(reroll.Question("reroll", steps=500)) == "when long"


def test_a_long_loop_is_proved_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(reroll, "LONG", T - 2)
    module, path = made(Loop(cells.LayerNormed(INPUTS, H), "heads")), tmp_path / "long.onnx"
    path.write_bytes(exported(module, x()).SerializeToString())
    record = normfold.optimize(path, outputs=[tmp_path / "out.onnx"]).record
    assert record.passed
    assert "reroll" in {item.rule for item in record.applied}
    assert {finding.outcome for finding in record.findings if finding.kind == "layer"} == {"kept"}
    model = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in model.graph.node].count("Scan") == 1
    with torch.no_grad():
        expected = module(x())
    (came,) = run_onnx(model.SerializeToString(), {model.graph.input[0].name: x().numpy()})
    np.testing.assert_allclose(came, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("why", ["", "it is not the same"])
def test_the_onnx_form_of_a_torch_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """torch.export has no Scan: the .pt2 keeps its steps, the .onnx has one, unless its own judgement says no."""
    torch.manual_seed(1)
    monkeypatch.setattr(reroll, "LONG", T - 2)
    if why:
        monkeypatch.setattr(rolling, "objection", lambda *args: why)
    module, outputs = made(Loop(cells.LayerNormed(INPUTS, H), "heads")), [tmp_path / "out.onnx", tmp_path / "out.pt2"]
    record = normfold.optimize(module, x(1), outputs=outputs).record
    assert record.passed
    assert ("reroll" in {item.rule for item in record.applied}) == (not why)
    assert any(why in text for text in record.warnings) == bool(why)
    model = onnx.load(outputs[0])
    assert [node.op_type for node in model.graph.node].count("Scan") == (not why)
    with torch.no_grad():
        expected = module(x(1)).numpy()
        program = torch.export.load(outputs[1]).module()(x(1)).numpy()
    (came,) = run_onnx(model.SerializeToString(), {model.graph.input[0].name: x(1).numpy()})
    np.testing.assert_allclose(came, expected, atol=1e-5)
    np.testing.assert_allclose(program, expected, atol=1e-5)
