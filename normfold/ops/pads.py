"""Pad: copies take their gauge along; zeros stay zeros at any scale; another value is regauged like everything around it."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.algebra import labels as lab
from normfold.algebra.labels import Labels
from normfold.algebra.ratios import Ints
from normfold.graph import Node
from normfold.ops.regauge import Regauge
from normfold.ops.rule import OpRule
from normfold.ops.wiring import Wiring

Amounts = dict[int, tuple[int, int]]
"""Padded axis -> elements put in front and behind (negative: cut off)."""


def _wire_pad(node: Node, w: Wiring) -> None:
    x, pads, mode = node.inputs[0], node.attrs.get("pads"), node.attrs.get("mode", "constant")
    unknown = node.input(3) is not None and "axes" not in node.attrs
    if x is None or x.const is not None or x.rank is None or pads is None or unknown:
        return w.pin_node(node)
    axes = [int(axis) % x.rank for axis in node.attrs.get("axes") or range(x.rank)]
    ends = {axis: (int(pads[i]), int(pads[i + len(axes)])) for i, axis in enumerate(axes)}
    amounts = {axis: pair for axis, pair in ends.items() if pair != (0, 0)}
    if mode != "constant":
        scale, shift = (_copied(item, amounts, mode) for item in w.of(x))
        if scale is None or shift is None:
            return w.pin_node(node)
        w.set(node.output, scale, shift)
        return None
    computed = node.input(2) is not None and "constant_value" not in node.attrs
    value = float(node.attrs.get("constant_value", 0.0) or 0.0)
    if computed or not np.isfinite(value):
        return w.pin_node(node)
    w.system.name_shift(w.of(x).shift, "zero-padding", f"{node.kind} ({node.label})")
    w.even_shift(x, ())  # s p + t must be one number
    if value == 0.0:
        labels = w.of(x)
        w.set(node.output, *Labels(_with_zeros(labels.scale, amounts, w), labels.shift))
    else:
        w.even_scale(x, ())
        w.set(node.output, *w.of(x))
    return None


def _copied(item: Ints, amounts: Amounts, mode: str) -> Ints | None:
    """Labels padded as the elements are; None where that is not said."""
    moving = {axis: pair for axis, pair in amounts.items() if item.shape[axis] > 1}
    odd = any(end < 0 or (mode != "edge" and end >= item.shape[axis]) for axis, pair in moving.items() for end in pair)
    if odd or mode not in ("reflect", "edge", "wrap"):
        return None
    form: Any = mode
    return np.pad(item, [moving.get(axis, (0, 0)) for axis in range(item.ndim)], mode=form)


def _with_zeros(scale: Ints, amounts: Amounts, w: Wiring) -> Ints:
    """Zeros are zeros at any scale: new channels have scales of their own."""
    for axis, (before, after) in amounts.items():
        if scale.shape[axis] == 1:
            continue
        scale = lab.strided(scale, axis, max(-before, 0), scale.shape[axis] - max(-after, 0), 1)
        ends = [(*scale.shape[:axis], max(size, 0), *scale.shape[axis + 1 :]) for size in (before, after)]
        scale = np.concatenate([w.system.new_scales(ends[0]), scale, w.system.new_scales(ends[1])], axis=axis)
    return scale


def _absorb_pad(node: Node, g: Regauge) -> None:
    """p' = s p + t, one number; where p is zero the scales may differ."""
    x = node.inputs[0]
    if x is None or x.dtype is None or node.attrs.get("mode", "constant") != "constant":
        return
    old = float(node.attrs.get("constant_value", 0.0) or 0.0)
    new = float(g.scale(x).flat[0]) * old + float(g.shift(x).flat[0])
    if new == old:
        return
    g.set_number(node, "constant_value", new, x.dtype)
    if node.input(2) is not None:
        g.graph.set_input(node, 2, None)


RULES = (OpRule("Pad", _wire_pad, _absorb_pad),)
