"""Norms in the bodies of Loop, Scan and If: folded in the body, proved by the certificate and by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.detect import find_norms, recurrences
from normfold.errors import CannotTell
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.record import Record
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run
from routes import run_onnx

STEP = """
  a = MatMul (xt, w)
  an = BatchNormalization (a, gamma1, beta1, mean1, var1)
  b = MatMul (h, u)
  bn = BatchNormalization (b, gamma2, beta2, mean2, var2)
  sum = Add (an, bn)
  biased = Add (sum, bias)
  next = Tanh (biased)
"""
SCAN = (
    """
net (float[T, N, 3] x, float[N, 4] h0) => (float[N, 4] last, float[T, N, 4] all)
{
  last, all = Scan <num_scan_inputs = 1, body = step (float[N, 4] h, float[N, 3] xt) => (float[N, 4] next, float[N, 4] y) {
"""
    + STEP
    + """
  y = Identity (next)
  }> (h0, x)
}"""
)
BACKWARDS = (
    """
net (float[N, 3, T] x, float[N, 4] h0) => (float[N, 4] last, float[N, T, 4] all)
{
  last, all = Scan <num_scan_inputs = 1, scan_input_axes = [2], scan_input_directions = [1], scan_output_axes = [1],
    scan_output_directions = [1], body = step (float[N, 4] h, float[N, 3] xt) => (float[N, 4] next, float[N, 4] y) {
"""
    + STEP
    + """
  y = Identity (next)
  }> (h0, x)
}"""
)
LOOP = (
    """
