"""Consecutive linear layers on hand-built views: merged where that is cheaper, left alone where it is not or cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from build import Builder
from judge import proved
from normfold.graph import Graph, Node, Value, to_text
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.rewrites import chains
from normfold.rewrites.rewrite import Policy, Rewritten

IMAGE = ("N", 4, 9, 8)


def run(graph: Graph) -> Rewritten:
    """Merge and prove; the graph that came in is not changed."""
    text = to_text(graph)
    result = chains.run(graph, Policy())
    assert to_text(graph) == text
    proved(graph, result.graph)
    return result


def kinds(result: Rewritten) -> dict[str, int]:
    return dict(Counter(node.kind for node in result.graph.nodes))


def untouched(graph: Graph) -> bool:
    return chains.run(graph, Policy()).graph is graph


def bent(b: Builder, x: Value) -> Value:
    return b.op("Sigmoid", x, shape=x.shape)


def window(y: Value, shape: tuple[Any, ...], **attrs: Any) -> Value:
    y.shape = shape
    y.producer.attrs |= attrs
    return y


def test_a_norm_between_goes_along_and_is_reported() -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 8, name="first"), signed=True, name="bn")
    b.output(bent(b, b.conv(y, 4, 3, name="second")))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 1, "Sigmoid": 1}
    assert result.graph.nodes[0].name == "second" and result.graph.nodes[0].output.name == "second"
    (fate,), (applied,) = result.fates, result.applied
    assert fate.output == "bn" and fate.outcome == "deleted" and fate.into
    assert applied.rule == "chains" and applied.target == "second" and "first" in applied.detail


def test_constants_between_go_along() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8)
    for kind, shape in (("Mul", (8, 1, 1)), ("Add", (1, 8, 1, 1)), ("Sub", ()), ("Div", (8, 1, 1))):
        y = b.op(kind, y, b.const(b.rng.uniform(0.5, 2, shape)), shape=y.shape)
    y = b.op("Neg", b.op("Sub", b.const(np.ones((8, 1, 1))), y, shape=y.shape), shape=y.shape)
    b.output(bent(b, b.conv(y, 4, 3)))
    assert kinds(run(b.graph)) == {"Conv": 1, "Sigmoid": 1}


def test_longer_chains_merge_pair_by_pair() -> None:
    b = Builder()
    y = b.input("x", IMAGE)
    for kernel in (1, 3, 1, 1):
        y = b.conv(y, 8, kernel)
    b.output(bent(b, y))
    assert kinds(run(b.graph)) == {"Conv": 1, "Sigmoid": 1}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_zero_padding_between_the_two(bias: bool, kernel: int) -> None:
    """Zero goes to zero only through a 1x1 without bias."""
    b = Builder()
    b.output(bent(b, b.conv(b.conv(b.input("x", IMAGE), 16, kernel, bias=bias), 2, 3, 1)))
    if bias or kernel > 1:
        assert untouched(b.graph)
    else:
        assert run(b.graph).graph.nodes[0].attrs["pads"] == (1,) * 4


def test_a_bias_is_not_forgotten_behind_a_scale() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 16)
    y = b.op("Mul", y, b.const(b.rng.uniform(0.5, 2, (16, 1, 1))), shape=y.shape)
    b.output(bent(b, b.conv(y, 2, 3, 1)))
    assert untouched(b.graph)


def test_a_bias_of_zeros_is_no_bias() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 16, bias=False)
    b.graph.set_input(y.producer, 2, b.const(np.zeros(16)))
    b.output(bent(b, b.conv(y, 2, 3, 1)))
    assert kinds(run(b.graph)) == {"Conv": 1, "Sigmoid": 1}


def test_padding_of_the_first_layer_stays() -> None:
    b = Builder()
    first = window(b.conv(b.input("x", IMAGE), 8, 1), ("N", 8, 10, 10), pads=(0, 1, 1, 1))
    b.output(bent(b, b.conv(first, 4, 3)))
    assert run(b.graph).graph.nodes[0].attrs["pads"] == (0, 1, 1, 1)


def test_strides_and_dilations_multiply() -> None:
    b = Builder()
    first = window(b.conv(b.input("x", ("N", 4, 21, 20)), 8, 1), ("N", 8, 11, 10), strides=(2, 2))
    second = window(b.conv(first, 4, 3), ("N", 4, 4, 3), strides=(2, 2), dilations=(2, 2))
    b.output(bent(b, second))
    node = run(b.graph).graph.nodes[0]
    assert node.attrs["strides"] == (4, 4) and node.attrs["dilations"] == (4, 4)


@pytest.mark.parametrize("first, second, merged", [(4, 4, 4), (4, 2, 2), (2, 4, 2), (8, 1, 1), (1, 8, 1)])
def test_groups(first: int, second: int, merged: int) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.conv(b.conv(x, 8, 1, group=first), 8, 1, group=second)
    b.output(bent(b, y))
    nodes = run(b.graph).graph.nodes
    assert len(nodes) == 4 and nodes[2].attrs["group"] == merged


NOT_CHEAPER: dict[str, Callable[[Builder], Value]] = {
    "depthwise, then pointwise": lambda b: b.conv(b.conv(b.input("x", IMAGE), 4, 3, group=4), 8),
    "pointwise, then depthwise": lambda b: b.conv(b.conv(b.input("x", IMAGE), 8), 8, 3, group=8),
    "a bottleneck": lambda b: b.conv(b.conv(b.input("x", ("N", 16, 9, 8)), 2), 16),
    "low rank": lambda b: b.gemm(b.gemm(b.input("x", ("N", 16)), 2), 16),
    "3x3 twice": lambda b: b.conv(b.conv(b.input("x", IMAGE), 4, 3), 4, 3),
    "a pool": lambda b: b.op(
        "AveragePool", b.conv(b.input("x", IMAGE), 4), shape=("N", 4, 8, 7), kernel_shape=(2, 2), strides=(1, 1), pads=(0,) * 4
    ),
    "an activation": lambda b: b.conv(b.relu(b.conv(b.input("x", IMAGE), 8)), 4),
}


@pytest.mark.parametrize("case", NOT_CHEAPER)
def test_what_is_not_cheaper_stays(case: str) -> None:
    b = Builder()
    b.output(bent(b, NOT_CHEAPER[case](b)))
    assert untouched(b.graph)


def test_two_large_kernels_merge_when_the_channels_between_are_many() -> None:
    b = Builder()
    b.output(bent(b, b.conv(b.conv(b.input("x", ("N", 2, 9, 8)), 32, 3), 2, 3)))
    assert run(b.graph).graph.nodes[0].attrs["kernel_shape"] == (5, 5)


@pytest.mark.parametrize("why", ["read", "output", "captured", "overridable", "kept"])
def test_what_somebody_else_sees_between_the_two_stays(why: str) -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8, name="between")
    z = b.conv(b.bn(y, name="bn") if why == "kept" else y, 4, 3)
    if why == "read":
        b.output(bent(b, z), bent(b, y))
    elif why == "output":
        b.output(bent(b, z), y)
    elif why == "captured":
        inside = b.graph.value("loop", IMAGE, np.float32)
        b.graph.append(Node("Loop", [], [inside], captures=(y,)))
        b.output(bent(b, z))
    elif why == "overridable":
        b.graph.pinned.add(y.producer.inputs[1])
        b.output(bent(b, z))
    else:
        b.output(bent(b, z))
    assert chains.run(b.graph, Policy(keep=lambda label: label == "bn")).graph is b.graph


def test_a_last_layer_that_is_an_output_keeps_its_name() -> None:
    b = Builder()
    b.output(b.conv(b.conv(b.input("x", IMAGE), 8), 4, 3, name="y"))
    assert run(b.graph).graph.outputs[0].name == "y"


def test_a_weight_that_others_read_counts_as_a_copy() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    y = b.conv(b.conv(x, 4, 3), 4)
    other = b.conv(x, 4, 3)
    b.graph.set_input(other.producer, 1, y.producer.inputs[0].producer.inputs[1])
    b.output(bent(b, y), bent(b, other))
    assert untouched(b.graph)


def test_matrix_products_with_biases_of_their_own() -> None:
    b = Builder()
    y = b.input("x", ("N", 3, 6))
    for width in (9, 8, 4):
        y = b.op("MatMul", y, b.weight(int(y.shape[-1]), width), shape=("N", 3, width))
        y = b.add(y, b.const(b.rng.standard_normal(width)), name=f"sum{width}")
    b.output(bent(b, y))
    result = run(b.graph)
    assert kinds(result) == {"MatMul": 1, "Add": 1, "Sigmoid": 1}
    assert "sum4" in {value.name for value in result.graph.values()}
    after = rewrite(b.graph, Options(objective="norms")).graph  # the product stands for nothing before, and that is known
    proved(b.graph, after)


def test_a_matrix_product_and_a_gemm() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", ("N", 6)), b.weight(6, 9), shape=("N", 9))
    y = b.gemm(y, 9)
    y.producer.attrs |= {"alpha": 0.5, "beta": 2.0, "transB": 0}
    y = b.op("MatMul", y, b.weight(9, 4), shape=("N", 4))
    b.output(bent(b, y))
    assert kinds(run(b.graph)) == {"Gemm": 1, "Sigmoid": 1}


@pytest.mark.parametrize("tokens", [3, 9])
def test_a_norm_on_another_axis_is_no_part_of_a_matrix_product(tokens: int) -> None:
    """Also not where both axes have the same size."""
    b = Builder()
    y = b.op("MatMul", b.input("x", ("N", tokens, 6)), b.weight(6, 9), shape=("N", tokens, 9))
    y = b.op("MatMul", b.bn(y), b.weight(9, 4), shape=("N", tokens, 4))
    b.output(bent(b, y))
    assert untouched(b.graph)
