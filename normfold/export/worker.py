"""A process of its own for native code that may crash: time and memory are limited, a signal becomes an error here.

A task is a function named ``module:function`` that takes and returns what JSON can carry; files go by path.  It is run as
``python -P -c ...``, so nothing of the caller's program is imported again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from normfold.errors import WorkerCrashed

SECONDS = 300.0
_MAIN = "from normfold.export.worker import main; main()"
_NO_MEMORY = ("MemoryError", "std::bad_alloc", "bad allocation", "Cannot allocate memory")


def run_task(task: str, arguments: dict[str, Any], *, subject: str, seconds: float = SECONDS, memory: int | None = None) -> Any:
    """Run `task` with `arguments` in a worker process and return its result.

    subject: what it does, for messages ("onnxsim").  memory: bytes of address space (Linux).
    Raises WorkerCrashed when the worker dies, runs out of time or memory, or the task raises.
    """
    request = json.dumps({"task": task, "arguments": arguments, "memory": memory})
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _MAIN],
            input=request.encode(),
            capture_output=True,
            timeout=seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkerCrashed(
            f"worker stopped after {seconds:g} s in {subject}: raise the time limit, or leave this step out"
        ) from None
    errors = done.stderr.decode(errors="replace")
    if done.returncode == 0:
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise WorkerCrashed(f"worker gave no answer in {subject}: {_last_line(errors)}") from None
        if "error" in answer:
            raise WorkerCrashed(f"{subject} failed: {answer['error']}")
        return answer["result"]
    if any(sign in errors for sign in _NO_MEMORY):
        raise WorkerCrashed(f"worker ran out of memory in {subject}: raise the memory limit, or leave this step out")
    raise WorkerCrashed(f"worker crashed ({_cause(done.returncode)}) in {subject}: {_last_line(errors)}")


def _cause(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it left no message"


def main() -> None:
    """The worker: one request on stdin, one answer on stdout; whatever libraries print goes to stderr."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    _limit(request["memory"])
    module, _, name = str(request["task"]).partition(":")
    try:
        answer: dict[str, Any] = {"result": getattr(import_module(module), name)(**request["arguments"])}
    except MemoryError:
        sys.stderr.write("MemoryError\n")
        sys.exit(1)
    except Exception as error:  # whatever a native library raises is this step's failure, told to the parent
        lines = str(error).strip().splitlines()
        answer = {"error": f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"}
    with open(answer_fd, "wb") as file:
        file.write(json.dumps(answer).encode())


def _limit(memory: int | None) -> None:
    """Cap the address space and leave no core files, where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        cap = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (cap, hard))
