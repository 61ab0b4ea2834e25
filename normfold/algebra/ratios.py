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
LIMIT = 1e150  # a ratio outside [1/LIMIT, LIMIT] is refused before it overflows


class Ratios:
    """Unknowns 0 .. size-1, related by ``v[a] == ratio * v[b]``."""

    def __init__(self, size: int = 0) -> None:
        self._parent: Ints = np.arange(size)
        self._ratio: Floats = np.ones(size)
        self._size: Ints = np.ones(size, dtype=np.int64)
        self._journal: list[tuple[Ints, Ints]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def grow(self, size: int) -> None:
        """Make room for unknowns up to `size`; new ones are free."""
        old = len(self._parent)
        if size > old:
            self._parent = np.concatenate([self._parent, np.arange(old, size)])
            self._ratio = np.concatenate([self._ratio, np.ones(size - old)])
            self._size = np.concatenate([self._size, np.ones(size - old, dtype=np.int64)])

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
        a, b, wanted = (np.array(item) for item in np.broadcast_arrays(a, b, ratio))
        shape, index = a.shape, np.arange(a.size)
        a, b, wanted = a.ravel().astype(np.int64), b.ravel().astype(np.int64), wanted.ravel().astype(np.float64)
        bad = np.zeros(a.size, dtype=np.bool_)
        while a.size:
            (root_a, to_a), (root_b, to_b) = self.find(a), self.find(b)
            with np.errstate(all="ignore"):
                quotient = wanted * to_b / to_a  # v[root_a] == quotient * v[root_b]
            same = root_a == root_b
            size = np.abs(quotient)
            wrong = ~((size > 1 / LIMIT) & (size < LIMIT)) | (same & ~(np.abs(quotient - 1.0) <= TOLERANCE))
            if wrong.any():
                bad[index[wrong]] = True
                return bad.reshape(shape)
            keep = ~same
            if not keep.any():
                return None
            a, b, wanted, index = a[keep], b[keep], wanted[keep], index[keep]
            root_a, root_b, quotient = root_a[keep], root_b[keep], quotient[keep]
            # The smaller tree hangs below the larger one; ties by index, so that parents strictly outrank children.
            size_a, size_b = self._size[root_a], self._size[root_b]
            a_below = (size_a < size_b) | ((size_a == size_b) & (root_a < root_b))
            child = np.where(a_below, root_a, root_b)
            parent = np.where(a_below, root_b, root_a)
            value = np.where(a_below, quotient, 1.0 / quotient)
            _, first = np.unique(child, return_index=True)
            first = first[~np.isin(parent[first], child[first])]  # nobody hangs below a root that moves in this round
            self._parent[child[first]] = parent[first]
            self._ratio[child[first]] = value[first]
            np.add.at(self._size, parent[first], self._size[child[first]])
            self._journal.append((child[first], parent[first]))
            rest = np.ones(a.size, dtype=np.bool_)
            rest[first] = False
            a, b, wanted, index = a[rest], b[rest], wanted[rest], index[rest]
        return None

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
        base = np.where(near, 1.0 / ratios[last], np.exp2(-np.rint(mean)))
        root, ratio = self.find(np.array([anchor]))
        base[root[0]] = 1.0 / ratio[0]
        return ratios * base[roots]
