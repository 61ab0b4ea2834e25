"""The environment of tools/ is found, made and renewed as tools/_env.py says; the tools name what they cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import onnx
import onnx.helper
import pytest


@pytest.fixture
def env(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """tools/_env.py on an empty checkout in tmp_path, outside every virtual environment."""
    spec = spec_from_file_location("_env", root / "tools" / "_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    return module


@pytest.fixture
def calls(env: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What _env would have done, in order: "make FOLDER", "install FOLDER"."""
    calls: list[str] = []

    def make(folder: Path) -> None:
        calls.append(f"make {folder.name}")
        _fake(folder)

    monkeypatch.setattr(env, "_make", make)
    monkeypatch.setattr(env, "_install", lambda folder: calls.append(f"install {folder.name}"))
    monkeypatch.setattr(env, "_complete", lambda python: False)
    return calls


def _fake(folder: Path) -> Path:
    """A folder that looks like a virtual environment."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return python


def test_without_an_environment_one_is_made_once(env: ModuleType, calls: list[str], tmp_path: Path) -> None:
    assert env.ready() == env.ready() == tmp_path / ".venv" / "bin" / "python"
    assert calls == ["make .venv", "install .venv"]


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(env: ModuleType, calls: list[str], tmp_path: Path, changed: str) -> None:
    env.ready()
    (tmp_path / changed).write_text("something else")
    env.ready()
    env.ready()
    assert calls == ["make .venv", "install .venv", "install .venv"]


def test_an_activated_environment_is_used(
    env: ModuleType, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = _fake(tmp_path / "mine")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "mine"))
    assert env.ready() == python
    assert calls == ["install mine"]


def test_a_failed_installation_is_tried_again(env: ModuleType, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "_install", lambda folder: sys.exit("no network"))
    with pytest.raises(SystemExit, match="no network"):
        env.ready()
    monkeypatch.setattr(env, "_install", lambda folder: calls.append("install again"))
    env.ready()
    assert calls == ["make .venv", "install again"]


@pytest.mark.parametrize("active", [False, True])
def test_what_has_the_checkout_is_used_as_it_is(
    env: ModuleType, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: bool
) -> None:
    python = Path(sys.executable)
    if active:
        python = _fake(tmp_path / "mine")
        monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "mine"))
    monkeypatch.setattr(env, "_complete", lambda asked: asked == python)
    assert env.ready() == python
    assert calls == []
    assert not (tmp_path / "mine" / ".normfold-stamp").exists()


def test_complete_means_this_checkout(env: ModuleType, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not env._complete(Path(sys.executable))  # ROOT is another checkout here
    monkeypatch.setattr(env, "ROOT", root)
    assert env._complete(Path(sys.executable))
    monkeypatch.setattr(env, "NAMES", ("torch", "no_such_package"))
    assert not env._complete(Path(sys.executable))


def test_an_old_interpreter_is_told(env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed, this is 3\.9\.2"):
        env.ready()


def test_an_old_interpreter_finds_a_newer_one(env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "python3.13").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert env._base_python() == str(tmp_path / "python3.13")


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)


def test_the_demo_names_the_models_there_are(root: Path) -> None:
    done = _run(root, "tools/demo", "nosuch")
    assert done.returncode == 2
    assert all(f"digits_{name}.pt" in done.stderr for name in ("bnlstm", "convbn", "crnn", "lngru", "preact"))


def test_the_suite_runs_from_anywhere_and_hands_arguments_on(root: Path, tmp_path: Path) -> None:
    done = _run(tmp_path, str(root / "tools" / "test"), "--collect-only", "-q", "tests/test_tools.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_the_demo_names_the_models_there_are" in done.stdout


def test_accuracy_refuses_what_it_cannot_read(root: Path) -> None:
    done = _run(root, sys.executable, "tools/accuracy", "README.md")
    assert done.returncode == 2
    assert "README.md: expected an existing file that ends in .pt, .pt2, .onnx" in done.stderr


def test_bench_prints_a_line_for_each_pair_and_level_and_goes_on_after_an_error(root: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy")
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "relu", [x], [y]), opset_imports=[opset], ir_version=8)
    for name in ("a.onnx", "b.onnx"):
        onnx.save(model, tmp_path / name)
    pair = f"{tmp_path / 'a.onnx'}:{tmp_path / 'b.onnx'}"
    levels = ("--level", "all", "--level", "disabled")
    done = _run(root, sys.executable, "tools/bench", "missing.onnx", pair, *levels, "--seconds", "0.2", "--input", "x=3x4")
    assert done.returncode == 2, done.stderr
    lines = done.stdout.splitlines()[2:]
    assert lines[0].startswith("missing.onnx")
    assert [line.split()[:4] for line in lines[1:]] == [["a.onnx", ":", "b.onnx", level] for level in ("all", "disabled")]
    verdicts = ("faster", "slower", "no difference", "too noisy to tell")
    assert all(line.endswith(verdicts) for line in lines[1:])


@pytest.mark.slow
def test_the_demo_ends_in_unchanged_accuracy(root: Path, tmp_path: Path) -> None:
    done = _run(root, "tools/demo", "digits_preact", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[-3:]
    assert [line.split()[0].rpartition(".")[2] for line in lines] == ["pt", "onnx", "pt2"]
    assert all("355/359 correct" in line for line in lines)
