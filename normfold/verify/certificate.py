"""The certificate and G1: both judge the rewrite itself, in float64, before any constant was rounded.

Certificate: the original and the rewritten graph are evaluated side by side, and every value of the rewritten graph that
promises something (v' = s v + t; without a recorded gauge, equality with the original's value of that name) is held to it:
max |v' - (s v + t)| <= 1e-11 max(|s v| + |t|) per channel.  Where that fails, the original is evaluated again with its
parameters and inputs moved by an ulp of float64: a layer that magnifies rounding (a norm of equal inputs) makes values that
mean nothing, and a difference within 8 times that movement is no difference.

G1: the same node by node.  Every promised value is replaced by what it should be before the next node reads it, so that each
rewritten node works on reference inputs and errors do not travel; its outputs must agree to 1e-12 of their componentwise
magnitude (`magnitude`).  Nodes that stand as in the original, between values that do, are not looked at.  A failure is judged
again like one of the certificate: branches that cancelled leave a merged weight smaller than what the original's sum lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array, Gauge, Graph, Node, Value, is_float
from normfold.record import Comparison
from normfold.verify.channels import channel_axis, extent, finite_pattern, largest, named, per_channel, varying_axes
from normfold.verify.evaluate import Walk
from normfold.verify.magnitude import magnitude
from normfold.verify.noise import movement
from normfold.verify.promises import Held, Reference, promises_of

CERTIFICATE = 1e-11
ALGEBRA = 1e-12
_QUIET = 1e-3  # a channel below this part of the tensor is judged as if it were that large: all it holds is rounding
_FACTOR = 8.0
_FEW = 32  # elements below which a channel says little by itself
_TINY = 1e-290


@dataclass(frozen=True)
class Certified:
    """comparisons: of both gates.  outputs: the original's outputs in float64, to judge the runtimes by."""

    comparisons: list[Comparison]
    outputs: dict[str, Array]


Given = Mapping[str, Array] | None
"""Outputs, by name, of nodes that are not evaluated in either graph (`blind.made_up`)."""


def certificate(
    before: Graph, after: Graph, feeds: Mapping[str, Array], *, family: str = "", algebra: bool = True, given: Given = None
) -> list[Comparison]:
    """Judge `after`, whose rewritten constants are still float64, against `before`; a difference is a failed comparison.

    algebra: also G1.  Raises CannotTell where an op of `before` cannot be evaluated.
    """
    return certify(before, after, feeds, family=family, algebra=algebra, given=given).comparisons


def certify(
    before: Graph, after: Graph, feeds: Mapping[str, Array], *, family: str = "", algebra: bool = True, given: Given = None
) -> Certified:
    """`certificate`, with the original's outputs."""
    promises = promises_of(after, before)
    reference = Reference(before, feeds, (gauge.original for gauges in promises.values() for gauge in gauges), given)
    judged = _Judged(family)
    forced = _Forced(before, after, feeds, promises, judged, given) if algebra else None
    walk = Walk(after, feeds, given=given)
    met: dict[Value, Held] = {}
    blind = {node.kind for node in before.nodes if any(value.name in (given or {}) for value in node.outputs)}

    def meet(value: Value, array: Array) -> None:
        for gauge in promises.get(value, ()):
            held = judged.promise(value, array, gauge, reference.take(gauge.original))
            if held is not None and (value not in met or held.open is None):
                met[value] = held

    for value in after.inputs:
        meet(value, walk.read(value))
    if forced is not None:
        forced.inputs(met)
    for node in after.nodes:
        met.clear()
        try:
            results = walk.results_of(node)
        except CannotTell as error:
            reference.finish()  # raises, where the original cannot be evaluated either
            if node.kind in blind:
                raise
            judged.missing(node.output.name, f"it can no longer be evaluated: {error}")
            break
        walk.settle(node, results)
        for value, array in zip(node.outputs, results, strict=True):
            meet(value, array)
        del results
        if forced is not None:
            forced.node(node, met)
    for value in after.outputs:
        if value.const is not None:
            meet(value, walk.read(value))
        if value not in promises:
            judged.missing(value.name, f"the original has no value {value.name!r} to compare with")
        elif not any(gauge.identity and gauge.original == value.name for gauge in promises[value]):
            judged.missing(value.name, "an output keeps its values: no scale and no shift may be left on it")
    outputs = reference.finish()
    judged.reconsider(before, feeds, given)
    return Certified(judged.comparisons, outputs)


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


class _Judged:
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
        sizes = np.maximum(np.maximum(sizes, _QUIET * np.max(sizes, initial=0.0)), _TINY)
        worst = int(np.argmax(errors / sizes))
        error = float(errors[worst] / sizes[worst])
        self.add("certificate", value.name, error, CERTIFICATE, named(array.shape, keep, worst))
        if error > CERTIFICATE:
            scale = np.where(promised, scale, 0.0)
            self.doubts.append(_Doubt(len(self.comparisons) - 1, gauge.original, keep, errors, sizes, scale, array.shape))

    def doubt(self, held: Held, keep: tuple[int, ...], errors: Array, ratios: Array, shape: tuple[int, ...]) -> None:
        """Let the last comparison be judged again, of which each channel has an error that is `ratios` of its size."""
        with np.errstate(all="ignore"):
            sizes = np.maximum(np.where(ratios > 0, errors / ratios, np.inf), _TINY)
            scale = np.nan_to_num(np.abs(held.gauge.scale)).max(initial=0.0)
        if np.isfinite(errors).all():
            scales = np.full(errors.shape, scale)
            self.doubts.append(_Doubt(len(self.comparisons) - 1, held.gauge.original, keep, errors, sizes, scales, shape))

    def reconsider(self, before: Graph, feeds: Mapping[str, Array], given: Given) -> None:
        """Judge failed promises again, by what an ulp of float64 does to the original's value."""
        if not self.doubts:
            return
        moved = movement(before, feeds, {(doubt.original, doubt.keep) for doubt in self.doubts}, given=given)
        for doubt in self.doubts:
            noise = moved.get((doubt.original, doubt.keep))
            if noise is None or noise.shape != doubt.errors.shape:
                continue
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


