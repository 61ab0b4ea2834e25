"""Open sizes that a network limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from normfold.load.widest import fixes, limits, widest


class Skip(nn.Module):
    """A stride with its way back: even sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + self.up(self.down(image))


class Resized(nn.Module):
    """Sizes that went through Python's int()."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :, : torch.ones(int(image.shape[2] / 1.2)).shape[0]]


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(image.flatten(1))


def run(module: nn.Module, shapes: Any) -> tuple[Any, list[str]]:
    example = torch.randn(2, 3, 16, 16)
    return widest(lambda s: torch.export.export(module.eval(), (example,), dynamic_shapes=s), shapes)


def open_sizes() -> Any:
    return ({0: Dim("n"), 2: Dim("h"), 3: Dim("w")},)


def test_what_is_open_needs_no_second_try() -> None:
    program, told = run(nn.Conv2d(3, 4, 3, padding=1), ({0: Dim("n")},))
    assert told == []
    assert program.module()(torch.randn(5, 3, 16, 16)).shape[0] == 5


def test_a_kernel_limits_from_below() -> None:
    module = nn.Conv2d(3, 4, 3)
    program, told = run(module, open_sizes())
    assert told == ["axis 2 of input >= 3", "axis 3 of input >= 3"]
    image = torch.randn(1, 3, 40, 9)
    assert torch.equal(program.module()(image), module(image))


def test_a_skip_connection_wants_even_sizes() -> None:
    module = Skip()
    program, told = run(module, open_sizes())
    assert any("axis 2 of image" in text for text in told)
    image = torch.randn(3, 3, 10, 24)
    assert torch.equal(program.module()(image), module(image))
    with pytest.raises((AssertionError, RuntimeError)):
        program.module()(torch.randn(3, 3, 11, 24))


def test_sizes_that_are_fixed_stay_an_error() -> None:
    with pytest.raises(Exception, match="Constraints violated"):
        run(Resized(), open_sizes())


def test_a_relation_that_torch_accepts_is_told() -> None:
    _, told = run(Flat(), open_sizes())
    assert len(told) == 1
    assert told[0].endswith("== 768")


def test_other_errors_pass_through() -> None:
    calls: list[Any] = []

    def export(shapes: Any) -> Any:
        calls.append(shapes)
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        widest(export, {"x": {0: Dim("n")}})
    with pytest.raises(ValueError, match="something else"):
        widest(export, None)
    assert len(calls) == 2


def test_nested_shapes_lose_their_names_only() -> None:
    seen: list[Any] = []

    def export(shapes: Any) -> Any:
        seen.append(shapes)
        if len(seen) == 1:
            raise ValueError("Constraints violated (n)!")
        return None

    n = Dim("n")
    assert widest(export, {"x": [{0: n}, None], "y": ({1: 2 * n, 0: None},)}) == (None, [])
    assert seen[1] == {"x": [{0: Dim.DYNAMIC}, None], "y": ({1: Dim.DYNAMIC, 0: None},)}


@pytest.mark.parametrize(
    "guard, fixed",
    [
        ("L['x'].size()[2] == 80", True),
        ("math.trunc(((torch.sym_float(L['x'].size()[2])) / 1.2)) == 80", True),
        ("80 == L['x'].size()[2]", True),
        ("(1 + (L['x'].size()[2] // 4)) == 8", True),
        ("L['x'].size()[2] >= 3", False),
        ("((-2) + L['x'].size()[3]) != 1", False),
        ("(L['x'].size()[2] % 2) == 0", False),
        ("L['x'].size()[2] == L['y'].size()[2]", False),
    ],
)
def test_guards_that_fix_a_size(guard: str, fixed: bool) -> None:
    assert fixes(guard) is fixed


def test_limits_in_words() -> None:
    guards = [
        "(-2) + L['x'].size()[2] >= 3",
        "L['x'].size()[2] >= 3",
        "((-2) + L['x'].size()[3]) != 1",
        "(L['x'].size()[2] % 2) == 0",
        "L['x'].size()[2] >= 3",
    ]
    assert limits(guards) == ["axis 2 of x >= 5", "axis 2 of x a multiple of 2"]
