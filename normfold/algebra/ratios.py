"""Multiplicative unknowns: a vectorised weighted union-find with rollback.

Every unknown v_i is known up to the unknown of its root: v_i = ratio_i * v_root.  Unions are by size without path
compression, so an undo is a reset of the parents that were set (Tarjan 1979 gives depth <= log2 n without compression).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TOLERANCE = 1e-12  # two ratios are the same when they agree to this; float64 products of a few factors stay far below
NONE = -1
EXACT = 1e-14  # closer to 1 than the rounding of a few products: it is meant to be 1 (a pinned tensor keeps every bit)
LIMIT = 1e150  # a ratio outside [1/LIMIT, LIMIT] is refused before it overflows


class Ratios:
    """Unknowns 0 .. size-1, related by ``v[a] == ratio * v[b]``."""

    def __init__(self, size: int = 0) -> None:
        self._parent: Ints = np.arange(size)
        self._ratio: Floats = np.ones(size)
        self._size: Ints = np.ones(size, dtype=np.int64)
        self._place: Ints = np.full(size, NONE, dtype=np.int64)  # scratch; NONE everywhere between two calls
        self._journal: list[tuple[Ints, Ints]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def find(self, labels: Ints) -> tuple[Ints, Floats]:
        """Roots of `labels` and the ratios to them: ``v[labels] == ratios * v[roots]``."""
        roots = np.array(labels, dtype=np.int64)
        ratios = np.ones(roots.shape)
        while True:
            parents = self._parent[roots]
            if np.array_equal(parents, roots):
                return roots, ratios
            ratios *= self._ratio[roots]  # the ratio of a root to itself is 1
            roots = parents

    def join(self, a: Ints, b: Ints, ratio: Floats | float = 1.0) -> Bools | None:
        """Demand ``v[a] == ratio * v[b]`` elementwise (arrays broadcast).

        Returns None when that can hold; else a mask, over the broadcast shape, of pairs that contradict what is known.
        After a contradiction some of the pairs may have been joined: roll back.
        """
        a, b, wanted = np.broadcast_arrays(a, b, ratio)
        shape, index = a.shape, np.arange(a.size)
        root_a, root_b = a.ravel(), b.ravel()
        quotient = wanted.ravel().astype(np.float64)  # wanted: v[root_a] == quotient * v[root_b]
        while index.size:
            (root_a, to_a), (root_b, to_b) = self.find(root_a), self.find(root_b)
            with np.errstate(all="ignore"):
                quotient = quotient * to_b / to_a
            same = root_a == root_b
            size = np.abs(quotient)
            wrong = ~((size > 1 / LIMIT) & (size < LIMIT)) | (same & ~(np.abs(quotient - 1.0) <= TOLERANCE))
            if wrong.any():
                bad = np.zeros(shape, dtype=np.bool_)
                bad.ravel()[index[wrong]] = True
                return bad
            left = ~same
            root_a, root_b, quotient, index = root_a[left], root_b[left], quotient[left], index[left]
            done = self._hang(root_a, root_b, quotient)
            root_a, root_b, quotient, index = root_a[~done], root_b[~done], quotient[~done], index[~done]
        return None

    def _hang(self, root_a: Ints, root_b: Ints, quotient: Floats) -> Bools:
        """Hang roots below each other where v[root_a] == quotient * v[root_b]: one relation a root.  Returns which it used."""
        # The smaller tree hangs below the larger one; ties by index, so that parents strictly outrank children.
        size_a, size_b = self._size[root_a], self._size[root_b]
        a_below = (size_a < size_b) | ((size_a == size_b) & (root_a < root_b))
        places = np.arange(root_a.size)
        child, parent = np.where(a_below, root_a, root_b), np.where(a_below, root_b, root_a)
        self._place[child[::-1]] = places[::-1]
        used = self._place[child] == places  # the first relation of each child
        child, parent = child[used], parent[used]
        value = np.where(a_below[used], quotient[used], 1.0 / quotient[used])
        self._place[child] = np.arange(child.size)
        top = self._place[parent] < 0
        # A parent may be a child of the same round: everything is hung below the last of its line (pointer jumping).
        end, product = parent, value
        with np.errstate(all="ignore"):
            while (moved := (at := self._place[end]) >= 0).any():
                product = np.where(moved, product * product[at], product)
                end = np.where(moved, end[at], end)
            size = np.abs(product)
            sound = (size > 1 / LIMIT) & (size < LIMIT)
        self._place[child] = NONE
        if not sound.all():  # too large on the way: the upper ends alone; the others are refused in their turn
            used[used] = top
            child, end, product = child[top], parent[top], value[top]
        self._parent[child], self._ratio[child] = end, product
        np.add.at(self._size, end, self._size[child])
        self._journal.append((child, end))
        return used

    def copy(self) -> Ratios:
        """The same relations, to be added to apart."""
        twin = Ratios(len(self))
        twin._parent, twin._ratio, twin._size = self._parent.copy(), self._ratio.copy(), self._size.copy()
        twin._journal = list(self._journal)
        return twin

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undo every union since `mark`."""
        while len(self._journal) > mark:
            child, parent = self._journal.pop()
            self._parent[child] = child
            self._ratio[child] = 1.0
            np.subtract.at(self._size, parent, self._size[child])

    def solution(self, anchor: int = 0) -> Floats:
        """One value for every unknown: v[anchor] is 1; in a free tree the last unknown is 1.

        Unknowns are numbered in the order of the graph, so a fold goes into the layer before and leaves the layers behind it
        alone.  Where that would put the tree far from 1 (beyond 2**20) its geometric mean is put at 1 instead, to a power of two.
        """
        count = len(self)
        roots, ratios = self.find(np.arange(count))
        logs = np.log2(np.abs(ratios))
        members = np.maximum(np.bincount(roots, minlength=count), 1)
        mean = np.bincount(roots, weights=logs, minlength=count) / members
        last = np.zeros(count, dtype=np.int64)
        np.maximum.at(last, roots, np.arange(count))
        near = np.abs(logs[last] - mean) <= 20
        unit = np.where(near, ratios[last], np.exp2(np.rint(mean)))
        root, ratio = self.find(np.array([anchor]))
        unit[root[0]] = ratio[0]
        values = ratios / unit[roots]  # a division, so that equal ratios give exactly 1
        values[np.abs(values - 1.0) <= EXACT] = 1.0
        return values
