"""Programs to .pt2 files and ONNX models."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from normfold.capture.aten import from_aten
from normfold.capture.aten_write import to_program
from normfold.capture.program import export_module
from normfold.errors import InputRefused, UsageError
from normfold.export import to_torch
from normfold.export.to_torch import save_program, to_onnx_model


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor, input: torch.Tensor) -> Any:
        y = self.norm(self.conv(image)).relu()
        return y.flatten(2), y.mean((2, 3)) + input


N, H = torch.export.Dim("batch"), torch.export.Dim("H", min=4, max=512)
args = (torch.randn(2, 3, 8, 8), torch.randn(4))


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    """An edited program: its convolution has other weights."""
    graph = from_aten(export_module(Net().eval(), args, dynamic_shapes=({0: N, 2: H}, None)))
    conv = graph.nodes[0]
    graph.set_input(conv, 1, graph.derived(conv.inputs[1], conv.inputs[1].const.float64() * 2))
    return to_program(graph)


def test_a_file_that_loads_and_computes_the_same(program: torch.export.ExportedProgram, tmp_path: Path):
    path = tmp_path / "net.pt2"
    save_program(program, path)
    loaded = torch.export.load(path)
    image = torch.randn(3, 3, 10, 8)
    with torch.no_grad():
        for came, expected in zip(loaded.module()(image, args[1]), program.module()(image, args[1]), strict=True):
            assert torch.equal(came, expected)
    assert sorted(os.listdir(tmp_path)) == ["net.pt2"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_an_existing_file_is_replaced_only_with_force(program: torch.export.ExportedProgram, tmp_path: Path):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"net\.pt2 exists; choose another name or pass force"):
        save_program(program, path)
    assert path.read_bytes() == b"precious"
    save_program(program, path, force=True)
    assert path.read_bytes()[:2] == b"PK"


def test_a_folder_that_is_missing(program: torch.export.ExportedProgram, tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot be written: No such file or directory; choose another folder"):
        save_program(program, tmp_path / "nowhere" / "net.pt2")


def test_nothing_is_left_when_writing_fails(
    program: torch.export.ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_torch.os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save_program(program, path, force=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.pt2"]


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from torch import nn
from normfold.capture.aten import from_aten
from normfold.capture.aten_write import to_program
from normfold.capture.program import export_module
from normfold.export.to_torch import save_program
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
program = export_module(net, (torch.ones(2, 3, 4, 4),), dynamic_shapes=({0: torch.export.Dim("N")},))
save_program(to_program(from_aten(program)), sys.argv[2])
"""


def test_the_same_bytes_in_every_process(root: Path, tmp_path: Path):
    written: list[bytes] = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.pt2"
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(root), str(path)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_onnx_keeps_names_and_dynamic_sizes(
    program: torch.export.ExportedProgram, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    model = to_onnx_model(program)
    assert capfd.readouterr() == ("", "")
    assert [value.name for value in model.graph.inputs] == ["image", "input"]
    assert [str(dim) for dim in model.graph.inputs[0].shape] == ["batch", "3", "H", "8"]
    names = [spec.arg.name for spec in program.graph_signature.output_specs]
    assert [value.name for value in model.graph.outputs] == names
    assert str(model.graph.outputs[1].shape[0]) == "batch"
    assert "conv.weight" in model.graph.initializers
    ir.save(model, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    image = torch.randn(5, 3, 12, 8)
    with torch.no_grad():
        expected = program.module()(image, args[1])
    came = session.run(None, {"image": image.numpy(), "input": args[1].numpy()})
    for one, other in zip(came, expected, strict=True):
        assert np.allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


def test_opset(program: torch.export.ExportedProgram):
    assert to_onnx_model(program, opset=21).opset_imports[""] == 21
    assert to_onnx_model(program).opset_imports[""] >= 18


def test_a_program_that_cannot_become_onnx_is_refused_in_one_line():
    class Eigen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x @ x.T)

    program = to_program(from_aten(export_module(Eigen().eval(), (torch.randn(3, 3),))))
    with pytest.raises(InputRefused, match=r"cannot become ONNX: .*; the \.pt2 artefact does not depend on ONNX") as raised:
        to_onnx_model(program)
    assert "\n" not in str(raised.value)
