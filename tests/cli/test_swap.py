"""``normfold swap`` and ``normfold recalibrate`` as users run them: exit codes, files, and that the cost is always said."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from normfold.cli import main
from normfold.load import load
from normfold.record import Record
from swapping import bn_lstm, rows, saved

QUICK = ("--layer-steps", "5", "--steps", "10", "--no-timing")
Run = Callable[..., "Done"]
DATA = ("--data", "rows.npz", "--eval", "held.npz", "--max-drop", "100")


def process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "140"}
    return subprocess.run([sys.executable, "-m", "normfold", *arguments], capture_output=True, text=True, cwd=cwd, env=env)


class Done(NamedTuple):
    """What a run of the command in this process left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def normfold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """The command in tmp_path; its hold on the logging of this process is undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    loggers = [logging.getLogger(name) for name in ("normfold", "py.warnings")]
    kept = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return Done(int(left.value.code or 0), *capsys.readouterr())

    yield run
    logging.captureWarnings(False)
    for logger, (handlers, propagate, level) in zip(loggers, kept, strict=True):
        logger.handlers, logger.propagate, logger.level = handlers, propagate, level


def failed(done: Done, code: int) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("normfold: error: "), done.stderr
    return lines[0]


def test_a_swap_is_written_loaded_and_said_to_be_another_function(tmp_path: Path) -> None:
    saved(tmp_path)
    done = process("swap", "net.pt", "--to", "layernorm", *DATA, *QUICK, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    for words in ("Norms exchanged  2", "cell.bn_input", "BatchNorm1d", "accuracy: 100.00 % before", "on 30 decisions"):
        assert words in done.stdout
    assert "This is another function than the original's, fitted to the original's outputs on 40 samples" in done.stdout
    assert {path.name for path in tmp_path.glob("net_layernorm*")} == {
        *("net_layernorm.pt", "net_layernorm.pt.json", "net_layernorm.py", "net_layernorm.toml")
    }
    again = load(tmp_path / "net_layernorm.pt", record=Record())
    with torch.no_grad():
        assert not torch.allclose(again.module(rows()), bn_lstm()(rows()), atol=1e-3)


def test_json_holds_what_was_learnt_and_goes_to_stdout_alone(normfold: Run, tmp_path: Path) -> None:
    saved(tmp_path)
    done = normfold("swap", "net.pt", "--to", "layernorm", "--only", "*input", *DATA, *QUICK, "--json", "--dry-run")
    found = json.loads(done.stdout)["swap"]
    assert [item["names"] for item in found["replaced"]] == [["cell.bn_input"]]
    assert found["metric"]["measure"] == "accuracy" and found["written"] is False and found["allowed"] is True
    assert not list(tmp_path.glob("net_layernorm*"))


def test_too_large_a_loss_is_exit_1_with_the_report_and_without_a_file(normfold: Run, tmp_path: Path) -> None:
    saved(tmp_path)
    asked = ("swap", "net.pt", "--to", "layernorm", *DATA[:4], "--layer-steps", "0", "--steps", "0", "--no-timing")
    done = normfold(*asked, "--max-drop", "0", "-o", "new.pt")
    assert "points of accuracy lost on 30 held-out samples, --max-drop allows 0: nothing was written" in failed(done, 1)
    assert "decisions became wrong" in done.stdout and not (tmp_path / "new.pt").exists()
    forced = normfold(*asked, "--max-drop", "0", "-o", "new.pt", "--force")
    assert forced.returncode == 0 and "because of --force" in forced.stdout and (tmp_path / "new.pt").exists()


def test_a_bar_shows_the_progress_on_a_terminal_only(normfold: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    asked = ("swap", "net.pt", "--to", "layernorm", *DATA, *QUICK, "--dry-run")
    assert normfold(*asked).stderr == ""
    for name, value in (("TTY_COMPATIBLE", "1"), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    shown = normfold(*asked).stderr
    for words in ("layer by layer", "whole network", "10/10", "loss"):
        assert words in shown
    assert normfold(*asked, "-q") == (0, "", "")


@pytest.mark.parametrize("command", ["swap", "recalibrate"])
def test_a_graph_is_refused_with_a_hint(normfold: Run, command: str, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(bn_lstm(), (rows(2),)), tmp_path / "net.pt2")
    options = ("--to", "layernorm") if command == "swap" else ()
    done = normfold(command, "net.pt2", *options)
    assert "give the checkpoint that it was exported from, with --model file.py:factory" in failed(done, 2)


def test_what_is_missing_is_asked_for(normfold: Run, tmp_path: Path) -> None:
    saved(tmp_path)
    assert "say what the norms become: --to layernorm" in failed(normfold("swap", "net.pt"), 2)
    done = normfold("swap", "net.pt", "--to", "layernorm")
    assert "needs samples of the real inputs, without labels: give --data" in failed(done, 2)


def test_advice_is_printed_and_nothing_is_written(normfold: Run, tmp_path: Path) -> None:
    saved(tmp_path, count=400)
    before = {path.name for path in tmp_path.iterdir()}
    done = normfold("swap", "net.pt", "--advise", "--data", "rows.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3. BatchNorm in a recurrent network" in done.stdout
    assert "cell.bn_recurrent: it lies on a recurrent path, at every one of 4 steps" in done.stdout
    found = json.loads(normfold("swap", "net.pt", "--advise", "--json").stdout)
    assert {item["drawback"] for item in found["advice"]} == {2, 3}
    assert {path.name for path in tmp_path.iterdir()} - before <= {"__pycache__"}


def test_recalibrate_writes_or_refuses(normfold: Run, tmp_path: Path) -> None:
    saved(tmp_path)
    asked = ("recalibrate", "net.pt", "--only", "cell.bn_input", *DATA[:4])
    done = normfold(*asked, "--max-drop", "100")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "Statistics renewed  1 layer on 40 samples" in done.stdout and "another function" in done.stdout
    assert load(tmp_path / "net_recalibrated.pt", record=Record()).kind == "module"
    assert "cell.bn_recurrent" in failed(normfold("recalibrate", "net.pt", *DATA[:2], "-o", "b.pt"), 2)


def test_the_core_does_not_import_swaps() -> None:
    code = (
        "import sys, normfold, normfold.api, normfold.pipeline, normfold.report, normfold.cli\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('normfold.swap')) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- the trained model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_readmes_command_on_the_trained_bn_lstm(root: Path, tmp_path: Path) -> None:
    """BN -> LN in the cell, 359 images without labels: within one point of the original on 359 others."""
    text = (root / "README.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^normfold (swap models/digits_bnlstm\.pt --to .*)$", text, re.MULTILINE)
    shutil.copytree(root / "models", tmp_path / "models")
    done = process(*shlex.split(command, comments=True), "--no-timing", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["swap"]
    assert [item["names"] for item in found["replaced"]] == [["cell.bn_input"], ["cell.bn_recurrent"]]
    metric, start = found["metric"], found["start"]
    assert (metric["measure"], metric["samples"], found["fitted_on"]) == ("accuracy", 359, 359)
    assert metric["before"] == pytest.approx(100 * 355 / 359) and metric["lost"] <= 1.0 < start["lost"]
    written = tmp_path / shlex.split(command, comments=True)[-1]
    with torch.no_grad():
        module = load(written, record=Record()).module
        assert not any(isinstance(part, torch.nn.BatchNorm1d) for part in module.modules())
    tool = [sys.executable, str(root / "tools" / "accuracy"), str(written)]
    measured = subprocess.run(tool, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    hits = re.search(r"(\d+)/359 correct", measured.stdout)
    assert hits is not None and 100 * int(hits[1]) / 359 == pytest.approx(metric["after"]), measured.stderr
