"""The Python API: its names, its promises to the caller, and what its docstrings say."""

from __future__ import annotations

import inspect as introspection
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import normfold
from normfold.errors import UsageError
from normfold.record import Record
from routes import exported, randomised


def small(pad: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3, padding=pad), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))


def test_the_public_names_are_these_and_documented() -> None:
    assert normfold.__all__ == ["Options", "Record", "Result", "inspect", "optimize", "verify"]
    assert set(normfold.__all__) == set(dir(normfold))
    for name in normfold.__all__:
        assert introspection.getdoc(getattr(normfold, name)), name


def test_importing_normfold_is_light() -> None:
    code = "import normfold, sys; print([name for name in ('torch', 'onnx', 'numpy', 'onnxruntime') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_onnx_file_without_proof_needs_no_torch(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(exported(small(), torch.zeros(1, 3, 8, 8)), model)
    code = (
        "import normfold, sys\n"
        f"normfold.optimize({str(model)!r}, outputs=[{str(tmp_path / 'o.onnx')!r}], verify=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert (tmp_path / "o.onnx").exists()


def test_a_live_module_is_never_touched() -> None:
    module = small().train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    result = normfold.optimize(module, (x,))
    assert module.training and isinstance(module[1], nn.BatchNorm2d)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with torch.no_grad():
        assert torch.allclose(result.module(x), module.eval()(x), atol=1e-5)
    assert not any("running" in name for name in result.program.state_dict)


def test_results_are_saved_in_both_formats_with_a_manifest(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    outputs = [tmp_path / "net.pt2", tmp_path / "net.onnx"]
    result = normfold.optimize(small(), (x,), outputs=outputs)
    assert result.record.passed
    for path in outputs:
        manifest = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert manifest["outputs"][path.name] == result.record.outputs[str(path)]
        assert manifest["findings"][0]["outcome"] == "deleted"
        assert manifest["before"]["norms"] == 1 and manifest["after"]["norms"] == 0
    with pytest.raises(UsageError, match="exists"):
        normfold.optimize(small(), (x,), outputs=outputs)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    model = exported(small(), torch.zeros(1, 3, 8, 8))
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        normfold.optimize(model, outputs=[folder / "net.onnx"])
    for file in ("net.onnx", "net.onnx.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_fold_that_fails_the_gates_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the algebra: the bias is off by one per cent."""
    from normfold.algebra import absorb

    right = absorb.conv_bias
    monkeypatch.setattr(absorb, "conv_bias", lambda *args: right(*args) * 1.01)
    x = torch.randn(2, 3, 8, 8)
    result = normfold.optimize(small(), (x,), outputs=[tmp_path / "net.pt2"])
    assert [item.outcome for item in result.record.findings] == ["kept"] and result.record.passed
    assert any("affine was undone" in text for text in result.record.warnings)
    with torch.no_grad():
        assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(x), small()(x))


def test_inspect_says_what_would_become_of_every_norm() -> None:
    record = normfold.inspect(small(), (torch.randn(2, 3, 8, 8),))
    assert isinstance(record, Record)
    assert [(finding.name, finding.outcome) for finding in record.findings] == [("1", "deleted")]


def test_dynamic_sizes_survive(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    outputs = [tmp_path / "net.pt2", tmp_path / "net.onnx"]
    result = normfold.optimize(small(pad=1), (x,), outputs=outputs, dynamic=["Nx3xHxW"])
    other = torch.randn(5, 3, 11, 9)
    with torch.no_grad():
        assert torch.allclose(result.module(other), small(pad=1)(other), atol=1e-5)
    dims = onnx.load(outputs[1]).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", 3, "H", "W"]


def test_only_skip_and_keep() -> None:
    x = (torch.randn(2, 3, 8, 8),)
    for options, code in (
        ({"skip": ["affine"]}, "skipped"),
        ({"only": ["constant-channels"]}, "skipped"),
        ({"keep": ["1"]}, "asked-to-keep"),
    ):
        (finding,) = normfold.optimize(small(), x, verify=False, **options).record.findings
        assert finding.refusal is not None and finding.refusal.code == code
    with pytest.raises(UsageError, match="no rewrite called"):
        normfold.optimize(small(), x, skip=["nonsense"])


def test_proto_in_memory() -> None:
    model = exported(small(), torch.zeros(1, 3, 8, 8))
    before = model.SerializeToString()
    result = normfold.optimize(model, {"input": np.zeros((1, 3, 8, 8), np.float32)})
    assert result.record.passed and result.model is not None
    assert model.SerializeToString() == before, "the caller's model is not changed"
