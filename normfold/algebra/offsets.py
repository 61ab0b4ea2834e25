"""Additive unknowns: a vectorised sparse elimination with rollback.

Equations ``sum_k coef[k] * t[term[k]] == rhs`` are added in batches, one equation a row.  An unknown is either free or solved:
``t_i = const_i + sum_k coef_ik * t_{term_ik}``, where the terms may themselves be solved later.  Rows are reduced when they
are read and never rewritten, so an undo is a freeing of the pivots that were solved.
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.ratios import Bools, Floats, Ints

TOLERANCE = 1e-11  # a reduced equation 0 == rhs holds when |rhs| is below this times the largest term that went into it
ROUNDING = 1e-13  # a value below this times the largest term of its sum is zero: an Add of 1e-17 would be a node for nothing
NONE = -1  # fills the places of a row that hold no term
WIDTH = 24  # an equation with more unknowns than this is refused: the cost of one more row would grow without bound


class Offsets:
    """Unknowns 0 .. size-1; unknown 0 is fixed at zero."""

    def __init__(self, size: int = 1) -> None:
        self._solved: Bools = np.zeros(size, dtype=np.bool_)
        self._term: Ints = np.full((size, 2), NONE, dtype=np.int64)
        self._coef: Floats = np.zeros((size, 2))
        self._const: Floats = np.zeros(size)
        self._weight: Ints = np.zeros(size, dtype=np.int64)
        self._journal: list[Ints] = []
        self._solved[0] = True

    def __len__(self) -> int:
        return len(self._solved)

    def grow(self, size: int) -> None:
        """Make room for unknowns up to `size`; new ones are free."""
        extra = size - len(self)
        if extra > 0:
            width = self._term.shape[1]
            self._solved = np.concatenate([self._solved, np.zeros(extra, dtype=np.bool_)])
            self._term = np.concatenate([self._term, np.full((extra, width), NONE, dtype=np.int64)])
            self._coef = np.concatenate([self._coef, np.zeros((extra, width))])
            self._const = np.concatenate([self._const, np.zeros(extra)])
            self._weight = np.concatenate([self._weight, np.zeros(extra, dtype=np.int64)])

    def prefer(self, labels: Ints) -> None:
        """Count one more equation that `labels` stand in: unknowns that stand in few are solved first (less fill-in)."""
        np.add.at(self._weight, labels.ravel(), 1)

    def _reduce(self, term: Ints, coef: Floats, rhs: Floats) -> tuple[Ints, Floats, Floats, Floats]:
        """Substitute solved unknowns until only free ones are left; returns terms, coefs, rhs and the largest term seen."""
        largest = np.abs(rhs)
        term, coef = _merge(term, coef)
        while True:
            known = (term >= 0) & self._solved[term]
            if not known.any():
                return term, coef, rhs, largest
            moved = np.where(known, coef * self._const[term], 0.0)
            rhs = rhs - moved.sum(axis=1)
            largest = np.maximum(largest, np.abs(moved).max(axis=1, initial=0.0))
            inner_term = np.where(known[..., None], self._term[term], NONE)
            inner_coef = np.where(known[..., None], coef[..., None] * self._coef[term], 0.0)
            rows = term.shape[0]
            term = np.concatenate([np.where(known, NONE, term), inner_term.reshape(rows, -1)], axis=1)
            coef = np.concatenate([np.where(known, 0.0, coef), inner_coef.reshape(rows, -1)], axis=1)
            term, coef = _merge(term, coef)

    def add(self, term: Ints, coef: Floats, rhs: Floats, *, strict: bool = True) -> Bools | None:
        """Demand the equations ``(coef * t[term]).sum(1) == rhs``; term and coef are [rows, terms], rhs is [rows].

        Term -1 stands for "none".  Returns None when all hold (or can be made to); else a mask of rows that contradict what
        is known; roll back then.  With strict=False contradicting rows are skipped and only the others demanded.
        """
        index = np.arange(term.shape[0])
        bad = np.zeros(term.shape[0], dtype=np.bool_)
        while index.size:
            term, coef, rhs, largest = self._reduce(term, coef, rhs)
            count = (term >= 0).sum(axis=1)
            wrong = ((count == 0) & ~(np.abs(rhs) <= TOLERANCE * largest)) | (count > WIDTH)
            if wrong.any() and strict:
                bad[index[wrong]] = True
                return bad
            open_ = (count > 0) & ~wrong
            term, coef, rhs, index = term[open_], coef[open_], rhs[open_], index[open_]
            if not index.size:
                return None
            weight = np.where(term >= 0, self._weight[term], np.iinfo(np.int64).max)
            slot = weight.argmin(axis=1)
            rows = np.arange(index.size)
            pivot = term[rows, slot]
            _, first = np.unique(pivot, return_index=True)
            others = term[first].copy()
            others[np.arange(first.size), slot[first]] = NONE
            clear = ~np.isin(others, pivot[first]).any(axis=1)  # no row may read a pivot of the same round
            chosen = first[clear] if clear.any() else first[:1]
            self._solve(pivot[chosen], slot[chosen], term[chosen], coef[chosen], rhs[chosen])
            rest = np.ones(index.size, dtype=np.bool_)
            rest[chosen] = False
            term, coef, rhs, index = term[rest], coef[rest], rhs[rest], index[rest]
        return None

    def _solve(self, pivot: Ints, slot: Ints, term: Ints, coef: Floats, rhs: Floats) -> None:
        rows = np.arange(pivot.size)
        lead = coef[rows, slot]
        term, coef = term.copy(), -coef / lead[:, None]
        term[rows, slot], coef[rows, slot] = NONE, 0.0
        term, coef = _merge(term, coef)
        if term.shape[1] > self._term.shape[1]:
            extra = term.shape[1] - self._term.shape[1]
            self._term = np.pad(self._term, ((0, 0), (0, extra)), constant_values=NONE)
            self._coef = np.pad(self._coef, ((0, 0), (0, extra)))
        width = term.shape[1]
        self._term[pivot], self._coef[pivot] = NONE, 0.0
        self._term[pivot, :width], self._coef[pivot, :width] = term, coef
        self._const[pivot] = rhs / lead
        self._solved[pivot] = True
        self._journal.append(pivot)

    def zero_where_possible(self, labels: Ints) -> None:
        """Wish t == 0 at each of `labels`; those that are determined otherwise keep their value."""
        labels = np.unique(labels)
        if labels.size:
            self.add(labels[:, None], np.ones((labels.size, 1)), np.zeros(labels.size), strict=False)

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Free every unknown solved since `mark`."""
        while len(self._journal) > mark:
            self._solved[self._journal.pop()] = False

    def solution(self) -> Floats:
        """One value for every unknown; free unknowns are zero, and so is what only rounding keeps from zero."""
        every = np.arange(len(self))
        _, _, rhs, largest = self._reduce(every[:, None], np.ones((len(self), 1)), np.zeros(len(self)))
        return np.where(np.abs(rhs) <= ROUNDING * largest, 0.0, -rhs)


def _merge(term: Ints, coef: Floats) -> tuple[Ints, Floats]:
    """Sort each row by term, add the coefficients of equal terms, drop zeros, cut to the widest row."""
    if term.shape[1] > 1:
        order = np.argsort(term, axis=1, kind="stable")
        term, coef = np.take_along_axis(term, order, 1), np.take_along_axis(coef, order, 1)
        for column in range(term.shape[1] - 1):  # push sums to the right within a run of equal terms
            equal = (term[:, column] == term[:, column + 1]) & (term[:, column] >= 0)
            coef[:, column + 1] += np.where(equal, coef[:, column], 0.0)
            coef[:, column] = np.where(equal, 0.0, coef[:, column])
    term = np.where(coef == 0.0, NONE, term)
    coef = np.where(term < 0, 0.0, coef)
    width = max(1, int((term >= 0).sum(axis=1).max(initial=0)))
    if term.shape[1] > width:
        order = np.argsort(term < 0, axis=1, kind="stable")[:, :width]
        term, coef = np.take_along_axis(term, order, 1), np.take_along_axis(coef, order, 1)
    return term, coef
