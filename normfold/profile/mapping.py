"""Kernels of an optimised graph mapped back to the nodes of the original, through every fusion.

The runtime names a kernel after a node of the graph that it saves (optimized_model_filepath).  Of that graph is known:

    an output keeps its name where the tensor still exists      -> the kernel makes that tensor of the original
    a blocked kernel (nchwc) is called "<tensor>_nchwc"         -> the same; a sum and an activation fused into it lie further on
    neither, but the node's name is one of the original         -> that node
    none of these (an inlined function, a split operation)      -> it belongs to the next kernel of which one of them holds

What a kernel computes is the backward slice from its tensor to tensors that other kernels make.  Changes of layout (ReorderInput,
ReorderOutput, Transpose, Cast) that the original does not have are `inserted`, and belong to the kernel beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from normfold.profile.origin import HEAVY, Original, SourceNode, walk

_BLOCKED, _SUFFIX = "com.microsoft.nchwc", "_nchwc"
_LAYOUT = frozenset("ReorderInput ReorderOutput Transpose Cast Reshape Squeeze Unsqueeze QuantizeLinear DequantizeLinear".split())
_NORM = ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNorm", "RMSNormalization", "LpNormalization")
_SAME = {"FusedConv": "Conv", "FusedMatMul": "MatMul", "FusedGemm": "Gemm", "QuickGelu": "Mul"}


@dataclass
class Mapped:
    """One kernel.  members: what of the original it computes.  owner: the kernel of the main graph that holds it.

    reads: names of the kernels whose results it needs.
    """

    name: str
    op: str
    members: list[SourceNode] = field(default_factory=list[SourceNode])
    inserted: bool = False
    owner: str = ""
    reads: list[str] = field(default_factory=list[str])

    @property
    def primary(self) -> SourceNode | None:
        """The member that the kernel is: the one with its own op, else the heaviest, else the last."""
        op = _SAME.get(self.op, self.op)
        same = [node for node in self.members if node.op == op]
        heavy = [node for node in self.members if node.op in HEAVY]
        return next((group[-1] for group in (same, heavy, self.members) if group), None)

    @property
    def norm(self) -> str:
        """The norm whose time this is: the kernel is a norm, or all that it computes belongs to norms."""
        named = [node.norm for node in self.members if node.norm]
        if not named or self.inserted:
            return ""
        is_norm = any(word in self.op for word in _NORM)
        return named[-1] if is_norm or len(named) == len(self.members) else ""


def map_kernels(original: Original, optimized: Any) -> dict[str, Mapped]:
    """Every node of the optimised ModelProto by name, mapped to the original."""
    nodes = [(node, owner) for node, owner in walk(optimized.graph) if node.op_type != "Constant"]
    mapped = {node.name: Mapped(node.name, node.op_type, owner=owner) for node, owner in nodes}
    made = {name: node.name for node, _ in nodes for name in node.output if name}
    read: dict[str, list[str]] = {}
    for node, owner in nodes:
        for name in _inputs(node):
            if name in made and made[name] != node.name:
                read.setdefault(made[name], []).append(node.name)
                if not owner and not mapped[made[name]].owner:
                    mapped[node.name].reads.append(made[name])
    anchors = {node.name: found for node, _ in nodes if (found := _anchors(node, original))}
    _drop_layout(nodes, anchors, mapped, original)
    whole = {name for names in anchors.values() for name in names}
    for name, tensors in anchors.items():
        mapped[name].members = _slice(tensors, whole, original)
    for node, _ in nodes:
        item = mapped[node.name]
        if not item.members and not item.inserted and node.name in original.by_name:
            item.members = [original.by_name[node.name]]
    _lend(mapped, read)
    return mapped


def _inputs(node: Any) -> list[str]:
    """What a node reads, its sub-graphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names += [name for inner, _ in walk(graph) for name in inner.input if name]
    return list(dict.fromkeys(names))