class _Forced:
    """The rewritten graph on reference inputs: G1."""

    def __init__(
        self,
        before: Graph,
        after: Graph,
        feeds: Mapping[str, Array],
        promises: Mapping[Value, tuple[Gauge, ...]],
        judged: _Judged,
        given: Given,
    ) -> None:
        self.values = Walk(after, feeds, given=given)
        self.sizes: dict[Value, Held | Array] = {}  # of the values that are held; a promise is worked out when somebody asks
        self.judged = judged
        self.after = after
        producers = {value.name: node for node in before.nodes for value in node.outputs}
        plain = {value for value, gauges in promises.items() if any(g.identity and g.original == value.name for g in gauges)}
        self.untouched = {
            node
            for node in after.nodes
            if all(value in plain for value in node.outputs)
            and all(value is None or value.const is not None or value in plain for value in (*node.inputs, *node.captures))
            and _same(node, producers.get(node.output.name))
        }

    def inputs(self, met: Mapping[Value, Held]) -> None:
        """Graph inputs, which a rewrite leaves as they are."""
        for value in self.after.inputs:
            self.sizes[value] = met.get(value) or _absolute(self.values.read(value))

    def node(self, node: Node, met: Mapping[Value, Held]) -> None:
        """Judge one node against its outputs' promises, then let these stand for it."""
        promised = [met[value] for value in node.outputs if value in met]
        if node in self.untouched and len(promised) == len(node.outputs):
            self._settle(node, [held.expected for held in promised], promised)
            return
        arrays = self.values.inputs_of(node)
        results = self.values.results_of(node)
        sizes = magnitude(node, [self._size(value) for value in (*node.inputs, *node.captures)], arrays, results)
        self._settle(node, results, sizes)
        for value, array, size in zip(node.outputs, results, sizes, strict=True):
            held = met.get(value)
            if held is None or held.expected.shape != array.shape or not is_float(array.dtype) or not array.size:
                continue
            expected = held.instead_of(array, held.expected)
            self._compare(value, array, expected, np.maximum(size, held.instead_of(size, held.magnitude)), held)
            self.values.replace(value, expected)
            if value in self.sizes:
                self.sizes[value] = held if held.open is None else held.instead_of(size, held.magnitude)

    def _settle(self, node: Node, results: Sequence[Array], sizes: Sequence[Held | Array]) -> None:
        self.values.settle(node, results)
        self.sizes.update(zip(node.outputs, sizes, strict=True))
        for value in [*node.outputs, *(value for value in (*node.inputs, *node.captures) if value is not None)]:
            if not self.values.holds(value):
                self.sizes.pop(value, None)

    def _size(self, value: Value | None) -> Array | None:
        """The magnitude of what a node reads."""
        if value is None:
            return None
        if value.const is not None:
            return _absolute(self.values.read(value))
        size = self.sizes[value]
        return size.magnitude if isinstance(size, Held) else size

    def _compare(self, value: Value, array: Array, expected: Array, size: Array, held: Held) -> None:
        keep = channel_axis(array.ndim)
        with np.errstate(all="ignore"):
            ratios = extent((array - expected) / np.maximum(size, _TINY), keep)
        if not np.isfinite(ratios).all():
            pattern = finite_pattern(array, expected)
            if pattern is not None:
                self.judged.add("G1", value.name, float("inf"), ALGEBRA, pattern.where)
                return
            with np.errstate(all="ignore"):
                ratio = np.abs(array - expected) / np.maximum(size, _TINY)
                ratios = largest(np.where(np.isfinite(expected), ratio, 0.0), keep)
        worst = int(np.argmax(ratios))
        self.judged.add("G1", value.name, float(ratios[worst]), ALGEBRA, named(array.shape, keep, worst))
        if ratios[worst] > ALGEBRA:  # terms that the original adds up, and that one weight now holds, may have cancelled
            with np.errstate(all="ignore"):
                errors = extent(array - expected, keep)
            self.judged.doubt(held, keep, errors, ratios, array.shape)


def _absolute(array: Array) -> Array:
    return np.abs(array) if is_float(array.dtype) else array


def _same(node: Node, other: Node | None) -> bool:
    """True when both are one op with the same attributes and constants, reading values of the same names."""
    if (
        other is None
        or node.kind != other.kind
        or len(node.inputs) != len(other.inputs)
        or node.attrs.keys() != other.attrs.keys()
    ):
        return False
    if [value.name for value in node.outputs] != [value.name for value in other.outputs]:
        return False
    if not all(_equal(node.attrs[name], other.attrs[name]) for name in node.attrs):
        return False
    return all(_same_value(a, b) for a, b in zip((*node.inputs, *node.captures), (*other.inputs, *other.captures), strict=False))


def _same_value(a: Value | None, b: Value | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.const is None or b.const is None:
        return a.const is b.const and a.name == b.name
    return a.const is b.const or (a.const.shape == b.const.shape and _equal(a.const.read(), b.const.read()))


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")
