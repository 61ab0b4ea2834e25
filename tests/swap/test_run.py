"""The whole way of a swap: what is written, what is refused, and that the result says what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normfold.errors import InputRefused, ResultDiffers, UsageError
from normfold.load import Loaded, load
from normfold.record import Record
from normfold.swap import run as swaps
from normfold.swap.artefact import Origin
from normfold.swap.norms import SwappedNorm
from normfold.swap.result import Swapped
from normfold.swap.run import Outcome, SwapOptions, swap
from swapping import bn_lstm, conv_net, images, live, rows, saved


def options(**changes: Any) -> SwapOptions:
    quick = {"to": "layernorm", "layer_steps": 20, "steps": 30, "rate": 5e-3, "max_drop": 100.0, "timing": False}
    return SwapOptions(**{**quick, **changes})


def from_file(folder: Path, **changes: Any) -> Outcome:
    record = Record()
    loaded = load(saved(folder), data=folder / "rows.npz", dynamic=["rows=Nx4x3"], record=record)
    changes = {"outputs": (folder / "new.pt",), "held": f"{folder}/held.npz", **changes}
    return swap(loaded, options(**changes), record, origin=Origin("arch.py:build", folder, (), ("rows=Nx4x3",)))


def test_every_batchnorm_is_exchanged_and_the_cost_is_said() -> None:
    module = bn_lstm()
    outcome = swap(live(module, rows()), options(), Record())
    found, result = outcome.module, outcome.swapped
    assert not any(isinstance(part, nn.BatchNorm1d) for part in found.modules())
    assert sum(isinstance(part, SwappedNorm) for part in found.modules()) == 2
    assert any(isinstance(part, nn.BatchNorm1d) for part in module.modules())
    assert [(item.name, item.was, item.now["kind"], item.calls) for item in result.replaced] == [
        ("cell.bn_input", "BatchNorm1d", "layernorm", 4),
        ("cell.bn_recurrent", "BatchNorm1d", "layernorm", 4),
    ]
    assert all(0 < item.start < 1 and 0 < item.fitted < 1 for item in result.replaced)
    assert result.metric is not None and result.metric.measure == "agreement" and result.metric.samples == 8
    assert result.fitted_on == 32 and result.drift > 0 and set(result.losses) == {"layers", "whole"}
    assert not result.written and json.dumps(result.as_dict())


def test_held_out_samples_are_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[float] = set()
    watched = swaps.distil

    def distil(teacher: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
            seen.update(inputs[0][:, 0, 0].tolist())

        with teacher.register_forward_pre_hook(note):
            return watched(teacher, *args, **kwargs)

    monkeypatch.setattr(swaps, "distil", distil)
    x = rows()
    swap(live(bn_lstm(), x), options(), Record())
    kept = set(x[[4, 9, 14, 19, 24, 29, 34, 39], 0, 0].tolist())
    assert seen == set(x[:, 0, 0].tolist()) - kept


def test_samples_in_both_sets_are_told(tmp_path: Path) -> None:
    module, x = bn_lstm(), rows()
    np.savez(tmp_path / "held.npz", rows=x[:3].numpy(), labels=np.zeros(3, int))
    record = Record()
    swap(live(module, x), options(held=f"{tmp_path}/held.npz"), record)
    assert record.warnings == ["3 of the samples in --eval are in the data that is fitted too: the measure flatters the result"]


@pytest.mark.parametrize("to", ["layernorm", "groupnorm", "rmsnorm", "instancenorm", "none"])
def test_every_kind_of_norm_in_a_convolutional_network(to: str) -> None:
    outcome = swap(live(conv_net(), images()), options(to=to, only=("body.4",), steps=5), Record())
    assert [item.name for item in outcome.swapped.replaced] == ["body.4"]
    assert outcome.swapped.replaced[0].now["kind"] == to
    if to == "none":  # exact from the start: steps of Adam's on nothing but rounding are undone
        assert outcome.swapped.drift < 1e-5
        assert (
            len([note for note in outcome.swapped.record.notes if note.endswith("made its own loss no smaller and was undone")])
            == 2
        )


# ---- what is written -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_with_all_that_loads_it(tmp_path: Path) -> None:
    outcome = from_file(tmp_path)
    again = load(tmp_path / "new.pt", record=Record())  # the sidecar and the factory say how
    x = rows(5, seed=9)
    with torch.no_grad():
        assert torch.equal(again.module(x), outcome.module(x))
        assert not torch.allclose(again.module(x), bn_lstm()(x), atol=1e-3)
    assert again.dynamic is not None
    manifest = json.loads((tmp_path / "new.pt.json").read_text())
    assert manifest["to"] == "layernorm" and manifest["written"] and manifest["metric"]["measure"] == "accuracy"
    assert manifest["metric"]["before"] == 100.0 and manifest["options"]["seed"] == 0
    assert manifest["record"]["source"] == "net.pt" and len(manifest["record"]["source_sha256"]) == 64
    assert (
        set(manifest["record"]["outputs"])
        == {"new.pt", "new.py", "new.toml"}
        == {Path(path).name for path in outcome.swapped.record.outputs}
    )
    assert "seconds" not in manifest["record"] and not (tmp_path / "new.pt.part").exists()


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        from_file(tmp_path / name)
    for file in ("new.pt", "new.py", "new.toml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    one, two = (json.loads((tmp_path / name / "new.pt.json").read_text()) for name in "ab")
    for item in (one, two):
        del item["options"]["held"], item["metric"]["held_out"], item["start"]["held_out"]  # the folder
        del item["record"]["notes"]
    assert one == two


@pytest.mark.slow
def test_a_program_and_an_onnx_file_compute_what_the_module_does(tmp_path: Path) -> None:
    import onnxruntime

    outcome = from_file(tmp_path, outputs=(tmp_path / "new.pt2", tmp_path / "new.onnx"), steps=2, layer_steps=2)
    x = rows(5, seed=9)
    with torch.no_grad():
        wanted = outcome.module(x)
        torch.testing.assert_close(torch.export.load(tmp_path / "new.pt2").module()(x), wanted)
    session = onnxruntime.InferenceSession(tmp_path / "new.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"rows": x.numpy()})[0], wanted.numpy(), atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} >= {"new.pt2.json", "new.onnx.json"}
    assert not (tmp_path / "new.py").exists()


def test_a_loss_beyond_the_limit_is_not_written(tmp_path: Path) -> None:
    hard = {"layer_steps": 0, "steps": 1, "rate": 1.0, "max_drop": 1.0}
    with pytest.raises(ResultDiffers, match=r"points of accuracy lost on 30 held-out samples, --max-drop allows 1: nothing"):
        from_file(tmp_path, **hard)
    assert not list(tmp_path.glob("new.[!p]*")) and not (tmp_path / "new.pt").exists()
    outcome = from_file(tmp_path, **hard, force=True)
    assert outcome.swapped.written and not outcome.swapped.allowed
    assert outcome.swapped.record.warnings[-1].startswith("more was lost than --max-drop 1 allows")
    assert any("went on where" in note for note in outcome.swapped.record.notes)  # what was trained is not trained again
    assert (tmp_path / "new.pt").exists() and not (tmp_path / "new.pt.part").exists()


def test_nothing_of_somebody_else_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("mine")
    with pytest.raises(UsageError, match=r"new\.py exists and is not one that normfold wrote for new\.pt"):
        from_file(tmp_path, force=True)
    with pytest.raises(UsageError, match=r"net\.pt is the input"):
        from_file(tmp_path, outputs=(tmp_path / "net.pt",), force=True)
    (tmp_path / "new.py").unlink()
    from_file(tmp_path, steps=1, layer_steps=1)
    with pytest.raises(UsageError, match=r"new\.pt exists: give --force"):
        from_file(tmp_path)
    from_file(tmp_path, steps=1, layer_steps=1, force=True)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    from_file(tmp_path, dry_run=True, steps=2, layer_steps=2)
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        "net.pt",
        "net.toml",
        "arch.py",
        "rows.npz",
        "held.npz",
    }


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    for name in ("cut", "whole"):
        (tmp_path / name).mkdir()
    whole = from_file(tmp_path / "whole")

    def stop(stage: Any, done: int, _: float) -> None:
        if (stage.name, done) == ("whole", 11):
            raise KeyboardInterrupt

    record = Record()

    def again(**more: Any) -> Outcome:
        folder = tmp_path / "cut"
        loaded = load(saved(folder), data=folder / "rows.npz", dynamic=["rows=Nx4x3"], record=record)
        asked = options(outputs=(folder / "new.pt",), held=f"{folder}/held.npz")
        return swap(loaded, asked, record, origin=Origin("arch.py:build", folder), **more)

    with pytest.raises(KeyboardInterrupt):
        again(progress=stop)
    assert record.warnings == [f"{tmp_path}/cut/new.pt.part holds what was reached: the same command goes on with it"]
    assert (tmp_path / "cut" / "new.pt.part").exists() and not (tmp_path / "cut" / "new.pt").exists()
    went_on = again()
    assert any(note.endswith("had stopped: stage 'whole', step 11") for note in went_on.swapped.record.notes)
    assert (tmp_path / "cut" / "new.pt").read_bytes() == (tmp_path / "whole" / "new.pt").read_bytes()
    assert went_on.swapped.losses == whole.swapped.losses


def test_weights_that_do_not_make_the_network_again_are_not_written(tmp_path: Path) -> None:
    """State outside of the state_dict: the factory builds something else."""
    (tmp_path / "arch.py").write_text(
        "import torch, swapping\nclass Odd(swapping.Rows):\n    def __init__(self):\n        super().__init__()\n"
        "        self.scale = torch.rand(())\n    def forward(self, rows):\n        return super().forward(rows) * self.scale\n"
        "build = Odd\n"
    )
    module: Any = __import__("runpy").run_path(str(tmp_path / "arch.py"))["build"]().eval()
    loaded = live(module, rows())
    with pytest.raises(ResultDiffers, match="holds state that is not in its state_dict"):
        swap(loaded, options(outputs=(tmp_path / "new.pt",), steps=1), Record(), origin=Origin("arch.py:build", tmp_path))
    assert not (tmp_path / "new.pt").exists()


# ---- what is refused -----------------------------------------------------------------------------------------------------


def test_a_graph_has_no_modules_to_exchange() -> None:
    x = rows(2)
    program = torch.export.export(bn_lstm(), (x,))
    with pytest.raises(InputRefused, match=r"holds a graph without modules, and a swap works on an nn\.Module"):
        swap(load(program, record=Record()), options(), Record())


def test_made_up_inputs_are_no_data() -> None:
    loaded = load(bn_lstm(), inputs=["rows=8x4x3"], record=Record())
    with pytest.raises(UsageError, match="a swap needs samples of the real inputs"):
        swap(loaded, options(), Record())


def test_half_precision_is_not_trained() -> None:
    with pytest.raises(UsageError, match="trains and measures in float32"):
        swap(live(conv_net().half(), images()), options(), Record())


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"to": "batchnorm"}, "a norm can become layernorm, "),
        ({"source": "weight"}, "norms to exchange are batch, "),
        ({"steps": -1}, "steps is 0 or more"),
        ({"batch": 0}, "batch is 1 or more"),
        ({"rate": 0.0}, "rate and seconds are above 0"),
        ({"max_drop": float("nan")}, "max_drop is in points"),
        ({"outputs": (Path("net.bin"),)}, r"net\.bin: a swapped model is written as \.pt, \.pt2, \.onnx"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        options(**changes)


def test_a_network_without_a_norm_that_can_go() -> None:
    class Only(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.instance_norm(x)

    with pytest.raises(UsageError, match=r"no norm can be swapped: 0 calls torch.nn.functional.instance_norm itself"):
        swap(live(nn.Sequential(Only()), images()), options(), Record())
    with pytest.raises(UsageError, match=r"no norm can be swapped to instancenorm: cell.bn_input normalises one value"):
        swap(live(bn_lstm(), rows()), options(to="instancenorm"), Record())


def test_the_result_is_filled_for_the_report_when_it_is_refused() -> None:
    result = Swapped("layernorm")
    loaded: Loaded = live(bn_lstm(), rows())
    with pytest.raises(ResultDiffers):
        swap(loaded, options(max_drop=0.0, steps=1, layer_steps=0, rate=1.0), Record(), result=result)
    assert result.metric is not None and not result.allowed and result.replaced
