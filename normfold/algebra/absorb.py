"""Folding gauges into the constants of linear layers, in float64.

For a layer y = W x + b whose input is stored as x' = s_x x + t_x and whose output shall be stored as y' = s_y y + t_y:

    W'[o, i] = s_y[o] W[o, i] / s_x[i]
    b'[o]    = s_y[o] (b[o] - sum_i W[o, i] t_x[i] / s_x[i]) + t_y[o]

(sums run over the kernel too; t_x must be zero where the input is zero-padded).  All arrays are float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from normfold.algebra.ratios import Floats


class Gauges(NamedTuple):
    """Gauges of a layer's input and output channels: s_x, t_x [I] and s_y, t_y [O]."""

    s_x: Floats
    t_x: Floats
    s_y: Floats
    t_y: Floats


def batch_norm(gamma: Floats, beta: Floats, mean: Floats, var: Floats, epsilon: float) -> tuple[Floats, Floats]:
    """(a, c) of an eval-mode batch norm y = a x + c, each [C] (Ioffe & Szegedy 2015, arXiv 1502.03167)."""
    a = gamma / np.sqrt(var + epsilon)
    return a, beta - mean * a


def conv_weight(weight: Floats, gauges: Gauges, groups: int) -> Floats:
    """W' of a convolution; weight is [O, I/groups, *kernel]."""
    out, per_group = weight.shape[:2]
    ones = (1,) * (weight.ndim - 2)
    scaled = weight * gauges.s_y.reshape(out, 1, *ones)
    if np.any(gauges.s_x != 1.0):  # most folds leave the input alone: one pass less over the weight
        grouped = scaled.reshape(groups, out // groups, per_group, *weight.shape[2:])
        grouped /= gauges.s_x.reshape(groups, 1, per_group, *ones)
    return scaled


def conv_taps(weight: Floats, gauges: Gauges, groups: int) -> Floats:
    """s_y sum_i W[:, i] t_x[i] / s_x[i], shape [O, *kernel]: what the shift of the input adds at each tap of a window."""
    out, per_group = weight.shape[:2]
    if not np.any(gauges.t_x != 0.0):
        return np.zeros((out, *weight.shape[2:]))
    grouped = weight.reshape(groups, out // groups, per_group, -1)
    offset = (gauges.t_x / gauges.s_x).reshape(groups, 1, per_group, 1)
    taps = (grouped * offset).sum(axis=2).reshape(out, *weight.shape[2:])
    return taps * gauges.s_y.reshape(out, *(1,) * (weight.ndim - 2))


def conv_bias(bias: Floats, taps: Floats, gauges: Gauges) -> Floats:
    """b' [O] of a convolution whose windows lie inside the input; `taps` is [O, *kernel] (see `conv_taps`)."""
    return gauges.s_y * bias - taps.reshape(len(taps), -1).sum(axis=1) + gauges.t_y


def conv_transpose_weight(weight: Floats, gauges: Gauges, groups: int) -> Floats:
    """W' of a transposed convolution; weight is [I, O/groups, *kernel], group g holds rows g*I/groups and on."""
    inp, per_group = weight.shape[:2]
    ones = (1,) * (weight.ndim - 2)
    s_y = gauges.s_y.reshape(groups, 1, per_group, *ones)
    grouped = weight.reshape(groups, inp // groups, per_group, *weight.shape[2:])
    return (grouped * s_y).reshape(weight.shape) / gauges.s_x.reshape(inp, 1, *ones)


def conv_transpose_taps(weight: Floats, gauges: Gauges, groups: int) -> Floats:
    """s_y sum_i W[i] t_x[i] / s_x[i], shape [O, *kernel]: what the shift of one input element adds to its outputs."""
    inp, per_group = weight.shape[:2]
    if not np.any(gauges.t_x != 0.0):
        return np.zeros((groups * per_group, *weight.shape[2:]))
    offset = (gauges.t_x / gauges.s_x).reshape(inp, *(1,) * (weight.ndim - 1))
    taps = (weight * offset).reshape(groups, inp // groups, per_group, *weight.shape[2:]).sum(axis=1)
    return taps.reshape(-1, *weight.shape[2:]) * gauges.s_y.reshape(-1, *(1,) * (weight.ndim - 2))


def matrix(weight: Floats, gauges: Gauges) -> Floats:
    """W' of y = x W; weight is [I, O]."""
    return weight * gauges.s_y / gauges.s_x[:, None]


def matrix_offset(weight: Floats, gauges: Gauges) -> Floats:
    """What the bias of y = x W + b has to take up besides s_y b: t_y - s_y (t_x / s_x) W, shape [O]."""
    return gauges.t_y - gauges.s_y * ((gauges.t_x / gauges.s_x) @ weight)
