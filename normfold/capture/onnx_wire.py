"""ONNX files without their weights in memory: the wire format is scanned, large tensors stay on disk and are read when asked for.

A ModelProto parsed as a whole holds every weight twice while it is read and once for ever.  Here the bytes of large initializers
are cut out of the message before it is parsed; what stands in for them is a `FileTensor`.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from normfold.errors import InputRefused
from normfold.load import wire

CUT = 1024  # bytes; smaller tensors stay in the message, where shape inference finds them

# field numbers of ModelProto, GraphProto and TensorProto
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
_CHUNK = 1 << 30  # one read call returns at most 2 GiB


class Source:
    """An open file that tensors are read from.  Replacing the file by name does not disturb it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self.fd).st_size
        weakref.finalize(self, os.close, self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file; raises InputRefused where the file became shorter."""
        parts = list(self.parts(offset, length, _CHUNK))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def parts(self, offset: int, length: int, chunk: int = 1 << 22) -> Iterator[bytes]:
        """The same in pieces of at most `chunk` bytes."""
        while length > 0:
            part = self._read_some(offset, min(length, chunk))
            if not part:
                raise InputRefused(f"{self.path} became shorter while it was read: do not change it during a run")
            yield part
            offset, length = offset + len(part), length - len(part)

    def _read_some(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.fd, length, offset)
        os.lseek(self.fd, offset, os.SEEK_SET)
        return os.read(self.fd, length)


class FileTensor(ir.LazyTensor):
    """A tensor whose bytes lie in a file; every reading reads them anew, nothing is kept.

    `inline`: the bytes stood inside the model file (not in external data).
    """

    __slots__ = ("inline", "length", "offset", "source")

    def __init__(
        self, source: Source, offset: int, length: int, dtype: ir.DataType, shape: ir.Shape, name: str, *, inline: bool
    ) -> None:
        read = partial(_tensor, source, offset, length, dtype, tuple(int(size) for size in shape.numpy()))
        super().__init__(read, dtype=dtype, shape=shape, name=name)
        self.source, self.offset, self.length, self.inline = source, offset, length, inline

    def tobytes(self) -> bytes:
        """The bytes as stored, little endian."""
        return self.source.read(self.offset, self.length)


def _tensor(source: Source, offset: int, length: int, dtype: ir.DataType, sizes: tuple[int, ...]) -> ir.TensorProtocol:
    data, element = source.read(offset, length), dtype.numpy()
    if element.itemsize * int(np.prod(sizes, dtype=np.int64)) != length:  # several elements a byte: let ONNX unpack them
        return ir.serde.TensorProtoTensor(onnx.TensorProto(dims=sizes, data_type=dtype.value, raw_data=data))
    little = element.newbyteorder("<") if element.kind in "iufc" else element
    return ir.Tensor(np.frombuffer(data, dtype=little).reshape(sizes), dtype=dtype)


class Cut(NamedTuple):
    """Where the raw_data of one initializer lies in the file: the position among the graph's initializers, offset and length."""

    position: int
    offset: int
    length: int


def read_proto(path: Path) -> tuple[onnx.ModelProto, list[Cut], Source]:
    """The model without the bytes of its large initializers, where these lie, and the open file.

    Raises InputRefused for a file that is no ONNX protobuf.
    """
    try:
        source = Source(path)
    except OSError as error:
        raise InputRefused(f"{path} cannot be read ({error.strerror or error}): check the path and its permissions") from None
    if source.size == 0:
        raise InputRefused(f"{path} is empty: fetch or export it again")
    try:
        with mmap.mmap(source.fd, 0, access=mmap.ACCESS_READ) as data:
            small, cuts = scan(data)
    except (ValueError, OSError):  # not what the scanner knows: the parser decides
        small, cuts = source.read(0, source.size), []
    try:
        return onnx.ModelProto.FromString(small), cuts, source
    except DecodeError as error:
        if "Depth" in str(error):
            raise InputRefused(f"{path} nests sub-graphs deeper than protobuf reads (100 messages): flatten it first") from None
        raise InputRefused(
            f"{path} is not an ONNX model, or a truncated one: expected a protobuf; fetch or export it again"
        ) from None


def scan(data: Any) -> tuple[bytes, list[Cut]]:
    """The message without the raw_data of large initializers, and where these are.  Raises ValueError where it is odd."""
    parts: list[bytes] = []
    cuts: list[Cut] = []
    graphs = 0
    for number, form, start, value, end in fields(data, 0, len(data)):
        if number == MODEL_GRAPH and form == 2:
            graphs += 1
            graph = _scan_graph(data, value, end, cuts)
            parts += [tag(MODEL_GRAPH, len(graph)), graph]
        else:
            parts.append(data[start:end])
    if graphs > 1:
        raise ValueError("a graph in several pieces")
    return b"".join(parts), cuts


def _scan_graph(data: Any, start: int, end: int, cuts: list[Cut]) -> bytes:
    parts: list[bytes] = []
    index = 0
    kept = start  # everything from here to the next cut is copied in one piece
    for number, form, begin, value, stop in fields(data, start, end):
        if number != GRAPH_INITIALIZER or form != 2:
            continue
        if stop - value > CUT:
            raw = [item for item in fields(data, value, stop) if item[0] == TENSOR_RAW_DATA and item[1] == 2]
            if len(raw) == 1 and raw[0][4] - raw[0][3] > CUT:
                _, _, field, content, content_end = raw[0]
                small = data[value:field] + data[content_end:stop]
                parts += [data[kept:begin], tag(GRAPH_INITIALIZER, len(small)), small]
                cuts.append(Cut(index, content, content_end - content))
                kept = stop
        index += 1
    parts.append(data[kept:end])
    return b"".join(parts)


def fields(data: Any, position: int, end: int) -> Iterator[wire.Field]:
    """Every field of a message.  Raises ValueError where it is damaged or a field ends behind its message."""
    for field in wire.fields(data, position, end):
        if field.end > end:
            raise ValueError("a field beyond its message")
        yield field


def varint(value: int) -> bytes:
    """`value` >= 0 as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, length: int) -> bytes:
    """The head of a field that holds `length` bytes."""
    return varint(number << 3 | 2) + varint(length)
