"""The weighted union-find: contradictions, rollback, and the choice of free values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normfold.algebra.ratios import LIMIT, Ratios


def test_join_relates_values_by_the_ratio() -> None:
    ratios = Ratios(4)
    assert ratios.join(np.array([1]), np.array([2]), 3.0) is None
    assert ratios.join(np.array([2]), np.array([3]), 0.5) is None
    values = ratios.solution()
    assert values[1] == pytest.approx(3.0 * values[2])
    assert values[2] == pytest.approx(0.5 * values[3])
    assert values[0] == 1.0


def test_contradiction_names_the_pair() -> None:
    ratios = Ratios(5)
    ratios.join(np.array([1, 2, 3]), np.array([4, 4, 4]), np.array([1.0, 2.0, 3.0]))
    bad = ratios.join(np.array([1, 2]), np.array([2, 3]), np.array([0.5, 0.7]))
    assert bad is not None
    assert bad.tolist() == [False, True]


def test_a_contradiction_within_one_batch_is_found() -> None:
    ratios = Ratios(3)
    bad = ratios.join(np.array([1, 1]), np.array([2, 2]), np.array([2.0, 3.0]))
    assert bad is not None and bad.any()


def test_ratios_that_differ_by_a_float32_ulp_are_different() -> None:
    ratios = Ratios(3)
    ratios.join(np.array([1]), np.array([2]), 1.0)
    assert ratios.join(np.array([1]), np.array([2]), 1.0 + 2.0**-24) is not None
    assert ratios.join(np.array([1]), np.array([2]), 1.0 + 2.0**-50) is None


def test_rollback_forgets_everything_since_the_mark() -> None:
    ratios = Ratios(6)
    ratios.join(np.array([1]), np.array([2]), 2.0)
    mark = ratios.mark()
    ratios.join(np.array([2, 3]), np.array([3, 4]), np.array([5.0, 7.0]))
    ratios.rollback(mark)
    roots, _ = ratios.find(np.arange(6))
    assert len(set(roots[[0, 3, 4, 5]].tolist())) == 4
    assert ratios.join(np.array([1]), np.array([2]), 2.0) is None
    assert ratios.join(np.array([2]), np.array([3]), 9.0) is None


def test_extreme_and_meaningless_ratios_are_refused() -> None:
    for ratio in (0.0, np.nan, np.inf, LIMIT * 10, 0.1 / LIMIT):
        assert Ratios(3).join(np.array([1]), np.array([2]), ratio) is not None


def test_a_pinned_tree_is_fixed_and_a_free_one_ends_in_one() -> None:
    ratios = Ratios(5)
    ratios.join(np.array([1]), np.array([0]), 4.0)
    ratios.join(np.array([2]), np.array([3]), 8.0)
    values = ratios.solution()
    assert values[1] == 4.0
    assert values[3] == 1.0 and values[2] == 8.0
    assert values[4] == 1.0


def test_a_free_tree_whose_end_is_far_off_is_centred_by_a_power_of_two() -> None:
    ratios = Ratios(12)
    ratios.join(np.arange(1, 11), np.full(10, 11), 3e19)
    values = ratios.solution()
    exponent = np.log2(values[11])
    assert exponent == np.rint(exponent)
    assert 0.1 < np.exp(np.log(values[1:]).mean()) < 10


def test_the_end_of_a_free_tree_is_one_even_when_its_root_is_far_off() -> None:
    ratios = Ratios(7)
    ratios.join(np.array([1, 2, 3, 4]), np.full(4, 5), 2.0**60)
    ratios.join(np.array([6]), np.array([5]), 2.0**60)  # joins the larger tree: its root stays the odd one out
    values = ratios.solution()
    assert values[6] == 1.0 and values[1] == 1.0 and values[5] == 2.0**-60


@given(st.lists(st.tuples(st.integers(1, 19), st.integers(1, 19)), max_size=40), st.integers(0, 2**32 - 1))
def test_any_order_of_true_relations_is_consistent(pairs: list[tuple[int, int]], seed: int) -> None:
    """Relations read off true values never contradict, whatever trees they build; a false one on a known pair always does."""
    true = np.random.default_rng(seed).uniform(0.5, 2.0, 20) * np.random.default_rng(seed).choice([-1, 1], 20)
    ratios = Ratios(20)
    for batch in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
        if batch:
            a, b = np.array(batch).T
            assert ratios.join(a, b, true[a] / true[b]) is None
    values = ratios.solution(anchor=0)
    for a, b in pairs:
        assert values[a] / values[b] == pytest.approx(true[a] / true[b], rel=1e-9)
        if a != b:
            assert ratios.join(np.array([a]), np.array([b]), 1.01 * true[a] / true[b]) is not None


@pytest.mark.parametrize("factor", [49.0, 1 / 3, 0.7])
def test_what_is_pinned_is_exactly_one(factor: float) -> None:
    """49 * (1 / 49) is not 1: a graph output would be said to hold another value."""
    ratios = Ratios(40)
    ratios.join(np.arange(1, 5), np.zeros(4, dtype=np.int64))
    ratios.join(np.arange(11, 40), np.full(29, 10), 1.1)  # a larger tree, below which the pinned one hangs
    ratios.join(np.array([3]), np.array([12]), factor)
    values = ratios.solution()
    assert (values[:5] == 1.0).all() and values[12] == pytest.approx(1 / factor)


def test_a_long_chain_takes_few_rounds_in_whatever_order_it_comes() -> None:
    size = 4096
    true = np.exp2(np.random.default_rng(1).integers(-9, 10, size + 1).astype(float))
    for order in (np.arange(1, size), np.arange(1, size)[::-1], 1 + np.random.default_rng(0).permutation(size - 1)):
        ratios = Ratios(size + 1)
        assert ratios.join(order, order + 1, true[order] / true[order + 1]) is None
        assert ratios.mark() <= 12  # log2 of the length; one round a link would be 4095
        values = ratios.solution()
        assert values[1:] / values[1] == pytest.approx(true[1:] / true[1])
        ratios.rollback(0)
        assert ratios.join(np.array([1]), np.array([size]), 5.0) is None


def test_a_chain_that_leaves_the_range_on_the_way_is_refused_and_one_that_stays_is_not() -> None:
    for ratio, fits in ((2.0**100, False), (2.0**-100, False), (2.0**40, True)):
        ratios = Ratios(12)
        conflict = ratios.join(np.arange(1, 10), np.arange(2, 11), ratio)
        assert (conflict is None) == fits
        if fits:
            values = ratios.solution()
            assert values[1:10] / values[2:11] == pytest.approx(np.full(9, ratio))


def test_a_copy_is_added_to_apart() -> None:
    ratios = Ratios(5)
    ratios.join(np.array([1]), np.array([2]), 3.0)
    twin = ratios.copy()
    assert twin.join(np.array([2]), np.array([3]), 5.0) is None
    assert ratios.join(np.array([1]), np.array([3]), 1.0) is None
    assert twin.solution()[1] == pytest.approx(15.0 * twin.solution()[3])
    twin.rollback(0)
    assert twin.join(np.array([1]), np.array([2]), 9.0) is None and ratios.join(np.array([1]), np.array([2]), 9.0) is not None


def test_what_is_minus_one_stays_so() -> None:
    signs = Ratios(4)
    assert signs.join(np.array([1, 2]), np.array([0, 1]), -1.0) is None
    assert signs.solution().tolist() == [1.0, -1.0, 1.0, 1.0]
