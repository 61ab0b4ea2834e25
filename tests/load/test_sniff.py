"""Files that are no models, and files that are: judged by their bytes, whatever they are called."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import onnx
import onnx.helper as oh
import pytest
import torch

from normfold.errors import InputRefused
from normfold.load.sniff import sniff


def onnx_bytes() -> bytes:
    x, y = (oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy")
    return oh.make_model(oh.make_graph([oh.make_node("Relu", ["x"], ["y"])], "g", [x], [y])).SerializeToString()


def zip_of(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
REFUSED = {
    "empty": (b"", "is empty"),
    "one byte": (b"\x08", "has 1 byte, too short"),
    "web page": (b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "looks like a web page"),
    "web page in capitals": (b"<HTML><BODY>404 Not Found, sorry</BODY></HTML>", "looks like a web page"),
    "lfs pointer": (LFS, "fetch the real file"),
    "json": (b'{"model": {"layers": []}, "x": 1}', "looks like JSON"),
    "json list": (b"[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]", "looks like JSON"),
    "text with a brace where safetensors has one": (b"function{ return 1; }", "looks like text"),
    "python": (b"import torch\nmodel = torch.nn.Linear(2, 2)\n", "looks like text"),
    "utf-8 cut at 4096": ("ä".encode() * 4097, "looks like text"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras"),
    "gzip": (b"\x1f\x8b\x08" + bytes(range(64)), "unpack it"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(range(64)), "TFLite"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
    "noise": (bytes(range(255, 0, -1)) * 4, "not a model that normfold knows"),
    "zeros": (bytes(1000), "not a model that normfold knows"),
    "zip that is none": (b"PK\x03\x04" + bytes(range(100)), "damaged or truncated zip"),
    "message without a graph": (b"\x08\x0a\x12\x10" + b"p" * 16, "without a graph"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    content, reason = REFUSED[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputRefused) as caught:
        sniff(path)
    message = str(caught.value)
    assert reason in message
    assert str(path) in message
    assert "\n" not in message
    assert path.read_bytes() == content


def test_paths_that_are_no_files_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "none.onnx", "does not exist"),
        (tmp_path / "pipe", "not a regular"),
    ):
        with pytest.raises(InputRefused, match=reason):
            sniff(path)
    with pytest.raises(InputRefused, match="cannot be read"):
        sniff(Path("a\0b"))
    with pytest.raises(InputRefused) as caught:
        sniff(tmp_path / "escape\x1b[31m")
    assert "\x1b" not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes())

    def denied(*_args: object, **_kwargs: object) -> None:  # root may read everything: chmod would not do
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputRefused, match=r"Permission denied.*check its permissions"):
        sniff(path)


def test_formats_are_known_by_content(tmp_path: Path) -> None:
    onnx_file, zipped, legacy, pt2, script = (tmp_path / f"{name}.txt" for name in ("onnx", "zipped", "legacy", "pt2", "script"))
    onnx_file.write_bytes(onnx_bytes())
    weights = {"w": torch.zeros(2)}
    torch.save(weights, zipped)
    torch.save(weights, legacy, _use_new_zipfile_serialization=False)
    with open(pt2, "wb") as file:
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), file)
    zip_of(script, {"net/data.pkl": b"", "net/constants.pkl": b"", "net/code/__torch__.py": b""})
    assert [sniff(path) for path in (onnx_file, zipped, legacy, pt2, script)] == [
        "onnx",
        "state_dict",
        "state_dict",
        "pt2",
        "torchscript",
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_a_checkpoint_to_judge(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"weights": [1.0, 2.0, 3.0]}, protocol=protocol))
    assert sniff(path) == "state_dict"


def test_a_truncated_onnx_file_is_named_so(tmp_path: Path) -> None:
    content = onnx_bytes()
    path = tmp_path / "model.onnx"
    whole = 0
    for length in range(16, len(content)):
        path.write_bytes(content[:length])
        try:
            onnx.ModelProto.FromString(content[:length])
        except Exception:
            with pytest.raises(InputRefused, match=r"truncated|without a graph|damaged|not a model"):
                sniff(path)
        else:
            whole += 1  # cut between two fields: what is missing is for the reader of the model to say
    assert whole < 5
    path.write_bytes(content)
    assert sniff(path) == "onnx"


def test_fields_of_a_later_onnx_are_let_through(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_bytes() + b"\xaa\x02\x03abc")  # field 37
    assert sniff(path) == "onnx"


HOSTILE_ZIPS = {
    "slip": ({"net/data.pkl": b"x", "../../etc/cron.d/x": b"x"}, "leaves the archive"),
    "absolute": ({"/etc/passwd": b"x"}, "leaves the archive"),
    "backslashes": ({"net\\..\\..\\x": b"x"}, "leaves the archive"),
    "drive": ({"C:/x": b"x"}, "leaves the archive"),
    "numpy": ({"arr_0.npy": b"x"}, "--data"),
    "package": ({"net/.data/version": b"x", "net/m.py": b"x"}, "torch.package"),
    "office": ({"[Content_Types].xml": b"x"}, "office document"),
    "other": ({"readme": b"x"}, "without a model"),
}


@pytest.mark.parametrize("case", HOSTILE_ZIPS)
def test_zip_files_that_are_no_model_are_refused(tmp_path: Path, case: str) -> None:
    entries, reason = HOSTILE_ZIPS[case]
    with pytest.raises(InputRefused, match=reason):
        sniff(zip_of(tmp_path / "net.pt", entries))


def test_a_zip_bomb_is_refused_by_its_ratio_before_it_is_inflated(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "net.pt", {"net/data.pkl": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputRefused, match="inflates"):
        sniff(path)


def test_the_same_name_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"a")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("net/data.pkl", b"b")
    with pytest.raises(InputRefused, match="two entries"):
        sniff(path)


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputRefused, match="truncated"):
        sniff(path)
