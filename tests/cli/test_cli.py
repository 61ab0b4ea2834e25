"""The command line as users run it: processes, exit codes, one line on stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

FLOAT = onnx.TensorProto.FLOAT
FAKE = """
import sys, time, types
import normfold
from normfold.errors import *
from normfold.record import *
import normfold.pipeline as pipeline
def run(loaded, options, record):
    record.objective = options.objective
    record.findings.append(Finding("bn", "batch", "BatchNormalization", "bn", (), 4, outcome="deleted", into=["conv.weight"]))
    record.note(repr(options))
    record.note(f"loaded {loaded.kind} {loaded.name} {len(loaded.feeds)} {len(loaded.calls)}")
    BODY
def inspect(loaded, record):
    record.findings.append(Finding("bn", "batch", "BatchNormalization", "bn", (), 4, outcome="deleted"))
pipeline.run, pipeline.inspect = run, inspect
from normfold.cli import main
main()
"""


def normfold(
    *arguments: str, body: str | None = None, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command; with `body` the pipeline is replaced by those statements."""
    start = ["-m", "normfold"] if body is None else ["-c", FAKE.replace("BODY", body)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, cwd=cwd, env=env)


def failed(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on stderr."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("normfold: error: ")
    return lines[0].removeprefix("normfold: error: ")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    x, y = (oh.make_tensor_value_info(name, FLOAT, [1, 3]) for name in "xy")
    graph = oh.make_graph([oh.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "net.onnx"
    path.write_bytes(oh.make_model(graph).SerializeToString())
    return path


# ---- start-up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["optimize", "--help"], ["inspect", "-h"], ["--version"], ["optimize", "--nonsense"]]
)
def test_nothing_heavy_is_imported_before_there_is_work(arguments: list[str]) -> None:
    script = f"""
import sys
from normfold.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
heavy = {{"torch", "onnx", "numpy", "onnxruntime", "onnx_ir", "ml_dtypes", "rich"}} & set(sys.modules)
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_commands_and_exit_codes() -> None:
    done = normfold("--help")
    assert done.returncode == 0
    for word in ("optimize", "inspect", "rules", "Exit codes", "130 interrupted"):
        assert word in done.stdout
    options = normfold("optimize", "--help").stdout
    for option in (
        *("output", "objective", "model", "input", "data", "inputs", "dynamic", "force", "in-place", "no-verify", "no-simplify"),
        *("no-timing", "json", "only", "skip", "keep", "dry-run", "keep-overridable", "opset", "verbose", "quiet", "debug"),
    ):
        assert f"--{option}" in options


def test_version() -> None:
    done = normfold("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("normfold ")


def test_rules_are_listed_with_a_sentence() -> None:
    done = normfold("rules")
    assert done.returncode == 0
    first_lines = [line.split() for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert "affine" in [words[0] for words in first_lines]
    assert all(len(words) > 2 for words in first_lines)


# ---- usage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["optimise", "x"], "No such command 'optimise'"),
        (["optimize"], "Missing argument 'MODEL'"),
        (["optimize", "x", "--fast"], "No such option"),
        (["optimize", "x", "--objective", "speed"], "'speed' is not one of"),
        (["optimize", "x", "--opset", "0"], "--opset"),
        (["optimize", "x", "--seconds", "0"], "--seconds"),
    ],
)
def test_usage_errors_are_one_line_with_a_pointer(arguments: list[str], reason: str) -> None:
    message = failed(normfold(*arguments), 2)
    assert reason in message
    assert "--help` shows the options" in message


def test_no_arguments_show_the_help() -> None:
    done = normfold()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


HOSTILE = {
    "empty": (b"", "is empty"),
    "one byte": (b"\x08", "too short"),
    "page": (b"<!doctype html><html><body>Not found</body></html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "fetch the real file"),
    "json": (b'{"weights": [1, 2, 3, 4]}', "JSON"),
}


@pytest.mark.parametrize("command", ["optimize", "inspect"])
@pytest.mark.parametrize("case", HOSTILE)
def test_refused_files_leave_nothing_behind(tmp_path: Path, command: str, case: str) -> None:
    content, reason = HOSTILE[case]
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    done = normfold(command, str(path))
    message = failed(done, 2)
    assert reason in message
    assert str(path) in message
    assert done.stdout == ""
    assert [item.name for item in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == content


def test_outputs_are_judged_before_any_work(model: Path) -> None:
    existing = model.with_name("there.onnx")
    existing.write_bytes(b"precious")
    for arguments, reason in (
        (["-o", str(existing)], "pass --force to replace it"),
        (["-o", "out.pt2"], "written as .onnx"),
        (["-o", str(model), "--force"], "pass --in-place"),
        (["-o", "a.onnx", "--in-place"], "give one of them"),
        (["--only", "affine", "--skip", "affine"], "name it in one of them"),
        (["--input", "x=1xN"], "is not a size"),
    ):
        message = failed(normfold("optimize", str(model), *arguments, body="sys.exit(9)", cwd=model.parent), 2)
        assert reason in message, message
    assert existing.read_bytes() == b"precious"
    model.with_name("net.normfold.onnx").write_bytes(b"old")
    assert "pass --force" in failed(normfold("optimize", str(model), body="sys.exit(9)"), 2)


# ---- what reaches the pipeline ------------------------------------------------------------------------------------------


def notes(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return "\n".join(json.loads(done.stdout)["notes"])


def test_defaults(model: Path) -> None:
    told = notes(normfold("optimize", str(model), "--json", body="pass"))
    for part in (
        "objective='latency'",
        "verify=True",
        "simplify=True",
        "timing=True",
        "force=False",
        "dry_run=False",
        "seconds=5.0",
        "opset=None",
    ):
        assert part in told
    assert str(model.with_name("net.normfold.onnx")) in told
    assert "loaded onnx net 1 0" in told


def test_every_option_arrives(model: Path) -> None:
    model.with_name("a.onnx").write_bytes(b"")
    arguments = (
        "--json -o a.onnx -o b.onnx --objective norms --no-verify --no-simplify --no-timing --only affine --skip x "
        "--keep layer4.* --keep head --keep-overridable --opset 17 --force --dry-run --seconds 1.5"
    )
    told = notes(normfold("optimize", str(model), *arguments.split(), body="pass", cwd=model.parent))
    for part in (
        "objective='norms'",
        "verify=False",
        "simplify=False",
        "timing=False",
        "only=('affine',)",
        "skip=('x',)",
        "keep=('layer4.*', 'head')",
        "keep_overridable=True",
        "opset=17",
        "PosixPath('a.onnx'), PosixPath('b.onnx')",
        "force=True",
        "dry_run=True",
        "seconds=1.5",
    ):
        assert part in told, part
    assert f"outputs=(PosixPath('{model}'),)" in notes(normfold("optimize", str(model), "--json", "--in-place", body="pass"))


def test_a_checkpoint_with_its_sidecar_is_a_bare_command(tmp_path: Path) -> None:
    import torch

    (tmp_path / "arch.py").write_text("from torch import nn\ndef net():\n    print('building')\n    return nn.Linear(2, 2)\n")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    (tmp_path / "net.toml").write_text('model = "arch.py:net"\ninputs = ["1x2"]\n')
    done = normfold("optimize", str(tmp_path / "net.pt"), "-q", body="print(options.outputs, loaded.kind)")
    assert done.returncode == 0, done.stderr
    assert f"(PosixPath('{tmp_path}/net.normfold.pt2'),) module" in done.stdout
    message = failed(normfold("optimize", str(tmp_path / "net.pt"), "--no-sidecar", body="pass"), 2)
    assert "--model file.py:factory" in message
    done = normfold(
        "optimize",
        str(tmp_path / "net.pt"),
        "--no-sidecar",
        "--model",
        "arch.py:net",
        "--input",
        "3x2",
        body="pass",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


# ---- how it ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, code",
    [("ResultDiffers", 1), ("UsageError", 2), ("InputRefused", 2), ("OverBudget", 3), ("CannotTell", 4), ("WorkerCrashed", 5)],
)
def test_errors_have_their_exit_codes_and_the_report_is_still_shown(model: Path, error: str, code: int) -> None:
    done = normfold("optimize", str(model), body=f"raise {error}('it was\\nso \\x1b[31m')")
    assert failed(done, code) == "it was so \\x1b[31m"
    assert "into conv.weight" in done.stdout


def test_a_defect_is_one_line_and_a_traceback_on_demand(model: Path) -> None:
    message = failed(normfold("optimize", str(model), body="{}['key']"), 5)
    assert "KeyError: 'key'" in message
    assert "--debug" in message
    for option in ("--debug", "-vv"):
        done = normfold("optimize", str(model), option, body="{}['key']")
        assert "Traceback" in done.stderr
        assert "KeyError" in done.stderr


def test_running_out_of_memory_is_said(model: Path) -> None:
    assert "out of memory" in failed(normfold("optimize", str(model), body="raise MemoryError"), 5)


def test_an_interrupt_ends_with_130(model: Path, tmp_path: Path) -> None:
    flag = tmp_path / "started"
    script = FAKE.replace("BODY", f"open({str(flag)!r}, 'w').close(); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-c", script, "optimize", str(model)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if flag.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "normfold: error: interrupted"


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    script = FAKE.replace("BODY", "record.notes += ['x' * 100] * 5000")
    command = f"set -o pipefail; {sys.executable} script.py optimize {model} | head -n 1"
    (model.parent / "script.py").write_text(script)
    done = subprocess.run(["bash", "-c", command], cwd=model.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


# ---- what is printed ----------------------------------------------------------------------------------------------------


def test_the_report_is_for_people_json_for_programs(model: Path) -> None:
    warn = "record.warn('mind the gap')"
    done = normfold("optimize", str(model), body=warn)
    assert "deleted, into conv.weight" in done.stdout
    assert "mind the gap" in done.stdout
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    done = normfold("optimize", str(model), "--json", body=warn)
    assert json.loads(done.stdout)["findings"][0]["outcome"] == "deleted"
    assert done.stderr == "normfold: warning: mind the gap\n"
    done = normfold("optimize", str(model), "-q", body=warn)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_log_and_foreign_warnings_follow_the_verbosity(model: Path) -> None:
    body = (
        "import logging, warnings; log = logging.getLogger('normfold.x'); warnings.warn('foreign');"
        "log.warning('loud'); log.info('soft'); log.debug('faint')"
    )
    heard = {option: normfold("optimize", str(model), *option.split(), body=body).stderr for option in ("", "-v", "-vv", "-q")}
    words = ("loud", "soft", "faint", "foreign")
    assert {option: [word for word in words if word in text] for option, text in heard.items()} == {
        "": ["loud"],
        "-v": ["loud", "soft"],
        "-vv": ["loud", "soft", "faint", "foreign"],
        "-q": [],
    }


def test_inspect_lists_without_claims(model: Path) -> None:
    done = normfold("inspect", str(model), body="pass")
    assert done.returncode == 0, done.stderr
    assert "bn" in done.stdout
    assert "`normfold optimize` gives 1 deleted" in done.stdout
    assert "Nothing was written" not in done.stdout
    assert json.loads(normfold("inspect", str(model), "--json", body="pass").stdout)["findings"][0]["name"] == "bn"


def test_a_terminal_without_unicode_does_not_end_the_run(model: Path) -> None:
    done = normfold(
        "optimize", str(model), body="record.note('n\\u00f8rm \\u2192')", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C"
    )
    assert done.returncode == 0, done.stderr
    assert "\\u2192" in done.stdout


def test_example_inputs_reach_the_pipeline(model: Path) -> None:
    np.savez(model.with_name("x.npz"), x=np.full((1, 3), 7, np.float32))
    done = normfold(
        "optimize", str(model), "-q", "--data", "x.npz", body="print(loaded.feeds[0]['x'].tolist())", cwd=model.parent
    )
    assert done.stdout.strip() == "[[7.0, 7.0, 7.0]]"
