"""Zero gammas whose channel can be emptied where it is made, and those whose channel somebody needs."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, POOL, proved
from normfold.graph import Graph, Value
from normfold.rewrites import affine, empty_channels
from normfold.rewrites.rewrite import Policy

ZEROS = np.array([1.0, 0.0, -0.7, 0.0, 1.2, 0.9])
POLICY = Policy("norms")


def emptied(graph: Graph) -> dict[str, str]:
    """What becomes of each norm once channels were emptied; both steps are proved."""
    before = str([value.const.read().tobytes() for value in graph.constants() if value.const is not None])
    first = empty_channels.run(graph, POLICY)
    assert str([value.const.read().tobytes() for value in graph.constants() if value.const is not None]) == before
    proved(graph, first.graph)
    second = affine.run(first.graph, POLICY)
    proved(graph, second.graph)
    return {fate.output: fate.outcome for fate in second.fates}


def conv(b: Builder, channels: int = 6) -> Value:
    return b.conv(b.input(f"x{len(b.graph.inputs)}", IMAGE), channels)


def end(b: Builder, y: Value) -> Graph:
    return b.output(b.op("Sigmoid", y, shape=y.shape or ()))


def _pool(b: Builder) -> Value:
    return b.op("MaxPool", b.relu(conv(b)), shape=("N", 6, 3, 3), pads=(0,) * 4, **POOL)


def _transposed(b: Builder) -> Value:
    return b.op("ConvTranspose", b.input("x", IMAGE), b.weight(4, 3, 2, 2), shape=("N", 6, 7, 7), group=2, strides=(1, 1),
                pads=(0,) * 4, dilations=(1, 1), output_padding=(0, 0))  # fmt: skip


def _reshaped(b: Builder) -> Value:
    return b.op("Reshape", b.gemm(b.input("x", ("N", 5)), 24), shape=("N", 6, 2, 2), target=(-1, 6, 2, 2))


def _features(b: Builder) -> Value:
    return b.op("Transpose", b.gemm(b.input("x", ("N", "T", 5)), 6), shape=("N", 6, "T"), perm=(0, 2, 1))


def _table(b: Builder) -> Value:
    x = b.op("Softmax", b.input("x", ("N", 7)), shape=("N", 7), axis=1)
    return b.op("MatMul", x, b.weight(7, 6), shape=("N", 6))


PLACES = {
    "concat": lambda b: b.concat(conv(b, 4), conv(b, 2)),
    "sum": lambda b: b.add(conv(b), conv(b)),
    "pool": _pool,
    "transposed conv": _transposed,
    "linear, reshaped": _reshaped,
    "linear, transposed": _features,
    "matmul": _table,
    "gate": lambda b: b.op("Mul", conv(b), b.input("g", ("N", 6, 1, 1)), shape=("N", 6, 6, 6)),
    "abs": lambda b: b.op("Abs", conv(b), shape=("N", 6, 6, 6)),
    "pad": lambda b: b.op("Pad", conv(b), shape=("N", 6, 8, 6), mode="constant", pads=(0, 0, 1, 0, 0, 0, 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_channel_is_emptied_where_it_is_made(place: str) -> None:
    b = Builder()
    x = PLACES[place](b)
    norm = b.bn(x, gamma=np.abs(ZEROS), name="bn")
    assert affine.run(b.output(norm), POLICY).fates[0].outcome == "kept"
    outcome = emptied(b.graph)["bn"]
    assert outcome == ("shift" if place in ("pool", "gate", "abs", "pad") else "deleted")  # (those pass no shift)


@pytest.mark.parametrize("twin", ["graph output", "conv", "norm", "sigmoid", "sum with another reader"])
def test_a_channel_that_somebody_needs_is_not_emptied(twin: str) -> None:
    b = Builder()
    x = conv(b)
    y = b.bn(x, gamma=ZEROS, name="bn")
    other = {
        "graph output": lambda: x,
        "conv": lambda: b.conv(x, 2),
        "norm": lambda: b.bn(x, gamma=np.ones(6), name="other"),
        "sigmoid": lambda: b.op("Sigmoid", x, shape=x.shape),
        "sum with another reader": lambda: b.op("Sigmoid", b.add(x, conv(b)), shape=x.shape),
    }[twin]()
    b.graph.outputs.append(other)
    graph = end(b, y)
    assert empty_channels.run(graph, POLICY).graph is graph


def test_only_the_channels_that_every_norm_multiplies_by_zero() -> None:
    b = Builder()
    x = conv(b)
    first = b.bn(x, gamma=np.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), name="first")
    second = b.bn(x, gamma=np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), name="second")
    b.output(b.op("Sigmoid", first, shape=x.shape), b.op("Sigmoid", second, shape=x.shape))
    result = empty_channels.run(b.graph, POLICY)
    proved(b.graph, result.graph)
    assert [item.detail.split()[0] for item in result.applied] == ["1", "1"]


def test_norms_in_a_row_are_freed_from_the_last_one_on() -> None:
    b = Builder()
    y = b.bn(b.bn(conv(b), gamma=ZEROS[::-1].copy(), name="first"), gamma=ZEROS, name="second")
    assert emptied(end(b, y)) == {"first": "deleted", "second": "deleted"}


def test_a_weight_shared_with_a_needed_channel_stays() -> None:
    b = Builder()
    weight = b.weight(6, 4, 1, 1)
    x, z = (b.op("Conv", b.input(name, IMAGE), weight, shape=("N", 6, 6, 6), group=1, pads=(0,) * 4) for name in "xz")
    b.graph.outputs.append(b.op("Sigmoid", z, shape=z.shape))
    graph = end(b, b.bn(x, gamma=ZEROS, name="bn"))
    assert empty_channels.run(graph, POLICY).graph is graph


def test_what_is_asked_to_stay_stays() -> None:
    b = Builder()
    graph = end(b, b.bn(conv(b), gamma=ZEROS, name="bn"))
    assert empty_channels.run(graph, Policy("norms", keep=lambda label: label == "bn")).graph is graph


def test_small_is_not_zero() -> None:
    b = Builder()
    graph = end(b, b.bn(conv(b), gamma=np.full(6, 1e-30), name="bn"))
    assert empty_channels.run(graph, POLICY).graph is graph
