"""Cells of tools/scoreboard: what one tool makes of one file, and the file in which that is kept."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from normfold.errors import WorkerCrashed
from normfold.export.worker import run_task

ROOT = Path(__file__).resolve().parent.parent
Cell = dict[str, Any]
TOOLS = {  # column -> distribution
    "exporter": "onnx",
    "onnxsim": "onnxsim",
    "OnnxSlim": "onnxslim",
    "ORT basic": "onnxruntime",
    "ORT extended": "onnxruntime",
    "normfold latency": "normfold",
    "normfold norms": "normfold",
}
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])])  # for workers
os.environ.setdefault("OMP_NUM_THREADS", "1")  # they run side by side


def left(path: Path, seconds: float) -> int:
    """BatchNormalization nodes of a file."""
    counts = run_task("normfold.export.onnx_tasks:count", {"path": str(path)}, subject="counting", seconds=seconds)
    return sum(number for kind, number in counts.items() if "BatchNorm" in kind)


def measure(tool: str, path: Path, seconds: float) -> Cell:
    """What `tool` makes of a file; the reason instead where it fails."""
    if not installed(tool):
        return {"absent": True}
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="scoreboard-") as folder:
            cell = _run(tool, path, Path(folder, "result.onnx"), seconds)
    except WorkerCrashed as error:
        cell = {"error": str(error)}
    return {**cell, "seconds": cell.get("seconds", round(time.perf_counter() - began, 2))}


def _run(tool: str, path: Path, target: Path, seconds: float) -> Cell:
    if tool == "exporter":
        return {"left": left(path, seconds)}
    if tool.startswith("normfold"):
        return _normfold(tool.split()[1], path, target, seconds)
    task, _, level = tool.lower().replace("ort", "onnxruntime").partition(" ")
    arguments = {"source": str(path), "target": str(target), **({"level": level} if level else {})}
    began = time.perf_counter()
    run_task(f"_peers:{task}", arguments, subject=tool, seconds=seconds)
    taken = round(time.perf_counter() - began, 2)
    return {"left": left(target, seconds), "seconds": taken}


def _normfold(objective: str, path: Path, target: Path, seconds: float) -> Cell:
    command = [sys.executable, "-m", "normfold", "optimize", str(path), "-o", str(target), "--objective", objective]
    began = time.perf_counter()
    try:
        done = subprocess.run([*command, "--no-timing", "--json"], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {seconds:g} s"}
    taken = round(time.perf_counter() - began, 2)
    lines = done.stderr.strip().splitlines()
    if not done.stdout.strip():
        return {"error": (lines or [f"exit status {done.returncode}"])[-1].removeprefix("normfold: error: ")}
    record = json.loads(done.stdout)
    outcomes = [item["outcome"] for item in record["findings"] if item["kind"] == "batch"]
    cell: Cell = {name: outcomes.count(name) for name in ("deleted", "shift", "kept")}
    maps = sum(number for kind, number in record["inserted"].items() if "border" in kind)
    cell |= {"adds": sum(record["inserted"].values()) - maps, "maps": maps, "seconds": taken}
    cell["verified"] = done.returncode == 0 and record["passed"]
    if done.returncode:
        return {**cell, "error": (lines or ["failed"])[-1].removeprefix("normfold: error: ")}
    return {**cell, "left": left(target, seconds)}


# ---- what is kept -------------------------------------------------------------------------------------------------------


def installed(tool: str) -> bool:
    """True when the distribution behind a column is there."""
    try:
        return bool(version(TOOLS[tool]))
    except PackageNotFoundError:
        return False


def release(tool: str) -> str:
    """The version that a result belongs to; normfold's holds a digest of its sources."""
    number = version(TOOLS[tool]) if installed(tool) else "none"
    if TOOLS[tool] != "normfold":
        return number
    sources = sorted((ROOT / "normfold").rglob("*.py"))
    return f"{number}+{hashlib.sha256(b''.join(path.read_bytes() for path in sources)).hexdigest()[:12]}"


@cache
def digest(path: Path) -> str:
    """sha256 of a file and, where there is one, of the data file beside it."""
    total = hashlib.sha256()
    for part in (path, path.with_name(f"{path.name}.data")):
        if part.exists():
            with open(part, "rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


class Results:
    """Cells by what they depend on, in a file of JSON lines that only grows; the last line of a key counts."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path, self._lock = path, threading.Lock()
        self._cells: dict[str, Cell] = {}
        self._releases = {tool: release(tool) for tool in TOOLS}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):  # an interruption cut the last line off
            path.write_text(f"{text}\n", encoding="utf-8")
        if not fresh:
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self._cells[entry["key"]] = entry["cell"]
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> Cell | None:
        """A cell that need not be computed again."""
        cell = self._cells.get(key)
        return None if cell is None or "error" in cell else cell

    def add(self, key: str, name: str, cell: Cell) -> None:
        """Keep a cell."""
        with self._lock, open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, "file": name, "cell": cell}) + "\n")
            self._cells[key] = cell

    def key(self, tool: str, path: Path) -> str:
        """What a cell of this file depends on."""
        return f"{digest(path)} {tool} {self._releases[tool]}"
