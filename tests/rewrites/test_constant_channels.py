"""Zero gammas: freed where the constant can go somewhere, kept and explained where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import proved, rewritten
from normfold.graph import Graph, Value
from normfold.rewrites import affine, constant_channels
from normfold.rewrites.rewrite import Policy

IMAGE = ("N", 4, 6, 6)
ZEROS = np.array([1.0, 0.0, 0.7, 0.0, 1.2, 0.9, 0.0, 1.1])


def outcome(graph: Graph, name: str = "bn") -> str:
    return {fate.output: fate.outcome for fate in rewritten(graph, constants_first=True).fates}[name]


def outcomes(graph: Graph, objective: str = "norms", *, first: bool = True) -> dict[str, str]:
    """Of the norms, with the constants moved first or not; both steps are proved."""
    policy = Policy(objective)
    start = constant_channels.run(graph, policy).graph if first else graph
    proved(graph, start)
    result = affine.run(start, policy)
    proved(graph, result.graph)
    norms = {node.output.name for node in graph.nodes if node.kind == "BatchNormalization"}
    return {fate.output: fate.outcome for fate in result.fates if fate.output in norms}


def stream(b: Builder) -> Value:
    """A tensor with another reader, so that its channels cannot be emptied."""
    x = b.conv(b.input("x", IMAGE), 8, name="stem")
    b.graph.outputs.append(b.op("Sigmoid", b.conv(x, 2), shape=("N", 2, 6, 6)))
    return x


def test_zero_gammas_on_a_stream_go_into_an_unpadded_conv() -> None:
    b = Builder()
    b.output(b.conv(b.relu(b.bn(stream(b), gamma=ZEROS, name="bn")), 5, 3))
    assert outcome(b.graph) == "deleted"


def test_without_it_the_layer_stays() -> None:
    b = Builder()
    b.output(b.conv(b.relu(b.bn(stream(b), gamma=ZEROS, name="bn")), 5, 3))
    fate = rewritten(b.graph).fates[0]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "zero-gamma"


@pytest.mark.parametrize("beta", [-1.0, 1.0])
def test_in_front_of_a_padded_conv_only_a_constant_of_zero_can_go(beta: float) -> None:
    b = Builder()
    y = b.bn(stream(b), gamma=ZEROS, name="bn")
    y.producer.inputs[2].const = b.const(np.full(8, beta)).const
    b.output(b.conv(b.relu(y), 5, 3, 1))
    assert outcome(b.graph) == ("deleted" if beta < 0 else "kept")


@pytest.mark.parametrize("group", [1, 2, 8])
def test_groups(group: int) -> None:
    b = Builder()
    b.output(b.conv(b.relu(b.bn(stream(b), gamma=ZEROS, name="bn")), 8, 3, group=group))
    assert outcome(b.graph) == "deleted"


def test_through_pool_concat_and_linear() -> None:
    b = Builder()
    y = b.bn(stream(b), gamma=ZEROS, name="bn")
    other = b.relu(b.conv(b.graph.inputs[0], 3))
    pooled = b.op("GlobalAveragePool", b.concat(other, b.relu(y)), shape=("N", 11, 1, 1))
    b.output(b.conv(pooled, 3))
    assert outcome(b.graph) == "deleted"


def test_a_constant_channel_that_is_a_graph_output_stays() -> None:
    b = Builder()
    y = b.relu(b.bn(stream(b), gamma=ZEROS, name="bn"))
    b.output(y, b.conv(y, 3))
    assert outcome(b.graph) == "kept"


def _flattened(b: Builder, y: Value) -> Value:
    return b.gemm(b.op("Flatten", b.op("Tanh", y, shape=y.shape or ()), shape=("N", 8 * 36), axis=1), 5)


def _tokens(b: Builder, y: Value) -> Value:
    y = b.op("Reshape", y, shape=("N", 8, 36), target=(0, 0, 36))
    return b.gemm(b.op("Transpose", y, shape=("N", 36, 8), perm=(0, 2, 1)), 5)


def _product(b: Builder, y: Value) -> Value:
    """A bias of its own behind the product, as exporters write a linear layer on tokens."""
    y = b.op("Transpose", y, shape=("N", 6, 6, 8), perm=(0, 2, 3, 1))
    y = b.op("MatMul", y, b.weight(8, 5), shape=("N", 6, 6, 5))
    return b.op("Add", y, b.weight(5), shape=("N", 6, 6, 5))


def _bare_product(b: Builder, y: Value) -> Value:
    y = b.op("Transpose", y, shape=("N", 6, 6, 8), perm=(0, 2, 3, 1))
    return b.op("Sigmoid", b.op("MatMul", y, b.weight(8, 5), shape=("N", 6, 6, 5)), shape=("N", 6, 6, 5))


def _recurrent(b: Builder, y: Value) -> Value:
    y = b.op("Transpose", b.op("ReduceMean", y, shape=("N", 8, 6), axes=(3,), keepdims=0), shape=(6, "N", 8), perm=(2, 0, 1))
    constants = b.weight(2, 4 * 3, 8), b.weight(2, 4 * 3, 3)
    return b.op("LSTM", y, *constants, shape=(6, 2, "N", 3), direction="bidirectional", hidden_size=3, layout=0)


def _arithmetic(b: Builder, y: Value) -> Value:
    """Constants of any shape: what they make of a channel differs from place to place."""
    y = b.op("Mul", b.op("PRelu", y, b.weight(8, 1, 1), shape=y.shape or ()), b.const(-2.0), shape=y.shape or ())
    y = b.op("Add", y, b.weight(8, 6, 6), shape=y.shape or ())
    return b.gemm(b.op("Flatten", y, shape=("N", 8 * 36), axis=1), 5)


def _norm_behind(b: Builder, y: Value) -> Value:
    gamma = np.where(np.arange(8) == 1, 0.0, 1.3)
    return b.conv(b.bn(b.op("Sigmoid", y, shape=y.shape or ()), gamma=gamma, name="second"), 5, 3)


def _slices(b: Builder, y: Value) -> Value:
    first = b.op("Slice", y, shape=("N", 4, 6, 6), starts=(0,), ends=(4,), axes=(1,), steps=(1,))
    second = b.op("Slice", y, shape=("N", 4, 6, 6), starts=(4,), ends=(8,), axes=(1,), steps=(1,))
    return b.conv(b.concat(second, first), 5)


WAYS = {
    "Flatten": _flattened, "Transpose": _tokens, "MatMul and Add": _product, "MatMul": _bare_product, "LSTM": _recurrent,
    "arithmetic": _arithmetic, "a second norm": _norm_behind, "slices": _slices,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_a_bias(way: str) -> None:
    b = Builder()
    b.output(WAYS[way](b, b.bn(stream(b), gamma=ZEROS, name="bn")))
    before = outcomes(b.graph, first=False)
    assert before["bn"] == "kept"
    assert set(outcomes(b.graph).values()) == {"deleted"}


def _exponential(b: Builder, y: Value) -> Value:
    """What the freed channel holds could overflow here, and infinity times zero is NaN."""
    return b.conv(b.op("Exp", y, shape=y.shape or ()), 5)


def _reciprocal(b: Builder, y: Value) -> Value:
    return b.conv(b.op("Div", b.const(1.0), y, shape=y.shape or ()), 5)


def _total(b: Builder, y: Value) -> Value:
    return b.gemm(b.op("ReduceSum", y, shape=("N", 8), axes=(2, 3), keepdims=0), 5)


def _counted_padding(b: Builder, y: Value) -> Value:
    pool = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "ceil_mode": 0, "count_include_pad": 1}
    return b.conv(b.op("AveragePool", y, shape=y.shape or (), **pool), 5)


def _over_the_places(b: Builder, y: Value) -> Value:
    """A product along the width: its column meets all channels."""
    return b.gemm(y, 5)


def _two_readers(b: Builder, y: Value) -> Value:
    return b.add(b.conv(y, 5, 3, 1), b.conv(b.op("Sigmoid", y, shape=y.shape or ()), 5))


def _shared(b: Builder, y: Value) -> Value:
    """One weight for a constant channel here and a living one there."""
    z, weight = b.relu(b.conv(b.graph.inputs[0], 8)), b.weight(5, 8, 1, 1)
    attrs = {"kernel_shape": (1, 1), "pads": (0,) * 4, "strides": (1, 1), "dilations": (1, 1), "group": 1}
    return b.add(*(b.op("Conv", item, weight, shape=("N", 5, 6, 6), **attrs) for item in (y, z)))


def _uneven_norm(b: Builder, y: Value) -> Value:
    """What the second norm makes of a channel differs from place to place."""
    return b.conv(b.bn(b.op("Add", y, b.weight(8, 6, 6), shape=y.shape or ()), name="second"), 5)


STOPS = {
    "Exp": _exponential, "1 / x": _reciprocal, "ReduceSum": _total, "counted padding": _counted_padding,
    "the wrong axis": _over_the_places, "one reader of two": _two_readers, "a shared weight": _shared,
    "an uneven constant": _uneven_norm,
}  # fmt: skip


@pytest.mark.parametrize("stop", STOPS)
def test_what_stops_a_constant(stop: str) -> None:
    b = Builder()
    b.output(STOPS[stop](b, b.bn(stream(b), gamma=ZEROS, name="bn")))
    assert outcomes(b.graph)["bn"] == "kept"


@pytest.mark.parametrize(("betas", "expected"), [((0.5, 0.5), "deleted"), ((0.5, -0.5), "kept"), ((0.0, None), "kept")])
def test_channels_that_meet_in_one_column_need_one_constant(betas: tuple[float, float | None], expected: str) -> None:
    b = Builder()
    gamma = np.where(np.arange(8) == 1, 0.0, 1.1) if betas[1] is None else np.where(np.arange(8) % 4 == 1, 0.0, 1.1)
    y = b.bn(stream(b), gamma=gamma, name="bn")
    y.producer.inputs[2].const = b.const(np.where(np.arange(8) < 4, betas[0], betas[1] or 0.7)).const
    y = b.op("Reshape", b.op("Tanh", y, shape=y.shape or ()), shape=("N", 2, 4, 36), target=(0, 2, 4, 36))
    b.output(b.gemm(b.op("Transpose", y, shape=("N", 2, 36, 4), perm=(0, 1, 3, 2)), 5))
    assert outcomes(b.graph)["bn"] == expected


def test_a_layer_that_stays_may_share_a_column_with_one_that_goes() -> None:
    b = Builder()
    parts = []
    for name in ("staying", "bn"):
        y = b.op("Sigmoid", b.input(name, ("N", 8, 5)), shape=("N", 8, 5))
        y = b.bn(y, gamma=ZEROS, name=name)
        y.producer.inputs[2].const = b.const(np.full(8, 0.3)).const
        parts.append(y)
    y = b.op("Concat", *parts, shape=("N", 8, 10), axis=2)
    b.output(b.gemm(b.op("Transpose", y, shape=("N", 10, 8), perm=(0, 2, 1)), 3))
    start = constant_channels.run(b.graph, Policy("norms", keep=lambda label: label == "staying"))
    assert [item.target for item in start.applied] == ["bn"]
    proved(b.graph, start.graph)


def test_a_norm_does_not_read_what_it_multiplies_by_zero() -> None:
    """The constant of the second one cannot go in front of zero padding; the first one is free all the same."""
    b = Builder()
    gamma = np.where(np.arange(8) == 1, 0.0, 1.3)
    y = b.bn(stream(b), gamma=gamma, name="bn")
    y = b.bn(b.op("Sigmoid", y, shape=y.shape or ()), gamma=gamma, name="second")
    b.output(b.conv(y, 5, 3, 1))
    assert outcomes(b.graph) == {"bn": "deleted", "second": "kept"}


def test_overridable_parameters_are_no_constants() -> None:
    b = Builder()
    slope = b.weight(8, 1, 1)
    y = b.bn(stream(b), gamma=ZEROS, name="bn")
    b.graph.pinned.add(slope)
    b.output(b.conv(b.op("PRelu", y, slope, shape=y.shape or ()), 5))
    assert outcomes(b.graph)["bn"] == "kept"


def test_an_addition_comes_in_only_where_it_saves() -> None:
    """Behind the product it is as large as the product; the norm that goes must be larger."""
    for width, expected in ((5, "deleted"), (9, "kept")):
        b = Builder()
        y = b.bn(stream(b), gamma=ZEROS, name="bn")
        y = b.op("Transpose", y, shape=("N", 6, 6, 8), perm=(0, 2, 3, 1))
        b.output(b.op("MatMul", y, b.weight(8, width), shape=("N", 6, 6, width)))
        assert outcomes(b.graph, "latency")["bn"] == expected


def test_a_layer_that_is_to_stay_stays() -> None:
    b = Builder()
    b.output(b.conv(b.bn(stream(b), gamma=ZEROS, name="bn"), 5))
    kept = Policy("norms", keep=lambda label: label == "bn")
    assert constant_channels.run(b.graph, kept).graph is b.graph


def test_nothing_is_touched_without_zero_gammas() -> None:
    b = Builder()
    b.output(b.conv(b.relu(b.bn(stream(b), gamma=np.full(8, 1e-30), name="bn")), 5, 3))
    assert constant_channels.run(b.graph, Policy("norms")).graph is b.graph
