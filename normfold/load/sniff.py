"""What a file is, judged by its content.  Nothing is executed, nothing large is read."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from normfold.errors import InputRefused
from normfold.load.wire import Damaged, fields

Format = Literal["onnx", "pt2", "state_dict", "torchscript", "safetensors"]

_RATIO, _INFLATED = 200, 64 << 20  # a zip entry that inflates beyond both is a bomb; torch stores weights uncompressed
_FIELDS = {
    1: 0,
    2: 2,
    3: 2,
    4: 2,
    5: 0,
    6: 2,
    7: 2,
    8: 2,
    14: 2,
    20: 2,
    25: 2,
    26: 2,
}  # of ONNX's ModelProto: number -> wire type
_HEADS: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the model: fetch the real file with `git lfs pull`"),
    (b"\x89HDF\r\n", "is an HDF5 (Keras) file: convert it to ONNX first, with tf2onnx for example"),
    (b"\x1f\x8b", "is gzip-compressed: unpack it first"),
    (b"BZh", "is bzip2-compressed: unpack it first"),
    (b"\xfd7zXZ\x00", "is xz-compressed: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"GGUF", "is a GGUF file: give the original .onnx, .pt2 or checkpoint"),
    (b"\x93NUMPY", "is a NumPy array, not a model: give it with --data if it is an input"),
)


def refuse(path: Path | str, what: str) -> InputRefused:
    """The error for `path`; `what` says what is wrong and what to do."""
    return InputRefused(f"{str(path)!r} {what}" if not str(path).isprintable() else f"{path} {what}")


def regular_file(path: Path) -> int:
    """The size of the regular file `path`.  Raises InputRefused for anything else, without opening it."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise refuse(path, "does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise refuse(path, f"cannot be read ({getattr(error, 'strerror', None) or error}): check the path") from None
    if stat.S_ISDIR(status.st_mode):
        raise refuse(path, "is a folder: give the model file in it")
    if not stat.S_ISREG(status.st_mode):
        raise refuse(path, "is not a regular file (a device, pipe or socket): give the model as a file")
    return status.st_size


def sniff(path: Path) -> Format:
    """The format of the file.  Raises InputRefused, naming what it looks like, for everything that is not a model."""
    size = regular_file(path)
    if size == 0:
        raise refuse(path, "is empty: fetch or export it again")
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error.strerror}): check its permissions") from None
    if size < 16:
        raise refuse(path, f"has {size} byte{'s' * (size > 1)}, too short for a model: fetch or export it again")
    if head.startswith(b"PK"):
        return _zip(path)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "state_dict"  # a pickle: torch's legacy format; torch.load(weights_only=True) judges it
    for magic, what in _HEADS:
        if head.startswith(magic):
            raise refuse(path, what)
    if head[4:8] == b"TFL3":
        raise refuse(path, "is a TFLite file: give the model it was made from, or convert it with tflite2onnx")
    if head[257:262] == b"ustar":
        raise refuse(
            path, "is a tar archive (or a torch file from before 2018): unpack it, or save the weights again with torch.save"
        )
    _text(path, head)
    if head[8:9] == b"{":
        return "safetensors"
    return _protobuf(path, size)


def _text(path: Path, head: bytes) -> None:
    """Refuse what looks like text."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise refuse(path, "looks like a web page, not a model: the download failed or needs a login; fetch the raw file")
    if start.startswith(b"<?xml"):
        raise refuse(path, "is an XML file: give the .onnx, .pt2 or checkpoint")
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return
        text = head[: error.start].decode("utf-8")
    if all(character.isprintable() or character in "\t\r\n" for character in text):
        what = "JSON" if start[:1] in (b"{", b"[") else "text"
        raise refuse(path, f"looks like {what}, not a model: give the .onnx, .pt2 or checkpoint")


def _zip(path: Path) -> Format:
    """Which of torch's zip formats it is, after the central directory was checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error) as error:
        raise refuse(path, f"is a damaged or truncated zip file ({error}): fetch or save it again") from None
    seen: set[str] = set()
    inflated = 0
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or name[1:2] == ":":
            raise refuse(path, f"has an entry that leaves the archive ({entry.filename!r}): do not trust its source")
        if name in seen:
            raise refuse(path, f"has two entries named {entry.filename!r}: save it again, or do not trust its source")
        seen.add(name)
        inflated += entry.file_size
        if entry.flag_bits & 1:
            raise refuse(path, "is an encrypted zip: unpack it first")
    stored = sum(entry.compress_size for entry in entries)
    if inflated > _INFLATED and inflated > _RATIO * max(stored, 1):
        raise refuse(
            path, f"is a zip that inflates {inflated // max(stored, 1)}-fold to {inflated >> 20} MiB: do not trust its source"
        )
    members = {name.split("/", 1)[-1] for name in seen}  # below the archive's root folder
    if "archive_format" in members or "serialized_exported_program.json" in seen:
        return "pt2"
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        return "torchscript"
    if "data.pkl" in members:
        return "state_dict"
    if "[Content_Types].xml" in seen:
        raise refuse(path, "is an office document, not a model")
    if any(name.endswith(".npy") for name in seen):
        raise refuse(path, "is a NumPy archive, not a model: give inputs with --data")
    if any(name.startswith(".data/") for name in members):
        raise refuse(path, "is a torch.package, which is code: save the state_dict, or export to .pt2 or .onnx")
    raise refuse(path, "is a zip file without a model of torch in it: unpack it and give the model")


def _protobuf(path: Path, size: int) -> Format:
    """Walk the top-level fields of a protobuf message: cheap, and it names truncation instead of failing in a parser."""
    numbers, end = set[int](), 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for field in fields(data, 0, size):
                newer = numbers and field.number not in _FIELDS and field.number < 200  # of a later ONNX: kept
                if not newer and _FIELDS.get(field.number) != field.wire:
                    raise Damaged(field.start, "an unknown field")
                numbers.add(field.number)
                end = field.end
        except Damaged as error:
            if numbers & {7, 8}:
                raise refuse(path, f"is a damaged or truncated ONNX file ({error}): fetch or export it again") from None
            numbers = set()
    if not numbers & {1, 7, 8}:
        raise refuse(path, "is not a model that normfold knows: give .onnx, .pt2, a torch checkpoint or .safetensors")
    if end > size:
        raise refuse(path, f"is truncated: it should have {end} bytes and has {size}; fetch or export it again")
    if 7 not in numbers:
        raise refuse(path, "is an ONNX file without a graph: export it again")
    return "onnx"
