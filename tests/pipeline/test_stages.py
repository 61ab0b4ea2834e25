"""What the pipeline decides: never slower, nothing wrong written, rules of other packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normfold.api import optimize
from normfold.errors import UsageError
from normfold.load import load
from normfold.ops import op_rules
from normfold.ops.rule import OpRule
from normfold.pipeline import Options, run
from normfold.record import Record, Timing
from normfold.rewrites import Rewrite, Rewritten, rewrites
from routes import exported, randomised


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))


X = torch.randn(2, 3, 8, 8)


def _timed(verdict: str) -> Any:
    def compare(*args: Any, **options: Any) -> Timing:
        return Timing("ONNX Runtime", "all", 1, 1e-3, 1.1e-3, 1.1, 1.05, 1.15, 0.99, 100, verdict)  # type: ignore[arg-type]

    return compare


def test_a_result_that_is_measured_slower_is_not_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normfold.profile.sessions.compare_onnx", _timed("slower"))
    result = optimize(small(), (X,), outputs=[tmp_path / "net.pt2"], timing=True, verify=False)
    (finding,) = result.record.findings
    assert finding.outcome == "kept" and finding.refusal is not None and finding.refusal.code == "slower"
    assert any(node.kind == "BatchNormalization" for node in result.graph.nodes)
    with torch.no_grad():
        program = torch.export.load(tmp_path / "net.pt2")
        assert torch.equal(program.module()(X), small()(X))


@pytest.mark.parametrize(
    ("verdict", "objective"), [("no difference", "latency"), ("slower", "norms"), ("too noisy to tell", "latency")]
)
def test_otherwise_it_is(verdict: str, objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normfold.profile.sessions.compare_onnx", _timed(verdict))
    result = optimize(small(), (X,), timing=True, verify=False, objective=objective)
    assert result.record.findings[0].outcome == "deleted"
    assert result.record.timings[0].verdict == verdict


def test_a_wrong_fold_is_undone_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.algebra import absorb

    right = absorb.conv_weight
    monkeypatch.setattr(absorb, "conv_weight", lambda *args: right(*args)[::-1].copy())
    record = Record()
    loaded = load(small(), calls=[((X,), {})], record=record)
    run(loaded, Options(timing=False), record)
    assert record.findings[0].refusal is not None and record.findings[0].refusal.code == "undone"
    assert record.passed and [item.verdict for item in record.rewrites] == ["undone"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "net.onnx"
    record = Record()
    loaded = load(exported(small(), X), record=record)
    run(loaded, Options(outputs=(output,), dry_run=True, timing=False), record)
    assert record.passed and list(tmp_path.iterdir()) == []


def test_an_onnx_input_keeps_its_opset() -> None:
    with pytest.raises(UsageError, match="version_converter"):
        optimize(exported(small(), X), opset=17)


def test_the_onnxsim_step_is_taken_when_it_removes_something_and_says_the_same(tmp_path: Path) -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.transpose(1, 2).transpose(1, 2))  # onnxsim fuses the two

    output = tmp_path / "net.onnx"
    result = optimize(exported(Detour().eval(), X), {"x": X.numpy()}, outputs=[output], simplify=True)
    assert result.record.passed
    with_it = output.stat().st_size
    optimize(exported(Detour().eval(), X), {"x": X.numpy()}, outputs=[output], simplify=False, force=True)
    assert with_it < output.stat().st_size


class _Entry:
    """An entry point of another package."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def load(self) -> Any:
        return self._target


def test_other_packages_add_ops_and_rewrites(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def foreign(graph: Any, policy: Any) -> Rewritten:
        seen.append(policy.objective)
        return Rewritten(graph)

    offered = {
        "normfold.ops": [_Entry((OpRule("custom::Scale", lambda node, wiring: None), OpRule("Conv", lambda node, wiring: None)))],
        "normfold.rewrites": [_Entry(Rewrite("mine", "A rewrite of another package.", foreign))],
    }
    monkeypatch.setattr("normfold.ops.registry.entry_points", lambda group: offered[group])
    monkeypatch.setattr("normfold.rewrites.registry.entry_points", lambda group: offered[group])
    own = op_rules()["Conv"]
    for cached in (op_rules, rewrites):
        cached.cache_clear()
    try:
        assert "custom::Scale" in op_rules() and op_rules()["Conv"] == own, "kinds are added, not replaced"
        assert next(item.id for item in rewrites()) == "mine"
        optimize(small(), (X,), verify=False)
        assert seen == ["latency"]
    finally:
        for cached in (op_rules, rewrites):
            cached.cache_clear()


def test_entry_point_groups_are_read_from_installed_packages() -> None:
    assert list(importlib.metadata.entry_points(group="normfold.ops")) == []
