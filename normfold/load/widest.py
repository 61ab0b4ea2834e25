"""Open sizes that were asked for too widely: let torch.export find how wide they can be.

A convolution without padding needs a size of at least its kernel, a skip connection around a stride needs even sizes.  For a
named Dim torch.export makes an error of that.  `widest` then asks again without names: the program gets guards instead, which say
how far the sizes are open.  A guard that fixes a size (``size == 80``) is no answer: the error stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

_SIZE = re.compile(r"L\['(\w+)'\](?:\[['\"]?(\w+)['\"]?\])*\.size\(\)\[(\d+)\]")
_MULTIPLE = re.compile(r"\(?\s*\(?(.+?)\)? % (\d+)\)? == 0")
_LEAST = re.compile(r"(?:\((-\d+)\) \+ )?(axis \d+ of \w+) >= (\d+)")
_UNITY = re.compile(r"!= [01]\Z")  # sizes of 0 and 1 are never open


def widest(export: Callable[[Any], Any], shapes: Any) -> tuple[Any, list[str]]:
    """The program with the sizes open that `shapes` names, as far as it allows, and what limits them.

    export: calls torch.export.export with the `dynamic_shapes` it is given.  Raises what it raises for `shapes` when the sizes
    cannot be open at all.
    """
    try:
        program = export(shapes)
    except Exception as error:
        if shapes is None or "Constraints violated" not in str(error):
            raise
        try:
            program = export(unnamed(shapes))
        except Exception:
            raise error from None
        if any(fixes(guard) for guard in _guards(program)):
            raise
    return program, limits(_guards(program))


def _guards(program: Any) -> list[str]:
    return list(getattr(program, "_guards_code", ()))


def unnamed(shapes: Any) -> Any:
    """The same axes open, but without names, ranges and relations."""
    from torch.export import Dim

    if isinstance(shapes, Mapping):
        return {key: unnamed(value) for key, value in cast("Mapping[Any, Any]", shapes).items()}
    if isinstance(shapes, (list, tuple)):
        items = [unnamed(value) for value in cast("list[Any]", shapes)]
        return items if isinstance(shapes, list) else tuple(items)
    return Dim.DYNAMIC if isinstance(shapes, Dim) else shapes


def fixes(guard: str) -> bool:
    """True for a guard that leaves one value only: an equation with a number that is no divisibility."""
    left, equals, right = guard.rpartition("==")
    if not equals or _MULTIPLE.fullmatch(guard.strip()):
        return False
    return not _SIZE.search(left) or not _SIZE.search(right)


def limits(guards: list[str]) -> list[str]:
    """The guards in words: ``axis 2 of image >= 3``."""
    told: list[str] = []
    lowest: dict[str, int] = {}
    for guard in guards:
        text = _SIZE.sub(lambda found: f"axis {found[3]} of {found[1]}", guard.strip())
        if _UNITY.search(text):
            continue
        if least := _LEAST.fullmatch(text):
            lowest[least[2]] = max(lowest.get(least[2], 0), int(least[3]) - int(least[1] or 0))
        elif multiple := _MULTIPLE.fullmatch(text):
            told.append(f"{multiple[1]} a multiple of {multiple[2]}")
        else:
            told.append(text)
    return [*(f"{axis} >= {size}" for axis, size in lowest.items()), *dict.fromkeys(told)]
