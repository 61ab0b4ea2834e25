"""A shifted input in front of zero padding: the border map makes up for it, through both adapters, at fixed and open sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.ops.linear import zero_padded
from routes import Taken, aten, by_onnx, randomised

OPEN = ({0: torch.export.Dim("n", max=64), 2: torch.export.Dim("h", min=5, max=99), 3: torch.export.Dim("w", min=5, max=99)},)


def model(*behind: nn.Module) -> nn.Module:
    signed = not any(isinstance(item, nn.MaxPool2d) for item in behind)
    return randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), *behind, nn.Sigmoid()), signed=signed)


def both(module: nn.Module, dynamic: Any) -> list[Taken]:
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    return [aten(module, x, dynamic=dynamic), by_onnx(module, x, dynamic=dynamic)]


@pytest.mark.parametrize("dynamic", [None, pytest.param(OPEN, marks=pytest.mark.slow)], ids=["fixed", "open"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: [nn.Conv2d(6, 4, 3, padding=1)],
        lambda: [nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.Conv2d(4, 5, 1)],
        lambda: [nn.Conv2d(6, 4, (3, 2), padding=(2, 1), stride=2, dilation=2, groups=2)],
        lambda: [nn.Conv2d(6, 6, 3, padding="same", groups=6), nn.BatchNorm2d(6)],
        lambda: [nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)],
        lambda: [nn.MaxPool2d(2), nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(6, 4, 3)],
    ],
    ids=["plain", "map then conv", "strided dilated groups", "depthwise then norm", "transposed", "pool, pad, conv"],
)
def test_the_norm_goes_and_a_map_comes(make: Any, dynamic: Any) -> None:
    for taken in both(model(*make()), dynamic):
        assert set(taken.outcomes) == {"deleted"} and taken.norms_left() == 0
        assert taken.outcome.inserted == {"border map": 1}
        assert taken.error <= 2e-6


def test_a_map_comes_only_where_it_deletes_something() -> None:
    """Conv-BN in front of a padded conv: the shift goes into the bias before, not into a map behind."""
    module = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1), nn.Sigmoid()))
    for taken in both(module, None):
        assert taken.outcomes == ["deleted"] and taken.outcome.inserted == {}


def test_the_default_objective_inserts_no_map() -> None:
    x = torch.randn(1, 3, 9, 8)
    taken = by_onnx(model(nn.Conv2d(6, 4, 3, padding=1)), x, objective="latency")
    assert taken.outcomes == ["kept"] and taken.codes == ["zero-padding"]


def test_two_readers_get_a_map_each_and_a_captured_zero_stays_hard() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6))
            self.left, self.right = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 5, padding=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x)
            return torch.sigmoid(self.left(y)) + torch.sigmoid(self.right(y))

    for taken in both(randomised(Two()), None):
        assert taken.outcomes == ["deleted"] and taken.outcome.inserted == {"border map": 2}


def test_a_map_for_open_sizes_holds_where_the_input_is_not_finite() -> None:
    """The plane of ones is x to the power of zero: one for NaN and infinity too."""
    module = model(nn.Conv2d(6, 4, 3, padding=1))
    x = torch.randn(2, 3, 9, 8)
    x[0, :, 4, 4] = float("nan")
    taken = aten(module, x, dynamic=OPEN)  # compares the patterns of NaN
    assert taken.outcomes == ["deleted"]
    powers = [node for node in taken.outcome.graph.nodes if node.kind == "Pow"]
    assert len(powers) == 1


def test_padding_of_the_map_is_that_of_the_conv() -> None:
    taken = by_onnx(model(nn.Conv2d(6, 4, 3, padding=1)), torch.randn(1, 3, 9, 8))
    conv = [node for node in taken.outcome.graph.nodes if node.kind == "Conv"][1]
    assert zero_padded(conv)
    add = conv.output.uses[0].node
    constant = add.inputs[1]
    assert add.kind == "Add" and constant is not None and constant.const is not None
    inner = constant.const.float64()[:, :, 1:-1, 1:-1]
    assert np.abs(inner).max() < 1e-12 and np.abs(constant.const.float64()).max() > 1e-3