def _anchors(node: Any, original: Original) -> list[str]:
    """The tensors of the original that a kernel makes."""
    if node.domain == _BLOCKED and node.name.endswith(_SUFFIX):
        tensor = node.name.removesuffix(_SUFFIX)
        if tensor in original.producer:
            return [_beyond(tensor, node, original)]
    return [name for name in node.output if name in original.producer]


def _beyond(tensor: str, node: Any, original: Original) -> str:
    """The tensor behind the sum and the activation that were fused into a blocked convolution."""
    if len(node.input) > 3 and node.input[3]:
        tensor = _next(tensor, ("Add", "Sum"), original)
    activation = next((item.s.decode() for item in node.attribute if item.name == "activation"), "")
    return _next(tensor, (activation,), original) if activation else tensor


def _next(tensor: str, ops: tuple[str, ...], original: Original) -> str:
    """`tensor` where such an op made it, else the output of the such op that reads it."""
    if original.producer[tensor].op in ops:
        return tensor
    return next((node.outputs[0] for node in original.readers.get(tensor, ()) if node.op in ops), tensor)


def _drop_layout(
    nodes: Iterable[tuple[Any, str]], anchors: dict[str, list[str]], mapped: dict[str, Mapped], original: Original
) -> None:
    """Changes of layout that the runtime put in make no tensor of their own, whatever their output is called."""
    blocked = {tensor for node, _ in nodes if node.domain == _BLOCKED and node.name in anchors for tensor in anchors[node.name]}
    for node, _ in nodes:
        tensors = anchors.get(node.name, [])
        if node.domain == _BLOCKED and node.op_type.startswith("Reorder"):
            anchors.pop(node.name, None)
            mapped[node.name].inserted = True
        elif node.domain != _BLOCKED and node.op_type in _LAYOUT and tensors:
            makers = [original.producer[tensor] for tensor in tensors]
            moved = all(  # the node itself lives on, its result under another name: the layout is changed behind it
                maker.op != node.op_type and maker.name in mapped and maker.name not in anchors for maker in makers
            )
            if moved or blocked.issuperset(tensors):
                anchors.pop(node.name)
                mapped[node.name].inserted = True
                for maker, tensor in zip(makers, tensors, strict=True):
                    if moved:
                        anchors.setdefault(maker.name, []).append(tensor)


def _slice(tensors: list[str], whole: set[str], original: Original) -> list[SourceNode]:
    """What makes `tensors` out of others that are made whole, in order; constants apart."""
    found: dict[int, SourceNode] = {}
    waiting = [original.producer[name] for name in tensors]
    while waiting:
        node = waiting.pop()
        if node.index in found or node.constant:
            continue
        found[node.index] = node
        waiting += [original.producer[name] for name in node.inputs if name in original.producer and name not in whole]
    return [found[index] for index in sorted(found)]


def _lend(mapped: dict[str, Mapped], read: dict[str, list[str]]) -> None:
    """Kernels without members take those of the next kernel that has some; where there is none, of the one before."""
    backwards: dict[str, list[str]] = {}
    for name, others in read.items():
        for other in others:
            backwards.setdefault(other, []).append(name)
    own = {name for name, item in mapped.items() if item.members}
    for name, item in mapped.items():
        if item.members:
            continue
        towards = (backwards, read) if item.op == "ReorderOutput" else (read, backwards)
        found = next((near for links in towards if (near := _nearest(name, links, own))), "")
        if found:
            item.members = list(mapped[found].members)
            item.inserted = item.inserted or item.op in _LAYOUT


def _nearest(name: str, links: dict[str, list[str]], wanted: set[str]) -> str:
    """The first kernel of `wanted` along `links`, "" when none is reached."""
    waiting, seen = deque([name]), {name}
    while waiting:
        current = waiting.popleft()
        if current in wanted:
            return current
        fresh = [other for other in links.get(current, ()) if other not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return ""
