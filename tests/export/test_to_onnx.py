"""ONNX files: whole or not at all, streamed, external data, the simplifier in its worker, the final check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.errors import UsageError
from normfold.export import onnx_stream, onnx_tasks, to_onnx
from normfold.export.atomic import write_files
from normfold.export.to_onnx import check, proto_bytes, save_onnx, simplify
from normfold.graph import Graph
from normfold.record import Record
from onnx_models import conv_bn, floats, info, model, run_ort


def two_layers() -> onnx.ModelProto:
    return model(
        [helper.make_node("MatMul", ["x", "a"], ["m"], "first"), helper.make_node("MatMul", ["m", "b"], ["y"], "second")],
        [info("x", ["N", 64])],
        [info("y", ["N", 64])],
        {"a": floats(64, 64), "b": floats(64, 64, seed=1)},
    )


def view(tmp_path: Path, proto: onnx.ModelProto | None = None) -> Graph:
    onnx.save(two_layers() if proto is None else proto, tmp_path / "in.onnx")
    return from_onnx(tmp_path / "in.onnx")


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


# ---- what is written ----------------------------------------------------------------------------------------------------


def test_a_streamed_file_is_the_message_that_protobuf_would_write(tmp_path: Path) -> None:
    assert save_onnx(to_model(view(tmp_path)), tmp_path / "out.onnx") == [tmp_path / "out.onnx"]
    assert onnx.load(tmp_path / "out.onnx") == two_layers()
    assert (tmp_path / "out.onnx").read_bytes() == proto_bytes(to_model(view(tmp_path)))


def test_the_same_view_gives_the_same_bytes(tmp_path: Path) -> None:
    assert proto_bytes(to_model(view(tmp_path))) == proto_bytes(to_model(view(tmp_path)))
    assert proto_bytes(to_model(from_onnx(two_layers()))) == proto_bytes(to_model(from_onnx(two_layers())))


def test_every_kind_of_tensor_is_written(tmp_path: Path) -> None:
    tensors = [
        helper.make_tensor("strings", TensorProto.STRING, [2], [b"a", b"b"]),
        helper.make_tensor("halves", TensorProto.BFLOAT16, [3], [1.0, 2.0, -3.0]),
        helper.make_tensor("nibbles", TensorProto.INT4, [3], [1, -2, 7]),
        helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.5, 2.5]),
        onnx.numpy_helper.from_array(np.array([True, False]), "bools"),
        onnx.numpy_helper.from_array(np.float64(2.5), "scalar"),
        onnx.numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"),
        onnx.numpy_helper.from_array(np.array([1 + 2j], np.complex64), "complex"),
    ]
    tensors[3].doc_string = "doc"
    proto = model(
        [helper.make_node("Identity", [item.name], [f"y_{item.name}"]) for item in tensors],
        [],
        [info(f"y_{item.name}", list(item.dims), item.data_type) for item in tensors],
        opset=21,
        ir=10,
    )
    proto.graph.initializer.extend(tensors)
    found = onnx.load_from_string(proto_bytes(to_model(view(tmp_path, proto))))
    assert [item.name for item in found.graph.initializer] == [item.name for item in tensors]
    for left, right in zip(found.graph.initializer, tensors, strict=True):
        assert (left.dims, left.data_type, left.doc_string) == (right.dims, right.data_type, right.doc_string)
        assert np.array_equal(onnx.numpy_helper.to_array(left), onnx.numpy_helper.to_array(right))


def test_arrays_in_another_order_are_written_in_row_order() -> None:
    graph = from_onnx(two_layers())
    node = graph.nodes[0]
    graph.set_input(node, 1, graph.constant("t", floats(64, 64, seed=5).T))
    written = {item.name: item for item in onnx.load_from_string(proto_bytes(to_model(graph))).graph.initializer}
    array = onnx.numpy_helper.to_array(written["t"])
    assert np.array_equal(array, floats(64, 64, seed=5).T)


def test_a_tensor_of_the_wrong_length_is_never_written(tmp_path: Path) -> None:
    source = to_model(from_onnx(two_layers()))
    wrong = ir.LazyTensor(lambda: ir.Tensor(floats(3)), dtype=ir.DataType.FLOAT, shape=ir.Shape([64, 64]), name="a")
    source.graph.initializers["a"].const_value = wrong
    with pytest.raises(ValueError, match="12 bytes, 16384 were announced"):
        save_onnx(source, tmp_path / "out.onnx")
    assert names(tmp_path) == set()


# ---- external data ------------------------------------------------------------------------------------------------------


def test_external_data_stays_external_beside_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    onnx.save(two_layers(), tmp_path / "a" / "in.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = from_onnx(tmp_path / "a" / "in.onnx")
    written = save_onnx(to_model(graph), tmp_path / "b" / "out.onnx")
    assert written == [tmp_path / "b" / "out.onnx", tmp_path / "b" / "out.onnx.data"]
    assert names(tmp_path / "b") == {"out.onnx", "out.onnx.data"}
    feeds = {"x": floats(2, 64, seed=4)}
    assert np.array_equal(run_ort(str(written[0]), feeds)[0], run_ort(two_layers(), feeds)[0])
    again = from_onnx(written[0])
    assert np.array_equal(again.nodes[1].inputs[1].const.read(), floats(64, 64, seed=1))


def test_external_data_may_be_written_over_itself(tmp_path: Path) -> None:
    onnx.save(two_layers(), tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    graph = from_onnx(tmp_path / "m.onnx")
    node = graph.nodes[0]
    graph.set_input(node, 1, graph.derived(node.inputs[1], node.inputs[1].const.float64() * 2))
    save_onnx(to_model(graph), tmp_path / "m.onnx", force=True)
    assert names(tmp_path) == {"m.onnx", "m.onnx.data"}
    first, second = from_onnx(tmp_path / "m.onnx").nodes
    assert np.array_equal(first.inputs[1].const.read(), floats(64, 64) * 2)
    assert np.array_equal(second.inputs[1].const.read(), floats(64, 64, seed=1))


def test_what_a_protobuf_cannot_hold_goes_to_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "LIMIT", 20_000)
    source = to_model(view(tmp_path))
    with pytest.raises(UsageError, match="2 GiB"):
        proto_bytes(source)
    with pytest.raises(UsageError, match="external data"):
        save_onnx(source, tmp_path / "out.onnx", external=False)
    assert [path.name for path in save_onnx(source, tmp_path / "out.onnx")] == ["out.onnx", "out.onnx.data"]
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[1].raw_data == floats(64, 64, seed=1).tobytes()


def test_small_tensors_stay_inside_a_model_with_external_data(tmp_path: Path) -> None:
    written = save_onnx(to_model(from_onnx(conv_bn())), tmp_path / "out.onnx", external=True)
    assert written == [tmp_path / "out.onnx"]
    assert names(tmp_path) == {"out.onnx"}


def test_the_limit_is_protobufs() -> None:
    assert onnx_stream.LIMIT == 2**31 - 1


# ---- the place ----------------------------------------------------------------------------------------------------------


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"mine")
    source = to_model(from_onnx(two_layers()))
    with pytest.raises(UsageError, match="exists: give --force"):
        save_onnx(source, path)
    assert path.read_bytes() == b"mine"
    save_onnx(source, path, force=True)
    assert onnx.load(path) == two_layers()


@pytest.mark.parametrize("name, message", [("none/out.onnx", "does not exist: create"), ("folder", "is a folder")])
def test_impossible_places_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=message):
        save_onnx(to_model(from_onnx(two_layers())), tmp_path / name, force=True)
    assert names(tmp_path) == {"folder"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_writing_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"old")

    def fails(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UsageError):
        write_files({other: lambda file: file.write(b"done"), path: fails}, force=True)
    assert names(tmp_path) == {"a"}
    assert path.read_bytes() == b"old"


def test_a_link_is_written_through_and_the_mode_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    before = os.umask(0o027)
    try:
        write_files({tmp_path / "link": lambda file: file.write(b"new")}, force=True)
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


# ---- the simplifier and the check ---------------------------------------------------------------------------------------


def foldable() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["a", "a"], ["s"]),
        helper.make_node("MatMul", ["x", "s"], ["m"]),
        helper.make_node("Identity", ["m"], ["y"]),
    ]
    return model(nodes, [info("x", ["N", 4])], [info("y", ["N", 4])], {"a": floats(4, 4)})


def test_onnxsim_folds_what_it_can_and_leaves_batch_normalization(tmp_path: Path) -> None:
    simplified = simplify(foldable().SerializeToString())
    assert simplified is not None
    assert [node.op_type for node in onnx.load_from_string(simplified).graph.node] == ["MatMul"]
    onnx.save(conv_bn(), tmp_path / "m.onnx")
    kept = simplify(tmp_path / "m.onnx")
    assert kept is not None
    assert [node.op_type for node in onnx.load_from_string(kept).graph.node] == ["Conv", "BatchNormalization", "Relu"]
    assert names(tmp_path) == {"m.onnx"}


def test_weights_that_callers_may_override_are_no_constants_to_the_simplifier() -> None:
    proto = foldable()
    proto.graph.input.append(info("a", [4, 4]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(2), "unlisted"))
    simplified = simplify(proto.SerializeToString())
    assert simplified is not None
    assert [node.op_type for node in onnx.load_from_string(simplified).graph.node] == ["Add", "MatMul"]


def test_a_simplifier_that_crashes_is_left_out_with_a_warning() -> None:
    proto = conv_bn()
    proto.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 0]))  # a division by zero in native code
    record = Record()
    assert simplify(proto.SerializeToString(), record=record) is None
    assert len(record.warnings) == 1
    assert "onnxsim step was left out" in record.warnings[0]


def test_a_model_with_external_data_is_not_simplified(tmp_path: Path) -> None:
    onnx.save(two_layers(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    record = Record()
    assert simplify(tmp_path / "m.onnx", record=record) is None
    assert "external data" in record.warnings[0]


def test_a_simplifier_without_time_is_left_out_with_a_warning() -> None:
    record = Record()
    assert simplify(foldable().SerializeToString(), record=record, seconds=0.01) is None
    assert "stopped after 0.01 s in onnxsim" in record.warnings[0]


def test_written_files_are_checked_by_onnx_and_loaded_by_the_runtime(tmp_path: Path) -> None:
    onnx.save(conv_bn(), tmp_path / "good.onnx")
    result = check(tmp_path / "good.onnx")
    assert result.passed
    assert (onnx_tasks.check(str(tmp_path / "good.onnx")), onnx_tasks.load(str(tmp_path / "good.onnx"))) == ("", "")
    assert (result.checker, result.runtime) == ("", "")


def test_what_the_checker_or_the_runtime_dislike_is_told(tmp_path: Path) -> None:
    proto = conv_bn()
    proto.graph.node[2].op_type = "NoSuchOp"
    onnx.save(proto, tmp_path / "bad.onnx")
    assert "NoSuchOp" in onnx_tasks.check(str(tmp_path / "bad.onnx")) + onnx_tasks.load(str(tmp_path / "bad.onnx"))
    result = check(tmp_path / "bad.onnx")
    assert not result.passed
    assert "NoSuchOp" in result.checker
    assert "NoSuchOp" in result.runtime
    assert check(tmp_path / "bad.onnx", runtime=False).runtime == ""
