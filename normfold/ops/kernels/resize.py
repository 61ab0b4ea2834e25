"""Resampling: Resize (separable, as one small matrix per axis), GridSample, AffineGrid."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.layout import positive_axes
from normfold.ops.kernels.registry import attr_ints, integer, ints, kernel, need, real, static, text, unsupported

_RESIZE = (
    "antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value "
    "keep_aspect_ratio_policy mode nearest_mode roi scales sizes"
)


@kernel("Resize", attrs=_RESIZE)
def resize(node: Node, arrays: list[Array | None]) -> list[Array]:
    """Each axis resampled by its own matrix of weights [new, old]; nearest is an index."""
    x = need(node, arrays, 0)
    given = attr_ints(node, "axes")
    axes = tuple(range(x.ndim)) if given is None else positive_axes(node, given, x.ndim)
    sizes, scales = _targets(node, arrays, x, axes)
    roi: Any = static(node, arrays, "roi", 1)
    crop = text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if crop and (roi is None or np.size(roi) != 2 * len(axes)):
        raise unsupported(node, "tf_crop_and_resize and no roi")
    outside: list[tuple[int, Array]] = []
    for place, axis in enumerate(axes):
        old, new = x.shape[axis], sizes[place]
        span = (float(roi[place]), float(roi[place + len(axes)])) if crop else (0.0, 1.0)
        if old == new and scales[place] == 1.0 and not crop:
            continue
        coordinates = _coordinates(node, old, new, scales[place], span)
        if crop:
            outside.append((axis, (coordinates < 0) | (coordinates > old - 1)))
        x = _resample(node, x, axis, coordinates, scales[place])
    for axis, mask in outside:
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        x = np.where(mask.reshape(shape), np.asarray(real(node, "extrapolation_value", 0.0), x.dtype), x)
    return [x]


def _targets(node: Node, arrays: list[Array | None], x: Array, axes: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """New size and scale of each resized axis."""
    scales: Any = static(node, arrays, "scales", 2)
    sizes = ints(node, arrays, "sizes", 3)
    old = [x.shape[axis] for axis in axes]
    if sizes:
        policy = text(node, "keep_aspect_ratio_policy", "stretch")
        if len(sizes) != len(axes) or policy not in ("stretch", "not_larger", "not_smaller"):
            raise unsupported(node, f"sizes {sizes} for {len(axes)} axes, keep_aspect_ratio_policy {policy!r}")
        ratios = [new / size for new, size in zip(sizes, old, strict=True)]
        if policy == "stretch":
            return list(sizes), ratios
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        return [int(np.floor(ratio * size + 0.5)) for size in old], [ratio] * len(old)
    if scales is None or np.size(scales) != len(axes):
        raise unsupported(node, f"scales {scales} for {len(axes)} axes")
    factors = [float(item) for item in np.asarray(scales).reshape(-1)]
    return [int(np.floor(size * factor)) for size, factor in zip(old, factors, strict=True)], factors


def _coordinates(node: Node, old: int, new: int, scale: float, roi: tuple[float, float]) -> Array:
    """Where in the old axis each new element lies."""
    mode, i = text(node, "coordinate_transformation_mode", "half_pixel"), np.arange(new, dtype=np.float64)
    if mode == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if new > 1 else np.zeros(new)
    if mode == "half_pixel_symmetric":
        # the scale as asked for and the one that the rounded size gives differ; the sampled span is centred
        shift = old / 2 * (1 - new / (scale * old))
        return shift + (i + 0.5) / scale - 0.5
    if mode == "align_corners":
        return i * (old - 1) / (new - 1) if new > 1 else np.zeros(new)
    if mode == "asymmetric":
        return i / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        if new == 1:
            return np.full(1, 0.5 * (start + end) * (old - 1))
        return start * (old - 1) + i * (end - start) * (old - 1) / (new - 1)
    raise unsupported(node, f"coordinate_transformation_mode {mode!r}")


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda c: np.ceil(c - 0.5),
    "round_prefer_ceil": lambda c: np.floor(c + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _resample(node: Node, x: Array, axis: int, coordinates: Array, scale: float) -> Array:
    mode, old = text(node, "mode", "nearest"), x.shape[axis]
    if mode == "nearest":
        rounding = text(node, "nearest_mode", "round_prefer_floor")
        if rounding not in _NEAREST:
            raise unsupported(node, f"nearest_mode {rounding!r}")
        return np.take(x, np.clip(_NEAREST[rounding](coordinates), 0, old - 1).astype(np.int64), axis=axis)
    if mode not in ("linear", "cubic"):
        raise unsupported(node, f"mode {mode!r}")
    if x.dtype.kind != "f":
        raise unsupported(node, f"mode {mode!r} on {x.dtype}")
    # antialias: when shrinking, the filter is stretched over all that it stands for
    stretch = 1.0 / scale if integer(node, "antialias", 0) and scale < 1 else 1.0
    a, exclude = real(node, "cubic_coeff_a", -0.75), bool(integer(node, "exclude_outside", 0))
    radius = (1.0 if mode == "linear" else 2.0) * stretch
    matrix = np.zeros((coordinates.size, old))
    for row, centre in enumerate(coordinates):
        places = np.arange(int(np.floor(centre - radius)), int(np.ceil(centre + radius)) + 1)
        distance = np.abs(places - centre) / stretch
        weights = np.maximum(0, 1 - distance) if mode == "linear" else cubic(distance, a)
        if exclude:
            weights = np.where((places >= 0) & (places < old), weights, 0)
        if exclude or stretch > 1:
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(places, 0, old - 1), weights)
    return np.moveaxis(np.tensordot(matrix.astype(x.dtype), x, axes=(1, axis)), 0, axis)


def cubic(distance: Array, a: float) -> Array:
    """Keys' cubic convolution kernel at distances >= 0 (IEEE TASSP 29, 1981)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


