"""Sums and chains of window maps against torch in float64, on every window that fits a small image."""

from __future__ import annotations

from math import gcd

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.algebra.branches import Form, Window, embedded, identity, joined, point, regrouped
from normfold.algebra.chains import chained, composed


def ran(x: np.ndarray, form: Form, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The map by its definition: pad with zeros, then torch's convolution."""
    window = form.window
    pads = [pad for pair in reversed(list(zip(window.before, window.after, strict=True))) for pad in pair]
    padded = F.pad(torch.from_numpy(x), pads)
    conv = {0: None, 1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(window.kernel)]
    if conv is None:
        return x @ weight.T + (0 if bias is None else bias)
    offset = None if bias is None else torch.from_numpy(bias)
    return conv(padded, torch.from_numpy(weight), offset, window.strides, 0, window.dilations, form.groups).numpy()


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-12 * max(1.0, np.abs(other).max(initial=0)))


def axis(data: st.DataObject, stride: int) -> tuple[int, int, int, int, int]:
    kernel, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    return kernel, stride, dilation, data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))


def window(data: st.DataObject, strides: tuple[int, ...]) -> Window:
    return Window(*zip(*(axis(data, stride) for stride in strides), strict=True))


def groups_of(data: st.DataObject, inputs: int, outputs: int) -> int:
    return data.draw(st.sampled_from([g for g in (1, 2, 4, 8) if inputs % g == 0 and outputs % g == 0]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_sum_that_is_joined_is_the_sum(data: st.DataObject) -> None:
    strides = tuple(data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=2)))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, *(data.draw(st.integers(5, 8)) for _ in strides)))
    outputs = data.draw(st.sampled_from([4, 8]))
    forms = [Form(4, outputs, groups_of(data, 4, outputs), window(data, strides)) for _ in range(2)]
    weights = [rng.standard_normal(form.shape) for form in forms]
    parts = [ran(x, form, weight) for form, weight in zip(forms, weights, strict=True)]
    into = joined(*forms, [a == b for a, b in zip(parts[0].shape[2:], parts[1].shape[2:], strict=True)])
    if into is None:
        return
    assert parts[0].shape == parts[1].shape
    weight = sum(embedded(weight, form, into) for form, weight in zip(forms, weights, strict=True))
    assert close(ran(x, into, weight), parts[0] + parts[1])
    unknown = joined(*forms, [False] * len(strides))
    if unknown is not None:  # sizes were not looked at: it must hold for any
        assert unknown == into
        for size in (7, 8, 9):
            x = rng.standard_normal((1, 4, *(size for _ in strides)))
            total = sum(ran(x, form, w) for form, w in zip(forms, weights, strict=True))
            assert close(ran(x, unknown, weight), total)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_chain_that_is_one_is_the_chain(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 2))
    strides = [tuple(data.draw(st.integers(1, 2)) for _ in range(axes)) for _ in range(2)]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, *(data.draw(st.integers(11, 13)) for _ in range(axes))))
    middle, outputs = data.draw(st.sampled_from([2, 4, 8])), data.draw(st.sampled_from([2, 4, 8]))
    first = Form(4, middle, groups_of(data, 4, middle), window(data, strides[0]))
    second = Form(middle, outputs, groups_of(data, middle, outputs), window(data, strides[1]))
    biased = data.draw(st.booleans())
    b1 = rng.standard_normal(middle) * biased
    w1, w2, b2 = rng.standard_normal(first.shape), rng.standard_normal(second.shape), rng.standard_normal(outputs)
    into = chained(first, second, biased=biased)
    if into is None:
        padded = [i for i in range(axes) if second.window.before[i] or second.window.after[i]]
        assert padded and (biased or any(first.window.kernel[i] > 1 for i in padded))
        return
    weight, bias = composed((w1, b1), first, (w2, b2), second, into)
    assert close(ran(x, into, weight, bias), ran(ran(x, first, w1, b1), second, w2, b2))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_a_small_kernel_lies_where_its_padding_says(kernel: int, pad: int) -> None:
    """Both read the same positions only if pads differ by as much as kernels: anything else has other sizes."""
    big = Form(1, 1, 1, Window((5,), (1,), (1,), (2,), (2,)))
    small = Form(1, 1, 1, Window((kernel,), (1,), (1,), (pad,), (pad,)))
    into = joined(big, small, [False])
    assert (into is not None) == (2 * pad == kernel - 1)
    if into is not None:
        assert into == big
        expected = np.pad(np.ones(kernel), (2 - pad, 2 - pad))
        assert np.array_equal(embedded(np.ones(small.shape), small, into)[0, 0], expected)


def test_an_asymmetric_kernel_is_not_centred() -> None:
    big = Form(1, 1, 1, Window((4,), (1,), (1,), (1,), (2,)))
    small = identity(1, 1)
    into = joined(big, small, [False])
    assert into == big
    assert embedded(np.ones((1, 1, 1)), small, into).ravel().tolist() == [0, 1, 0, 0]


def test_dilations_must_agree_where_there_are_several_positions() -> None:
    wide = Form(2, 2, 1, Window((3,), (1,), (2,), (2,), (2,)))
    assert joined(wide, Form(2, 2, 1, Window((3,), (1,), (1,), (1,), (1,))), [True]) is None
    assert joined(wide, identity(2, 1), [False]) == wide
    off_grid = Form(2, 2, 1, Window((1,), (1,), (1,), (1,), (0,)))
    assert joined(wide, off_grid, [True]) is None


def test_other_strides_and_channels_have_no_sum() -> None:
    one = Form(2, 2, 1, Window((3,), (2,), (1,), (1,), (1,)))
    assert joined(one, identity(2, 1), [True]) is None
    assert joined(one, Form(2, 4, 1, one.window), [True]) is None
    assert joined(Form(2, 2, 2, one.window), one, [True]) == one


@pytest.mark.parametrize("groups, wanted", [(4, 1), (4, 2), (2, 1), (8, 4), (1, 1)])
def test_fewer_groups_compute_the_same(groups: int, wanted: int) -> None:
    rng = np.random.default_rng(groups)
    weight, x = rng.standard_normal((16, 8 // groups, 3)), rng.standard_normal((1, 8, 6))
    form = Form(8, 16, groups, Window((3,), (1,), (1,), (0,), (0,)))
    other = Form(8, 16, wanted, form.window)
    assert close(ran(x, other, regrouped(weight, groups, wanted)), ran(x, form, weight))


def test_matrices_are_windows_of_no_axes() -> None:
    rng = np.random.default_rng(0)
    first, second, x = Form(3, 5, 1, point(0)), Form(5, 2, 1, point(0)), rng.standard_normal((4, 3))
    w1, b1, w2, b2 = rng.standard_normal((5, 3)), rng.standard_normal(5), rng.standard_normal((2, 5)), rng.standard_normal(2)
    into = chained(first, second, biased=True)
    assert into == Form(3, 2, 1, point(0)) and into.macs == 6
    weight, bias = composed((w1, b1), first, (w2, b2), second, into)
    assert close(ran(x, into, weight, bias), (x @ w1.T + b1) @ w2.T + b2)
    square = Form(3, 3, 1, point(0))
    assert joined(square, identity(3, 0), []) == square
    assert np.array_equal(embedded(np.ones((3, 1)), identity(3, 0), square), np.eye(3))


def test_groups_of_a_chain_are_the_common_divisor() -> None:
    window = point(1)
    assert chained(Form(8, 12, 4, window), Form(12, 6, 6, window), biased=False) == Form(8, 6, gcd(4, 6), window)
