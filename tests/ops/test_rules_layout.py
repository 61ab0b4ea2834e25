"""Rules of operations that move elements: the gauge travels; judged by the float64 certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, conv_bn, judged, outcome

# ---- layout: the gauge travels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "attrs"),
    [
        ("Flatten", ("N", 288), {"axis": 1}),
        ("Reshape", ("N", 288), {"target": (0, -1)}),
    ],
)
def test_bn_flatten_linear(kind: str, shape: tuple[Any, ...], attrs: dict[str, Any]) -> None:
    b = Builder()
    y = b.op(kind, b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn"), shape=shape, **attrs)
    assert outcome(b, b.gemm(y, 3)) == "deleted"


def test_channel_shuffle_moves_each_gauge_to_its_place() -> None:
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn")
    y = b.op("Reshape", y, shape=("N", 2, 4, 6, 6), target=(-1, 2, 4, 6, 6))
    y = b.op("Transpose", y, shape=("N", 4, 2, 6, 6), perm=(0, 2, 1, 3, 4))
    y = b.op("Reshape", y, shape=("N", 8, 6, 6), target=(-1, 8, 6, 6))
    assert outcome(b, b.conv(y, 5)) == "deleted"


def test_slice_split_concat_gather_move_each_gauge_to_its_place() -> None:
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn")
    left, right = b.op("Split", y, shape=(("N", 3, 6, 6), ("N", 5, 6, 6)), outputs=2, axis=1, split=(3, 5))
    odd = b.op("Slice", y, shape=("N", 4, 6, 6), starts=(1,), ends=(9,), axes=(1,), steps=(2,))
    joined = b.concat(right, odd, left)
    index = b.graph.constant("index", np.array([7, 0, 3]))
    picked = b.op("Gather", joined, index, shape=("N", 3, 6, 6), axis=1)
    b.output(b.conv(joined, 5), b.conv(picked, 5))
    assert judged(b.graph)["bn"].outcome == "deleted"


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle_with_equal_gauges_per_block(mode: str) -> None:
    gamma = np.repeat([0.5, 2.0], 4) if mode == "CRD" else np.tile([0.5, 2.0], 4)
    b = Builder()
    x = b.op("Sigmoid", b.input("x", ("N", 8, 3, 3)), shape=("N", 8, 3, 3))
    y = b.bn(x, name="bn", gamma=gamma, var=np.ones(8))
    for slot in (2, 3):  # equal beta and mean: one gauge for the block
        y.producer.inputs[slot].const = b.const(np.zeros(8)).const
    y = b.op("DepthToSpace", y, shape=("N", 2, 6, 6), blocksize=2, mode=mode)
    assert outcome(b, b.conv(y, 5)) == "deleted"
    b = Builder()
    x = b.op("Sigmoid", b.input("x", ("N", 8, 3, 3)), shape=("N", 8, 3, 3))
    y = b.op("DepthToSpace", b.bn(x, name="bn"), shape=("N", 2, 6, 6), blocksize=2, mode=mode)
    assert outcome(b, b.conv(y, 5)) == "kept"


def test_zero_channel_padding_on_a_shortcut() -> None:
    """The parameter-free shortcut of resnet20: zero channels are zeros at any scale."""
    b = Builder()
    x = b.relu(conv_bn(b, channels=4, signed=True))
    y = b.op("Pad", x, shape=("N", 8, 6, 6), mode="constant", pads=(0, 2, 0, 0, 0, 2, 0, 0), constant_value=0.0)
    other = b.bn(b.conv(x, 8), name="bn2")
    b.output(b.relu(b.add(y, other)))
    fates = judged(b.graph)
    assert fates["bn"].outcome == fates["bn2"].outcome == "deleted"


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads_that_copy_pass_a_shift_pads_of_zero_do_not(mode: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("Pad", b.bn(x, name="bn"), shape=("N", 8, 8, 8), mode=mode, pads=(0, 0, 1, 1, 0, 0, 1, 1), constant_value=0.0)
    assert outcome(b, b.conv(y, 5, 3)) == ("shift" if mode == "constant" else "deleted")
