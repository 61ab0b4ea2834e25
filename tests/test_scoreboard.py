"""tools/scoreboard: real runs on tiny models, with a broken file in its own row; what is known is not computed again."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

COLUMNS = ("exporter", "onnxsim", "OnnxSlim", "ORT basic", "ORT extended", "normfold latency", "normfold norms")


def net(path: Path, *, foldable: bool) -> None:
    """Conv-BN-Relu, which everybody folds, or Conv-Relu-BN-Conv(pad) - Relu, which takes more than a pair."""
    rng = np.random.default_rng(0)
    parts = {"w": rng.standard_normal((4, 3, 1, 1)), "gamma": rng.uniform(0.5, 1.5, 4), "beta": np.zeros(4) + 0.1}
    parts |= {"mean": rng.standard_normal(4), "var": rng.uniform(0.5, 1.5, 4), "v": rng.standard_normal((2, 4, 1, 1))}
    order = ["bn", "relu"] if foldable else ["relu", "bn"]
    nodes, x = [oh.make_node("Conv", ["x", "w"], ["c"], name="conv")], "c"
    for name in order:
        inputs = [x, "gamma", "beta", "mean", "var"] if name == "bn" else [x]
        nodes.append(oh.make_node({"bn": "BatchNormalization", "relu": "Relu"}[name], inputs, [name], name=name))
        x = name
    nodes.append(oh.make_node("Conv", [x, "v"], ["y"], name="last"))
    ends = [
        [oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
        for name, shape in (("x", [1, 3, 5, 5]), ("y", [1, 2, 5, 5]))
    ]
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in parts.items()]
    model = oh.make_model(oh.make_graph(nodes, "g", *ends, tensors), opset_imports=[oh.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def scoreboard(root: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, str(root / "tools" / "scoreboard"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture
def tools(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/_cells.py as a module."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # it sets this and OMP_NUM_THREADS for its workers
    spec = importlib.util.spec_from_file_location("_cells", root / "tools" / "_cells.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_models_and_a_broken_file(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    net(folder / "pair.onnx", foldable=True)
    net(folder / "apart.onnx", foldable=False)
    done = scoreboard(root, "models", "--json", "--timeout", "200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    board = json.loads(done.stdout)
    assert set(board["versions"]) == set(COLUMNS)
    rows: dict[str, Any] = {row["file"]: row["cells"] for row in board["rows"]}
    assert list(rows) == ["apart.onnx", "pair.onnx"]
    for name, left in (("pair.onnx", 0), ("apart.onnx", 1)):
        cells = rows[name]
        assert cells["exporter"]["left"] == 1
        assert [cells[tool]["left"] for tool in ("onnxsim", "ORT basic", "ORT extended")] == [left] * 3
        assert cells["OnnxSlim"].get("absent") or cells["OnnxSlim"]["left"] == left
        for tool in COLUMNS[-2:]:
            assert {key: cells[tool][key] for key in ("deleted", "shift", "kept", "left", "adds", "maps", "verified")} == {
                "deleted": 1,
                "shift": 0,
                "kept": 0,
                "left": 0,
                "adds": 0,
                "maps": 0,
                "verified": True,
            }
        assert all(cell["seconds"] > 0 for cell in cells.values() if "absent" not in cell)

    # Resumed: nothing that is known is computed again; a broken file is a row, and the exit status.
    known = (tmp_path / "scoreboard" / "results.jsonl").read_text().splitlines()
    assert len(known) == 2 * len(COLUMNS)
    (folder / "broken.onnx").write_bytes(b"this is no model")
    again = scoreboard(root, "models", "--markdown", cwd=tmp_path)
    assert again.returncode == 1, again.stderr
    added = (tmp_path / "scoreboard" / "results.jsonl").read_text().splitlines()[len(known) :]
    keys = [json.loads(line) for line in added]
    others = [entry for entry in keys if " normfold " not in entry["key"]]  # its sources may be edited while this runs
    assert {entry["file"] for entry in others} == {"broken.onnx"}
    table, _, notes = again.stdout.partition("\n\n")
    tried = len(COLUMNS) - (importlib.util.find_spec("onnxslim") is None)
    assert notes.count("- broken.onnx, ") == tried and "- pair.onnx" not in notes
    table = table.splitlines()
    assert table[0].startswith("| file | norms | exporter |")
    assert table[1].count("---") == table[0].count("|") - 1
    assert [line.split(" | ")[0] for line in table[2:]] == ["| apart.onnx", "| broken.onnx", "| pair.onnx", "| all"]
    assert "| 1/0/0 (" in table[2] and table[2].endswith("| yes |")
    assert "failed" in table[3] and "NO" not in table[3]
    assert "2 of 3" in table[5]
    assert len({line.count(" | ") for line in table if line}) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_and_a_library_that_is_not_there(root: Path, tmp_path: Path) -> None:
    net(tmp_path / "pair.onnx", foldable=True)
    if importlib.util.find_spec("timm") is None:
        done = scoreboard(root, "--also", "timm", cwd=tmp_path)
        assert done.returncode == 2
        assert "timm is not installed" in done.stderr
    done = scoreboard(root, "pair.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pair.onnx" in done.stdout and "1/0/0" in done.stdout and "yes" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 200


def test_usage(root: Path, tmp_path: Path) -> None:
    nothing = scoreboard(root, cwd=tmp_path)
    assert nothing.returncode == 2 and "name files or folders" in nothing.stderr
    missing = scoreboard(root, "missing.onnx", cwd=tmp_path)
    assert missing.returncode == 2 and "no such file or folder: missing.onnx" in missing.stderr
    (tmp_path / "empty").mkdir()
    empty = scoreboard(root, "empty", cwd=tmp_path)
    assert empty.returncode == 2 and "no .onnx file" in empty.stderr
    library = scoreboard(root, "--also", "keras", cwd=tmp_path)
    assert library.returncode != 0 and "--also takes timm, torchvision, transformers" in library.stderr


def test_a_crash_and_a_timeout_are_cells(tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pair.onnx"
    net(path, foldable=True)
    assert "stopped after 0.01 s" in tools.measure("onnxsim", path, 0.01)["error"]
    assert tools.measure("normfold norms", path, 0.01)["error"] == "stopped after 0.01 s"
    (tmp_path / "_peers.py").write_text("import os, signal\ndef onnxsim(source, target): os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "SIGSEGV" in tools.measure("onnxsim", path, 60)["error"]
    monkeypatch.setitem(tools.TOOLS, "OnnxSlim", "no-such-distribution")
    assert tools.measure("OnnxSlim", path, 60) == {"absent": True}


def test_what_is_kept_depends_on_the_file_the_tool_and_its_release(tools: ModuleType, tmp_path: Path) -> None:
    path, store = tmp_path / "pair.onnx", tmp_path / "kept" / "results.jsonl"
    net(path, foldable=True)
    results = tools.Results(store, fresh=False)
    key = results.key("onnxsim", path)
    assert results.get(key) is None
    results.add(key, "pair.onnx", {"left": 3, "seconds": 1.0})
    with open(store, "a") as stream:
        stream.write('{"key": "cut o')
    assert tools.Results(store, fresh=False).get(key) == {"left": 3, "seconds": 1.0}
    assert tools.Results(store, fresh=True).get(key) is None
    assert len({key, results.key("OnnxSlim", path), results.key("normfold norms", path)}) == 3
    results._releases["onnxsim"] = "another"
    assert results.key("onnxsim", path) != key
    path.with_name("pair.onnx.data").write_bytes(b"weights")
    tools.digest.cache_clear()
    assert tools.digest(path) not in key
    failed = tools.Results(store, fresh=False)
    failed.add(key, "pair.onnx", {"error": "stopped", "seconds": 1.0})
    assert failed.get(key) is None
    assert tools.Results(store, fresh=False).get(key) is None
