"""Sidecars: ``net.toml`` beside ``net.pt`` says how to load it, so that ``normfold optimize net.pt`` needs no option.

    model = "arch.py:factory"        # what --model takes; paths are relative to the sidecar
    key = "state_dict"               # where the state_dict lies in the checkpoint; found when left out
    prefix = "module."               # what its names carry; found when left out
    inputs = ["image=1x3x32x32"]     # what --input takes
    dynamic = ["image=Nx3xHxW"]      # what --dynamic takes
    data = "samples.npz"             # what --data takes
    inputs_from = "arch.py:examples" # what --inputs takes

A table ``[record]`` may hold anything (how the model was trained); it is not read.  Options given explicitly win.  Like --model,
a sidecar makes normfold run the Python file that it names: `sidecar=False` (``--no-sidecar``) leaves it unread.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from normfold.errors import InputRefused

_TEXTS = ("model", "key", "prefix", "data", "inputs_from")
_LISTS = ("inputs", "dynamic")


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says; `folder` is what its paths are relative to."""

    folder: Path
    model: str | None = None
    key: str | None = None
    prefix: str | None = None
    inputs: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    data: str | None = None
    inputs_from: str | None = None


def find_sidecar(model: Path) -> Path | None:
    """The sidecar of a model file: the same name with the last suffix replaced by ``.toml``."""
    path = model.with_suffix(".toml")
    return path if path != model and path.is_file() else None


def read_sidecar(path: Path) -> Sidecar:
    """Read a sidecar.  Raises InputRefused for broken TOML, unknown keys and wrong types."""

    def bad(what: str) -> InputRefused:
        return InputRefused(f"{path}, read as the sidecar that says how to load the model, {what}; mend it or pass --no-sidecar")

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise bad(f"is not TOML ({error})") from None
    except OSError as error:
        raise bad(f"cannot be read ({error.strerror})") from None
    content.pop("record", None)
    known = (*_TEXTS, *_LISTS)
    for key, value in content.items():
        if key not in known:
            raise bad(f"has the unknown key {key!r}; known are {', '.join(known)} and the table record")
        if key in _TEXTS and not isinstance(value, str):
            raise bad(f"has {key} = {value!r}; expected a string")
        if key in _LISTS:
            items = cast("list[Any]", value) if isinstance(value, list) else None
            if items is None or not all(isinstance(item, str) for item in items):
                raise bad(f"has {key} = {value!r}; expected a list of strings")
    values: dict[str, Any] = {key: tuple(value) if key in _LISTS else value for key, value in content.items()}
    return Sidecar(path.parent, **values)
