"""Inputs to compare on: seven families, and the user's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normfold.errors import UsageError
from normfold.graph import Array, Graph, Value, is_float
from normfold.load.inputs import read_data as load_arrays
from normfold.verify.sizes import bindings, shape_of

Family = Literal["normal", "spread", "zero", "large", "constant", "uniform", "denormal"]
FAMILIES: tuple[Family, ...] = ("normal", "spread", "zero", "large", "constant", "uniform", "denormal")
"""In the order of what they find, so that a short check takes the first."""
QUICK: tuple[Family, ...] = ("normal", "spread")
Level = Literal["quick", "standard", "thorough"]
SEEDS = 3  # of the level "thorough"
Ranges = Mapping[str, int | tuple[int, int]]
"""For integer inputs: n for [0, n), or (low, high) for low <= value < high."""


@dataclass(frozen=True)
class Feed:
    """Arrays for all graph inputs by name, the family that they are of, the sizes chosen for symbols."""

    family: str
    arrays: dict[str, Array]
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    name: str = ""

    @property
    def label(self) -> str:
        """How comparisons name this feed."""
        return self.name or self.family


def make(
    graph: Graph,
    family: Family,
    sizes: Mapping[str, int] | None = None,
    *,
    example: Mapping[str, Array] | None = None,
    ranges: Ranges | None = None,
    seed: int = 0,
) -> Feed:
    """One feed of `family`.  The same arguments give the same arrays.

    Integer inputs are drawn from `ranges`, else from the range that the example shows, else from {0, 1}, which is a valid
    index into every table and mask; their "zero" and "constant" families are the smallest value and one value.
    """
    sizes, example = dict(sizes or {}), example or {}
    arrays: dict[str, Array] = {}
    for place, value in enumerate(graph.inputs):
        given = example.get(value.name)
        dtype = value.dtype if value.dtype is not None else (None if given is None else given.dtype)
        if dtype is None:
            raise UsageError(f"input {value.name!r} is not a tensor of numbers; give its value with --data")
        shape = shape_of(value, sizes, given)
        rng = np.random.default_rng([seed, FAMILIES.index(family), place])
        if is_float(dtype):
            arrays[value.name] = _floats(family, shape, dtype, rng)
        elif dtype == np.bool_:
            arrays[value.name] = _bools(family, shape, rng)
        elif dtype.kind in "iu":
            low, high = _range(value.name, given, ranges or {})
            arrays[value.name] = _integers(family, shape, low, high, rng).astype(dtype)
        else:
            raise UsageError(f"input {value.name!r} has type {dtype}; expected floats, integers or bools")
    return Feed(family, arrays, sizes)


# magnitude of "large", and of "denormal", by bytes of the exponent's range: half precision ends at 65504 and 6e-8
_LARGE = {2: 16.0, 4: 1e3, 8: 1e3}


def _floats(family: Family, shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    if family == "normal":
        array = rng.standard_normal(shape)
    elif family == "uniform":
        array = rng.random(shape)
    elif family == "large":
        array = rng.standard_normal(shape) * _LARGE[dtype.itemsize]
    elif family == "constant":
        array = np.full(shape, 0.7)
    elif family == "zero":
        array = np.zeros(shape)
    elif family == "denormal":
        tiny = {np.dtype(np.float16): 1e-6, np.dtype(np.float64): 1e-310}.get(dtype, 1e-40)
        array = rng.standard_normal(shape) * tiny
    else:
        axis = min(1, len(shape) - 1) if len(shape) >= 3 else len(shape) - 1
        array = rng.standard_normal(shape)
        if shape:
            scale = 10.0 ** rng.uniform(-2, 2, shape[axis])
            array = array * scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.asarray(array).astype(dtype)


def _bools(family: Family, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if family in ("zero", "constant"):
        return np.full(shape, family == "constant")
    return rng.random(shape) < 0.5


def _range(name: str, example: Array | None, ranges: Ranges) -> tuple[int, int]:
    told = ranges.get(name)
    if told is not None:
        return (0, told) if isinstance(told, int) else told
    if example is not None and example.size:
        return int(example.min()), int(example.max()) + 1
    return 0, 2


def _integers(family: Family, shape: tuple[int, ...], low: int, high: int, rng: np.random.Generator) -> Array:
    if family in ("zero", "constant"):
        return np.full(shape, low if family == "zero" else high - 1)
    return rng.integers(low, high, shape)


def feeds(
    graph: Graph,
    *,
    examples: Sequence[Mapping[str, Array]] = (),
    data: Sequence[Mapping[str, Array]] = (),
    sizes: Mapping[str, int] | None = None,
    ranges: Ranges | None = None,
    level: Level = "standard",
    seed: int = 0,
) -> list[Feed]:
    """What to compare on, the most telling first: the user's data, the families at the first sizes, then at the second.

    examples: arrays that show sizes and integer ranges.  data: the user's own inputs, compared on as they are.
    level: "quick" takes two families at the first sizes; "standard" all seven, and the normal one at the second sizes;
      "thorough" all seven at both sizes, from three seeds.
    """
    shown = [*data, *examples]
    example = dict(shown[0]) if shown else None
    both = bindings(graph, example, sizes=sizes)
    found = [
        Feed("data" if n == 0 else f"data {n + 1}", {name: np.asarray(a) for name, a in item.items()})
        for n, item in enumerate(data)
    ]
    families = QUICK if level == "quick" else FAMILIES
    found += [make(graph, family, both[0], example=example, ranges=ranges, seed=seed) for family in families]
    text = ", ".join(f"{name}={size}" for name, size in both[-1].items())
    if level != "quick" and len(both) > 1:
        other = make(graph, "normal", both[1], example=example, ranges=ranges, seed=seed)
        found.insert(len(data) + len(QUICK), replace(other, name=f"normal ({text})"))
    if level == "thorough":
        for extra in range(SEEDS):
            for place, chosen in enumerate(both):
                for family in families:
                    if (extra, place) == (0, 0) or (extra, place, family) == (0, 1, "normal"):
                        continue
                    other = make(graph, family, chosen, example=example, ranges=ranges, seed=seed + extra)
                    said = [text] * (place > 0) + [f"seed {seed + extra}"] * (extra > 0)
                    found.append(replace(other, name=f"{family} ({'; '.join(said)})"))
    return found


def read_data(path: str | Path, graph: Graph) -> list[dict[str, Array]]:
    """The arrays of an ``.npz`` file as feeds: one array per input, named or in order.

    Where an input's first size is fixed and the file holds a multiple of it, the file is several feeds.
    Raises UsageError for a file that does not fit.
    """
    arrays, positional = load_arrays(Path(path))
    names = [value.name for value in graph.inputs]
    arrays |= dict(zip([name for name in names if name not in arrays], positional, strict=False))
    if set(arrays) != set(names):
        raise UsageError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; the inputs are {', '.join(names)}")
    counts = {_parts(path, value, arrays[value.name]) for value in graph.inputs}
    if len(counts) > 1:
        raise UsageError(
            f"{path} holds {' and '.join(map(str, sorted(counts)))} samples of different inputs; give as many of each"
        )
    count = counts.pop() if counts else 1
    split = {name: np.split(array, count) if count > 1 else [array] for name, array in arrays.items()}
    return [{value.name: _typed(split[value.name][n], value) for value in graph.inputs} for n in range(count)]


def _parts(path: str | Path, value: Value, array: Array) -> int:
    """How many feeds an array holds."""
    shape = value.shape
    if shape is None or not shape:
        return 1
    fits = array.ndim == len(shape) and all(
        not isinstance(d, int) or d == n for d, n in zip(shape[1:], array.shape[1:], strict=True)
    )
    first = shape[0]
    if fits and (not isinstance(first, int) or (first > 0 and array.shape[0] > 0 and array.shape[0] % first == 0)):
        return array.shape[0] // first if isinstance(first, int) else 1
    wanted = "x".join("?" if dim is None else str(dim) for dim in shape)
    raise UsageError(f"{path}: {value.name!r} is {'x'.join(map(str, array.shape))}, the input is {wanted}")


def _typed(array: Array, value: Value) -> Array:
    return array if value.dtype is None or array.dtype == value.dtype else array.astype(value.dtype)
