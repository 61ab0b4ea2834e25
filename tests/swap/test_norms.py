"""The new norms compute what their docstring says, on both channel axes and every rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.errors import UsageError
from normfold.swap.norms import KINDS, NewNorm, as_channels_last, usual_groups

C = 8


def reference(kind: str, x: np.ndarray[Any, Any], eps: float, groups: int) -> np.ndarray[Any, Any]:
    """n(x) of [N, C, positions], in float64."""
    n, c, p = x.shape
    if kind == "none":
        return x
    if kind == "rmsnorm":
        return x / np.sqrt((x**2).mean(1, keepdims=True) + eps)
    parts = {
        "layernorm": x.transpose(0, 2, 1)[:, :, None],
        "groupnorm": x.reshape(n, groups, 1, -1),
        "instancenorm": x[:, :, None],
    }
    part = parts[kind]
    normed = (part - part.mean(-1, keepdims=True)) / np.sqrt(part.var(-1, keepdims=True) + eps)
    return normed[:, :, 0].transpose(0, 2, 1) if kind == "layernorm" else normed.reshape(n, c, p)


SHAPES = [(5, C), (5, C, 7), (3, C, 4, 5)]
CASES = [(kind, shape) for kind in KINDS for shape in SHAPES if kind != "instancenorm" or len(shape) > 2]


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("kind, shape", CASES, ids=str)
def test_every_kind_on_every_layout(kind: Any, shape: tuple[int, ...], axis: int) -> None:
    norm = NewNorm(kind, C, axis, eps=0.03, groups=2).make().double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape, dtype=torch.float64)
    flat = x.reshape(shape[0], C, -1).numpy()
    core = reference(kind, flat, 0.03, 2)
    wanted = core * norm.weight.detach().numpy()[:, None] + norm.bias.detach().numpy()[:, None]
    given = x if axis == 1 else x.movedim(1, -1)
    with torch.no_grad():
        found, bare = norm(given), norm.core(given)
    for came, expected in ((found, wanted), (bare, core)):
        moved = came if axis == 1 else came.movedim(-1, 1)
        assert moved.shape == x.shape
        np.testing.assert_allclose(moved.numpy().reshape(shape[0], C, -1), expected, atol=1e-10)


@pytest.mark.parametrize("shape, axis", [((4, 3), 1), ((4, 3), -1), ((4, 3, 5), 1), ((4, 5, 3), -1), ((2, 3, 4, 5), 1)])
def test_channels_last_keeps_the_positions_in_one_order(shape: tuple[int, ...], axis: int) -> None:
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    flat = as_channels_last(x, axis)
    assert flat.shape == (x.numel() // 3, 3)
    for channel in range(3):
        assert torch.equal(flat[:, channel], x.select(axis, channel).reshape(-1))


@pytest.mark.parametrize("channels, groups", [(256, 32), (64, 8), (16, 2), (8, 1), (7, 1), (24, 3), (100, 10), (1, 1)])
def test_groups_divide_and_hold_eight(channels: int, groups: int) -> None:
    assert usual_groups(channels) == groups


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="12 channels cannot be cut in 5 equal groups"):
        NewNorm("groupnorm", 12, groups=5).make()
    with pytest.raises(UsageError, match=r"a norm can become layernorm, .*; got 'batchnorm'"):
        NewNorm("batchnorm", 12).make()  # type: ignore[arg-type]


def test_a_norm_is_described_in_plain_types() -> None:
    norm = NewNorm("groupnorm", 12, groups=4)
    assert NewNorm(**norm.as_dict()) == norm
    assert "12, axis=1, eps=1e-05, groups=4" in repr(norm.make())
