"""External data of an ONNX model: every location, offset and length is checked before anything is opened or allocated.

ONNX stores large tensors in files beside the model: ``location`` (a relative path), ``offset`` and ``length`` in bytes.
A hostile model uses them to read other files ("../../etc/shadow", a symlink), to block (a fifo) or to exhaust memory.
The checks look at names and file status only; a file that is exchanged afterwards is not noticed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from normfold.load.sniff import refuse

_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_BITS = {  # of an element, by TensorProto.DataType
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_HUGE = 1 << 48  # bytes; no tensor of a real model is larger, and the product of its dims stays exact


def element_bytes(data_type: int, dims: Iterable[int]) -> int | None:
    """Bytes of a tensor, None for a type without fixed size (strings, unknown).  Raises ValueError for impossible dims."""
    count = 1
    sizes = list(dims)
    for size in sizes:
        if size < 0:
            raise ValueError(f"its dims {sizes} have a negative size")
        count *= size
    bits = _BITS.get(data_type)
    if bits is None:
        return None
    if count * bits // 8 > _HUGE:
        raise ValueError(f"its dims {sizes} overflow")
    return (count * bits + 7) // 8


def check_external(model: Path, tensors: Iterable[tuple[str, Any]], folder: Path | None = None) -> list[str]:
    """Check every external tensor of `model`; returns warnings.

    tensors: (where it stands, TensorProto) pairs.  Raises InputRefused, naming the tensor and the field, for a location
    that is missing, absolute, leaves the folder, or is not a regular file, and for an offset or length outside the file.
    """
    folder = model.parent if folder is None else folder
    warnings: dict[str, None] = {}
    sizes: dict[str, int] = {}
    for where, tensor in tensors:
        if tensor.data_location != 1:
            continue
        fields: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
        subject = f"{where} {tensor.name!r}"
        for key in fields.keys() - _KEYS:
            warnings[f"{subject}: the external-data key {key!r} is unknown and ignored"] = None
        location = fields.get("location", "")
        if location not in sizes:
            sizes[location] = 0
            sizes[location] = _location(model, folder, subject, location, warnings)
        _range(model, subject, tensor, fields, sizes[location])
    return list(warnings)


def _location(model: Path, folder: Path, subject: str, location: str, warnings: dict[str, None]) -> int:
    """The size of the file at `location`, after its path was judged."""

    def bad(what: str) -> Exception:
        return refuse(model, f"cannot be read: external data of {subject} {what}")

    if not location:
        raise bad("has no location: export the model again")
    if "\0" in location or not location.isprintable():
        raise bad(f"has control characters in its location {location!r}: do not trust its source")
    windows = PureWindowsPath(location)
    if PurePosixPath(location).is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        raise bad(f"has the absolute location {location!r}: put the file beside the model and save it with a relative location")
    if ".." in windows.parts:
        raise bad(f"has the location {location!r}, which leaves the model's folder: put the file beside the model")
    path = folder / location
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if not real.is_relative_to(home):
        if not _cached(home, real):
            raise bad(f"is {location!r}, a symbolic link that leaves the model's folder (to {real}): copy the file itself there")
        warnings[f"external data {location!r} is a link into the download cache ({real})"] = None
    try:
        status = os.stat(path)
    except OSError as error:
        raise bad(f"is missing: {path} ({error.strerror}); fetch it and put it beside the model") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise bad(f"is {location!r}, {kind} instead of a regular file: put the data file there")
    if status.st_nlink > 1:
        warnings[f"external data {location!r} has hard links: it may be shared with other files"] = None
    return status.st_size


def _cached(home: Path, real: Path) -> bool:
    """True for the layout of download caches: ``<repo>/snapshots/<revision>/file`` -> ``<repo>/blobs/<hash>``."""
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            return real.parent == folder.parent.parent / "blobs"
    return False


def _range(model: Path, subject: str, tensor: Any, fields: dict[str, str], size: int) -> None:
    """Check offset and length against the file, and the length against the dims."""

    def bad(what: str) -> Exception:
        return refuse(model, f"cannot be read: external data of {subject} {what}")

    def number(key: str, default: int) -> int:
        text = fields.get(key, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise bad(f"has the {key} {text[:40]!r}; expected a byte count >= 0")
        return int(text)

    offset = number("offset", 0)
    if offset > size:
        raise bad(f"starts at byte {offset}, its file has {size}: fetch it again")
    length = number("length", size - offset)
    if offset + length > size:
        raise bad(f"ends at byte {offset + length}, its file has {size}: fetch it again")
    try:
        needed = element_bytes(tensor.data_type, tensor.dims)
    except ValueError as error:
        raise refuse(model, f"is malformed: {subject}: {error}; export it again") from None
    if needed is None and tensor.data_type in (0, 8):
        raise bad(f"has the type {tensor.data_type}, which cannot be external: export it again")
    if needed is not None and length < needed:
        raise bad(f"has {length} bytes, its dims {list(tensor.dims)} need {needed}: fetch it again")


def tensors_of(model: Any) -> Iterator[tuple[str, Any]]:
    """(where, TensorProto) of every tensor of a ModelProto: initializers, attributes, sub-graphs, functions, sparse parts.

    Iterative: nesting costs no stack.
    """
    stack: list[tuple[str, Any]] = [("graph", model.graph), *(("function", function) for function in model.functions)]
    while stack:
        kind, graph = stack.pop()
        if kind == "graph":
            for tensor in graph.initializer:
                yield "initializer", tensor
            for sparse in graph.sparse_initializer:
                yield "sparse initializer", sparse.values
                yield "sparse initializer", sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                where = f"attribute {attribute.name!r} of {node.op_type} {node.name!r}:"
                if attribute.type == 4:
                    yield where, attribute.t
                elif attribute.type == 9:
                    for tensor in attribute.tensors:
                        yield where, tensor
                elif attribute.type == 11:
                    yield where, attribute.sparse_tensor.values
                    yield where, attribute.sparse_tensor.indices
                elif attribute.type == 12:
                    for sparse in attribute.sparse_tensors:
                        yield where, sparse.values
                        yield where, sparse.indices
                elif attribute.type == 5:
                    stack.append(("graph", attribute.g))
                elif attribute.type == 10:
                    stack.extend(("graph", item) for item in attribute.graphs)
                elif attribute.type == 0:  # IR 1 files leave the type out
                    if attribute.HasField("t"):
                        yield where, attribute.t
                    if attribute.HasField("g"):
                        stack.append(("graph", attribute.g))
