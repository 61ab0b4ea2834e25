"""Why a wish fails: a chain of equalities, or a smallest set of equations, that contradicts it.

The solvers say that a wish contradicts what is known; here the few constraints are found that suffice for the contradiction, so
that a report can name who made them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from normfold.algebra.offsets import Offsets
from normfold.algebra.ratios import Floats, Ints

ROWS = 400  # more equations than this are no explanation


class Links:
    """Undirected links between labels, each with a tag: arrays a, b and tag of equal length."""

    def __init__(self, a: Ints, b: Ints, tag: Ints) -> None:
        source = np.concatenate([a, b])
        order = np.argsort(source, kind="stable")
        self._source = source[order]
        self._target = np.concatenate([b, a])[order]
        self._tag = np.concatenate([tag, tag])[order]

    def chain(self, start: int, ends: Sequence[int]) -> list[tuple[int, int]] | None:
        """Shortest way from `start` to one of `ends` as (tag, label reached) steps; None where there is none.

        Label 0 (the pinned one) may be an end; nothing leads through it.
        """
        came: dict[int, tuple[int, int]] = {start: (-1, -1)}
        queue = deque([start])
        while queue:
            label = queue.popleft()
            if label in ends:
                steps: list[tuple[int, int]] = []
                while label != start:
                    before, tag = came[label]
                    steps.append((tag, label))
                    label = before
                return steps[::-1]
            if label == 0:
                continue
            first, last = np.searchsorted(self._source, [label, label + 1])
            for target, tag in zip(self._target[first:last].tolist(), self._tag[first:last].tolist(), strict=True):
                if target not in came:
                    came[target] = (label, tag)
                    queue.append(target)
        return None


class Rows(NamedTuple):
    """Equations ``(coef * t[term]).sum(1) == rhs``: term and coef [rows, terms] (term -1: none), rhs and tag [rows]."""

    term: Ints
    coef: Floats
    rhs: Floats
    tag: Ints


def contradiction(groups: Sequence[Rows], target: Rows) -> list[tuple[int, list[int]]] | None:
    """A smallest set of equations that contradicts the one equation `target`, as (tag, its labels); None when there is none.

    Equations are taken in by their distance from `target`'s labels, until it fails, and then left out one by one.
    """
    known: set[int] = {0, -1}
    front = {int(label) for label in target.term.ravel()} - known
    rows: list[tuple[Ints, Floats, float, int]] = []
    taken = [np.zeros(len(group.tag), dtype=np.bool_) for group in groups]
    while not _fails(rows, target):
        if not front or len(rows) > ROWS:
            return None
        wanted = np.array(sorted(front))
        known |= front
        front = set()
        for group, seen in zip(groups, taken, strict=True):
            for index in np.flatnonzero(np.isin(group.term, wanted).any(axis=1) & ~seen).tolist():
                seen[index] = True
                rows.append((group.term[index], group.coef[index], float(group.rhs[index]), int(group.tag[index])))
                front |= {int(label) for label in group.term[index]} - known
    for row in list(reversed(rows)):
        rest = [other for other in rows if other is not row]
        if _fails(rest, target):
            rows = rest
    return [(tag, [int(label) for label in term if label > 0]) for term, _, _, tag in rows]


def _fails(rows: Sequence[tuple[Ints, Floats, float, int]], target: Rows) -> bool:
    labels = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), target.term.ravel(), *(term for term, _, _, _ in rows)]))
    labels = labels[labels >= 0]  # 0 comes first: it stays the pinned one
    system = Offsets(labels.size)
    for term, coef, rhs, _ in rows:
        system.add(np.where(term < 0, -1, np.searchsorted(labels, term))[None], coef[None], np.array([rhs]), strict=False)
    return system.add(np.searchsorted(labels, target.term), target.coef, target.rhs) is not None
