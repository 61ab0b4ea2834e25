"""dead-shift: a bias or constant addition straight in front of a norm that subtracts it again is dropped.

    x -> Conv W, b -> InstanceNorm -> y      becomes      x -> Conv W -> InstanceNorm -> y

    norm(v + t) = norm(v)  where t is constant over everything that one mean is taken of; the variance does not see t either

t is a bias of a convolution or linear layer, or a constant that is added or subtracted, [.., C, ..] broadcast to the tensor and
carried through Reshape, Transpose and the like.  InstanceNorm: any t per channel.  GroupNorm: t equal within each group.
LayerNorm: t equal along the normalised axes.  BatchNorm that takes the statistics of its batch: any t per channel.

Source: follows from the definitions (Ulyanov et al. 2016, arXiv 1607.08022; Wu & He 2018, arXiv 1803.08494).  It drops nothing
where somebody else reads the tensor, does not split off the part of a bias that would be dead, and adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.algebra.ratios import Floats
from normfold.graph import Graph, Node, Value
from normfold.ops.wiring import constant_of, spread
from normfold.record import Applied
from normfold.rewrites.following import LAYOUT, carried, is_private, regauged
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Drop every shift that a norm annihilates; `graph` itself is not changed."""
    if not any(_find(node, graph) is not None for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    applied: list[Applied] = []
    for norm in [node for node in twin.nodes if node.kind in _AVERAGED]:
        while (shift := _find(norm, twin)) is not None:
            _drop(shift, twin)
            what = "bias" if shift.slot == 2 else "addition"
            applied.append(Applied("dead-shift", shift.node.label, f"{what} dropped, {norm.label} subtracts it"))
    return Rewritten(twin.validate(), applied)


@dataclass(eq=False)
class _Shift:
    """A dead shift: made by `node` from its constant at `slot`; `steps` are the values that lose it, each with the shift t."""

    node: Node
    slot: int
    steps: list[tuple[Value, Floats]]


def _find(norm: Node, graph: Graph) -> _Shift | None:
    """The nearest shift in front of `norm` if the norm annihilates it; None otherwise."""
    averaged = _AVERAGED.get(norm.kind)
    x = norm.inputs[0] if averaged is not None else None
    if averaged is None or x is None or any(value.uses or graph.is_output(value) for value in norm.outputs[1:]):
        return None
    chain: list[Node] = []
    while x.producer is not None and x.producer.kind in LAYOUT and is_private(x, graph):
        source = x.producer.inputs[0]
        if source is None:
            return None
        chain.insert(0, x.producer)
        x = source
    made = _shift(x.producer, graph) if x.producer is not None and is_private(x, graph) else None
    if made is None or x.producer is None:
        return None
    slot, t = made
    steps, place = [(x, t)], np.arange(t.size).reshape(t.shape)
    for node in chain:
        moved = carried(node, place)
        if moved is None:
            return None
        place = moved
        steps.append((node.output, t.ravel()[place]))
    return _Shift(x.producer, slot, steps) if averaged(norm, steps[-1][1]) else None


def _shift(node: Node, graph: Graph) -> tuple[int, Floats] | None:
    """(slot of the constant, what it adds, of the output's rank) of a node that adds a finite constant last."""
    rank = node.output.rank
    if rank is None:
        return None
    if node.kind in ("Add", "Sub"):
        slot = 0 if node.kind == "Add" and node.inputs[1] is not None and node.inputs[1].const is None else 1
        x, constant = node.inputs[1 - slot], constant_of(node.inputs[slot], graph)
        kept = x is not None and x.const is None and x.shape is not None and x.shape == node.output.shape
        if constant is None or not kept or x is None or None in (x.shape or ()) or x.dtype != node.output.dtype:
            return None
        t = spread(constant, rank) if constant.ndim <= rank else constant
        t = -t if node.kind == "Sub" else t
    else:
        bias = constant_of(node.input(2), graph) if node.kind in ("Conv", "ConvTranspose", "Gemm") else None
        if bias is None:
            return None
        slot = 2
        if node.kind == "Gemm":
            t = float(node.attrs.get("beta", 1.0)) * spread(bias, rank)
        else:
            t = bias.reshape(1, -1, *(1,) * (rank - 2))
    return (slot, t) if t.ndim == rank and bool(np.isfinite(t).all()) else None


def _drop(shift: _Shift, graph: Graph) -> None:
    """Take the shift away and record what the values behind it hold now."""
    steps = shift.steps
    if shift.slot == 2:
        graph.set_input(shift.node, 2, None)
    else:
        graph.bypass(shift.node, 1 - shift.slot)
        steps = steps[1:]
    for value, t in steps:
        gauges = regauged(value, np.ones(()), -t)
        graph.rename(value, f"{value.name}_unshifted", unique=True)
        value.gauges = gauges


# ---- over what each norm takes a mean ------------------------------------------------------------------------------------------


def _same_along(t: Floats, axes: range | tuple[int, ...]) -> bool:
    return all(bool(np.all(t == np.take(t, [0], axis=axis))) for axis in axes if t.shape[axis] > 1)


def _layer(norm: Node, t: Floats) -> bool:
    return _same_along(t, range(int(norm.attrs.get("axis", -1)) % t.ndim, t.ndim))


def _instance(norm: Node, t: Floats) -> bool:
    return t.ndim > 2 and _same_along(t, range(2, t.ndim))


def _group(norm: Node, t: Floats) -> bool:
    groups = int(norm.attrs.get("num_groups", 0))
    if t.ndim < 2 or groups < 1 or (t.shape[1] > 1 and t.shape[1] % groups):
        return False
    grouped = t if t.shape[1] == 1 else t.reshape(t.shape[0], groups, -1, *t.shape[2:])
    return _same_along(grouped, range(2, grouped.ndim))


def _batch(norm: Node, t: Floats) -> bool:
    return bool(norm.attrs.get("training_mode", 0)) and _same_along(t, (0, *range(2, t.ndim)))


_AVERAGED = {
    "LayerNormalization": _layer,
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "BatchNormalization": _batch,
}

REWRITE = Rewrite("dead-shift", "Drop a bias or addition that the norm behind it subtracts again.", run)
