"""What every value of a rewritten graph is promised to hold, and the original values that these promises speak of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from normfold.graph import Array, Gauge, Graph, Value, is_float
from normfold.verify.evaluate import Walk


def promises_of(after: Graph, before: Graph) -> dict[Value, tuple[Gauge, ...]]:
    """Recorded gauges; where none are recorded, equality with the value of the same name in `before`, if there is one."""
    names = {value.name for value in (*before.values(), *before.constants())}
    found: dict[Value, tuple[Gauge, ...]] = {}
    for value in (*after.values(), *after.outputs):
        if value.gauges:
            found[value] = tuple(gauge for gauge in value.gauges if gauge.original)
        elif value.name in names:
            found[value] = (Gauge(value.name, np.ones(()), np.zeros(())),)
    return found


@dataclass(frozen=True)
class Held:
    """One promise worked out for the original's array v: what the value should be, and how large the terms are."""

    gauge: Gauge
    original: Array

    @property
    def is_float(self) -> bool:
        """False for integers and bools, which are promised as they are."""
        return is_float(self.original.dtype)

    @cached_property
    def expected(self) -> Array:
        """s v + t; NaN where nothing is promised."""
        if not self.is_float or self.gauge.identity:
            return self.original
        with np.errstate(all="ignore"):
            return self.gauge.scale * self.original + self.gauge.shift

    @cached_property
    def magnitude(self) -> Array:
        """|s v| + |t|."""
        if not self.is_float:
            return self.original
        with np.errstate(all="ignore"):
            size = np.abs(self.original)
            return size if self.gauge.identity else np.abs(self.gauge.scale) * size + np.abs(self.gauge.shift)

    @cached_property
    def open(self) -> Array | None:
        """True, broadcast to the value's shape, where the promise leaves a channel open; None when nowhere."""
        nan = np.isnan(self.gauge.scale) | np.isnan(self.gauge.shift)
        return np.broadcast_to(nan, self.expected.shape) if self.is_float and nan.any() else None

    def instead_of(self, array: Array, expected: Array) -> Array:
        """`expected`, with `array` where nothing is promised."""
        return expected if self.open is None else np.where(self.open, array, expected)


class Reference:
    """The original's values in the order in which they are asked for; each is dropped after it was asked for the last time."""

    def __init__(
        self, before: Graph, feeds: Mapping[str, Array], wanted: Iterator[str], given: Mapping[str, Array] | None = None
    ) -> None:
        self._walk = Walk(before, feeds, given=given)
        self._steps = iter(self._walk)
        self._constants = {value.name: value for value in (*before.constants(), *before.outputs) if value.const is not None}
        self._left: dict[str, int] = {}
        for name in wanted:
            self._left[name] = self._left.get(name, 0) + 1
        self._held: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self._output_names = {value.name for value in before.outputs}

    def take(self, name: str) -> Array | None:
        """The array of the value `name`; None when the original has no such value.  Asked for as often as it was wanted."""
        if name in self._constants:
            return self._walk.read(self._constants[name])
        while name not in self._held and self._advance():
            pass
        array = self._held.get(name)
        self._left[name] = self._left.get(name, 0) - 1
        if self._left[name] <= 0:
            self._held.pop(name, None)
        return array

    def _advance(self) -> bool:
        step = next(self._steps, None)
        if step is None:
            return False
        value, array = step
        if self._left.get(value.name, 0) > 0:
            self._held[value.name] = array
        if value.name in self._output_names:
            self.outputs[value.name] = array
        return True

    def finish(self) -> dict[str, Array]:
        """Run to the end; the original's outputs, in its order."""
        while self._advance():
            pass
        for value in self._walk.graph.outputs:
            if value.const is not None:
                self.outputs[value.name] = self._walk.read(value)
        return {value.name: self.outputs[value.name] for value in self._walk.graph.outputs}
