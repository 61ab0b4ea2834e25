"""Rules of operations that move elements: the gauge travels; judged by the float64 certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from build import Builder
from judge import IMAGE, POOL, conv_bn, judged, outcome, rewritten
from normfold.graph import Value
from normfold.rewrites import Fate, affine
from normfold.rewrites.rewrite import Policy
from routes import aten, by_onnx, randomised


@pytest.mark.parametrize(
    ("kind", "shape", "attrs"),
    [
        ("Flatten", ("N", 288), {"axis": 1}),
        ("Reshape", ("N", 288), {"target": (0, -1)}),
    ],
)
def test_bn_flatten_linear(kind: str, shape: tuple[Any, ...], attrs: dict[str, Any]) -> None:
    b = Builder()
    y = b.op(kind, b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn"), shape=shape, **attrs)
    assert outcome(b, b.gemm(y, 3)) == "deleted"


def test_channel_shuffle_moves_each_gauge_to_its_place() -> None:
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn")
    y = b.op("Reshape", y, shape=("N", 2, 4, 6, 6), target=(-1, 2, 4, 6, 6))
    y = b.op("Transpose", y, shape=("N", 4, 2, 6, 6), perm=(0, 2, 1, 3, 4))
    y = b.op("Reshape", y, shape=("N", 8, 6, 6), target=(-1, 8, 6, 6))
    assert outcome(b, b.conv(y, 5)) == "deleted"


def test_slice_split_concat_gather_move_each_gauge_to_its_place() -> None:
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn")
    left, right = b.op("Split", y, shape=(("N", 3, 6, 6), ("N", 5, 6, 6)), outputs=2, axis=1, split=(3, 5))
    odd = b.op("Slice", y, shape=("N", 4, 6, 6), starts=(1,), ends=(9,), axes=(1,), steps=(2,))
    joined = b.concat(right, odd, left)
    index = b.graph.constant("index", np.array([7, 0, 3]))
    picked = b.op("Gather", joined, index, shape=("N", 3, 6, 6), axis=1)
    b.output(b.conv(joined, 5), b.conv(picked, 5))
    assert judged(b.graph)["bn"].outcome == "deleted"


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixel_shuffle_with_equal_gauges_per_block(mode: str) -> None:
    gamma = np.repeat([0.5, 2.0], 4) if mode == "CRD" else np.tile([0.5, 2.0], 4)
    b = Builder()
    x = b.op("Sigmoid", b.input("x", ("N", 8, 3, 3)), shape=("N", 8, 3, 3))
    y = b.bn(x, name="bn", gamma=gamma, var=np.ones(8))
    for slot in (2, 3):  # equal beta and mean: one gauge for the block
        y.producer.inputs[slot].const = b.const(np.zeros(8)).const
    y = b.op("DepthToSpace", y, shape=("N", 2, 6, 6), blocksize=2, mode=mode)
    assert outcome(b, b.conv(y, 5)) == "deleted"
    b = Builder()
    x = b.op("Sigmoid", b.input("x", ("N", 8, 3, 3)), shape=("N", 8, 3, 3))
    y = b.op("DepthToSpace", b.bn(x, name="bn"), shape=("N", 2, 6, 6), blocksize=2, mode=mode)
    assert outcome(b, b.conv(y, 5)) == "kept"


def test_zero_channel_padding_on_a_shortcut() -> None:
    """The parameter-free shortcut of resnet20: zero channels are zeros at any scale."""
    b = Builder()
    x = b.relu(conv_bn(b, channels=4, signed=True))
    y = b.op("Pad", x, shape=("N", 8, 6, 6), mode="constant", pads=(0, 2, 0, 0, 0, 2, 0, 0), constant_value=0.0)
    other = b.bn(b.conv(x, 8), name="bn2")
    b.output(b.relu(b.add(y, other)))
    fates = judged(b.graph)
    assert fates["bn"].outcome == fates["bn2"].outcome == "deleted"


# ---- pads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads_that_copy_pass_a_shift_pads_of_zero_do_not(mode: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("Pad", b.bn(x, name="bn"), shape=("N", 8, 8, 8), mode=mode, pads=(0, 0, 1, 1, 0, 0, 1, 1), constant_value=0.0)
    assert outcome(b, b.conv(y, 5, 3)) == ("shift" if mode == "constant" else "deleted")


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_channels_that_are_copied_take_their_gauge_along(mode: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("Pad", b.bn(x, signed=True, name="bn"), shape=("N", 7, 6, 6), mode=mode, pads=(2, 1), axes=(1,))
    assert outcome(b, b.conv(y, 5)) == "deleted"


@pytest.mark.parametrize(("mode", "pads"), [("reflect", (4, 0)), ("edge", (-1, 1)), ("wrap", (-1, 0))])
def test_pads_of_channels_that_nobody_defines_are_pinned(mode: str, pads: tuple[int, int]) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("Pad", b.bn(x, name="bn"), shape=("N", 4 + sum(pads), 6, 6), mode=mode, pads=pads, axes=(1,))
    b.output(b.conv(y, 5))
    fates = {fate.output: fate for fate in _rewrite_only(b)}
    assert fates["bn"].outcome == "kept"


def _rewrite_only(b: Builder) -> list[Fate]:
    return affine.run(b.graph, Policy("norms")).fates


def test_zero_pads_that_cut_channels_off() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("Mul", x, b.const(np.array([2.0, -1.0, 0.5, 3.0]).reshape(4, 1, 1)), shape=IMAGE, name="bn")
    y = b.op("Pad", y, shape=("N", 5, 4, 6), mode="constant", pads=(-1, 0, 2, -2), axes=(1, 2), constant_value=0.0)
    assert outcome(b, b.conv(y, 5)) == "deleted"


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
@pytest.mark.parametrize("kind", ["Mul", "Add"])
@pytest.mark.parametrize("uniform", [True, False])
def test_a_pad_value_takes_one_gauge_for_all_channels(kind: str, value: float, uniform: bool) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    constant = np.array(-3.0) if uniform else np.array([-3.0, 2.0, 1.0, 0.5]).reshape(4, 1, 1)
    y = b.op(kind, x, b.const(constant), shape=IMAGE, name="bn")
    y = b.op("Pad", y, shape=("N", 6, 8, 6), mode="constant", pads=(0, 1, 1, 0, 0, 1, 1, 0), constant_value=value)
    b.output(b.conv(y, 5))
    result = rewritten(b.graph)
    free = uniform or (kind == "Mul" and value == 0.0)  # zeros are zeros at any scale
    assert result.fates[0].outcome == ("deleted" if free else "kept")
    (pad,) = [node for node in result.graph.nodes if node.kind == "Pad"]
    expected = (value + 3.0 if kind == "Add" else value / -3.0) if uniform else value
    assert pad.attrs["constant_value"] == pytest.approx(expected)


@pytest.mark.parametrize("how", ["infinite", "at run time"])
def test_other_pad_values_are_pinned(how: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("Mul", x, b.const(2.0), shape=IMAGE, name="bn")
    inputs = [y] if how == "infinite" else [y, None, b.input("value", ())]
    attrs = {"constant_value": -np.inf} if how == "infinite" else {}
    y = b.op("Pad", *inputs, shape=("N", 4, 8, 8), mode="constant", pads=(0, 0, 1, 1, 0, 0, 1, 1), **attrs)
    y = b.op("MaxPool", y, shape=("N", 4, 4, 4), pads=(0,) * 4, **POOL)
    assert outcome(b, b.conv(y, 3)) == "kept"


class _Padded(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.conv = value, nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.avg_pool2d(F.pad(torch.tanh(x) * 4 - 1, (1, 0, 2, 1), value=self.value), 2, 1))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_pad_value_is_written_in_both_formats(value: float) -> None:
    module, x = _Padded(value).eval(), torch.randn(2, 3, 8, 8)
    for taken in (aten(module, x), by_onnx(module, x)):
        assert taken.error <= 2e-5
        assert not any(node.kind in ("Mul", "Sub") for node in taken.outcome.graph.nodes)
        (pad,) = [node for node in taken.outcome.graph.nodes if node.kind == "Pad"]
        assert pad.attrs["constant_value"] == pytest.approx((value + 1) / 4)


# ---- picks, repeats, constants beside computed tensors -------------------------------------------------------------


def _bn(b: Builder, signed: bool = True) -> Value:
    """A BN [N, 4, 6, 6] that only the layers behind it can take."""
    return b.bn(b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE), signed=signed, name="bn")


@pytest.mark.parametrize(
    ("kind", "shape", "attrs"),
    [
        ("Slice", ("N", 4, 6, 6), {"starts": (-1,), "ends": (-(2**63),), "axes": (1,), "steps": (-1,)}),
        ("Slice", ("N", 2, 6, 6), {"starts": (3,), "ends": (0,), "axes": (1,), "steps": (-2,)}),
        ("Slice", ("N", 2, 3, 6), {"starts": (-3, 5), "ends": (-1, -6), "axes": (1, 2), "steps": (1, -2)}),
        ("Tile", ("N", 8, 6, 12), {"repeats": (1, 2, 1, 2)}),
        ("Expand", ("N", 4, 6, 6), {"target": (1, 1, 1, 1)}),
        ("SpaceToDepth", ("N", 16, 3, 3), {"blocksize": 2}),
        ("DepthToSpace", ("N", 1, 12, 12), {"blocksize": 2, "mode": "DCR"}),
    ],
)
def test_labels_go_where_elements_go(kind: str, shape: tuple[Any, ...], attrs: dict[str, Any]) -> None:
    b = Builder()
    y = b.op(kind, _bn(b), shape=shape, **attrs)
    assert outcome(b, b.conv(y, 5)) == ("kept" if kind == "DepthToSpace" else "deleted")


@pytest.mark.parametrize("index", [2, -1])
def test_a_scalar_index_takes_one_gauge(index: int) -> None:
    b = Builder()
    y = b.op("Gather", _bn(b), b.graph.constant("index", np.array(index)), shape=("N", 6, 6), axis=1)
    assert outcome(b, b.gemm(y, 5)) == "deleted"


@pytest.mark.parametrize("axis", [1, 2])
def test_an_index_computed_at_run_time_takes_one_gauge_along_its_axis(axis: int) -> None:
    b = Builder()
    y = _bn(b)
    index = b.graph.value("index", (6,) if axis == 2 else (4,), np.int64)
    b.graph.inputs.append(index)
    y = b.op("Gather", y, index, shape=IMAGE, axis=axis)
    b.output(b.conv(y, 5))
    assert {fate.outcome for fate in _rewrite_only(b)} == {"deleted" if axis == 2 else "kept"}


@pytest.mark.parametrize("axis", [1, 2])
def test_a_slice_at_places_computed_at_run_time(axis: int) -> None:
    b = Builder()
    y = _bn(b)
    end = b.graph.value("end", (1,), np.int64)
    b.graph.inputs.append(end)
    constants = [b.graph.constant(name, np.array([number])) for name, number in (("start", 0), ("axes", axis), ("steps", 1))]
    shape = ("N", 4, "H", 6) if axis == 2 else ("N", "C", 6, 6)
    y = b.op("Slice", y, constants[0], end, *constants[1:], shape=shape, starts=(0,), axes=(axis,), steps=(1,))
    b.output(b.op("GlobalAveragePool", y, shape=(*shape[:2], 1, 1)) if axis == 1 else b.conv(y, 5))
    assert {fate.outcome for fate in _rewrite_only(b)} == {"deleted" if axis == 2 else "kept"}


@pytest.mark.parametrize("kind", ["GatherElements", "Trilu", "CumSum", "ScatterND", "Einsum"])
def test_what_has_no_rule_is_pinned(kind: str) -> None:
    b = Builder()
    b.output(b.conv(b.op(kind, _bn(b), shape=IMAGE), 5))
    assert {fate.outcome for fate in _rewrite_only(b)} == {"kept"}


@pytest.mark.parametrize("axis", [1, 2])
def test_a_constant_beside_computed_parts_takes_any_gauge(axis: int) -> None:
    b = Builder()
    x = b.op("Transpose", b.conv(b.input("x", ("1", 4, 5)), 6), shape=("1", 5, 6), perm=(0, 2, 1))
    constant = b.const(b.rng.standard_normal((2, 2, 6) if axis == 1 else (2, 5, 3)))
    shape = ("1", 7, 6) if axis == 1 else ("1", 5, 9)
    y = b.op(
        "Transpose", b.op("Concat", constant, x, shape=shape, axis=axis), shape=(shape[0], shape[2], shape[1]), perm=(0, 2, 1)
    )
    b.output(b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=y.shape))
    result = rewritten(b.graph, **{"1": 2})
    assert [fate.outcome for fate in result.fates] == ["deleted"]


def test_a_constant_in_two_places_keeps_what_the_other_reader_sees() -> None:
    b = Builder()
    constant = b.const(b.rng.standard_normal((2, 3, 6, 6)))
    y = b.concat(b.conv(b.input("x", (2, 4, 6, 6)), 5), constant)
    b.output(b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=y.shape), b.op("Sigmoid", constant, shape=(2, 3, 6, 6)))
    assert judged(b.graph)["bn"].outcome == "deleted"


class _Tokens(nn.Module):
    """Class token and positions of a ViT, with open batch and length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv1d(3, 6, 2, stride=2), nn.BatchNorm1d(6)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 40, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1)
        y = y + self.positions[:, : y.shape[1]]
        return torch.tanh(self.norm(y.transpose(1, 2)))


