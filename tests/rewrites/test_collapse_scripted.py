"""Loops of open length that torch writes: torch.jit.script through the old exporter, while_loop through the new one."""

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
from loop_texts import judged
from normfold.capture.onnx import from_onnx
from normfold.capture.tidy import tidy
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from recurrent_cells import made
from routes import run_onnx


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


class Layers(Scripted):
    """Two loops, the second over what the first collects."""

    def __init__(self, *, known: bool) -> None:
        super().__init__(1)
        self.v, self.q, self.known = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), known

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 4)
        first: list[Tensor] = []
        for t in range(x.size(1)):
            h = torch.tanh(self.n(self.w(x[:, t])) + self.r(h))
            first.append(h)
        y = torch.stack(first, 1)
        h = torch.zeros(x.size(0), 4)
        second: list[Tensor] = []
        for t in range(y.size(1)):
            sums = self.v(y[:, t]) + self.m(self.q(h))
            h = torch.tanh(sums) if self.known else torch.sigmoid(sums)
            second.append(h)
        return torch.stack(second, 1)


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


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_over_what_another_collects(known: bool) -> None:
    """Its body knows the shape of that once it comes from a layer; where it is no cell it goes on reading it by its name."""
    proto = scripted(Layers(known=known), 1)
    outcome, result = judged(proto, [given(1, 2, 5), given(1, 1, 1), given(1, 3, 8)])
    kinds = [node.op_type for node in result.graph.node]
    assert (kinds.count("RNN"), kinds.count("Loop")) == ((2, 0) if known else (1, 1))
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    assert known or "hoist-projection" in {item.rule for item in outcome.applied}


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
