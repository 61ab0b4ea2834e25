"""A wrong rewrite inside `optimize`: it is found, undone and reported, the rest goes on and is judged again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import normfold
from normfold.errors import ResultDiffers
from normfold.graph import Constant, Graph
from normfold.load import load
from normfold.pipeline import Options, Result, proving, run
from normfold.pipeline.routes import captured
from normfold.record import Record
from normfold.rewrites import Policy, Rewrite, Rewritten, rewrites
from routes import exported, randomised

X = torch.randn(2, 3, 8, 8)


def three() -> nn.Module:
    """Three Conv-BN, and two linear layers in a row that `chains` merges."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for i, o in ((3, 4), (4, 5), (5, 6)):
        parts += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
    return randomised(nn.Sequential(*parts, nn.Flatten(), nn.Linear(384, 3), nn.Linear(3, 3)))


@contextmanager
def spoiled(rule: str, change: Any) -> Iterator[None]:
    """The rewrite `rule` with its result changed behind its back."""

    def replaced(item: Rewrite) -> Rewrite:
        def wrong(graph: Graph, policy: Policy) -> Rewritten:
            result = item.run(graph, policy)
            change(graph, result)
            return result

        return Rewrite(item.id, item.summary, wrong) if item.id == rule else item

    right, patch = rewrites(), pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr("normfold.pipeline.rewriting.rewrites", lambda: tuple(map(replaced, right)))
        yield


def bias_of(place: int, factor: float = 1.01) -> Any:
    """The bias of the convolution number `place`, where the rewrite changed it."""

    def change(before: Graph, result: Rewritten) -> None:
        old = {value.name for value in before.constants()}
        conv = [node for node in result.graph.nodes if node.kind == "Conv"][place]
        bias = conv.inputs[2]
        if bias is not None and bias.const is not None and bias.name not in old:
            result.graph.set_input(conv, 2, result.graph.derived(bias, bias.const.float64() * factor))

    return change


def optimized(route: str, **options: Any) -> Result:
    record = Record()
    module = three()
    loaded = (
        load(module, calls=[((X,), {})], record=record)
        if route == "torch"
        else load(onnx.load_from_string(as_onnx()), record=record)
    )
    return run(loaded, Options(timing=False, simplify=False, objective="norms", **options), record)


@cache
def as_onnx() -> bytes:
    """The network as the exporter writes it."""
    return exported(three(), X).SerializeToString()


def outcomes(result: Result) -> list[str]:
    return [item.outcome for item in result.record.findings]


@pytest.mark.parametrize(("route", "place"), [("torch", 1), ("onnx", 0)])
def test_the_wrong_layer_is_undone_and_the_others_stay_folded(route: str, place: int) -> None:
    with spoiled("affine", bias_of(place)):
        result = optimized(route)
    wanted = ["deleted"] * 3
    wanted[place] = "kept"
    assert outcomes(result) == wanted
    refusal = result.record.findings[place].refusal
    assert refusal is not None and refusal.code == "undone"
    assert result.record.passed
    (lost,) = [item for item in result.record.rewrites if item.verdict == "undone"]
    assert (lost.rule, lost.targets) == ("affine", (result.record.findings[place].name,))
    assert lost.failed is not None and lost.failed.gate == "G1"
    assert {item.rule for item in result.record.rewrites if item.verdict == "passed"} == {"affine", "chains"}
    (warning,) = [text for text in result.record.warnings if "undone" in text]
    assert "affine" in warning and result.record.findings[place].name in warning and "report" in warning
    assert [item.target for item in result.record.applied if item.rule == "affine"] == [
        item.name for item in result.record.findings if item.outcome == "deleted"
    ]


@pytest.mark.slow
def test_what_is_written_computes_the_original(tmp_path: Path) -> None:
    module = three()
    with spoiled("affine", bias_of(1)):
        result = normfold.optimize(module, (X,), outputs=[tmp_path / "net.pt2", tmp_path / "net.onnx"])
    assert outcomes(result) == ["deleted", "kept", "deleted"]
    for path in tmp_path.glob("net.*"):
        if path.suffix != ".json":
            assert normfold.verify(module, path, inputs=(X,), level="quick").verdict == "same"  # type: ignore[operator]


