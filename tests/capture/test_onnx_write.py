"""View -> ONNX: what the view changed, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.errors import InputRefused
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Constant, Graph, Node, Value, to_text
from onnx_models import conv_bn, floats, info, model, run_ort

X = {"x": floats(2, 3, 8, 8, seed=7)}


def written(graph: Graph) -> onnx.ModelProto:
    """The model of the view; it passes the checker."""
    data = proto_bytes(to_model(graph.validate()))
    onnx.checker.check_model(data, full_check=True)
    return onnx.load_from_string(data)


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def weights(proto: onnx.ModelProto) -> dict[str, Any]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}


def node_of(graph: Graph, kind: str) -> Node:
    return next(node for node in graph.nodes if node.kind == kind)


def add(graph: Graph, kind: str, inputs: list[Value | None], like: Value, *, name: str = "new", **attrs: Any) -> Value:
    """A new node behind the producer of `like` (in front of all where it has none); its output has the shape of `like`."""
    output = graph.value(name, like.shape, like.dtype)
    node = Node(kind, inputs, [output], attrs)
    if like.producer is None:
        graph.insert_before(graph.nodes[0], node)
    else:
        graph.insert_after(like.producer, node)
    return output


def fold(graph: Graph) -> None:
    """BatchNormalization into the Conv in front of it, by hand."""
    conv, bn = node_of(graph, "Conv"), node_of(graph, "BatchNormalization")
    w, (gamma, beta, mean, var) = conv.inputs[1], [value.const.float64() for value in bn.inputs[1:]]
    scale = gamma / np.sqrt(var + bn.attrs["epsilon"])
    graph.set_input(conv, 1, graph.derived(w, w.const.float64() * scale[:, None, None, None]))
    graph.set_input(conv, 2, graph.constant("stem.conv.bias", Constant(beta - mean * scale, dtype=np.dtype(np.float32))))
    graph.bypass(bn)


# ---- without edits ----------------------------------------------------------------------------------------------------------


def test_an_unedited_view_writes_the_same_model() -> None:
    proto = conv_bn()
    proto.doc_string, proto.producer_name, proto.graph.doc_string = "doc", "me", "graph doc"
    proto.metadata_props.add(key="k", value="v")
    proto.graph.node[0].metadata_props.add(key="n", value="m")
    proto.graph.node[0].doc_string = "node doc"
    proto.graph.input[0].doc_string = "input doc"
    proto.graph.value_info.append(info("c", ["N", 4, 8, 8]))
    back = written(from_onnx(proto))
    assert back == proto


def test_a_node_without_edits_keeps_odd_attributes_and_spellings() -> None:
    node = helper.make_node("Conv", ["x", "w", ""], ["y"], auto_pad="NOTSET", group=1)
    proto = model([node], [info("x", [1, 3, 8, 8])], [info("y", [1, 2, 6, 6])], {"w": floats(2, 3, 3, 3)})
    assert written(from_onnx(proto)) == proto


def test_weights_that_did_not_change_stay_in_the_file(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "a"], ["m"]), helper.make_node("MatMul", ["m", "b"], ["y"])],
        [info("x", [1, 64])],
        [info("y", [1, 64])],
        {"a": floats(64, 64), "b": floats(64, 64, seed=1)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    graph = from_onnx(tmp_path / "m.onnx")
    first, second = graph.nodes
    kept = second.inputs[1].origin.const_value
    graph.set_input(first, 1, graph.derived(first.inputs[1], first.inputs[1].const.float64() * 2))
    found = to_model(graph).graph.initializers
    assert found["b"].const_value is kept
    assert set(found) == {"b", "a_folded"}
    assert np.array_equal(weights(written(graph))["a_folded"], floats(64, 64) * 2)


# ---- folding ----------------------------------------------------------------------------------------------------------------


def test_a_folded_layer_is_gone_with_its_parameters() -> None:
    graph = from_onnx(conv_bn())
    fold(graph)
    proto = written(graph)
    assert kinds(proto) == ["Conv", "Relu"]
    assert set(weights(proto)) == {"stem.conv.weight_folded", "stem.conv.bias"}
    assert {str(array.dtype) for array in weights(proto).values()} == {"float32"}
    assert (proto.ir_version, proto.opset_import[0].version) == (9, 20)
    np.testing.assert_allclose(run_ort(proto, X)[0], run_ort(conv_bn(), X)[0], rtol=1e-4, atol=1e-5)


def test_constants_stay_float64_in_the_view_and_are_rounded_in_the_model() -> None:
    graph = from_onnx(conv_bn())
    fold(graph)
    weight = node_of(graph, "Conv").inputs[1]
    exact = weight.const.read()
    stored = weights(written(graph))["stem.conv.weight_folded"]
    assert weight.const.pending
    assert weight.const.read() is exact
    assert np.array_equal(stored, exact.astype(np.float32))


def test_writing_twice_and_after_rounding_gives_the_same_bytes() -> None:
    graph = from_onnx(conv_bn())
    fold(graph)
    first = proto_bytes(to_model(graph))
    assert proto_bytes(to_model(graph)) == first
    graph.round_constants()
    assert proto_bytes(to_model(graph)) == first


def test_the_view_that_is_written_last_counts() -> None:
    graph = from_onnx(conv_bn())
    start = graph.clone()
    before = proto_bytes(to_model(graph))
    fold(graph)
    assert kinds(written(graph)) == ["Conv", "Relu"]
    assert sorted(weights(written(start))) == sorted(weights(onnx.load_from_string(before)))
    np.testing.assert_array_equal(run_ort(written(start), X)[0], run_ort(conv_bn(), X)[0])
    assert kinds(written(graph)) == ["Conv", "Relu"]


def test_a_constant_node_is_replaced_by_an_initializer_only_where_its_value_changed() -> None:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(floats(3))),
        helper.make_node("Constant", [], ["l"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Mul", ["x", "k"], ["m"]),
        helper.make_node("Add", ["m", "l"], ["y"]),
    ]
    graph = from_onnx(model(nodes, [info("x", [1, 3])], [info("y", [1, 3])]))
    k = node_of(graph, "Mul").inputs[1]
    k.const = Constant(k.const.read() * 2)
    proto = written(graph)
    assert kinds(proto) == ["Mul", "Constant", "Add"]
    assert np.array_equal(weights(proto)["k"], floats(3) * 2)


# ---- new nodes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset, ir_version", [(20, 9), (9, 4), (9, 3), (7, 3)])
@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_a_new_node_stands_where_the_view_has_it(kind: str, opset: int, ir_version: int) -> None:
    listed = [item.name for item in conv_bn().graph.initializer] if ir_version < 4 else []
    source = conv_bn(opset=opset, ir=ir_version, listed=listed)
    graph = from_onnx(source)
    conv, bn = node_of(graph, "Conv"), node_of(graph, "BatchNormalization")
    made = add(graph, kind, [conv.output, graph.constant("shift", floats(4, 1, 1))], conv.output)
    graph.set_input(bn, 0, made)
    proto = written(graph)
    assert kinds(proto) == ["Conv", kind, "BatchNormalization", "Relu"]
    assert proto.ir_version == ir_version
    names = [item.name for item in proto.graph.input]
    assert names[0] == "x"
    assert set(names[1:]) == (set(weights(proto)) if ir_version < 4 else set())
    assert run_ort(proto, X)[0].shape == (2, 4, 8, 8)


def test_dropped_initializers_leave_the_list_of_inputs() -> None:
    graph = from_onnx(conv_bn(listed=[item.name for item in conv_bn().graph.initializer]))
    fold(graph)
    assert [item.name for item in written(graph).graph.input] == ["x"]


def test_what_was_taken_as_a_constant_does_not_become_overridable() -> None:
    """All were listed; those that stay beside new ones would be some that are listed, and so the caller's to replace."""
    graph = from_onnx(conv_bn(listed=[item.name for item in conv_bn().graph.initializer]))
    bn = node_of(graph, "BatchNormalization")
    graph.set_input(bn, 2, graph.derived(bn.inputs[2], floats(4)))
    proto = written(graph)
    assert [item.name for item in proto.graph.input] == ["x"] and len(weights(proto)) == 5
    assert not from_onnx(proto).pinned


