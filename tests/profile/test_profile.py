"""One real profile: does everything add up, and does the JSON say what its schema says.  No time is judged by its size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx.helper as oh
import pytest
import torch

from normfold.errors import CannotTell, UsageError
from normfold.load import load
from normfold.pipeline.profiling import compare_models, measured_machine, profile
from normfold.profile import tasks
from normfold.profile.result import ModelProfile, ProfileReport, Setting
from normfold.record import Record
from normfold.report.profile_json import profile_to_json, schema
from onnx_models import conv_bn, floats, info, model
from profiled import MACHINE
from tools._nets import ResNet18, norm_heavy, randomised

QUICK = Setting(seconds=0.4, confidence=0.9)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv-BN-Relu on a dynamic batch."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    path.write_bytes(conv_bn().SerializeToString())
    return path


@pytest.fixture(scope="module")
def profiled(net: Path) -> ModelProfile:
    record = Record()
    return profile(load(net, inputs=["2x3x8x8"], record=record), QUICK, record, machine=MACHINE, every_level=True)


def test_wall_is_the_sum_of_its_parts(profiled: ModelProfile) -> None:
    for level in profiled.levels:
        parts = level.reconciled
        assert parts.kernels + parts.executor + parts.around + parts.binding == pytest.approx(parts.wall)
        assert level.seconds == pytest.approx(parts.kernels)
        assert sum(layer.seconds for layer in level.layers) == pytest.approx(parts.kernels)
        assert sum(layer.share for layer in level.layers) == pytest.approx(1.0)
        assert 0 <= level.norms_low <= level.norms <= level.norms_high <= 1
        assert level.parallel.critical <= level.seconds + 1e-12


def test_levels_layers_and_norms(profiled: ModelProfile) -> None:
    assert [level.name for level in profiled.levels] == ["disabled", "basic", "extended", "all"]
    off = profiled.level("disabled")
    assert [kernel.op for kernel in off.kernels] == ["Conv", "BatchNormalization", "Relu"]
    assert [kernel.layer for kernel in off.kernels] == ["stem.conv", "stem.bn", "relu"]
    assert [kernel.norm for kernel in off.kernels] == ["", "stem.bn", ""]
    assert all(kernel.critical for kernel in off.kernels), "a chain"
    assert profiled.deployed.norms == 0.0
    [row] = profiled.norms
    assert (row.name, row.kind, row.fate, row.outcome) == ("stem.bn", "batch", "folded by the runtime", "deleted")
    assert "Your runtime already does this" in profiled.sentence
    assert profiled.inputs == {"x": [2, 3, 8, 8]}
    assert profiled.cold.peak is None or profiled.cold.peak > (profiled.cold.base or 0)


def test_the_json_is_what_the_schema_says(profiled: ModelProfile) -> None:
    described = schema()
    jsonschema.Draft202012Validator.check_schema(described)
    for report in (ProfileReport(profiled), ProfileReport(profiled, profiled, profiled.noise)):
        jsonschema.validate(json.loads(profile_to_json(report)), described)
    broken = json.loads(profile_to_json(ProfileReport(profiled)))
    broken["model"]["levels"][0]["kernels"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, described)


def test_a_torch_model_is_exported_and_its_norms_are_those_of_the_module() -> None:
    record = Record()
    net = randomised(norm_heavy(channels=8, depth=2))
    found = profile(load(net, calls=[((torch.zeros(1, 3, 16, 16),), {})], record=record), QUICK, record, machine=MACHINE)
    assert {row.name for row in found.norms} == {"2", "5"}
    assert {row.fate for row in found.norms} == {"folded by the exporter"}
    assert "exporter already does this" in found.sentence
    off = found.level("disabled")
    assert {kernel.norm for kernel in off.kernels} == {"", "2", "5"}
    assert {kernel.layer for kernel in found.deployed.kernels if kernel.op == "Conv"} == {"0", "1", "4"}
    assert [level.name for level in found.levels] == ["disabled", "all"]


def test_without_example_inputs_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    path.write_bytes(
        model([oh.make_node("Relu", ["x"], ["y"])], [info("x", [1, "T"])], [info("y", [1, "T"])]).SerializeToString()
    )
    record = Record()
    with pytest.raises(UsageError, match=r"open\.onnx cannot be run without example inputs: size 'T' of input 'x' is open"):
        profile(load(path, record=record), QUICK, record, machine=MACHINE)


def test_what_the_runtime_does_not_run_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "mystery.onnx"
    nodes = [oh.make_node("Mystery", ["x"], ["y"], domain="nowhere")]
    path.write_bytes(model(nodes, [info("x", [1])], [info("y", [1])], domains=["nowhere"]).SerializeToString())
    record = Record()
    with pytest.raises(CannotTell, match=r"the cold start failed: .*mystery"):
        profile(load(path, record=record), QUICK, record, machine=MACHINE)


@pytest.mark.parametrize(
    ("changed", "said"), [({"level": "fast"}, "disabled, basic"), ({"affinity": (4096,)}, "may use the processors")]
)
def test_settings_that_make_no_sense_are_refused(net: Path, changed: dict[str, object], said: str) -> None:
    record = Record()
    with pytest.raises(UsageError, match=said):
        profile(load(net, record=record), replace(QUICK, **changed), record, machine=MACHINE)  # type: ignore[arg-type]


def test_two_models_with_other_inputs_are_compared(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    nodes = [oh.make_node("MatMul", ["a", "w"], ["b"])]
    other.write_bytes(model(nodes, [info("a", [4, 8])], [info("b", [4, 2])], {"w": floats(8, 2)}).SerializeToString())
    sides = [load(path, record=Record()) for path in (net, other)]
    timing = compare_models(sides[0], sides[1], replace(QUICK, seconds=0.2))
    assert timing.before > 0 and timing.after > 0 and timing.low <= timing.ratio <= timing.high


def test_the_machine_is_described_and_its_peaks_measured() -> None:
    machine = measured_machine(replace(QUICK, seconds=0.1))
    assert machine.flops > 1e8 and machine.bandwidth > 1e8 and machine.cache > 1e8
    assert machine.cores and machine.cpu and machine.versions["onnxruntime"]


def test_warm_up_ends_when_the_times_settle_or_the_time_is_over() -> None:
    def after(times: list[float], seconds: float) -> tuple[int, bool]:
        now = [0.0]
        left = iter(times)

        def run() -> None:
            now[0] += next(left)

        return tasks.warm_up(run, seconds, clock=lambda: now[0])

    assert after([5.0] * 5 + [1.0] * 20, 1e9) == (15, True)
    assert after([0.8**i for i in range(100)], 4.9) == (18, False)
    assert after([2.0] * 10, 1.0) == (1, False)


@pytest.mark.slow
def test_a_resnet_is_wholly_mapped_and_the_wall_reconciled() -> None:
    """The shares are wide here: a busy machine must not fail this."""
    record = Record()
    net = load(randomised(ResNet18(8, 10)), calls=[((torch.zeros(1, 3, 64, 64),), {})], record=record)
    found = profile(net, QUICK, record, machine=MACHINE)
    for level in found.levels:
        assert level.mapped + level.inserted > 0.95
        assert np.isfinite([level.reconciled.explained, level.norms]).all()
    assert {row.fate for row in found.norms} == {"folded by the exporter"} and len(found.norms) == 20
    branch = [layer for layer in found.deployed.layers if layer.name.endswith("downsample.0")]
    assert len(branch) == 3 and not any(layer.critical for layer in branch), "the shortcut is the shorter way"
