"""Find every normalization layer of a graph."""

from __future__ import annotations

import numpy as np

from normfold.detect.health import health_of
from normfold.graph import Array, Graph, Node, NormSpec, Value


def find_norms(graph: Graph) -> list[NormSpec]:
    """Every normalization layer, in graph order; those in bodies of loops and branches where the node stands that holds them."""
    specs: list[NormSpec] = []
    for node in graph.nodes:
        reader = _READERS.get(node.kind)
        if reader is not None and node.inputs and node.inputs[0] is not None:
            spec = reader(node, node.inputs[0])
            spec.health = health_of(spec)
            specs.append(spec)
        for body in node.bodies.values():
            specs += find_norms(body)
    return specs


def _array(node: Node, slot: int) -> Array | None:
    value = node.input(slot)
    return None if value is None or value.const is None else value.const.float64()


def _batch(node: Node, x: Value) -> NormSpec:
    gamma, beta, mean, var = (_array(node, slot) for slot in range(1, 5))
    computed = mean is None or var is None
    training = bool(node.attrs.get("training_mode", 0)) or len(node.outputs) > 1
    axes = tuple(i for i in range(x.rank or 0) if i != 1) if computed or training else ()
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return NormSpec("batch", [node], x, node.output, axes, 1, 1, epsilon, gamma, beta, mean, var, training)


def _instance(node: Node, x: Value) -> NormSpec:
    axes = tuple(range(2, x.rank or 2))
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return NormSpec("instance", [node], x, node.output, axes, 1, 1, epsilon, _array(node, 1), _array(node, 2))


def _group(node: Node, x: Value) -> NormSpec:
    groups, epsilon = int(node.attrs.get("num_groups", 1)), float(node.attrs.get("epsilon", 1e-5))
    axes = tuple(range(1, x.rank or 2))
    return NormSpec("group", [node], x, node.output, axes, 1, groups, epsilon, _array(node, 1), _array(node, 2))


def _layer(node: Node, x: Value) -> NormSpec:
    rank = x.rank or 1
    axis = int(node.attrs.get("axis", -1)) % rank
    kind = "rms" if "RMS" in node.kind or node.kind.endswith("SimplifiedLayerNormalization") else "layer"
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    axes = tuple(range(axis, rank))
    return NormSpec(kind, [node], x, node.output, axes, rank - 1, 1, epsilon, _array(node, 1), _array(node, 2))


def _lp(node: Node, x: Value) -> NormSpec:
    axis = int(node.attrs.get("axis", -1)) % (x.rank or 1)
    return NormSpec("l2", [node], x, node.output, (axis,))


_READERS = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "LayerNormalization": _layer,
    "RMSNormalization": _layer,
    "com.microsoft::SkipLayerNormalization": _layer,
    "com.microsoft::SimplifiedLayerNormalization": _layer,
    "LpNormalization": _lp,
}


def channel_count(spec: NormSpec) -> int:
    """C of the affine part or of the input's channel axis; 0 when unknown."""
    for array in (spec.gamma, spec.var):
        if array is not None:
            return int(np.size(array))
    shape, axis = spec.input.shape, spec.channel_axis
    size = shape[axis] if shape is not None and axis is not None and axis < len(shape) else None
    return size if isinstance(size, int) else 0
