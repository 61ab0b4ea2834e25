"""ONNX -> view: names, shapes, constants, contracts, sub-graphs, functions, module paths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_wire import FileTensor
from normfold.graph import Graph, to_text
from normfold.record import Record
from onnx_models import I64, F, conv_bn, floats, info, model, run_ort, run_view

GOLDEN = """\
graph g(%x: float32[N, 3, 8, 8]) {
  %c: float32[N, 4, 8, 8] = Conv(%x, @stem.conv.weight:float32[4, 3, 3, 3]) \
{dilations=[1, 1], group=1, pads=[1, 1, 1, 1], strides=[1, 1]}  # stem.conv
  %n: float32[N, 4, 8, 8] = BatchNormalization(%c, @stem.bn.weight:float32[4], @stem.bn.bias:float32[4], \
@stem.bn.running_mean:float32[4], @stem.bn.running_var:float32[4]) {epsilon=0.001, training_mode=0}  # stem.bn
  %y: float32[N, 4, 8, 8] = Relu(%n)
  return %y
}
"""


def test_the_text_of_a_small_graph() -> None:
    assert to_text(from_onnx(conv_bn()).validate()) == GOLDEN


def test_a_path_a_message_and_an_ir_model_give_the_same_view(tmp_path: Path) -> None:
    proto = conv_bn()
    before = proto.SerializeToString()
    onnx.save(proto, tmp_path / "m.onnx")
    texts = {to_text(from_onnx(item)) for item in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), proto, ir.from_proto(proto))}
    assert texts == {GOLDEN}
    assert proto.SerializeToString() == before


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    big = floats(64, 64)
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        [info("x", ["N", 64])],
        [info("y", None)],
        {"w": big, "b": floats(64)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    graph = from_onnx(tmp_path / "m.onnx")
    w, b = (node.inputs[1] for node in graph.nodes)
    assert isinstance(w.origin.const_value, FileTensor)
    assert w.origin.const_value.inline
    assert not isinstance(b.origin.const_value, FileTensor)
    (tmp_path / "m.onnx").unlink()  # the open file is what counts
    assert np.array_equal(w.const.read(), big)
    assert w.const.read() is not w.const.read()
    assert (w.const.shape, w.const.dtype, w.const.nbytes) == ((64, 64), np.float32, 64 * 64 * 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.bool_, np.uint16])
def test_weights_of_every_type_are_read_from_the_file(tmp_path: Path, dtype: type) -> None:
    array = (np.arange(4096) % 7).astype(dtype).reshape(64, 64)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = model([helper.make_node("Identity", ["w"], ["y"])], [], [info("y", [64, 64], kind)], {"w": array})
    onnx.save(proto, tmp_path / "m.onnx")
    value = from_onnx(tmp_path / "m.onnx").nodes[0].inputs[0]
    assert value.dtype == dtype
    assert np.array_equal(value.const.read(), array)


def test_packed_and_bfloat16_weights_are_read_from_the_file(tmp_path: Path) -> None:
    int4 = helper.make_tensor("w", TensorProto.INT4, [64, 64], np.arange(4096) % 7)
    half = helper.make_tensor("h", TensorProto.BFLOAT16, [64, 64], np.arange(4096, dtype=np.float32) % 9)
    raw = numpy_helper.from_array(numpy_helper.to_array(int4), "w")
    proto = model(
        [helper.make_node("Identity", ["w"], ["y"]), helper.make_node("Identity", ["h"], ["z"])],
        [],
        [info("y", [64, 64], TensorProto.INT4), info("z", [64, 64], TensorProto.BFLOAT16)],
        opset=21,
        ir=10,
    )
    proto.graph.initializer.extend([raw, numpy_helper.from_array(numpy_helper.to_array(half), "h")])
    onnx.save(proto, tmp_path / "m.onnx")
    w, h = (node.inputs[0] for node in from_onnx(tmp_path / "m.onnx").nodes)
    assert isinstance(w.origin.const_value, FileTensor)
    assert np.array_equal(w.const.read().astype(int).ravel(), np.arange(4096) % 7)
    assert np.array_equal(h.const.float64().ravel(), np.arange(4096) % 9)


def test_external_data_is_read_where_it_lies(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, 64])], [info("y", [1, 64])], {"w": floats(64, 64)}
    )
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    for source, folder in ((tmp_path / "m.onnx", None), (onnx.load(tmp_path / "m.onnx", load_external_data=False), tmp_path)):
        value = from_onnx(source, folder=folder).nodes[0].inputs[1]
        assert isinstance(value.origin.const_value, FileTensor)
        assert not value.origin.const_value.inline
        assert np.array_equal(value.const.read(), floats(64, 64))


def test_every_form_of_constant_becomes_a_constant() -> None:
    forms = {
        "value": numpy_helper.from_array(floats(2)),
        "value_float": 1.5,
        "value_floats": [1.5, 2.5],
        "value_int": 3,
        "value_ints": [3, 4],
        "value_string": "s",
        "value_strings": ["s", "t"],
    }
    nodes = [helper.make_node("Constant", [], [name], **{name: value}) for name, value in forms.items()]
    outputs = [
        info("x2", None),
        *(info(name, None, I64 if "int" in name else TensorProto.STRING if "string" in name else F) for name in forms),
    ]
    graph = from_onnx(model([*nodes, helper.make_node("Relu", ["value"], ["x2"])], [], outputs)).validate()
    assert [node.kind for node in graph.nodes] == ["Relu"]
    held = {value.name: value for value in graph.outputs[1:]}
    assert all(value.const is not None for value in held.values())
    assert np.array_equal(held["value"].const.read(), floats(2))
    assert held["value_float"].const.read() == np.float32(1.5)
    assert held["value_floats"].const.read().tolist() == [1.5, 2.5]
    assert held["value_int"].const.read() == 3
    assert held["value_ints"].const.read().tolist() == [3, 4]
    assert held["value_strings"].const.read().tolist() == [b"s", b"t"]
    assert held["value_string"].dtype is None


def test_sparse_constants_and_initializers_are_dense_to_the_view() -> None:
    values = numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "s")
    indices = numpy_helper.from_array(np.array([1, 5], np.int64), "i")
    sparse = helper.make_sparse_tensor(values, indices, [2, 3])
    proto = model(
        [helper.make_node("Constant", [], ["k"], sparse_value=sparse), helper.make_node("Add", ["s", "k"], ["y"])],
        [],
        [info("y", [2, 3])],
    )
    proto.graph.sparse_initializer.append(sparse)
    before = proto.SerializeToString()
    s, k = from_onnx(proto).nodes[0].inputs
    assert s.const.read().tolist() == k.const.read().tolist() == [[0, 5, 0], [0, 0, 7]]
    assert proto.SerializeToString() == before


# ---- initializers that are also inputs ---------------------------------------------------------------------------------


def _pinned(proto: onnx.ModelProto, record: Record, *, keep: bool = False) -> set[str]:
    graph = from_onnx(proto, keep_overridable=keep, record=record).validate()
    assert [value.name for value in graph.inputs] == ["x"]
    return {value.name for value in graph.pinned}


def test_initializers_that_are_all_listed_as_inputs_are_constants_and_it_is_said_once() -> None:
    names = [item.name for item in conv_bn().graph.initializer]
    record = Record()
    assert _pinned(conv_bn(listed=names), record) == set()
    assert len(record.warnings) == 1
    assert "listed as graph inputs" in record.warnings[0]


def test_initializers_of_which_some_are_listed_are_overridable_and_pinned() -> None:
    record = Record()
    assert _pinned(conv_bn(listed=["stem.bn.weight"]), record) == {"stem.bn.weight"}
    assert not record.warnings


def test_keep_overridable_pins_all_that_are_listed() -> None:
    names = [item.name for item in conv_bn().graph.initializer]
    assert _pinned(conv_bn(listed=names), Record(), keep=True) == set(names)


def test_an_overridable_parameter_is_not_static() -> None:
    proto = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"]), helper.make_node("Reshape", ["y", "t"], ["z"])],
        [info("x", [2, 3])],
        [info("z", None)],
        {"s": np.array([3, 2]), "t": np.array([6])},
        listed=["s"],
    )
    first, second = from_onnx(proto).nodes
    assert "shape" not in first.attrs
    assert second.attrs["shape"] == (6,)


# ---- sub-graphs, functions, custom ops ---------------------------------------------------------------------------------


def _nested() -> onnx.ModelProto:
    """An If in an If: the inner branch reads `r`, an initializer and the graph input of the main graph."""
    deep = helper.make_graph(
        [helper.make_node("Add", ["r", "w"], ["inner"]), helper.make_node("Mul", ["inner", "x"], ["deep"])],
        "deep",
        [],
        [info("deep", [2])],
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["neg"])], "other", [], [info("neg", [2])])
    outer = helper.make_graph(
        [helper.make_node("If", ["flag"], ["mid"], then_branch=deep, else_branch=other)], "outer", [], [info("mid", [2])]
    )
    plain = helper.make_graph([helper.make_node("Abs", ["x"], ["plain"])], "plain", [], [info("plain", [2])])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("If", ["flag"], ["y"], "if", then_branch=outer, else_branch=plain),
    ]
    return model(nodes, [info("x", [2]), info("flag", [], TensorProto.BOOL)], [info("y", [2])], {"w": floats(2)})


def test_values_read_by_nested_sub_graphs_are_captures() -> None:
    graph = from_onnx(_nested()).validate()
    node = graph.nodes[1]
    assert (node.kind, sorted(value.name for value in node.captures)) == ("If", ["flag", "r", "w", "x"])
    assert graph.nodes[0].output.captured
    assert graph.is_fixed(graph.nodes[0].output)


@pytest.mark.parametrize("flag", [True, False])
def test_a_node_with_sub_graphs_is_evaluated_in_float64_with_its_captures(flag: bool) -> None:
    feeds = {"x": floats(2), "flag": np.array(flag)}
    (expected,) = run_ort(_nested(), feeds)
    (found,) = run_view(from_onnx(_nested()), feeds)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_names_inside_sub_graphs_are_never_given_out() -> None:
    graph = from_onnx(_nested())
    assert graph.claim("inner") == "inner_1"
    assert graph.claim("free") == "free"


def _function(domain: str, name: str, body: list[onnx.NodeProto], opset: int = 20) -> onnx.FunctionProto:
    return helper.make_function(
        domain, name, ["a"], ["b"], body, [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    )


def test_functions_are_inlined() -> None:
    inner = _function("mine", "Inner", [helper.make_node("Relu", ["a"], ["b"])])
    outer = _function(
        "mine", "Outer", [helper.make_node("Inner", ["a"], ["t"], domain="mine"), helper.make_node("Neg", ["t"], ["b"])]
    )
    proto = model(
        [helper.make_node("Outer", ["x"], ["y"], domain="mine")],
        [info("x", [2])],
        [info("y", [2])],
        domains=["mine"],
        functions=[inner, outer],
    )
    graph = from_onnx(proto).validate()
    assert [node.kind for node in graph.nodes] == ["Relu", "Neg"]
    assert not graph.origin.functions


def test_a_function_of_another_opset_is_kept_as_an_unknown_op() -> None:
    record = Record()
    body = _function("mine", "Old", [helper.make_node("Relu", ["a"], ["b"])], opset=13)
    proto = model(
        [helper.make_node("Old", ["x"], ["y"], domain="mine")],
        [info("x", [2])],
        [info("y", [2])],
        domains=["mine"],
        functions=[body],
    )
    graph = from_onnx(proto, record=record)
    assert [node.kind for node in graph.nodes] == ["mine::Old"]
    assert "another opset" in record.warnings[0]
    assert list(graph.origin.functions)


def test_custom_ops_keep_their_domain_and_have_no_evaluation() -> None:
    proto = model(
        [helper.make_node("Fancy", ["x"], ["y"], domain="my.ops", gain=2.0)],
        [info("x", [2])],
        [info("y", [2])],
        domains=["my.ops"],
    )
    (node,) = from_onnx(proto).nodes
    assert (node.kind, node.attrs, node.fallback) == ("my.ops::Fancy", {"gain": 2.0}, None)


def test_absent_optional_inputs_and_outputs_keep_their_slots() -> None:
    weights = {"w": floats(1, 8, 3), "r": floats(1, 8, 2), "h": floats(1, 1, 2)}
    node = helper.make_node("LSTM", ["x", "w", "r", "", "", "h"], ["", "", "c"], hidden_size=2)
    (node,) = from_onnx(model([node], [info("x", [5, 1, 3])], [info("c", [1, 1, 2])], weights)).validate().nodes
    assert [value if value is None else value.name for value in node.inputs] == ["x", "w", "r", None, None, "h"]
    assert len(node.outputs) == 3
    assert node.outputs[2].name == "c"
    assert not node.outputs[0].uses


# ---- shapes and module paths --------------------------------------------------------------------------------------------


def test_symbolic_sizes_keep_their_names_through_shape_arithmetic() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([12])}
    graph = from_onnx(model(nodes, [info("x", ["batch", 3, 4])], [info("y", None)], weights))
    assert graph.outputs[0].shape == ("batch", 12)


def test_stated_shapes_that_contradict_the_nodes_are_not_believed() -> None:
    record = Record()
    proto = model(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])],
        [info("x", [1, 3])],
        [info("y", [1, 3])],
        value_info=[info("h", [7, 3])],
    )
    graph = from_onnx(proto, record=record)
    assert graph.nodes[0].output.shape == (1, 3)
    assert "contradict" in record.warnings[0]


def test_shapes_stated_behind_custom_ops_are_taken() -> None:
    nodes = [helper.make_node("Fancy", ["x"], ["h"], domain="my.ops"), helper.make_node("Relu", ["h"], ["y"])]
    proto = model(nodes, [info("x", [2])], [info("y", None)], domains=["my.ops"], value_info=[info("h", ["N", 5])])
    assert from_onnx(proto).outputs[0].shape == ("N", 5)


def _module(metadata: dict[str, str], name: str = "", weight: str = "w") -> str:
    node = helper.make_node("Conv", ["x", weight], ["y"], name)
    for key, value in metadata.items():
        node.metadata_props.add(key=key, value=value)
    proto = model([node], [info("x", [1, 3, 8, 8])], [info("y", None)], {weight: floats(4, 3, 3, 3)})
    return from_onnx(proto).nodes[0].module


@pytest.mark.parametrize(
    "metadata, name, weight, expected",
    [
        ({"pkg.torch.onnx.name_scopes": "['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_1']"}, "", "w", "layer1.0.conv1"),
        ({"pkg.torch.onnx.name_scopes": "['', 'mean']"}, "", "w", ""),
        ({"pkg.torch.onnx.name_scopes": "__import__('os')"}, "", "w", ""),
        ({"namespace": ": m.Net/stem: torch.nn.modules.conv.Conv2d/conv2d: aten.conv2d.default"}, "", "w", "stem"),
        ({}, "", "layer1.0.conv1.weight", "layer1.0.conv1"),
        ({}, "/layer1/layer1.0/conv1/Conv", "onnx::Conv_33", "layer1.0.conv1"),
        ({}, "/stem/Conv_3", "w", "stem"),
        ({}, "/Conv", "w", ""),
        ({}, "conv1", "12", ""),
    ],
)
def test_module_paths(metadata: dict[str, str], name: str, weight: str, expected: str) -> None:
    assert _module(metadata, name, weight) == expected


@pytest.mark.parametrize(
    "name, param", [("fc.weight", "fc.weight"), ("onnx::Conv_33", ""), ("val_7", ""), ("12", ""), ("W", "W")]
)
def test_parameter_names_are_the_users(name: str, param: str) -> None:
    proto = model([helper.make_node("MatMul", ["x", name], ["y"])], [info("x", [1, 3])], [info("y", None)], {name: floats(3, 2)})
    assert from_onnx(proto).nodes[0].inputs[1].param == param


def test_unsorted_nodes_are_sorted_and_it_is_said() -> None:
    proto = conv_bn()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    record = Record()
    graph: Graph = from_onnx(proto, record=record)
    assert to_text(graph) == GOLDEN
    assert "sorted" in record.warnings[0]


def test_a_newer_opset_is_accepted_and_it_is_said() -> None:
    record = Record()
    newer = onnx.defs.onnx_opset_version() + 5
    graph = from_onnx(
        model([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], [info("y", [2])], opset=newer), record=record
    )
    assert graph.opset == newer
    assert any("newer" in text for text in record.warnings)


def test_a_newer_ir_version_is_accepted_and_it_is_said() -> None:
    record = Record()
    from_onnx(conv_bn(ir=int(onnx.IR_VERSION) + 1), record=record)
    assert ["IR version" in text for text in record.warnings] == [True]
