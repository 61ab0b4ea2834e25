"""Convolutions, matrix products, embeddings: the ops that hold weights."""

from __future__ import annotations

from normfold.capture.aten_spell import Read, Spelled, spelling
from normfold.graph import is_float


def _spatial(read: Read) -> int:
    """Number of spatial axes; 0 when the input has no batch axis, which the view's Conv does not know."""
    rank = read.rank("weight")
    return rank - 2 if read.rank("input") == rank and rank >= 3 and is_float(read.dtype("input")) else 0


def _ints(read: Read, spatial: int, *names: str) -> list[tuple[int, ...]] | None:
    values = [read.ints(name, spatial) for name in names]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _transposed(read: Read, stride: str, padding: str, dilation: str) -> Spelled | None:
    spatial = _spatial(read)
    values = _ints(read, spatial, stride, padding, dilation, "output_padding")
    if not spatial or values is None or not isinstance(read["groups"], int):
        return None
    strides, pads, dilations, extra = values
    attrs = {
        "strides": strides,
        "dilations": dilations,
        "group": read["groups"],
        "pads": pads + pads,
        "output_padding": extra,
        "kernel_shape": tuple(read.meta("weight").shape[2:]),
    }
    return Spelled("ConvTranspose", ["input", "weight", "bias"], attrs)


def _forward(read: Read, pads: tuple[int, ...] | None) -> Spelled | None:
    spatial = _spatial(read)
    values = _ints(read, spatial, "stride", "dilation")
    if not spatial or values is None or pads is None or not isinstance(read["groups"], int):
        return None
    strides, dilations = values
    kernel = tuple(int(size) for size in read.meta("weight").shape[2:])
    attrs = {"strides": strides, "dilations": dilations, "group": read["groups"], "pads": pads, "kernel_shape": kernel}
    return Spelled("Conv", ["input", "weight", "bias"], attrs)


@spelling("conv1d", "conv2d", "conv3d")
def _conv(read: Read) -> Spelled | None:
    pads = read.ints("padding", _spatial(read))
    return _forward(read, None if pads is None else pads + pads)


@spelling("conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv_padding(read: Read) -> Spelled | None:
    spatial = _spatial(read)
    dilations = read.ints("dilation", spatial)
    if dilations is None:
        return None
    totals = [0] * spatial
    if read["padding"] == "same":  # torch allows it for stride 1 only; the odd one goes to the end
        kernel = read.meta("weight").shape[2:]
        totals = [dilation * (int(size) - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    return _forward(read, tuple(total // 2 for total in totals) + tuple(total - total // 2 for total in totals))


@spelling("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(read: Read) -> Spelled | None:
    return _transposed(read, "stride", "padding", "dilation")


@spelling("convolution", "_convolution")
def _convolution(read: Read) -> Spelled | None:
    if read["transposed"]:
        return _transposed(read, "stride", "padding", "dilation")
    pads = read.ints("padding", _spatial(read))
    return _forward(read, None if pads is None else pads + pads)


@spelling("linear")
def _linear(read: Read) -> Spelled | None:
    if read.rank("input") < 2 or read.rank("weight") != 2 or not is_float(read.dtype("input")):
        return None
    return Spelled("Gemm", ["input", "weight", "bias"], {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1})


@spelling("addmm")
def _addmm(read: Read) -> Spelled | None:
    if not is_float(read.out_dtype):
        return None
    attrs = {"alpha": float(read["alpha"]), "beta": float(read["beta"]), "transA": 0, "transB": 0}
    return Spelled("Gemm", ["mat1", "mat2", "self"], attrs)


@spelling("mm")
def _mm(read: Read) -> Spelled:
    return Spelled("MatMul", ["self", "mat2"])


@spelling("bmm")
def _bmm(read: Read) -> Spelled:
    return Spelled("MatMul", ["self", "mat2"])


@spelling("matmul")
def _matmul(read: Read) -> Spelled:
    return Spelled("MatMul", ["self", "other"])


@spelling("mv")
def _mv(read: Read) -> Spelled:
    return Spelled("MatMul", ["self", "vec"])


@spelling("dot")
def _dot(read: Read) -> Spelled:
    return Spelled("MatMul", ["self", "tensor"])


@spelling("embedding")
def _embedding(read: Read) -> Spelled:
    return Spelled("Gather", ["weight", "indices"], {"axis": 0})
