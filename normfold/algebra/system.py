"""The unknowns of one graph and the hard constraints between them.

Every tensor v is stored as ``v' = s v + t`` with one unknown s and one unknown t for each label (see labels.py).  This module
collects what the operations demand of them; `build` turns the collection into the two solvers.  Every demand remembers who
made it, so that a refusal can name its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from normfold.algebra.offsets import Offsets
from normfold.algebra.ratios import Floats, Ints, Ratios


class Demand(NamedTuple):
    """Labels that somebody restricted.  code: a stable reason; subject: the op or value that asks; asker: see System."""

    labels: Ints
    code: str
    subject: str
    asker: int = -1


class System:
    """Scale unknowns (magnitude and sign apart) and shift unknowns; unknown 0 of each is pinned to 1 and 0.

    Signs are a second, binary union-find: an op like ReLU demands s > 0 without saying anything of the magnitude.
    asker: who states demands just now, a number of the caller's own (-1: nobody in particular); each demand keeps it.
    """

    def __init__(self) -> None:
        self.scale_count = self.shift_count = 1
        self.scale_pins: list[Demand] = []
        self.positive: list[Demand] = []
        self.shift_zeros: list[Demand] = []
        self.relaxable_zeros: list[Demand] = []
        self.named_shifts: list[Demand] = []
        self._wished_zeros: dict[int, list[Ints]] = {}
        self.asker = -1
        self._joins: list[tuple[Ints, Ints]] = []
        self._sums: list[tuple[Ints, Floats]] = []
        self._join_askers: list[int] = []
        self._magnitude_joins: list[tuple[Ints, Ints]] = []
        self._magnitude_askers: list[int] = []
        self._sum_askers: list[int] = []
        self._links: Ratios | None = None
        self._indices: dict[int, _Index] = {}
        self._relaxed = False
        self.magnitude = Ratios(1)
        self.sign = Ratios(1)
        self.shift = Offsets(1)

    # ---- collecting -----------------------------------------------------------------------------------------------

    def new_scales(self, shape: Sequence[int]) -> Ints:
        """Fresh scale labels of the given shape."""
        first, self.scale_count = self.scale_count, self.scale_count + int(np.prod(shape))
        return np.arange(first, self.scale_count).reshape(shape)

    def new_shifts(self, shape: Sequence[int]) -> Ints:
        """Fresh shift labels of the given shape."""
        first, self.shift_count = self.shift_count, self.shift_count + int(np.prod(shape))
        return np.arange(first, self.shift_count).reshape(shape)

    def pin_scale(self, labels: Ints, code: str, subject: str) -> None:
        """Demand s == 1."""
        self.scale_pins.append(Demand(labels, code, subject, self.asker))

    def join_scale(self, a: Ints, b: Ints) -> None:
        """Demand equal scales (arrays broadcast)."""
        if not np.array_equal(a, b):
            self._joins.append((a, b))
            self._join_askers.append(self.asker)

    def join_magnitude(self, a: Ints, b: Ints) -> None:
        """Demand equal absolute values of scales (arrays broadcast); signs stay apart."""
        self._magnitude_joins.append((a, b))
        self._magnitude_askers.append(self.asker)

    def demand_positive(self, labels: Ints, subject: str) -> None:
        """Demand s > 0."""
        self.positive.append(Demand(labels, "sign", subject, self.asker))

    def zero_shift(self, labels: Ints, code: str, subject: str, *, relaxable: bool = False) -> None:
        """Demand t == 0; a relaxable demand may be given up for a node that makes up for it (a border map)."""
        (self.relaxable_zeros if relaxable else self.shift_zeros).append(Demand(labels, code, subject, self.asker))

    def name_shift(self, labels: Ints, code: str, subject: str) -> None:
        """Remember who restricts these shifts by other demands than t == 0; explanations name it."""
        self.named_shifts.append(Demand(labels, code, subject, self.asker))

    def wish_zero_shift(self, labels: Ints, *, tier: int = 0) -> None:
        """Prefer t == 0 where nothing else is asked; all wishes of a lower tier come first."""
        self._wished_zeros.setdefault(tier, []).append(labels)

    def sum_shifts(self, total: Ints, parts: Sequence[tuple[float, Ints]]) -> None:
        """Demand ``t[total] == sum(coef * t[part])`` (arrays broadcast)."""
        shape = np.broadcast_shapes(total.shape, *(part.shape for _, part in parts))
        columns = [np.broadcast_to(item, shape).ravel() for item in (total, *(part for _, part in parts))]
        coefs = np.array([1.0] + [-coef for coef, _ in parts])
        term = np.stack(columns, axis=1)
        self._sums.append((term, np.broadcast_to(coefs, term.shape)))
        self._sum_askers.append(self.asker)

    # ---- solving --------------------------------------------------------------------------------------------------

    def build(self, *, relaxed: bool = False) -> None:
        """Start afresh with every hard constraint.  They hold for the identity gauge, so they never contradict each other.

        relaxed: relaxable zeros are wishes, not demands.
        """
        self._relaxed = relaxed
        self.sign = _joined(Ratios(self.scale_count), self._joins)
        self.magnitude = _joined(self.sign.copy(), self._magnitude_joins)
        self.shift = Offsets(self.shift_count)
        pins = _gather(demand.labels for demand in self.scale_pins)
        self.magnitude.join(pins, np.zeros_like(pins))
        positive = np.concatenate([pins, _gather(demand.labels for demand in self.positive)])
        self.sign.join(positive, np.zeros_like(positive))
        zeros = _gather(demand.labels for demand in self.shift_zeros + ([] if relaxed else self.relaxable_zeros))
        self.shift.demand([(zeros[:, None], np.ones((zeros.size, 1))), *self._sums])

    def mark(self) -> tuple[int, int, int]:
        """A point to roll back to."""
        return self.magnitude.mark(), self.sign.mark(), self.shift.mark()

    def rollback(self, mark: tuple[int, int, int]) -> None:
        """Forget everything demanded since `mark`."""
        self.magnitude.rollback(mark[0])
        self.sign.rollback(mark[1])
        self.shift.rollback(mark[2])

    def grant_wished_zeros(self) -> None:
        """Set t == 0 where that is wished and nothing contradicts: first what would need the largest new nodes."""
        if self._relaxed:
            self.shift.zero_where_possible(_gather(demand.labels for demand in self.relaxable_zeros))
        for tier in sorted(self._wished_zeros):
            self.shift.zero_where_possible(_gather(self._wished_zeros[tier]))

    # ---- explaining -----------------------------------------------------------------------------------------------

    def joins(self, *, signed: bool = True) -> Iterator[tuple[Ints, Ints, int]]:
        """Pairs of labels with equal scales (signed=False: equal magnitudes), flat, and who asked for it."""
        for (a, b), asker in zip(self._joins, self._join_askers, strict=True):
            yield *_flat(a, b), asker
        for (a, b), asker in zip(self._magnitude_joins, self._magnitude_askers, strict=True):
            if not signed:
                yield *_flat(a, b), asker

    def sums(self) -> Iterator[tuple[Ints, Floats, int]]:
        """Rows of ``(coef * t[term]).sum() == 0`` and who asked for them."""
        for (term, coef), asker in zip(self._sums, self._sum_askers, strict=True):
            yield term, coef, asker

    def pins_near(self, labels: Ints) -> list[Demand]:
        """Scale pins that reach `labels` through hard constraints alone (not through layers that were deleted)."""
        return self._near(labels, self.scale_pins)

    def positives_near(self, labels: Ints) -> list[Demand]:
        """Sign demands that reach `labels` through hard constraints alone."""
        return self._near(labels, self.positive)

    def _near(self, labels: Ints, demands: list[Demand]) -> list[Demand]:
        if self._links is None:
            self._links = _joined(Ratios(self.scale_count), self._joins)
        roots, _ = self._links.find(np.unique(labels))
        return self._index(demands, self._links).at(roots)

    def zeros_at(self, labels: Ints) -> list[Demand]:
        """Zero-shift demands made on one of `labels` itself."""
        return self._index(self.shift_zeros, None).at(labels) + self._index(self.relaxable_zeros, None).at(labels)

    def _index(self, demands: list[Demand], links: Ratios | None) -> _Index:
        """Who demands something where; made anew when demands came in since."""
        known = self._indices.get(id(demands))
        if known is None or len(known.demands) < len(demands):
            known = self._indices[id(demands)] = _Index(demands, links)
        return known


class _Index:
    """Demands by their labels, or by the roots of their labels in `links`."""

    def __init__(self, demands: list[Demand], links: Ratios | None) -> None:
        self.demands = list(demands)
        parts = [np.unique(demand.labels) for demand in demands]
        where = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        who = np.repeat(np.arange(len(parts)), [part.size for part in parts])
        where = where if links is None else links.find(where)[0]
        order = np.argsort(where, kind="stable")
        self._where, self._who = where[order], who[order]

    def at(self, labels: Ints) -> list[Demand]:
        """Demands on one of `labels` (the pinned 0 aside), in the order in which they were made."""
        labels = np.unique(labels)
        labels = labels[labels > 0]
        first, last = np.searchsorted(self._where, labels), np.searchsorted(self._where, labels, side="right")
        who = np.concatenate([np.zeros(0, dtype=np.int64), *(self._who[i:j] for i, j in zip(first, last, strict=True))])
        return [self.demands[i] for i in np.unique(who)]


def _joined(ratios: Ratios, pairs: Sequence[tuple[Ints, Ints]]) -> Ratios:
    """`ratios` with both sides of every pair (arrays that broadcast) made equal."""
    flat = [_flat(a, b) for a, b in pairs]
    if flat:
        ratios.join(*(np.concatenate(side) for side in zip(*flat, strict=True)))
    return ratios


def _flat(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    a, b = np.broadcast_arrays(a, b)
    return a.ravel(), b.ravel()


def _gather(arrays: Iterable[Ints]) -> Ints:
    """Every label in `arrays` once, without the pinned 0."""
    parts = [np.unique(array) for array in arrays]
    joined = np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
    return joined[joined > 0]
