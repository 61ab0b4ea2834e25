"""The models of models/ are what their sidecars say, and their recipes run."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.load import load
from normfold.record import Record

NAMES = ["digits_bnlstm", "digits_convbn", "digits_crnn", "digits_lngru", "digits_preact"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)


def _sidecar(models_dir: Path, name: str) -> dict[str, Any]:
    return tomllib.loads((models_dir / f"{name}.toml").read_text(encoding="utf-8"))


def _run(root: Path, tool: str, *arguments: object) -> str:
    done = subprocess.run([sys.executable, f"tools/{tool}", *map(str, arguments)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _model(models_dir: Path, name: str) -> nn.Module:
    model: nn.Module = runpy.run_path(str(models_dir / "architectures.py"))[name]()
    model.load_state_dict(torch.load(models_dir / f"{name}.pt", weights_only=True), strict=True)
    return model.eval()


def test_every_state_dict_has_its_sidecar(models_dir: Path) -> None:
    assert sorted(path.stem for path in models_dir.glob("*.pt")) == NAMES
    assert sorted(path.stem for path in models_dir.glob("*.toml")) == NAMES


def test_the_recorded_accuracy_is_what_the_file_gives(root: Path, models_dir: Path) -> None:
    measured = re.findall(r"(\d+)/(\d+) correct", _run(root, "accuracy", *(f"models/{name}.pt" for name in NAMES)))
    for name, (hits, images) in zip(NAMES, measured, strict=True):
        record = _sidecar(models_dir, name)["record"]
        assert (int(hits), int(images)) == (record["held_out_correct"], record["held_out_images"])
        assert record["held_out_accuracy"] == pytest.approx(int(hits) / int(images), abs=5e-5)
        assert record["held_out_accuracy"] >= 0.97


@pytest.mark.parametrize("name", NAMES)
def test_the_record_describes_the_file(models_dir: Path, name: str) -> None:
    model, record = _model(models_dir, name), _sidecar(models_dir, name)["record"]
    gammas = torch.cat([m.weight for m in model.modules() if isinstance(m, NORMS)]).detach()
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"] <= 200_000
    assert int((gammas < 0).sum()) == record["negative_gammas"] > 0
    assert int((gammas == 0).sum()) == record["zero_gammas"]


def test_the_split_is_fixed_and_disjoint(models_dir: Path) -> None:
    training, held_out = runpy.run_path(str(models_dir / "digits.py"))["split"]()
    assert training.images.shape == (1438, 1, 8, 8)
    assert held_out.images.shape == (359, 1, 8, 8)
    assert held_out.labels[:8].tolist() == [4, 9, 4, 9, 4, 9, 6, 9]
    assert training.images.min() == 0.0
    assert training.images.max() == 1.0


def test_what_is_left_for_distillation_is_neither_trained_on_nor_held_out(models_dir: Path) -> None:
    digits = runpy.run_path(str(models_dir / "digits.py"))
    (training, held_out), parts = digits["split"](), digits["parts"]()
    assert parts.labelled.images.shape == (1079, 1, 8, 8)
    assert parts.unlabelled.shape == (359, 1, 8, 8)
    assert np.array_equal(parts.held_out.images, held_out.images)
    assert np.array_equal(parts.unlabelled[:2], training.images[[3, 7]])
    joined = np.concatenate([parts.labelled.images, parts.unlabelled]).reshape(1438, 64)
    assert sorted(map(tuple, joined.tolist())) == sorted(map(tuple, training.images.reshape(1438, 64).tolist()))


@pytest.mark.slow
def test_the_recipes_run(root: Path, tmp_path: Path) -> None:
    """One epoch, twice: it learns something, records what it did, and gives the same weights again."""
    for folder in ("first", "second"):
        assert _run(root, "train", *NAMES, "--epochs", 1, "--out", tmp_path / folder).count("epoch  1 of 1") == len(NAMES)
    for name in NAMES:
        first, second = (torch.load(tmp_path / folder / f"{name}.pt", weights_only=True) for folder in ("first", "second"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        record = _sidecar(tmp_path / "first", name)["record"]
        assert record["command"] == f"tools/train {name} --epochs 1"
        assert record["held_out_accuracy"] > 0.15


@pytest.mark.slow
def test_an_unknown_recipe_is_named(root: Path) -> None:
    done = subprocess.run([sys.executable, "tools/train", "nosuch"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nosuch" in done.stderr
    assert "digits_convbn" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_sidecar_is_all_that_loading_needs(models_dir: Path, name: str) -> None:
    loaded = load(models_dir / f"{name}.pt", record=Record())
    expected = _model(models_dir, name).state_dict()
    found = loaded.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not loaded.module.training
    [size] = [size for axes in loaded.dynamic.values() for size in axes.values()]
    assert "N" in str(size)


def test_the_readme_gives_the_recorded_accuracy(root: Path, models_dir: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        record = _sidecar(models_dir, name)["record"]
        accuracy = f"{record['held_out_correct']}/{record['held_out_images']}, {100 * record['held_out_accuracy']:.2f} %"
        [row] = [line for line in readme.splitlines() if line.startswith(f"| [{name}.pt](models/{name}.pt)")]
        assert accuracy in row
