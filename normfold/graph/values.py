"""Values of the view: what flows along an edge, what is constant, and what gauge it is stored in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from normfold.graph.node import Node

Array = npt.NDArray[Any]
Dim = int | str | None
"""A dimension: its size, the name of a symbol ("N", "s0*12"), or None when nothing is known of it."""
Shape = tuple[Dim, ...]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def is_float(dtype: np.dtype[Any] | None) -> bool:
    """True for the float types that a model stores: float16, bfloat16, float32, float64."""
    return dtype is not None and (dtype.kind == "f" or dtype == BFLOAT16)


class Constant:
    """A constant tensor, read when it is needed and never written in place.

    `dtype` is the *stored* type: what an artefact holds.  `read()` gives the array, which is float64 while a rewritten
    constant has not been rounded yet (`pending`); rounding happens once, in `rounded()`.
    """

    __slots__ = ("_array", "_load", "dtype", "shape")

    def __init__(
        self,
        array: Array | None = None,
        *,
        load: Callable[[], Array] | None = None,
        shape: tuple[int, ...] | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> None:
        if array is None and (load is None or shape is None or dtype is None):
            raise ValueError("a Constant needs an array, or a loader with the shape and dtype it will return")
        self._array = array
        self._load = load
        self.shape: tuple[int, ...] = tuple(array.shape) if array is not None else tuple(shape or ())
        self.dtype: np.dtype[Any] = np.dtype(dtype) if dtype is not None else np.asarray(array).dtype

    def read(self) -> Array:
        """The array as held: stored type, or float64 while pending.  Do not write to it."""
        if self._array is not None:
            return self._array
        assert self._load is not None
        return self._load()  # not kept: a memory-mapped tensor stays on disk

    def float64(self) -> Array:
        """The array as float64 (floats only; other types are returned as they are)."""
        array = self.read()
        return array.astype(np.float64) if is_float(array.dtype) and array.dtype != np.float64 else array

    @property
    def pending(self) -> bool:
        """True while the array is more precise than the stored type."""
        return self._array is not None and self._array.dtype != self.dtype

    def rounded(self) -> Constant:
        """This constant rounded once to its stored type."""
        if not self.pending:
            return self
        with np.errstate(over="ignore"):  # the range was checked when the rewrite was decided
            return Constant(self.read().astype(self.dtype))

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes in the stored type."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Gauge:
    """A promise: this value holds ``scale * v + shift`` where v is `original`'s value in the graph as captured.

    `scale` and `shift` are float64 arrays broadcastable to the value's shape.  NaN is no promise; an `original` of "" says that
    the value stands for none in the graph as captured (`Gauge.none`).
    """

    original: str
    scale: Array
    shift: Array

    @classmethod
    def none(cls) -> Gauge:
        """Of a new value: whatever is moved into it later, nothing is promised."""
        return cls("", np.full((), np.nan), np.zeros(()))

    @property
    def identity(self) -> bool:
        return bool(np.all(self.scale == 1.0) and np.all(self.shift == 0.0))


class Use(NamedTuple):
    """One reading of a value: `node.inputs[slot]`; slot -1 is a capture by a sub-graph of `node`."""

    node: Node
    slot: int


@dataclass(eq=False)
class Value:
    """A tensor of the graph: a graph input, a constant, or an output of a node.

    shape: dims are sizes, symbol names or None; the whole is None when not even the rank is known.
    dtype: None for what is not a dense tensor of numbers (sequences, strings, optionals).
    param: the user's own name of a parameter ("layer1.0.bn1.weight"), "" otherwise.
    gauges: what this value is in terms of the values of the captured graph; empty means "itself, unchanged".
    origin: the adapter's handle.
    """

    name: str
    shape: Shape | None = None
    dtype: np.dtype[Any] | None = None
    const: Constant | None = None
    param: str = ""
    producer: Node | None = None
    uses: list[Use] = field(default_factory=list[Use])
    gauges: tuple[Gauge, ...] = ()
    origin: Any = None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def captured(self) -> bool:
        """True when a sub-graph reads this value by name."""
        return any(use.slot < 0 for use in self.uses)

    def __repr__(self) -> str:
        return f"<Value {self.name}>"
