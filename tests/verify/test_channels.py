"""Reducing to channels, and naming them."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.verify.channels import channel_axis, finite_pattern, largest, named, varying_axes


def test_channels_run_along_axis_one_or_the_only_one() -> None:
    assert [channel_axis(rank) for rank in range(5)] == [(), (0,), (1,), (1,), (1,)]


def test_axes_along_which_a_gauge_varies() -> None:
    assert varying_axes(4, np.ones((8, 1, 1)), np.zeros(())) == (1,)
    assert varying_axes(4, np.ones((1, 2, 1, 5)), np.ones(5)) == (1, 3)
    assert varying_axes(3, np.ones(()), np.zeros((1, 1, 1))) == ()


def test_the_largest_of_each_channel() -> None:
    array = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(largest(array, (1,)), [7, 9, 11])
    np.testing.assert_array_equal(largest(array, (0, 1)), [1, 3, 5, 7, 9, 11])
    np.testing.assert_array_equal(largest(array, ()), [11])
    np.testing.assert_array_equal(largest(np.zeros((0, 3)), (1,)), [0])


def test_nan_is_the_largest_of_all() -> None:
    assert largest(np.array([[1.0, np.nan], [2.0, 3.0]]), (1,)).tolist() == [2.0, np.inf]


@pytest.mark.parametrize(
    "shape, keep, place, name",
    [
        ((2, 8, 5), (1,), 3, "channel 3"),
        ((2, 8, 5), (2,), 4, "channel 4 of axis 2"),
        ((8,), (0,), 3, "channel 3"),
        ((2, 3, 4), (1, 2), 6, "channel (1, 2) of axes (1, 2)"),
        ((), (), 0, ""),
        ((0,), (0,), 0, ""),
    ],
)
def test_names_of_channels(shape: tuple[int, ...], keep: tuple[int, ...], place: int, name: str) -> None:
    assert named(shape, keep, place) == name


def test_patterns_of_nan_and_inf() -> None:
    a = np.array([1.0, np.nan, np.inf, -np.inf])
    assert finite_pattern(a, a.copy()) is None
    assert finite_pattern(a, np.array([5.0, np.nan, np.inf, -np.inf])) is None
    found = finite_pattern(a, np.array([np.nan, np.nan, -np.inf, -np.inf]))
    assert found is not None
    assert (found.count, found.where) == (2, "NaN or Inf differ in 2 elements, first at (0,)")
