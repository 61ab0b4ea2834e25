"""Operations and bytes against counts made by hand, and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from normfold.profile.cost import operations, traffic


def counted(module: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv2d(6, 8, 3, 2, 1), (2, 6, 11, 9)),
        (nn.Conv2d(6, 12, 3, groups=3), (1, 6, 8, 8)),
        (nn.Conv2d(6, 6, 5, groups=6), (1, 6, 9, 9)),
        (nn.Conv1d(4, 8, 3), (1, 4, 20)),
    ],
)
def test_convolutions_as_torch_counts_them(layer: nn.Module, size: tuple[int, ...]) -> None:
    x = torch.zeros(size)
    assert operations("Conv", [size, layer.weight.shape], [layer(x).shape]) == counted(layer, x)


def test_transposed_convolutions_as_torch_counts_them() -> None:
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=2), torch.zeros(1, 4, 5, 5)
    assert operations("ConvTranspose", [x.shape, layer.weight.shape], [layer(x).shape]) == counted(layer, x)


@pytest.mark.parametrize(
    ("a", "b", "y", "inner"),
    [
        ((3, 5), (5, 7), (3, 7), 5),
        ((5, 3), (7, 5), (3, 7), 5),  # both transposed, as Gemm may have them
        ((4, 4), (4, 4), (4, 4), 4),
        ((2, 8, 3, 5), (2, 8, 5, 6), (2, 8, 3, 6), 5),
        ((2, 3, 5), (5, 7), (2, 3, 7), 5),
        ((2, 10, 64), (64,), (2, 10), 64),
    ],
)
def test_matrix_products_need_no_attributes(a: tuple[int, ...], b: tuple[int, ...], y: tuple[int, ...], inner: int) -> None:
    size = 1
    for dim in y:
        size *= dim
    assert operations("MatMul", [a, b], [y]) == pytest.approx(2 * size * inner)


def test_recurrent_layers() -> None:
    assert operations("LSTM", [(10, 2, 3), (1, 16, 3), (1, 16, 4)], [(10, 1, 2, 4)]) == 2 * 10 * 2 * (16 * 3 + 16 * 4)


def test_one_an_element_and_what_is_not_known() -> None:
    assert operations("Relu", [(2, 3)], [(2, 3)]) == 6
    assert operations("Reshape", [(2, 3)], [(3, 2)]) == 0
    assert operations("ReduceMean", [(4, 8)], [(4, 1)]) == 32
    assert operations("BatchNormalization", [(1, 2, 4, 4), (2,)], [(1, 2, 4, 4)]) == 64
    assert operations("Mystery", [(2, 3)], [(2, 3)]) is None
    assert operations("Conv", [], [(1, 2, 3, 3)]) is None


def test_bytes_by_type() -> None:
    assert traffic([("float", (2, 3)), ("int64", (2,)), ("float16", (4,)), ("bool", (5,)), ("double", ())]) == 24 + 16 + 8 + 5 + 8
