"""The environment that the tools of this folder run in; the one place that makes it.

As a program (`python3 tools/_env.py`) it prints the path of an interpreter that has normfold and its test extra; what pip says
goes to stderr.  Python tools call `enter()`, which starts them again under that interpreter where needed.

Which environment: the active virtual environment; else the interpreter at hand if this checkout is already installed in it;
else `.venv` in the checkout, made when there is none.  A stamp in the environment makes the second call a matter of
milliseconds; it is renewed when pyproject.toml or constraints.txt changes.

Only the standard library, and nothing newer than Python 3.8: this runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (3, 11)
STAMP = ".normfold-stamp"


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


def _installed_here() -> bool:
    """True when the running interpreter, outside any virtual environment, has this checkout and its test extra."""
    spec = importlib.util.find_spec("normfold")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != ROOT / "normfold":
        return False
    return all(importlib.util.find_spec(name) for name in ("torch", "pytest", "hypothesis", "sklearn", "importlinter"))


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
    if env is None:
        if _installed_here():
            return Path(sys.executable)
        env = ROOT / ".venv"
        if not _interpreter(env).exists():
            _make(env)
    stamp = env / STAMP
    wanted = _fingerprint()
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
