"""Additive unknowns: a vectorised sparse elimination with rollback.

Equations ``sum_k coef[k] * t[term[k]] == rhs`` come in batches.  An unknown is either free or solved:
``t_i = const_i + sum_k coef_ik * t_{term_ik}``, where the terms may themselves be solved later.  What is stored is never
rewritten, so an undo is a freeing of the unknowns that were solved.

Equations between two unknowns build trees as a weighted union-find does: the lighter root hangs below the heavier, so that no
path is longer than log2 of the weight (Tarjan 1979).  Longer equations are solved for the unknown that stands in the fewest
others (Markowitz 1957), many at once: those that win against all they share a pivot with (Luby 1986).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from normfold.algebra.ratios import Bools, Floats, Ints

TOLERANCE = 1e-11  # a reduced equation 0 == rhs holds when |rhs| is below this times the largest term that went into it
ROUNDING = 1e-13  # a value below this times the largest term of its sum is zero: an Add of 1e-17 would be a node for nothing
WIDTH = 256  # an equation with more unknowns than this is not solved: the cost of the next ones would grow without bound
LIMIT = 1e100  # nor is one with a number outside [1/LIMIT, LIMIT], before it overflows
GROUND = 1 << 60  # the weight of unknown 0: everything hangs below it
NONE = -1  # fills the places of a row that hold no term


class _Terms(NamedTuple):
    """The left sides of many equations, one entry a term; row is ascending."""

    row: Ints
    term: Ints
    coef: Floats

    def where(self, mask: Bools) -> _Terms:
        return _Terms(self.row[mask], self.term[mask], self.coef[mask])


class _Round(NamedTuple):
    """Unknowns solved at once, none in terms of another; what they hang below when they are links; entries used before."""

    pivot: Ints
    parent: Ints | None
    used: int


class Offsets:
    """Unknowns 0 .. size-1; unknown 0 is fixed at zero."""

    def __init__(self, size: int = 1) -> None:
        self._solved: Bools = np.zeros(size, dtype=np.bool_)
        self._const: Floats = np.zeros(size)
        self._largest: Floats = np.zeros(size)  # the largest term that went into _const
        self._start: Ints = np.zeros(size, dtype=np.int64)  # of the unknown's entries in _term and _coef
        self._count: Ints = np.zeros(size, dtype=np.int64)
        self._term: Ints = np.zeros(size, dtype=np.int64)
        self._coef: Floats = np.zeros(size)
        self._used = 0
        self._weight: Ints = np.ones(size, dtype=np.int64)
        self._place: Ints = np.full(size, NONE, dtype=np.int64)  # scratch; NONE everywhere between two calls
        self._journal: list[_Round] = []
        self._solved[0] = True
        self._weight[0] = GROUND

    def __len__(self) -> int:
        return len(self._solved)

    # ---- demanding ------------------------------------------------------------------------------------------------

    def add(self, term: Ints, coef: Floats, rhs: Floats, *, strict: bool = True) -> Bools | None:
        """Demand the equations ``(coef * t[term]).sum(1) == rhs``; term and coef are [rows, terms], rhs is [rows].

        Term -1 stands for "none".  Returns None when all hold (or can be made to); else a mask of rows that contradict what
        is known, or that are too wide; roll back then.  With strict=False such rows are skipped and only the others demanded.
        """
        return self._add(_flat([(term, coef)]), np.array(rhs, dtype=np.float64), "refuse" if strict else "skip")

    def demand(self, groups: Sequence[tuple[Ints, Floats]]) -> None:
        """Demand ``(coef * t[term]).sum(1) == 0`` for each (term, coef), both [rows, terms], while all that is known is such.

        Zero for every unknown is a solution, so nothing contradicts; equations too wide to solve have all their unknowns set
        to zero, which is more than was asked and never less.
        """
        terms = _flat(groups)
        if not self._journal:  # weights may change only while nothing hangs below anything
            np.add.at(self._weight, terms.term, 1)
        self._add(terms, np.zeros(sum(len(term) for term, _ in groups)), "pin")

    def zero_where_possible(self, labels: Ints) -> None:
        """Wish t == 0 at each of `labels`; those that are determined otherwise keep their value."""
        labels = np.unique(labels)
        if labels.size:
            self.add(labels[:, None], np.ones((labels.size, 1)), np.zeros(labels.size), strict=False)

    def _add(self, terms: _Terms, rhs: Floats, otherwise: Literal["refuse", "skip", "pin"]) -> Bools | None:
        largest = np.abs(rhs)
        terms = self._reduce(terms, rhs, largest)
        while True:
            count = np.bincount(terms.row, minlength=rhs.size)
            size = np.abs(terms.coef)
            wide = (count > WIDTH) | ~(np.abs(rhs) < LIMIT)
            wide[terms.row[~((size > 1 / LIMIT) & (size < LIMIT))]] = True
            wrong = wide | ((count == 0) & ~(np.abs(rhs) <= TOLERANCE * largest))
            if wrong.any() and otherwise == "refuse":
                return wrong
            if wide.any():
                if otherwise == "pin":
                    zeros = np.unique(terms.term[wide[terms.row]])
                    nothing = np.zeros(zeros.size)
                    self._store(zeros, nothing, nothing, _Terms(zeros[:0], zeros[:0], nothing[:0]))
                rhs[wide] = largest[wide] = 0.0
                terms = terms.where(~wide[terms.row])
            elif not terms.row.size:
                return None
            else:
                short = count[terms.row] <= 2
                done = self._link(terms.where(short), rhs, largest) if short.any() else self._eliminate(terms, rhs, largest)
                rhs[done] = 0.0
                left = np.ones(rhs.size, dtype=np.bool_)
                left[done] = False
                terms = terms.where(left[terms.row])
            stale = np.zeros(rhs.size, dtype=np.bool_)
            stale[terms.row[self._solved[terms.term]]] = True
            stale = stale[terms.row]
            fresh = self._reduce(terms.where(stale), rhs, largest)
            terms = _sorted([terms.where(~stale), fresh]) if fresh.row.size else terms.where(~stale)

    def _link(self, terms: _Terms, rhs: Floats, largest: Floats) -> Ints:
        """Solve rows of one or two unknowns, as many as do not name the same one; returns which."""
        row, first, count = np.unique(terms.row, return_index=True, return_counts=True)
        two = count == 2
        a, of_a = terms.term[first], terms.coef[first]
        last = first + count - 1
        b, of_b = np.where(two, terms.term[last], 0), np.where(two, terms.coef[last], 0.0)
        below = (self._weight[a] < self._weight[b]) | ((self._weight[a] == self._weight[b]) & (a < b))
        child, parent = np.where(below, a, b), np.where(below, b, a)
        lead, other = np.where(below, of_a, of_b), np.where(below, of_b, of_a)
        own = self._claim(child)
        row, child, parent, lead, other = row[own], child[own], parent[own], lead[own], other[own]
        slope, const, size = -other / lead, rhs[row] / lead, largest[row] / np.abs(lead)
        # A parent may be a child of the same round: everything is hung below the last of its line (pointer jumping).
        self._place[child] = np.arange(child.size)
        end, times, plus, most = parent, slope, const, size
        with np.errstate(over="ignore", invalid="ignore"):
            while (moved := (at := self._place[end]) >= 0).any():
                most = np.maximum(most, np.where(moved, np.abs(times) * most[at], 0.0))
                plus = plus + np.where(moved, times * plus[at], 0.0)
                times = np.where(moved, times * times[at], times)
                end = np.where(moved, end[at], end)
            sound = (np.abs(plus) < LIMIT) & ((end == 0) | ((np.abs(times) < LIMIT) & (np.abs(times) > 1 / LIMIT)))
        top = self._place[parent] < 0
        self._place[child] = NONE
        if not sound.all():  # numbers too large on the way: the upper ends alone; the others are refused when reduced
            row, child, end, times, plus, most = row[top], child[top], parent[top], slope[top], const[top], size[top]
        np.add.at(self._weight, end, self._weight[child])
        free = end > 0
        self._store(child, plus, most, _Terms(np.flatnonzero(free), end[free], times[free]), end)
        return row

    def _eliminate(self, terms: _Terms, rhs: Floats, largest: Floats) -> Ints:
        """Solve rows, each for its rarest unknown, as many as do not read what another is solved for; returns which."""
        self._place[terms.term] = 0
        np.add.at(self._place, terms.term, 1)
        occurs = self._place[terms.term]
        self._place[terms.term] = NONE
        order = np.lexsort((terms.term, self._weight[terms.term], occurs, terms.row))
        _, first = np.unique(terms.row, return_index=True)
        best = order[first]  # lexsort keeps the rows together and in their places
        mixed = (terms.term[best] * 2654435761) % (1 << 32)  # any fixed order that is not that of the graph, or chains go singly
        best = best[np.lexsort((mixed, occurs[best]))]
        best = best[self._claim(terms.term[best])]
        rank = np.full(rhs.size, NONE, dtype=np.int64)
        rank[terms.row[best]] = np.arange(best.size)
        self._place[terms.term[best]] = np.arange(best.size)
        mine, theirs = rank[terms.row], self._place[terms.term]
        self._place[terms.term[best]] = NONE
        met = (mine >= 0) & (theirs >= 0) & (mine != theirs)
        chosen = np.ones(best.size, dtype=np.bool_)
        chosen[np.maximum(mine[met], theirs[met])] = False
        best = best[chosen]
        row, lead = terms.row[best], terms.coef[best]
        place = np.full(rhs.size, NONE, dtype=np.int64)
        place[row] = np.arange(row.size)
        rest = place[terms.row] >= 0
        rest[best] = False
        of = place[terms.row[rest]]
        by_place = np.argsort(of, kind="stable")
        of, where = of[by_place], np.flatnonzero(rest)[by_place]
        others = _Terms(of, terms.term[where], -terms.coef[where] / lead[of])
        self._store(terms.term[best], rhs[row] / lead, largest[row] / np.abs(lead), others)
        return row

    def _claim(self, labels: Ints) -> Bools:
        """True at the first place of each label."""
        places = np.arange(labels.size)
        self._place[labels[::-1]] = places[::-1]
        own = self._place[labels] == places
        self._place[labels] = NONE
        return own

    def _store(self, pivot: Ints, const: Floats, largest: Floats, others: _Terms, parent: Ints | None = None) -> None:
        """Remember ``t[pivot] = const + others``, where the rows of `others` count the pivots."""
        used, self._used = self._used, self._used + others.row.size
        if self._used > self._term.size:
            room = np.zeros(self._used, dtype=np.int64)  # at least as much again
            self._term, self._coef = np.concatenate([self._term, room]), np.concatenate([self._coef, room.astype(np.float64)])
        self._term[used : self._used], self._coef[used : self._used] = others.term, others.coef
        count = np.bincount(others.row, minlength=pivot.size)
        self._start[pivot], self._count[pivot] = used + np.cumsum(count) - count, count
        self._const[pivot], self._largest[pivot], self._solved[pivot] = const, largest, True
        self._journal.append(_Round(pivot, parent, used))

    # ---- reading --------------------------------------------------------------------------------------------------

    def _reduce(self, terms: _Terms, rhs: Floats, largest: Floats) -> _Terms:
        """Substitute solved unknowns until only free ones are left; changes rhs and the largest term seen in place."""
        parts: list[_Terms] = []
        while terms.row.size:
            known = self._solved[terms.term]
            parts.append(terms.where(~known))
            terms = terms.where(known)
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract.at(rhs, terms.row, terms.coef * self._const[terms.term])
                np.maximum.at(largest, terms.row, np.abs(terms.coef) * self._largest[terms.term])
                of, inner, coef = self._entries(terms.term)
                terms = _Terms(terms.row[of], inner, terms.coef[of] * coef)
            if terms.row.size and self._count[terms.term].max() > 1:
                terms = _sorted([terms])  # two ways to one unknown are one, or their number doubles with each pass
        return _sorted(parts) if parts else terms

    def _entries(self, labels: Ints) -> tuple[Ints, Ints, Floats]:
        """All entries of solved unknowns: (index into `labels`, term, coef)."""
        count = self._count[labels]
        of = np.repeat(np.arange(labels.size), count)
        at = np.arange(of.size) + np.repeat(self._start[labels] - (np.cumsum(count) - count), count)
        return of, self._term[at], self._coef[at]

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Free every unknown solved since `mark`."""
        while len(self._journal) > mark:
            pivot, parent, self._used = self._journal.pop()
            self._solved[pivot] = False
            if parent is not None:
                np.subtract.at(self._weight, parent, self._weight[pivot])

    def solution(self) -> Floats:
        """One value for every unknown; free unknowns are zero, and so is what only rounding keeps from zero."""
        value, largest = np.zeros(len(self)), np.zeros(len(self))
        for pivot, _, _ in reversed(self._journal):  # what an unknown is solved for was free then: it is solved later, if at all
            of, term, coef = self._entries(pivot)
            value[pivot] = self._const[pivot] + np.bincount(of, coef * value[term], pivot.size)
            most = self._largest[pivot]
            np.maximum.at(most, of, np.abs(coef) * largest[term])
            largest[pivot] = most
        return np.where(np.abs(value) <= ROUNDING * largest, 0.0, value)


