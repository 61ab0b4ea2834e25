"""Sizes that stay open: ``--dynamic "image=Nx3xHxW"``.

Numbers are fixed, names are symbols; one name in two places is one size.  ``8*H`` is a multiple, ``H[16..64]`` a range
(``H[16..]`` without end).  Separators are ``x`` or, when symbols contain an x, commas.  ``x.2=Nx16`` reaches into a list, tuple
or dict argument.  A single input needs no name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from normfold.errors import UsageError

_SIZE = re.compile(r"(?:(\d+) ?\* ?)?([A-Za-z_]\w*)(?: ?\* ?(\d+))?(?:\[(\d*)\.\.(\d*)\])?")
_FORM = "expected a form like image=Nx3xHxW"


@dataclass(frozen=True)
class Size:
    """``factor * symbol``, the symbol between `low` and `high`; the symbol "" means the fixed size `factor`."""

    symbol: str
    factor: int
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class DynamicSpec:
    """One ``--dynamic``: path to the tensor ("" for the only input) and its sizes."""

    name: str
    sizes: tuple[Size, ...]


def parse_dynamic(text: str) -> DynamicSpec:
    """Read ``[name=]SIZES``.  Raises UsageError showing the form."""
    name, equals, rest = text.rpartition("=")
    if (equals and not name.strip()) or not rest.strip():
        raise UsageError(f"--dynamic {text!r} has no {'name' if rest.strip() else 'sizes'}; {_FORM}")
    parts = rest.split(",") if "," in rest else re.split("x", rest)
    sizes = tuple(_size(text, part.strip()) for part in parts)
    if not any(size.symbol for size in sizes):
        raise UsageError(f"--dynamic {text!r} names no open size; {_FORM}, or leave the option out")
    return DynamicSpec(name.strip(), sizes)


def _size(text: str, part: str) -> Size:
    if part.isdigit():
        return Size("", int(part))
    found = _SIZE.fullmatch(part)
    if found is None or (found[1] and found[3]):
        raise UsageError(f"--dynamic {text!r}: {part!r} is no size; {_FORM} (numbers, names, 8*H, H[16..64])")
    low, high = (int(end) if end else None for end in (found[4], found[5]))
    return Size(found[2], int(found[1] or found[3] or 1), low, high)


def dynamic_shapes(
    specs: Sequence[DynamicSpec], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[tuple[Any, ...], int, int]]]:
    """(`dynamic_shapes` for torch.export, axes to enlarge) for a call with these arguments by parameter name.

    The second lists (path to the tensor, axis, times) for open sizes that are below 2 in the example: torch.export fixes
    those.  Raises UsageError where specs and tensors do not fit.
    """
    from torch.export import Dim
    from torch.utils import _pytree as pytree

    shapes: dict[str, Any] = {name: pytree.tree_map(lambda _: None, value) for name, value in arguments.items()}
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in _ranges(specs).items()}
    bound: dict[str, int] = {}
    small: list[tuple[tuple[Any, ...], int, int]] = []
    for spec in specs:
        path = _path(spec, arguments)
        tensor = _at(arguments, path)
        sizes = tuple(int(size) for size in getattr(tensor, "shape", ()))
        if not hasattr(tensor, "shape") or len(sizes) != len(spec.sizes):
            got = (
                f"shape {'x'.join(map(str, sizes)) or 'of a scalar'}"
                if hasattr(tensor, "shape")
                else f"a {type(tensor).__name__}"
            )
            raise UsageError(
                f"--dynamic {spec.name or path[0]} has {len(spec.sizes)} sizes, the example is {got}; they must match"
            )
        entry: dict[int, Any] = {}
        for axis, (size, given) in enumerate(zip(spec.sizes, sizes, strict=True)):
            if not size.symbol:
                if size.factor != given:
                    raise UsageError(
                        f"--dynamic {spec.name or path[0]} fixes axis {axis} at {size.factor}, the example has {given}"
                    )
                continue
            value, rest = divmod(given, size.factor)
            if rest or bound.setdefault(size.symbol, value) != value:
                known = f"{size.symbol} = {bound[size.symbol]} elsewhere" if not rest else f"not a multiple of {size.factor}"
                raise UsageError(
                    f"--dynamic {spec.name or path[0]}: axis {axis} is {given} in the example, {known}; they must agree"
                )
            dim = dims[size.symbol]
            entry[axis] = dim if size.factor == 1 else size.factor * dim
            if value == 1:
                small.append((path, axis, 2))
        _put(shapes, path, entry)
    return shapes, small


def _ranges(specs: Sequence[DynamicSpec]) -> dict[str, tuple[int | None, int | None]]:
    """The range of every symbol."""
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for size in (size for spec in specs for size in spec.sizes if size.symbol):
        given = (size.low, size.high)
        if ranges.get(size.symbol, (None, None)) == (None, None):
            ranges[size.symbol] = given
        elif given not in ((None, None), ranges[size.symbol]):
            raise UsageError(f"--dynamic gives {size.symbol} two ranges; give it one")
    for name, (low, high) in ranges.items():
        if low is not None and high is not None and low > high:
            raise UsageError(f"--dynamic: the range {name}[{low}..{high}] is empty")
    return ranges


def enlarged(arguments: Mapping[str, Any], small: Sequence[tuple[tuple[Any, ...], int, int]]) -> dict[str, Any]:
    """The arguments with the listed axes repeated; the given ones are not touched."""
    result: Any = dict(arguments)
    for path, axis, times in small:
        tensor = _at(result, path)
        repeats = [times if index == axis else 1 for index in range(tensor.ndim)]
        result = _replaced(result, path, tensor.repeat(*repeats))
    return result


def _path(spec: DynamicSpec, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    if not spec.name:
        if len(arguments) != 1:
            raise UsageError(f"--dynamic needs a name, the model takes {', '.join(arguments)}; {_FORM}")
        return tuple(arguments)
    return tuple(spec.name.split("."))


def _step(container: Any, key: str) -> Any:
    """The real key of `container` that `key` writes, None when there is none."""
    if isinstance(container, Mapping):
        known = cast("Mapping[Any, Any]", container)
        return next((item for item in known if str(item) == key), None)
    if isinstance(container, (list, tuple)) and key.isdigit() and int(key) < len(cast("Sequence[Any]", container)):
        return int(key)
    return None


def _at(arguments: Mapping[str, Any], path: tuple[Any, ...]) -> Any:
    item: Any = arguments
    for key in path:
        real = _step(item, str(key))
        if real is None:
            known = list(item) if isinstance(item, Mapping) else list(range(len(item))) if isinstance(item, (list, tuple)) else []
            raise UsageError(f"--dynamic: there is no {key!r} in the example; known: {', '.join(map(str, known)) or 'nothing'}")
        item = item[real]
    return item


def _put(shapes: Any, path: tuple[Any, ...], entry: Any) -> None:
    head = _step(shapes, str(path[0]))
    shapes[head] = entry if len(path) == 1 else _replaced(shapes[head], path[1:], entry)


def _replaced(container: Any, path: tuple[Any, ...], entry: Any) -> Any:
    """A copy of nested `container` in which the item at `path` is `entry`."""
    real = _step(container, str(path[0]))
    value = entry if len(path) == 1 else _replaced(container[real], path[1:], entry)
    if isinstance(container, Mapping):
        return {**container, real: value}
    items = [value if index == real else item for index, item in enumerate(container)]
    return items if isinstance(container, list) else tuple(items)
