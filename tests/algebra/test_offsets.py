"""The sparse elimination: solutions, contradictions, rollback, wishes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.algebra import offsets as module
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


def dense(terms: np.ndarray, coefs: np.ndarray, unknowns: int) -> np.ndarray:
    """The same left sides as a matrix [rows, unknowns], without unknown 0."""
    matrix = np.zeros((len(terms), unknowns))
    np.add.at(matrix, (np.arange(len(terms))[:, None], terms), coefs * (terms > 0))
    return matrix


def solvable(matrix: np.ndarray, rhs: np.ndarray) -> bool:
    return bool(np.linalg.matrix_rank(matrix) == np.linalg.matrix_rank(np.column_stack([matrix, rhs])))


@given(st.integers(0, 2**32 - 1), st.integers(3, 14), st.integers(1, 5), st.integers(1, 7))
def test_wide_equations_in_many_batches_with_rollbacks(seed: int, unknowns: int, width: int, batches: int) -> None:
    """What holds after each batch is what a dense elimination of the batches that were granted says."""
    rng = np.random.default_rng(seed)
    offsets = Offsets(unknowns)
    granted, right = np.zeros((0, unknowns)), np.zeros(0)
    for _ in range(batches):
        term = rng.integers(-1, unknowns, (rng.integers(1, 6), width))
        coef = rng.choice([-2.0, -1.0, 0.0, 1.0, 1.0, 3.0, 0.25], term.shape)
        rhs = rng.integers(-2, 3, len(term)).astype(float)
        both, all_right = np.vstack([granted, dense(term, coef, unknowns)]), np.concatenate([right, rhs])
        mark = offsets.mark()
        conflict = offsets.add(term, coef, rhs)
        assert (conflict is None) == solvable(both, all_right)
        if conflict is not None or rng.random() < 0.2:
            offsets.rollback(mark)
        else:
            granted, right = both, all_right
        assert granted @ offsets.solution() == pytest.approx(right, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(1, 20))
def test_skipping_leaves_out_no_row_that_could_have_held(seed: int, unknowns: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = Offsets(unknowns)
    term, coef = rng.integers(0, unknowns, (rows, 3)), rng.choice([-1.0, 1.0, 2.0], (rows, 3))
    rhs = rng.integers(-3, 4, rows).astype(float)
    assert offsets.add(term, coef, rhs, strict=False) is None
    value = offsets.solution()
    for row in range(rows):
        mark = offsets.mark()
        holds = offsets.add(term[row : row + 1], coef[row : row + 1], rhs[row : row + 1]) is None
        assert holds == (dense(term, coef, unknowns)[row] @ value == pytest.approx(rhs[row], abs=1e-9))
        assert not holds or offsets.mark() == mark, "an equation that could have held was not demanded"


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(1, 10))
def test_demands_hold_whatever_is_wished_later_even_those_too_wide(seed: int, unknowns: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WIDTH", int(rng.integers(1, 5)))
        offsets = Offsets(unknowns)
        groups = [(rng.integers(-1, unknowns, (rows, width)), rng.choice([-1.0, 1.0, 2.0], (rows, width))) for width in (3, 6)]
        offsets.demand(groups)
        wish = rng.integers(0, unknowns, (4, 2))
        offsets.add(wish, np.broadcast_to([1.0, -1.0], wish.shape), rng.integers(-3, 4, 4).astype(float), strict=False)
        value = offsets.solution()
    for term, coef in groups:
        assert dense(term, coef, unknowns) @ value == pytest.approx(np.zeros(rows), abs=1e-9)


def test_an_equation_too_wide_is_no_wish_that_can_be_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WIDTH", 3)
    offsets = Offsets(6)
    assert equation(offsets, [1, 2, 3, 4], [1.0] * 4, 1.0) is not None
    assert equation(offsets, [1, 2, 3], [1.0] * 3, 6.0) is None
    assert equation(offsets, [1], [1.0], 1.0) is None and equation(offsets, [2], [1.0], 2.0) is None
    assert offsets.solution()[3] == 3.0


def chain(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Equations t_i == t_(i+1), from 1 to `size`."""
    term = np.stack([np.arange(1, size), np.arange(2, size + 1)], axis=1)
    return term, np.broadcast_to([1.0, -1.0], term.shape)


