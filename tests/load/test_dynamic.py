"""Open sizes: the notation, and what torch.export gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from normfold.errors import UsageError
from normfold.load.calls import module_dynamic
from normfold.load.dynamic import DynamicSpec, Size, dynamic_shapes, enlarged, parse_dynamic


def sizes(*items: Any) -> tuple[Size, ...]:
    return tuple(Size("", item) if isinstance(item, int) else item if isinstance(item, Size) else Size(item, 1) for item in items)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("image=Nx3xHxW", DynamicSpec("image", sizes("N", 3, "H", "W"))),
        ("Nx16", DynamicSpec("", sizes("N", 16))),
        ("x=batch,3,max_w", DynamicSpec("x", sizes("batch", 3, "max_w"))),
        ("x=Nx8*H", DynamicSpec("x", sizes("N", Size("H", 8)))),
        ("x=N x H*8", DynamicSpec("x", sizes("N", Size("H", 8)))),
        ("x.0.k=N", DynamicSpec("x.0.k", sizes("N"))),
        (
            "x=Nx2*H[8..64]xW[..9]xD[4..]",
            DynamicSpec("x", sizes("N", Size("H", 2, 8, 64), Size("W", 1, None, 9), Size("D", 1, 4))),
        ),
    ],
)
def test_notation(text: str, expected: DynamicSpec) -> None:
    assert parse_dynamic(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x=", "=Nx3", "x=1x3", "x=Nx-3", "x=Nx2*3", "x=Nx2*H*W", "x=Nx3.5", "x=NxH+1", "x=N,,3", "x=N[3]", "x=N[a..b]"]
)
def test_bad_notation(text: str) -> None:
    with pytest.raises(UsageError, match="--dynamic"):
        parse_dynamic(text)


def spec(text: str) -> list[DynamicSpec]:
    return [parse_dynamic(item) for item in text.split()]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("Nx3", "needs a name, the model takes x, y"),
        ("z=Nx3", "no 'z' in the example; known: x, y"),
        ("y.7=N", "no '7' in the example; known: 0, 1"),
        ("y=Nx3", "the example is a list"),
        ("x=Nx3x4", "has 3 sizes, the example is shape 2x3"),
        ("x=Nx4", "fixes axis 1 at 4, the example has 3"),
        ("x=NxN", "axis 1 is 3 in the example, N = 2 elsewhere"),
        ("x=Nx2*H", "axis 1 is 3 in the example, not a multiple of 2"),
        ("x=N[2..4]x3 y.1=N[2..8]", "gives N two ranges"),
        ("x=N[4..2]x3", r"range N\[4\.\.2\] is empty"),
        ("x=Nx3 y.0=N", "axis 0 is 5 in the example, N = 2 elsewhere"),
    ],
)
def test_what_does_not_fit_the_example_is_said(text: str, reason: str) -> None:
    arguments = {"x": torch.zeros(2, 3), "y": [torch.zeros(5), torch.zeros(5)]}
    with pytest.raises(UsageError, match=reason):
        dynamic_shapes(spec(text), arguments)


def test_one_symbol_is_one_size() -> None:
    shapes, small = dynamic_shapes(spec("x=Nx3 y.1=N"), {"x": torch.zeros(2, 3), "y": [torch.zeros(5), torch.zeros(2)]})
    assert small == []
    assert shapes["x"][0] is shapes["y"][1][0]
    assert shapes["y"][0] is None


def test_ranges_reach_torch() -> None:
    shapes, _ = dynamic_shapes(spec("x=N[2..64]x3 y.1=N"), {"x": torch.zeros(2, 3), "y": [torch.zeros(5), torch.zeros(2)]})
    assert (shapes["x"][0].min, shapes["x"][0].max) == (2, 64)
    assert shapes["y"][1][0] is shapes["x"][0]


class Net(nn.Module):
    def forward(self, x: torch.Tensor, more: dict[str, Any], *, scale: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.avg_pool2d(x, 2)
        return pooled.mean((2, 3)) * scale + torch.stack(more["parts"]).sum(0)


def call(batch: int) -> Any:
    return (torch.randn(batch, 3, 8, 8), {"parts": [torch.randn(batch, 3), torch.randn(batch, 3)]}), {"scale": torch.ones(3)}


def test_torch_export_takes_it() -> None:
    specs = spec("x=Nx3x2*Hx8 more.parts.0=Nx3 more.parts.1=Nx3")
    shapes, calls = module_dynamic(Net(), [call(2)], specs)
    program = torch.export.export(Net(), *calls[0], dynamic_shapes=shapes)
    args, kwargs = call(5)
    args = (torch.randn(5, 3, 12, 8), args[1])
    assert torch.allclose(program.module()(*args, **kwargs), Net()(*args, **kwargs), atol=1e-6)


def test_open_sizes_of_one_are_enlarged_for_the_export_only() -> None:
    """torch.export fixes sizes of 1: the call in front has 2, the caller's own stays as it was."""
    own = call(1)
    kept = own[0][0]
    specs = spec("x=Nx3x8x8 more.parts.0=Nx3 more.parts.1=Nx3")
    shapes, calls = module_dynamic(Net(), [own], specs)
    assert len(calls) == 2
    assert calls[1] is own
    assert own[0][0] is kept
    (x, more), kwargs = calls[0]
    assert [x.shape[0], *(part.shape[0] for part in more["parts"])] == [2, 2, 2]
    assert torch.equal(x[0], kept[0])
    assert torch.equal(x[1], kept[0])
    program = torch.export.export(Net(), *calls[0], dynamic_shapes=shapes)
    args, kwargs = call(1)
    assert program.module()(*args, **kwargs).shape == (1, 3)


def test_enlarged_keeps_the_containers() -> None:
    arguments = {"a": (torch.zeros(1, 2), "text"), "b": torch.zeros(1)}
    result = enlarged(arguments, [(("a", "0"), 0, 2), (("b",), 0, 2)])
    assert isinstance(result["a"], tuple)
    assert result["a"][1] == "text"
    assert (result["a"][0].shape, result["b"].shape) == ((2, 2), (2,))
    assert arguments["b"].shape == (1,)
