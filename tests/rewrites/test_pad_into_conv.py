"""An explicit zero pad becomes the padding of the convolutions that read it, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from routes import aten, by_onnx


def padded(*pads: int, value: float = 0.0, mode: str = "constant", conv: nn.Module | None = None) -> nn.Module:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv or nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            extra = {"value": value} if mode == "constant" else {}
            return self.conv(nn.functional.pad(x, pads, mode=mode, **extra))

    return Padded().eval()


def kinds(module: nn.Module, route: Any) -> list[str]:
    taken = route(module, torch.randn(2, 3, 8, 7))
    assert taken.error <= 1e-6
    return [node.kind for node in taken.outcome.graph.nodes]


@pytest.mark.parametrize("route", [aten, by_onnx])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 3)])
@pytest.mark.parametrize("own", [0, 1])
def test_zero_pads_go(pads: tuple[int, ...], own: int, route: Any) -> None:
    assert kinds(padded(*pads, conv=nn.Conv2d(3, 4, 3, stride=2, padding=own)), route) == ["Conv"]


@pytest.mark.parametrize("route", [aten, by_onnx])
@pytest.mark.parametrize(
    "make",
    [
        lambda: padded(1, 1, 1, 1, value=0.5),
        lambda: padded(1, 1, 1, 1, mode="reflect"),
        lambda: padded(-1, 1, 1, 1),
        lambda: padded(0, 0, 0, 0, 1, 0, conv=nn.Conv2d(4, 4, 3)),
        lambda: padded(1, 1, 1, 1, conv=nn.MaxPool2d(3)),
        lambda: padded(1, 1, 1, 1, conv=nn.ConvTranspose2d(3, 4, 3)),
    ],
    ids=["another value", "reflect", "crop", "channels", "pool", "transposed conv"],
)
def test_others_stay(make: Any, route: Any) -> None:
    assert "Pad" in kinds(make(), route)


def test_a_pad_that_another_op_reads_stays() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.pad(x, (1, 1, 1, 1))
            return self.conv(x) + torch.sigmoid(x)

    assert kinds(Two().eval(), by_onnx) == ["Pad", "Conv", "Sigmoid", "Add"]


def test_two_convs_read_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, dilation=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.pad(x, (1, 1, 1, 1))
            return torch.relu(self.a(x)) + torch.sigmoid(self.b(x))

    assert "Pad" not in kinds(Two().eval(), aten)
