"""The smallest reasons for a contradiction: chains of equalities, sets of equations."""

from __future__ import annotations

import numpy as np

from normfold.algebra.conflict import Links, Rows, contradiction


def links(*pairs: tuple[int, int]) -> Links:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    return Links(a, b, np.arange(len(pairs)))


def rows(tag: int, *equations: tuple[list[int], list[float], float]) -> Rows:
    terms, coefs, rhs = zip(*equations, strict=True)
    return Rows(np.array(terms), np.array(coefs, dtype=float), np.array(rhs, dtype=float), np.full(len(equations), tag))


def test_the_shortest_chain_is_found_from_either_side() -> None:
    net = links((1, 2), (2, 3), (3, 4), (4, 5), (1, 6), (6, 5))
    assert net.chain(1, (5,)) == [(4, 6), (5, 5)]
    assert net.chain(5, (1,)) == [(5, 6), (4, 1)]
    assert net.chain(1, (1,)) == []
    assert net.chain(1, (7,)) is None


def test_no_chain_leads_through_the_pinned_label() -> None:
    net = links((1, 0), (0, 2))
    assert net.chain(1, (2,)) is None
    assert net.chain(1, (0,)) == [(0, 0)]


def test_only_the_equations_that_are_needed_are_named() -> None:
    zeros = rows(7, ([3], [1.0], 0.0))
    idle = rows(8, ([5], [1.0], 0.0), ([6], [1.0], 0.0))
    ties = rows(9, ([1, 3], [1.0, -1.0], 0.0), ([1, 5], [1.0, -2.0], 0.0))
    wish = rows(0, ([1, 0], [1.0, -1.0], 1.0))
    found = contradiction([zeros, ties, idle], wish)
    assert found in ([(9, [1, 3]), (7, [3])], [(7, [3]), (9, [1, 3])], [(9, [1, 5]), (8, [5])], [(8, [5]), (9, [1, 5])])


def test_two_pinned_ends_need_no_equation_and_a_free_one_has_none() -> None:
    assert contradiction([], rows(0, ([0, 0], [1.0, -1.0], 2.0))) == []
    assert contradiction([rows(1, ([2], [1.0], 0.0))], rows(0, ([1, 0], [1.0, -1.0], 2.0))) is None


def test_a_wish_that_agrees_is_not_contradicted() -> None:
    made = rows(1, ([1, 2], [1.0, -1.0], 2.0))
    assert contradiction([made, rows(2, ([2], [1.0], 0.0))], rows(0, ([1, 0], [1.0, -1.0], 2.0))) is None
    assert contradiction([made, rows(2, ([2], [1.0], 0.0))], rows(0, ([1, 0], [1.0, -1.0], 3.0))) is not None
