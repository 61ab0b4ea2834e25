"""Which affine layers can go: scales first, then shifts given the scales, each wish with rollback.

An affine layer y = a x + c disappears exactly when ``s_x == s_y a`` and ``t_x == s_y c + t_y``; when only the first holds an
addition is left.  Wishes are tried in the given order (greedy): a wish that contradicts what was granted before is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from normfold.algebra.ratios import Bools, Floats, Ints, Ratios
from normfold.algebra.system import System

Verdict = Literal["deleted", "shift", "kept"]
Stage = Literal["magnitude", "sign", "shift", ""]
Refused = TypeVar("Refused")


@dataclass(eq=False)
class Wish:
    """One affine layer as labels: arrays that broadcast against each other, one pair of unknowns an element.

    unless: what holds when the layer stays as it is (a kept constant Mul cannot produce a shift, say): scale labels to pin to 1
    and shift labels to pin to 0.
    shift_form: the layer may be left as an addition.
    late: granted only as far as it costs no other tensor its wished-for zero shift (an addition that would only move elsewhere).
    """

    x_scale: Ints
    y_scale: Ints
    a: Floats
    x_shift: Ints
    y_shift: Ints
    c: Floats
    unless_scale: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    unless_shift: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    shift_form: bool = False
    late: bool = False


@dataclass(eq=False)
class Answer:
    """What became of a wish; `stage` and `conflict` (a mask over the wish's elements) say where a refusal came from."""

    verdict: Verdict = "kept"
    stage: Stage = ""
    conflict: Bools | None = None


@dataclass
class Solution:
    """Values of all unknowns and an answer for every wish (same order)."""

    scale: Floats
    shift: Floats
    answers: list[Answer]


Guard = Callable[[Floats, Floats, list[Answer]], list[int]]
"""Given scales, shifts and answers: the indices of granted wishes that must not be granted after all."""


def solve(system: System, wishes: Sequence[Wish], guard: Guard | None = None) -> Solution:
    """Grant as many wishes as the order allows.

    A wish that cannot be granted whole and has no shift form is dropped, and everything is solved again without it, so that the
    gauges it had asked for do not linger.  The identity is always a solution, so this ends.  Zeros that may be relaxed are held
    first, and given up only when that deletes more.
    """
    system.build()
    strict = _grant(system, wishes, guard)
    held_up = any(answer.stage == "shift" and not wish.late for wish, answer in zip(wishes, strict.answers, strict=True))
    if not system.relaxable_zeros or not held_up:
        return strict
    state = system.magnitude, system.sign, system.shift
    system.build(relaxed=True)
    relaxed = _grant(system, wishes, guard)
    if _deleted(relaxed) > _deleted(strict):
        return relaxed
    system.magnitude, system.sign, system.shift = state
    return strict


def _deleted(solution: Solution) -> int:
    return sum(answer.verdict == "deleted" for answer in solution.answers)


def _grant(system: System, wishes: Sequence[Wish], guard: Guard | None) -> Solution:
    """One pass over all wishes on a system that was just built."""
    start = system.mark()
    answers = [Answer() for _ in wishes]
    only_scale: set[int] = set()  # left as an addition
    given_up: set[int] = set()  # never tried again
    crowded_out: set[int] = set()  # refused for their scales: tried again when one that asked for other scales is given up
    while True:
        system.rollback(start)
        _impose_kept(system, [wishes[index] for index in given_up | crowded_out])
        tried = [index for index in range(len(wishes)) if index not in given_up | crowded_out]
        refusals = _in_turn(tried, partial(_grant_scales, system, wishes))
        for index in tried:
            answers[index] = refusals.get(index, Answer("shift"))
        # A refused scale leaves no trace in the solvers, unless the layer restricts its surroundings when it stays.
        if any(_restricts(wishes[index]) for index in refusals):
            crowded_out |= refusals.keys()
            continue
        scale = system.magnitude.solution() * system.sign.solution()
        failed: list[int] = []
        for late in (False, True):
            turn = [index for index in tried if wishes[index].late == late and index not in refusals]
            whole = [index for index in turn if index not in only_scale]
            conflicts = _in_turn(whole, partial(_grant_shifts, system, wishes, scale))
            for index in turn:
                if index not in only_scale and index not in conflicts:
                    answers[index].verdict = "deleted"
                elif wishes[index].shift_form:
                    answers[index] = Answer("shift", "shift", conflicts.get(index))
                else:
                    answers[index] = Answer("kept", "shift", conflicts.get(index))
                    failed.append(index)
            system.grant_wished_zeros()
        if not failed:
            behind = [wish.y_shift.ravel() for wish, answer in zip(wishes, answers, strict=True) if answer.verdict == "deleted"]
            if behind:  # constants go into the layer before rather than into those behind
                system.shift.zero_where_possible(np.concatenate(behind))
            shift = system.shift.solution()
            refused = guard(scale, shift, answers) if guard else []
            if not refused:
                return Solution(scale, shift, answers)
            for index in refused:
                if wishes[index].shift_form and index not in only_scale:
                    only_scale.add(index)
                else:
                    answers[index] = Answer("kept", "")
                    failed.append(index)
        if failed:
            given_up.update(failed)
            crowded_out.clear()


def _restricts(wish: Wish) -> bool:
    return bool(wish.unless_scale.size or wish.unless_shift.size)


def _impose_kept(system: System, wishes: Sequence[Wish]) -> None:
    scales = np.concatenate([np.zeros(0, dtype=np.int64), *(wish.unless_scale.ravel() for wish in wishes)])
    shifts = np.concatenate([np.zeros(0, dtype=np.int64), *(wish.unless_shift.ravel() for wish in wishes)])
    if scales.size:
        system.magnitude.join(scales, np.zeros_like(scales))
        system.sign.join(scales, np.zeros_like(scales))
    if shifts.size:
        system.shift.demand([(shifts[:, None], np.ones((shifts.size, 1)))])


def _in_turn(indices: Sequence[int], grant: Callable[[Sequence[int]], Refused | None]) -> dict[int, Refused]:
    """Grant one after the other, each beside those granted before; returns the refused with their reasons.

    grant: grants some of `indices` as one, or nothing and says why.  What can be granted as one can be granted one by one, so a
    run of them is tried at once; it is halved while it fails and doubled while it does not.
    """
    refused: dict[int, Refused] = {}
    first, run = 0, len(indices)
    while first < len(indices):
        part = indices[first : first + run]
        reason = grant(part)
        if reason is not None and len(part) > 1:
            run = len(part) // 2
            continue
        if reason is not None:
            refused[part[0]] = reason
        else:
            run = 2 * run
        first += len(part)
    return refused


def _grant_scales(system: System, wishes: Sequence[Wish], indices: Sequence[int]) -> Answer | None:
    """Grant the scales of these wishes in one step; else none, and why not (with a mask over the elements, of one wish)."""
    chosen = [wishes[index] for index in indices]
    x, y, a, shape = _columns([(wish.x_scale, wish.y_scale, wish.a) for wish in chosen])
    mark = system.mark()
    stages: tuple[tuple[Stage, Ratios, Floats], ...] = (
        ("magnitude", system.magnitude, np.abs(a)),
        ("sign", system.sign, np.sign(a)),
    )
    for stage, ratios, ratio in stages:
        conflict = ratios.join(x, y, ratio)
        if conflict is not None:
            system.rollback(mark)
            return Answer("kept", stage, conflict.reshape(shape))
    return None


def _grant_shifts(system: System, wishes: Sequence[Wish], scale: Floats, indices: Sequence[int]) -> Bools | None:
    """Grant the shifts of these wishes in one step; else none, and a mask over the elements (of one wish)."""
    chosen = [wishes[index] for index in indices]
    x, y, rhs, shape = _columns([(wish.x_shift, wish.y_shift, scale[wish.y_scale] * wish.c) for wish in chosen])
    mark = system.shift.mark()
    conflict = system.shift.add(np.stack([x, y], axis=1), np.broadcast_to(np.array([1.0, -1.0]), (x.size, 2)), rhs)
    if conflict is None:
        return None
    system.shift.rollback(mark)
    return conflict.reshape(shape)


def _columns(rows: Sequence[tuple[Ints, Ints, Floats]]) -> tuple[Ints, Ints, Floats, tuple[int, ...]]:
    """Triples of arrays that broadcast, flat and behind each other; and the shape of the one where there is one."""
    wide = [np.broadcast_arrays(*row) for row in rows]
    x, y, value = (np.concatenate([array.ravel() for array in column]) for column in zip(*wide, strict=True))
    return x, y, value, wide[0][0].shape if len(wide) == 1 else x.shape
