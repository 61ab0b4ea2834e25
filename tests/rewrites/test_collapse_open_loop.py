"""ONNX Loops of open length: one layer where that gives the same after no step, too, and a reason where it does not."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from loop_texts import COUNTED, GIVEN, OPEN, WAYS, changed, feeds, judged, model, taking
from normfold.capture.onnx import from_onnx
from normfold.capture.tidy import tidy
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from recurrent_cells import made
from routes import run_onnx


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_that_starts_from_zeros(way: str) -> None:
    """Any length, none included."""
    proto = model(WAYS[way])
    outcome, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 2, 7))])
    kinds = [node.op_type for node in result.graph.node]
    assert kinds.count("RNN") == 1 and "Loop" not in kinds
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    nothing = feeds(proto, 0, 0)
    before, after = (run_onnx(data.SerializeToString(), nothing) for data in (proto, result))
    assert np.array_equal(before[0], after[0]) and before[0].shape == (2, 4) and before[1].size == after[1].size == 0


def test_a_loop_that_starts_from_anything() -> None:
    """After no step it gives that back."""
    proto = model(GIVEN)
    _, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 2, 7))])
    kinds = [node.op_type for node in result.graph.node]
    assert "RNN" in kinds and kinds.count("Where") == 1
    nothing = feeds(proto, 0, 0)
    before, after = (run_onnx(data.SerializeToString(), nothing) for data in (proto, result))
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[0], nothing["h0"])


def test_an_element_that_is_taken_twice_is_one_input() -> None:
    proto = model(
        OPEN.replace("a = MatMul (xt, w)", "x2 = Gather <axis = 0> (x, t)\n both = Add (xt, x2)\n a = MatMul (both, w)")
    )
    _, result = judged(proto, [feeds(proto, 0, 5)])
    (weight,) = (item for item in result.graph.initializer if item.name.endswith("_W"))
    assert list(weight.dims) == [1, 4, 3]


STAYS = {
    "one row for the batch": (changed(OPEN, ("rows = Gather (shape, one)", "rows = Identity (one)")), "empty-sequence"),
    "the length of another": (
        changed(
            OPEN,
            ("float[T, N, 3] x)", "float[T, N, 3] x, float[S] other)"),
            ("steps = Gather (shape, zero)", "lengths = Shape (other)\n steps = Gather (lengths, zero)"),
        ),
        "loop-length",
    ),
    "not from the first on": (changed(OPEN, taking("p = Sub (t, one)")), "loop-length"),
    "every other": (changed(OPEN, taking("p = Add (t, t)")), "loop-length"),
    "one and the same": (changed(OPEN, taking("p = Sub (t, t)")), "loop-length"),
    "as often as is computed": (
        changed(OPEN, ("(steps, , h0)", "(half, , h0)"), ("last, all = Loop", "half = Div (steps, two)\n last, all = Loop")),
        "loop-length",
    ),
    "may end early": (changed(OPEN, ("on = Identity (going)", "on = Less (far, limit)")), "loop-length"),
    "may not begin": (
        changed(OPEN, ("(steps, , h0)", "(steps, is, h0)"), ("last, all = Loop", "is = Less (zero, steps)\n last, all = Loop")),
        "loop-length",
    ),
    "counts from one": (changed(COUNTED, ("none = Identity (zero)", "none = Identity (one)")), "loop-length"),
    "begins by another length": (changed(COUNTED, ("Less (zero, steps)", "Less (one, steps)")), "loop-length"),
    "always begins": (changed(COUNTED, ("(, begin, none, h0)", "(, , none, h0)")), "loop-length"),
    "counts by two": (
        changed(COUNTED, ("t1 = Add (t, one)", "t1 = Add (t, two)"), ("(x, t)", "(x, number)")),
        "loop-length",
    ),
    "counts to less": (changed(COUNTED, ("on = Less (t1, steps)", "m = Sub (steps, one)\n on = Less (t1, m)")), "loop-length"),
    "a counter that is read": (changed(COUNTED, ("=> (float[N, 4] last,", "=> (int64 end, float[N, 4] last,")), "state-read"),
}


LISTED = changed(
    GIVEN,
    ("last, all = Loop", "empty = SequenceEmpty <dtype = 1> ()\n last, list = Loop"),
    ("float[N, 4] h) =>", "float[N, 4] h, seq(float[N, 4]) s) =>"),
    ("float[N, 4] y)", "seq(float[N, 4]) s1)"),
    ("y = Identity (next)", "s1 = SequenceInsert (s, next)"),
    ("(steps, , h0)", "(steps, , h0, empty)\n all = ConcatFromSequence <axis = 0, new_axis = 1> (list)"),
)
INSERT = "s1 = SequenceInsert (s, next)"
STAYS |= {
    name: (changed(LISTED, *pairs), "state-read")
    for name, pairs in {
        "a list in another order": [(INSERT, "z = Constant <value = int64 {0}> ()\n s1 = SequenceInsert (s, next, z)")],
        "a list of something else": [(INSERT, "s1 = SequenceInsert (s, biased)")],
        "a list that its steps read": [
            (
                "bn = BatchNormalization (b,",
                "n = SequenceLength (s)\n f = Cast <to = 1> (n)\n q = Mul (b, f)\n bn = BatchNormalization (q,",
            )
        ],
        "a list that starts with something": [("SequenceEmpty <dtype = 1> ()", "SequenceConstruct (h0)")],
        "a list of which one is taken": [
            ("all = Concat", "one = SequenceAt (list, zero)\n all = Concat"),
            ("=> (float[N, 4] last,", "=> (float[N, 4] one,"),
        ],
        "a list that is joined without an axis": [
            ("axis = 0, new_axis = 1> (list)", "axis = 0> (list)\n flat = Identity (wide)"),
            ("all = Concat", "wide = Concat"),
            ("float[S, N, 4] all", "float[M, 4] flat"),
        ],
    }.items()
}


def test_a_list_that_is_joined() -> None:
    """From any start: where nothing is in the list, joining it fails."""
    proto = model(LISTED)
    _, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 7))])
    assert "RNN" in {node.op_type for node in result.graph.node}
    with pytest.raises(Exception, match="ConcatFromSequence"):
        run_onnx(proto.SerializeToString(), feeds(proto, 0, 0))


@pytest.mark.parametrize("name", STAYS)
def test_loops_that_stay(name: str) -> None:
    source, code = STAYS[name]
    proto = model(source)
    graph = from_onnx(proto)
    tidy(graph)
    outcome = rewrite(graph, Options(skip=("loop-bodies", "hoist-projection")))
    assert "Loop" in {node.kind for node in outcome.graph.nodes} and not outcome.applied
    assert {finding.refusal.code for finding in outcome.findings if finding.refusal} == {code}


class Scripted(nn.Module):
    """What torch.jit.script makes one Loop of."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.w, self.r, self.head = nn.Linear(3, gates * 4), nn.Linear(4, gates * 4, bias=False), nn.Linear(4, 2)
        self.n, self.m = nn.BatchNorm1d(gates * 4), nn.BatchNorm1d(gates * 4)


