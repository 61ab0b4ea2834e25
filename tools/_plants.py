"""Wrong folds to plant inside `optimize`: what a rewrite may get wrong about a norm, a weight, a bias or a border.

A plant is made while one rewrite runs: either the norm's formula is wrong for one layer (`FORMULAS`), or one constant that the
rewrite has just computed is (`CONSTANTS`).  What is planted without effect, because nothing there can be wrong in that way (no
negative gamma, no group), is no plant: `planted` says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from normfold.algebra import absorb
from normfold.graph import Array, Graph, Node, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.rewrites import Policy, Rewrite, Rewritten, rewrites

SAMPLES = 1000  # that the statistics were taken over: what makes a variance unbiased
Floats = Any


def _affine(gamma: Floats, beta: Floats, mean: Floats, root: Floats) -> tuple[Floats, Floats]:
    a = gamma / root
    return a, beta - mean * a


def _swapped(array: Floats) -> Floats:
    """The first two neighbours that differ, exchanged."""
    array = np.array(array)
    places = np.flatnonzero(array[1:] != array[:-1]) if len(array) > 1 else []
    if len(places):
        i = int(places[0])
        array[[i, i + 1]] = array[[i + 1, i]]
    return array


def _one_sign(array: Floats) -> Floats:
    array = np.array(array)
    array[int(np.argmax(np.abs(array)))] *= -1
    return array


FORMULAS: dict[str, Callable[..., tuple[Floats, Floats]]] = {
    "eps * 1.1": lambda g, b, m, v, e: _affine(g, b, m, np.sqrt(v + 1.1 * e)),
    "eps missed": lambda g, b, m, v, e: _affine(g, b, m, np.sqrt(v + (0 if v.all() else 1e-30))),
    "wrong eps": lambda g, b, m, v, e: _affine(g, b, m, np.sqrt(v + (1e-3 if e < 5e-4 else 1e-5))),
    "eps outside the root": lambda g, b, m, v, e: _affine(g, b, m, np.sqrt(v) + e),
    "unbiased variance": lambda g, b, m, v, e: _affine(g, b, m, np.sqrt(v * SAMPLES / (SAMPLES - 1) + e)),
    "variance not rooted": lambda g, b, m, v, e: _affine(g, b, m, v + e),
    "missing mean": lambda g, b, m, v, e: (g / np.sqrt(v + e), b + 0 * m),
    "mean added": lambda g, b, m, v, e: _affine(g, b, -m, np.sqrt(v + e)),
    "missing beta": lambda g, b, m, v, e: _affine(g, 0 * b, m, np.sqrt(v + e)),
    "missing gamma": lambda g, b, m, v, e: _affine(0 * g + 1, b, m, np.sqrt(v + e)),
    "gamma without sign": lambda g, b, m, v, e: _affine(np.abs(g), b, m, np.sqrt(v + e)),
    "gamma not on the mean": lambda g, b, m, v, e: (g / np.sqrt(v + e), b - m / np.sqrt(v + e)),
    "swapped channels": lambda g, b, m, v, e: tuple(map(_swapped, _affine(g, b, m, np.sqrt(v + e)))),  # type: ignore[return-value]
    "sign of one gamma": lambda g, b, m, v, e: _affine(_one_sign(g), b, m, np.sqrt(v + e)),
    "statistics through fp16": lambda g, b, m, v, e: _affine(g, b, _through(m, np.float16), np.sqrt(_through(v, np.float16) + e)),
}


def _through(array: Floats, dtype: Any) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(dtype).astype(np.float64)


@dataclass(frozen=True)
class _Place:
    """A constant that a rewrite has made: who reads it, where, and what it was made of (None: nothing)."""

    node: Node
    slot: int
    new: Array
    old: Array | None


def _axis(place: _Place) -> int:
    """The axis of the output channels of a weight."""
    if place.node.kind == "Gemm":
        return 0 if place.node.attrs.get("transB", 0) else 1
    return place.new.ndim - 1 if place.node.kind == "MatMul" else 0


def _on_channels(change: Callable[[Floats], Floats]) -> Callable[[_Place], Floats | None]:
    def wrong(place: _Place) -> Floats | None:
        if place.new.ndim < 2:
            return None
        order = change(np.arange(place.new.shape[_axis(place)]))
        return None if order is None else np.take(place.new, order, axis=_axis(place))

    return wrong


def _ratio(place: _Place) -> Floats | None:
    """The scale per output channel that went into a weight."""
    if place.old is None or place.old.shape != place.new.shape or place.new.ndim < 2:
        return None
    rest = tuple(axis for axis in range(place.new.ndim) if axis != _axis(place))
    with np.errstate(all="ignore"):
        ratio = np.sum(place.new * place.old, axis=rest) / np.sum(place.old * place.old, axis=rest)
    return np.where(np.isfinite(ratio), ratio, 1.0)


def _wrong_axis(place: _Place) -> Floats | None:
    ratio = _ratio(place)
    if ratio is None or place.old is None or place.old.shape[1 - _axis(place) if place.new.ndim == 2 else 1] == 1:
        return None
    other = 1 - _axis(place) if place.new.ndim == 2 else 1
    shape = [-1 if axis == other else 1 for axis in range(place.new.ndim)]
    return place.old * np.resize(ratio, place.old.shape[other]).reshape(shape)


def _groups(place: _Place) -> Floats | None:
    """The scales in the order of a transposed [groups, channels of a group]."""
    ratio, groups = _ratio(place), int(place.node.attrs.get("group", 1))
    if ratio is None or place.old is None or groups in (1, len(ratio)) or place.node.kind != "Conv":
        return None
    turned = ratio.reshape(groups, -1).T.ravel()
    return place.old * turned.reshape(-1, *(1,) * (place.new.ndim - 1))


def _of_weights(change: Callable[[_Place], Floats | None]) -> Callable[[_Place], Floats | None]:
    return lambda place: change(place) if place.new.ndim >= 2 and not _is_border(place) else None


def _of_biases(change: Callable[[_Place], Floats | None]) -> Callable[[_Place], Floats | None]:
    return lambda place: change(place) if place.new.ndim == 1 and place.new.size > 1 else None


def _is_border(place: _Place) -> bool:
    value = place.node.inputs[place.slot]
    return value is not None and "_border" in value.name


def _one_weight_channel(place: _Place) -> Floats:
    array = np.array(np.moveaxis(place.new, _axis(place), 0))
    array[len(array) // 2] *= -1
    return np.moveaxis(array, 0, _axis(place))


def _on_a_branch(place: _Place) -> Floats | None:
    """Another scale on one of the tensors that are added or concatenated."""
    joined = [use.node.kind for use in place.node.output.uses if use.slot >= 0]
    return place.new * 1.01 if any(kind in ("Add", "Concat", "Sum") for kind in joined) else None


CONSTANTS: dict[str, Callable[[_Place], Floats | None]] = {
    "weights through fp16": _of_weights(lambda place: _through(place.new, np.float16)),
    "weights through bf16": _of_weights(lambda place: _through(place.new, ml_dtypes.bfloat16)),
    "sign of one weight channel": _of_weights(_one_weight_channel),
    "weight channels swapped": _of_weights(_on_channels(lambda order: _swapped(order) if len(order) > 1 else None)),
    "wrong axis": _of_weights(_wrong_axis),
    "transposed groups": _of_weights(_groups),
    "stale weight": _of_weights(
        lambda place: place.old if place.old is not None and place.old.shape == place.new.shape else None
    ),
    "wrong scale on a branch": _of_weights(_on_a_branch),
    "missed bias": _of_biases(lambda place: place.new - place.old if _fits(place) else None),
    "bias off by 1 %": _of_biases(lambda place: place.new * 1.01),
    "bias in the wrong order": _of_biases(lambda place: np.roll(place.new, 1)),
    "missing border map": lambda place: np.zeros_like(place.new) if _is_border(place) else None,
    "border map turned": lambda place: np.flip(place.new, tuple(range(2, place.new.ndim))) if _is_border(place) else None,
}


def _stale(place: _Place) -> Floats | None:
    return place.old if place.old is not None and place.old.shape == place.new.shape else None


def _is_shared(place: _Place) -> bool:
    value = place.node.inputs[place.slot]
    return value is not None and len(value.uses) > 1


def _fits(place: _Place) -> bool:
    return place.old is not None and place.old.shape == place.new.shape and bool(place.old.any())


KINDS = (*FORMULAS, *CONSTANTS)


@dataclass
class Plant:
    """What was planted: kind, the rewrite, the layer (a norm's label, or that of the node with the wrong constant).

    parameters: the user's names of what that node holds.
    """

    kind: str
    rule: str
    layer: str
    outcome: Outcome
    parameters: tuple[str, ...] = ()


def planted(graph: Graph, right: Outcome, kind: str, rule: str, rng: Any, options: Options) -> Plant | None:
    """Rewrite `graph` with one mistake in `rule`; None where there is no place for it.

    right: what the same rewriting gives without a mistake.
    """
    places = [step for step in right.steps if step.rule == rule]
    if not places or not any(step.applied for step in places):
        return None
    before = graph
    for step in right.steps:
        if step.rule == rule:
            break
        before = step.graph
    if kind in FORMULAS:
        norms = [node for node in before.nodes if node.kind == "BatchNormalization" and not node.attrs.get("training_mode")]
        gone = {item.target for item in places[0].applied}
        norms = [node for node in norms if node.label in gone] or (norms if rule not in ("affine",) else [])
        rng.shuffle(norms)
        for norm in norms[:8]:
            found = _with_formula(graph, norm, kind, rule, options)
            if found is not None and _differs(found, right):
                return Plant(kind, rule, norm.label, found)
        return None
    found = _with_constant(graph, kind, rule, rng, options)
    return found if found is not None and _differs(found.outcome, right) else None


def rules_of(right: Outcome) -> list[str]:
    """The rewrites that did something."""
    return list(dict.fromkeys(step.rule for step in right.steps if step.applied))


def _with_formula(graph: Graph, norm: Node, kind: str, rule: str, options: Options) -> Outcome | None:
    constants = [value.const.float64() for value in norm.inputs[1:5] if value is not None and value.const is not None]
    used: list[bool] = []
    if len(constants) != 4:
        return None
    formula, real = FORMULAS[kind], absorb.batch_norm

    def batch_norm(*given: Any) -> tuple[Floats, Floats]:
        if all(np.array_equal(a, b) for a, b in zip(given[:4], constants, strict=True)):
            used.append(True)
            with np.errstate(all="ignore"):
                return formula(*(np.asarray(item) for item in given[:4]), given[4])
        return real(*given)

    with pytest.MonkeyPatch.context() as patch, during(rule, lambda: patch.setattr(absorb, "batch_norm", batch_norm), patch.undo):
        outcome = rewrite(graph, options)
    return outcome if used else None


def _with_constant(graph: Graph, kind: str, rule: str, rng: Any, options: Options) -> Plant | None:
    labels: list[str] = []
    parameters: list[str] = []

    def spoil(before: Graph, result: Rewritten) -> None:
        old = {value.name: value for value in before.constants()}
        places: list[_Place] = []
        for node in result.graph.nodes:
            for slot, value in enumerate(node.inputs):
                if value is not None and value.const is not None and value.const.pending and value.name not in old:
                    stem = next((name for name in old if value.name in (f"{name}_folded", f"{name}_folded_1")), None)
                    source = None if stem is None else old[stem].const
                    places.append(_Place(node, slot, value.const.read(), None if source is None else source.float64()))
        rng.shuffle(places)
        for place in places:
            with np.errstate(all="ignore"):
                wrong = CONSTANTS[kind](place)
            if wrong is not None and not np.array_equal(wrong, place.new, equal_nan=True):
                value = place.node.inputs[place.slot]
                assert value is not None
                spoilt = result.graph.derived(value, np.asarray(wrong, np.float64))
                result.graph.set_input(place.node, place.slot, spoilt)  # another reader keeps what it has
                labels.append(place.node.label)
                held = [item for item in place.node.inputs[1:] if item is not None and item.const is not None]
                parameters[:] = [item.param or item.name.partition("_folded")[0].partition("_border")[0] for item in held]
                return

    with after(rule, spoil):
        outcome = rewrite(graph, options)
    return Plant(kind, rule, labels[-1], outcome, tuple(parameters)) if labels else None


def _differs(outcome: Outcome, right: Outcome) -> bool:
    """True when the rewritten graph is another one than the right one."""
    one, two = outcome.graph, right.graph
    if [node.kind for node in one.nodes] != [node.kind for node in two.nodes]:
        return True
    pairs = zip(one.nodes, two.nodes, strict=True)
    return any(not _equal(a, b) for x, y in pairs for a, b in zip(x.inputs, y.inputs, strict=False))


def _equal(a: Value | None, b: Value | None) -> bool:
    first, second = None if a is None else a.const, None if b is None else b.const
    if first is None or second is None or first is second:
        return True
    return first.shape == second.shape and np.array_equal(first.read(), second.read(), equal_nan=True)


# ---- while one rewrite runs -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def during(rule: str, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """`begin` before the rewrite `rule` runs, `end` after it."""

    def run(item: Rewrite, graph: Graph, policy: Policy) -> Rewritten:
        begin()
        try:
            return item.run(graph, policy)
        finally:
            end()

    with _replaced(rule, run):
        yield


@contextlib.contextmanager
def after(rule: str, change: Callable[[Graph, Rewritten], None]) -> Iterator[None]:
    """`change(graph before, result)` after the rewrite `rule` has run."""

    def run(item: Rewrite, graph: Graph, policy: Policy) -> Rewritten:
        result = item.run(graph, policy)
        change(graph, result)
        return result

    with _replaced(rule, run):
        yield


@contextlib.contextmanager
def _replaced(rule: str, run: Callable[[Rewrite, Graph, Policy], Rewritten]) -> Iterator[None]:
    def other(item: Rewrite) -> Rewrite:
        return replace(item, run=lambda graph, policy: run(item, graph, policy)) if item.id == rule else item

    known = rewrites()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("normfold.pipeline.rewriting.rewrites", lambda: tuple(map(other, known)))
        yield
