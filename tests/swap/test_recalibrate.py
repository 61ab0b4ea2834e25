"""Renewed statistics are those of all samples, each batch normalised by its own, and the cost is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.errors import ResultDiffers, UsageError
from normfold.load import load
from normfold.record import Record
from normfold.swap.artefact import Origin
from normfold.swap.recalibrate import recalibrate
from normfold.swap.result import Recalibrated
from swapping import bn_lstm, conv_net, images, live, rows, saved


def test_the_first_layer_gets_the_moments_of_all_samples() -> None:
    module: Any = conv_net()
    x = 2 * images(50) + 1
    result = Recalibrated()
    new: Any = recalibrate(live(module, x), Record(), batch=16, result=result)
    with torch.no_grad():
        seen = module.body[0](x).double().movedim(1, -1).reshape(-1, 8)
    torch.testing.assert_close(new.body[1].running_mean.double(), seen.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new.body[1].running_var.double(), seen.var(0), rtol=1e-5, atol=1e-5)
    stored = module.body[1].running_var.double() + 1e-5
    moved, ratio = (seen.mean(0) - module.body[1].running_mean) / stored.sqrt(), (seen.var(0) + 1e-5) / stored
    item = result.layers[0]
    assert item.shift == pytest.approx(float(moved.abs().max()), rel=1e-4)
    assert (item.low, item.high) == (pytest.approx(float(ratio.min()), rel=1e-4), pytest.approx(float(ratio.max()), rel=1e-4))
    assert item.divergence == pytest.approx(float((0.5 * (ratio + moved**2 - 1 - ratio.log())).mean()), rel=1e-3)


def test_layers_behind_see_batches_normalised_by_their_own_statistics() -> None:
    """Wu & Johnson 2021: the network runs as in training, whatever was stored before."""
    module: Any = conv_net()
    x = images(48)
    twin: Any = conv_net().train()
    with torch.no_grad():
        parts = [twin.body[3](twin.body[:3](part)) for part in x.split(16)]
        seen = torch.cat(parts).double().movedim(1, -1).reshape(-1, 8)
        module.body[1].running_mean.add_(7.0)
    new: Any = recalibrate(live(module, x), Record(), batch=16)
    torch.testing.assert_close(new.body[4].running_mean.double(), seen.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new.body[4].running_var.double(), seen.var(0), rtol=1e-5, atol=1e-5)


def test_nothing_else_changes_and_the_original_stays() -> None:
    module = conv_net()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    new = recalibrate(live(module, images(33)), Record(), batch=16, only=("body.1",))  # 33: a batch of one is left out
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    changed = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == {"body.1.running_mean", "body.1.running_var"}
    assert not any(part.training for part in new.modules())
    assert new.get_submodule("body.1").momentum == 0.1


def test_a_layer_called_at_several_steps_is_left_unless_it_is_named() -> None:
    result = Recalibrated()
    with pytest.raises(UsageError, match=r"no statistics to renew: cell.bn_recurrent is called 4 times in a run"):
        recalibrate(live(bn_lstm(), rows()), Record(), result=result)
    assert [item.refusal.code for item in result.left] == ["several-calls"] * 2
    new: Any = recalibrate(live(bn_lstm(), rows()), Record(), only=("cell.bn_input",))
    seen = bn_lstm().cell.input(rows()).detach().double().reshape(-1, 24)
    torch.testing.assert_close(new.cell.bn_input.running_mean.double(), seen.mean(0), rtol=1e-5, atol=1e-5)


def test_a_norm_without_stored_statistics_has_none_to_renew() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(UsageError, match="no statistics to renew: 0 stores no statistics"):
        recalibrate(live(module, torch.randn(8, 3)), Record())


def test_it_is_written_with_its_sidecar_or_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    np.savez(tmp_path / "other.npz", rows=(10 * rows(64, seed=5) - 20).numpy())
    origin = Origin("arch.py:build", tmp_path, ("rows=1x4x3",))

    def run(**options: Any) -> Recalibrated:
        record, result = Record(), Recalibrated()
        loaded = load(tmp_path / "net.pt", data=tmp_path / "other.npz", record=record)
        given = {"output": tmp_path / "new.pt", "held": f"{tmp_path}/held.npz", "only": ("cell.bn_input",), **options}
        recalibrate(loaded, record, origin=origin, result=result, **given)
        return result

    with pytest.raises(ResultDiffers, match=r"points of accuracy lost on 30 held-out samples, --max-drop allows 0\.5"):
        run()
    assert not (tmp_path / "new.pt").exists()
    result = run(force=True)
    assert result.metric is not None and result.metric.lost > 0.5
    again = load(tmp_path / "new.pt", record=Record())
    assert not torch.equal(again.module.cell.bn_input.running_mean, bn_lstm().cell.bn_input.running_mean)
    manifest = json.loads((tmp_path / "new.pt.json").read_text())
    assert manifest["layers"][0]["name"] == "cell.bn_input" and set(manifest["record"]["outputs"]) == {"new.pt", "new.toml"}
    with pytest.raises(UsageError, match=r"are written as \.pt"):
        run(output=tmp_path / "new.onnx")
