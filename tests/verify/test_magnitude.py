"""The componentwise magnitude bounds what rounding can do, and is not far above it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from build import Builder
from normfold.graph import Array, Gauge, Graph
from normfold.ops.kernels import evaluate
from normfold.verify import certificate, run
from normfold.verify.evaluate import compute
from normfold.verify.magnitude import magnitude
from normfold.verify.promises import Held

RNG = np.random.default_rng(0)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Conv", [f(1, 4, 6, 6), f(6, 2, 3, 3), f(6)], {"group": 2, "pads": (1, 1, 1, 1)}),
    ("ConvTranspose", [f(1, 4, 6, 6), f(4, 3, 3, 3), f(3)], {"strides": (2, 2)}),
    ("Gemm", [f(3, 5), f(4, 5), f(4)], {"transB": 1, "alpha": -0.5, "beta": -2.0}),
    ("MatMul", [f(2, 3, 5), f(5, 4)], {}),
    ("Add", [f(3, 4), f(4)], {}),
    ("Sub", [f(3, 4), f(4)], {}),
    ("Mul", [f(3, 4), f(4)], {}),
    ("Div", [f(3, 4), f(4)], {}),
    ("Max", [f(3, 4), f(4)], {}),
    ("Min", [f(3, 4), f(4)], {}),
    ("BatchNormalization", [f(2, 3, 4), f(3), f(3), 10 * f(3), abs(f(3))], {"epsilon": 1e-3}),
    ("LayerNormalization", [f(2, 3, 8) + 100, f(8), f(8)], {"axis": -1}),
    ("RMSNormalization", [f(2, 3, 8), f(8)], {"axis": -1}),
    ("InstanceNormalization", [f(2, 3, 8) + 100, f(3), f(3)], {}),
    ("GroupNormalization", [f(2, 4, 8) + 100, f(4), f(4)], {"num_groups": 2}),
    ("LeakyRelu", [f(3, 4)], {"alpha": 50.0}),
    ("PRelu", [f(3, 4), 30 * f(4)], {}),
    ("Relu", [f(3, 4)], {}),
    ("Sigmoid", [f(3, 4)], {}),
    ("ReduceMean", [f(3, 40)], {"axes": (1,)}),
    ("AveragePool", [f(1, 2, 6, 6)], {"kernel_shape": (3, 3)}),
    ("MaxPool", [f(1, 2, 6, 6)], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}),
    ("Concat", [f(2, 3), f(2, 2)], {"axis": 1}),
    ("Where", [f(3, 4) > 0, f(3, 4), f(4)], {}),
    ("Pad", [f(3, 4)], {"pads": (1, 0, 0, 1), "constant_value": -3.0}),
    ("Softmax", [f(3, 4)], {"axis": 1}),
    ("Gather", [f(5, 4), np.array([3, 0])], {"axis": 0}),
]


def sizes_of(kind: str, arrays: list[Any], attrs: dict[str, Any]) -> tuple[Any, Array, Array]:
    b = Builder()
    y = b.op(kind, *[b.const(array) for array in arrays], shape=(), name="y", **attrs)
    node = y.producer
    results = compute(node, list(arrays))
    absolute = [np.abs(item) if item.dtype.kind == "f" else item for item in arrays]
    (size,) = magnitude(node, list(absolute), list(arrays), results)
    return node, results[0], size


@pytest.mark.parametrize("kind, arrays, attrs", CASES, ids=[case[0] for case in CASES])
def test_the_magnitude_bounds_the_result_and_its_rounding(kind: str, arrays: list[Any], attrs: dict[str, Any]) -> None:
    node, exact, size = sizes_of(kind, arrays, attrs)
    assert size.shape == exact.shape
    assert np.all(size >= np.abs(exact))
    narrow = [item.astype(np.float32) if item.dtype.kind == "f" else item for item in arrays]
    rounded = evaluate(node, narrow)[0].astype(np.float64)
    assert np.all(np.abs(rounded - exact) <= 40 * 2.0**-24 * size)


def test_what_cancels_counts() -> None:
    x = np.array([[1e6, 1.0]])
    _, y, size = sizes_of("MatMul", [x, np.array([[1.0], [-1e6]])], {})
    assert y == 0
    assert size == 2e6
    _, y, size = sizes_of("Sub", [x, x], {})
    np.testing.assert_array_equal(size, 2 * x)


def test_integers_pass_as_they_are() -> None:
    _, y, size = sizes_of("Shape", [f(2, 3)], {})
    np.testing.assert_array_equal(size, y)


def test_a_mean_that_cancels_the_input_counts() -> None:
    x, gamma, beta, mean, var = (
        np.full((1, 2, 3), 1e6),
        np.array([1.0, -2.0]),
        np.array([-3.0, 4.0]),
        np.full(2, 1e6),
        np.full(2, 4.0),
    )
    _, y, size = sizes_of("BatchNormalization", [x, gamma, beta, mean, var], {"epsilon": 0.0})
    np.testing.assert_array_equal(y[0, :, 0], beta)
    np.testing.assert_allclose(size[0, :, 0], [2e6 / 2 + 3, 2e6 / 2 * 2 + 4])


def branches(wrong: float = 1.0) -> tuple[Graph, Graph]:
    """x W1 + x W2 with W2 close to -W1, and x (W1 + W2): what one weight holds is a rest of what the sum cancelled."""
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((64, 8)).astype(np.float32)
    w2 = (-w1 * (1 + 1e-5 * rng.standard_normal(w1.shape))).astype(np.float32)
    graphs: list[Graph] = []
    for merged in (False, True):
        b = Builder()
        x = b.input("x", (3, 64))
        if merged:
            w = b.graph.derived(b.const(w1), (w1.astype(np.float64) + w2.astype(np.float64)) * wrong)
            graphs.append(b.output(b.op("MatMul", x, w, shape=(3, 8), name="sum")))
        else:
            terms = [b.op("MatMul", x, b.const(w), shape=(3, 8)) for w in (w1, w2)]
            graphs.append(b.output(b.op("Add", *terms, shape=(3, 8), name="sum")))
    return graphs[0], graphs[1]


def test_branches_that_cancel_are_merged_rightly_all_the_same() -> None:
    """The original's own sum loses more than a rewritten weight may: what an ulp does to it is granted to G1 as well."""
    feed = {"x": np.random.default_rng(1).standard_normal((3, 64))}
    found = {item.gate: item for item in certificate(*branches(), feed)}
    assert found["G1"].passed and found["certificate"].passed
    before, after = branches()
    exact = run(before, feed)["sum"] - run(after, feed)["sum"]
    assert np.abs(exact).max() > 1e-12 * (np.abs(feed["x"]) @ np.abs(after.nodes[0].inputs[1].const.float64())).max()  # type: ignore[union-attr]
    assert {item.gate for item in certificate(*branches(1 + 1e-9), feed) if not item.passed} == {"certificate", "G1"}


