"""Geometry of sliding windows, shared by convolutions and pools.  Spatial axes are those behind batch and channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import attr_ints, text, unsupported


@dataclass(frozen=True)
class Window:
    """One value per spatial axis: kernel size, stride, dilation, padding before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """How many elements a window reaches over, dilation included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window_of(node: Node, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or pool over `sizes`, `auto_pad` resolved.  Absent attributes have ONNX's defaults."""
    rank = len(sizes)
    ones = (1,) * rank
    strides, dilations = attr_ints(node, "strides") or ones, attr_ints(node, "dilations") or ones
    pads, auto = attr_ints(node, "pads") or (0,) * (2 * rank), text(node, "auto_pad", "NOTSET")
    if len(kernel) != rank or len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise unsupported(node, f"kernel {kernel}, strides {strides}, dilations {dilations}, pads {pads} in {rank} dimensions")
    if auto in ("NOTSET", ""):
        before, after = pads[:rank], pads[rank:]
    elif auto == "VALID":
        before = after = (0,) * rank
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    else:
        raise unsupported(node, f"auto_pad {auto!r}")
    if min(strides) < 1 or min(dilations) < 1 or min(kernel) < 1 or min((*before, *after)) < 0:
        raise unsupported(node, f"kernel {kernel}, strides {strides}, dilations {dilations}, pads {(*before, *after)}")
    return Window(kernel, strides, dilations, before, after)


def padded(x: Array, before: tuple[int, ...], after: tuple[int, ...], value: float) -> Array:
    """x with its spatial axes padded by a constant."""
    if not any(before) and not any(after):
        return x
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=value)


def tap(x: Array, window: Window, offset: tuple[int, ...], outputs: tuple[int, ...]) -> Array:
    """The view of a padded x that kernel position `offset` meets, one element per output."""
    index = tuple(
        slice(o * d, o * d + s * (n - 1) + 1, s)
        for o, d, s, n in zip(offset, window.dilations, window.strides, outputs, strict=True)
    )
    return x[(..., *index)]
