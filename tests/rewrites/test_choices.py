"""Choices that only measurement settles: the recorded table, the forms of a leftover shift, and the bill of an inserted Add."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import numpy as np
import pytest

from build import Builder
from judge import proved
from normfold.errors import UsageError
from normfold.graph import Graph, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import affine
from normfold.rewrites.choices import ANSWERS, Chooser, Question, recorded
from normfold.rewrites.rewrite import Policy, Rewritten


def chooser(**answers: str) -> Chooser:
    """Answers given by name (bias_add=...), the others from the records of "norms"."""
    default = recorded("onnxruntime", "norms")
    return lambda question: answers.get(question.about.replace("-", "_"), default(question))


def taken(graph: Graph, choose: Chooser) -> Rewritten:
    """The affine step under `choose`, proved."""
    result = affine.run(graph, Policy("norms", choose=choose))
    proved(graph, result.graph)
    return result


def dense(rank: int = 4) -> Graph:
    """Two norms on the same features, an activation behind each: the shift of one must stay."""
    b = Builder()
    x = b.input("x", (2, 4) if rank == 2 else (2, 4, *(6,) * (rank - 2)))
    stem: Value = b.gemm(x, 8) if rank == 2 else b.conv(x, 8)
    ends = [b.relu(b.bn(stem, name=f"bn{i}")) for i in range(2)]
    b.graph.outputs.extend(b.gemm(y, 3) if rank == 2 else b.conv(y, 3) for y in ends)
    return b.output()


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize(("form", "kind"), [("add", "Add"), ("depthwise", "Conv"), ("norm", "BatchNormalization")])
def test_forms_of_a_leftover_shift(form: str, kind: str, rank: int) -> None:
    graph = dense(rank)
    result = taken(graph, chooser(leftover_shift=form))
    assert sorted(fate.outcome for fate in result.fates) == ["deleted", "shift"]
    kinds = [node.kind for node in result.graph.nodes if node.kind not in ("Gemm", "Relu")]
    expected = "Add" if form == "depthwise" and rank == 2 else kind  # channels of a matrix have no spatial axes behind them
    assert kinds.count(expected) == (1 if expected != "Conv" else 4) and len(result.graph.nodes) == len(graph.nodes) - 1


def test_a_leftover_norm_has_a_of_one() -> None:
    result = taken(dense(), chooser(leftover_shift="norm"))
    (norm,) = (node for node in result.graph.nodes if node.kind == "BatchNormalization")
    gamma, var = (value.const.float64() for value in (norm.inputs[1], norm.inputs[4]) if value is not None and value.const)
    assert np.allclose(gamma, np.sqrt(var + 1e-5), rtol=1e-6)


def test_keep_leaves_the_norm() -> None:
    result = taken(dense(), chooser(leftover_shift="keep"))
    assert sorted(fate.outcome for fate in result.fates) == ["deleted", "kept"]


def tokens(norms: int) -> Graph:
    """A bias-less MatMul with `norms` norms around it, between activations."""
    b = Builder()
    y = b.op("Sigmoid", b.input("x", (3, 4)), shape=(3, 4))
    if norms > 1:
        y = b.bn(y, name="first")
    y = b.op("MatMul", y, b.weight(4, 4), shape=(3, 4), name="product")
    y = b.bn(y, name="last")
    b.output(b.op("Sigmoid", y, shape=(3, 4)))
    return b.graph


@pytest.mark.parametrize(
    ("word", "norms", "adds"), [("when it saves", 1, 0), ("when it saves", 2, 1), ("yes", 1, 1), ("yes", 2, 1), ("no", 2, 0)]
)
def test_a_bias_is_put_in_when_it_pays(word: str, norms: int, adds: int) -> None:
    result = taken(tokens(norms), chooser(bias_add=word))
    assert result.inserted == ({"bias Add": adds} if adds else {})
    deleted = [fate.outcome for fate in result.fates if fate.outcome == "deleted"]
    assert len(deleted) == (norms if adds else 0)
    refused = {fate.refusal.code for fate in result.fates if fate.refusal is not None}
    assert refused <= {"needs-bias"}


def test_the_bill_of_one_place_is_not_paid_by_another() -> None:
    """Two MatMuls in one graph, one with two norms around it: only that one gets a bias."""
    b = Builder()
    for name, norms in (("rich", 2), ("poor", 1)):
        y = b.op("Sigmoid", b.input(f"x_{name}", (3, 4)), shape=(3, 4))
        if norms > 1:
            y = b.bn(y, name=f"{name}_first")
        y = b.bn(b.op("MatMul", y, b.weight(4, 4), shape=(3, 4), name=name), name=f"{name}_last")
        b.graph.outputs.append(b.op("Sigmoid", y, shape=(3, 4)))
    b.output()
    result = taken(b.graph, chooser(bias_add="when it saves", leftover_shift="keep"))
    fates = {fate.output: fate.outcome for fate in result.fates}
    assert fates == {"rich_first": "deleted", "rich_last": "deleted", "poor_last": "kept"}


def test_the_question_says_what_is_at_stake() -> None:
    asked: list[Question] = []

    def note(question: Question) -> str:
        asked.append(question)
        return "when it saves" if question.about == "bias-add" else "no" if question.about == "border-map" else "keep"

    affine.run(tokens(2), Policy("norms", choose=note))
    (question,) = (item for item in asked if item.where)
    assert (question.about, question.where, question.elements, question.saves) == ("bias-add", "product", 12, 12)


def test_every_recorded_answer_is_one_that_is_understood() -> None:
    table = tomllib.loads(files("normfold.rewrites").joinpath("targets.toml").read_text())
    for objectives in table.values():
        assert set(objectives) == {"latency", "norms"}
        for answers in objectives.values():
            assert set(answers) == set(ANSWERS)
            assert all(answers[about] in words for about, words in ANSWERS.items())


def test_targets() -> None:
    with pytest.raises(UsageError, match="the target is one of onnxruntime, openvino, tensorrt, generic; got 'tvm'"):
        Options(target="tvm")
    kinds = {}
    for target in ("onnxruntime", "generic", "openvino"):
        outcome = rewrite(dense(), Options(objective="norms", target=target))
        kinds[target] = [node.kind for node in outcome.graph.nodes].count("Add")
    assert kinds == {"onnxruntime": 0, "generic": 1, "openvino": 1}
