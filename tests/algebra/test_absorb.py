"""Folding formulas against the definition, run by torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normfold.algebra import absorb
from normfold.algebra.absorb import Gauges


def gauges(inputs: int, outputs: int, seed: int = 1) -> Gauges:
    rng = np.random.default_rng(seed)
    sign = [rng.choice([-1.0, 1.0], n) for n in (inputs, outputs)]
    return Gauges(
        rng.uniform(0.5, 2, inputs) * sign[0],
        rng.standard_normal(inputs),
        rng.uniform(0.5, 2, outputs) * sign[1],
        rng.standard_normal(outputs),
    )


def column(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv(groups: int) -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = rng.standard_normal((12, 6 // groups, 3, 2)), rng.standard_normal(12), rng.standard_normal((2, 6, 7, 5))
    g = gauges(6, 12)
    y = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), groups=groups)
    new_weight = torch.from_numpy(absorb.conv_weight(weight, g, groups))
    new_bias = torch.from_numpy(absorb.conv_bias(bias, absorb.conv_taps(weight, g, groups), g))
    stored = torch.from_numpy(x) * column(g.s_x) + column(g.t_x)
    expected = y * column(g.s_y) + column(g.t_y)
    assert torch.allclose(F.conv2d(stored, new_weight, new_bias, groups=groups), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv_transpose(groups: int) -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = rng.standard_normal((6, 12 // groups, 3, 2)), rng.standard_normal(12), rng.standard_normal((2, 6, 7, 5))
    g = gauges(6, 12)._replace(t_x=np.zeros(6))
    y = F.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), stride=2, groups=groups)
    new_weight = torch.from_numpy(absorb.conv_transpose_weight(weight, g, groups))
    stored = F.conv_transpose2d(
        torch.from_numpy(x) * column(g.s_x), new_weight, torch.from_numpy(g.s_y * bias + g.t_y), stride=2, groups=groups
    )
    assert torch.allclose(stored, y * column(g.s_y) + column(g.t_y), rtol=0, atol=1e-12)


def test_matrix() -> None:
    rng = np.random.default_rng(0)
    weight, bias, x, g = rng.standard_normal((5, 7)), rng.standard_normal(7), rng.standard_normal((3, 5)), gauges(5, 7)
    y = x @ weight + bias
    stored = (x * g.s_x + g.t_x) @ absorb.matrix(weight, g) + g.s_y * bias + absorb.matrix_offset(weight, g)
    assert np.allclose(stored, y * g.s_y + g.t_y, rtol=0, atol=1e-12)


def test_batch_norm_is_torchs() -> None:
    rng = np.random.default_rng(0)
    gamma, beta, mean, var = rng.standard_normal(4), rng.standard_normal(4), rng.standard_normal(4), rng.uniform(1e-6, 2, 4)
    x = torch.from_numpy(rng.standard_normal((8, 4)))
    expected = F.batch_norm(x, *(torch.from_numpy(item) for item in (mean, var, gamma, beta)), eps=1e-3)
    a, c = absorb.batch_norm(gamma, beta, mean, var, 1e-3)
    assert torch.allclose(x * torch.from_numpy(a) + torch.from_numpy(c), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_what_a_shift_adds_at_each_tap(groups: int) -> None:
    """One plane of ones through the taps is the whole shifted input through the weight, for both kinds of convolution."""
    rng = np.random.default_rng(groups)
    weight = rng.standard_normal((6, 6 // groups, 3, 2))  # [O, I/g, ...] of a conv, [I, O/g, ...] of a transposed one
    g = gauges(6, 6)
    plane, ones = np.ones((1, 6, 5, 4)) * (g.t_x / g.s_x)[:, None, None], torch.ones(1, 1, 5, 4, dtype=torch.float64)
    for taps, function, own in (
        (absorb.conv_taps(weight, g, groups)[:, None], F.conv2d, {"padding": 1}),
        (absorb.conv_transpose_taps(weight, g, groups)[None], F.conv_transpose2d, {"stride": 2}),
    ):
        expected = function(torch.from_numpy(plane), torch.from_numpy(weight), groups=groups, **own).numpy()
        came = function(ones, torch.from_numpy(taps), **own).numpy()
        assert np.allclose(came, expected * g.s_y[:, None, None], rtol=1e-12, atol=1e-12)