def test_overridable_initializers_stay_even_where_nobody_reads_them() -> None:
    graph = from_onnx(conv_bn(listed=["stem.bn.weight"]))
    graph.bypass(node_of(graph, "BatchNormalization"))
    proto = written(graph)
    assert [item.name for item in proto.graph.input] == ["x", "stem.bn.weight"]
    assert set(weights(proto)) == {"stem.conv.weight", "stem.bn.weight"}


@pytest.mark.parametrize("opset", [8, 13, 20])
def test_static_parameters_are_spelled_as_the_opset_has_them(opset: int) -> None:
    graph = from_onnx(conv_bn(opset=opset, ir=8))
    relu = node_of(graph, "Relu")
    source = relu.inputs[0]
    shape: tuple[Any, ...] = ("N", 4, 64)
    flat = graph.value("flat", shape, np.float32)
    graph.insert_before(relu, Node("Reshape", [source], [flat], {"shape": (0, 4, 64)}))
    steps: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
        ("Unsqueeze", {"axes": (3,)}, ("N", 4, 64, 1)),
        ("Squeeze", {"axes": (3,)}, ("N", 4, 64)),
        ("Clip", {"min": -0.5, "max": 0.75}, ("N", 4, 64)),
        ("Pad", {"pads": (0, 0, 1, 0, 0, 2), "constant_value": 0.25, "mode": "constant"}, ("N", 4, 67)),
        ("Slice", {"starts": (1,), "ends": (-2,), "axes": (2,), "steps": (1,)}, ("N", 4, 64)),
        ("ReduceSum", {"axes": (2,), "keepdims": 1}, ("N", 4, 1)),
        ("Cast", {"to": np.dtype(np.float32)}, ("N", 4, 1)),
        ("Expand", {"shape": (1, 1, 64)}, ("N", 4, 64)),
        ("Reshape", {"shape": (0, 4, 8, 8)}, ("N", 4, 8, 8)),
    ]
    value = flat
    for number, (kind, attrs, sizes) in enumerate(steps):
        output = graph.value(f"s{number}", sizes, np.float32)
        graph.insert_before(relu, Node(kind, [value], [output], attrs))
        value = output
    graph.set_input(relu, 0, value)
    proto = written(graph)
    assert kinds(proto)[2:-1] == ["Reshape", *(kind for kind, _, _ in steps)]
    (found,) = run_ort(proto, X)
    reference = conv_bn(opset=opset, ir=8)
    reference.graph.output.append(info("n", None))
    normed = run_ort(reference, X)[1]
    expected = np.clip(normed.reshape(2, 4, 64), -0.5, 0.75)
    expected = np.pad(expected, ((0, 0), (0, 0), (1, 2)), constant_values=0.25)[:, :, 1:-2].sum(2)
    expected = np.broadcast_to(np.maximum(expected, 0)[:, :, None, None], found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    again = from_onnx(proto)
    assert next(node for node in again.nodes if node.kind == "Pad").attrs["constant_value"] == 0.25
    assert {node.kind: node.attrs["axes"] for node in again.nodes if node.kind in ("ReduceSum", "Squeeze", "Unsqueeze")} == {
        "ReduceSum": (2,), "Squeeze": (3,), "Unsqueeze": (3,)
    }  # fmt: skip


def test_an_op_that_the_opset_lacks_is_refused() -> None:
    graph = from_onnx(conv_bn(opset=11, ir=6))
    relu = node_of(graph, "Relu")
    scale = graph.constant("s", floats(8))
    graph.set_input(relu, 0, add(graph, "LayerNormalization", [relu.inputs[0], scale], relu.inputs[0], axis=3, epsilon=1e-5))
    with pytest.raises(InputRefused, match="opset 11 cannot spell LayerNormalization"):
        to_model(graph)


def test_a_new_batch_normalization_and_conv_are_written_for_old_opsets() -> None:
    for opset in (7, 9, 15):
        graph = from_onnx(conv_bn(opset=opset, ir=8))
        bn = node_of(graph, "BatchNormalization")
        made = add(graph, "BatchNormalization", list(bn.inputs), bn.output, epsilon=1e-3, training_mode=0)
        graph.set_input(node_of(graph, "Relu"), 0, made)
        graph.set_input(made.producer, 0, bn.output)
        weight = graph.constant("depthwise", np.ones((4, 1, 1, 1), np.float32))
        same = add(graph, "Conv", [made, weight], made, name="same", group=4, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
        graph.set_input(node_of(graph, "Relu"), 0, same)
        proto = written(graph)
        assert kinds(proto) == ["Conv", "BatchNormalization", "BatchNormalization", "Conv", "Relu"]
        assert run_ort(proto, X)[0].shape == (2, 4, 8, 8)


def test_new_nodes_of_another_domain_import_it() -> None:
    graph = from_onnx(conv_bn())
    relu = node_of(graph, "Relu")
    graph.set_input(relu, 0, add(graph, "com.microsoft::Gelu", [relu.inputs[0]], relu.inputs[0]))
    model_ = to_model(graph)
    assert model_.opset_imports["com.microsoft"] == 1
    assert run_ort(proto_bytes(model_), X)[0].shape == (2, 4, 8, 8)


def test_the_module_of_a_new_node_is_found_again() -> None:
    graph = from_onnx(conv_bn())
    relu = node_of(graph, "Relu")
    made = add(graph, "Add", [relu.inputs[0], graph.constant("k", floats(1))], relu.inputs[0])
    made.producer.module = "layer1.0.shift"
    graph.set_input(relu, 0, made)
    assert node_of(from_onnx(written(graph)), "Add").module == "layer1.0.shift"


# ---- changed attributes -----------------------------------------------------------------------------------------------------


def test_changed_attributes_are_written_and_others_are_not_touched() -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"], "leaky", alpha=0.1)
    graph = from_onnx(model([node], [info("x", [4])], [info("y", [4])]))
    graph.nodes[0].attrs["alpha"] = 10.0
    x = np.array([-1, 2, -3, 4], np.float32)
    np.testing.assert_allclose(run_ort(written(graph), {"x": x})[0], np.where(x < 0, 10 * x, x))


@pytest.mark.parametrize("opset", [9, 11, 19])
def test_the_value_of_a_pad_is_written_as_the_opset_spells_it(opset: int) -> None:
    if opset < 11:
        node, held = helper.make_node("Pad", ["x"], ["y"], pads=[0, 1, 0, 1], value=0.5), {}
    else:
        node = helper.make_node("Pad", ["x", "p"], ["y"])
        held = {"p": np.array([0, 1, 0, 1])}
    graph = from_onnx(model([node], [info("x", [1, 2])], [info("y", [1, 4])], held, opset=opset, ir=8))
    graph.nodes[0].attrs["constant_value"] = -2.0
    proto = written(graph)
    (found,) = run_ort(proto, {"x": np.ones((1, 2), np.float32)})
    assert found.tolist() == [[-2, 1, 1, -2]]
    assert from_onnx(proto).nodes[0].attrs["constant_value"] == -2.0


def test_an_input_that_is_gone_leaves_no_empty_name_at_the_end() -> None:
    """ONNX Runtime's SkipLayerNormFusion crashes on a LayerNormalization whose bias is named ''."""
    nodes = [helper.make_node("Add", ["x", "x"], ["s"]), helper.make_node("LayerNormalization", ["s", "g", "b"], ["y"])]
    held = {"g": floats(4), "b": floats(4, seed=1)}
    graph = from_onnx(model(nodes, [info("x", [2, 3, 4])], [info("y", [2, 3, 4])], held))
    graph.set_input(node_of(graph, "LayerNormalization"), 2, None)
    proto = written(graph)
    assert list(proto.graph.node[1].input) == ["s", "g"] and [item.name for item in proto.graph.initializer] == ["g"]


def test_a_removed_attribute_is_removed() -> None:
    proto = model(
        [helper.make_node("Fancy", ["x"], ["y"], domain="d", gain=2.0, mode="m")],
        [info("x", [2])],
        [info("y", [2])],
        domains=["d"],
    )
    graph = from_onnx(proto)
    del graph.nodes[0].attrs["gain"]
    (node,) = to_model(graph).graph
    assert list(node.attributes) == ["mode"]


def test_a_weight_of_another_size_brings_its_kernel_shape() -> None:
    graph = from_onnx(conv_bn())
    conv = node_of(graph, "Conv")
    graph.set_input(conv, 1, graph.constant("wide", floats(4, 3, 5, 5)))
    conv.attrs["pads"] = (2, 2, 2, 2)
    proto = written(graph)
    assert onnx.helper.get_node_attr_value(proto.graph.node[0], "kernel_shape") == [5, 5]
    assert run_ort(proto, X)[0].shape == (2, 4, 8, 8)


def test_a_node_of_another_kind_is_written_anew() -> None:
    graph = from_onnx(conv_bn())
    relu = node_of(graph, "Relu")
    relu.kind, relu.attrs = "LeakyRelu", {"alpha": 0.5}
    proto = written(graph)
    assert kinds(proto)[-1] == "LeakyRelu"
    assert [item.name for item in proto.graph.output] == ["y"]


# ---- outputs and inputs -----------------------------------------------------------------------------------------------------


def test_an_output_whose_producer_was_bypassed_keeps_its_name_and_type() -> None:
    graph = from_onnx(conv_bn())
    graph.bypass(node_of(graph, "Relu"))
    proto = written(graph)
    assert kinds(proto) == ["Conv", "BatchNormalization"]
    assert proto.graph.output == conv_bn().graph.output


def test_outputs_that_became_one_value_or_an_input_keep_their_names_through_an_identity() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["x"], ["c"]),
    ]
    proto = model(nodes, [info("x", [2])], [info("a", [2]), info("b", ["M"]), info("c", [2])])
    graph = from_onnx(proto)
    graph.outputs = [graph.outputs[0], graph.outputs[0], graph.inputs[0]]
    graph.prune()
    back = written(graph)
    assert back.graph.output == proto.graph.output
    assert kinds(back) == ["Relu", "Identity", "Identity"]
    x = floats(2)
    for found, expected in zip(run_ort(back, {"x": x}), run_ort(proto, {"x": x}), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_output_that_became_constant_is_an_initializer_of_that_name() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"])], [info("x", [2])], [info("y", [2])])
    graph = from_onnx(proto)
    graph.outputs = []
    graph.prune()
    graph.outputs = [graph.constant("y", np.array([1, 2], np.float32))]
    back = written(graph)
    assert back.graph.input == proto.graph.input
    assert run_ort(back, {"x": floats(2)})[0].tolist() == [1, 2]


def test_a_renamed_value_is_renamed_everywhere_and_its_shape_is_kept() -> None:
    proto = conv_bn()
    proto.graph.value_info.append(info("c", ["N", 4, 8, 8]))
    graph = from_onnx(proto)
    graph.rename(node_of(graph, "Conv").output, "c_scaled")
    back = written(graph)
    assert back.graph.node[0].output == ["c_scaled"]
    assert back.graph.node[1].input[0] == "c_scaled"
    assert [item.name for item in back.graph.value_info] == ["c_scaled"]


def test_stated_shapes_that_became_wrong_are_put_right() -> None:
    proto = conv_bn()
    proto.graph.value_info.append(info("c", ["N", 4, 8, 8]))
    graph = from_onnx(proto)
    conv, bn = node_of(graph, "Conv"), node_of(graph, "BatchNormalization")
    graph.set_input(conv, 1, graph.constant("more", floats(6, 3, 3, 3)))
    conv.output.shape = ("N", 6, 8, 8)
    weight = graph.constant("fewer", floats(4, 6, 1, 1))
    made = add(graph, "Conv", [conv.output, weight], conv.output, group=1, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
    made.shape = bn.output.shape
    graph.set_input(bn, 0, made)
    back = written(graph)
    stated = {
        item.name: [dim.dim_value or dim.dim_param for dim in item.type.tensor_type.shape.dim] for item in back.graph.value_info
    }
    assert stated["c"] == ["N", 6, 8, 8]


# ---- sub-graphs -------------------------------------------------------------------------------------------------------------


def _branching() -> onnx.ModelProto:
    then = helper.make_graph([helper.make_node("Mul", ["r", "w"], ["t"])], "then", [], [info("t", [2])])
    other = helper.make_graph([helper.make_node("Neg", ["r"], ["e"])], "else", [], [info("e", [2])])
    nodes = [
        helper.make_node("Neg", ["x"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
    ]
    return model(nodes, [info("x", [2]), info("flag", [], TensorProto.BOOL)], [info("y", [2])], {"w": floats(2)})


@pytest.mark.parametrize("flag", [True, False])
def test_sub_graphs_follow_a_value_that_is_renamed_or_made_anew(flag: bool) -> None:
    feeds = {"x": floats(2), "flag": np.array(flag)}
    graph = from_onnx(_branching())
    graph.rename(graph.nodes[1].output, "renamed")
    np.testing.assert_array_equal(run_ort(written(graph), feeds)[0], run_ort(_branching(), feeds)[0])
    graph.nodes[1].kind, graph.nodes[1].attrs = "LeakyRelu", {"alpha": 0.0}
    np.testing.assert_array_equal(np.abs(run_ort(written(graph), feeds)[0]), np.abs(run_ort(_branching(), feeds)[0]))


def test_what_only_sub_graphs_read_is_kept() -> None:
    proto = written(from_onnx(_branching()))
    assert set(weights(proto)) == {"w"}
    assert proto == _branching()


def test_an_absent_optional_output_appears_once_it_is_read() -> None:
    held = {"w": floats(1, 8, 3), "r": floats(1, 8, 2)}
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=2)
    proto = model([lstm, helper.make_node("Relu", ["h"], ["y"])], [info("x", [5, 1, 3])], [info("y", [1, 1, 2])], held)
    assert written(from_onnx(proto)) == proto
    graph = from_onnx(proto)
    steps = graph.nodes[0].outputs[0]
    graph.set_input(graph.nodes[1], 0, steps)
    promise = graph.origin.graph.outputs[0]
    promise.shape = None
    back = onnx.load_from_string(proto_bytes(to_model(graph)))
    assert back.graph.node[0].output[0] == back.graph.node[1].input[0] == steps.name


def test_sparse_initializers_stay_sparse() -> None:
    values = onnx.numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "s")
    sparse = helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([1, 5], np.int64), "i"), [2, 3])
    proto = model([helper.make_node("Add", ["x", "s"], ["y"])], [info("x", [2, 3])], [info("y", [2, 3])])
    proto.graph.sparse_initializer.append(sparse)
    back = onnx.load_from_string(proto_bytes(to_model(from_onnx(proto))))
    assert list(back.graph.sparse_initializer) == [sparse]
    assert not back.graph.initializer
    assert run_ort(back, {"x": np.zeros((2, 3), np.float32)})[0].tolist() == [[0, 5, 0], [0, 0, 7]]


def test_the_text_after_writing_and_reading_again_is_the_same() -> None:
    graph = from_onnx(conv_bn())
    fold(graph)
    again = from_onnx(written(graph))
    assert to_text(again) == to_text(graph).replace(".weight:", ".weight_folded:")
    assert isinstance(graph.origin, ir.Model)
