"""The environment that the tools of this folder run in; the one place that makes it.

As a program (`python3 tools/_env.py`) it prints the path of an interpreter that has normfold and its test extra; what pip says
goes to stderr.  Python tools call `enter()`, which starts them again under that interpreter where needed.

Which environment: the active virtual environment, else the interpreter at hand, as they are where this checkout is already
installed; else the active one, or `.venv` in the checkout (made when there is none), with everything at the pinned releases.
A stamp in an environment that was filled here makes the second call quick; it is renewed when pyproject.toml or
constraints.txt changes.

Only the standard library, and nothing newer than Python 3.8: this runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (3, 11)
STAMP = ".normfold-stamp"
NAMES = ("torch", "pytest", "hypothesis", "sklearn", "importlinter")  # a few of what only a complete installation has


def _fail(message: str) -> None:
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def _interpreter(env: Path) -> Path:
    return env / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _fingerprint() -> str:
    """What the stamp must say: the checkout and the two files that decide what is installed."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _quiet(python: Path, code: str) -> str | None:
    """What `code` prints under `python`, away from the checkout; None when it fails."""
    done = subprocess.run([str(python), "-c", code], cwd=os.sep, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _active() -> Path | None:
    """The virtual environment that is running this, or is activated."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix)
    active = os.environ.get("VIRTUAL_ENV")
    return Path(active) if active and _interpreter(Path(active)).exists() else None


def _complete(python: Path) -> bool:
    """True when `python` has this checkout and its test extra, whatever put them there."""
    code = f"from importlib.util import find_spec; assert all(map(find_spec, {NAMES})); print(find_spec('normfold').origin)"
    where = _quiet(python, code)
    return where is not None and Path(where).resolve().parent == ROOT / "normfold"


def _base_python() -> str:
    """An interpreter new enough to make an environment with."""
    if sys.version_info >= NEEDED:
        return sys.executable
    for minor in range(NEEDED[1], NEEDED[1] + 10):
        found = shutil.which(f"python3.{minor}")
        if found and _quiet(Path(found), "import venv") is not None:
            return found
    has = ".".join(map(str, sys.version_info[:3]))
    _fail(f"Python 3.11 or newer is needed, this is {has} and no newer one is on PATH. Install one, or activate an environment.")
    raise AssertionError


def _make(env: Path) -> None:
    print(f"making {env}", file=sys.stderr)
    done = subprocess.run([_base_python(), "-m", "venv", str(env)], stdout=sys.stderr)
    if done.returncode or _quiet(_interpreter(env), "import pip") is None:
        shutil.rmtree(env, ignore_errors=True)
        _fail("`python3 -m venv` did not give an environment with pip. On Debian and Ubuntu: apt-get install python3-venv")


def _install(env: Path) -> None:
    print(f"installing normfold and what its tests need into {env}", file=sys.stderr)
    if sys.platform == "linux" and not _quiet(_interpreter(env), "import importlib.util as u; print(u.find_spec('torch') or '')"):
        print("(for PyTorch without CUDA set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu)", file=sys.stderr)
    command = [str(_interpreter(env)), "-m", "pip", "install", "-c", "constraints.txt", "-e", ".[test]"]
    if subprocess.run([*command, "--quiet", "--disable-pip-version-check"], cwd=ROOT, stdout=sys.stderr).returncode:
        _fail(f"the installation failed (see above). The command, to be run in {ROOT}: {' '.join(command)}")


def ready() -> Path:
    """The interpreter of an environment in which everything is installed."""
    env = _active()
    python = Path(sys.executable) if env is None else _interpreter(env)
    if (env is None or not (env / STAMP).exists()) and _complete(python):
        return python
    if env is None:
        env = ROOT / ".venv"
        if not _interpreter(env).exists():
            _make(env)
    stamp, wanted = env / STAMP, _fingerprint()
    if not stamp.exists() or stamp.read_text() != wanted:
        _install(env)
        stamp.write_text(wanted)
    return _interpreter(env)


def enter() -> None:
    """Go on under `ready()`: returns when this interpreter is it, and starts the script again under it otherwise."""
    python = ready()
    if Path(sys.prefix) != python.parent.parent and python != Path(sys.executable):
        os.execv(str(python), [str(python), *sys.argv])


if __name__ == "__main__":
    print(ready())
