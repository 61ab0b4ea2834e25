"""Putting one weight where several layers were: shared by `branches` and `chains`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from normfold.algebra.branches import Form
from normfold.algebra.ratios import Floats
from normfold.graph import Array, Gauge, Graph, Node, Value
from normfold.rewrites.linear_maps import WEIGHTED, Layer
from normfold.rewrites.ranges import fits
from normfold.rewrites.rewrite import Fate


class Merger:
    """Makes constants for merged maps.  Equal ones that came out of one shared weight stay one constant."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._shared = {value for value in graph.constants() if len(value.uses) > 1}  # as it was before anything was merged
        self._made: dict[tuple[Value, bytes], Value] = {}

    def constants(self, layer: Layer, weight: Floats, bias: Floats) -> tuple[Value, Value | None] | None:
        """Weight and bias (None where it is all zero) in the place of `layer`'s; None when its type cannot hold them."""
        like, old = layer.node.inputs[1], layer.node.input(2)
        assert like is not None and like.dtype is not None
        if not (fits(weight, like.dtype) and fits(bias, like.dtype)):
            return None
        turned = layer.node.kind == "MatMul" or (layer.node.kind == "Gemm" and not layer.node.attrs.get("transB", 0))
        stored = weight.T if turned else weight
        made = self._constant(like, stored, "merged")
        if old is not None:
            return made, self._constant(old, bias, "merged")
        if not bias.any():
            return made, None
        new = self._constant(like, bias, "bias")
        new.param = ""
        return made, new

    def copies(self) -> dict[str, int]:
        """Bytes that came on top, by the name of the shared constant which other layers still read or which became several."""
        found = {like.name: 0 if like.uses or like.const is None else -like.const.nbytes for like, _ in self._made}
        for (like, _), value in self._made.items():
            found[like.name] += value.const.nbytes if value.const is not None and value.uses else 0
        return {name: size for name, size in found.items() if size > 0}

    def _constant(self, like: Value, array: Array, suffix: str) -> Value:
        array = np.asarray(array, order="C")
        if like not in self._shared:
            return self.graph.derived(like, array, suffix=suffix)
        key = like, hashlib.blake2b(array.data, key=suffix.encode()).digest()
        if key not in self._made:
            self._made[key] = self.graph.derived(like, array, suffix=suffix)
        return self._made[key]


def carrier(layers: Iterable[Layer]) -> Layer | None:
    """The layer whose place the merged one takes: the largest weight, and rather one that has room for a bias."""
    weighted = [layer for layer in layers if layer.node.kind in WEIGHTED]
    return max(weighted, key=lambda layer: (layer.node.kind != "MatMul", layer.form.macs), default=None)


def attributes(layer: Layer, form: Form) -> dict[str, Any]:
    """Attributes of a node of `layer`'s kind that computes `form`."""
    if layer.node.kind == "MatMul":
        return {}
    if layer.node.kind == "Gemm":
        return {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": int(layer.node.attrs.get("transB", 0))}
    window = form.window
    return {
        "group": form.groups,
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": (*window.before, *window.after),
    }


def become(graph: Graph, node: Node, kind: str, inputs: list[Value | None], attrs: dict[str, Any]) -> None:
    """Make `node` another operation with the same outputs."""
    for slot in range(len(node.inputs)):
        graph.set_input(node, slot, None)
    node.inputs.clear()
    for slot, value in enumerate(inputs):
        graph.set_input(node, slot, value)
    node.kind, node.attrs, node.origin, node.fallback = kind, attrs, None, None


def unpromised(graph: Graph, like: Value, suffix: str) -> Value:
    """A new value of the shape of `like` that stands for nothing in the graph before: NaN in its gauge says so."""
    value = graph.value(f"{like.name}_{suffix}", like.shape, like.dtype)
    originals = [gauge.original for gauge in like.gauges] or [like.name]
    value.gauges = (Gauge(originals[0], np.full((), np.nan), np.zeros(())),)
    return value


def names_of(weight: Value, bias: Value | None, layer: Layer) -> list[str]:
    """How a report names the constants that took a layer up."""
    name = weight.param or weight.name
    if bias is None:
        return [name]
    if layer.node.input(2) is not None:
        return [name, bias.param or bias.name]
    return [name, f"{name.removesuffix('weight')}bias (new)" if name.endswith("weight") else f"{name} bias (new)"]


def fates(layers: Iterable[Layer], into: list[str]) -> list[Fate]:
    """Every batch norm among `layers` is deleted."""
    return [Fate(layer.node.output.name, "deleted", list(into)) for layer in layers if layer.node.kind == "BatchNormalization"]


def unread_bytes(layers: Iterable[Layer]) -> int:
    """Bytes of constants that nobody but `layers` reads."""
    nodes = {layer.node for layer in layers}
    constants = {value for node in nodes for value in node.inputs if value is not None and value.const is not None}
    gone = [value.const for value in constants if value.const is not None and all(use.node in nodes for use in value.uses)]
    return sum(const.nbytes for const in gone)
