"""An onnx-ir model written piece by piece: no weight is copied into a message, one at a time passes through memory.

Protobuf lets the fields of a message stand in any order, so the graph is written as its small part followed by the initializers.
"""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

import onnx
import onnx_ir as ir

from normfold.capture.onnx_proto import message_without
from normfold.capture.onnx_read import SparseTensor
from normfold.capture.onnx_wire import GRAPH_INITIALIZER, MODEL_GRAPH, TENSOR_RAW_DATA, FileTensor, tag

GRAPH_SPARSE_INITIALIZER = 15
LIMIT = (1 << 31) - 1  # bytes; no reader takes a larger protobuf


class Piece(NamedTuple):
    """One initializer as it will stand in the file: its message up to the data, the tensor that gives the data, its length.

    number: the graph's field.  tensor is None where `head` is the whole message.
    """

    number: int
    head: bytes
    tensor: Any
    length: int

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self.head) + (0 if self.tensor is None else len(tag(TENSOR_RAW_DATA, self.length)) + self.length)


class Plan:
    """A model laid out for writing.

    external: name of the data file, None to keep everything inside.  threshold: tensors of fewer bytes stay inside.
    """

    def __init__(self, model: ir.Model, external: str | None = None, threshold: int = 1024) -> None:
        proto = message_without(model, lambda tensor: True)
        self._graph = proto.graph.SerializeToString(deterministic=True)
        proto.ClearField("graph")
        self._model = proto.SerializeToString(deterministic=True)
        self._external: list[Any] = []
        self._offset = 0
        self.pieces = [
            self._piece(value.name or "", value.const_value, external, threshold) for value in model.graph.initializers.values()
        ]
        self._graph_size = len(self._graph) + sum(len(tag(piece.number, piece.size)) + piece.size for piece in self.pieces)

    @property
    def size(self) -> int:
        """Bytes of the model file."""
        return len(self._model) + len(tag(MODEL_GRAPH, self._graph_size)) + self._graph_size

    @property
    def has_external(self) -> bool:
        """True when the data file will hold something."""
        return bool(self._external)

    def _piece(self, name: str, tensor: Any, external: str | None, threshold: int) -> Piece:
        if isinstance(tensor, SparseTensor):
            sparse = onnx.SparseTensorProto()
            sparse.CopyFrom(tensor.proto)
            sparse.values.name = name
            return Piece(GRAPH_SPARSE_INITIALIZER, sparse.SerializeToString(deterministic=True), None, 0)
        if tensor.dtype == ir.DataType.STRING:
            message = ir.serde.serialize_tensor(tensor)
            message.name = name
            return Piece(GRAPH_INITIALIZER, message.SerializeToString(deterministic=True), None, 0)
        head = onnx.TensorProto(dims=[int(size) for size in tensor.shape.numpy()], data_type=tensor.dtype.value, name=name)
        if tensor.doc_string:
            head.doc_string = tensor.doc_string
        for key, value in tensor.metadata_props.items():
            head.metadata_props.add(key=key, value=value)
        length = int(tensor.nbytes)
        if external is not None and length >= threshold:
            head.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", external), ("offset", self._offset), ("length", length)):
                head.external_data.add(key=key, value=str(value))
            self._external.append(tensor)
            self._offset += length
            return Piece(GRAPH_INITIALIZER, head.SerializeToString(deterministic=True), None, 0)
        return Piece(GRAPH_INITIALIZER, head.SerializeToString(deterministic=True), tensor, length)

    def write(self, file: BinaryIO) -> None:
        """The model file."""
        file.write(self._model)
        file.write(tag(MODEL_GRAPH, self._graph_size))
        file.write(self._graph)
        for piece in self.pieces:
            file.write(tag(piece.number, piece.size))
            file.write(piece.head)
            if piece.tensor is not None:
                file.write(tag(TENSOR_RAW_DATA, piece.length))
                _write_data(file, piece.tensor, piece.length)

    def write_external(self, file: BinaryIO) -> None:
        """The data file."""
        for tensor in self._external:
            _write_data(file, tensor, int(tensor.nbytes))


def _write_data(file: BinaryIO, tensor: Any, length: int) -> None:
    if isinstance(tensor, FileTensor):
        written = 0
        for part in tensor.source.parts(tensor.offset, tensor.length):
            written += file.write(part)
    else:
        data = _bytes_of(tensor)
        written = len(data)
        file.write(data)
    if written != length:
        raise ValueError(f"the tensor {tensor.name!r} has {written} bytes, {length} were announced")


def _bytes_of(tensor: Any) -> Any:
    """The bytes as ONNX stores them, without a copy where the array has them in that order already."""
    if tensor.dtype.itemsize == int(tensor.dtype.itemsize):
        array = tensor.numpy()
        if array.flags.c_contiguous and array.dtype.byteorder in "=|<" and array.dtype.itemsize == tensor.dtype.itemsize:
            return array.reshape(-1).view("u1").data if array.size else b""
    return tensor.tobytes()
