"""Networks built in code, for measuring the measuring: a ResNet-18, and the same layers with and without norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """The network of that name for 1000 classes; `width` 64 is the real one."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for index in range(4):
            outputs = width << index
            blocks = [Block(inputs, outputs, 1 if index == 0 else 2), Block(outputs, outputs, 1)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def norm_heavy(norms: bool = True, channels: int = 16, depth: int = 6) -> nn.Module:
    """Small 1x1 convolutions, with a BatchNorm behind each or without; nothing else differs, and norms take a large part."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 1)]
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, channels, 1))
        if norms:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def slow_layer(width: int = 32, slow: int = 192) -> nn.Module:
    """A chain of equal layers with one that costs far more, called `slow`."""
    chain = nn.Sequential()
    for index in range(6):
        if index == 3:
            chain.add_module("slow", nn.Sequential(nn.Conv2d(width, slow, 3, padding=1), nn.Conv2d(slow, width, 1)))
        chain.add_module(f"usual{index}", nn.Conv2d(width if index else 3, width, 3, padding=1))
        chain.add_module(f"relu{index}", nn.ReLU())
    return chain


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """`module` in eval mode with statistics as training leaves them: no two alike, so that no exporter merges them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in ((layer.running_var, 0.5), (layer.weight.data, 0.5), (layer.bias.data, -0.5)):
                assert tensor is not None
                tensor.uniform_(low, low + 1.0, generator=generator)
            assert layer.running_mean is not None
            layer.running_mean.normal_(generator=generator)
    return module.eval()