class Listed(Scripted):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        c = torch.zeros(x.size(0), 4)
        every: list[Tensor] = []
        for t in range(x.size(1)):
            f, i, o, g = (self.n(self.w(x[:, t])) + self.m(self.r(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            every.append(h)
        return self.head(torch.stack(every, 1)), c


class ListedBackwards(Scripted):
    """Elements with an axis of their own, joined along it."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        every: list[Tensor] = []
        steps = x.size(1)
        for t in range(steps):
            h = torch.tanh(self.n(self.w(x[:, steps - 1 - t])) + self.m(self.r(h)))
            every.append(h.unsqueeze(1))
        return torch.cat(every, 1), h


class LastState(Scripted):
    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.size(0), 4), torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            f, i, o, g = (self.n(self.w(x[:, t])) + self.m(self.r(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


class LastStates(LastState):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, c = torch.zeros(x.size(0), 4), torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            f, i, o, g = (self.n(self.w(x[:, t])) + self.m(self.r(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


class ListedGRU(Scripted):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 4)
        every: list[Tensor] = []
        for t in range(x.size(1)):
            nx, rx, zx = self.n(self.w(x[:, t])).chunk(3, 1)
            nh, rh, zh = self.m(self.r(h)).chunk(3, 1)
            z = torch.sigmoid(zx + zh)
            h = (1 - z) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + z * h
            every.append(h)
        return torch.stack(every)


def scripted(module: nn.Module, inputs: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    file, axes = io.BytesIO(), {"x": {0: "B", 1: "T"}, "h": {0: "B"}}
    args = (torch.randn(2, 5, 3), torch.randn(2, 4))[:inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given: dict[str, Any] = {"input_names": ["x", "h"][:inputs], "opset_version": 17, "dynamo": False}
        axes = {name: axes[name] for name in given["input_names"]}
        torch.onnx.export(torch.jit.script(made(module)), args, file, dynamic_axes=axes, **given)
    return onnx.load_from_string(file.getvalue())


def given(inputs: int, batch: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(steps)
    shapes = {"x": (batch, steps, 3), "h": (batch, 4)}
    return {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in ("x", "h")[:inputs]}


@pytest.mark.parametrize(
    ("make", "kind", "inputs"),
    [(lambda: Listed(4), "LSTM", 2), (lambda: ListedBackwards(1), "RNN", 2), (lambda: LastState(4), "LSTM", 1)],
)
def test_what_torch_jit_script_exports(make: Any, kind: str, inputs: int) -> None:
    """A list of nothing cannot be joined, so such a loop may start from anything."""
    proto = scripted(make(), inputs)
    outcome, result = judged(proto, [given(inputs, 2, 5), given(inputs, 1, 1), given(inputs, 3, 8)])
    kinds = [node.op_type for node in result.graph.node]
    assert kinds.count(kind) == 1 and not {"Loop", "ConcatFromSequence"} & set(kinds)
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    if inputs == 1:
        assert kinds.count("Where") == isinstance(make(), LastStates), "c behind the last step was never written by the layer"
        nothing = given(1, 2, 0)
        for one, two in zip(
            run_onnx(proto.SerializeToString(), nothing), run_onnx(result.SerializeToString(), nothing), strict=True
        ):
            assert np.array_equal(one, two)


@pytest.mark.parametrize(("make", "inputs"), [(lambda: Listed(4), 2), (lambda: LastStates(4), 1)])
def test_what_callers_are_told_stays(make: Any, inputs: int) -> None:
    """Through all gates: the old exporter names every size of its outputs, also those that are known of a layer."""
    result = normfold.optimize(scripted(make(), inputs))
    assert [item.rule for item in result.record.applied if item.rule != "tidy"] == ["collapse-loop"]


def test_no_gru_where_there_may_be_no_step() -> None:
    """ONNX Runtime's ends the process."""
    graph = from_onnx(scripted(ListedGRU(3), 1))
    tidy(graph)
    outcome = rewrite(graph, Options(skip=("loop-bodies", "hoist-projection")))
    assert {finding.refusal.code for finding in outcome.findings if finding.refusal} == {"empty-sequence"}


class While(Scripted):
    """A loop that counts its steps and asks behind each whether there is one more."""

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        steps = x.shape[1]

        def body(t: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
            xt = torch.index_select(x, 1, t.reshape(1)).squeeze(1)
            f, i, o, g = (self.n(self.w(xt)) + self.m(self.r(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return t + 1, torch.sigmoid(o) * torch.tanh(c), c.clone()

        h = x.new_zeros(x.shape[0], 4)
        return self.head(while_loop(lambda t, h, c: t < steps, body, (torch.tensor(0), h, h.clone()))[1])


def test_while_loop_of_torch() -> None:
    """Through all gates, batch and length open."""
    torch.manual_seed(0)
    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            made(While(4)), (torch.randn(2, 5, 3),), dynamo=True, optimize=False, verbose=False, dynamic_shapes=(sizes,)
        )
    assert program is not None
    result = normfold.optimize(program.model_proto)
    assert [item.rule for item in result.record.applied if item.rule != "tidy"] == ["collapse-loop"]
    assert {item.outcome for item in result.record.findings} == {"deleted"}