def test_another_rewrite_is_named_when_it_is_the_wrong_one() -> None:
    def change(before: Graph, result: Rewritten) -> None:
        for node in result.graph.nodes:
            weight = node.inputs[1] if node.kind == "Gemm" else None
            if weight is not None and weight.const is not None and result.applied:
                result.graph.set_input(node, 1, result.graph.derived(weight, weight.const.float64() * 1.001))

    with spoiled("chains", change):
        result = optimized("torch")
    assert outcomes(result) == ["deleted"] * 3
    assert {item.rule for item in result.record.rewrites if item.verdict == "undone"} == {"chains"}
    assert not any(item.rule == "chains" for item in result.record.applied)


def test_a_rewrite_that_is_wrong_everywhere_goes_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.algebra import absorb

    right = absorb.conv_bias
    monkeypatch.setattr(absorb, "conv_bias", lambda *args: right(*args) * 1.01)
    result = optimized("torch")
    assert outcomes(result) == ["kept"] * 3
    assert {item.refusal.code for item in result.record.findings if item.refusal} == {"undone"}
    assert result.record.passed


def test_weights_that_lose_digits_when_they_are_stored_are_blamed_on_their_rewrite() -> None:
    """In float64 all is right: only the written artefact shows it, so the artefacts of the steps are judged."""

    def spoil(before: Graph, result: Rewritten) -> None:
        for value in result.graph.constants():
            const = value.const
            if const is not None and const.pending and len(const.shape) == 4:
                half = const.read().astype(np.float16).astype(np.float32)

                class Lossy(Constant):
                    __slots__ = ()

                    def rounded(self, half: Any = half) -> Constant:
                        return Constant(half)

                value.const = Lossy(const.read(), dtype=const.dtype)

    with spoiled("affine", spoil):
        result = optimized("onnx")
    (lost,) = [item for item in result.record.rewrites if item.verdict == "undone"]
    assert lost.rule == "affine" and lost.failed is not None and lost.failed.gate in ("G2", "G3")
    assert result.record.passed and outcomes(result) == ["kept"] * 3


def test_where_no_rewrite_is_to_blame_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer itself is wrong."""
    from normfold.pipeline.routes import OnnxRoute

    right = OnnxRoute.result

    def result(self: OnnxRoute, path: Path) -> Any:
        runner = right(self, path)
        run_right = runner.run
        runner.run = lambda feeds: {name: array * np.float32(1.5) for name, array in run_right(feeds).items()}
        return runner

    monkeypatch.setattr(OnnxRoute, "result", result)
    with pytest.raises(ResultDiffers, match="nothing was written"):
        optimized("onnx", outputs=(tmp_path / "net.onnx",))
    assert list(tmp_path.iterdir()) == []


def test_a_view_is_certified_once_for_all_its_artefacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.verify import proof

    seen: list[str] = []
    right = proof.certify

    def certify(*args: Any, **options: Any) -> Any:
        seen.append(options["family"])
        return right(*args, **options)

    monkeypatch.setattr(proof, "certify", certify)
    result = optimized("torch", outputs=(tmp_path / "net.pt2", tmp_path / "net.onnx"))
    assert len(seen) == len(set(seen)) >= 7
    gates = [item.gate for item in result.record.comparisons]
    certified = [item.subject for item in result.record.comparisons if item.gate == "certificate"]
    assert "G2" in gates and len(certified) == len(set(certified))


def test_an_artefact_that_cannot_be_captured_is_judged_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normfold.pipeline.routes.captured", lambda path: None)
    result = optimized("torch")
    assert result.record.passed and "G2" in {item.gate for item in result.record.comparisons}


def test_files_that_are_no_model_of_ours_have_no_view(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    assert captured(tmp_path / "x.onnx") is None


@pytest.mark.slow
def test_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that cannot be switched off is given up on."""
    monkeypatch.setattr(proving, "_without", lambda options, blamed: options)
    with spoiled("affine", bias_of(1)), pytest.raises(ResultDiffers):
        optimized("torch")
