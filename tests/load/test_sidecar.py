"""Sidecars: ``net.toml`` beside ``net.pt``."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.errors import InputRefused
from normfold.load.sidecar import Sidecar, find_sidecar, read_sidecar


def test_every_key_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.toml"
    path.write_text(
        'model = "a.py:f"\nkey = "k"\nprefix = "p."\ninputs = ["x=1x2"]\ndynamic = ["x=Nx2"]\ndata = "d.npz"\n'
        'inputs_from = "a.py:g"\n[record]\nanything = 1\n'
    )
    assert read_sidecar(path) == Sidecar(tmp_path, "a.py:f", "k", "p.", ("x=1x2",), ("x=Nx2",), "d.npz", "a.py:g")


def test_it_is_found_beside_the_file(tmp_path: Path) -> None:
    assert find_sidecar(tmp_path / "net.pt") is None
    (tmp_path / "net.toml").write_text("")
    assert find_sidecar(tmp_path / "net.pt") == tmp_path / "net.toml"
    assert find_sidecar(tmp_path / "net.toml") is None


@pytest.mark.parametrize(
    "text, reason",
    [
        ("model = ", "is not TOML"),
        ("learning_rate = 3", "unknown key 'learning_rate'; known are model, key"),
        ("model = 3", "model = 3; expected a string"),
        ('inputs = "x=1"', "expected a list of strings"),
        ("dynamic = [1]", "expected a list of strings"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "net.toml"
    path.write_text(text)
    with pytest.raises(InputRefused, match=reason) as caught:
        read_sidecar(path)
    assert str(path) in str(caught.value)
    assert "--no-sidecar" in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputRefused, match="is not TOML"):
        read_sidecar(path)
