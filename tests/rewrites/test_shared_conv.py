"""Shared weights and shared layers in front of norms that differ: copied within the budget, and only where that lets norms go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from build import Builder
from judge import feeds_for
from normfold.graph import Graph, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.rewrites import shared_conv
from normfold.rewrites.rewrite import Policy
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run
from routes import aten, by_onnx, randomised

IMAGE = ("N", 4, 6, 6)
WEIGHT = 4 * 4 * 3 * 3 * 4  # bytes of the weight of `_conv`


class _Head(nn.Module):
    """One convolution over three sizes, a norm of its own for each (`same`: which of them are one)."""

    def __init__(self, same: tuple[int, ...] = (0, 1, 2), groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False)
        self.norms, self.same = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)]), same

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        sizes = [x, nn.functional.avg_pool2d(x, 2), nn.functional.avg_pool2d(x, 4)]
        return [torch.sigmoid(self.norms[i](self.conv(size))) for i, size in zip(self.same, sizes, strict=True)]


def _weights(outcome: Outcome) -> int:
    return len({node.inputs[1] for node in outcome.graph.nodes if node.kind in ("Conv", "Gemm")})


@pytest.mark.parametrize("objective", ["latency", "norms"])
@pytest.mark.parametrize(
    ("same", "budget", "deleted", "weights"),
    [
        ((0, 1, 2), 0, 1, 1),
        ((0, 1, 2), 2 * WEIGHT, 3, 3),
        ((0, 1, 0), WEIGHT, 3, 2),
        ((0, 0, 0), 0, 3, 1),
        ((0, 1, 0), WEIGHT - 1, 2, 1),
    ],
    ids=["no budget", "three norms", "two of them equal", "all equal", "one byte short"],
)
def test_a_shared_head(same: Any, budget: int, deleted: int, weights: int, objective: Any) -> None:
    torch.manual_seed(0)
    taken = aten(randomised(_Head(same)), torch.randn(2, 4, 8, 8), objective=objective)
    assert taken.error <= 2e-5
    outcome = rewrite(taken.before, Options(objective=objective, clone_budget=budget))
    assert sum(finding.outcome == "deleted" for finding in outcome.findings) == deleted
    assert _weights(outcome) == weights
    refusals = [finding.refusal for finding in outcome.findings if finding.refusal is not None]
    assert {refusal.code for refusal in refusals} == ({"clone-budget"} if deleted < 3 else set())
    _judge(taken.before, outcome)


def test_the_refusal_says_what_it_takes() -> None:
    torch.manual_seed(0)
    taken = aten(randomised(_Head()), torch.randn(2, 4, 8, 8))
    assert taken.codes == ["clone-budget"] * 2
    refusal = next(finding.refusal for finding in taken.outcome.findings if finding.refusal is not None)
    assert f"{2 * WEIGHT:,} bytes" in refusal.reason and "conv.weight" in refusal.reason and str(2 * WEIGHT) in refusal.fix


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_what_is_written_is_right(route: Any, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import routes

    monkeypatch.setattr(routes, "Options", lambda **given: Options(clone_budget="100MB", **given))
    taken = route(randomised(_Head(groups=groups)), torch.randn(2, 4, 8, 8), objective="latency")
    assert taken.outcomes == ["deleted"] * 3 and taken.error <= 2e-5


class _Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ModuleList([nn.BatchNorm2d(6) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv(x)
        return [torch.sigmoid(norm(x)) for norm in self.norms]


@pytest.mark.parametrize("route", [aten, by_onnx])
def test_a_doubled_layer_is_written_right(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import routes

    monkeypatch.setattr(routes, "Options", lambda **given: Options(clone_budget="100MB", **given))
    taken = route(randomised(_Fork()), torch.randn(2, 4, 8, 8))
    assert taken.outcomes == ["deleted"] * 2 and taken.error <= 2e-5
    assert [node.kind for node in taken.outcome.graph.nodes].count("Conv") == 2


def test_one_stack_used_twice_stays_one() -> None:
    """Siamese: the norms are equal, or one."""
    for equal in (True, False):
        stack = nn.Sequential(
            nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()
        )

        class Siamese(nn.Module):
            def __init__(self, stack: nn.Sequential, equal: bool) -> None:
                super().__init__()
                self.stack, self.equal, self.twin = stack, equal, nn.BatchNorm2d(8)

            def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
                x, y = self.stack(a), self.stack[0](b)
                y = self.stack[2:](self.stack[1](y) if self.equal else self.twin(y))
                return x - y

        model = randomised(Siamese(stack, equal))
        taken = aten(model, torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), objective="latency")
        outcome = rewrite(taken.before, Options(clone_budget="50%"))
        assert {finding.outcome for finding in outcome.findings} == {"deleted"}
        assert _weights(outcome) == (2 if equal else 3)
        _judge(taken.before, outcome)


# ---- by hand -------------------------------------------------------------------------------------------------------------------


def _judge(before: Graph, outcome: Outcome) -> None:
    for seed in range(2):
        feeds = feeds_for(before, seed)
        failed = [item for item in certificate(before, outcome.graph, feeds) if not item.passed]
        assert not failed, failed[:3]
    expected, came = run(before, feeds), run(outcome.graph, feeds)
    for name, array in expected.items():
        assert np.allclose(came[name], array, rtol=1e-9, atol=1e-9)


def _done(graph: Graph, **options: Any) -> Outcome:
    outcome = rewrite(graph, Options(**options))
    _judge(graph, outcome)
    return outcome


def _sigmoid(b: Builder, x: Value) -> Value:
    return b.op("Sigmoid", x, shape=x.shape or ())


def _fork(b: Builder, signed: bool = True) -> Value:
    x = b.conv(b.input("x", IMAGE), 4, 3, 1, name="conv")
    b.output(_sigmoid(b, b.bn(x, signed=signed, name="first")), _sigmoid(b, b.bn(x, signed=signed, name="second")))
    return x


def test_a_layer_is_doubled_for_the_norms_objective_only() -> None:
    b = Builder()
    _fork(b)
    need = WEIGHT + 4 * 4
    for objective, budget, deleted in (("latency", need, 1), ("norms", need - 1, 1), ("norms", need, 2)):
        outcome = _done(b.graph, objective=objective, clone_budget=budget)
        assert sum(finding.outcome == "deleted" for finding in outcome.findings) == deleted
        assert sum(node.kind == "Conv" for node in outcome.graph.nodes) == deleted
        codes = [finding.refusal.code for finding in outcome.findings if finding.refusal is not None]
        assert codes == ([] if deleted == 2 else ["clone-budget" if objective == "norms" else "conflicting-scale"])


def test_equal_norms_of_one_layer_are_folded_once() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4, 3, 1)
    first = b.bn(x, signed=True)
    parameters = [b.const(value.const.read()) for value in first.producer.inputs[1:]]  # type: ignore[union-attr]
    second = b.op("BatchNormalization", x, *parameters, shape=IMAGE, epsilon=1e-5, training_mode=0)
    b.output(_sigmoid(b, first), b.op("Tanh", second, shape=IMAGE))
    outcome = _done(b.graph, objective="norms", clone_budget="10MB")
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    assert sum(node.kind == "Conv" for node in outcome.graph.nodes) == 1


def test_a_layer_that_is_a_graph_output_is_doubled_for_its_norm() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4, 3, 1)
    b.output(x, _sigmoid(b, b.bn(x)))
    assert _done(b.graph, objective="norms").findings[0].outcome != "deleted"
    outcome = _done(b.graph, objective="norms", clone_budget="100%")
    assert outcome.findings[0].outcome == "deleted" and outcome.graph.outputs[0].name == x.name


def test_one_copy_serves_equal_norms() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4, 3, 1)
    one, two = b.bn(x, signed=True), b.bn(x, signed=True)
    shared = [b.op("BatchNormalization", x, *norm.producer.inputs[1:], shape=IMAGE, epsilon=1e-5) for norm in (one, two)]  # type: ignore
    b.output(*(_sigmoid(b, norm) for norm in (one, two, *shared)))
    outcome = _done(b.graph, objective="norms", clone_budget="10MB")
    assert {finding.outcome for finding in outcome.findings} == {"deleted"}
    assert sum(node.kind == "Conv" for node in outcome.graph.nodes) == 2


def _twice(b: Builder, kind: str = "Conv") -> tuple[Value, Value]:
    if kind == "Conv":
        x, y = b.conv(b.input("x", IMAGE), 4, 3, 1), b.conv(b.input("z", IMAGE), 4, 3, 1)
    else:
        x, y = b.gemm(b.input("x", ("N", 4)), 4), b.gemm(b.input("z", ("N", 4)), 4)
    b.graph.set_input(y.producer, 1, x.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    return x, y


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_signs_zeros_and_tiny_variances(kind: str) -> None:
    b = Builder()
    x, y = _twice(b, kind)
    one = b.bn(x, gamma=np.array([-1.0, 1e-7, 0.5, 2]), var=np.array([1e-12, 1, 1, 1e-9]))
    b.output(_sigmoid(b, one), _sigmoid(b, b.bn(y, signed=True)))
    outcome = _done(b.graph, clone_budget="1MB")
    assert {finding.outcome for finding in outcome.findings} == {"deleted"}


def test_a_tied_weight_is_untied_for_its_norm_and_the_other_reader_keeps_it() -> None:
    b = Builder()
    x = b.gemm(b.input("x", ("N", 4)), 4)
    weight = x.producer.inputs[1]  # type: ignore[union-attr]
    b.output(_sigmoid(b, b.bn(x)), _sigmoid(b, weight))  # type: ignore[arg-type]
    assert [item.refusal.code for item in _done(b.graph).findings if item.refusal] == ["clone-budget"]
    outcome = _done(b.graph, clone_budget=64)
    assert outcome.findings[0].outcome == "deleted"
    assert any(node.inputs[0].const is not None for node in outcome.graph.nodes if node.inputs[0] is not None)


def test_no_copy_where_it_would_not_help() -> None:
    """The norms stand in front of nothing that could take their scale: copies of other weights change nothing."""
    b = Builder()
    x, y = _twice(b)
    b.output(_sigmoid(b, b.bn(b.relu(x), gamma=-np.ones(4))), _sigmoid(b, y))
    outcome = _done(b.graph, objective="norms", clone_budget="10MB")
    assert not [item for item in outcome.applied if item.rule == "shared-conv"]
    assert [item.refusal.code for item in outcome.findings if item.refusal] != ["clone-budget"]


def test_the_budget_goes_to_what_saves_most() -> None:
    b = Builder()
    x, y = _twice(b, "Conv")
    small, other = _twice_linear(b)
    b.output(*(_sigmoid(b, b.bn(value, signed=True)) for value in (x, y, small, other)))
    for budget, deleted in ((0, 2), (64, 3), (WEIGHT, 3), (WEIGHT + 64, 4)):
        outcome = _done(b.graph, clone_budget=budget)
        assert sum(finding.outcome == "deleted" for finding in outcome.findings) == deleted
        left = [item.refusal.reason for item in outcome.findings if item.refusal is not None]
        assert budget != WEIGHT or f"{WEIGHT:,} bytes" in left[0]
    needed = [item.refusal.fix for item in _done(b.graph).findings if item.refusal is not None]
    assert needed == [f"raise --clone-budget to {WEIGHT} or more", "raise --clone-budget to 64 or more"]


def _twice_linear(b: Builder) -> tuple[Value, Value]:
    x, y = b.gemm(b.input("u", ("N", 4)), 4), b.gemm(b.input("v", ("N", 4)), 4)
    b.graph.set_input(y.producer, 1, x.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    return x, y


def test_a_copy_that_is_not_needed_is_not_made() -> None:
    """The scale behind the shared convolution can go into the layer behind it, those of the linear layers only into them."""
    b = Builder()
    free, fixed = _twice(b, "Conv")
    ends = [_sigmoid(b, b.conv(b.bn(b.relu(free)), 3)), _sigmoid(b, fixed)]
    ends += [_sigmoid(b, b.bn(value, signed=True)) for value in _twice_linear(b)]
    b.output(*ends)
    assert [item.refusal.fix for item in _done(b.graph).findings if item.refusal] == ["raise --clone-budget to 64 or more"]
    outcome = _done(b.graph, clone_budget="1MB")
    assert {finding.outcome for finding in outcome.findings} == {"deleted"}
    assert _weights(outcome) == 4


def test_an_overridable_weight_is_not_copied() -> None:
    b = Builder()
    x, y = _twice(b)
    b.graph.pinned.add(x.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    b.output(_sigmoid(b, b.bn(x)), _sigmoid(b, b.bn(y)))
    assert shared_conv.run(b.graph, Policy(clone_budget=10**6)).graph is b.graph


def test_nothing_is_tried_without_sharing_or_without_the_affine_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(graph: Graph, policy: Policy) -> Any:
        raise AssertionError("the affine step was tried")

    monkeypatch.setattr(shared_conv.affine, "run", never)
    b = Builder()
    b.output(_sigmoid(b, b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), signed=True)))
    assert shared_conv.run(b.graph, Policy("norms", clone_budget=10**6)).graph is b.graph
    b = Builder()
    _fork(b)
    policy = Policy("norms", clone_budget=10**6, uses=lambda rule: rule == "shared-conv")
    assert shared_conv.run(b.graph, policy).graph is b.graph


def test_it_can_be_switched_off() -> None:
    b = Builder()
    _fork(b)
    outcome = _done(b.graph, objective="norms", clone_budget="10MB", skip=("shared-conv",))
    assert sum(finding.outcome == "deleted" for finding in outcome.findings) == 1
    outcome = _done(b.graph, objective="norms", clone_budget="10MB", only=("shared-conv", "affine"))
    assert sum(finding.outcome == "deleted" for finding in outcome.findings) == 2
