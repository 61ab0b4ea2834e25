"""What the body of a Loop does to its input alone is done in front of it, where it walks through a sequence."""

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
from loop_texts import COUNTED, GIVEN, LOOP, OPEN, WAYS, changed, feeds, judged, model, taking
from recurrent_cells import made
from routes import run_onnx

CELL = (
    ("an = BatchNormalization (a, gamma1, beta1, mean1, var1)", "an = LayerNormalization <axis = -1> (a, gamma1, beta1)"),
    ("bn = BatchNormalization (b, gamma2, beta2, mean2, var2)", "bn = Identity (b)"),
    ("next = Tanh (biased)", "next = Sigmoid (biased)"),
)


def hoisted(source: str, *, opset: int = 17) -> tuple[bool, list[str], list[str], onnx.ModelProto]:
    """Rewritten and judged for several lengths: whether something was hoisted, kinds inside and outside, the model."""
    proto = model(changed(source, *CELL), opset)
    outcome, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 2))])
    (loop,) = (node for node in result.graph.node if node.op_type == "Loop")
    (body,) = (item.g for item in loop.attribute if item.name == "body")
    hoists = "hoist-projection" in {item.rule for item in outcome.applied}
    nothing = feeds(proto, 0, 0)
    for one, two in zip(run_onnx(proto.SerializeToString(), nothing), run_onnx(result.SerializeToString(), nothing), strict=True):
        assert np.array_equal(one, two), "after no step, too"
    return hoists, [node.op_type for node in body.node], [node.op_type for node in result.graph.node], result


@pytest.mark.parametrize("way", [*WAYS, "starts that are given"])
def test_the_projection_and_its_norm_go_in_front(way: str) -> None:
    hoists, inside, outside, result = hoisted(WAYS.get(way, GIVEN))
    assert hoists and inside.count("MatMul") == outside.count("MatMul") == 1
    assert "LayerNormalization" in outside and "LayerNormalization" not in inside
    assert inside.count("Gather") == 1 and ("Squeeze" in inside) == (way in ("kept axis", "size in the body"))
    (loop,) = (node for node in result.graph.node if node.op_type == "Loop")
    assert "w" not in {name for item in loop.attribute for node in item.g.node for name in node.input}


def test_what_is_read_otherwise_too_is_taken_as_before() -> None:
    hoists, inside, outside, _ = hoisted(
        changed(OPEN, ("sum = Add (an, bn)", "m = ReduceMean <axes = [1]> (xt)\n s = Add (an, bn)\n sum = Add (s, m)"))
    )
    assert hoists and inside.count("Gather") == 2 and outside.count("MatMul") == 1


def test_an_axis_that_is_read_with_the_element_stays() -> None:
    source = changed(WAYS["kept axis"], ("xt = Squeeze (xk, first)", "xt = ReduceSum <keepdims = 0> (xk, first)"))
    assert not hoisted(source)[0]


@pytest.mark.parametrize(
    "source",
    [
        changed(OPEN, taking("p = Add (t, t)", "z = Sub (p, p)"), ("(x, p)", "(x, z)")),  # one element again and again
        changed(LOOP, ("float {0.9999}", "float {0.7}")),  # may end early
        changed(COUNTED, ("on = Less (t1, steps)", "m = Sub (steps, one)\n on = Less (t1, m)")),  # not to the end
    ],
)
def test_loops_that_do_not_walk_through_a_sequence_stay(source: str) -> None:
    assert not hoisted(source)[0]


def test_old_opsets_cannot_tell_sizes_that_may_be_zero() -> None:
    source = changed(OPEN, (CELL[0][0], "q = Mul (a, gamma1)\n an = Relu (q)"))
    proto = model(changed(source, *CELL[1:]), 13)
    outcome, _ = judged(proto, [feeds(proto, 0, 3)])
    assert not outcome.applied


class Scripted(nn.Module):
    """The layer-norm LSTM of Ba et al. 2016 as torch.jit.script has it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = nn.Linear(3, 16), nn.Linear(4, 16, bias=False)
        self.n, self.m, self.k = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.size(0), 4), torch.zeros(x.size(0), 4)
        every: list[Tensor] = []
        for t in range(x.size(1)):
            f, i, o, g = (self.n(self.w(x[:, t])) + self.m(self.r(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.k(c))
            every.append(h)
        return torch.stack(every, 1)


def test_a_layer_norm_lstm_of_torch_jit_script() -> None:
    """Through all gates, batch and length open."""
    torch.manual_seed(0)
    file = io.BytesIO()
    options: dict[str, Any] = {
        "input_names": ["x"],
        "dynamic_axes": {"x": {0: "B", 1: "T"}},
        "opset_version": 17,
        "dynamo": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch.jit.script(made(Scripted())), (torch.randn(2, 5, 3),), file, **options)
    result = normfold.optimize(onnx.load_from_string(file.getvalue()))
    assert [item.rule for item in result.record.applied if item.rule != "tidy"] == ["hoist-projection"]
