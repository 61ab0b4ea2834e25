"""The noise that storing the original's parameters makes: Monte-Carlo arithmetic with half an ulp."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from normfold.graph import BFLOAT16, Array, Graph, Value, is_float
from normfold.verify.channels import largest
from normfold.verify.evaluate import Constants, Walk, exact, stored

_PRECISION = {np.dtype(np.float16): 11, BFLOAT16: 8, np.dtype(np.float32): 24, np.dtype(np.float64): 53}
_LEAST = {np.dtype(np.float16): -24, BFLOAT16: -133, np.dtype(np.float32): -149, np.dtype(np.float64): -1074}
# float64 models are judged by a float64 reference, which rounds like they do: their unit is what long sums of it lose
_UNIT = {np.dtype(np.float16): 2.0**-11, BFLOAT16: 2.0**-8, np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-48}

_STRUCTURE = 8  # elements of a constant up to which whole numbers are taken for structure


def unit(graph: Graph) -> float:
    """Half an ulp (relative) of the coarsest float type that the model stores or computes in; of float32 when it has none."""
    return _UNIT[coarsest(graph)]


def unit_of(dtype: np.dtype[Any]) -> float:
    """Half an ulp of a float type, relative; of float64 what long sums lose."""
    return _UNIT[dtype]


def coarsest(graph: Graph) -> np.dtype[Any]:
    """The float type that `unit` speaks of."""
    dtypes = [value.dtype for value in (*graph.values(), *graph.constants()) if value.dtype is not None and value.dtype in _UNIT]
    return max(dtypes, key=lambda dtype: _UNIT[dtype], default=np.dtype(np.float32))


def ulp(array: Array, dtype: np.dtype[Any]) -> Array:
    """The distance between neighbouring numbers of `dtype` at each element of a float64 array."""
    _, exponent = np.frexp(array)
    return np.ldexp(1.0, np.maximum(exponent - _PRECISION[dtype], _LEAST[dtype]))


def perturbed(seed: int, dtype: np.dtype[Any] | None = None) -> Constants:
    """Constants each moved by a random part, up to half an ulp of `dtype` (their stored type).

    Zeros stay, and a few whole numbers by themselves: they are structure (an exponent, the step of a range, scales of a resize;
    a step of 1 moved down and cast to an integer is 0).  The same seed moves the same value equally, however often it is read.
    """

    def read(value: Value) -> Array:
        assert value.const is not None
        array = stored(value)
        if array.size <= _STRUCTURE and is_float(array.dtype) and np.array_equal(array, np.round(array)):
            return array
        return _moved(array, dtype or value.const.dtype, seed, value.name)

    return read


def perturbed_feed(arrays: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Inputs each moved by a random part of half an ulp of their own type; zeros and integers stay."""
    return {
        name: _moved(array.astype(np.float64), array.dtype, seed, name) if is_float(array.dtype) else array
        for name, array in arrays.items()
    }


def _moved(array: Array, dtype: np.dtype[Any], seed: int, name: str) -> Array:
    if dtype not in _PRECISION or not is_float(array.dtype) or not array.size:
        return array
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    with np.errstate(all="ignore"):
        # a float64 that moves by less than half of its own ulp does not move
        step = ulp(array, dtype) * (2.0 if dtype == np.float64 else 1.0)
        moved = array + (rng.random(array.shape) - 0.5) * step
    return np.where((array == 0) | ~np.isfinite(array), array, moved)


def movement(
    graph: Graph,
    feeds: Mapping[str, Array],
    wanted: Collection[tuple[str, tuple[int, ...]]],
    *,
    given: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> dict[tuple[str, tuple[int, ...]], Array]:
    """How far an ulp of float64 in every parameter and input moves the values `wanted`: (name, axes kept) -> per channel."""
    double = np.dtype(np.float64)
    shaken = {name: _moved(exact(np.asarray(array)), double, seed, name) for name, array in feeds.items()}
    found: dict[tuple[str, tuple[int, ...]], Array] = {}
    both = (Walk(graph, feeds, given=given), Walk(graph, shaken, perturbed(seed, double), given))
    for (value, plain), (_, moved) in zip(*both, strict=True):
        for name, keep in wanted:
            if name == value.name and plain.shape == moved.shape and is_float(plain.dtype):
                with np.errstate(all="ignore"):
                    found[name, keep] = largest(np.abs(moved - plain), keep)
    return found
