"""What the body of a Scan does to its input alone is done in front of it: proved by the certificate and by ONNX Runtime."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from loop_texts import feeds, judged, model
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from routes import run_onnx

CELL = """
net (float[T, N, 3] x, float[N, 4] h0) => (float[N, 4] last, float[T, N, 4] all)
{
  last, all = Scan <num_scan_inputs = 1, body = step (float[N, 4] h, float[N, 3] xt) => (float[N, 4] next, float[N, 4] y) {
    a = MatMul (xt, w)
    an = LayerNormalization <axis = -1> (a, gamma1, beta1)
    b = MatMul (h, u)
    sum = Add (an, b)
    next = Sigmoid (sum)
    y = Identity (next)
  }> (h0, x)
}"""


def hoisted(source: str, *, opset: int = 17, **options: Any) -> tuple[Outcome, onnx.ModelProto, onnx.NodeProto]:
    """Rewritten and judged for several lengths; the model and its Scan."""
    proto = model(source, opset)
    given = [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 2))]
    outcome, result = judged(proto, given, **options)
    return outcome, result, next(node for node in result.graph.node if node.op_type == "Scan")


def inside(scan: onnx.NodeProto) -> list[str]:
    body = next(item.g for item in scan.attribute if item.name == "body")
    return [node.op_type for node in body.node]


def outside(result: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in result.graph.node]


def applied(outcome: Outcome) -> list[str]:
    return [item.detail for item in outcome.applied if item.rule == "hoist-projection"]


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize(
    ("axis", "x"), [(0, "T, N, 3"), (1, "N, T, 3"), (2, "N, 3, T"), (0, "T, 2, 3"), (1, "2, 5, 3"), (0, "5, N, 3")]
)
def test_the_projection_and_its_norm_go_in_front(axis: int, x: str, back: int) -> None:
    source = CELL.replace("float[T, N, 3] x", f"float[{x}] x").replace(
        "num_scan_inputs = 1", f"num_scan_inputs = 1, scan_input_axes = [{axis}], scan_input_directions = [{back}]"
    )
    outcome, result, scan = hoisted(source)
    assert inside(scan) == ["MatMul", "Add", "Sigmoid", "Identity"], "the product of the state stays"
    assert outside(result).count("MatMul") == outside(result).count("LayerNormalization") == 1
    assert len(scan.input) == 2
    assert applied(outcome) == ["one product of its input and 1 more operation, once for all steps"]
    assert [(item.name, item.outcome) for item in outcome.findings] == [("an", "kept")]
    assert outcome.stands_for["an"] in {value.name for value in outcome.graph.values()}


def test_an_empty_batch_stays_one() -> None:
    """All sizes are told at run time, none may be taken for one that is to be copied."""
    proto = model(CELL)
    _, result, _ = hoisted(CELL)
    feed = {"x": np.zeros((3, 0, 3), np.float32), "h0": np.zeros((0, 4), np.float32)}
    shapes = [[item.shape for item in run_onnx(data, feed)] for data in (proto.SerializeToString(), result.SerializeToString())]
    assert shapes[0] == shapes[1] == [(0, 4), (3, 0, 4)]


def test_what_is_read_otherwise_too_is_taken_as_before() -> None:
    source = CELL.replace(
        "sum = Add (an, b)", "m = ReduceMean <axes = [1]> (xt)\n p = Add (an, b)\n q = Add (p, m)\n sum = Add (q, a)"
    )
    _, result, scan = hoisted(source)
    assert len(scan.input) == 4, "the state, x, the product and what the norm makes of it"
    assert "x" in scan.input and "ReduceMean" in inside(scan) and "LayerNormalization" in outside(result)


def test_an_output_of_the_body_may_be_the_product() -> None:
    _, _, scan = hoisted(CELL.replace("y = Identity (next)", "y = MatMul (xt, w)"))
    assert inside(scan).count("MatMul") == 1


def test_a_weight_that_the_body_still_reads_stands_once() -> None:
    source = (
        CELL.replace("float[T, N, 3] x", "float[T, N, 4] x")
        .replace("float[N, 3] xt", "float[N, 4] xt")
        .replace("(xt, w)", "(xt, u)")
    )
    for inner in (False, True):
        if inner:  # a constant of the body's own
            source = source.replace(
                "a = MatMul (xt, u)",
                f"own = Constant <value = float[4, 4] {{{', '.join(['0.5'] * 16)}}}> ()\n a = MatMul (xt, own)",
            )
            source = source.replace("b = MatMul (h, u)", "b = MatMul (h, own)")
        _, result, scan = hoisted(source)
        assert inside(scan).count("MatMul") == outside(result).count("MatMul") == 1
        assert "Constant" not in inside(scan)
        body = next(item.g for item in scan.attribute if item.name == "body")
        wide = [item for item in (*result.graph.initializer, *body.initializer) if list(item.dims) == [4, 4]]
        assert len(wide) == 1 and wide[0] in list(result.graph.initializer)


def test_a_weight_that_is_computed_around_the_loop() -> None:
    source = CELL.replace("float[N, 4] h0)", "float[N, 4] h0, float[3, 4] v)").replace("(xt, w)", "(xt, v2)")
    _, result, scan = hoisted(source.replace("last, all = Scan", "v2 = Tanh (v)\n last, all = Scan"))
    assert outside(result).count("MatMul") == 1 and inside(scan).count("MatMul") == 1


def test_two_sequences() -> None:
    both = CELL.replace("float[T, N, 3] x,", "float[T, N, 2] p, float[N, T, 1] q,").replace(
        "float[N, 3] xt)", "float[N, 2] pt, float[N, 1] qt)"
    )
    both = both.replace("(h0, x)", "(h0, p, q)").replace(
        "a = MatMul (xt, w)", "xt = Concat <axis = 1> (pt, qt)\n  a = MatMul (xt, w)"
    )
    for directions, gone in (("1, 1", True), ("0, 1", False)):
        said = f"num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [{directions}]"
        _, _, scan = hoisted(both.replace("num_scan_inputs = 1", said))
        assert ("Concat" not in inside(scan)) == gone, "only where both are walked through in one direction"


GEMM = CELL.replace("a = MatMul (xt, w)", "r = Relu (xt)\n a = Gemm <alpha = 0.5> (r, w, bias)")


def test_what_leads_to_the_product_and_comes_from_it_goes_along() -> None:
    source = GEMM.replace(
        "sum = Add (an, b)", "s1, s2 = Split <axis = 1> (an)\n t = Concat <axis = 1> (s2, s1)\n sum = Add (t, b)"
    )
    outcome, _, scan = hoisted(source)
    assert inside(scan) == ["MatMul", "Add", "Sigmoid", "Identity"]
    assert applied(outcome) == ["one product of its input and 4 more operations, once for all steps"]


def test_what_makes_more_of_a_product_stays() -> None:
    source = CELL.replace(
        "an = LayerNormalization <axis = -1> (a, gamma1, beta1)", "n = ReduceMean <axes = [1]> (a)\n an = Add (n, bias)"
    )
    _, _, scan = hoisted(source)
    assert inside(scan) == ["Add", "MatMul", "Add", "Sigmoid", "Identity"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a = MatMul (xt, w)", "o = ReduceMean <axes = [0]> (xt)\n d = Sub (xt, o)\n a = MatMul (d, w)"),  # rows read each other
        ("a = MatMul (xt, w)", "s = ReduceSum <keepdims = 0> (h)\n d = Mul (xt, s)\n a = MatMul (d, w)"),  # and the state
        ("float[T, N, 3] x", "float[1, N, 3] x"),  # one step
    ],
)
def test_bodies_that_stay(old: str, new: str) -> None:
    outcome, _, scan = hoisted(CELL.replace(old, new)) if "float[1" not in new else _once(CELL.replace(old, new))
    assert inside(scan).count("MatMul") == 2 and not applied(outcome)


def _once(source: str) -> tuple[Outcome, onnx.ModelProto, onnx.NodeProto]:
    proto = model(source)
    outcome, result = judged(proto, [feeds(proto, 0, 1)])
    return outcome, result, next(node for node in result.graph.node if node.op_type == "Scan")


def test_old_opsets_cannot_tell_sizes_that_may_be_zero() -> None:
    source = CELL.replace("LayerNormalization <axis = -1> (a, gamma1, beta1)", "Mul (a, gamma1)")
    assert applied(hoisted(source, opset=14)[0]) and not applied(hoisted(source, opset=13)[0])
    assert applied(hoisted(source.replace("float[T, N, 3] x", "float[4, N, 3] x").replace("T", "4"), opset=13)[0])


def test_what_is_to_be_kept_stays() -> None:
    _, result, scan = hoisted(CELL, keep=("an",))
    assert "LayerNormalization" in inside(scan) and outside(result).count("MatMul") == 1


def test_the_view_as_captured_can_still_be_written() -> None:
    proto = model(CELL)
    graph = from_onnx(proto)
    tidy(graph)
    rewritten = rewrite(graph, Options()).graph
    for view, count in ((rewritten, 1), (graph, 2), (rewritten, 1)):
        again = onnx.load_from_string(proto_bytes(to_model(view)))
        onnx.checker.check_model(again, full_check=True)
        assert inside(next(node for node in again.graph.node if node.op_type == "Scan")).count("MatMul") == count


class LayerNormed(nn.Module):
    """The layer-norm LSTM of Ba et al. 2016 in torch's scan."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.x2h = hidden, nn.Linear(inputs, 4 * hidden)
        self.h2h = nn.Linear(hidden, 4 * hidden, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)])

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        def step(state: tuple[Tensor, Tensor], xt: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            h, c = state
            i, f, g, o = (self.norms[0](self.x2h(xt)) + self.norms[1](self.h2h(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.norms[2](c))
            return (h.clone(), c.clone()), h.clone()

        zeros = x.new_zeros(x.shape[0], self.hidden)
        return scan(step, (zeros, zeros.clone()), x, dim=1)[1]


@pytest.mark.slow
def test_a_layer_norm_lstm_of_torch() -> None:
    """Through all gates, batch and length open."""
    torch.manual_seed(0)
    module, sizes = LayerNormed(3, 4).eval(), {0: torch.export.Dim("N"), 1: torch.export.Dim("T")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (torch.randn(2, 5, 3),), dynamo=True, verbose=False, dynamic_shapes=(sizes,))
    assert program is not None
    result = normfold.optimize(program.model_proto)
    assert [item.rule for item in result.record.applied] == ["hoist-projection"]
