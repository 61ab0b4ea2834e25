"""Linear maps over sliding windows: what two of them have in common, and one kernel for their sum.

A map reads, for output position i of each axis, the input at ``s i + first + d j`` (kernel position j; zero outside the input),
where ``first = -pad_before``.  Two maps of one stride are summed by laying both kernels into the smallest window that holds
them, each at the offset of its own padding: zero-padded borders stay right, because all of them read zero there.

    (W_1 * x + b_1) + (W_2 * x + b_2) = (E_1 W_1 + E_2 W_2) * x + (b_1 + b_2)

E lays a kernel into a larger one and a grouped weight into fewer groups.  Source: Ding et al., "Diverse Branch Block" (CVPR 2021,
arXiv 2103.13425), transforms II, IV and VI; "RepVGG" (CVPR 2021, arXiv 2101.03697).  Matrix products are windows of no axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from normfold.algebra.ratios import Floats

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """One value per spatial axis: kernel size, stride, dilation, zeros padded before and after."""

    kernel: Ints
    strides: Ints
    dilations: Ints
    before: Ints
    after: Ints

    @property
    def first(self) -> Ints:
        """Where the first kernel position reads for output 0."""
        return tuple(-pad for pad in self.before)

    @property
    def last(self) -> Ints:
        """Where the last kernel position reads for output 0."""
        return tuple(d * (k - 1) - pad for k, d, pad in zip(self.kernel, self.dilations, self.before, strict=True))

    @property
    def tail(self) -> Ints:
        """What decides about the number of outputs: floor((size - 1 + tail) / stride) + 1."""
        return tuple(pad - last for pad, last in zip(self.after, self.last, strict=True))


def point(axes: int) -> Window:
    """The window of an elementwise map."""
    ones, zeros = (1,) * axes, (0,) * axes
    return Window(ones, ones, ones, zeros, zeros)


def spanning(first: Ints, last: Ints, strides: Ints, dilations: Ints, tail: Ints) -> Window:
    """The window from `first` to `last` in steps of `dilations` (which must divide the distance)."""
    kernel = tuple((b - a) // d + 1 for a, b, d in zip(first, last, dilations, strict=True))
    return Window(
        kernel,
        strides,
        tuple(d if k > 1 else 1 for d, k in zip(dilations, kernel, strict=True)),
        tuple(-a for a in first),
        tuple(t + b for t, b in zip(tail, last, strict=True)),
    )


@dataclass(frozen=True)
class Form:
    """A linear map without its numbers: channels in and out, groups, window."""

    inputs: int
    outputs: int
    groups: int
    window: Window

    @property
    def macs(self) -> int:
        """Multiplications per output position, which is also the size of the weight."""
        return self.outputs * (self.inputs // self.groups) * prod(self.window.kernel)

    @property
    def shape(self) -> Ints:
        """Shape of the weight."""
        return (self.outputs, self.inputs // self.groups, *self.window.kernel)

    @property
    def depthwise(self) -> bool:
        """One output channel for each input channel, and nothing across channels."""
        return self.groups == self.inputs == self.outputs


def identity(channels: int, axes: int) -> Form:
    """The form of y = x, and of any affine layer y = a x + c per channel (weight a, bias c)."""
    return Form(channels, channels, channels, point(axes))


def joined(one: Form, other: Form, same_size: Sequence[bool]) -> Form | None:
    """The smallest form that holds both of two maps of one input; None when there is none.

    same_size: per axis, True when the two are known to have equally many outputs; else that must follow from the windows.
    None for other channels, strides, or dilations (a single kernel position has none).
    """
    if (one.inputs, one.outputs) != (other.inputs, other.outputs) or one.window.strides != other.window.strides:
        return None
    dilations: list[int] = []
    a, b = one.window, other.window
    for axis, equal in enumerate(same_size):
        if a.tail[axis] != b.tail[axis] and not equal:
            return None
        several = {window.dilations[axis] for window in (a, b) if window.kernel[axis] > 1}
        if len(several) > 1:
            return None
        apart = abs(a.first[axis] - b.first[axis])
        step = several.pop() if several else max(apart, 1)
        if apart % step:
            return None
        dilations.append(step)
    first, last, tail = tuple(map(min, a.first, b.first)), tuple(map(max, a.last, b.last)), tuple(map(max, a.tail, b.tail))
    window = spanning(first, last, a.strides, tuple(dilations), tail)
    return Form(one.inputs, one.outputs, gcd(one.groups, other.groups), window)


def regrouped(weight: Floats, groups: int, wanted: int) -> Floats:
    """A grouped weight [O, I / groups, ...] as one of `wanted` groups (a divisor of `groups`), zero where nothing was read."""
    if groups == wanted:
        return weight
    out, per_group = weight.shape[:2]
    count = groups // wanted  # old groups in each new one
    blocks = weight.reshape(wanted, count, out // groups, per_group, *weight.shape[2:])
    spread = np.zeros((wanted, count, out // groups, count, per_group, *weight.shape[2:]))
    diagonal = np.arange(count)
    spread[:, diagonal, :, diagonal] = np.moveaxis(blocks, 1, 0)
    return spread.reshape(out, count * per_group, *weight.shape[2:])


def embedded(weight: Floats, form: Form, into: Form) -> Floats:
    """The weight of `form` as a weight of the larger form `into`."""
    place: list[slice] = [slice(None), slice(None)]
    inner, outer = form.window, into.window
    for axis, size in enumerate(inner.kernel):
        start = (inner.first[axis] - outer.first[axis]) // outer.dilations[axis]
        place.append(slice(start, start + size))
    result = np.zeros(into.shape)
    result[tuple(place)] = regrouped(weight, form.groups, into.groups)
    return result
