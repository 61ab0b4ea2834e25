"""The model as its user wrote it: every node with its module path, and which normalization layer it belongs to.

A layer's name is the module path, else the node's name.  A norm is one node (`normfold.detect`), or everything that PyTorch's
exporter wrote for one operation of the torch graph (a GroupNorm is five nodes at opset 18), or the arithmetic of a norm
(normfold.profile.spelled).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_modules import name_scopes
from normfold.detect import find_norms
from normfold.graph import Graph, Node
from normfold.profile.spelled import spelled_norms
from normfold.record import Record

_NORM_OP = re.compile(r"(batch|layer|group|instance|rms)_norm")  # names of operations in the torch graph
_FOLDED = "FuseBatchNormInto"  # the exporter's rule: the node then carries the norm's module path, not its own
_RULES = "pkg.onnxscript.rewriter.rule_name"
HEAVY = frozenset(
    "Conv ConvTranspose ConvInteger QLinearConv DeformConv Gemm MatMul MatMulInteger QLinearMatMul Einsum LSTM GRU RNN "
    "Attention".split()
)


@dataclass
class SourceNode:
    """A node of the original.  index: its place.  layer: how reports call it; module: that is a module path.

    norm: name of the normalization layer that it belongs to.  constant: it depends on no input of the model.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str
    module: bool
    norm: str = ""
    constant: bool = False


@dataclass
class Original:
    """nodes: of all graphs, sub-graphs behind the node that holds them.  model: every node has a name of its own.

    by_name, producer, readers: look-ups by the name of a node or tensor.  kinds: norm -> "batch", "group", ...
    """

    model: onnx.ModelProto
    nodes: list[SourceNode]
    by_name: dict[str, SourceNode] = field(default_factory=dict[str, SourceNode])
    producer: dict[str, SourceNode] = field(default_factory=dict[str, SourceNode])
    readers: dict[str, list[SourceNode]] = field(default_factory=dict[str, list[SourceNode]])
    kinds: dict[str, str] = field(default_factory=dict[str, str])

    def norms(self) -> dict[str, list[SourceNode]]:
        """Name of every norm -> its nodes."""
        found: dict[str, list[SourceNode]] = {}
        for node in self.nodes:
            if node.norm:
                found.setdefault(node.norm, []).append(node)
        return found


def read_original(path: Path, record: Record | None = None) -> Original:
    """Read an .onnx file that has been checked before (normfold.load).  Raises InputRefused for what is malformed."""
    model = onnx.ModelProto.FromString(path.read_bytes())
    name_nodes(model)
    view = from_onnx(model, record=record, folder=path.parent)
    return original_of(model, view)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node without a name, or with one that is taken, a name of its own: the profiler speaks of nodes by name."""
    taken: set[str] = set()
    for count, (node, _) in enumerate(walk(model.graph)):
        name = node.name or f"{node.op_type}_{count}"
        while name in taken:
            name = f"{name}_{count}"
        taken.add(name)
        node.name = name


def walk(graph: Any, owner: str = "") -> Iterator[tuple[Any, str]]:
    """(node, name of the outermost node that holds it, "" for none) of a GraphProto and its sub-graphs."""
    for node in graph.node:
        yield node, owner
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from walk(inner, owner or node.name)


def original_of(model: onnx.ModelProto, view: Graph) -> Original:
    """The nodes of `model`, named by what its view knows."""
    known = {node.name: node for node in view.nodes}
    original = Original(model, [])
    moving = {item.name for item in model.graph.input} - {item.name for item in model.graph.initializer}
    for node, owner in walk(model.graph):
        if node.op_type == "Constant":
            continue
        reads = tuple(name for name in (*node.input, *_captured(node)) if name)
        source = SourceNode(
            len(original.nodes), node.name, node.op_type, reads, tuple(name for name in node.output if name), node.name, False
        )
        holder = known.get(node.name) or known.get(owner)
        if holder is not None:
            module = _module(node, holder)
            source.layer, source.module = module or source.name, bool(module)
        source.module = source.module or bool(name_scopes(_metadata(node)))  # a function of the outermost module
        source.constant = not owner and not any(name in moving for name in source.inputs) and "Random" not in node.op_type
        if not source.constant:
            moving.update(source.outputs)
        original.nodes.append(source)
        original.by_name[source.name] = source
        for name in source.outputs:
            original.producer.setdefault(name, source)
        for name in source.inputs:
            original.readers.setdefault(name, []).append(source)
    _mark_norms(original, view)
    return original


def _captured(node: Any) -> list[str]:
    """What the sub-graphs of `node` read, their own names included: the caller looks names up."""
    return [name for inner, owner in walk(_holder(node)) if owner for name in inner.input]


def _holder(node: Any) -> Any:
    graph = onnx.GraphProto()
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        graph.node.append(node)
    return graph


def _metadata(node: Any) -> dict[str, str]:
    return {item.key: item.value for item in node.metadata_props}


def _module(node: Any, holder: Node) -> str:
    """The module path; that of the parameters where a norm was folded into the node, for it then carries the norm's."""
    if _FOLDED in _metadata(node).get(_RULES, ""):
        for value in holder.inputs[1:2]:
            if value is not None and "." in value.param:
                return value.param.rpartition(".")[0]
    return holder.module


def _mark_norms(original: Original, view: Graph) -> None:
    """Say of every node which norm it belongs to."""
    for spec in find_norms(view):
        node = original.by_name.get(spec.node.name)
        if node is not None:
            node.norm = node.layer  # one module that is called many times is one norm
            original.kinds[node.norm] = spec.kind
    groups: dict[tuple[str, ...], list[SourceNode]] = {}
    for proto, _ in walk(original.model.graph):
        scopes = tuple(name_scopes(_metadata(proto)))
        if scopes and proto.name in original.by_name and _NORM_OP.search(scopes[-1]):
            groups.setdefault(scopes, []).append(original.by_name[proto.name])
    for scopes, members in groups.items():
        if all(_FOLDED in rules for rules in _rules(original, members)):
            continue  # the norm is gone: what is left is the layer that it went into
        name = next((node.norm for node in members if node.norm), "") or scopes[-2] or members[-1].name
        original.kinds[name] = found[1] if (found := _NORM_OP.search(scopes[-1])) else ""
        for node in members:
            if node.op not in HEAVY:
                node.norm = name
    for members in spelled_norms(original.nodes, original.producer, original.readers):
        if not any(node.norm for node in members):
            centred = any(node.op == "Sub" for node in members)
            original.kinds[members[-1].layer] = "layer" if centred else "rms"
            for node in members:
                node.norm = members[-1].layer


def _rules(original: Original, members: Sequence[SourceNode]) -> list[str]:
    names = {node.name for node in members}
    return [_metadata(proto).get(_RULES, "") for proto, _ in walk(original.model.graph) if proto.name in names]
