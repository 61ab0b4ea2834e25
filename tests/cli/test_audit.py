"""``normfold audit`` as users run it: killed and resumed, many at once, and what cannot be measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import onnx.helper as oh
import pytest

from normfold.cli.audit import _kept
from normfold.errors import UsageError
from normfold.pipeline.auditing import audit, find_models, key_of, measure
from normfold.profile.read import profile_from
from normfold.profile.result import ProfileReport, Setting
from normfold.report.profile_json import profile_fields, schema
from onnx_models import conv_bn, info, model
from profiled import MACHINE, a_profile

SETTING = Setting(seconds=0.2, confidence=0.9)
QUICK = ("--seconds", "0.2", "--confidence", "90")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "normfold", "audit", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())


def folder_of(path: Path, good: int = 1) -> Path:
    """Some models, one with an open size, one that is none, and a checkpoint without its network."""
    (path / "below").mkdir(parents=True)
    for index in range(good):
        (path / f"net{index}.onnx").write_bytes(conv_bn(opset=17 + index).SerializeToString())
    nodes = [oh.make_node("Relu", ["x"], ["y"], "act")]
    (path / "below" / "open.onnx").write_bytes(model(nodes, [info("x", [1, "T"])], [info("y", [1, "T"])]).SerializeToString())
    (path / "page.onnx").write_text("<html>not here</html>")
    (path / "notes.txt").write_text("no model")
    return path


@pytest.mark.slow
def test_killed_and_resumed_and_on_one_page(tmp_path: Path) -> None:
    models, output = folder_of(tmp_path / "models", good=3), tmp_path / "out"
    arguments = (models, "-o", output, *QUICK, "--open", "16", "--budget", "size=1KB,norm-share=100%")
    with subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        deadline = time.monotonic() + 120
        while not list(output.glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=120)
        assert first.returncode == 130
    done = [path.name for path in output.glob("*.json")]
    assert 1 <= len(done) < 4
    times = {name: (output / name).stat().st_mtime_ns for name in done}
    assert not list(output.glob(".*")), "no half files"

    second = run(*arguments, "--json", "--pages")
    assert second.returncode == 0, second.stderr
    assert f"{len(done)} of 5 models were measured before" in second.stderr
    assert {name: (output / name).stat().st_mtime_ns for name in done} == times
    said = json.loads(second.stdout)
    assert sorted(Path(path).name for path in said["models"]) == ["net0.onnx", "net1.onnx", "net2.onnx", "open.onnx"]
    [(bad, reason)] = said["failed"].items()
    assert bad.endswith("page.onnx") and "web page" in reason
    assert {row["budgets"]["size"] for row in said["models"].values()} == {"within"}
    for path in output.glob("*.json"):
        jsonschema.validate(json.loads(path.read_text()), schema())
    page = (output / "index.html").read_text()
    assert "net2.onnx" in page and "1 file not measured" in page

    third = run(*arguments, "--budget", "memory=1KB")
    assert third.returncode == 3 and "4 of 5 models were measured before" in third.stderr
    assert "memory OVER 1,000 B" in third.stderr and "and 1 more" in third.stderr


def test_nothing_to_measure_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "page.onnx").write_text("<html>not here</html>")
    done = run(tmp_path, "-o", tmp_path / "out", *QUICK)
    assert done.returncode == 2
    assert "none of 1 files could be measured" in done.stderr and "web page" in done.stdout
    assert "web page" in (tmp_path / "out" / "index.html").read_text()
    (tmp_path / "empty").mkdir()
    assert "there is no model in" in run(tmp_path / "empty", "-o", tmp_path / "out").stderr


def test_which_files_are_models(tmp_path: Path) -> None:
    models = folder_of(tmp_path / "models")
    (models / ".hidden.onnx").write_text("")
    (models / "below" / "link.onnx").symlink_to(models / "net0.onnx")
    found = find_models([models, models / "net0.onnx"])
    assert [path.name for path in found] == ["link.onnx", "open.onnx", "page.onnx"]
    assert [path.name for path in find_models([models / "notes.txt"])] == ["notes.txt"], "a file that is named is meant"
    with pytest.raises(UsageError, match="does not exist"):
        find_models([tmp_path / "nowhere"])


def test_the_key_changes_with_whatever_changes_the_measurement(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"one")

    def key(setting: Setting = SETTING, open_size: int | None = None, version: str = "1") -> str:
        return key_of(path, setting, open_size, {"onnxruntime": version}, (50.0,))

    keys = [key(), key(Setting(threads=2)), key(open_size=3), key(version="2")]
    path.write_bytes(b"two")
    keys.append(key())
    path.with_suffix(".toml").write_text("inputs = []")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1]


def test_reasons(tmp_path: Path) -> None:
    models = folder_of(tmp_path / "models")
    reasons = {
        path.name: measure(path, "k", SETTING, None, (50.0,), MACHINE).reason
        for path in (models / "below" / "open.onnx", models / "page.onnx")
    }
    assert "size 'T' of input 'x' is open" in reasons["open.onnx"]
    assert "web page" in reasons["page.onnx"]


@pytest.mark.slow
def test_many_at_once(tmp_path: Path) -> None:
    models = folder_of(tmp_path / "models", good=2)
    keys = {path: f"key of {path.name}" for path in find_models([models])}
    entries = {Path(entry.path).name: entry for entry in audit(keys, SETTING, MACHINE, jobs=2, open_size=8)}
    assert set(entries) == {"net0.onnx", "net1.onnx", "open.onnx", "page.onnx"}
    assert entries["net0.onnx"].key == "key of net0.onnx"
    assert {name for name, entry in entries.items() if entry.profile is None} == {"page.onnx"}
    opened = entries["open.onnx"].profile
    assert opened is not None and opened.inputs == {"x": [1, 8]} and "open sizes were taken as 8: x=1x8" in opened.notes


def test_a_profile_is_read_back_as_it_was(tmp_path: Path) -> None:
    profile = a_profile()
    fields = json.loads(json.dumps(profile_fields(ProfileReport(profile))))
    assert profile_from(fields["model"]) == profile
    (tmp_path / "net-0123456789abcdef.json").write_text(json.dumps(fields))
    kept = _kept(Path("net.onnx"), "0123456789abcdef", tmp_path)
    assert kept is not None and kept.profile == profile
    (tmp_path / "net-0123456789abcdef.json").write_text('{"model": {"source": 1}}')
    assert _kept(Path("net.onnx"), "0123456789abcdef", tmp_path) is None
