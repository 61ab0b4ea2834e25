"""New nodes spelled for a given opset: every type of attribute, inputs that old opsets had as attributes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_spell import spell_node, split_kind
from normfold.capture.onnx_write import to_model
from normfold.errors import InputRefused
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array, Graph, Node, Value
from onnx_models import floats, info, model, run_ort


def node(kind: str, attrs: dict[str, Any], *operands: Array | None, shape: tuple[Any, ...] = (2, 3)) -> Node:
    """A node that reads x and constants."""
    graph = Graph()
    inputs: list[Value | None] = [graph.value("x", shape, np.float32)]
    inputs += [None if item is None else graph.constant("k", item) for item in operands]
    return Node(kind, inputs, [graph.value("y", shape, np.float32)], attrs)


Spelled = tuple[dict[str, Any], dict[int, Any], set[int]]


def spelled(kind: str, attrs: dict[str, Any], opset: int, *operands: Array | None) -> Spelled:
    """Attributes, inputs made of parameters, and slots that became attributes."""
    spelling = spell_node(node(kind, attrs, *operands), opset)
    attributes = {item.name: item.value for item in spelling.attributes}
    return attributes, {slot: item.tolist() for slot, item in spelling.inputs.items()}, spelling.dropped


def test_kinds_name_their_domain() -> None:
    assert split_kind("Conv") == ("", "Conv")
    assert split_kind("com.microsoft::Gelu") == ("com.microsoft", "Gelu")


@pytest.mark.parametrize(
    "kind, attrs, opset, attributes, inputs",
    [
        ("Cast", {"to": np.dtype(np.float16)}, 20, {"to": TensorProto.FLOAT16}, {}),
        ("Gemm", {"alpha": 0.5, "transB": 1}, 13, {"alpha": 0.5, "transB": 1}, {}),
        ("Resize", {"scales": (1.0, 2.0), "mode": "nearest"}, 13, {"mode": "nearest"}, {2: [1.0, 2.0]}),
        ("Resize", {"sizes": (4, 6), "mode": "linear"}, 13, {"mode": "linear"}, {3: [4, 6]}),
        ("TopK", {"k": 2, "axis": 0}, 9, {"k": 2, "axis": 0}, {}),
        ("TopK", {"k": 2, "axis": 0}, 11, {"axis": 0}, {1: [2]}),
        ("Trilu", {"k": 1, "upper": 0}, 14, {"upper": 0}, {1: 1}),
        ("Clip", {"min": 0.0}, 9, {"min": 0.0}, {}),
        ("Clip", {"min": 0.0}, 13, {}, {1: 0.0}),
        (
            "Pad",
            {"pads": (0, 1, 0, 1), "constant_value": 2.0, "mode": "constant"},
            9,
            {"pads": (0, 1, 0, 1), "value": 2.0, "mode": "constant"},
            {},
        ),
        ("Pad", {"pads": (0, 1, 0, 1), "axes": (0, 1), "mode": "edge"}, 13, {"mode": "edge"}, {1: [0, 1, 0, 1]}),
        (
            "Slice",
            {"starts": (0,), "ends": (1,), "axes": (1,), "steps": (1,)},
            9,
            {"starts": (0,), "ends": (1,), "axes": (1,)},
            {},
        ),
        ("MaxPool", {"kernel_shape": (2,), "dilations": (1,), "ceil_mode": 0}, 8, {"kernel_shape": (2,)}, {}),
        ("Softmax", {"axis": 1}, 9, {"axis": 1}, {}),
        ("BatchNormalization", {"epsilon": 0.5, "training_mode": 0}, 6, {"epsilon": 0.5, "is_test": 1}, {}),
    ],
)
def test_parameters_stand_where_the_opset_has_them(
    kind: str, attrs: dict[str, Any], opset: int, attributes: dict[str, Any], inputs: dict[int, Any]
) -> None:
    found = spelled(kind, attrs, opset)
    assert found == (attributes, inputs, set())


def test_a_parameter_that_the_node_reads_already_is_not_written_again() -> None:
    assert spelled("Reshape", {"shape": (3, 2)}, 20, np.array([3, 2])) == ({}, {}, set())
    assert spelled("Reshape", {"shape": (6,)}, 20, np.array([3, 2])) == ({}, {1: [6]}, set())


def test_inputs_that_an_old_opset_has_as_attributes_are_dropped() -> None:
    attributes, inputs, dropped = spelled("Clip", {"min": 0.0, "max": 1.0}, 9, np.float32(0), np.float32(1))
    assert (attributes, inputs, dropped) == ({"min": 0.0, "max": 1.0}, {}, {1, 2})


@pytest.mark.parametrize(
    "kind, attrs, opset, operands",
    [
        ("LayerNormalization", {"axis": -1}, 16, ()),
        ("GroupNormalization", {"num_groups": 2}, 20, ()),
        ("Resize", {"scales": (1.0, 2.0)}, 10, ()),
        ("Softmax", {"axis": 0}, 12, ()),
        ("MaxPool", {"kernel_shape": (2,), "dilations": (2,)}, 8, ()),
        ("BatchNormalization", {"training_mode": 1}, 9, ()),
        ("Pad", {"pads": (1, 1), "axes": (1,), "mode": "constant"}, 13, ()),
        ("Slice", {"starts": (0,), "ends": (4,), "axes": (1,), "steps": (2,)}, 9, ()),
        ("Clip", {}, 9, (np.float32(0),)),
        ("NoSuchOp", {}, 20, ()),
    ],
)
def test_what_the_opset_cannot_say_is_refused(kind: str, attrs: dict[str, Any], opset: int, operands: tuple[Array, ...]) -> None:
    with pytest.raises(InputRefused, match=f"opset {opset} "):
        spelled(kind, attrs, opset, *operands)


@pytest.mark.parametrize(
    "shape, attributes",
    [((4, 1, 1), {"broadcast": 1, "axis": 1}), ((6,), {"broadcast": 1, "axis": 3}), ((), {"broadcast": 1, "axis": 0})],
)
def test_broadcasting_is_asked_for_before_opset_7(shape: tuple[int, ...], attributes: dict[str, int]) -> None:
    made = node("Add", {}, floats(*shape), shape=("N", 4, 5, 6))
    spelling = spell_node(made, 6)
    assert {item.name: item.value for item in spelling.attributes} == attributes
    assert spelling.inputs[1].shape == tuple(size for size in shape if size > 1)
    assert not spell_node(node("Add", {}, floats(2, 3)), 6).attributes
    with pytest.raises(InputRefused, match="before 7 cannot spell Add"):
        spell_node(Node("Add", [made.inputs[1], made.inputs[0]], made.outputs), 6)


def test_attributes_of_ops_without_schema_are_typed_by_their_values() -> None:
    attrs = {
        "i": 3,
        "f": 2.5,
        "s": "text",
        "is": (1, 2),
        "fs": (1.5,),
        "ss": ("a", "b"),
        "none": (),
        "t": floats(2),
        "d": np.dtype(np.int8),
    }
    types = {item.name: item.type for item in spell_node(node("my::Op", attrs), 20).attributes}
    kinds = ir.AttributeType
    assert types == {
        "i": kinds.INT, "f": kinds.FLOAT, "s": kinds.STRING, "is": kinds.INTS, "fs": kinds.FLOATS, "ss": kinds.STRINGS,
        "none": kinds.INTS, "t": kinds.TENSOR, "d": kinds.INT,
    }  # fmt: skip


def test_a_tensor_attribute_is_written() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [info("x", [3])], [info("y", [3])], opset=13, ir=7)
    graph = from_onnx(proto)
    relu = graph.nodes[0]
    made = graph.value("filled", (3,), np.float32)
    graph.insert_before(relu, Node("ConstantOfShape", [], [made], {"shape": (3,), "value": np.array([-2.5], np.float32)}))
    total = graph.value("sum", (3,), np.float32)
    graph.insert_before(relu, Node("Sub", [relu.inputs[0], made], [total]))
    graph.set_input(relu, 0, total)
    data = proto_bytes(to_model(graph.validate()))
    onnx.checker.check_model(data, full_check=True)
    assert run_ort(data, {"x": np.array([-3, 0, 1], np.float32)})[0].tolist() == [0, 2.5, 3.5]
