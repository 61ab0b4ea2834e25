"""An ONNX file, protobuf or onnx-ir model as an onnx-ir model of our own: checked, weights on disk, functions inlined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from normfold.capture import onnx_check
from normfold.capture.onnx_wire import Cut, FileTensor, Source, read_proto
from normfold.errors import InputRefused
from normfold.graph import Array
from normfold.load.external import check_external, tensors_of
from normfold.load.quiet import quiet
from normfold.record import Record

_SPARSE_LIMIT = 1 << 28  # bytes of a sparse tensor once dense


class SparseTensor(ir.LazyTensor):
    """A sparse initializer: dense to whoever reads it, sparse again when the model is written."""

    __slots__ = ("proto",)

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        super().__init__(
            lambda: ir.Tensor(_dense(proto)),
            dtype=ir.DataType(proto.values.data_type),
            shape=ir.Shape(list(proto.dims)),
            name=proto.values.name,
        )
        self.proto = proto


def _dense(proto: onnx.SparseTensorProto) -> Array:
    values = ir.serde.TensorProtoTensor(proto.values).numpy()
    indices = ir.serde.TensorProtoTensor(proto.indices).numpy()
    sizes = tuple(proto.dims)
    if any(size < 0 for size in sizes) or int(np.prod(sizes, dtype=object)) * values.itemsize > _SPARSE_LIMIT:
        raise onnx_check.malformed(f"the sparse tensor {onnx_check.show(proto.values.name)} of dims {list(sizes)} is too large")
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), sizes)
        result = np.zeros(sizes, dtype=values.dtype)
        result.reshape(-1)[flat] = values
    except (ValueError, IndexError) as error:
        raise onnx_check.malformed(f"the sparse tensor {onnx_check.show(proto.values.name)}: {error}") from None
    return result


def read_model(model: ir.Model | onnx.ModelProto | str | Path, record: Record, folder: Path | None = None) -> ir.Model:
    """An ir.Model in topological order, without functions where they can be inlined.

    folder: where external data of a ModelProto lies; a path knows its own.  Raises InputRefused for what is malformed.
    """
    if isinstance(model, ir.Model):
        result = model
    elif isinstance(model, onnx.ModelProto):
        result = _from_proto(model, [], None, folder, record)
    else:
        path = Path(model)
        proto, cuts, source = read_proto(path)
        result = _from_proto(proto, cuts, source, path.parent, record)
    if not result.graph.outputs:
        raise onnx_check.malformed("it has no outputs")
    if "ai.onnx" in result.opset_imports and "" not in result.opset_imports:
        result.opset_imports[""] = result.opset_imports.pop("ai.onnx")
    if "" not in result.opset_imports:
        raise onnx_check.malformed("it names no opset of the standard domain")
    onnx_check.check_attributes(onnx_check.all_nodes(result.graph))
    if result.functions:
        _inline(result, record)
        onnx_check.check_attributes(onnx_check.all_nodes(result.graph))
    _sort(result, record)
    return result


def _sort(model: ir.Model, record: Record) -> None:
    if onnx_check.check_links(model.graph):
        return
    try:
        model.graph.sort()
    except ValueError:
        raise onnx_check.malformed("its nodes form a cycle") from None
    record.warn("the nodes of the ONNX model were not in topological order; they were sorted")


def _from_proto(proto: onnx.ModelProto, cuts: list[Cut], source: Source | None, folder: Path | None, record: Record) -> ir.Model:
    onnx_check.check_proto(proto, cuts)
    where = source.path if source is not None else Path("the ONNX model") if folder is None else folder / "the ONNX model"
    for warning in check_external(where, tensors_of(proto), folder):
        record.warn(warning)
    proto, sparse = _without_sparse(proto)
    external = [tensor for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    with quiet("onnx_ir"):
        try:
            model = ir.serde.deserialize_model(proto)
        except (
            ir.serde.SerdeError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            NotImplementedError,
            RecursionError,
        ) as error:
            raise onnx_check.malformed(_root(error)) from None
    if folder is not None and any(tensor.data_location == onnx.TensorProto.EXTERNAL for _, tensor in tensors_of(proto)):
        ir.external_data.set_base_dir(model.graph, folder)
    initializers = model.graph.initializers
    for cut in cuts:
        tensor = proto.graph.initializer[cut.position]
        assert source is not None
        initializers[tensor.name].const_value = _file_tensor(source, cut.offset, cut.length, tensor, inline=True)
    opened: dict[str, Source] = {}
    for tensor in external:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields["location"]
        if location not in opened:
            opened[location] = Source((folder or Path()) / location)
        held = initializers[tensor.name].const_value
        assert held is not None
        offset = int(fields.get("offset") or 0)
        initializers[tensor.name].const_value = _file_tensor(opened[location], offset, held.nbytes, tensor, inline=False)
    for item in sparse:
        initializers[item.values.name].const_value = SparseTensor(item)
    return model


def _file_tensor(source: Source, offset: int, length: int, proto: onnx.TensorProto, *, inline: bool) -> FileTensor:
    shape = ir.Shape(list(proto.dims), frozen=True)
    tensor = FileTensor(source, offset, length, ir.DataType(proto.data_type), shape, proto.name, inline=inline)
    tensor.doc_string = proto.doc_string or None
    return tensor


def _without_sparse(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.SparseTensorProto]]:
    """onnx-ir knows no sparse tensors: initializers get a dense stand-in (filled later), constants become dense.

    The caller's message is not touched: it is copied where it holds any.
    """
    nodes = [node for node in proto.graph.node if any(item.HasField("sparse_tensor") for item in node.attribute)]
    sparse = list(proto.graph.sparse_initializer)
    if not nodes and not sparse:
        return proto, []
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    for item in sparse:
        twin.graph.initializer.add(name=item.values.name, data_type=item.values.data_type, dims=list(item.dims))
    del twin.graph.sparse_initializer[:]
    for node in twin.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") and node.op_type == "Constant":
                dense = onnx.numpy_helper.from_array(_dense(attribute.sparse_tensor))
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
    return twin, sparse


def _inline(model: ir.Model, record: Record) -> None:
    """Inline the model's functions; one of another opset, or with graphs as parameters, stays an op that nothing is known of."""
    if onnx_check.expanded_size(model) > onnx_check.MAX_INLINED:
        raise onnx_check.malformed(f"its functions expand to more than {onnx_check.MAX_INLINED} nodes")
    calls: dict[Any, list[ir.Node]] = {}
    for scope in (model.graph, *model.functions.values()):
        for node in onnx_check.all_nodes(scope):
            if node.op_identifier() in model.functions:
                calls.setdefault(node.op_identifier(), []).append(node)

    def fits(function: ir.Function) -> bool:
        same = all(model.opset_imports.get(domain, version) == version for domain, version in function.opset_imports.items())
        graphs = any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for node in calls.get(function.identifier(), [])
            for attribute in node.attributes.values()
        )
        if not same or graphs:
            reason = "graphs as parameters" if same else "another opset than the model"
            record.warn(f"the function {onnx_check.show(function.name)} has {reason}; it is kept as it is")
        return same and not graphs

    fitting = {identifier: fits(function) for identifier, function in model.functions.items()}
    try:
        InlinePass(criteria=lambda function: fitting[function.identifier()])(model)
    except (ir.passes.PassError, ValueError) as error:
        raise InputRefused(
            f"the functions of the ONNX model cannot be inlined ({_root(error)}); export it without functions"
        ) from None
    for identifier in [name for name in model.functions if name not in calls]:
        del model.functions[identifier]


def _root(error: BaseException) -> str:
    """The first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().split("\n", 1)[0]
    return (text[:200] or type(error).__name__).rstrip(".;")
