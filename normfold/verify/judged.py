"""What the certificate and G1 found: one comparison for each value, and a second look at those that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from normfold.graph import Array, Gauge, Graph, Value, is_float
from normfold.record import Comparison
from normfold.verify.channels import channel_axis, extent, finite_pattern, largest, named, per_channel, varying_axes
from normfold.verify.noise import movement
from normfold.verify.promises import Held

CERTIFICATE = 1e-11
TINY = 1e-290
_QUIET = 1e-3  # a channel below this part of the tensor is judged as if it were that large: all it holds is rounding
_FACTOR = 8.0
_DRAWS = 4
_FEW = 32  # elements below which a channel says little by itself

Given = Mapping[str, Array] | None
"""Outputs, by name, of nodes that are not evaluated in either graph (`blind.made_up`)."""


@dataclass(frozen=True)
class _Doubt:
    """A failed comparison, to be judged again: its place, and error, size and scale of each channel."""

    place: int
    original: str
    keep: tuple[int, ...]
    errors: Array
    sizes: Array
    scales: Array
    shape: tuple[int, ...]


class Judged:
    """Collects comparisons."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.comparisons: list[Comparison] = []
        self.doubts: list[_Doubt] = []

    def add(self, gate: str, subject: str, error: float, allowed: float, where: str) -> None:
        self.comparisons.append(Comparison(gate, subject, self.family, error, allowed, bool(error <= allowed), where))

    def missing(self, subject: str, where: str) -> None:
        self.add("certificate", subject, float("inf"), CERTIFICATE, where)

    def promise(self, value: Value, array: Array, gauge: Gauge, original: Array | None) -> Held | None:
        """Hold one value to one promise; returns the promise worked out, None where that is not possible."""
        if original is None:
            self.missing(value.name, f"it is promised in terms of {gauge.original!r}, which the original does not hold")
            return None
        held = Held(gauge, original)
        if held.expected.shape != array.shape:
            self.missing(value.name, f"its shape is {list(array.shape)}, promised is {list(held.expected.shape)}")
            return None
        if not is_float(array.dtype) or not held.is_float:
            wrong = int(np.count_nonzero(array != held.expected))
            self.add("certificate", value.name, float(wrong), 0.0, f"{wrong} elements differ" if wrong else "")
            return held
        self._compare(value, array, held, varying_axes(array.ndim, gauge.scale, gauge.shift) or channel_axis(array.ndim))
        return held

    def _compare(self, value: Value, array: Array, held: Held, keep: tuple[int, ...]) -> None:
        gauge = held.gauge
        if not array.size:
            self.add("certificate", value.name, 0.0, CERTIFICATE, "")
            return
        with np.errstate(all="ignore"):
            scale, shift = (np.abs(per_channel(item, array.shape, keep)) for item in (gauge.scale, gauge.shift))
            promised = ~np.isnan(scale + shift)
            errors = np.where(promised, extent(array - held.expected, keep), 0.0)
            sizes = np.where(promised, scale * extent(held.original, keep) + shift, 0.0)
        if not np.isfinite(errors).all():  # NaN or Inf: in the same places is right
            pattern = finite_pattern(held.instead_of(array, array), held.instead_of(array, held.expected))
            if pattern is not None:
                self.add("certificate", value.name, float("inf"), CERTIFICATE, pattern.where)
                return
            with np.errstate(all="ignore"):
                usable = np.isfinite(held.expected)
                errors = np.where(promised, largest(np.where(usable, np.abs(array - held.expected), 0.0), keep), 0.0)
                sizes = np.where(promised, largest(np.where(usable, held.magnitude, 0.0), keep), 0.0)
        sizes = np.maximum(np.maximum(sizes, _QUIET * np.max(sizes, initial=0.0)), TINY)
        worst = int(np.argmax(errors / sizes))
        error = float(errors[worst] / sizes[worst])
        self.add("certificate", value.name, error, CERTIFICATE, named(array.shape, keep, worst))
        if error > CERTIFICATE:
            scale = np.where(promised, scale, 0.0)
            self.doubts.append(_Doubt(len(self.comparisons) - 1, gauge.original, keep, errors, sizes, scale, array.shape))

    def doubt(self, held: Held, keep: tuple[int, ...], errors: Array, ratios: Array, shape: tuple[int, ...]) -> None:
        """Let the last comparison be judged again, of which each channel has an error that is `ratios` of its size."""
        with np.errstate(all="ignore"):
            sizes = np.maximum(np.where(ratios > 0, errors / ratios, np.inf), TINY)
            scale = np.nan_to_num(np.abs(held.gauge.scale)).max(initial=0.0)
        if np.isfinite(errors).all():
            scales = np.full(errors.shape, scale)
            self.doubts.append(_Doubt(len(self.comparisons) - 1, held.gauge.original, keep, errors, sizes, scales, shape))

    def reconsider(self, before: Graph, feeds: Mapping[str, Array], given: Given) -> None:
        """Judge failed promises again, by what an ulp of float64 does to the original's value.

        A network that magnifies rounding does so along few directions, and one random movement may miss them: what fails by the
        first is judged by the root mean square of more.
        """
        squares: dict[tuple[str, tuple[int, ...]], Array] = {}
        doubts = self.doubts
        for draws in range(1, _DRAWS + 1):
            if not doubts:
                return
            wanted = {(doubt.original, doubt.keep) for doubt in doubts}
            for key, moved in movement(before, feeds, wanted, given=given, seed=draws - 1).items():
                with np.errstate(all="ignore"):
                    squares[key] = squares.get(key, 0.0) + np.square(moved)
            for doubt in doubts:
                found = squares.get((doubt.original, doubt.keep))
                if found is not None and found.shape == doubt.errors.shape:
                    self._again(doubt, np.sqrt(found / draws))
            doubts = [doubt for doubt in doubts if not self.comparisons[doubt.place].passed]

    def _again(self, doubt: _Doubt, noise: Array) -> None:
        """The comparison of a doubt anew; noise: how far the original's value moves, per channel."""
        with np.errstate(all="ignore"):
            if np.prod(doubt.shape) < _FEW * noise.size:  # by luck one element moves little: granted is what the others do
                usual = noise[np.isfinite(noise)]
                usual = np.sqrt(np.mean(np.square(usual))) if usual.size else 0.0
                noise = np.maximum(noise, usual * max(1.0, np.sqrt(2 * np.log(noise.size))))
            old = self.comparisons[doubt.place]
            allowed = np.maximum(doubt.sizes, _FACTOR * noise * doubt.scales / old.allowed)
            ratios = doubt.errors / allowed
        worst = int(np.argmax(ratios))
        self.comparisons[doubt.place] = Comparison(
            old.gate, old.subject, old.family, float(ratios[worst]), old.allowed,
            bool(ratios[worst] <= old.allowed), named(doubt.shape, doubt.keep, worst),
        )  # fmt: skip
