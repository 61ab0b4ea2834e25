"""Operations that move elements and have a name in torch alone: the labels move like the elements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normfold.algebra import labels as lab
from normfold.algebra.ratios import Ints
from normfold.graph import Node
from normfold.ops.layout import carry, computed
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring


def _wire_torch(move: Callable[[Node, Ints], Ints | None]) -> Callable[[Node, Wiring], None]:
    """A rule for an op that moves elements: `move` says where labels go, None where it cannot tell."""

    def wire(node: Node, w: Wiring) -> None:
        x = computed(node)
        if x is None or len(node.outputs) != 1 or not carry(node, w, lambda item: move(node, item)):
            w.pin_node(node)

    return wire


def _roll(node: Node, item: Ints) -> Ints | None:
    dims, shifts = node.attrs.get("dims"), node.attrs.get("shifts")
    if dims is None or shifts is None or len(dims) != len(shifts):
        return None if lab.varying(item) else item
    return np.roll(item, shifts, axis=tuple(int(axis) % item.ndim for axis in dims))


def _repeat_interleave(node: Node, item: Ints) -> Ints | None:
    dim, repeats = node.attrs.get("dim"), node.attrs.get("repeats")
    if dim is None or repeats is None:
        return None
    axis = int(dim) % item.ndim
    return np.repeat(item, int(repeats), axis=axis) if item.shape[axis] > 1 else item


def _pixel_unshuffle(node: Node, item: Ints) -> Ints | None:
    """Output channel = (c, dy, dx): each channel label r * r times; over space there is one gauge."""
    factor, axis = node.attrs.get("downscale_factor"), item.ndim - 3
    if factor is None or axis < 0 or any(place > axis for place in lab.varying(item)):
        return None
    return np.repeat(item, int(factor) ** 2, axis=axis) if item.shape[axis] > 1 else item


def _channel_shuffle(node: Node, item: Ints) -> Ints | None:
    groups = node.attrs.get("groups")
    if groups is None or item.ndim < 2 or item.shape[1] == 1:
        return None if groups is None else item
    apart = item.reshape(item.shape[0], int(groups), -1, *item.shape[2:])
    return np.swapaxes(apart, 1, 2).reshape(item.shape)


RULES = (
    OpRule("aten::roll", _wire_torch(_roll)),
    OpRule("aten::repeat_interleave.self_int", _wire_torch(_repeat_interleave)),
    OpRule("aten::pixel_unshuffle", _wire_torch(_pixel_unshuffle)),
    OpRule("aten::channel_shuffle", _wire_torch(_channel_shuffle)),
)