net (float[T, N, 3] x, float[N, 4] h0) => (float[N, 4] last, float[S, N, 4] all)
{
  shape = Shape (x)
  zero = Constant <value = int64 {0}> ()
  steps = Gather (shape, zero)
  last, all = Loop <body = step (int64 t, bool going, float[N, 4] h) => (bool on, float[N, 4] next, float[N, 4] y) {
    xt = Gather <axis = 0> (x, t)
"""
    + STEP
    + """
    y = Identity (next)
    far = ReduceMax <keepdims = 0> (next)
    limit = Constant <value = float {0.9999}> ()
    on = Less (far, limit)
  }> (steps, , h0)
  never = Add (last, last)
}"""
)
IF = """
net (float[N, 3] x, float[N, 4] h0) => (float[N, 4] y)
{
  total = ReduceSum <keepdims = 0> (x)
  nothing = Constant <value = float {0.0}> ()
  positive = Greater (total, nothing)
  y = If (positive) <then_branch = one () => (float[N, 4] y1) {
      a1 = MatMul (x, w)
      y1 = BatchNormalization (a1, gamma1, beta1, mean1, var1)
    }, else_branch = other () => (float[N, 4] y2) {
      a2 = MatMul (h0, u)
      n2 = BatchNormalization (a2, gamma2, beta2, mean2, var2)
      y2 = Relu (n2)
    }>
}"""


def model(text: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph(text)
    tensors: dict[str, Array] = {
        "w": rng.standard_normal((3, 4)),
        "u": rng.standard_normal((4, 4)) / 2,
        "bias": rng.standard_normal(4),
    }
    for name in "12":
        tensors[f"gamma{name}"] = rng.uniform(0.5, 1.5, 4) * np.array([1, -1, 1, 1])
        tensors[f"beta{name}"], tensors[f"mean{name}"] = rng.standard_normal(4), rng.standard_normal(4)
        tensors[f"var{name}"] = rng.uniform(0.5, 2, 4)
    used = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items() if name in used
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("acme", 1)], ir_version=8
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def feeds(made: onnx.ModelProto, seed: int, steps: int) -> dict[str, Array]:
    rng, sizes = np.random.default_rng(seed), {"T": steps, "N": 2}
    return {
        item.name: rng.standard_normal([d.dim_value or sizes[d.dim_param] for d in item.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for item in made.graph.input
    }


def folded(made: onnx.ModelProto, **options: Any) -> tuple[Outcome, onnx.ModelProto]:
    """Rewritten, proved and run against ONNX Runtime for several lengths."""
    graph = from_onnx(made)
    tidy(graph)
    outcome = rewrite(graph, Options(**{"objective": "norms"} | options))
    for seed, steps in enumerate((1, 5, 3)):
        given = feeds(made, seed, steps)
        failed = [item for item in certificate(graph, outcome.graph, given) if not item.passed]
        assert not failed, failed[:3]
    data = proto_bytes(to_model(outcome.graph))
    result = onnx.load_from_string(data)
    onnx.checker.check_model(result, full_check=True)
    for seed, steps in enumerate((1, 5, 3)):
        given = feeds(made, seed, steps)
        for expected, came in zip(run_onnx(made.SerializeToString(), given), run_onnx(data, given), strict=True):
            np.testing.assert_allclose(came, expected, rtol=2e-5, atol=2e-5)
    return outcome, result


def bodies(made: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [item.g for node in made.graph.node for item in node.attribute if item.type == onnx.AttributeProto.GRAPH]


CASES = {"Scan": SCAN, "Scan backwards, other axes": BACKWARDS, "Loop": LOOP, "If": IF}


@pytest.mark.parametrize("name", CASES)
def test_norms_in_bodies_are_folded(name: str) -> None:
    outcome, result = folded(model(CASES[name]))
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    assert "BatchNormalization" not in {node.op_type for body in bodies(result) for node in body.node}
    assert {item.name for item in result.graph.initializer}.isdisjoint(("w", "u", "gamma1", "var2")), "they are the body's now"


@pytest.mark.parametrize("name", CASES)
def test_the_evaluator_runs_bodies_as_the_runtime_does(name: str) -> None:
    made = model(CASES[name])
    graph = from_onnx(made)
    lengths: set[int] = set()
    for seed in range(6):
        given = feeds(made, seed, 4)
        outputs = run(graph, given)
        for expected, came in zip(run_onnx(made.SerializeToString(), given), outputs.values(), strict=True):
            np.testing.assert_allclose(came, expected, rtol=2e-5, atol=2e-5)
        lengths.add(len(outputs.get("all", [])))
    if name == "Loop":
        assert 4 in lengths and len(lengths) > 1, "some end by their number of steps, some by their condition"
    if name == "If":
        assert {bool(feeds(made, seed, 4)["x"].sum() > 0) for seed in range(6)} == {True, False}


def test_a_loop_of_no_steps_cannot_be_told() -> None:
    made = model(SCAN)
    with pytest.raises(CannotTell, match="made no step"):
        run(from_onnx(made), feeds(made, 0, 0))


def test_the_places_are_bodies_of_loops() -> None:
    for text, expected in ((SCAN, {"body"}), (LOOP, {"body"}), (IF, set[str]())):
        graph = from_onnx(model(text))
        tidy(graph)
        assert {item.place for item in recurrences(graph, find_norms(graph)).values()} == expected


def test_a_body_within_a_body() -> None:
    text = LOOP.replace("b = MatMul (h, u)", """
    some = Constant <value = bool {1}> ()
    b = If (some) <then_branch = one () => (float[N, 4] p) { q = MatMul (h, u)
      p = BatchNormalization (q, gamma2, beta2, mean2, var2) },
      else_branch = other () => (float[N, 4] r) { r = Neg (h) }>""")  # fmt: skip
    outcome, result = folded(model(text))
    assert {finding.node: finding.outcome for finding in outcome.findings} == {"an": "deleted", "p": "deleted", "bn": "kept"}
    assert onnx.printer.to_text(result).count("BatchNormalization") == 1


def test_a_weight_that_others_read_too_is_not_copied() -> None:
    text = SCAN.replace("last, all = Scan", "other = MatMul (h0, u)\n  start = Sigmoid (other)\n  last, all = Scan").replace(
        "}> (h0, x)", "}> (start, x)"
    )
    outcome, result = folded(model(text))
    assert {finding.node: finding.outcome for finding in outcome.findings} == {"an": "deleted", "bn": "kept"}
    assert "u" in {item.name for item in result.graph.initializer}


def test_a_weight_that_both_branches_read_is_not_copied() -> None:
    outcome, _ = folded(model(IF.replace("MatMul (h0, u)", "MatMul (x, w)")))
    assert [finding.outcome for finding in outcome.findings] == ["kept", "kept"]


def test_new_names_are_new_in_the_whole_model() -> None:
    """ONNX allows no name in a body that the graph around it has."""
    for text in (SCAN.replace("last, all = Scan", "w_folded = Sigmoid (h0)\n  last, all = Scan"), SCAN):
        outcome, result = folded(model(text.replace("(h0, x)", "(w_folded, x)") if "w_folded" in text else text))
        (scan,) = (node for node in outcome.graph.nodes if node.kind == "Scan")
        assert not scan.captures, "the body holds all that it reads"
        (body,) = bodies(result)
        outer = {name for node in result.graph.node for name in node.output} | {item.name for item in result.graph.input}
        assert outer.isdisjoint(item.name for item in body.initializer) and not result.graph.initializer


def test_names_that_two_bodies_share_are_left() -> None:
    text = IF.replace("a2", "a1").replace("y2", "y1")
    outcome, _ = folded(model(text))
    assert {finding.refusal.code for finding in outcome.findings if finding.refusal} == {"ambiguous-body"}


def test_a_body_that_cannot_stand_alone_is_left_and_named() -> None:
    """It reads a tensor whose type nobody knows."""
    record = Record()
    text = LOOP.replace("zero = Constant", "odd = acme.Odd (x)\n  zero = Constant").replace("Add (sum, bias)", "Add (sum, odd)")
    graph = from_onnx(model(text), record=record)
    assert find_norms(graph) == []
    assert any("2 norms inside" in text and "(Loop)" in text for text in record.warnings)


def test_overridable_values_are_not_folded() -> None:
    made = model(SCAN)
    made.graph.input.append(onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, [4, 4]))
    graph = from_onnx(made)
    tidy(graph)
    outcome = rewrite(graph, Options(objective="norms"))
    assert {finding.node: finding.outcome for finding in outcome.findings} == {"an": "deleted", "bn": "kept"}


def test_what_is_switched_off_or_kept_stays() -> None:
    for options, code in (({"skip": ("loop-bodies",)}, "skipped"), ({"keep": ("an",)}, "asked-to-keep")):
        outcome, _ = folded(model(SCAN), **options)
        first = next(finding for finding in outcome.findings if finding.node == "an")
        assert first.outcome == "kept" and first.refusal is not None and first.refusal.code == code


def test_the_model_is_as_it_came_when_nothing_is_written_back() -> None:
    """The rewritten view is a copy: the view as captured still says the same, and can be written."""
    made = model(SCAN)
    graph = from_onnx(made)
    rewrite(graph, Options(objective="norms"))
    again = onnx.load_from_string(proto_bytes(to_model(graph)))
    assert [node.op_type for body in bodies(again) for node in body.node].count("BatchNormalization") == 2
