"""A file that does not hold what the view holds is not written, whoever is at fault; what is said of both is no difference."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.helper
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.api import optimize
from normfold.errors import CannotTell, ResultDiffers, UsageError
from normfold.export.to_onnx import FileCheck
from onnx_models import conv_bn
from routes import randomised


class Divided(nn.Module):
    """torch.onnx.export loses the divisor of the average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(F.avg_pool2d(self.bn(self.conv(x)), 2, divisor_override=3))


class Counted(nn.Module):
    """The state that a model keeps from call to call."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.bn(self.conv(x)) * self.calls


X = torch.randn(2, 3, 8, 8)


def test_what_the_exporter_writes_wrongly_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ResultDiffers, match=r"torch\.onnx\.export.*write the \.pt2"):
        optimize(randomised(Divided()), (X,), outputs=[tmp_path / "net.pt2", tmp_path / "net.onnx"], proof_seconds=2)
    assert not list(tmp_path.iterdir())


def test_a_format_that_is_asked_for_later_is_judged_then(tmp_path: Path) -> None:
    result = optimize(randomised(Divided()), (X,), proof_seconds=2)
    assert result.record.passed
    with pytest.raises(ResultDiffers, match=r"torch\.onnx\.export.*write the \.pt2"):
        result.save(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert result.save(tmp_path / "net.pt2") == [tmp_path / "net.pt2"]
    unjudged = optimize(randomised(Divided()), (X,), verify=False)
    assert unjudged.save(tmp_path / "net.onnx") == [tmp_path / "net.onnx"]


def test_a_suffix_names_a_format(tmp_path: Path) -> None:
    """In either case; with any other suffix the file would be ONNX, whatever it says."""
    result = optimize(randomised(Divided()), (X,), outputs=[tmp_path / "NET.PT2"], verify=False)
    assert torch.export.load(str(tmp_path / "NET.PT2")).module()(X).shape == (2, 4, 3, 3)
    with pytest.raises(UsageError, match=r"written as \.pt2 or \.onnx"):
        result.save(tmp_path / "net.pt")
    with pytest.raises(UsageError, match=r"written as \.onnx"):
        optimize(conv_bn(), verify=False).save(tmp_path / "net.pt2")


def test_running_the_result_does_not_change_what_is_saved(tmp_path: Path) -> None:
    result = optimize(randomised(Counted()), (X,), proof_seconds=2)
    module = result.module
    first, second = (module(X).clone() for _ in range(2))
    assert torch.allclose(second, 2 * first), "it keeps its state"
    result.save(tmp_path / "net.pt2")
    assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(X), first)
    assert torch.equal(result.module(X), first)


# ---- what the checker and the runtime say of the file -----------------------------------------------------------------------


def test_what_the_checker_says_of_the_original_too_does_not_stop_the_result() -> None:
    source = conv_bn()
    source.graph.output[0].type.tensor_type.ClearField("shape")  # as several exporters leave it; every runtime takes it
    record = optimize(source).record
    assert record.passed and record.findings[0].outcome == "deleted"
    assert any("as it does of the original" in note and "shape" in note for note in record.notes)


@pytest.mark.parametrize(("last", "message"), [("Unheard", "takes neither"), ("BatchNormalization", "does not take the model")])
def test_a_model_that_the_runtime_does_not_take_cannot_be_judged(last: str, message: str, tmp_path: Path) -> None:
    """An op of another domain, which stays; and a BatchNormalization of an opset that no runtime has, which goes."""
    source = (
        conv_bn(opset=6, ir=3, listed=[item.name for item in conv_bn().graph.initializer]) if last != "Unheard" else conv_bn()
    )
    if last == "Unheard":
        relu = next(node for node in source.graph.node if node.op_type == "Relu")
        relu.op_type, relu.domain = last, "elsewhere"
        source.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    else:
        source = conv_bn(opset=6, ir=3, listed=[item.name for item in source.graph.initializer])
        norm = next(node for node in source.graph.node if node.op_type == last)
        norm.attribute.append(onnx.helper.make_attribute("is_test", 1))
    with pytest.raises(CannotTell, match=f"{message}.*--no-verify writes"):
        optimize(source, outputs=[tmp_path / "net.onnx"])
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_the_result_alone_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"result.onnx": FileCheck("", "it does not load"), "before.onnx": FileCheck("no shape", "")}
    monkeypatch.setattr("normfold.export.to_onnx.check", lambda path: said[Path(path).name])
    with pytest.raises(ResultDiffers, match="not accepted: it does not load"):
        optimize(conv_bn())
