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


class BNLSTMCell(nn.Module):
    """One step of an LSTM with recurrent batch normalization (Cooijmans et al. 2017, arXiv:1603.09025), without their BN on c.

    gates = BN(W_x x) + BN(W_h h) + b, cut in the order i, f, g, o.  Every step uses the same statistics.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(features, 4 * hidden, bias=False)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        self.bn_input = nn.BatchNorm1d(4 * hidden)
        self.bn_recurrent = nn.BatchNorm1d(4 * hidden)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, features], h and c [N, hidden] to the next h and c."""
        gates = self.bn_input(self.input(x)) + self.bn_recurrent(self.recurrent(h)) + self.bias
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class RowsBNLSTM(nn.Module):
    """Image [N, 1, T, features] to logits [N, classes]: a hand-written BN-LSTM over its rows, Linear on the last state."""

    def __init__(self, features: int = 8, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = BNLSTMCell(features, hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes]."""
        h = c = image.new_zeros(image.shape[0], self.hidden)
        for t in range(image.shape[2]):
            h, c = self.cell(image[:, 0, t], h, c)
        return self.fc(h)


class RowsCRNN(nn.Module):
    """Image [N, 1, T, W] to logits [N, classes]: Conv-BN-ReLU, Conv-BN, a bidirectional LSTM over the rows, BN, mean, Linear.

    One BN stands straight in front of the LSTM, one straight behind it, over the rows of both directions.
    """

    def __init__(self, width: int = 8, hidden: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, (1, 2), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.lstm = nn.LSTM(16 * (width // 2), hidden, batch_first=True, bidirectional=True)
        self.bn3 = nn.BatchNorm1d(2 * hidden)
        self.fc = nn.Linear(2 * hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes]."""
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(image)))))
        rows, _ = self.lstm(x.permute(0, 2, 1, 3).flatten(2))
        return self.fc(self.bn3(rows.transpose(1, 2)).mean(2))


class LNGRUCell(nn.Module):
    """One step of a GRU whose two products go through layer normalization (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(features, 3 * hidden, bias=False)
        self.recurrent = nn.Linear(hidden, 3 * hidden, bias=False)
        self.ln_input = nn.LayerNorm(3 * hidden)
        self.ln_recurrent = nn.LayerNorm(3 * hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """x [N, features] and h [N, hidden] to the next h."""
        xr, xz, xn = self.ln_input(self.input(x)).chunk(3, dim=1)
        hr, hz, hn = self.ln_recurrent(self.recurrent(h)).chunk(3, dim=1)
        z = torch.sigmoid(xz + hz)
        return z * h + (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn)


class RowsLNGRU(nn.Module):
    """Image [N, 1, T, features] to logits [N, classes]: a hand-written LN-GRU over its rows from a learnt state, LN, Linear."""

    def __init__(self, features: int = 8, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.cell = LNGRUCell(features, hidden)
        self.start = nn.Parameter(torch.zeros(1, hidden))
        self.ln = nn.LayerNorm(hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes]."""
        h = self.start.expand(image.shape[0], -1)
        for t in range(image.shape[2]):
            h = self.cell(image[:, 0, t], h)
        return self.fc(self.ln(h))


def digits_convbn() -> DigitsConvBN:
    """The network of digits_convbn.pt."""
    return DigitsConvBN()


def digits_preact() -> DigitsPreAct:
    """The network of digits_preact.pt."""
    return DigitsPreAct()


def digits_bnlstm() -> RowsBNLSTM:
    """The network of digits_bnlstm.pt."""
    return RowsBNLSTM()


def digits_crnn() -> RowsCRNN:
    """The network of digits_crnn.pt."""
    return RowsCRNN()


def digits_lngru() -> RowsLNGRU:
    """The network of digits_lngru.pt."""
    return RowsLNGRU()
