"""What must hold before an ONNX model is handed to native code: names, dims, sizes, and attributes known to crash it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import onnx_ir as ir

from normfold.capture.onnx_wire import Cut
from normfold.errors import InputRefused
from normfold.load.external import element_bytes

MAX_INLINED = 1 << 20  # nodes after all functions are inlined; more is a bomb, not a model
_POSITIVE = ("strides", "dilations", "kernel_shape", "group", "blocksize", "num_groups", "num_outputs", "hidden_size")
_LIMIT = 1 << 31
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def show(name: str) -> str:
    """A name for messages: control and escape characters are shown, not sent to the terminal."""
    return repr(name)


def malformed(what: str) -> InputRefused:
    """The error for a model that breaks ONNX's rules."""
    return InputRefused(f"the ONNX model is malformed: {what}; export it again, or repair it with onnx.helper")


def check_proto(model: onnx.ModelProto, cuts: list[Cut]) -> None:
    """Names and initializers of the main graph.  Raises InputRefused.

    cuts: initializers whose raw_data is not in the message.
    """
    if not model.HasField("graph") or not model.graph.output:
        raise malformed("it has no graph with outputs")
    if not any(item.domain in ("", "ai.onnx") for item in model.opset_import):
        raise InputRefused(
            f"the ONNX model (IR version {model.ir_version}) names no opset of the standard domain, so its ops have no meaning; "
            "export it again with a newer exporter, or add opset_import if you know which one it was"
        )
    graph = model.graph
    _unique("input", (item.name for item in graph.input))
    _unique("initializer", (*(item.name for item in graph.initializer), *(item.values.name for item in graph.sparse_initializer)))
    made = _unique("node output", (name for node in graph.node for name in node.output if name))
    for item in graph.input:
        if item.name in made:
            raise malformed(f"{show(item.name)} is a graph input and the output of a node")
    elsewhere = {cut.position: cut.length for cut in cuts}
    for index, tensor in enumerate(graph.initializer):
        if not tensor.name:
            raise malformed(f"initializer {index} has no name")
        if tensor.name in made:
            raise malformed(f"{show(tensor.name)} is an initializer and the output of a node")
        _check_tensor(tensor, elsewhere.get(index))


def _unique(what: str, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise malformed(f"two {what}s are named {show(name)}")
        seen.add(name)
    return seen


def _check_tensor(tensor: onnx.TensorProto, length: int | None) -> None:
    """Dims and the amount of data of an initializer; `length` bytes of raw data are elsewhere."""
    try:
        needed = element_bytes(tensor.data_type, tensor.dims)
    except ValueError as error:
        raise malformed(f"initializer {show(tensor.name)}: {error}") from None
    if tensor.data_type == 0 or tensor.data_type not in onnx.TensorProto.DataType.values():
        raise malformed(f"initializer {show(tensor.name)} has the unknown data type {tensor.data_type}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if length is None and tensor.HasField("raw_data"):
        length = len(tensor.raw_data)
    if length is not None:
        if length != needed:
            raise malformed(f"initializer {show(tensor.name)} of dims {list(tensor.dims)} needs {needed} bytes and has {length}")
        return
    count = 1
    for size in tensor.dims:
        count *= size
    found = sum(len(getattr(tensor, name)) for name in _DATA_FIELDS)
    complex_type = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    packed = needed is not None and needed < count  # several elements a byte
    if not packed and found != count * (2 if complex_type else 1):
        raise malformed(f"initializer {show(tensor.name)} of dims {list(tensor.dims)} needs {count} elements and has {found}")


def all_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Every node, those of sub-graphs included."""
    yield from ir.traversal.RecursiveGraphIterator(graph)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The sub-graphs that are attributes of `node` (not those nested deeper)."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def check_attributes(nodes: Iterable[ir.Node]) -> None:
    """Refuse attribute values that native shape inference and runtimes divide by or allocate with.  Raises InputRefused."""
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.type not in (ir.AttributeType.INT, ir.AttributeType.INTS):
                continue
            value: Any = attribute.value
            values: tuple[int, ...] = (value,) if attribute.type == ir.AttributeType.INT else tuple(value)
            if attribute.name in _POSITIVE and any(not 0 < item < _LIMIT for item in values):
                text = list(values) if attribute.type == ir.AttributeType.INTS else value
                raise malformed(f"{_label(node)} has {attribute.name} {text}, expected values >= 1")
            if attribute.name == "pads" and any(abs(item) >= _LIMIT for item in values):
                raise malformed(f"{_label(node)} has pads {list(values)}")


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {show(node.name or (node.outputs[0].name if node.outputs else '') or '')}"


def check_links(graph: ir.Graph) -> bool:
    """Every input of every node comes from somewhere; returns True when the nodes stand in topological order.

    Raises InputRefused for a name that nobody produces.
    """
    ordered, seen = True, set[ir.Node]()
    for node in graph:
        for value in _reads(node):
            producer = value.producer()
            if producer is None and not (value.is_graph_input() or value.is_initializer()):
                raise malformed(f"{_label(node)} reads {show(value.name or '')}, which nothing produces")
            if producer is not None and producer.graph is graph and producer not in seen:
                ordered = False
        seen.add(node)
    for value in graph.outputs:
        if value.producer() is None and not (value.is_graph_input() or value.is_initializer()):
            raise malformed(f"the graph output {show(value.name or '')} is not produced")
    return ordered


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values that a node and the nodes of its sub-graphs read."""
    stack = [node]
    while stack:
        item = stack.pop()
        yield from (value for value in item.inputs if value is not None)
        for graph in subgraphs(item):
            stack.extend(graph)
            yield from graph.outputs


def expanded_size(model: ir.Model) -> int:
    """Nodes of the main graph once all functions are inlined.  Raises InputRefused for functions that call themselves."""
    sizes: dict[Any, int] = {}
    open_: set[Any] = set()

    def size(identifier: Any) -> int:
        if identifier in open_:
            raise malformed(f"the function {show('::'.join(identifier[:2]))} calls itself")
        if identifier not in sizes:
            if len(open_) > 100:
                raise malformed("functions call each other more than 100 deep")
            open_.add(identifier)
            sizes[identifier] = total(all_nodes(model.functions[identifier]))
            open_.discard(identifier)
        return sizes[identifier]

    def total(nodes: Iterable[ir.Node]) -> int:
        return sum(size(name) if (name := node.op_identifier()) in model.functions else 1 for node in nodes)

    return total(all_nodes(model.graph))
