"""The float64 evaluator: order, types, memory, errors, and real graphs against their runtime."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build import Builder
from normfold.errors import CannotTell, UsageError
from normfold.graph import BFLOAT16, Constant, Graph, Node
from normfold.verify import Walk, feeds, run
from normfold.verify.evaluate import stored


def chain(length: int) -> Graph:
    b = Builder()
    x = b.input("x", ("N", 3))
    for step in range(length):
        x = b.op("Tanh", x, shape=("N", 3), name=f"t{step}")
    return b.output(x)


def test_outputs_come_in_order_with_the_watched_behind() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    first, second = b.relu(x, "first"), b.op("Neg", x, shape=(2, 3), name="second")
    third = b.add(first, second, name="third")
    graph = b.output(third, first)
    x64 = np.array([[-1.0, 2.0, 3.0], [4.0, -5.0, 0.0]])
    result = run(graph, {"x": x64}, watch={"second", "x"})
    assert list(result)[:2] == ["third", "first"]
    assert set(result) == {"third", "first", "second", "x"}
    np.testing.assert_array_equal(result["third"], np.maximum(x64, 0) - x64)


def test_floats_are_widened_and_integers_are_not() -> None:
    b = Builder()
    x = b.input("x", (2,))
    n = b.graph.value("n", (2,), np.int64)
    b.graph.inputs.append(n)
    half = b.graph.constant("half", Constant(np.array([1.5, 2.5], dtype=BFLOAT16)))
    y = b.op("Mul", x, half, shape=(2,), name="y")
    m = b.op("Div", n, b.graph.constant("two", np.array([2, 2])), shape=(2,), name="m")
    result = run(b.output(y, m), {"x": np.array([1, 3], np.float32), "n": np.array([-3, 5])})
    assert result["y"].dtype == np.float64
    assert result["m"].dtype == np.int64
    np.testing.assert_array_equal(result["m"], [-1, 2])


@pytest.mark.parametrize("to", [np.float16, np.float32, BFLOAT16, np.float64])
def test_a_cast_to_a_float_type_does_not_round(to: Any) -> None:
    b = Builder()
    x = b.input("x", (3,))
    y = b.op("Cast", x, shape=(3,), name="y", to=np.dtype(to))
    values = np.array([1 / 3, 1e300, -1e-300])
    np.testing.assert_array_equal(run(b.output(y), {"x": values})["y"], values)


def test_a_cast_to_an_integer_does() -> None:
    b = Builder()
    x = b.input("x", (3,))
    y = b.op("Cast", x, shape=(3,), name="y", to=np.dtype(np.int32))
    result = run(b.output(y), {"x": np.array([1.9, -1.9, 3.0])})["y"]
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, [1, -1, 3])


def test_a_value_is_dropped_after_its_last_reader() -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0
    for _, array in Walk(chain(40), {"x": np.ones((1000, 3))}):
        alive.append(weakref.ref(array))
        del array
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= 4


def test_a_value_read_late_is_held_until_then() -> None:
    b = Builder()
    x = b.input("x", (4,))
    early = y = b.relu(x, "early")
    for step in range(5):
        y = b.op("Tanh", y, shape=(4,), name=f"t{step}")
    result = run(b.output(b.op("Sub", y, early, shape=(4,), name="y")), {"x": np.array([1.0, -2.0, 3.0, 0.5])})
    expected = kept = np.maximum([1.0, -2.0, 3.0, 0.5], 0)
    for _ in range(5):
        expected = np.tanh(expected)
    np.testing.assert_allclose(result["y"], expected - kept, rtol=1e-15)


def test_constants_can_be_replaced() -> None:
    b = Builder()
    x = b.input("x", (2, 3))
    graph = b.output(b.add(x, b.const([1, 2, 3], "c"), name="y"))
    doubled = run(graph, {"x": np.zeros((2, 3))}, constants=lambda value: stored(value) * 2)
    np.testing.assert_array_equal(doubled["y"], [[2, 4, 6]] * 2)


def test_a_constant_may_be_an_output() -> None:
    b = Builder()
    c = b.const([1, 2], "c")
    np.testing.assert_array_equal(run(b.output(b.relu(b.input("x", (1,)), "y"), c), {"x": np.ones(1)})["c"], [1, 2])


def test_captured_values_are_behind_the_inputs_of_a_fallback() -> None:
    b = Builder()
    x, k = b.input("x", (2,)), b.input("k", (2,))
    y = b.graph.value("y", (2,), np.float32)
    node = Node("If", [x], [y], captures=(k,), fallback=lambda arrays: [np.add(arrays[0], np.multiply(10, arrays[1]))])
    b.graph.append(node)
    np.testing.assert_array_equal(run(b.output(y), {"x": np.ones(2), "k": np.ones(2) * 2})["y"], [21, 21])


def test_an_op_without_evaluation_is_named() -> None:
    b = Builder()
    y = b.op("acme::Twist", b.input("x", (2,)), shape=(2,), name="twisted")
    with pytest.raises(CannotTell, match=r"acme::Twist.*twisted"):
        run(b.output(y), {"x": np.ones(2)})


def test_given_outputs_stand_for_a_node() -> None:
    b = Builder()
    y = b.op("acme::Twist", b.input("x", (2,)), shape=(2,), name="twisted")
    graph = b.output(b.relu(y, "y"))
    np.testing.assert_array_equal(run(graph, {"x": np.ones(2)}, given={"twisted": np.array([-1.0, 5.0])})["y"], [0, 5])


@pytest.mark.parametrize(
    "given, words", [({}, "x came without an array"), ({"x": np.ones((1, 3)), "z": np.ones(1)}, "z is not among")]
)
def test_feeds_must_fit_the_inputs(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(chain(1), given)


def test_feeds_are_not_written_to() -> None:
    x = np.linspace(-1, 1, 6).reshape(2, 3)
    kept = x.copy()
    x.flags.writeable = False
    run(chain(3), {"x": x})
    np.testing.assert_array_equal(x, kept)


ZOO = [
    "basic-pitch-onnx/nmp.onnx", "dtln-onnx/model_1.onnx", "dtln-onnx/model_2.onnx", "gtcrn/gtcrn.onnx",
    "gtcrn/gtcrn_simple.onnx", "onnx-light/light_shufflenet.onnx", "silero-vad/silero_vad.onnx", "ultraface/version-RFB-320.onnx",
    "ultraface/version-slim-320_without_postprocessing.onnx",
]  # fmt: skip
FAMILIES = [
    "botnet26t_256", "coatnet_nano_rw_224", "densenet121", "dpn48b", "inception_next_atto", "levit_128s", "mixnet_s",
    "mobileone_s0", "repvit_m0_9", "resnetv2_50", "swiftformer_xs", "xcit_nano_12_p16_224",
]  # fmt: skip


def agrees(model: bytes, graph: Graph, arrays: dict[str, Any], tolerance: float = 5e-5) -> None:
    """Float64 evaluation and the runtime differ by float32 rounding only."""
    from normfold.verify import OnnxRunner

    theirs, mine = OnnxRunner(model).run(arrays), run(graph, arrays)
    assert list(theirs) == list(mine)
    for name, array in theirs.items():
        assert mine[name].shape == array.shape
        if array.dtype.kind == "f":
            error = np.abs(mine[name] - array).max()
            assert error <= tolerance * max(np.sqrt(np.mean(np.square(mine[name]))), 1e-30), name
        else:
            np.testing.assert_array_equal(mine[name], array)


@pytest.mark.parametrize("name", ZOO)
def test_real_models_evaluate_as_in_their_runtime(name: str, shared: Path) -> None:
    from normfold.capture.onnx import from_onnx

    path = shared / "zoo" / name
    graph = from_onnx(path)
    example = None
    if "silero" in name:
        example = {"input": np.zeros((1, 512), np.float32), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    if "nmp" in name:
        example = {graph.inputs[0].name: np.zeros((1, 43844, 1), np.float32)}
    (feed, *_) = feeds(graph, examples=[example] if example else [], level="quick")
    agrees(path.read_bytes(), graph, feed.arrays, 5e-4 if "nmp" in name else 5e-5)  # nmp takes the log of nearly nothing


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_exported_architectures_evaluate_as_in_their_runtime(name: str, shared: Path) -> None:
    import runpy

    from normfold.capture.onnx import from_onnx

    model = runpy.run_path(str(shared / "families" / "materialise.py"))["materialise"](name)
    graph = from_onnx(model)
    agrees(model.SerializeToString(), graph, feeds(graph, level="quick")[0].arrays)
