"""Files that appear whole or not at all: written under another name in the same folder, flushed to disk, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from normfold.errors import UsageError

Writer = Callable[[BinaryIO], object]


def write_files(files: Mapping[Path, Writer], *, force: bool = False) -> None:
    """Write every file or none; the last one named appears last.

    force: replace what exists.  Raises UsageError for an existing file without `force`, a missing folder, a full disk.
    An error or an interrupt leaves what stood there before.
    """
    targets = {Path(os.path.realpath(path)): writer for path, writer in files.items()}
    for path, shown in zip(targets, files, strict=True):
        check_target(shown, force=force)
        if path.is_dir():
            raise UsageError(f"{shown} is a folder: name a file in it")
    temporary: dict[Path, Path] = {}
    try:
        for path, writer in targets.items():
            name = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
            temporary[name] = path
            with open(name, "xb") as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
        for name, path in list(temporary.items()):
            os.replace(name, path)
            del temporary[name]
        for folder in {path.parent for path in targets}:
            _sync_folder(folder)
    except OSError as error:
        where = ", ".join(str(path) for path in files)
        raise UsageError(
            f"{where} cannot be written ({error.strerror or error}): nothing was changed; choose another place"
        ) from error
    finally:
        for name in temporary:
            with suppress(OSError):
                name.unlink()


def check_target(path: Path, *, force: bool) -> None:
    """Raise UsageError where `path` may not be written, before any work is done."""
    real = Path(os.path.realpath(path))
    if not real.parent.is_dir():
        raise UsageError(f"the folder of {path} does not exist: create {real.parent} first")
    if real.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it")
    if real.exists() and not force:
        raise UsageError(f"{path} exists: give --force to replace it, or another name")


def _sync_folder(folder: Path) -> None:
    """Make the renames last; where folders cannot be opened (not Linux) the file system decides."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
