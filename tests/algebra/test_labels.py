"""Label arrays follow layout operations: always compared with numpy on a fully spread array."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.algebra import labels as lab

CHANNELS = np.arange(1, 13).reshape(1, 12, 1, 1)


def full(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(labels, shape)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 12, 5, 5), (2, 300)),
        ((2, 12, 5, 5), (2, 12, 25)),
        ((2, 12, 5, 5), (2, 3, 4, 25)),
        ((2, 12, 5, 5), (2, 3, 4, 5, 5)),
        ((2, 12, 5, 5), (2, 12, 5, 5, 1)),
        ((2, 12, 5, 5), (1, 2, 12, 5, 5)),
        ((2, 12, 5, 5), (24, 25)),
        ((2, 12, 6, 5), (2, 24, 3, 5)),
    ],
)
def test_reshape_is_numpys_reshape(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    moved = lab.reshape(CHANNELS, before, after)
    assert moved is not None
    assert np.array_equal(full(moved, after), full(CHANNELS, before).reshape(after))


def test_reshape_follows_channels_past_symbolic_sizes() -> None:
    moved = lab.reshape(CHANNELS, ("N", 12, "H", "W"), ("N", 12, None))
    assert moved is not None and moved.shape == (1, 12, 1)
    moved = lab.reshape(np.arange(12).reshape(1, 1, 12), ("N", "T", 12), (None, 12))
    assert moved is not None and moved.shape == (1, 12)
    moved = lab.reshape(np.arange(12).reshape(1, 12), (None, 12), ("N", "T", 12))
    assert moved is not None and moved.shape == (1, 1, 12)
    moved = lab.reshape(CHANNELS, ("N", 12, 4, 4), ("N", None))
    assert moved is not None and moved.shape == (1, 192)


def test_reshape_keeps_the_order_of_what_follows_an_unknown_size() -> None:
    moved = lab.reshape(np.arange(12).reshape(1, 1, 12, 1, 1), ("N", "T", 12, 5, 6), (None, 12, 5, 6))
    assert moved is not None and moved.shape == (1, 12, 1, 1)


def test_reshape_refuses_what_it_cannot_follow() -> None:
    assert lab.reshape(CHANNELS, ("N", 12, "H", "W"), ("N", None)) is None
    assert lab.reshape(np.arange(1, 5).reshape(4, 1), (4, "N"), (None,)) is None


def test_one_label_passes_any_reshape() -> None:
    moved = lab.reshape(np.array([[7]]), ("N", None), (None, None, None))
    assert moved is not None and moved.tolist() == [[[7]]]


def test_concat_spreads_what_varies() -> None:
    one = np.array([[5]])
    joined = lab.concat([one, np.array([[1, 2]])], 1, [3, 2])
    assert joined is not None and joined.tolist() == [[5, 5, 5, 1, 2]]
    assert lab.concat([one, np.array([[1, 2]])], 1, ["C", 2]) is None
    same = lab.concat([one, one], 1, ["C", 2])
    assert same is not None and same.tolist() == [[5]]


@pytest.mark.parametrize(("start", "end", "step"), [(0, 12, 2), (3, 9, 1), (-1, -100, -1), (11, 2, -3), (0, 2**63 - 1, 1)])
def test_slice_is_numpys_slice(start: int, end: int, step: int) -> None:
    line = np.arange(12)
    cut = lab.strided(line.reshape(1, 12), 1, start, end, step)
    reference = line[start : None if end == -100 else end : step]
    assert cut.ravel().tolist() == reference.tolist()


def test_take_with_any_index_shape() -> None:
    moved = lab.take(CHANNELS, 1, np.array([[3, 1], [0, 2]]))
    assert moved.shape == (1, 2, 2, 1, 1) and moved.ravel().tolist() == [4, 2, 1, 3]
    assert lab.take(CHANNELS, 2, np.array(0)).shape == (1, 12, 1)
