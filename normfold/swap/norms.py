"""The norms that a swap puts in: each normalises one channel axis of any tensor and ends in gamma and beta per channel.

y = gamma n(x) + beta,   x, y [N, C, ...] (axis 1) or [..., C] (axis -1),   gamma, beta [C]

layernorm     n = (x - mean) / sqrt(var + eps), both over the channels, at every position (Ba et al. 2016, arXiv:1607.06450)
rmsnorm       n = x / sqrt(mean(x^2) + eps), over the channels, at every position (Zhang & Sennrich 2019, arXiv:1910.07467)
groupnorm     mean and var over a group of channels and all positions of a sample (Wu & He 2018, arXiv:1803.08494)
instancenorm  mean and var of one channel over the positions of a sample (Ulyanov et al. 2016, arXiv:1607.08022)
none          n = x: what is left is a constant scale and shift, which folds into its neighbours
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.errors import UsageError

Kind = Literal["layernorm", "rmsnorm", "groupnorm", "instancenorm", "none"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EPSILON = 1e-5
_GROUPS, _WIDTH = 32, 8  # at most so many groups, at least so many channels each, where --groups does not say


class SwappedNorm(nn.Module):
    """Base: gamma (`weight`) and beta (`bias`) of shape [channels], ones and zeros at first."""

    def __init__(self, channels: int, axis: int = 1, eps: float = EPSILON) -> None:
        super().__init__()
        self.channels, self.axis, self.eps = channels, axis, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Y = gamma n(x) + beta, of the shape of x."""
        return self.computed(x, self.weight, self.bias)

    def core(self, x: Tensor) -> Tensor:
        """n(x), without gamma and beta."""
        return self.computed(x, None, None)

    def computed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The norm with this gamma and beta, without where they are None."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.channels}, axis={self.axis}, eps={self.eps}"

    def _last(self, x: Tensor) -> bool:
        """True when the channels already lie on the last axis."""
        return self.axis == -1 or x.ndim == 2


class ChannelLayerNorm(SwappedNorm):
    """LayerNorm over the channels, at every position."""

    def computed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """See SwappedNorm."""
        if self._last(x):
            return F.layer_norm(x, (self.channels,), weight, bias, self.eps)
        return F.layer_norm(x.movedim(1, -1), (self.channels,), weight, bias, self.eps).movedim(-1, 1)


class ChannelRMSNorm(SwappedNorm):
    """RMSNorm over the channels, at every position; its beta costs one addition and usually folds into what reads it."""

    def computed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """See SwappedNorm."""
        moved = x if self._last(x) else x.movedim(1, -1)
        y = F.rms_norm(moved, (self.channels,), weight, self.eps)
        y = y if bias is None else y + bias
        return y if self._last(x) else y.movedim(-1, 1)


class ChannelGroupNorm(SwappedNorm):
    """GroupNorm: the channels in `groups` equal parts, each normalised over its channels and all positions of the sample."""

    def __init__(self, channels: int, axis: int = 1, eps: float = EPSILON, groups: int = 1) -> None:
        super().__init__(channels, axis, eps)
        self.groups = groups

    def computed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """See SwappedNorm."""
        if self._last(x) and x.ndim > 2:
            return F.group_norm(x.movedim(-1, 1), self.groups, weight, bias, self.eps).movedim(1, -1)
        return F.group_norm(x, self.groups, weight, bias, self.eps)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{super().extra_repr()}, groups={self.groups}"


class ChannelInstanceNorm(SwappedNorm):
    """InstanceNorm over the positions of a sample; there must be at least one axis beside those of samples and channels."""

    def computed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """See SwappedNorm."""
        if self.axis == -1:
            return F.instance_norm(x.movedim(-1, 1), weight=weight, bias=bias, eps=self.eps).movedim(1, -1)
        return F.instance_norm(x, weight=weight, bias=bias, eps=self.eps)


class ChannelAffine(SwappedNorm):
    """No norm: gamma x + beta."""

    def computed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """See SwappedNorm."""
        shape = (-1,) if self._last(x) else (-1, *(1,) * (x.ndim - 2))
        y = x if weight is None else x * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)


_CLASSES: Mapping[str, type[SwappedNorm]] = {
    "layernorm": ChannelLayerNorm,
    "rmsnorm": ChannelRMSNorm,
    "groupnorm": ChannelGroupNorm,
    "instancenorm": ChannelInstanceNorm,
    "none": ChannelAffine,
}


@dataclass(frozen=True)
class NewNorm:
    """How one new norm is built: its kind, C, the axis of the channels (1 or -1), epsilon, and the groups of a groupnorm."""

    kind: Kind
    channels: int
    axis: int = 1
    eps: float = EPSILON
    groups: int = 0

    def make(self) -> SwappedNorm:
        """The module, gamma one and beta zero.  Raises UsageError for a kind or a number of groups that does not fit."""
        if self.kind not in _CLASSES:
            raise UsageError(f"a norm can become {', '.join(KINDS)}; got {self.kind!r}")
        if self.kind != "groupnorm":
            return _CLASSES[self.kind](self.channels, self.axis, self.eps)
        if self.groups < 1 or self.channels % self.groups:
            raise UsageError(f"{self.channels} channels cannot be cut in {self.groups} equal groups; give --groups a divisor")
        return ChannelGroupNorm(self.channels, self.axis, self.eps, self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for the manifest and the generated factory."""
        return asdict(self)


def usual_groups(channels: int) -> int:
    """The most groups, up to 32, that divide the channels and leave 8 or more in each; 1 where there are none."""
    most = min(_GROUPS, max(channels // _WIDTH, 1))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def as_channels_last(x: Tensor, axis: int) -> Tensor:
    """[positions, C] of a tensor whose channels lie on `axis` (1 or -1)."""
    moved = x if axis == -1 else x.movedim(1, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])
