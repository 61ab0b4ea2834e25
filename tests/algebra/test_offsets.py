"""The sparse elimination: solutions, contradictions, rollback, wishes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.algebra.offsets import Offsets


def equation(offsets: Offsets, terms: list[int], coefs: list[float], rhs: float) -> object:
    return offsets.add(np.array([terms]), np.array([coefs]), np.array([rhs]))


def test_unknown_zero_is_zero() -> None:
    offsets = Offsets(3)
    assert equation(offsets, [1, 0], [1.0, -1.0], 2.5) is None
    assert offsets.solution().tolist() == [0.0, 2.5, 0.0]
    assert equation(offsets, [0], [1.0], 1.0) is not None


def test_equations_are_solved_together() -> None:
    offsets = Offsets(4)
    assert equation(offsets, [1, 2, 3], [1.0, -1.0, -1.0], 0.0) is None  # t1 = t2 + t3
    assert equation(offsets, [1, 2], [1.0, 1.0], 10.0) is None
    assert equation(offsets, [3], [1.0], 4.0) is None
    assert offsets.solution()[1:].tolist() == [7.0, 3.0, 4.0]


def test_equal_terms_count_twice() -> None:
    offsets = Offsets(3)
    assert equation(offsets, [1, 2, 2], [1.0, -1.0, -1.0], 0.0) is None  # t1 = 2 t2
    assert equation(offsets, [1], [1.0], 6.0) is None
    assert offsets.solution()[2] == 3.0


def test_contradiction_names_the_rows_and_rolls_back() -> None:
    offsets = Offsets(4)
    equation(offsets, [1], [1.0], 1.0)
    mark = offsets.mark()
    bad = offsets.add(np.array([[2, 0], [1, 0]]), np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([5.0, 2.0]))
    assert bad is not None and bad.tolist() == [False, True]
    offsets.rollback(mark)
    assert equation(offsets, [2], [1.0], 7.0) is None
    assert offsets.solution()[2] == 7.0


def test_consistency_is_relative_to_the_largest_term() -> None:
    offsets = Offsets(3)
    equation(offsets, [1], [1.0], 1e9)
    assert equation(offsets, [1], [1.0], 1e9 + 1e-4) is None  # 1e-13 of the terms: rounding
    assert equation(offsets, [1], [1.0], 1e9 + 1.0) is not None
    equation(offsets, [2], [1.0], 1e-9)
    assert equation(offsets, [2], [1.0], 2e-9) is not None


def test_wishes_never_undo_what_was_demanded() -> None:
    offsets = Offsets(4)
    equation(offsets, [1, 2], [1.0, -1.0], 3.0)  # t1 - t2 = 3
    offsets.zero_where_possible(np.array([2, 3]))
    assert offsets.solution().tolist() == [0.0, 3.0, 0.0, 0.0]
    offsets.zero_where_possible(np.array([1]))
    assert offsets.solution()[1] == 3.0


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 14))
def test_agrees_with_dense_elimination(seed: int, unknowns: int, rows: int) -> None:
    """Random sparse systems with coefficients +-1: solvable exactly when numpy's rank says so, and then the solution fits."""
    rng = np.random.default_rng(seed)
    term = rng.integers(0, unknowns, (rows, 3))
    coef = rng.choice([-1.0, 1.0], (rows, 3))
    rhs = rng.integers(-3, 4, rows).astype(float)
    dense = np.zeros((rows, unknowns))
    np.add.at(dense, (np.arange(rows)[:, None], term), coef)
    dense[:, 0] = 0.0
    solvable = np.linalg.matrix_rank(dense) == np.linalg.matrix_rank(np.column_stack([dense, rhs]))
    offsets = Offsets(unknowns)
    conflict = offsets.add(term, coef, rhs)
    assert (conflict is None) == solvable
    if solvable:
        assert dense @ offsets.solution() == pytest.approx(rhs, abs=1e-9)