def test_a_long_chain_takes_few_rounds_in_whatever_order_it_comes() -> None:
    size = 4096
    term, coef = chain(size)
    for order in (np.arange(size - 1), np.arange(size - 1)[::-1], np.random.default_rng(0).permutation(size - 1)):
        offsets = Offsets(size + 1)
        offsets.demand([(term[order], coef)])
        assert offsets.mark() <= 12  # log2 of the length; one round a link would be 4095
        assert equation(offsets, [1], [1.0], 7.0) is None
        assert offsets.solution()[1:].tolist() == [7.0] * size
    for i in range(size // 64):  # links that come one by one build no deep trees either
        mark = offsets.mark()
        assert equation(offsets, [i + 1, i + 2], [1.0, -1.0], 0.0) is None and offsets.mark() == mark


def test_a_long_residual_stream_takes_few_rounds() -> None:
    """y_k = y_(k-1) + b_k, each b used twice, so that there is no private unknown to solve for: x_k = x_(k-1) + b_k."""
    blocks = 200
    y, x, b = np.arange(1, blocks + 2), np.arange(blocks + 2, 2 * blocks + 3), np.arange(2 * blocks + 3, 3 * blocks + 3)
    term = np.concatenate([np.stack([stream[1:], stream[:-1], b], axis=1) for stream in (y, x)])
    offsets = Offsets(3 * blocks + 3)
    offsets.demand([(term, np.broadcast_to([1.0, -1.0, -1.0], term.shape))])
    assert offsets.mark() <= 40
    assert offsets.add(np.stack([y[[0, -1]], x[[0, 0]]], axis=1), np.array([[1.0, 0.0]] * 2), np.array([1.0, 5.0])) is None
    assert equation(offsets, [x[0].item()], [1.0], 2.0) is None
    value = offsets.solution()
    assert value[x[-1]] == pytest.approx(6.0)  # x - y is the same everywhere
    assert value[term] @ np.array([1.0, -1.0, -1.0]) == pytest.approx(np.zeros(2 * blocks), abs=1e-9)


def test_links_in_one_batch_compose_with_their_coefficients_and_constants() -> None:
    """t1 = 3 - 2 t2, t2 = 5 + 4 t3, t3 = 1 - t4, t4 = t5 / 2: hung below one unknown at once, in any order of the rows."""
    term = np.array([[1, 2], [2, 3], [3, 4], [4, 5]])
    coef, rhs = np.array([[1.0, 2.0], [1.0, -4.0], [1.0, 1.0], [2.0, -1.0]]), np.array([3.0, 5.0, 1.0, 0.0])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        offsets = Offsets(6)
        assert offsets.add(term[order], coef[order], rhs[order]) is None
        assert equation(offsets, [5], [1.0], 6.0) is None
        assert offsets.solution().tolist() == [0.0, 9.0, -3.0, -2.0, 3.0, 6.0]


def test_coefficients_that_grow_beyond_float_range_are_refused_not_wrong() -> None:
    size = 1500
    term, _ = chain(size)
    offsets = Offsets(size + 1)
    offsets.demand([(term, np.broadcast_to([1.0, -2.0], term.shape))])  # t_i = 2 t_(i+1): 2**1499 from end to end
    assert equation(offsets, [1, size], [1.0, 1.0], 1.0) is not None or np.isfinite(offsets.solution()).all()
    near = Offsets(301)
    near.demand([(term[:299], np.broadcast_to([1.0, -2.0], (299, 2)))])
    assert equation(near, [300], [1.0], 3.0) is None
    assert near.solution()[1] == 3.0 * 2.0**299


def test_what_is_not_a_number_is_no_solution() -> None:
    for rhs in (np.nan, np.inf, 1e200):
        assert equation(Offsets(3), [1, 2], [1.0, -1.0], rhs) is not None
    for coef in (np.nan, np.inf, 1e-200):
        assert equation(Offsets(3), [1, 2], [1.0, coef], 1.0) is not None


def test_terms_that_only_rounding_keeps_apart_are_none() -> None:
    """Three tenths minus a tenth three times is 5.6e-17: no coefficient to divide by."""
    offsets = Offsets(4)
    assert equation(offsets, [1, 2, 2, 2, 2], [1.0, 0.1, 0.1, 0.1, -0.3], 2.0) is None
    assert offsets.solution().tolist() == [0.0, 2.0, 0.0, 0.0]


def test_a_value_that_only_rounding_keeps_from_zero_is_zero() -> None:
    offsets = Offsets(5)
    assert offsets.add(np.array([[1], [2], [3]]), np.ones((3, 1)), np.array([0.1, 0.2, -0.3])) is None
    assert equation(offsets, [4, 1, 2, 3], [1.0, -1.0, -1.0, -1.0], 0.0) is None
    assert offsets.solution()[4] == 0.0


def test_consistency_remembers_the_large_terms_of_constants_read_later() -> None:
    """t3 = t1 + t2 is 0.1 made of 1e9 and -1e9: sixteen digits below the large ones is all that it can be trusted to."""
    offsets = Offsets(5)
    assert offsets.add(np.array([[1], [2]]), np.ones((2, 1)), np.array([1e9 + 0.1, -1e9])) is None
    assert equation(offsets, [3, 1, 2], [1.0, -1.0, -1.0], 0.0) is None
    assert equation(offsets, [4, 3], [1.0, -1.0], 0.0) is None
    assert equation(offsets, [4], [1.0], 0.1) is None  # off by 2.4e-8
    assert equation(offsets, [4], [1.0], 0.2) is not None
