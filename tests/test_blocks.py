"""Blocks of networks whose branches and chains are merged, as their papers draw them, through both adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from judge import proved
from routes import Taken, aten, by_onnx, randomised


def conv_bn(inp: int, out: int, kernel: Any, stride: int = 1, pad: Any = 0, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inp, out, kernel, stride, pad, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class Branched(nn.Module):
    """A first layer, the sum of `branches`, an activation and a last layer."""

    def __init__(self, width: int, out: int, *parts: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU()) if first is None else first
        self.parts, self.last = nn.ModuleList(parts), nn.Conv2d(out, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        total = self.parts[0](x)
        for part in self.parts[1:]:
            total = total + part(x)
        return self.last(F.relu(total))


def repvgg(stride: int = 1, groups: int = 1) -> nn.Module:
    skip = [nn.BatchNorm2d(8)] if stride == 1 else []
    return Branched(8, 8, conv_bn(8, 8, 3, stride, 1, groups), conv_bn(8, 8, 1, stride, 0, groups), *skip)


def mobileone(stride: int = 1) -> nn.Module:
    skip = [nn.BatchNorm2d(8)] if stride == 1 else []
    kxk = [conv_bn(8, 8, 3, stride, 1, 8) for _ in range(4)]
    return Branched(8, 8, *kxk, conv_bn(8, 8, 1, stride, 0, 8), *skip)


def mobileone_pointwise() -> nn.Module:
    return Branched(8, 8, nn.BatchNorm2d(8), *(conv_bn(8, 8, 1) for _ in range(4)))


def acnet() -> nn.Module:
    return Branched(8, 8, conv_bn(8, 8, 3, 1, 1), conv_bn(8, 8, (1, 3), 1, (0, 1)), conv_bn(8, 8, (3, 1), 1, (1, 0)))


def dbb() -> nn.Module:
    """Padding in front of the 1x1 is what that paper's padding with the norm's own shift says."""
    pad = {"padding": 1, "bias": False}
    chain = nn.Sequential(nn.Conv2d(8, 8, 1, **pad), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8))
    pool = nn.Sequential(nn.Conv2d(8, 8, 1, **pad), nn.BatchNorm2d(8), nn.AvgPool2d(3, 1), nn.BatchNorm2d(8))
    return Branched(8, 8, conv_bn(8, 8, 3, 1, 1), conv_bn(8, 8, 1), chain, pool)


def pooled(stride: int = 1) -> nn.Module:
    pool = nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=True), nn.BatchNorm2d(8))
    return Branched(8, 8, conv_bn(8, 8, 3, stride, 1), pool)


def dilated() -> nn.Module:
    return Branched(8, 8, conv_bn(8, 8, 3, 1, 2, dilation=2), conv_bn(8, 8, 1), nn.BatchNorm2d(8), conv_bn(8, 8, 1, groups=2))


def even_kernels() -> nn.Module:
    """Padding "same" of an even kernel is larger behind than in front."""
    return Branched(8, 8, conv_bn(8, 8, 4, 1, "same"), conv_bn(8, 8, 2, 1, "same"), nn.BatchNorm2d(8))


def large_kernel() -> nn.Module:
    """RepLKNet, UniRepLKNet: a large depthwise kernel and small ones beside it."""
    return Branched(8, 8, conv_bn(8, 8, 7, 1, 3, 8), conv_bn(8, 8, 5, 1, 2, 8), conv_bn(8, 8, 3, 1, 1, 8), nn.BatchNorm2d(8))


class RepMixer(nn.Module):
    """FastViT's token mixer: x + layer_scale (mixer(x) - norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.kxk, self.scale, self.skip = conv_bn(8, 8, 3, 1, 1, 8), conv_bn(8, 8, 1, 1, 0, 8), nn.BatchNorm2d(8)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.layer_scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.layer_scale * ((self.kxk(x) + self.scale(x) + self.skip(x)) - self.norm(x))
        return self.last(F.relu(x))


class RepViT(nn.Module):
    """bn(conv_bn(x) + conv1(x) + x), then a residual of pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.conv, self.conv1, self.bn = conv_bn(8, 8, 3, 1, 1, 8), nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8)
        self.up, self.down = conv_bn(8, 16, 1), conv_bn(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = self.bn(self.conv(x) + self.conv1(x) + x)
        return x + self.down(F.gelu(self.up(x)))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU())
        self.long, self.short = nn.Conv1d(8, 8, 5, padding=2, groups=4), nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.norms, self.last = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)]), nn.Conv1d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        total = self.norms[0](self.long(x)) + self.norms[1](self.short(x)) - self.norms[2](x)
        return self.last(F.relu(total))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU())
        self.cube, self.plane = nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1))
        self.norms, self.last = nn.ModuleList([nn.BatchNorm3d(4) for _ in range(3)]), nn.Conv3d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        total = self.norms[0](self.cube(x)) + self.norms[1](self.plane(x)) + self.norms[2](x)
        return self.last(F.relu(total))


class LowRank(nn.Module):
    """A linear layer with a low-rank adapter beside it and a residual, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x)
        return self.last(torch.relu(self.full(x) + 0.5 * self.up(self.down(x)) + x))


