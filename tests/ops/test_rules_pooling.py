"""Rules of pools, reductions and resizing, judged by the float64 certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from build import Builder
from judge import IMAGE, POOL, judged, outcome
from normfold.graph import Value
from normfold.rewrites import Fate
from routes import aten, by_onnx, randomised

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


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("size", [6, "W"])
def test_reductions_over_space(kind: str, keepdims: int, size: Any) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", ("N", 4, 6, size)), 8))
    shape = ("N", 8, 1, 1) if keepdims else ("N", 8)
    y = b.op(kind, b.bn(x, name="bn"), shape=shape, axes=(2, -1), keepdims=keepdims)
    y = b.op("Flatten", y, shape=("N", 8), axis=1) if keepdims else y
    fate = _fate(b, b.gemm(y, 3))
    unknown = kind == "ReduceSum" and size == "W"  # how often the shift is added hangs on a size that is not known
    assert fate.outcome == ("shift" if unknown else "deleted")
    assert not unknown or (fate.refusal is not None and fate.refusal.code == "sum")


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
def test_a_negative_gamma_passes_a_mean_or_a_sum_but_no_extremum(kind: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op(kind, b.bn(x, signed=True, gamma=np.array([1.0, -1, 0.5, 2]), name="bn"), shape=("N", 4), axes=(2, 3), keepdims=0)
    fate = _fate(b, b.gemm(y, 3))
    assert fate.outcome == ("deleted" if kind in ("ReduceMean", "ReduceSum") else "kept")
    assert fate.outcome == "deleted" or (fate.refusal is not None and fate.refusal.code == "sign")


@pytest.mark.parametrize("branches", [2, 12])
@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax"])
def test_shifts_that_vary_along_a_reduced_axis_are_added_up(kind: str, branches: int) -> None:
    """Split attention: branches are put beside each other and summed; of few branches each keeps a shift of its own."""
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    parts = [b.op("Unsqueeze", b.conv(x, 3), shape=("N", 1, 3, 6, 6), axes=(1,)) for _ in range(branches)]
    y = b.op("Concat", *parts, shape=("N", branches, 3, 6, 6), axis=1)
    y = b.op(kind, y, shape=("N", 3, 6, 6), axes=(1,), keepdims=0)
    assert outcome(b, b.op("Sigmoid", b.bn(y, name="bn"), shape=y.shape)) == "deleted"


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
def test_the_shifts_of_two_branches_stay_apart(kind: str) -> None:
    """Each branch has its own norm in front of the sum: their shifts differ, and both go into the layer behind it."""
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 3))
    gamma = np.array([0.5, 1.0, 2.0])
    parts = [b.bn(item, gamma=gamma, var=np.ones(3), name=f"bn{i}") for i, item in enumerate((x, b.relu(b.conv(x, 3))))]
    y = b.op("Concat", *(b.op("Unsqueeze", part, shape=("N", 1, 3, 6, 6), axes=(1,)) for part in parts),
             shape=("N", 2, 3, 6, 6), axis=1)  # fmt: skip
    b.output(b.conv(b.op(kind, y, shape=("N", 3, 6, 6), axes=(1,), keepdims=0), 4))
    assert {fate.outcome for fate in judged(b.graph).values()} == {"deleted"}


def test_a_reduction_over_nothing_changes_nothing() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("ReduceSum", b.bn(x, signed=True, name="bn"), shape=IMAGE, axes=(), keepdims=1, noop_with_empty_axes=1)
    assert outcome(b, b.conv(y, 3)) == "deleted"


def test_axes_computed_at_run_time_pin() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    axes = b.graph.constant("axes", np.array([2, 3]))
    y = b.op("ReduceMean", b.bn(x, name="bn"), axes, shape=("N", 4, 1, 1), keepdims=1)
    assert outcome(b, b.conv(y, 3)) == "kept"


@pytest.mark.parametrize("kind", ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceProd", "LpPool", "GlobalLpPool"])
def test_other_reductions_are_pinned(kind: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    attrs: dict[str, Any] = {"axes": (2, 3), "keepdims": 1} if kind.startswith("Reduce") else {"p": 2}
    attrs |= {**POOL, "pads": (0,) * 4} if kind == "LpPool" else {}
    shape = ("N", 4, 3, 3) if kind == "LpPool" else ("N", 4, 1, 1)
    assert outcome(b, b.conv(b.op(kind, b.bn(x, name="bn"), shape=shape, **attrs), 3)) == "kept"


@pytest.mark.parametrize(
    ("include", "padded", "expected"), [(0, 0, "deleted"), (1, 0, "shift"), (0, 1, "deleted"), (1, 1, "shift")]
)
def test_windows_over_the_border(include: int, padded: int, expected: str) -> None:
    """ceil_mode: what a window over the border is divided by is agreed upon only where padding does not count."""
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    attrs = {**POOL, "kernel_shape": (3, 3), "pads": (padded,) * 4, "ceil_mode": 1, "count_include_pad": include}
    size = 3 + padded
    y = b.op("AveragePool", b.bn(x, name="bn"), shape=("N", 8, size, size), **attrs)
    assert outcome(b, b.conv(y, 5)) == expected


def _fate(b: Builder, y: Value) -> Fate:
    b.output(y)
    return judged(b.graph)["bn"]


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


RESIZE: dict[str, Any] = {
    "coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor", "cubic_coeff_a": -0.75, "exclude_outside": 0,
    "extrapolation_value": 0.0, "antialias": 0,
}  # fmt: skip


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("cubic", {"exclude_outside": 1}),
        ("cubic", {"cubic_coeff_a": -0.5, "coordinate_transformation_mode": "align_corners"}),
        ("cubic", {"antialias": 1}),
        ("linear", {"antialias": 1}),
        ("linear", {"coordinate_transformation_mode": "asymmetric"}),
        ("linear", {"coordinate_transformation_mode": "half_pixel_symmetric"}),
        ("nearest", {"nearest_mode": "round_prefer_ceil", "coordinate_transformation_mode": "asymmetric"}),
    ],
)
def test_the_weights_of_a_resize_sum_to_one(mode: str, form: dict[str, Any], factor: float) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    size = int(6 * factor)
    y = b.op(
        "Resize", b.bn(x, name="bn"), shape=("N", 8, size, size), mode=mode, scales=(1.0, 1.0, factor, factor), **RESIZE | form
    )
    assert outcome(b, b.conv(y, 5)) == "deleted"


def test_what_a_crop_extrapolates_takes_no_shift_and_at_a_value_no_scale() -> None:
    for value, expected in ((0.0, "shift"), (1.0, "kept")):
        b = Builder()
        x = b.op("Sigmoid", b.input("x", ("N", 8, 6, 6)), shape=("N", 8, 6, 6))
        form = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": value}
        roi = (-0.5, -0.5, 1.5, 1.5)
        y = b.op(
            "Resize", b.bn(x, name="bn"), shape=("N", 8, 9, 9), mode="linear", sizes=(9, 9), axes=(2, 3), roi=roi, **RESIZE | form
        )
        assert outcome(b, b.conv(y, 5)) == expected


@pytest.mark.parametrize("how", ["scales", "crop"])
def test_channels_may_be_resampled_although_their_number_stays(how: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    form = {"scales": (1.0, 1.2, 1.0, 1.0)} if how == "scales" else {
        "sizes": (2, 4, 6, 6), "coordinate_transformation_mode": "tf_crop_and_resize", "roi": (0, 0.2, 0, 0, 1, 0.9, 1, 1),
    }  # fmt: skip
    y = b.op("Resize", b.bn(x, name="bn"), shape=IMAGE, mode="linear", **RESIZE | form)
    assert outcome(b, b.conv(y, 5)) == "kept"


class _Pools(nn.Module):
    """Conv-ReLU-BN, a pool of torch's own, conv."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.conv, self.norm, self.end = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.pool(self.norm(torch.relu(self.conv(x)))))


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "shift"),
        (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "deleted"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), "deleted"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), "shift"),
        (lambda x: F.avg_pool2d(x[0], 3, divisor_override=2)[None], "shift"),  # no batch axis
        (lambda x: F.adaptive_avg_pool2d(x, 4), "deleted"),
        (lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact"), "deleted"),
        (lambda x: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True), "deleted"),
    ],
)
def test_pools_that_only_torch_has(pool: Callable[[torch.Tensor], torch.Tensor], expected: str) -> None:
    taken = aten(randomised(_Pools(pool), signed=True), torch.randn(2, 3, 12, 12))
    assert taken.outcomes == [expected] and taken.error <= 2e-5


class _Reduced(nn.Module):
    """Reductions as torch spells them, with all axes and with open sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.conv(x)))
        return torch.cat([self.fc(x.amax((2, 3))), self.fc(x.mean((2, 3))), self.fc(-x.amin((-1, -2)))])


def test_reductions_from_torch() -> None:
    sizes = {"x": {0: torch.export.Dim("n", min=2), 3: torch.export.Dim("w", min=4)}}
    module, x = randomised(_Reduced(), signed=False), torch.randn(2, 3, 8, 9)
    for taken in (aten(module, x, dynamic=sizes), by_onnx(module, x, dynamic=sizes)):
        assert taken.error <= 2e-5 and taken.outcomes == ["deleted"]  # one weight for all three, a bias for each
