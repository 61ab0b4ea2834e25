"""External data of hostile models: refused by name and status, before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import onnx.helper as oh
import pytest

from normfold.errors import InputRefused
from normfold.load.external import check_external, element_bytes, tensors_of

FLOAT = onnx.TensorProto.FLOAT


def external(
    location: str | None = "w.bin", dims: tuple[int, ...] = (4,), data_type: int = FLOAT, **fields: Any
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", dims=dims, data_type=data_type, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def check(folder: Path, tensor: onnx.TensorProto) -> list[str]:
    return check_external(folder / "model.onnx", [("initializer", tensor)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "w.bin").write_bytes(bytes(16))
    (tmp_path / "secret").write_bytes(bytes(64))
    return home


def test_data_beside_the_model_is_accepted(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(bytes(32))
    assert check(folder, external()) == []
    assert check(folder, external(offset=0, length=16, checksum="abc")) == []
    assert check(folder, external("sub/w.bin", offset=16)) == []


LOCATIONS = {
    None: "no location",
    "": "no location",
    "../secret": "leaves the model's folder",
    "sub/../../secret": "leaves the model's folder",
    "..\\secret": "leaves the model's folder",
    "/etc/passwd": "absolute location",
    "C:\\secret": "absolute location",
    "\\\\server\\secret": "absolute location",
    "none.bin": "is missing",
    "w.bin\0.txt": "control characters",
    "w\x1b[2J.bin": "control characters",
    ".": "a folder",
}


@pytest.mark.parametrize("location", LOCATIONS)
def test_bad_locations_are_refused(folder: Path, location: str | None) -> None:
    with pytest.raises(InputRefused) as caught:
        check(folder, external(location))
    message = str(caught.value)
    assert LOCATIONS[location] in message
    assert "'w'" in message
    assert message.isprintable()


def test_folders_pipes_and_devices_are_refused_without_opening_them(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name, reason in (("pipe", "a device, pipe or socket"),):
        with pytest.raises(InputRefused, match=reason):
            check(folder, external(name))


def test_a_link_that_leaves_the_folder_is_refused(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret")
    (folder / "out").symlink_to(folder.parent)
    for location in ("link.bin", "out/secret"):
        with pytest.raises(InputRefused, match="symbolic link"):
            check(folder, external(location))
    (folder / "inner.bin").symlink_to(folder / "w.bin")
    assert check(folder, external("inner.bin")) == []


def test_the_links_of_a_download_cache_are_a_warning(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc123"
    blobs.mkdir(parents=True)
    (snapshot / "onnx").mkdir(parents=True)
    (blobs / "f00d").write_bytes(bytes(16))
    for place in (snapshot, snapshot / "onnx"):
        (place / "w.bin").symlink_to(blobs / "f00d")
        assert any("download cache" in text for text in check(place, external()))
    (snapshot / "evil.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputRefused, match="symbolic link"):
        check(snapshot, external("evil.bin"))


def test_hard_links_and_unknown_keys_are_warnings(folder: Path) -> None:
    os.link(folder / "w.bin", folder / "twin.bin")
    warnings = check(folder, external(colour="blue"))
    assert any("hard links" in text for text in warnings)
    assert any("'colour'" in text for text in warnings)


RANGES = [
    ({"offset": -1}, "the offset '-1'"),
    ({"length": -16}, "the length '-16'"),
    ({"offset": "0x10"}, "the offset '0x10'"),
    ({"offset": "1e3"}, "the offset '1e3'"),
    ({"offset": "٣"}, "the offset"),
    ({"length": "9" * 30}, "the length"),
    ({"offset": 17}, "starts at byte 17, its file has 16"),
    ({"length": 17}, "ends at byte 17, its file has 16"),
    ({"offset": 8, "length": 12}, "ends at byte 20"),
    ({"offset": 4}, "has 12 bytes, its dims [4] need 16"),
    ({"length": 12}, "has 12 bytes, its dims [4] need 16"),
    ({"dims": (1 << 40,)}, "need"),
    ({"dims": (-4,)}, "negative size"),
    ({"dims": (1 << 62, 1 << 62)}, "overflow"),
    ({"data_type": onnx.TensorProto.STRING}, "cannot be external"),
    ({"data_type": 0}, "cannot be external"),
]


@pytest.mark.parametrize("fields, reason", RANGES)
def test_ranges_outside_the_file_are_refused(folder: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputRefused) as caught:
        check(folder, external(**fields))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "data_type, dims, expected",
    [
        (FLOAT, (2, 3), 24),
        (onnx.TensorProto.FLOAT16, (3,), 6),
        (onnx.TensorProto.BFLOAT16, (3,), 6),
        (onnx.TensorProto.DOUBLE, (), 8),
        (onnx.TensorProto.INT4, (3,), 2),
        (onnx.TensorProto.UINT2, (5,), 2),
        (onnx.TensorProto.BOOL, (0, 7), 0),
        (onnx.TensorProto.COMPLEX128, (2,), 32),
        (onnx.TensorProto.STRING, (2,), None),
    ],
)
def test_element_bytes(data_type: int, dims: tuple[int, ...], expected: int | None) -> None:
    assert element_bytes(data_type, dims) == expected


def test_tensors_are_found_everywhere() -> None:
    """In initializers, attributes, sub-graphs within sub-graphs, functions and sparse tensors."""

    def tensor(name: str) -> onnx.TensorProto:
        return oh.make_tensor(name, FLOAT, [1], [0.0])

    def graph(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return oh.make_graph(nodes, name, [], [oh.make_tensor_value_info(f"{name}_y", FLOAT, [1])], [tensor(f"{name}_init")])

    innermost = graph("inner", [oh.make_node("Constant", [], ["inner_y"], value=tensor("constant"))])
    middle = graph("middle", [oh.make_node("If", ["c"], ["middle_y"], then_branch=innermost, else_branch=innermost)])
    outer = graph("outer", [oh.make_node("If", ["c"], ["outer_y"], then_branch=middle, else_branch=innermost)])
    sparse = oh.make_sparse_tensor(tensor("values"), oh.make_tensor("indices", onnx.TensorProto.INT64, [1], [0]), [4])
    outer.sparse_initializer.append(sparse)
    body = [oh.make_node("Constant", [], ["f"], value=tensor("in_function"))]
    model = oh.make_model(outer, functions=[oh.make_function("d", "F", [], ["f"], body, [oh.make_opsetid("", 20)])])
    names = {item.name for _, item in tensors_of(model)}
    assert names == {"outer_init", "middle_init", "inner_init", "constant", "values", "indices", "in_function"}


def test_tensors_in_lists_and_in_files_of_ir_1_are_found() -> None:
    def tensor(name: str) -> onnx.TensorProto:
        return oh.make_tensor(name, FLOAT, [1], [0.0])

    y = oh.make_tensor_value_info("y", FLOAT, [1])
    inner = oh.make_graph([], "inner", [], [], [tensor("deep")])
    indices = oh.make_tensor("indices", onnx.TensorProto.INT64, [1], [0])
    node = onnx.NodeProto(op_type="Odd", output=["y"])
    node.attribute.add(name="ts", type=9).tensors.extend([tensor("listed")])
    node.attribute.add(name="gs", type=10).graphs.append(inner)
    node.attribute.add(name="s", type=11).sparse_tensor.CopyFrom(oh.make_sparse_tensor(tensor("one"), indices, [4]))
    node.attribute.add(name="ss", type=12).sparse_tensors.append(oh.make_sparse_tensor(tensor("many"), indices, [4]))
    node.attribute.add(name="untyped").t.CopyFrom(tensor("old"))
    node.attribute.add(name="untyped_graph").g.CopyFrom(oh.make_graph([], "g", [], [], [tensor("old_deep")]))
    model = oh.make_model(oh.make_graph([node], "g", [], [y]))
    assert {item.name for _, item in tensors_of(model)} == {"listed", "deep", "one", "many", "indices", "old", "old_deep"}