SQUARE, TOKENS = (2, 3, 12, 11), (2, 5, 6)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # block, input, linear layers that are left
    "RepVGG": (repvgg, SQUARE, 3),
    "RepVGG stride 2": (lambda: repvgg(2), SQUARE, 3),
    "RepVGG groups": (lambda: repvgg(1, 4), SQUARE, 3),
    "MobileOne": (mobileone, SQUARE, 3),
    "MobileOne stride 2": (lambda: mobileone(2), SQUARE, 3),
    "MobileOne pointwise": (mobileone_pointwise, SQUARE, 3),
    "ACNet": (acnet, SQUARE, 3),
    "DBB": (dbb, SQUARE, 3),
    "average pool": (pooled, SQUARE, 3),
    "average pool stride 2": (lambda: pooled(2), SQUARE, 3),
    "dilated": (dilated, SQUARE, 3),
    "even kernels": (even_kernels, SQUARE, 3),
    "large kernel": (large_kernel, SQUARE, 3),
    "RepMixer": (RepMixer, SQUARE, 3),
    "RepViT": (RepViT, SQUARE, 4),
    "signal": (Signal, (2, 3, 15), 3),
    "volume": (Volume, (1, 2, 6, 7, 8), 3),
    "low rank": (LowRank, TOKENS, 2),
}


def linears(taken: Taken) -> int:
    return sum(node.kind in ("Conv", "Gemm", "MatMul") for node in taken.outcome.graph.nodes)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("route, objective", [(aten, "latency"), (by_onnx, "norms")])
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str, route: Callable[..., Taken], objective: str) -> None:
    make, shape, left = BLOCKS[name]
    torch.manual_seed(1)
    taken = route(randomised(make()), torch.randn(shape), objective=objective)
    assert taken.error <= 1e-5
    assert taken.norms_left() == 0
    assert set(taken.outcomes) <= {"deleted"}
    assert all(finding.into for finding in taken.outcome.findings)
    assert linears(taken) == left
    kinds = Counter(node.kind for node in taken.outcome.graph.nodes)
    matmuls = kinds["MatMul"]  # have their bias in an Add
    assert kinds["Add"] + kinds["Sub"] == (1 if name == "RepViT" else matmuls) and not kinds["AveragePool"]


OPEN = [(aten, name) for name in ("RepVGG", "RepVGG stride 2", "MobileOne", "DBB", "RepMixer", "dilated")]


@pytest.mark.parametrize("route, name", [*OPEN, (by_onnx, "RepVGG stride 2"), (by_onnx, "DBB")])
def test_sizes_that_are_open_until_run_time(route: Callable[..., Taken], name: str) -> None:
    torch.manual_seed(1)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    make, shape, left = BLOCKS[name]
    taken = route(randomised(make()), torch.randn(shape), dynamic={"x": sizes})
    assert taken.error <= 1e-5 and taken.norms_left() == 0 and linears(taken) == left
    for height, width in ((9, 8), (8, 13)):
        feeds = {value.name: np.random.default_rng(0).standard_normal((1, 3, height, width)) for value in taken.before.inputs}
        proved(taken.before, taken.outcome.graph, feeds)


# ---- chains --------------------------------------------------------------------------------------------------------------------


def expanded() -> nn.Module:
    """1x1, k x k and 1x1 in a row, as ExpandNets train them, each with its norm."""
    convs = [nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 4, 1, bias=False)]
    parts = [item for conv in convs for item in (conv, nn.BatchNorm2d(conv.out_channels))]
    return nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(4, 2, 1))


def strided() -> nn.Module:
    first = nn.Conv2d(3, 6, (3, 1), (2, 1), (2, 0), dilation=(2, 1), bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(6), nn.Conv2d(6, 2, (1, 3), (1, 2)), nn.ReLU(), nn.Conv2d(2, 2, 1))


def grouped() -> nn.Module:
    convs = (nn.Conv1d(4, 8, 1, groups=4, bias=False), nn.Conv1d(8, 4, 3, padding=1, groups=2))
    return nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), *convs, nn.ReLU())


def tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 9, bias=False), nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "expanded": (expanded, (2, 3, 9, 8), 2),
    "strided": (strided, (2, 3, 9, 12), 2),
    "grouped": (grouped, (2, 2, 9), 2),
    "tokens": (tokens, (2, 5, 6), 2),
    "rows": (tokens, (5, 6), 2),
}


@pytest.mark.parametrize("route, objective", [(aten, "latency"), (by_onnx, "norms")])
@pytest.mark.parametrize("name", NETS)
def test_chain(name: str, route: Callable[..., Taken], objective: str) -> None:
    make, shape, left = NETS[name]
    torch.manual_seed(1)
    taken = route(randomised(make()), torch.randn(shape), objective=objective)
    assert taken.error <= 1e-5 and set(taken.outcomes) <= {"deleted"} and taken.norms_left() == 0
    assert all(finding.into for finding in taken.outcome.findings)
    assert sum(node.kind in ("Conv", "Gemm", "MatMul") for node in taken.outcome.graph.nodes) == left
    assert {item.rule for item in taken.outcome.applied} >= {"chains"}
