"""Normalization layers, softmax and reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from normfold.capture.aten_spell import Arg, Fixed, Read, Spelled, filled, spelling
from normfold.graph import Array, is_float


def _ones(read: Read, shape: tuple[int, ...], like: str = "input") -> Array:
    return np.ones(shape, read.dtype(like))


def _affine(read: Read, shape: tuple[int, ...], like: str = "input") -> list[str | Arg | Fixed]:
    """gamma and beta; ones and zeros stand for None."""
    ones = _ones(read, shape, like)
    return [Arg("weight", absent=ones), Arg("bias", absent=np.zeros_like(ones))]


def _batch(read: Read, outputs: tuple[int | None, ...]) -> Spelled | None:
    """BatchNorm with stored statistics."""
    if read.picked - {0} or not (read.is_tensor("running_mean") and read.is_tensor("running_var")):
        return None
    if read.rank("input") < 2 or not is_float(read.dtype("input")):
        return None
    channels = filled(read.shape("running_mean"))
    if channels is None:
        return None
    inputs: list[str | Arg | Fixed] = ["input", *_affine(read, channels, "running_var"), "running_mean", "running_var"]
    attrs = {"epsilon": float(read["eps"]), "training_mode": 0, "momentum": float(read["momentum"])}
    return Spelled("BatchNormalization", inputs, attrs, outputs=outputs)


@spelling("_native_batch_norm_legit_no_training")
def _batch_no_training(read: Read) -> Spelled | None:
    return _batch(read, (0,))


@spelling("native_batch_norm", "_native_batch_norm_legit")
def _batch_native(read: Read) -> Spelled | None:
    return None if read["training"] else _batch(read, (0,))


@spelling("_native_batch_norm_legit.no_stats")
def _batch_no_stats(read: Read) -> None:
    return None  # statistics of the batch: stays as it is


@spelling("batch_norm")
def _batch_composite(read: Read) -> Spelled | None:
    return None if read["training"] else _batch(read, (None,))


@spelling("instance_norm")
def _instance(read: Read) -> Spelled | None:
    if not read["use_input_stats"]:
        return _batch(read, (None,))  # running statistics: a BatchNorm by another name
    channels = read.shape("input")[1]
    if read.rank("input") < 3 or not isinstance(channels, int) or not is_float(read.dtype("input")):
        return None
    inputs: list[str | Arg | Fixed] = ["input", *_affine(read, (channels,))]
    return Spelled("InstanceNormalization", inputs, {"epsilon": float(read["eps"])})


@spelling("group_norm")
def _group(read: Read) -> Spelled | None:
    return _groups(read, "num_groups", (None,))


@spelling("native_group_norm")
def _group_native(read: Read) -> Spelled | None:
    return None if read.picked - {0} else _groups(read, "group", (0,))


def _groups(read: Read, groups: str, outputs: tuple[int | None, ...]) -> Spelled | None:
    channels = read.shape("input")[1]
    if not isinstance(channels, int) or not isinstance(read[groups], int) or not is_float(read.dtype("input")):
        return None
    inputs: list[str | Arg | Fixed] = ["input", *_affine(read, (channels,))]
    return Spelled("GroupNormalization", inputs, {"num_groups": read[groups], "epsilon": float(read["eps"])}, outputs=outputs)


def _layer(read: Read, kind: str, epsilon: float, outputs: tuple[int | None, ...], *, beta: bool) -> Spelled | None:
    shape = read.ints("normalized_shape")
    if shape is None or read.picked - {0} or not is_float(read.dtype("input")):
        return None
    inputs: list[str | Arg | Fixed] = ["input", Arg("weight", absent=_ones(read, shape)), "bias"]
    attrs: dict[str, Any] = {"axis": read.rank("input") - len(shape), "epsilon": epsilon}
    return Spelled(kind, inputs if beta else inputs[:2], attrs, outputs=outputs)


@spelling("layer_norm")
def _layer_norm(read: Read) -> Spelled | None:
    return _layer(read, "LayerNormalization", float(read["eps"]), (None,), beta=True)


@spelling("native_layer_norm")
def _layer_native(read: Read) -> Spelled | None:
    return _layer(read, "LayerNormalization", float(read["eps"]), (0,), beta=True)


@spelling("rms_norm", "_fused_rms_norm")
def _rms(read: Read) -> Spelled | None:
    epsilon = float(torch.finfo(read.meta("input").dtype).eps if read["eps"] is None else read["eps"])
    outputs = (None,) if read.op == "rms_norm" else (0,)
    spelled = _layer(read, "RMSNormalization", epsilon, outputs, beta=False)
    return None if spelled is None else replace(spelled, replaced={"eps": epsilon})


# ---- softmax and reductions ----------------------------------------------------------------------------------------------


@spelling("softmax", "_softmax")
def _softmax(read: Read) -> Spelled | None:
    return _soft(read, "Softmax")


@spelling("log_softmax", "_log_softmax")
def _log_softmax(read: Read) -> Spelled | None:
    return _soft(read, "LogSoftmax")


def _soft(read: Read, kind: str) -> Spelled | None:
    if not read.same_type("self") or not is_float(read.out_dtype) or read.rank("self") == 0:
        return None
    return Spelled(kind, ["self"], {"axis": read.axis("dim", read.rank("self"))})


def _reduce(read: Read, kind: str) -> Spelled | None:
    if not read.same_type("self") or (kind == "ReduceMean" and not is_float(read.out_dtype)):
        return None
    rank = read.rank("self")
    axes = read.ints("dim") if read.get("dim") not in (None, []) else tuple(range(rank))
    if axes is None:
        return None
    axes = tuple(sorted(axis + rank if axis < 0 else axis for axis in axes))
    return Spelled(kind, ["self"], {"axes": axes, "keepdims": int(bool(read.get("keepdim", False)))})


@spelling("mean")
def _mean(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceMean")


@spelling("sum")
def _sum(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceSum")


@spelling("amax")
def _amax(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceMax")


@spelling("amin")
def _amin(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceMin")


@spelling("max.default")
def _max_all(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceMax")


@spelling("min.default")
def _min_all(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceMin")


@spelling("max.dim", "min.dim")
def _max_dim(read: Read) -> None:
    return None  # returns indices too


@spelling("linalg_vector_norm")
def _vector_norm(read: Read) -> Spelled | None:
    kind = {1: "ReduceL1", 2: "ReduceL2"}.get(read["ord"])
    return _reduce(read, kind) if kind else None


@spelling("logsumexp")
def _logsumexp(read: Read) -> Spelled | None:
    return _reduce(read, "ReduceLogSumExp")
