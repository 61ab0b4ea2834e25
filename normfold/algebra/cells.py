"""One step of a recurrence as polynomials: what is left of a cell when its spelling is taken away.

A tensor of a step is, channel by channel, a polynomial over scalar *atoms*: channels of the state before, of the input, and
values of functions (sigmoid, tanh) whose arguments are such polynomials again.  Additions in any order, chunks, affine layers,
(1 - z) n and the place of biases all vanish in it:

    p[i] = const[i] + sum_b dense_b[i] . atoms of block b + sum_k coeff_k prod atoms(ids_k)

Pure numpy, float64.  `cell_match` compares the result with the equations of LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from normfold.algebra.ratios import Floats, Ints


@dataclass(frozen=True, eq=False)
class Terms:
    """Products of atoms: coeff[k] * prod(ids[k]) belongs to channel rows[k].

    ids: [k, degree], ascending, -1 in front where a product is shorter.
    """

    rows: Ints
    ids: Ints
    coeff: Floats

    @staticmethod
    def none() -> Terms:
        return Terms(np.zeros(0, np.int64), np.zeros((0, 1), np.int64), np.zeros(0))

    def of_degree(self) -> Ints:
        """The number of factors of each term."""
        return (self.ids >= 0).sum(axis=1)


def canonical(rows: Ints, ids: Ints, coeff: Floats) -> Terms:
    """Terms in order of channel, equal ones added up, zeros dropped."""
    if not len(rows):
        return Terms.none()
    ids = np.sort(ids, axis=1)
    order = np.lexsort((*ids.T[::-1], rows))
    rows, ids, coeff = rows[order], ids[order], coeff[order]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1]).any(axis=1)
    start = np.flatnonzero(new)
    total = np.add.reduceat(coeff, start)
    kept = total != 0.0
    rows, ids = rows[start][kept], ids[start][kept]
    used = (ids >= 0).any(axis=0)
    return Terms(rows, ids[:, used] if used.any() else ids[:, -1:], total[kept])


@dataclass(frozen=True, eq=False)
class Poly:
    """const [n], dense {block: [n, size of block]}, terms."""

    const: Floats
    dense: dict[int, Floats] = field(default_factory=dict[int, Floats])
    terms: Terms = field(default_factory=Terms.none)

    @property
    def size(self) -> int:
        return len(self.const)

    @property
    def is_const(self) -> bool:
        return not self.dense and not len(self.terms.rows)

    def select(self, rows: Ints) -> Poly:
        """The channels `rows`, in that order, repeated where asked."""
        rows = np.asarray(rows, np.int64)
        first = np.searchsorted(self.terms.rows, rows, "left")
        counts = np.searchsorted(self.terms.rows, rows, "right") - first
        at = np.repeat(np.arange(len(rows)), counts)
        offset = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        picked = np.repeat(first, counts) + offset
        terms = Terms(at, self.terms.ids[picked], self.terms.coeff[picked])
        return Poly(self.const[rows], _trimmed({b: m[rows] for b, m in self.dense.items()}), canonical(*_parts(terms)))

    def affine(self, scale: Floats, shift: Floats) -> Poly:
        """scale[i] p[i] + shift[i]."""
        scale = np.broadcast_to(scale, (self.size,))
        dense = {b: m * scale[:, None] for b, m in self.dense.items()}
        terms = canonical(self.terms.rows, self.terms.ids, self.terms.coeff * scale[self.terms.rows])
        return Poly(self.const * scale + shift, _trimmed(dense), terms)

    def plus(self, other: Poly) -> Poly:
        dense = dict(self.dense)
        for block, matrix in other.dense.items():
            dense[block] = dense[block] + matrix if block in dense else matrix
        width = max(self.terms.ids.shape[1], other.terms.ids.shape[1])
        ids = np.concatenate([_padded(self.terms.ids, width), _padded(other.terms.ids, width)])
        rows = np.concatenate([self.terms.rows, other.terms.rows])
        coeff = np.concatenate([self.terms.coeff, other.terms.coeff])
        return Poly(self.const + other.const, _trimmed(dense), canonical(rows, ids, coeff))


def _parts(terms: Terms) -> tuple[Ints, Ints, Floats]:
    return terms.rows, terms.ids, terms.coeff


def _padded(ids: Ints, width: int) -> Ints:
    return np.pad(ids, ((0, 0), (width - ids.shape[1], 0)), constant_values=-1)


def _trimmed(dense: dict[int, Floats]) -> dict[int, Floats]:
    return {block: matrix for block, matrix in dense.items() if matrix.any()}


def concat(parts: Sequence[Poly]) -> Poly:
    """Channels of `parts` one after the other."""
    starts = np.cumsum([0, *(part.size for part in parts)])
    dense: dict[int, Floats] = {}
    for start, part in zip(starts, parts, strict=False):
        for block, matrix in part.dense.items():
            dense.setdefault(block, np.zeros((int(starts[-1]), matrix.shape[1])))[start : start + part.size] = matrix
    width = max(part.terms.ids.shape[1] for part in parts)
    rows = np.concatenate([part.terms.rows + start for start, part in zip(starts, parts, strict=False)])
    ids = np.concatenate([_padded(part.terms.ids, width) for part in parts])
    coeff = np.concatenate([part.terms.coeff for part in parts])
    return Poly(np.concatenate([part.const for part in parts]), dense, canonical(rows, ids, coeff))


@dataclass(frozen=True, eq=False)
class Block:
    """`size` atoms from number `start` on.

    kind: "input" and "state" are unknowns; "linear" and "product" name a polynomial so that it can be multiplied or summed;
    anything else is a function of its argument.  name: which input or state.
    """

    kind: str
    start: int
    size: int
    name: str = ""
    argument: Poly | None = None


class Atoms:
    """The unknowns of one step and the arithmetic that makes new ones."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._starts: list[int] = []
        self._count = 0

    def _new(self, kind: str, size: int, name: str = "", argument: Poly | None = None) -> int:
        self.blocks.append(Block(kind, self._count, size, name, argument))
        self._starts.append(self._count)
        self._count += size
        return len(self.blocks) - 1

    def block_of(self, ids: Ints) -> Ints:
        """The block of each atom; -1 for no atom."""
        return np.where(ids < 0, -1, np.searchsorted(np.asarray(self._starts), ids, "right") - 1)

    def whole(self, block: int) -> Poly:
        """Every atom of a block, as a polynomial."""
        item = self.blocks[block]
        rows = np.arange(item.size)
        return Poly(np.zeros(item.size), {}, Terms(rows, (item.start + rows)[:, None], np.ones(item.size)))

    def unknown(self, kind: str, name: str, size: int) -> Poly:
        """New unknowns: `kind` is "input" or "state"."""
        return self.whole(self._new(kind, size, name))

    def apply(self, function: str, argument: Poly) -> Poly:
        """function(p[i]), channel by channel."""
        return self.whole(self._new(function, argument.size, "", argument))

    def linear(self, p: Poly, weight: Floats) -> Poly:
        """p @ weight; weight [n, m]."""
        dense = {block: weight.T @ matrix for block, matrix in p.dense.items()}
        terms, degree = p.terms, p.terms.of_degree()
        single = degree == 1
        for block in np.unique(self.block_of(terms.ids[single, -1])) if single.any() else []:
            item = self.blocks[int(block)]
            mine = single & (self.block_of(terms.ids[:, -1]) == block)
            matrix = self._spread(weight, terms.rows[mine], terms.ids[mine, -1] - item.start, terms.coeff[mine], item.size)
            dense[int(block)] = dense[int(block)] + matrix if int(block) in dense else matrix
        if not single.all():
            rest = canonical(terms.rows[~single], terms.ids[~single], terms.coeff[~single])
            named = self._new("product", p.size, "", Poly(np.zeros(p.size), {}, rest))
            dense[named] = np.ascontiguousarray(weight.T)
        return Poly(p.const @ weight, _trimmed(dense))

    @staticmethod
    def _spread(weight: Floats, rows: Ints, columns: Ints, coeff: Floats, size: int) -> Floats:
        """weight.T @ M for M with the entries `coeff` at (rows, columns), `size` columns."""
        result = np.zeros((weight.shape[1], size))
        if len(np.unique(columns)) == len(columns):
            result[:, columns] = weight.T[:, rows] * coeff
        else:
            np.add.at(result.T, columns, weight[rows] * coeff[:, None])
        return result

    def times(self, p: Poly, q: Poly) -> Poly:
        """p[i] q[i]."""
        if p.is_const or q.is_const:
            const, other = (p, q) if p.is_const else (q, p)
            return other.affine(const.const, np.zeros(other.size))
        zero = np.zeros(p.size)
        result = p.affine(q.const, zero).plus(Poly(zero, q.dense, q.terms).affine(p.const, zero))
        left, right = _layers(self.as_terms(p)), _layers(self.as_terms(q))
        products = [_joined(a, b) for a in left for b in right]
        width = max(ids.shape[1] for _, ids, _ in products)
        rows, ids, coeff = (
            np.concatenate([item[0] for item in products]),
            np.concatenate([_padded(item[1], width) for item in products]),
            np.concatenate([item[2] for item in products]),
        )
        return result.plus(Poly(zero, {}, canonical(rows, ids, coeff)))

    def as_terms(self, p: Poly) -> Terms:
        """All but the constant as terms: a matrix with one entry a row is read off, any other gets a name."""
        found = Poly(np.zeros(p.size), {}, p.terms)
        rest: dict[int, Floats] = {}
        for block, matrix in p.dense.items():
            if (np.count_nonzero(matrix, axis=1) > 1).any():
                rest[block] = matrix
                continue
            rows, columns = np.nonzero(matrix)
            entries = canonical(rows, (self.blocks[block].start + columns)[:, None], matrix[rows, columns])
            found = found.plus(Poly(np.zeros(p.size), {}, entries))
        if rest:
            some = np.flatnonzero(np.logical_or.reduce([matrix.any(axis=1) for matrix in rest.values()]))
            named = self._new("linear", p.size, "", Poly(np.zeros(p.size), rest))
            ids = (self.blocks[named].start + some)[:, None]
            found = found.plus(Poly(np.zeros(p.size), {}, Terms(some, ids, np.ones(len(some)))))
        return found.terms


_Layer = tuple[Ints, Ints, Floats]


def _layers(terms: Terms) -> list[_Layer]:
    """The first term of every channel, the second of every channel that has one, ..."""
    first = np.searchsorted(terms.rows, terms.rows, "left")
    place = np.arange(len(terms.rows)) - first
    layers = [place == k for k in range(int(place.max(initial=-1)) + 1)]
    return [(terms.rows[mine], terms.ids[mine], terms.coeff[mine]) for mine in layers]


def _joined(a: _Layer, b: _Layer) -> _Layer:
    """Products within channels that both have."""
    rows, left, right = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    return rows, np.concatenate([a[1][left], b[1][right]], axis=1), a[2][left] * b[2][right]
