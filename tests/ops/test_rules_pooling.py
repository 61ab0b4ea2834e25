"""Rules of pools, reductions and resizing, judged by the float64 certificate."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, POOL, outcome

# ---- pools, means, resizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_bn_pool_conv(kind: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op(
        kind,
        b.bn(x, name="bn"),
        shape=("N", 8, 3, 3),
        pads=(0,) * 4,
        **POOL,
        **({} if kind == "MaxPool" else {"count_include_pad": 0}),
    )
    assert outcome(b, b.conv(y, 5)) == "deleted"


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_a_negative_gamma_passes_an_average_but_not_a_maximum(kind: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    attrs = {**POOL, "pads": (0,) * 4, **({} if kind == "MaxPool" else {"count_include_pad": 0})}
    y = b.op(kind, b.bn(x, gamma=np.array([1.0, -1, 0.5, 2]), name="bn"), shape=("N", 4, 3, 3), **attrs)
    assert outcome(b, b.conv(y, 5)) == ("kept" if kind == "MaxPool" else "deleted")


@pytest.mark.parametrize("include", [0, 1])
def test_a_padded_average_takes_a_shift_unless_it_counts_the_padding(include: int) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    attrs = {**POOL, "kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "count_include_pad": include}
    y = b.op("AveragePool", b.bn(x, name="bn"), shape=("N", 8, 6, 6), **attrs)
    assert outcome(b, b.conv(y, 5)) == ("shift" if include else "deleted")


@pytest.mark.parametrize("keepdims", [0, 1])
def test_bn_mean_linear(keepdims: int) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("ReduceMean", b.bn(x, name="bn"), shape=("N", 8, 1, 1) if keepdims else ("N", 8), axes=(2, 3), keepdims=keepdims)
    y = b.op("Flatten", y, shape=("N", 8), axis=1) if keepdims else y
    assert outcome(b, b.gemm(y, 3)) == "deleted"


def test_a_sum_takes_the_scale_and_not_the_shift() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("ReduceSum", b.bn(x, name="bn"), shape=("N", 8), axes=(2, 3), keepdims=0)
    assert outcome(b, b.gemm(y, 3)) == "shift"


def test_a_mean_over_channels_stops_a_scale_per_channel() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("ReduceMean", b.bn(x, name="bn"), shape=("N", 1, 6, 6), axes=(1,), keepdims=1)
    assert outcome(b, b.conv(y, 3)) == "kept"


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_bn_resize_conv(mode: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("Resize", b.bn(x, name="bn"), shape=("N", 8, 12, 12), mode=mode, scales=(1.0, 1.0, 2.0, 2.0),
             coordinate_transformation_mode="half_pixel", nearest_mode="floor", cubic_coeff_a=-0.75, exclude_outside=0,
             extrapolation_value=0.0, antialias=0)  # fmt: skip
    assert outcome(b, b.conv(y, 5)) == "deleted"
