"""A package imports only packages below it, and the algebra knows no framework (both contracts are in pyproject.toml)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def _lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_the_contracts_are_kept(root: Path) -> None:
    done = _lint_imports(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    "package, imported",
    [("graph", "normfold.cli"), ("record", "normfold.graph"), ("algebra", "torch"), ("rewrites", "onnx_ir")],
)
def test_a_breach_is_seen(root: Path, tmp_path: Path, package: str, imported: str) -> None:
    shutil.copytree(root / "normfold", tmp_path / "normfold", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    place = tmp_path / "normfold" / package
    module = place / "breach.py" if place.is_dir() else place.with_suffix(".py")
    with module.open("a") as file:
        file.write(f"\nimport {imported}\n")
    done = _lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"normfold.{package}" in done.stdout
    assert imported in done.stdout


def test_a_package_without_a_place_is_seen(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "normfold", tmp_path / "normfold", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / "normfold" / "stray.py").write_text('"""Stray."""\n')
    done = _lint_imports(tmp_path)
    assert done.returncode == 1
    assert "stray" in done.stdout