@kernel("GridSample", attrs="align_corners mode padding_mode")
def grid_sample(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x [N, C, spatial...] read at grid [N, out..., rank], coordinates in [-1, 1], the last axis first."""
    x, grid = need(node, arrays, 0), need(node, arrays, 1)
    mode, border = text(node, "mode", "linear"), text(node, "padding_mode", "zeros")
    corners, rank = bool(integer(node, "align_corners", 0)), x.ndim - 2
    if border not in ("zeros", "border", "reflection") or mode not in ("linear", "bilinear", "nearest", "cubic", "bicubic"):
        raise unsupported(node, f"mode {mode!r}, padding_mode {border!r}")
    sizes = x.shape[2:]
    places = [
        ((grid[..., rank - 1 - i] + 1) * (size - 1) / 2 if corners else ((grid[..., rank - 1 - i] + 1) * size - 1) / 2)
        for i, size in enumerate(sizes)
    ]
    if mode in ("cubic", "bicubic"):
        offsets, weight = range(-1, 3), _cubic_weight
    elif mode == "nearest":
        places = [np.rint(_inside(place, size, border, corners)) for place, size in zip(places, sizes, strict=True)]
        offsets, weight = range(1), np.ones_like
    else:
        places = [_inside(place, size, border, corners) for place, size in zip(places, sizes, strict=True)]
        offsets, weight = range(2), _linear_weight
    batch = np.arange(x.shape[0]).reshape(-1, *(1,) * rank)
    total = np.zeros((x.shape[0], *grid.shape[1:-1], x.shape[1]), dtype=x.dtype)
    for shift in itertools.product(offsets, repeat=rank):
        factor: Any = 1.0
        valid: Any = True
        index: list[Array] = []
        for place, size, step in zip(places, sizes, shift, strict=True):
            at = np.floor(place) + step
            factor = factor * weight(place - at)
            at = _inside(at, size, border, corners)
            valid = valid & (at >= 0) & (at <= size - 1)
            index.append(np.clip(np.nan_to_num(at), 0, size - 1).astype(np.int64))
        read = np.moveaxis(x, 1, -1)[(batch, *index)]
        total += np.where(valid[..., None], read, 0) * factor[..., None]
    return [np.moveaxis(total, -1, 1).astype(x.dtype, copy=False)]


def _linear_weight(distance: Array) -> Array:
    return 1 - np.abs(distance)


def _cubic_weight(distance: Array) -> Array:
    return cubic(np.abs(distance), -0.75)


def _inside(at: Array, size: int, border: str, corners: bool) -> Array:
    """Coordinates brought into the image by `border`; "zeros" leaves them."""
    if border == "border":
        return np.clip(at, 0, size - 1)
    if border == "reflection":
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        span = high - low
        if span == 0:
            return np.zeros_like(at)
        turned = np.abs(at - low) % (2 * span)
        return np.clip(np.where(turned > span, 2 * span - turned, turned) + low, 0, size - 1)
    return at


@kernel("AffineGrid", attrs="align_corners size")
def affine_grid(node: Node, arrays: list[Array | None]) -> list[Array]:
    """theta [N, rank, rank + 1] applied to the coordinates of an image of `size` (N, C, spatial...)."""
    theta, size = need(node, arrays, 0), ints(node, arrays, "size", 1)
    if size is None:
        raise unsupported(node, "no size")
    spatial, corners = size[2:], integer(node, "align_corners", 0)
    steps = [
        (np.linspace(-1, 1, n) if corners and n > 1 else (2 * np.arange(n) + 1) / n - 1).astype(theta.dtype) for n in spatial
    ]
    mesh = np.stack([*reversed(np.meshgrid(*steps, indexing="ij")), np.ones(spatial, dtype=theta.dtype)], axis=-1)
    return [np.einsum("...j,nij->n...i", mesh, theta)]
