"""Inputs that the caller describes: shapes (``--input``), arrays (``--data``), or a function (``--inputs``).

``--input [name=]SHAPE[:dtype]`` makes a seeded random array: SHAPE is ``1x3x32x32`` (or ``1,3,32,32``; empty for a scalar), dtype
a NumPy name or ``bfloat16``.  Floats are standard normal; integers are 0 or 1, which is a valid index into every table
and mask; booleans are either.  Give real values with ``--data`` where that is not good enough.

``--data x.npz`` holds one array an input: named by input, or positional as ``arr_0``, ``arr_1`` (what ``np.savez(file, a, b)``
writes).

``--inputs file.py:fn`` calls ``fn()``; it returns one call or a list of calls.  A call is a tuple of arguments, a pair
``(args, kwargs)`` of a tuple and a dict, a dict of named arguments, or one tensor; arguments are any pytree.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from normfold.errors import UsageError
from normfold.graph import BFLOAT16, Array
from normfold.load.factory import call, resolve
from normfold.load.loaded import Call

SEED = 0
_LARGEST = 1 << 30  # elements of an example input
_POSITION = re.compile(r"arr_(\d+)")


@dataclass(frozen=True)
class InputSpec:
    """One ``--input``: name ("" for the next position), shape, dtype (None for the model's own)."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None

    def array(self, rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
        """A random array of this shape, in this spec's dtype or else `dtype`."""
        return random_array(self.shape, self.dtype or dtype, rng)


def parse_input(text: str) -> InputSpec:
    """Read ``[name=]SHAPE[:dtype]``.  Raises UsageError showing the form."""
    name, equals, rest = text.rpartition("=")
    sizes, _, type_name = rest.partition(":")
    if equals and not name:
        raise UsageError(f"--input {text!r} has no name before '='; expected name=1x3x32x32 or 1x3x32x32")
    shape = tuple(_size(text, part) for part in re.split("[x,]", sizes.strip())) if sizes.strip() else ()
    if not equals and not sizes.strip() and not type_name:
        raise UsageError("--input is empty; expected name=1x3x32x32 or 1x3x32x32:float32")
    if math.prod(shape) > _LARGEST:
        raise UsageError(f"--input {text!r} has more than {_LARGEST} elements; give a smaller example")
    return InputSpec(name.strip(), shape, dtype_named(type_name.strip(), f"--input {text!r}") if type_name else None)


def _size(text: str, part: str) -> int:
    if not part.strip().isdigit():
        raise UsageError(
            f"--input {text!r}: {part.strip()!r} is not a size; expected name=1x3x32x32:float32 (symbols go to --dynamic)"
        )
    return int(part)


def dtype_named(name: str, what: str) -> np.dtype[Any]:
    """The NumPy type called `name`; "bfloat16" included."""
    if name == "bfloat16":
        return BFLOAT16
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biufc":
        raise UsageError(f"{what}: {name!r} is not a number type; expected float32, float16, bfloat16, int64, bool, ...")
    return dtype


def shape_text(shape: Sequence[Any]) -> str:
    """``1x3x32x32``; "a scalar" for no axes, "?" for an unknown size."""
    return "x".join("?" if size is None else str(size) for size in shape) or "a scalar"


def random_array(shape: Sequence[int], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    """Standard normal floats, integers of 0 and 1, either boolean."""
    if dtype.kind in "biu":
        return rng.integers(0, 2, size=tuple(shape)).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(tuple(shape)) + 1j * rng.standard_normal(tuple(shape))).astype(dtype)
    return np.asarray(rng.standard_normal(tuple(shape))).astype(dtype)


def read_data(path: Path) -> tuple[dict[str, Array], list[Array]]:
    """(named, positional) arrays of an .npz file.  Raises UsageError; pickled objects are refused."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise UsageError(f"--data {path} is a single array; save it with np.savez(path, name=array)")
        with archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except FileNotFoundError:
        raise UsageError(f"--data {path} does not exist; check the path") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        lines = str(error).splitlines()
        reason = "it holds pickled objects" if "pickle" in str(error) else (lines[0] if lines else type(error).__name__)
        raise UsageError(
            f"--data {path} is not an .npz file of numbers ({reason}); save it with np.savez(path, name=array)"
        ) from None
    positions = sorted((int(found.group(1)), name) for name in arrays if (found := _POSITION.fullmatch(name)))
    if [index for index, _ in positions] != list(range(len(positions))):
        raise UsageError(
            f"--data {path}: positional arrays must be arr_0, arr_1, ... without a gap; got {', '.join(n for _, n in positions)}"
        )
    positional = [arrays.pop(name) for _, name in positions]
    return arrays, positional


def calls_from(reference: str, base: Path | None = None) -> list[Call]:
    """The calls that the user's function returns."""
    function, path = resolve(reference, option="--inputs", base=base)
    if not callable(function):
        raise UsageError(f"--inputs {reference} is a {type(function).__name__}; expected a function that returns the inputs")
    returned = call(function, what=f"--inputs {reference}", path=path)
    items = cast("list[Any]", returned) if isinstance(returned, list) else [returned]
    if not items:
        raise UsageError(
            f"--inputs {reference} returned no calls; expected a tuple of arguments, (args, kwargs), or a list of such calls"
        )
    return [_call(item) for item in items]


def _call(item: Any) -> Call:
    if isinstance(item, dict):
        return (), _named(cast("dict[Any, Any]", item))
    if isinstance(item, tuple):
        parts = cast("tuple[Any, ...]", item)
        if len(parts) == 2 and isinstance(parts[0], tuple) and isinstance(parts[1], dict):
            return cast("tuple[Any, ...]", parts[0]), _named(cast("dict[Any, Any]", parts[1]))
        return parts, {}
    return (item,), {}


def _named(item: dict[Any, Any]) -> dict[str, Any]:
    wrong = [key for key in item if not isinstance(key, str)]
    if wrong:
        raise UsageError(f"--inputs: named arguments need strings as keys; got {wrong[0]!r}")
    return cast("dict[str, Any]", item)
