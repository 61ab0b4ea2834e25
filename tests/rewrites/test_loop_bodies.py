"""Norms in the bodies of Loop, Scan and If: folded in the body, proved by the certificate and by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from loop_texts import BACKWARDS, IF, LOOP, SCAN, feeds, model
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.detect import find_norms, recurrences
from normfold.errors import CannotTell
from normfold.export.to_onnx import proto_bytes
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.record import Record
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run
from routes import run_onnx


def folded(made: onnx.ModelProto, **options: Any) -> tuple[Outcome, onnx.ModelProto]:
    """Rewritten, proved and run against ONNX Runtime for several lengths."""
    graph = from_onnx(made)
    tidy(graph)
    options["skip"] = (*options.get("skip", ()), "collapse-loop", "hoist-projection")  # these bodies are whole cells
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


@pytest.mark.parametrize("lengths", ["", "lengths"])
def test_the_scan_of_opset_8_is_left(lengths: str) -> None:
    """It reads lengths first, and every input has a batch axis in front."""
    text = SCAN.replace("float[T, N, 3] x", "int64[1] lengths, float[1, T, N, 3] x")
    text = text.replace("float[N, 4] h0) =>", "float[1, N, 4] h0) =>").replace("(float[N, 4] last", "(float[1, N, 4] last")
    text = text.replace("float[T, N, 4] all", "float[1, T, N, 4] all").replace("(h0, x)", f"({lengths}, h0, x)")
    made = model(text, opset=8)
    graph = from_onnx(made)
    tidy(graph)
    outcome = rewrite(graph, Options(objective="norms"))
    assert [node.kind for node in outcome.graph.nodes] == ["Scan"] and not outcome.graph.nodes[0].bodies
