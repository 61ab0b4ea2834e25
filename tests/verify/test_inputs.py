"""Input families, sizes of dynamic dimensions, and the user's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build import Builder
from normfold.errors import UsageError
from normfold.graph import BFLOAT16, Array, Graph
from normfold.verify import FAMILIES, bindings, feeds, make, read_data
from normfold.verify.sizes import size_of


def graph_of(*inputs: tuple[str, Any, Any]) -> Graph:
    b = Builder()
    for name, shape, dtype in inputs:
        b.graph.inputs.append(b.graph.value(name, shape, dtype))
    return b.graph


IMAGE = ("x", ("N", 16, "H", "W"), np.float32)


def array_of(family: Any, shape: tuple[int, ...] = (2, 16, 9, 9), dtype: Any = np.float32) -> Array:
    return make(graph_of(("x", shape, dtype)), family).arrays["x"]


def test_there_are_seven_families() -> None:
    assert set(FAMILIES) == {"normal", "uniform", "large", "constant", "zero", "denormal", "spread"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BFLOAT16])
def test_every_family_is_finite_in_every_type_and_repeatable(family: Any, dtype: Any) -> None:
    array = array_of(family, dtype=dtype)
    assert array.dtype == dtype
    assert np.all(np.isfinite(array.astype(np.float64)))
    np.testing.assert_array_equal(array, array_of(family, dtype=dtype))


def test_what_the_families_are() -> None:
    assert abs(array_of("normal").mean()) < 0.1
    assert 0.9 < array_of("normal").std() < 1.1
    assert array_of("uniform").min() >= 0
    assert array_of("uniform").max() < 1
    assert 900 < array_of("large").std() < 1100
    assert len(np.unique(array_of("constant"))) == 1
    assert array_of("constant").max() > 0
    assert not array_of("zero").any()
    tiny = np.abs(array_of("denormal"))
    assert 0 < tiny.max() < np.finfo(np.float32).tiny
    half = np.abs(array_of("denormal", dtype=np.float16)).max()
    assert 0 < half < 6.2e-5


@pytest.mark.parametrize("shape, axis", [((4, 16, 9, 9), 1), ((64, 16), 1), ((3, 16, 50), 1)])
def test_spread_gives_channels_sizes_of_their_own(shape: tuple[int, ...], axis: int) -> None:
    array = array_of("spread", shape)
    sizes = array.std(axis=tuple(i for i in range(len(shape)) if i != axis))
    assert sizes.max() / sizes.min() > 100


def test_seeds_and_inputs_differ() -> None:
    graph = graph_of(("a", (4, 4), np.float32), ("b", (4, 4), np.float32))
    one, two = make(graph, "normal", seed=0), make(graph, "normal", seed=1)
    assert not np.array_equal(one.arrays["a"], two.arrays["a"])
    assert not np.array_equal(one.arrays["a"], one.arrays["b"])


def test_integers_come_from_the_range_that_is_told_or_shown() -> None:
    graph = graph_of(("ids", (50, 4), np.int32), ("x", (2,), np.float32))
    example = {"ids": np.array([[3, 5]]), "x": np.zeros(2, np.float32)}
    shown = make(graph, "normal", example=example).arrays["ids"]
    assert shown.dtype == np.int32
    assert set(np.unique(shown)) == {3, 4, 5}
    told = make(graph, "normal", example=example, ranges={"ids": 7}).arrays["ids"]
    assert set(np.unique(told)) == set(range(7))
    assert set(np.unique(make(graph, "normal", ranges={"ids": (5, 7)}).arrays["ids"])) == {5, 6}
    assert set(np.unique(make(graph, "normal").arrays["ids"])) == {0, 1}
    assert set(np.unique(make(graph, "zero", example=example).arrays["ids"])) == {3}
    assert set(np.unique(make(graph, "constant", example=example).arrays["ids"])) == {5}


def test_bools() -> None:
    graph = graph_of(("mask", (64,), np.bool_))
    assert set(np.unique(make(graph, "normal").arrays["mask"])) == {False, True}
    assert not make(graph, "zero").arrays["mask"].any()
    assert make(graph, "constant").arrays["mask"].all()


def test_sizes_without_an_example_are_small_and_distinct() -> None:
    first, second = bindings(graph_of(IMAGE))
    assert first == {"N": 1, "H": 32, "W": 33}
    assert second == {"N": 3, "H": 33, "W": 35}


def test_sizes_come_from_the_example_and_change_in_the_second_choice() -> None:
    first, second = bindings(graph_of(IMAGE), {"x": np.zeros((4, 16, 10, 11))})
    assert first == {"N": 4, "H": 10, "W": 11}
    assert second == {"N": 1, "H": 11, "W": 13}
    assert second["H"] % 2 == second["W"] % 2 == 1


def test_sizes_that_the_caller_gives_stay() -> None:
    first, second = bindings(graph_of(IMAGE), sizes={"H": 12, "W": 12})
    assert (first["H"], first["W"], second["H"], second["W"]) == (12, 12, 12, 12)
    assert first["N"] != second["N"]


def test_unnamed_dynamic_sizes_are_bound_by_their_place() -> None:
    graph = graph_of(("x", (None, 3), np.float32))
    assert bindings(graph) == [{"x:0": 1}, {"x:0": 3}]
    assert make(graph, "normal", {"x:0": 5}).arrays["x"].shape == (5, 3)


def test_a_graph_without_symbols_has_one_choice() -> None:
    assert bindings(graph_of(("x", (1, 3), np.float32))) == [{}]


def test_a_symbol_is_one_size_in_all_inputs() -> None:
    graph = graph_of(("a", ("N", "T"), np.float32), ("b", ("N", "2*T + 1"), np.float32))
    feed = make(graph, "normal", bindings(graph)[1])
    assert feed.arrays["a"].shape == (3, 9)
    assert feed.arrays["b"].shape == (3, 19)


@pytest.mark.parametrize(
    "text, size",
    [("N", 5), ("2*N", 10), ("N//2 + 1", 3), ("N - 1", 4), ("M", None), ("N**2", None), ("f(N)", None), ("N N", None)],
)
def test_sizes_of_expressions(text: str, size: int | None) -> None:
    assert size_of(text, {"N": 5}) == size


def test_what_is_not_known_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"axis 0 of input 'x' is f\(N\).*--input"):
        make(graph_of(("x", ("f(N)",), np.float32)), "normal", {"N": 3})
    with pytest.raises(UsageError, match="rank of input 'x'"):
        make(graph_of(("x", None, np.float32)), "normal")
    with pytest.raises(UsageError, match="not a tensor of numbers"):
        make(graph_of(("x", (3,), None)), "normal")
    shown = make(graph_of(("x", ("f(N)",), np.float32)), "normal", example={"x": np.zeros(4, np.float32)})
    assert shown.arrays["x"].shape == (4,)


def test_the_order_of_feeds_puts_the_telling_ones_first() -> None:
    data = {"x": np.ones((2, 16, 8, 8), np.float32)}
    labels = [feed.label for feed in feeds(graph_of(IMAGE), data=[data])]
    assert labels[:4] == ["data", "normal", "spread", "normal (N=1, H=9, W=9)"]
    assert set(labels[4:]) == {"zero", "large", "constant", "uniform", "denormal"}
    assert [feed.label for feed in feeds(graph_of(IMAGE), level="quick")] == ["normal", "spread"]


def test_data_is_taken_as_it_is_and_gives_the_sizes() -> None:
    data = {"x": np.full((2, 16, 8, 8), 3.5, np.float32)}
    first, second, *_ = feeds(graph_of(IMAGE), data=[data])
    np.testing.assert_array_equal(first.arrays["x"], data["x"])
    assert second.arrays["x"].shape == (2, 16, 8, 8)


def test_data_files(tmp_path: Path) -> None:
    graph = graph_of(("x", (1, 3), np.float32), ("n", (), np.int64))
    np.savez(tmp_path / "one.npz", x=np.ones((1, 3)), n=np.array(3))
    (feed,) = read_data(tmp_path / "one.npz", graph)
    assert feed["x"].dtype == np.float32
    assert feed["n"] == 3
    np.savez(tmp_path / "order.npz", np.ones((1, 3)), np.array(4))
    assert read_data(tmp_path / "order.npz", graph)[0]["n"] == 4


def test_a_data_file_of_many_samples_is_many_feeds(tmp_path: Path) -> None:
    graph = graph_of(("x", (2, 3), np.float32), ("y", (2,), np.int64))
    np.savez(tmp_path / "x.npz", x=np.arange(18.0).reshape(6, 3), y=np.arange(6))
    found = read_data(tmp_path / "x.npz", graph)
    assert [feed["y"].tolist() for feed in found] == [[0, 1], [2, 3], [4, 5]]
    np.savez(tmp_path / "bad.npz", x=np.arange(18.0).reshape(6, 3), y=np.arange(2))
    with pytest.raises(UsageError, match="1 and 3 samples"):
        read_data(tmp_path / "bad.npz", graph)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"z": np.ones((1, 3))}, "holds z; the inputs are x"),
        ({"x": np.ones((1, 4))}, "'x' is 1x4, the input is 1x3"),
        ({}, "holds nothing"),
    ],
)
def test_a_data_file_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Array], words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError, match=words):
        read_data(tmp_path / "x.npz", graph_of(("x", (1, 3), np.float32)))
