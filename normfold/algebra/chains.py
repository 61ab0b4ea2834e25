"""Two linear maps over sliding windows, one behind the other, as one.

    W_2 * (W_1 * x + b_1) + b_2 = W * x + (b_2 + sum W_2 b_1),    W[o, i, s_1 d_2 j + d_1 l] = sum_m W_2[o, m, j] W_1[m, i, l]

The strides multiply, and the paddings add up (the second one in steps of the first stride).  Zero padding between the two is
harmless only along axes where the first map reads a single position, and only without a bias b_1: zero goes to zero there.
Source: Ding et al., "Diverse Branch Block" (CVPR 2021, arXiv 2103.13425), transform III, for windows of any stride and dilation.
"""

from __future__ import annotations

import itertools
from math import gcd

import numpy as np

from normfold.algebra.branches import Form, regrouped, spanning
from normfold.algebra.ratios import Floats


def chained(first: Form, second: Form, *, biased: bool) -> Form | None:
    """The form of `second` after `first`; None when no window says it.  biased: the first one adds something."""
    a, b = first.window, second.window
    if first.outputs != second.inputs or len(a.kernel) != len(b.kernel):
        return None
    dilations: list[int] = []
    for axis, stride in enumerate(a.strides):
        if (b.before[axis] or b.after[axis]) and (biased or a.kernel[axis] > 1):
            return None
        steps = [d for k, d in ((a.kernel[axis], a.dilations[axis]), (b.kernel[axis], stride * b.dilations[axis])) if k > 1]
        dilations.append(gcd(*steps) or 1)
    window = spanning(
        tuple(s * f + g for s, f, g in zip(a.strides, b.first, a.first, strict=True)),
        tuple(s * f + g for s, f, g in zip(a.strides, b.last, a.last, strict=True)),
        tuple(s * t for s, t in zip(a.strides, b.strides, strict=True)),
        tuple(dilations),
        tuple(s * t + u for s, t, u in zip(a.strides, b.tail, a.tail, strict=True)),
    )
    return Form(first.inputs, second.outputs, gcd(first.groups, second.groups), window)


def composed(
    one: tuple[Floats, Floats], first: Form, other: tuple[Floats, Floats], second: Form, into: Form
) -> tuple[Floats, Floats]:
    """(weight, bias) of `into` = chained(first, second), from those of the two: weights [O, I / groups, *kernel], biases [O]."""
    (w1, b1), (w2, b2) = one, other
    groups, axes = into.groups, len(into.window.kernel)
    steps = [
        (b * s // d, max(a // d, 1))
        for s, a, b, d in zip(
            first.window.strides, first.window.dilations, second.window.dilations, into.window.dilations, strict=True
        )
    ]
    by_group = (groups, into.outputs // groups, into.inputs // groups)
    tail1, tail2 = first.window.kernel, second.window.kernel
    # A map that keeps channels apart multiplies elementwise; everything else is a matrix product over the channels between.
    if first.depthwise:
        left, right = w2.reshape(*by_group, *tail2), w1.reshape(groups, 1, first.outputs // groups, *tail1)
    elif second.depthwise:
        left, right = w2.reshape(groups, by_group[1], 1, *tail2), w1.reshape(*by_group, *tail1)
    else:
        middle = first.outputs // groups
        left = regrouped(w2, second.groups, groups).reshape(groups, by_group[1], middle, *tail2)
        right = regrouped(w1, first.groups, groups).reshape(groups, middle, -1)
    weight = np.zeros((*by_group, *into.window.kernel))
    for position in itertools.product(*map(range, tail2)):
        tap = left[(..., *position)]
        if first.depthwise or second.depthwise:
            part = tap.reshape(*tap.shape, *(1,) * axes) * right
        else:
            part = np.matmul(tap, right).reshape(*by_group, *tail1)
        place = [
            slice(j * start, j * start + (k - 1) * step + 1, step)
            for j, k, (start, step) in zip(position, tail1, steps, strict=True)
        ]
        weight[(..., *place)] += part
    middle = second.inputs // second.groups
    reach = w2.reshape(second.groups, second.outputs // second.groups, middle, -1).sum(axis=3)
    bias = b2 + np.matmul(reach, b1.reshape(second.groups, middle, 1)).reshape(-1)
    return weight.reshape(into.shape), bias
