"""Small networks with norms to exchange, with statistics of their own, and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normfold.load import Loaded, load
from normfold.record import Record

STEPS, FEATURES, HIDDEN, CLASSES = 4, 3, 6, 3


class Cell(nn.Module):
    """An LSTM cell with BN on both products, the same at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(FEATURES, 4 * HIDDEN, bias=False)
        self.recurrent = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.bn_input = nn.BatchNorm1d(4 * HIDDEN)
        self.bn_recurrent = nn.BatchNorm1d(4 * HIDDEN)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.bn_input(self.input(x)) + self.bn_recurrent(self.recurrent(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Rows(nn.Module):
    """[N, T, features] to class scores [N, classes]; written to a file as `ARCHITECTURE` too."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()
        self.fc = nn.Linear(HIDDEN, CLASSES)

    def forward(self, rows: Tensor) -> Tensor:
        h = c = rows.new_zeros(rows.shape[0], HIDDEN)
        for t in range(rows.shape[1]):
            h, c = self.cell(rows[:, t], h, c)
        return self.fc(h)


class ConvNet(nn.Module):
    """[N, 2, 6, 6] to [N, 3]: Conv-BN-ReLU, Conv-BN-ReLU, mean, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.body(image).mean((2, 3)))


def trained(build: Callable[[], nn.Module], *shape: int, seed: int = 0) -> nn.Module:
    """What `build` makes, with gammas of both signs and the statistics of random data of this shape; in eval mode."""
    torch.manual_seed(seed)
    module = build()
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight, 0.8, 0.5)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(64, *shape) + 0.5)
    return module.eval()


def rows(count: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(count, STEPS, FEATURES, generator=torch.Generator().manual_seed(seed)) + 0.5


def images(count: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) + 0.5


def live(module: nn.Module, data: Tensor, **options: Any) -> Loaded:
    return load(module, calls=[((data,), {})], record=Record(), **options)


def bn_lstm() -> nn.Module:
    return trained(Rows, STEPS, FEATURES)


def conv_net() -> nn.Module:
    return trained(ConvNet, 2, 6, 6)


def saved(folder: Path, count: int = 40) -> Path:
    """net.pt with its factory and sidecar, rows.npz to fit and held.npz to measure, whose labels the network gets right."""
    module = bn_lstm()
    torch.save(module.state_dict(), folder / "net.pt")
    (folder / "arch.py").write_text("from swapping import Rows as build\n")
    (folder / "net.toml").write_text(f'model = "arch.py:build"\ninputs = ["rows=1x{STEPS}x{FEATURES}"]\n')
    np.savez(folder / "rows.npz", rows=rows(count).numpy())
    held = rows(30, seed=2)
    with torch.no_grad():
        np.savez(folder / "held.npz", rows=held.numpy(), labels=module(held).argmax(1).numpy())
    return folder / "net.pt"
