"""Torch models module by module: times that add up, hooks that go, refusals.  The sleeps are far above what noise does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

from normfold.errors import CannotTell, UsageError
from normfold.load import load
from normfold.pipeline import profiling_torch
from normfold.pipeline.profiling_torch import profile_torch
from normfold.profile.result import ProfileReport, Setting
from normfold.profile.torch_modules import ROOT, first_call, measure_modules
from normfold.record import Record
from normfold.report.html_page import page
from normfold.report.profile_json import profile_to_json, schema
from onnx_models import conv_bn
from profiled import MACHINE
from tools._nets import norm_heavy, randomised

QUICK = Setting(runtime="torch", level="eager", seconds=0.2, confidence=0.9)


class Sleeps(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return x


class Nested(nn.Module):
    """3 ms of its own, a child that is called twice, and one within another."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.holds = Sleeps(2e-3), nn.Sequential(Sleeps(4e-3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(3e-3)
        return self.twice(self.holds(self.twice(x)))


def test_own_times_without_those_of_children() -> None:
    module, x = Nested(), torch.zeros(1)
    kernels, bare, watched, inside = measure_modules(module, lambda: module(x), 0.0)
    own = {kernel.name: kernel for kernel in kernels}
    assert set(own) == {ROOT, "twice", "holds", "holds.0"}
    assert own["twice"].calls == 2 and own["holds"].seconds < 1e-3
    assert own[ROOT].seconds >= 3e-3 and own["twice"].seconds >= 4e-3 and own["holds.0"].seconds >= 4e-3
    assert sum(kernel.seconds for kernel in kernels) <= max(watched)
    assert len(bare) == len(watched) >= 20 and 0 <= inside < 1e-2
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_profile_of_a_module_says_what_its_norms_cost() -> None:
    record = Record()
    net = randomised(norm_heavy(depth=2))
    found = profile_torch(load(net, calls=[((torch.zeros(1, 3, 16, 16),), {})], record=record), QUICK, record, machine=MACHINE)
    assert [row.name for row in sorted(found.norms, key=lambda row: row.name)] == ["2", "5"]
    assert {(row.fate, row.outcome, row.kind) for row in found.norms} == {("own kernel", "deleted", "batch")}
    assert 0 < found.deployed.norms < 1
    assert "`normfold optimize` removes 2 of them" in found.sentence
    assert found.deployed.reconciled.kernels + found.deployed.reconciled.executor == pytest.approx(found.deployed.reconciled.wall)
    jsonschema.validate(json.loads(profile_to_json(ProfileReport(found))), schema())
    assert "BatchNorm2d" in page(ProfileReport(found))


@pytest.mark.slow
def test_a_compiled_model_is_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """By dynamo alone: inductor would take half a minute."""
    monkeypatch.setattr(profiling_torch, "compiled", lambda module: torch.compile(module, backend="eager"))
    record = Record()
    loaded = load(randomised(norm_heavy(depth=1)), calls=[((torch.zeros(1, 3, 8, 8),), {})], record=record)
    found = profile_torch(loaded, replace(QUICK, level="compile"), record, machine=MACHINE)
    assert [level.name for level in found.levels] == ["eager", "compile"]
    assert [kernel.op for kernel in found.deployed.kernels] == ["compiled"]
    assert (found.norms[0].now, found.norms[0].fate) == (0.0, "not known") and "torch.compile runs the whole" in found.sentence


def test_what_torch_cannot_run() -> None:
    with pytest.raises(CannotTell, match=r"torch cannot run this model \(mat1 and mat2"):
        first_call(lambda: nn.Linear(2, 2)(torch.zeros(1, 3)))


def test_an_onnx_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_bn().SerializeToString())
    record = Record()
    with pytest.raises(UsageError, match="which torch does not run; leave --runtime out"):
        profile_torch(load(path, record=record), QUICK, record, machine=MACHINE)
    command = [sys.executable, "-m", "normfold", "profile", str(path), "--runtime", "torch", "--against", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "leave --runtime out" in done.stderr
