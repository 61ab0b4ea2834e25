"""``.pt2`` files (torch.export.save), read without executing what they hold.

torch.export.load runs pickles that its archive holds and turns parts of the program into Python.  So the archive is inspected
first, with torch's own reader: pickled custom objects and compiled libraries are refused, the program is judged by
normfold.load.pt2_audit; the tensors that are pickled are read weights-only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normfold.errors import InputRefused
from normfold.load.pt2_audit import judge
from normfold.load.quiet import quiet
from normfold.load.sniff import refuse


def read_pt2(path: Path) -> Any:
    """The ExportedProgram in `path`.  Raises InputRefused for what could execute code, and for damaged archives."""
    import torch

    _inspect(path)
    try:
        with _weights_only(), quiet("torch.export"), open(path, "rb") as file:
            return torch.export.load(file)
    except MemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise refuse(
            path, f"cannot be loaded by torch {torch.__version__} ({reason}): export it again with this version"
        ) from None


def _inspect(path: Path) -> None:
    from torch.export.pt2_archive._package import PT2ArchiveReader

    def bad(what: str) -> InputRefused:
        return refuse(path, f"{what}: export it again with torch.export.save")

    try:
        with open(path, "rb") as file, PT2ArchiveReader(file) as reader:
            names: list[str] = list(reader.get_file_names())
            texts = {name: reader.read_string(name) for name in names if name.endswith(".json")}
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise bad(f"is not a readable .pt2 archive ({lines[0] if lines else type(error).__name__})") from None
    models = [name for name in names if name.startswith("models/")]
    if models != ["models/model.json"]:
        raise bad(f"holds {'no exported program' if not models else 'other programs than one named model'}")
    if any(name.startswith("data/aotinductor/") for name in names):
        raise refuse(path, "holds a compiled library (AOTInductor), which is code: give the program from torch.export.save")
    for name, text in texts.items():
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise bad(f"has a damaged {name}") from None
        if name.startswith(("data/weights/", "data/constants/")):
            _payload(content, bad)
        else:
            found = judge(content)
            if found:
                raise bad(found)


def _payload(content: Any, bad: Any) -> None:
    entries = content.get("config") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise bad("has a damaged list of weights")
    for name, entry in entries.items():
        file = entry.get("path_name", "") if isinstance(entry, dict) else ""
        if not re.fullmatch(r"(weight|tensor)_\d+", str(file)):
            raise bad(f"holds the constant {name!r} as a pickled object, and unpickling that would run code")


@contextmanager
def _weights_only() -> Generator[None]:
    """Make every torch.load inside read weights-only, whatever its caller asked for."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
