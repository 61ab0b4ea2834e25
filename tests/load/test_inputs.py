"""Inputs that the caller describes: shapes, arrays, functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from normfold.errors import UsageError
from normfold.graph import BFLOAT16
from normfold.load.inputs import InputSpec, calls_from, parse_input, random_array, read_data


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1x3x32x32", InputSpec("", (1, 3, 32, 32), None)),
        ("image=1x3", InputSpec("image", (1, 3), None)),
        ("ids=4,16:int64", InputSpec("ids", (4, 16), np.dtype(np.int64))),
        ("a:0=2x2:float16", InputSpec("a:0", (2, 2), np.dtype(np.float16))),
        ("w=2:bfloat16", InputSpec("w", (2,), BFLOAT16)),
        ("step=:int64", InputSpec("step", (), np.dtype(np.int64))),
        ("step=", InputSpec("step", (), None)),
        ("none=0x3", InputSpec("none", (0, 3), None)),
    ],
)
def test_specs_are_read(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    "text, reason",
    [
        ("image=1xNx3", "'N' is not a size"),
        ("1x-3", "'-3' is not a size"),
        ("=1x3", "no name before"),
        ("", "is empty"),
        ("a=2:str", "'str' is not a number type"),
        ("a=2:object", "'object' is not a number type"),
        ("a=2:nonsense", "'nonsense' is not a number type"),
        ("a=100000x100000", "more than"),
        ("a=" + "99999999999x" * 40 + "9", "more than"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_input(text)


def test_random_arrays() -> None:
    rng = np.random.default_rng(0)
    floats = random_array((1000,), np.dtype(np.float32), rng)
    assert floats.dtype == np.float32
    assert abs(float(floats.mean())) < 0.2
    assert 0.8 < float(floats.std()) < 1.2
    for dtype in (np.int64, np.uint8):
        assert set(random_array((100,), np.dtype(dtype), rng).tolist()) == {0, 1}
    assert random_array((100,), np.dtype(bool), rng).dtype == bool
    assert random_array((), np.dtype(np.float64), rng).shape == ()
    assert random_array((3,), BFLOAT16, rng).dtype == BFLOAT16
    assert random_array((3,), np.dtype(np.complex64), rng).dtype == np.complex64
    twice = [parse_input("4x4").array(np.random.default_rng(0), np.dtype(np.float32)) for _ in range(2)]
    assert np.array_equal(*twice)


def test_data_by_name_and_by_position(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, np.zeros(2), np.ones(3), image=np.full(4, 2.0))
    named, positional = read_data(path)
    assert list(named) == ["image"]
    assert [array.shape for array in positional] == [(2,), (3,)]
    np.savez(path, **{f"arr_{i}": np.full(1, i) for i in range(12)})
    assert [int(array[0]) for array in read_data(path)[1]] == list(range(12))


def test_bad_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(UsageError, match="does not exist"):
        read_data(path)
    np.savez(path, arr_0=np.zeros(1), arr_2=np.zeros(1))
    with pytest.raises(UsageError, match="without a gap; got arr_0, arr_2"):
        read_data(path)
    np.savez(path, x=np.array([object()]))
    with pytest.raises(UsageError, match="pickled objects"):
        read_data(path)
    path.write_bytes(b"not a zip at all")
    with pytest.raises(UsageError, match=r"not an \.npz file"):
        read_data(path)
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(UsageError, match="single array"):
        read_data(tmp_path / "x.npy")


FUNCTIONS = """
import torch
from helper import SIZE
one = torch.ones(1)
def tensor(): return one
def args(): return one, [one, {"k": one}]
def pair(): return (one,), {"flag": True}
def named(): return {"x": one}
def several(): return [(one,), ((one,), {"flag": True}), {"x": one}]
def two_tuples(): return (one, one), (one,)
def fails(): return {}[SIZE]
def nothing(): return []
def numbered(): return {1: one}
value = 3
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("SIZE = 7\n")
    path = tmp_path / "examples.py"
    path.write_text(FUNCTIONS)
    return path


def shape(item: Any) -> Any:
    """The nesting, tensors as "t"."""
    if isinstance(item, dict):
        return {key: shape(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(shape(value) for value in item)
    return "t" if isinstance(item, torch.Tensor) else item


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tensor", [(("t",), {})]),
        ("args", [(("t", ["t", {"k": "t"}]), {})]),
        ("pair", [(("t",), {"flag": True})]),
        ("named", [((), {"x": "t"})]),
        ("several", [(("t",), {}), (("t",), {"flag": True}), ((), {"x": "t"})]),
        ("two_tuples", [((("t", "t"), ("t",)), {})]),
    ],
)
def test_functions_give_calls_of_any_nesting(functions: Path, name: str, expected: Any) -> None:
    assert [shape(call) for call in calls_from(f"{functions}:{name}")] == expected
    assert shape(calls_from(f"examples.py:{name}", functions.parent)) == expected


@pytest.mark.parametrize(
    "name, reason",
    [
        ("fails", r"failed: KeyError: 7 at examples.py:\d+"),
        ("nothing", "returned no calls"),
        ("numbered", "strings as keys; got 1"),
        ("value", "is a int; expected a function"),
        ("absent", "has no 'absent'; it has"),
    ],
)
def test_functions_that_do_not_are_refused(functions: Path, name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        calls_from(f"{functions}:{name}")
