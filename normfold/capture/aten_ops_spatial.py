"""Pools, pads and resizing."""

from __future__ import annotations

from typing import Any

from normfold.capture.aten_spell import Read, Spelled, filled, spelling
from normfold.graph import is_float


def _spatial(read: Read) -> int:
    """Spatial axes of a pool, from its name; 0 when the input has no batch axis or is not of floats."""
    spatial = int(read.op.removesuffix("_with_indices")[-2])
    return spatial if read.rank("self") == spatial + 2 and is_float(read.dtype("self")) else 0


def _window(read: Read, spatial: int) -> tuple[tuple[int, ...], ...] | None:
    """kernel, strides, pads, dilations."""
    kernel = read.ints("kernel_size", spatial)
    strides = read.ints("stride", spatial) if read.get("stride") not in (None, []) else kernel
    pads = read.ints("padding", spatial)
    dilations = read.ints("dilation", spatial) if "dilation" in read.args else (1,) * spatial
    if kernel is None or strides is None or pads is None or dilations is None:
        return None
    return kernel, strides, pads, dilations


def _ceils(read: Read, spatial: int, window: tuple[tuple[int, ...], ...]) -> bool | None:
    """Whether rounding up gives another size than rounding down; None when that depends on a dynamic size."""
    if not read["ceil_mode"]:
        return False
    before, after = filled(read.shape("self")[2:]), filled(read.out_shape[2:])
    if before is None or after is None:
        return None
    rows = zip(before, *window, strict=True)
    floors = [(size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, dilation in rows]
    return tuple(floors) != after


def _window_attrs(window: tuple[tuple[int, ...], ...], ceil: bool) -> dict[str, Any]:
    kernel, strides, pads, dilations = window
    return {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": pads + pads,
        "dilations": dilations,
        "ceil_mode": int(ceil),
    }


@spelling(*(f"max_pool{n}d" for n in (1, 2, 3)), *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)))
def _max_pool(read: Read) -> Spelled | None:
    spatial = _spatial(read)
    window = _window(read, spatial) if spatial else None
    indices = "_with_indices" in read.op
    if window is None or (indices and read.picked - {0}):
        return None
    ceil = _ceils(read, spatial, window)
    attrs = _window_attrs(window, bool(read["ceil_mode"]) if ceil is None else ceil)
    return Spelled("MaxPool", ["self"], attrs, outputs=(0,) if indices else (None,))


@spelling("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(read: Read) -> Spelled | None:
    spatial = _spatial(read)
    window = _window(read, spatial) if spatial else None
    if window is None or read.get("divisor_override") is not None or _ceils(read, spatial, window) is not False:
        return None  # what a window that hangs over the border is divided by differs between frameworks
    attrs = _window_attrs(window, False) | {"count_include_pad": int(read["count_include_pad"])}
    return Spelled("AveragePool", ["self"], attrs)


@spelling(*(f"adaptive_avg_pool{n}d" for n in (1, 2, 3)), "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive_avg(read: Read) -> Spelled | None:
    spatial = _spatial(read)
    out = read.ints("output_size")
    if not spatial or out is None:
        return None
    if out == (1,) * spatial:
        return Spelled("GlobalAveragePool", ["self"])
    size = filled(read.shape("self")[2:])
    if size is None or any(before % after for before, after in zip(size, out, strict=True)):
        return None
    kernel = tuple(before // after for before, after in zip(size, out, strict=True))
    window = (kernel, kernel, (0,) * spatial, (1,) * spatial)
    return Spelled("AveragePool", ["self"], _window_attrs(window, False) | {"count_include_pad": 0})


@spelling("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max(read: Read) -> Spelled | None:
    spatial = _spatial(read)
    if not spatial or read.picked - {0} or read.ints("output_size") != (1,) * spatial:
        return None
    return Spelled("GlobalMaxPool", ["self"], outputs=(0,))


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pads(read: Read, mode: str, value: Any, name: str) -> Spelled | None:
    """torch lists (begin, end) from the last axis on; the view all begins, then all ends."""
    listed, rank = read.ints(name), read.rank("self")
    if listed is None or not read.same_type("self") or not (value is None or isinstance(value, (int, float))):
        return None
    begins, ends = [0] * rank, [0] * rank
    for place in range(len(listed) // 2):
        begins[rank - 1 - place], ends[rank - 1 - place] = listed[2 * place], listed[2 * place + 1]
    attrs: dict[str, Any] = {"pads": (*begins, *ends), "mode": mode}
    if mode == "constant":
        attrs["constant_value"] = float(value or 0) if is_float(read.out_dtype) else int(value or 0)
    return Spelled("Pad", ["self"], attrs)


@spelling("constant_pad_nd")
def _constant_pad(read: Read) -> Spelled | None:
    return _pads(read, "constant", read["value"], "pad")


@spelling("pad")
def _pad(read: Read) -> Spelled | None:
    return _pads(read, _MODES[read["mode"]], read["value"], "pad")


@spelling(*(f"reflection_pad{n}d" for n in (1, 2, 3)))
def _reflection(read: Read) -> Spelled | None:
    return _pads(read, "reflect", None, "padding")


@spelling(*(f"replication_pad{n}d" for n in (1, 2, 3)))
def _replication(read: Read) -> Spelled | None:
    return _pads(read, "edge", None, "padding")


def _resize(read: Read, spatial: int, attrs: dict[str, Any]) -> Spelled | None:
    """The last `spatial` axes change: by `scales` where the call has them (they place the samples), else to `sizes`."""
    name = "input" if "input" in read.args else "self"
    rank = read.rank(name)
    if rank != spatial + 2 or not is_float(read.dtype(name)):
        return None
    factors = read.get("scale_factors") if "scale_factors" in read.args else _plain_scales(read, spatial)
    if factors is not None:
        if not all(isinstance(factor, (int, float)) for factor in factors):
            return None
        return Spelled("Resize", [name], attrs | {"scales": (1.0, 1.0, *map(float, factors))})
    sizes = filled(read.out_shape[2:])
    if sizes is None:
        return Spelled("Resize", [name], attrs | {"axes": tuple(range(2, rank))}, sizes=True)
    whole = filled(read.shape(name)[:2])
    if whole is None:
        return Spelled("Resize", [name], attrs | {"axes": tuple(range(2, rank)), "sizes": sizes})
    return Spelled("Resize", [name], attrs | {"sizes": whole + sizes})


def _plain_scales(read: Read, spatial: int) -> list[Any] | None:
    names = ["scales"] if spatial == 1 else ["scales_d", "scales_h", "scales_w"][-spatial:]
    factors = [read.get(name) for name in names]
    return None if all(factor is None for factor in factors) else factors


@spelling("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(read: Read) -> Spelled | None:
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(read, int(read.op[-2]), attrs)


def _coordinates(read: Read) -> str:
    return "align_corners" if read["align_corners"] else "pytorch_half_pixel"


@spelling("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _linear(read: Read) -> Spelled | None:
    return _resize(read, int(read.op[-2]), {"mode": "linear", "coordinate_transformation_mode": _coordinates(read)})


@spelling("upsample_bicubic2d")
def _cubic(read: Read) -> Spelled | None:
    attrs = {"mode": "cubic", "coordinate_transformation_mode": _coordinates(read), "cubic_coeff_a": -0.75}
    return _resize(read, 2, attrs)
