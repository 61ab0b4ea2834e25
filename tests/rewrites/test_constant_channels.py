"""Zero gammas: freed where the constant can go somewhere, kept and explained where it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import rewritten
from normfold.graph import Graph, Value
from normfold.rewrites import constant_channels
from normfold.rewrites.rewrite import Policy

IMAGE = ("N", 4, 6, 6)
ZEROS = np.array([1.0, 0.0, 0.7, 0.0, 1.2, 0.9, 0.0, 1.1])


def outcome(graph: Graph, name: str = "bn") -> str:
    return {fate.output: fate.outcome for fate in rewritten(graph, constants_first=True).fates}[name]


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


def test_a_conv_whose_channel_is_multiplied_by_zero_is_emptied() -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 8, 3, 1), gamma=ZEROS, name="bn")
    b.output(b.op("Sigmoid", b.add(y, b.conv(b.graph.inputs[0], 8)), shape=y.shape))
    assert outcome(b.graph) == "deleted"


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


def test_nothing_is_touched_without_zero_gammas() -> None:
    b = Builder()
    b.output(b.conv(b.relu(b.bn(stream(b), gamma=np.full(8, 1e-30), name="bn")), 5, 3))
    assert constant_channels.run(b.graph, Policy("norms")).graph is b.graph