def test_tokens_and_positions_of_a_transformer() -> None:
    sizes = {"x": {0: torch.export.Dim("n", min=2), 2: 2 * torch.export.Dim("t", min=2, max=30)}}
    module, x = randomised(_Tokens()), torch.randn(2, 3, 10)
    for taken in (aten(module, x, dynamic=sizes), by_onnx(module, x, dynamic=sizes)):
        assert taken.outcomes == ["deleted"] and taken.error <= 2e-5


class _Moves(nn.Module):
    """Ops that move elements which ONNX spells in several nodes, or that only torch has."""

    def __init__(self, move: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.move, self.norm = move, nn.BatchNorm2d(8)
        self.end = nn.LazyConv2d(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.move(self.norm(torch.tanh(x))))


MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flip": lambda x: x.flip([1, 2]),
    "roll": lambda x: x.roll((1, 3), (2, 1)),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "uneven split": lambda x: torch.cat([*x.split([1, 4, 3], 1)[::-1], x[:, -1:]], 1),
    "stack": lambda x: torch.stack(x.unbind(1), 1),
    "select": lambda x: torch.cat([x[:, -2:-1], x[:, 3].unsqueeze(1), x[:, ::3]], 1),
    "index": lambda x: x[:, [3, -1, 0, 3]],
    "movedim": lambda x: x.movedim(1, -1).flatten(1, 2).transpose(1, 2).unflatten(2, (4, 4)),
    "window": lambda x: x.unflatten(2, (2, 2)).transpose(2, 3).flatten(2, 3),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_from_torch(name: str) -> None:
    module = _Moves(MOVES[name]).eval()
    x = torch.randn(2, 8, 4, 4)
    module(x)
    randomised(module)
    taken = aten(module, x)
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5, taken.codes
    taken = by_onnx(module, x)
    assert taken.outcomes == ["deleted"] and taken.error <= 2e-5, taken.codes
