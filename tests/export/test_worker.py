"""The worker process: results, errors, signals, time and memory."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from normfold.errors import WorkerCrashed
from normfold.export.worker import run_task

HERE = Path(__file__).parent


# ---- what the worker runs: named by "test_worker:function" ---------------------------------------------------------------


def double(value: list[int]) -> list[int]:
    return [2 * item for item in value]


def noisy() -> str:
    print("printed by a library")
    os.write(1, b"written by native code\n")
    return "answer"


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def leave() -> None:
    os._exit(7)


def hang() -> None:
    time.sleep(60)


def grow() -> int:
    return len(bytearray(8 << 30))


def fail() -> None:
    raise ValueError("first line\nsecond line")


def interrupted_import() -> list[str]:
    return [name for name in ("onnx", "torch", "numpy") if name in sys.modules]


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    def run(name: str, seconds: float = 30, memory: int | None = None, **arguments: Any) -> Any:
        return run_task(f"test_worker:{name}", arguments, subject="the test", seconds=seconds, memory=memory)

    return run


def test_arguments_go_in_and_the_result_comes_out(task: Any) -> None:
    assert task("double", value=[1, 2]) == [2, 4]


def test_what_libraries_print_does_not_disturb_the_answer(task: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert task("noisy") == "answer"
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("number", [signal.SIGFPE, signal.SIGSEGV, signal.SIGKILL])
def test_a_signal_becomes_an_error_that_names_it(task: Any, number: signal.Signals) -> None:
    with pytest.raises(WorkerCrashed, match=rf"worker crashed \({number.name}\) in the test") as caught:
        task("die", number=int(number))
    assert caught.value.exit_code == 5


def test_an_exit_becomes_an_error(task: Any) -> None:
    with pytest.raises(WorkerCrashed, match=r"worker crashed \(exit code 7\) in the test"):
        task("leave")


def test_time_is_limited(task: Any) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerCrashed, match=r"stopped after 0\.8 s in the test"):
        task("hang", seconds=0.8)
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits are Linux's")
def test_memory_is_limited(task: Any) -> None:
    with pytest.raises(WorkerCrashed, match="ran out of memory in the test"):
        task("grow", memory=1 << 30)


def test_an_exception_is_told_in_one_line(task: Any) -> None:
    with pytest.raises(WorkerCrashed, match="the test failed: ValueError: first line") as caught:
        task("fail")
    assert "second" not in str(caught.value)


def test_the_current_folder_is_not_imported_from(task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert task("double", value=[3]) == [6]


def test_an_unknown_task_is_an_error() -> None:
    with pytest.raises(WorkerCrashed, match="failed"):
        run_task("normfold.export.worker:nothing", {}, subject="the test")
