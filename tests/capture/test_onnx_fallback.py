"""Nodes without a kernel, evaluated by onnx's reference in float64, or said not to be."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_fallback import fallback_for
from normfold.errors import CannotTell
from normfold.graph import Node
from onnx_models import floats, info, model, run_ort


def only(kind: str, opset: int, weights: dict[str, np.ndarray], shape: tuple[int, ...] = (1, 4, 3), **attrs: object) -> Node:
    """The node of a model that reads x and weights."""
    node = helper.make_node(kind, ["x", *weights], ["y"], **attrs)
    (found,) = from_onnx(model([node], [info("x", shape)], [info("y", None)], weights, opset=opset, ir=8)).nodes
    return found


def test_floats_stay_float64_and_integers_integers() -> None:
    node = only("Round", 20, {})
    assert node.fallback is not None
    x = np.array([[0.5 + 1e-12]])
    (found,) = node.fallback([x])
    assert (found.dtype, found.item()) == (np.float64, 1.0)
    (found,) = node.fallback([x.astype(np.float32)])
    assert (found.dtype, found.item()) == (np.float32, 0.0)


def test_an_absent_input_is_absent() -> None:
    node = helper.make_node("Clip", ["x", "", "m"], ["y"])
    (found,) = from_onnx(model([node], [info("x", [3])], [info("y", [3])], {"m": np.float32(1)})).nodes
    assert found.fallback is not None
    assert found.fallback([np.array([-5.0, 0.5, 5.0]), None, np.array(1.0)])[0].tolist() == [-5, 0.5, 1]


def test_what_the_reference_would_compute_wrongly_has_no_evaluation() -> None:
    assert only("BatchNormalization", 7, {key: np.abs(floats(4, 3)) for key in "gbmv"}, spatial=0).fallback is None
    assert only("PRelu", 6, {"s": floats(4)}).fallback is None
    assert only("GroupNormalization", 18, {"s": floats(2), "b": floats(2)}, num_groups=2).fallback is None
    assert only("Resize", 10, {"s": np.array([1, 1, 2], np.float32)}).fallback is None
    assert only("Upsample", 9, {"s": np.array([1, 1, 2], np.float32)}).fallback is None


def test_a_failing_reference_says_so() -> None:
    node = only("Det", 11, {}, (2, 3))
    assert node.fallback is not None
    with pytest.raises(CannotTell, match=r"onnx\.reference cannot evaluate Det"):
        node.fallback([np.zeros((2, 3))])


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
def test_old_softmax_over_several_axes(kind: str) -> None:
    proto = model([helper.make_node(kind, ["x"], ["y"], axis=1)], [info("x", [2, 3, 4])], [info("y", [2, 3, 4])], opset=11, ir=6)
    (node,) = from_onnx(proto).nodes
    x = floats(2, 3, 4)
    assert node.fallback is not None
    np.testing.assert_allclose(node.fallback([x.astype(np.float64)])[0], run_ort(proto, {"x": x})[0], rtol=1e-5, atol=1e-6)
    assert node.fallback([np.zeros((0, 3, 4))])[0].shape == (0, 3, 4)


def test_custom_ops_have_no_evaluation() -> None:
    node = only("Round", 20, {})
    node.origin.domain = "mine"
    assert fallback_for(node, node.origin, 20, []) is None
