"""Malformed and hostile ONNX models: one line that names what is wrong, nothing native reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from normfold.capture import onnx_check
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_wire import fields, read_proto, scan, tag
from normfold.capture.tidy import tidy
from normfold.errors import InputRefused
from normfold.record import Record
from onnx_models import conv_bn, floats, info, model

Edit = Callable[[onnx.ModelProto], Any]


def relu(*inputs: str, out: str = "y") -> onnx.NodeProto:
    return helper.make_node("Relu", list(inputs), [out])


def cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "n"


def weight_bytes(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def weight_elements(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].CopyFrom(TensorProto(name="stem.bn.weight", dims=[4], data_type=1, float_data=[1, 2, 3]))


def attribute(index: int, **attrs: Any) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        node = proto.graph.node[index]
        kept = [item for item in node.attribute if item.name not in attrs]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in attrs.items())])

    return edit


def weight(index: int, *shape: int) -> Edit:
    def edit(proto: onnx.ModelProto) -> None:
        name = proto.graph.initializer[index].name
        proto.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(floats(*shape), name))

    return edit


MALFORMED: dict[str, tuple[Edit, str]] = {
    "no graph": (lambda p: p.ClearField("graph"), "no graph with outputs"),
    "no outputs": (lambda p: p.graph.ClearField("output"), "no graph with outputs"),
    "no opset": (lambda p: p.ClearField("opset_import"), "names no opset"),
    "cycle": (cycle, "form a cycle"),
    "two outputs of one name": (lambda p: p.graph.node.append(relu("x", out="n")), "two node outputs are named 'n'"),
    "two inputs of one name": (lambda p: p.graph.input.append(p.graph.input[0]), "two inputs are named 'x'"),
    "two initializers of one name": (lambda p: p.graph.initializer.append(p.graph.initializer[0]), "two initializers are named"),
    "an input that is produced": (lambda p: p.graph.node.append(relu("n", out="x")), "'x' is a graph input and the output"),
    "an initializer that is produced": (
        lambda p: p.graph.node.append(relu("n", out="stem.bn.bias")),
        "is an initializer and the output",
    ),
    "an initializer without a name": (lambda p: p.graph.initializer[0].ClearField("name"), "has no name"),
    "dangling input": (lambda p: p.graph.node.append(relu("ghost", out="z")), "reads 'ghost', which nothing produces"),
    "dangling output": (lambda p: p.graph.output.append(info("ghost", [1])), "'ghost' is not produced"),
    "negative dims": (lambda p: p.graph.initializer[0].dims.__setitem__(0, -4), "negative size"),
    "overflowing dims": (lambda p: p.graph.initializer[0].dims.extend([2**40, 2**40]), "overflow"),
    "raw data too short": (weight_bytes, "needs 432 bytes and has 428"),
    "too few elements": (weight_elements, "needs 4 elements and has 3"),
    "unknown data type": (lambda p: setattr(p.graph.initializer[0], "data_type", 99), "unknown data type 99"),
    "no data type": (lambda p: setattr(p.graph.initializer[0], "data_type", 0), "unknown data type 0"),
    "group 0": (attribute(0, group=0), "has group 0"),
    "group -1": (attribute(0, group=-1), "has group -1"),
    "strides 0": (attribute(0, strides=[0, 0]), r"has strides \[0, 0\]"),
    "dilations 0": (attribute(0, dilations=[0, 1]), "has dilations"),
    "kernel_shape huge": (attribute(0, kernel_shape=[2**40, 3]), "has kernel_shape"),
    "pads huge": (attribute(0, pads=[2**40, 0, 0, 0]), "has pads"),
    "weight of the wrong rank": (weight(0, 4, 3, 3), r"weight of dims \[4, 3, 3\]"),
    "weight of the wrong channels": (weight(0, 4, 5, 3, 3), "for 3 channels"),
    "group that does not divide": (attribute(0, group=3), "group 3"),
    "norm parameter of the wrong length": (weight(1, 5), "for 4 channels"),
    "norm parameter of the wrong rank": (weight(2, 4, 1), r"of dims \[4, 1\]"),
    "norm without its parameters": (lambda p: p.graph.node[1].input.__setitem__(3, ""), "lacks a parameter"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_models_are_refused_in_one_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    edit, message = MALFORMED[name]
    proto = conv_bn()
    edit(proto)
    with pytest.raises(InputRefused, match=message) as caught:
        from_onnx(proto)
    assert "\n" not in str(caught.value)
    assert not caplog.records  # nothing else is told


@pytest.mark.parametrize(
    "kind, attrs",
    [("DepthToSpace", {"blocksize": 0}), ("SpaceToDepth", {"blocksize": -2}), ("MaxPool", {"kernel_shape": [0, 0]}),
     ("AveragePool", {"kernel_shape": [2, 2], "strides": [-1, 1]}), ("Split", {"num_outputs": 0})],
)  # fmt: skip
def test_attributes_that_crash_native_code_are_refused_in_sub_graphs_too(kind: str, attrs: dict[str, Any]) -> None:
    bad = helper.make_node(kind, ["x"], ["b"], **attrs)
    branch = helper.make_graph([bad], "then", [], [info("b", None)])
    fine = helper.make_graph([relu("x", out="c")], "else", [], [info("c", None)])
    inputs = [info("x", [1, 4, 8, 8]), info("f", [], TensorProto.BOOL)]
    for node in (bad, helper.make_node("If", ["f"], ["b"], then_branch=branch, else_branch=fine)):
        with pytest.raises(InputRefused, match=next(reversed(attrs))):
            from_onnx(model([node], inputs, [info("b", None)]))


def test_attributes_in_functions_are_checked_once_they_are_inlined() -> None:
    body = helper.make_function(
        "d", "F", ["a"], ["b"], [helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[0])], [helper.make_opsetid("", 20)]
    )
    proto = model(
        [helper.make_node("F", ["x"], ["y"], domain="d")],
        [info("x", [1, 2, 3])],
        [info("y", None)],
        domains=["d"],
        functions=[body],
    )
    with pytest.raises(InputRefused, match="kernel_shape"):
        from_onnx(proto)


def _calls(name: str, callee: str, times: int) -> onnx.FunctionProto:
    nodes = [helper.make_node(callee, ["a" if i == 0 else f"t{i - 1}"], [f"t{i}"], domain="d") for i in range(times)]
    nodes.append(relu(f"t{times - 1}", out="b"))
    return helper.make_function("d", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)])


def _with(functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    node = helper.make_node(functions[0].name, ["x"], ["y"], domain="d")
    return model([node], [info("x", [2])], [info("y", [2])], domains=["d"], functions=functions)


def test_functions_that_call_themselves_are_refused() -> None:
    with pytest.raises(InputRefused, match="calls itself"):
        from_onnx(_with([_calls("F", "G", 1), _calls("G", "F", 1)]))


def test_functions_that_expand_without_end_are_refused_before_they_are_inlined() -> None:
    functions = [_calls(f"F{i}", f"F{i + 1}", 10) for i in range(9)]
    last = helper.make_function("d", "F9", ["a"], ["b"], [relu("a", out="b")], [helper.make_opsetid("", 20)])
    with pytest.raises(InputRefused, match=str(onnx_check.MAX_INLINED)):
        from_onnx(_with([*functions, last]))


def test_names_with_escapes_are_shown_escaped() -> None:
    proto = conv_bn()
    proto.graph.node.append(relu("\x1b[31mred\x00", out="z"))
    with pytest.raises(InputRefused) as caught:
        from_onnx(proto)
    assert str(caught.value).isprintable()
    assert "\\x1b[31mred" in str(caught.value)


def test_a_constant_without_a_value_is_refused() -> None:
    with pytest.raises(InputRefused, match="exactly one value"):
        from_onnx(model([helper.make_node("Constant", [], ["y"])], [], [info("y", None)]))


def test_a_node_that_breaks_its_schema_is_left_to_the_runtime() -> None:
    proto = model([helper.make_node("Slice", ["x"], ["y"], starts=[0])], [info("x", [2, 3])], [info("y", None)], opset=9)
    graph = from_onnx(proto)
    tidy(graph)
    assert [node.kind for node in graph.nodes] == ["Slice"]


def test_a_sparse_bomb_is_refused() -> None:
    values = onnx.numpy_helper.from_array(np.array([1.0], np.float32), "s")
    sparse = helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([0], np.int64), "i"), [2**20, 2**20])
    proto = model([helper.make_node("Constant", [], ["y"], sparse_value=sparse)], [], [info("y", None)])
    with pytest.raises(InputRefused, match="too large"):
        from_onnx(proto)


def test_zero_sizes_and_nan_weights_are_kept() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [info("x", [0, 3])],
        [info("y", [0, 3])],
        {"w": np.full(3, np.nan, np.float32)},
    )
    graph = from_onnx(proto)
    assert graph.outputs[0].shape == (0, 3)
    assert np.isnan(graph.nodes[0].inputs[1].const.read()).all()


# ---- files --------------------------------------------------------------------------------------------------------------


def _saved(tmp_path: Path) -> tuple[Path, bytes]:
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [info("x", [1, 64])], [info("y", None)], {"w": floats(64, 64)})
    data = proto.SerializeToString()
    return tmp_path / "m.onnx", data


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, -1])
def test_truncated_files_are_refused(tmp_path: Path, keep: float) -> None:
    path, data = _saved(tmp_path)
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(InputRefused, match=r"m\.onnx"):
        from_onnx(path)


@pytest.mark.parametrize("data", [b"{}", b"<html></html>", os.urandom(0) + bytes(range(256)) * 8, b"\xff" * 64])
def test_files_of_other_kinds_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(InputRefused):
        from_onnx(path)


def test_sub_graphs_nested_too_deep_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([relu("x")], "g", [], [info("y", [2])]).SerializeToString()
    for _ in range(40):
        attribute = tag(6, len(graph)) + graph
        node = tag(5, len(attribute)) + attribute
        graph = tag(1, len(node)) + node
    (tmp_path / "m.onnx").write_bytes(tag(7, len(graph)) + graph)
    with pytest.raises(InputRefused, match="nests sub-graphs"):
        from_onnx(tmp_path / "m.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="cannot be read"):
        from_onnx(tmp_path / "none.onnx")


def test_a_file_that_shrinks_while_it_is_used_is_told(tmp_path: Path) -> None:
    path, data = _saved(tmp_path)
    path.write_bytes(data)
    value = from_onnx(path).nodes[0].inputs[1]
    os.truncate(path, 100)
    with pytest.raises(InputRefused, match="became shorter"):
        value.const.read()


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "missing.bin", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    path, data = _saved(tmp_path)
    proto = onnx.load_from_string(data)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(proto.SerializeToString())
    (tmp_path.parent / "w.bin").write_bytes(bytes(64 * 64 * 4))
    with pytest.raises(InputRefused, match="external data"):
        from_onnx(path)


def test_a_link_into_a_download_cache_is_read_and_told(tmp_path: Path) -> None:
    home, blobs = tmp_path / "snapshots" / "rev", tmp_path / "blobs"
    home.mkdir(parents=True)
    blobs.mkdir()
    _, data = _saved(tmp_path)
    onnx.save(onnx.load_from_string(data), home / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (home / "m.bin").rename(blobs / "abc")
    (home / "m.bin").symlink_to(blobs / "abc")
    record = Record()
    graph = from_onnx(home / "m.onnx", record=record)
    assert np.array_equal(graph.nodes[0].inputs[1].const.read(), floats(64, 64))
    assert "download cache" in record.warnings[0]


# ---- the wire format ----------------------------------------------------------------------------------------------------


def test_scanning_cuts_large_weights_and_nothing_else(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        [info("x", [1, 64])],
        [info("y", None)],
        {"b": floats(64), "w": floats(64, 64), "c": floats(3)},
    )
    data = proto.SerializeToString()
    small, (cut,) = scan(data)
    assert cut.position == 1
    assert data[cut.offset : cut.offset + cut.length] == floats(64, 64).tobytes()
    found = onnx.load_from_string(small)
    proto.graph.initializer[1].ClearField("raw_data")
    assert found == proto


def test_a_graph_in_two_pieces_is_left_to_the_parser(tmp_path: Path) -> None:
    path, data = _saved(tmp_path)
    extra = onnx.ModelProto(graph=onnx.GraphProto(doc_string="more"))
    path.write_bytes(data + extra.SerializeToString())
    proto, cuts, _ = read_proto(path)
    assert not cuts
    assert proto.graph.doc_string == "more"
    assert np.array_equal(from_onnx(path).nodes[0].inputs[1].const.read(), floats(64, 64))


@pytest.mark.parametrize("data", [b"\x08", b"\x0b\x00", b"\x0a\x05ab", b"\x00\x01", b"\x08" + b"\xff" * 11, b"\x09\x00"])
def test_damaged_messages_are_noticed(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|wire type|number"):
        list(fields(data, 0, len(data)))
