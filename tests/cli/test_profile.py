"""``normfold profile`` as users run it: exit codes of budgets, what is printed, what is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from normfold.profile.budget import judge, parse_budgets
from normfold.profile.result import ProfileReport
from normfold.report.profile_json import schema
from normfold.report.profile_terminal import render
from onnx_models import conv_bn
from profiled import a_profile, a_timing

QUICK = ("--seconds", "0.3", "--confidence", "90")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-m", "normfold", "profile", *arguments], capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    path.write_bytes(conv_bn().SerializeToString())
    return str(path)


def test_within_all_budgets(net: str) -> None:
    done = run(net, *QUICK, "--budget", "p50=10s,size=20MB", "--budget", "norm-share=50%")
    assert done.returncode == 0, done.stderr
    for said in ("Latency", "against itself", "cold start", "Where the time goes", "stem.conv", "Your runtime already does this"):
        assert said in done.stdout
    assert "p50 within 10 s" in done.stdout and "size within" in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


def test_over_a_budget(net: str) -> None:
    done = run(net, *QUICK, "--budget", "p50=10s,size=100B", "--json", "--against", net)
    assert done.returncode == 3
    assert done.stderr.strip() == "normfold: error: over budget: size OVER 100 B: 933 B"
    said = json.loads(done.stdout)
    jsonschema.validate(said, schema())
    assert said["exit_code"] == 3 and [item["verdict"] for item in said["budgets"]] == ["within", "over"]
    assert said["against"]["source"] == net and said["comparison"]["runtime"] == "ONNX Runtime"


@pytest.mark.slow
def test_a_bound_that_so_few_runs_cannot_give_cannot_be_told(net: str) -> None:
    done = run(net, "--seconds", "0.1", "--budget", "p99.999=10s")
    assert done.returncode == 4
    assert "p99.999 cannot be told from 10 s here: between" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget", "speed=5"), "a budget limits p50"),
        (("--budget", "ratio=1"), "give --against"),
        (("--affinity", "one"), "--affinity takes numbers"),
        (("--affinity", "4096"), "may use the processors"),
        (("--level", "fast"), "Invalid value for '--level'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_measured(net: str, arguments: tuple[str, ...], said: str) -> None:
    done = run(net, *arguments)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.onnx"
    path.write_text("<html>")
    done = run(str(path))
    assert done.returncode == 2 and "page.onnx" in done.stderr and "Traceback" not in done.stderr


def shown(report: ProfileReport, width: int = 120, *, every: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    render(report, console, every=every)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_everything_that_is_known_is_printed() -> None:
    profile = a_profile()
    after = replace(a_profile(source="new.onnx", norm=False), norms=[])
    report = ProfileReport(after, profile, a_timing(0.80, 0.82, "faster"), judge(after, parse_budgets(["p99=1ms,size=2MB"])))
    text = " ".join(shown(report).split())
    for said in (
        "new.onnx",
        "A processor",
        "governor performance",
        "100 Gflop/s, 20 GB/s from memory",
        "median 1 ms [990 us, 1.01 ms]; p99 at most 2.2 ms",
        "runtime imported in 30 ms, model loaded in 10 ms, first run 2 ms",
        "peak memory 95.4 MiB (47.7 MiB for the model)",
        "critical path 700 us of 700 us: all but a chain",
        "branch.<conv>",
        "Against net.onnx",
        "1.23 times as fast",
        "p99 OVER 1 ms: between 1.8 ms and 2.2 ms",
        "size within 1.9 MiB: 976.6 KiB",
        "norms that run 1 0",
    ):
        assert said in text, said
    assert "-100 us" in text, "the norm that went, by layer"


def test_long_tables_are_cut_and_v_shows_all() -> None:
    profile = a_profile()
    level = profile.deployed
    level.layers = [replace(level.layers[0], name=f"layer{i}") for i in range(40)]
    assert "and 25 layers more" in shown(ProfileReport(profile))
    assert "layer39" in shown(ProfileReport(profile), every=True)
