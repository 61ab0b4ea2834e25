"""The user's own Python: ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from normfold.errors import NormfoldError, UsageError

T = TypeVar("T")


def resolve(reference: str, *, option: str, base: Path | None = None) -> tuple[Any, Path | None]:
    """The object that `reference` names, and the file it stands in (None for an installed module).

    A path is relative to `base` (the working folder when None).  This runs the user's code; `option` names who asked for it.
    Raises UsageError when the reference is malformed, the file or name does not exist, or the code fails.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{option} expects path/to/file.py:name or package.module:name; got {reference!r}")
    path: Path | None = None
    if place.endswith(".py") or "/" in place:
        path = (base or Path()) / place
        if not path.is_file():
            raise UsageError(f"{option} {reference}: there is no file {path}; check the path")
        module = _import_file(path, option)
    else:
        module = _running(f"{option} {reference}: importing {place} failed", lambda: _import_name(place))
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            known = f"; it has {', '.join(names[:8])}" if names else ""
            raise UsageError(f"{option} {reference}: {place} has no {name!r}{known}")
        target = getattr(target, part)
    return target, path


def call(function: Any, *, what: str, path: Path | None) -> Any:
    """``function()`` with the folder of `path` importable; a failure is a UsageError that says where in the user's code."""
    with _importable(path):
        return _running(f"{what} failed", function)


def _import_name(name: str) -> ModuleType:
    with _importable(Path("here.py")):
        return importlib.import_module(name)


def _import_file(path: Path, option: str) -> ModuleType:
    name = "normfold_user_" + "".join(c if c.isalnum() else "_" for c in path.stem)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known  # --model and --inputs may name the same file: run it once
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{option}: {path} is not a Python file; name it .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    loader = spec.loader
    try:
        with _importable(path):
            _running(f"{option}: importing {path} failed", lambda: loader.exec_module(module))
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextmanager
def _importable(path: Path | None) -> Generator[None]:
    """Put the folder of `path` in front of sys.path for a while."""
    if path is None:
        yield
        return
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _running(what: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except NormfoldError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        text = str(error).strip().splitlines()
        raise UsageError(f"{what}: {type(error).__name__}{': ' + text[0] if text else ''}{where}") from error
