"""The networks of this folder.  Each factory takes no argument and fits the state_dict of the same name, strictly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv_bn(inp: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


class DigitsConvBN(nn.Module):
    """Image [N, 1, 8, 8] in 0..1 to logits [N, 10]: Conv-BN-ReLU (dense, depthwise, pointwise, grouped), then Linear-BN-ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(1, 32, 3)
        self.depthwise = _conv_bn(32, 32, 3, groups=32)
        self.pointwise = _conv_bn(32, 64, 1)
        self.grouped = _conv_bn(64, 64, 3, stride=2, groups=4)
        self.fc1 = nn.Linear(64 * 4 * 4, 64, bias=False)
        self.bn1 = nn.BatchNorm1d(64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 10]."""
        x = self.grouped(self.pointwise(self.depthwise(self.stem(image))))
        return self.fc2(F.relu(self.bn1(self.fc1(torch.flatten(x, 1)))))


class PreActBlock(nn.Module):
    """BN-ReLU-Conv twice beside an identity (He et al. 2016, arXiv:1603.05027); a 1x1 shortcut where the shape changes."""

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inp)
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = None if inp == out and stride == 1 else nn.Conv2d(inp, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [N, inp, H, W] to [N, out, H / stride, W / stride]."""
        y = F.relu(self.bn1(x))
        stream = x if self.shortcut is None else self.shortcut(y)
        return stream + self.conv2(F.relu(self.bn2(self.conv1(y))))


class DigitsPreAct(nn.Module):
    """Image [N, 1, 8, 8] in 0..1 to logits [N, 10]: a pre-activation ResNet, three stages of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.stage1 = nn.Sequential(PreActBlock(16, 16), PreActBlock(16, 16))
        self.stage2 = nn.Sequential(PreActBlock(16, 32, 2), PreActBlock(32, 32))
        self.stage3 = nn.Sequential(PreActBlock(32, 48, 2), PreActBlock(48, 48))
        self.bn = nn.BatchNorm2d(48)
        self.fc = nn.Linear(48, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, 10]."""
        x = F.relu(self.bn(self.stage3(self.stage2(self.stage1(self.conv(image))))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def digits_convbn() -> DigitsConvBN:
    """The network of digits_convbn.pt."""
    return DigitsConvBN()


def digits_preact() -> DigitsPreAct:
    """The network of digits_preact.pt."""
    return DigitsPreAct()