def _flat(groups: Sequence[tuple[Ints, Floats]]) -> _Terms:
    """The entries of tables [rows, terms], numbered on from table to table; without unknown 0, which is zero, and NONE."""
    parts: list[_Terms] = []
    rows = 0
    for term, coef in groups:
        row, column = np.nonzero((term > 0) & (coef != 0.0))
        parts.append(_Terms(row + rows, term[row, column].astype(np.int64), coef[row, column].astype(np.float64)))
        rows += len(term)
    return _sorted(parts) if parts else _Terms(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def _sorted(parts: Sequence[_Terms]) -> _Terms:
    """All parts by row and term; equal terms are added, and what only rounding keeps from zero is dropped."""
    row, term, coef = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not row.size:
        return _Terms(row, term, coef)
    key = row * (term.max() + 1) + term
    if not (key[1:] > key[:-1]).all():
        order = np.argsort(key, kind="stable")
        key, row, term, coef = key[order], row[order], term[order], coef[order]
    new = np.ones(row.size, dtype=np.bool_)
    new[1:] = key[1:] != key[:-1]
    if not new.all():
        first = np.flatnonzero(new)
        most = np.maximum.reduceat(np.abs(coef), first)
        with np.errstate(over="ignore", invalid="ignore"):
            row, term, coef = row[first], term[first], np.add.reduceat(coef, first)
        keep = ~(np.abs(coef) <= ROUNDING * most) | ~(most < LIMIT)
        row, term, coef = row[keep], term[keep], coef[keep]
    return _Terms(row, term, coef)
