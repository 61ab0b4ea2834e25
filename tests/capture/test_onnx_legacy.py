"""Old opsets in today's vocabulary: attributes as promised, and the view computes what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from normfold.capture.onnx import from_onnx
from normfold.graph import Array, Node
from onnx_models import I64, F, floats, info, model, run_ort, run_view

IMAGE = (1, 4, 6, 6)
Weights = dict[str, Array]


def one(
    kind: str,
    opset: int,
    inputs: list[str],
    weights: Weights,
    shape: tuple[Any, ...] = IMAGE,
    outputs: int = 1,
    types: tuple[int, ...] = (F, I64, F),
    **attrs: Any,
) -> onnx.ModelProto:
    """A single node reading x and weights."""
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(kind, inputs, names, kind.lower(), **attrs)
    return model(
        [node],
        [info("x", shape)],
        [info(name, None, kind) for name, kind in zip(names, types, strict=False)],
        weights,
        opset=opset,
        ir=8,
    )


def view(proto: onnx.ModelProto) -> Node:
    (node,) = from_onnx(proto).validate().nodes
    return node


ints = np.array
CASES: list[tuple[str, onnx.ModelProto, str, dict[str, Any]]] = [
    (
        "pad-2",
        one("Pad", 10, ["x"], {}, pads=[0, 0, 1, 2, 0, 0, 3, 4], value=1.5),
        "Pad",
        {"pads": (0, 0, 1, 2, 0, 0, 3, 4), "constant_value": 1.5, "mode": "constant"},
    ),
    ("pad-2-reflect", one("Pad", 9, ["x"], {}, pads=[0, 0, 1, 2, 0, 0, 1, 1], mode="reflect"), "Pad", {"mode": "reflect"}),
    (
        "pad-11",
        one("Pad", 11, ["x", "p", "v"], {"p": ints([0, 0, 1, 2, 0, 0, 3, 4]), "v": np.float32(2.5)}),
        "Pad",
        {"pads": (0, 0, 1, 2, 0, 0, 3, 4), "constant_value": 2.5},
    ),
    ("pad-18", one("Pad", 18, ["x", "p", "", "a"], {"p": ints([1, 2]), "a": ints([-1])}), "Pad", {"pads": (1, 2), "axes": (3,)}),
    ("clip-6", one("Clip", 10, ["x"], {}, min=0.0, max=0.5), "Clip", {"min": 0.0, "max": 0.5}),
    ("clip-6-open", one("Clip", 6 + 1, ["x"], {}, min=-0.25), "Clip", {"min": -0.25}),
    ("clip-11", one("Clip", 11, ["x", "", "m"], {"m": np.float32(0.5)}), "Clip", {"max": 0.5}),
    ("squeeze-1", one("Squeeze", 11, ["x"], {}, axes=[0]), "Squeeze", {"axes": (0,)}),
    ("squeeze-13-all", one("Squeeze", 13, ["x"], {}), "Squeeze", {"axes": (0,)}),
    ("unsqueeze-11", one("Unsqueeze", 11, ["x"], {}, axes=[-1, 0]), "Unsqueeze", {"axes": (5, 0)}),
    ("unsqueeze-13", one("Unsqueeze", 13, ["x", "a"], {"a": ints([-1])}), "Unsqueeze", {"axes": (4,)}),
    (
        "slice-1",
        one("Slice", 9, ["x"], {}, starts=[1, -3], ends=[3, 2**31 - 1], axes=[1, -1]),
        "Slice",
        {"starts": (1, -3), "ends": (3, 2**31 - 1), "axes": (1, 3), "steps": (1, 1)},
    ),
    (
        "slice-10",
        one("Slice", 10, ["x", "s", "e"], {"s": ints([0, 1]), "e": ints([1, 3])}),
        "Slice",
        {"axes": (0, 1), "steps": (1, 1)},
    ),
    (
        "split-2",
        one("Split", 11, ["x"], {}, outputs=2, types=(F, F), axis=-1, split=[2, 4]),
        "Split",
        {"axis": 3, "split": (2, 4)},
    ),
    ("split-2-even", one("Split", 11, ["x"], {}, outputs=3, types=(F, F, F), axis=2), "Split", {"axis": 2, "split": (2, 2, 2)}),
    (
        "split-13",
        one("Split", 13, ["x", "s"], {"s": ints([1, 3])}, outputs=2, types=(F, F), axis=1),
        "Split",
        {"axis": 1, "split": (1, 3)},
    ),
    (
        "split-18",
        one("Split", 18, ["x"], {}, (1, 4, 7, 6), outputs=3, types=(F, F, F), axis=2, num_outputs=3),
        "Split",
        {"axis": 2, "split": (3, 3, 1)},
    ),
    ("reduce-sum-11", one("ReduceSum", 11, ["x"], {}, axes=[-1], keepdims=0), "ReduceSum", {"axes": (3,), "keepdims": 0}),
    ("reduce-sum-13", one("ReduceSum", 13, ["x", "a"], {"a": ints([2, 3])}), "ReduceSum", {"axes": (2, 3), "keepdims": 1}),
    ("reduce-mean-all", one("ReduceMean", 13, ["x"], {}), "ReduceMean", {"axes": (0, 1, 2, 3), "keepdims": 1}),
    ("dropout-7", one("Dropout", 9, ["x"], {}, ratio=0.3), "Dropout", {}),
    ("dropout-12", one("Dropout", 13, ["x", "r"], {"r": np.float32(0.5)}), "Dropout", {}),
    (
        "upsample-7",
        one("Upsample", 7, ["x"], {}, scales=[1.0, 1.0, 2.0, 3.0]),
        "Resize",
        {
            "mode": "nearest",
            "scales": (1.0, 1.0, 2.0, 3.0),
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
    ),
    (
        "upsample-9",
        one("Upsample", 9, ["x", "s"], {"s": np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    ),
    (
        "resize-10",
        one("Resize", 10, ["x", "s"], {"s": np.array([1, 1, 0.5, 1.5], np.float32)}),
        "Resize",
        {"mode": "nearest", "scales": (1.0, 1.0, 0.5, 1.5), "nearest_mode": "floor"},
    ),
    (
        "resize-11-sizes",
        one(
            "Resize",
            11,
            ["x", "r", "e", "s"],
            {"r": np.zeros(0, np.float32), "e": np.zeros(0, np.float32), "s": ints([1, 4, 12, 3])},
            mode="linear",
        ),
        "Resize",
        {"mode": "linear", "sizes": (1, 4, 12, 3), "coordinate_transformation_mode": "half_pixel"},
    ),
    (
        "batch-norm-7",
        one(
            "BatchNormalization",
            7,
            ["x", "g", "b", "m", "v"],
            {k: np.abs(floats(4, seed=i)) for i, k in enumerate("gbmv")},
            momentum=0.8,
        ),
        "BatchNormalization",
        {"training_mode": 0},
    ),
    ("softmax-11-last", one("Softmax", 11, ["x"], {}, axis=-1), "Softmax", {"axis": 3}),
    ("softmax-11-flat", one("Softmax", 11, ["x"], {}, axis=1), "legacy::Softmax", {"axis": 1}),
    ("softmax-11-default", one("Softmax", 11, ["x"], {}, (2, 5)), "Softmax", {"axis": 1}),
    ("softmax-11-ones", one("Softmax", 11, ["x"], {}, (2, 5, 1, 1)), "Softmax", {"axis": 1}),
    ("log-softmax-11-flat", one("LogSoftmax", 11, ["x"], {}, axis=2), "legacy::LogSoftmax", {"axis": 2}),
    ("hardmax-11-flat", one("Hardmax", 11, ["x"], {}, axis=1), "legacy::Hardmax", {"axis": 1}),
    ("softmax-13", one("Softmax", 13, ["x"], {}, axis=1), "Softmax", {"axis": 1}),
    (
        "gemm",
        one("Gemm", 9, ["x", "w", "c"], {"w": floats(5, 3), "c": floats(5)}, (2, 3), transB=1, alpha=0.5),
        "Gemm",
        {"alpha": 0.5, "beta": 1.0, "transA": 0, "transB": 1},
    ),
    (
        "conv-same",
        one("Conv", 11, ["x", "w"], {"w": floats(2, 4, 3, 2)}, auto_pad="SAME_UPPER", strides=[2, 1]),
        "Conv",
        {"pads": (0, 0, 1, 1), "strides": (2, 1), "dilations": (1, 1), "group": 1},
    ),
    (
        "conv-same-lower",
        one("Conv", 11, ["x", "w"], {"w": floats(2, 4, 3, 2)}, auto_pad="SAME_LOWER"),
        "Conv",
        {"pads": (1, 1, 1, 0)},
    ),
    ("conv-valid", one("Conv", 11, ["x", "w"], {"w": floats(2, 4, 3, 3)}, auto_pad="VALID"), "Conv", {"pads": (0, 0, 0, 0)}),
    (
        "conv-transpose",
        one("ConvTranspose", 11, ["x", "w"], {"w": floats(4, 2, 3, 3)}, strides=[2, 2], output_padding=[1, 1]),
        "ConvTranspose",
        {"output_padding": (1, 1), "pads": (0, 0, 0, 0), "group": 1},
    ),
    (
        "max-pool-same",
        one("MaxPool", 11, ["x"], {}, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
        "MaxPool",
        {"pads": (0, 0, 1, 1), "kernel_shape": (3, 3), "ceil_mode": 0},
    ),
    (
        "average-pool",
        one("AveragePool", 11, ["x"], {}, kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
        "AveragePool",
        {"count_include_pad": 1, "strides": (1, 1)},
    ),
    ("leaky-relu", one("LeakyRelu", 9, ["x"], {}), "LeakyRelu", {"alpha": float(np.float32(0.01))}),
    ("transpose", one("Transpose", 9, ["x"], {}), "Transpose", {"perm": (3, 2, 1, 0)}),
    ("flatten", one("Flatten", 11, ["x"], {}, axis=-2), "Flatten", {"axis": 2}),
    ("concat", one("Concat", 11, ["x", "x"], {}, axis=-3), "Concat", {"axis": 1}),
    ("gather", one("Gather", 11, ["x", "i"], {"i": ints([1, -1])}, axis=-1), "Gather", {"axis": 3}),
    ("cast", one("Cast", 9, ["x"], {}, types=(TensorProto.DOUBLE,), to=TensorProto.DOUBLE), "Cast", {"to": np.dtype(np.float64)}),
    (
        "layer-norm",
        one("LayerNormalization", 17, ["x", "s"], {"s": floats(6)}),
        "LayerNormalization",
        {"axis": 3, "epsilon": float(np.float32(1e-5))},
    ),
    (
        "group-norm-21",
        one("GroupNormalization", 21, ["x", "s", "b"], {"s": floats(4), "b": floats(4)}, num_groups=2),
        "GroupNormalization",
        {"num_groups": 2},
    ),
    ("tile", one("Tile", 9, ["x", "r"], {"r": ints([1, 2, 1, 1])}), "Tile", {"repeats": (1, 2, 1, 1)}),
    ("expand", one("Expand", 9, ["x", "s"], {"s": ints([2, 4, 6, 6])}), "Expand", {"shape": (2, 4, 6, 6)}),
    ("top-k-1", one("TopK", 9, ["x"], {}, outputs=2, k=2), "TopK", {"k": 2}),
    ("top-k-10", one("TopK", 11, ["x", "k"], {"k": ints([2])}, outputs=2, axis=1), "TopK", {"k": 2, "axis": 1}),
    ("prelu", one("PRelu", 9, ["x", "s"], {"s": floats(4, 1, 1)}), "PRelu", {}),
]


@pytest.mark.parametrize("proto, kind, attrs", [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_old_spellings_in_todays_vocabulary(proto: onnx.ModelProto, kind: str, attrs: dict[str, Any]) -> None:
    graph = from_onnx(proto).validate()
    (node,) = graph.nodes
    assert node.kind == kind
    assert {key: node.attrs.get(key) for key in attrs} == attrs
    feeds = {"x": floats(*(size for size in graph.inputs[0].shape or ()), seed=9)}
    expected = run_ort(proto, feeds)
    for found, wanted in zip(run_view(graph, feeds), expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_what_equals_its_default_is_left_out() -> None:
    node = view(one("MaxPool", 11, ["x"], {}, kernel_shape=[2, 2], auto_pad="NOTSET", storage_order=0))
    assert set(node.attrs) == {"kernel_shape", "strides", "pads", "dilations", "ceil_mode"}
    assert set(view(one("Conv", 11, ["x", "w"], {"w": floats(2, 4, 3, 3)}, kernel_shape=[3, 3])).attrs) == {
        "strides",
        "pads",
        "dilations",
        "group",
    }


def test_auto_pad_stays_where_the_size_is_not_known() -> None:
    weights = {"w": floats(2, 4, 3, 3)}
    node = view(one("Conv", 11, ["x", "w"], weights, ("N", 4, "H", "W"), auto_pad="SAME_UPPER", strides=[2, 2]))
    assert node.attrs["auto_pad"] == "SAME_UPPER"
    assert "pads" not in node.attrs
    node = view(one("Conv", 11, ["x", "w"], weights, ("N", 4, "H", "W"), auto_pad="SAME_UPPER"))  # stride 1: no size needed
    assert node.attrs["pads"] == (1, 1, 1, 1)


def test_a_transposed_convolution_with_an_output_shape_keeps_it() -> None:
    node = view(one("ConvTranspose", 11, ["x", "w"], {"w": floats(4, 2, 3, 3)}, strides=[2, 2], output_shape=[12, 12]))
    assert node.attrs["output_shape"] == (12, 12)
    assert "pads" not in node.attrs


@pytest.mark.parametrize(
    "opset, attrs, outputs, kind, training",
    [
        (6, {"is_test": 1}, 1, "BatchNormalization", 0),
        (6, {}, 1, "BatchNormalization", 1),
        (7, {"spatial": 0}, 1, "legacy::BatchNormalization", None),
        (9, {}, 3, "BatchNormalization", 1),
        (14, {"training_mode": 1}, 3, "BatchNormalization", 1),
        (14, {"momentum": 0.5}, 1, "BatchNormalization", 0),
    ],
)
def test_batch_normalization_in_training_mode_is_told_in_every_opset(
    opset: int, attrs: dict[str, Any], outputs: int, kind: str, training: int | None
) -> None:
    weights = {key: np.abs(floats(4)) for key in "gbmv"}
    node = view(one("BatchNormalization", opset, ["x", *"gbmv"], weights, outputs=outputs, **attrs))
    assert node.kind == kind
    assert node.attrs.get("training_mode") == training
    assert ("momentum" in node.attrs) == (training == 1 and "momentum" in attrs)


def test_dropout_that_drops_or_shows_its_mask_is_opaque() -> None:
    assert view(one("Dropout", 13, ["x", "", "t"], {"t": np.array(True)})).kind == "legacy::Dropout"
    assert view(one("Dropout", 13, ["x", "", "t"], {"t": np.array(False)})).kind == "Dropout"
    masked = one("Dropout", 10, ["x"], {}, outputs=2)
    assert view(masked).kind == "legacy::Dropout"
    found = run_view(from_onnx(masked), {"x": floats(*IMAGE)})
    np.testing.assert_array_equal(found[0], floats(*IMAGE))
    assert found[1].all()


@pytest.mark.parametrize(
    "shape, attrs, kind",
    [
        (IMAGE, {}, "Add"),
        ((6,), {"broadcast": 1}, "Add"),
        ((6, 6), {"broadcast": 1, "axis": 2}, "Add"),
        ((4,), {"broadcast": 1, "axis": 1}, "legacy::Add"),
        ((1,), {"broadcast": 1, "axis": 1}, "Add"),
    ],
)
def test_broadcasting_before_opset_7(shape: tuple[int, ...], attrs: dict[str, int], kind: str) -> None:
    node = view(one("Add", 6, ["x", "b"], {"b": floats(*shape)}, **attrs))
    assert node.kind == kind
    assert set(node.attrs) == (set() if kind == "Add" else {"broadcast", "axis"})


def test_other_forms_without_a_twin_are_opaque() -> None:
    assert view(one("PRelu", 6, ["x", "s"], {"s": floats(4)})).kind == "legacy::PRelu"
    assert view(one("PRelu", 6, ["x", "s"], {"s": floats(1)})).kind == "PRelu"
    grouped = one("GroupNormalization", 18, ["x", "s", "b"], {"s": floats(2), "b": floats(2)}, num_groups=2)
    assert view(grouped).kind == "legacy::GroupNormalization"
    assert view(one("Cast", 9, ["x"], {}, to=TensorProto.STRING)).kind == "legacy::Cast"
    assert view(one("Cast", 5, ["x"], {}, to="FLOAT16")).attrs["to"] == np.float16
    dynamic = model(
        [helper.make_node("Upsample", ["x", "s"], ["y"])], [info("x", IMAGE), info("s", [4])], [info("y", None)], opset=9, ir=8
    )
    assert view(dynamic).kind == "legacy::Upsample"


def test_parameters_computed_at_run_time_are_no_attributes() -> None:
    proto = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"]), helper.make_node("Clip", ["y", "", "m"], ["z"])],
        [info("x", [2, 3]), info("s", [2], I64), info("m", [], F)],
        [info("z", None)],
    )
    reshape, clip = from_onnx(proto).nodes
    assert reshape.attrs == {}
    assert clip.attrs == {}
    assert clip.inputs[1] is None