def test_one_element_that_moves_little_by_luck_is_granted_what_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = import_module("normfold.verify.judged")
    before, _ = branches()
    noise = np.full(8, 1e-15)
    noise[3] = 1e-18

    def judged(error: float, rows: int) -> bool:
        found = module.Judged("normal")
        found.add("certificate", "sum", 1.0, module.CERTIFICATE, "")
        held = Held(Gauge("sum", np.ones(()), np.zeros(())), np.ones((rows, 8)))
        errors = np.zeros(8)
        errors[3] = error
        found.doubt(held, (1,), errors, errors / 1e-18, (rows, 8))
        monkeypatch.setattr(module, "movement", lambda *args, **options: {("sum", (1,)): noise})
        found.reconsider(before, {}, None)
        return found.comparisons[0].passed

    assert judged(1e-14, rows=1) and not judged(1e-13, rows=1)
    assert not judged(1e-14, rows=64)  # many elements do not all move little


@pytest.mark.parametrize("later, passed", [(1e-14, True), (1e-16, False)])
def test_a_movement_that_misses_the_direction_by_luck_is_not_the_last_word(
    later: float, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first random movement is a hundred times too small; the root mean square of four is judged by."""
    module: Any = import_module("normfold.verify.judged")
    seeds: list[int] = []

    def movement(*args: Any, seed: int, **options: Any) -> dict[Any, Any]:
        seeds.append(seed)
        return {("sum", (1,)): np.full(8, later if seed else 1e-16)}

    monkeypatch.setattr(module, "movement", movement)
    found = module.Judged("normal")
    found.add("certificate", "sum", 1.0, module.CERTIFICATE, "")
    held = Held(Gauge("sum", np.ones(()), np.zeros(())), np.ones((64, 8)))
    found.doubt(held, (1,), np.full(8, 5e-14), np.full(8, 5e-11), (64, 8))
    found.reconsider(branches()[0], {}, None)
    assert found.comparisons[0].passed == passed
    assert seeds == ([0, 1] if passed else [0, 1, 2, 3])
