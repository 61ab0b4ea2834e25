"""Parallel linear branches on hand-built views, one condition at a time; blocks of real networks are in tests/test_blocks.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from build import Builder
from judge import feeds_for, proved
from normfold.graph import Constant, Gauge, Graph, Node, Value, to_text
from normfold.rewrites import branches
from normfold.rewrites.rewrite import Policy, Rewritten
from normfold.verify.certificate import certificate

IMAGE = ("N", 4, 7, 6)


def run(graph: Graph, *, policy: Policy | None = None, **sizes: int) -> Rewritten:
    """Merge and prove; the graph that came in is not changed."""
    text = to_text(graph)
    result = branches.run(graph, policy or Policy())
    assert to_text(graph) == text
    proved(graph, result.graph, **sizes)
    return result


def kinds(result: Rewritten) -> dict[str, int]:
    return dict(Counter(node.kind for node in result.graph.nodes))


def sub(b: Builder, x: Value, y: Value) -> Value:
    return b.op("Sub", x, y, shape=x.shape)


def stem(b: Builder, channels: int = 4) -> Value:
    return b.relu(b.conv(b.input("x", IMAGE), channels, name="stem"))


@pytest.mark.parametrize("gamma", [None, np.array([1.0, 0.0, -2.0, 1e-30])])
@pytest.mark.parametrize("variance", [None, np.array([1e-12, 0.0, 1.0, 1e4])])
def test_odd_statistics_that_are_numbers_merge_exactly(gamma: Any, variance: Any) -> None:
    b = Builder()
    x = stem(b)
    b.output(b.add(b.conv(x, 4, 3, 1), b.bn(x, gamma=gamma, var=variance, name="bn"), name="sum"))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 2, "Relu": 1}
    (fate,) = result.fates
    assert fate.output == "bn" and fate.outcome == "deleted" and len(fate.into) == 2
    assert result.applied[0].rule == "branches" and result.applied[0].target == "sum"
    assert result.graph.outputs[0].name == "sum"


def test_a_skip_from_elsewhere_keeps_its_addition_and_partial_sums_their_names() -> None:
    b = Builder()
    x, skip = stem(b), b.op("Sigmoid", b.input("z", IMAGE), shape=IMAGE)
    inner = b.add(b.conv(x, 4, 3, 1), b.conv(x, 4), name="inner")
    b.output(b.add(inner, skip, name="outer"))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Add": 1}
    last = result.graph.nodes[-1]
    assert [value.name for value in last.inputs] == ["inner", skip.name]
    assert last.inputs[0].gauges == ()  # it is held to what it was


def test_terms_are_reordered_where_a_branch_stands_behind_another_term() -> None:
    b = Builder()
    x, skips = stem(b), [b.op("Sigmoid", b.input(name, IMAGE), shape=IMAGE) for name in "zw"]
    total = b.add(b.add(b.add(skips[0], b.conv(x, 4, 3, 1)), skips[1]), b.bn(x), name="sum")
    b.output(b.conv(b.relu(b.bn(total)), 2))
    result = run(b.graph)
    assert kinds(result)["Conv"] == 3 and kinds(result)["Add"] == 2 and kinds(result)["BatchNormalization"] == 1
    assert "sum" in {value.name for value in result.graph.values()}
    from normfold.pipeline import Options
    from normfold.pipeline.rewriting import rewrite

    after = rewrite(b.graph, Options(objective="norms"))  # the affine step goes on with values that stand for nothing before
    proved(b.graph, after.graph)
    assert {finding.outcome for finding in after.findings} == {"deleted"}


def test_signs_of_differences() -> None:
    b = Builder()
    x, other = stem(b), b.op("Sigmoid", b.input("z", IMAGE), shape=IMAGE)
    total = sub(b, sub(b, other, b.conv(x, 4, 3, 1)), sub(b, b.bn(x), b.conv(x, 4)))
    b.output(sub(b, total, b.op("Neg", b.conv(x, 4), shape=IMAGE)))
    assert kinds(run(b.graph)) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Add": 1}


def test_a_sum_that_is_subtracted_is_not_what_the_merged_branches_hold() -> None:
    b = Builder()
    x, other = stem(b), b.op("Sigmoid", b.input("z", IMAGE), shape=IMAGE)
    b.output(sub(b, other, b.add(b.conv(x, 4, 3, 1), b.conv(x, 4), name="inner")))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Add": 1}
    assert "inner" not in {value.name for value in result.graph.values()}


def test_what_a_partial_sum_was_promised_to_hold_it_still_holds() -> None:
    """An earlier step stored twice the sum under another name."""
    b = Builder()
    x, other = stem(b), b.op("Sigmoid", b.input("z", IMAGE), shape=IMAGE)
    inner = b.add(b.conv(x, 4, 3, 1), b.conv(x, 4), name="inner")
    b.output(b.add(inner, other, name="outer"))
    before = b.graph.clone()
    gauge = Gauge("inner", np.full((), 2.0), np.zeros(()))
    b.graph.rename(inner, "twice")
    inner.gauges = (gauge,)
    after = branches.run(b.graph, Policy()).graph
    assert [value.gauges for value in after.values() if value.name == "twice"] == [(gauge,)]
    failed = {item.subject for item in certificate(before, after, feeds_for(before)) if not item.passed}
    assert "twice" in failed  # the promise was a lie, and it is found out


def test_a_difference_from_merged_branches_stays_one() -> None:
    b = Builder()
    x, other = stem(b), b.op("Sigmoid", b.input("z", IMAGE), shape=IMAGE)
    b.output(b.add(sub(b, b.conv(x, 4, 3, 1), other), b.conv(x, 4)))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Sub": 1}


def test_a_sum_of_many_and_a_tensor_added_to_itself() -> None:
    b = Builder()
    x = stem(b)
    b.output(b.op("Sum", x, b.conv(x, 4, 3, 1), x, b.conv(x, 4), shape=x.shape))
    assert kinds(run(b.graph)) == {"Conv": 2, "Relu": 1}


def test_one_convolution_added_to_itself_is_no_two_branches() -> None:
    b = Builder()
    y = b.conv(stem(b), 4, 3, 1)
    b.output(b.add(y, y))
    assert branches.run(b.graph, Policy()).graph is b.graph


@pytest.mark.parametrize("why", ["read", "output", "captured"])
def test_a_branch_that_somebody_else_sees_stays(why: str) -> None:
    b = Builder()
    x = stem(b)
    seen, more = b.conv(x, 4, 3, 1, name="seen"), [b.conv(x, 4, 3, 1), b.bn(x)]
    total = b.add(b.add(seen, more[0]), more[1])
    if why == "read":
        b.output(total, b.op("Sigmoid", seen, shape=IMAGE))
    elif why == "output":
        b.output(total, seen)
    else:
        inside = b.graph.value("loop", IMAGE, np.float32)
        b.graph.append(Node("Loop", [], [inside], captures=(seen,), fallback=lambda arrays: [arrays[-1]]))
        b.output(total)
    result = run(b.graph)
    assert kinds(result)["Conv"] == 3 and kinds(result)["Add"] == 1 and "BatchNormalization" not in kinds(result)
    assert "seen" in {value.name for value in result.graph.values()}


def test_an_inner_sum_that_somebody_else_reads_is_a_sum_of_its_own() -> None:
    b = Builder()
    x = stem(b)
    inner = b.add(b.conv(x, 4, 3, 1), b.conv(x, 4), name="inner")
    b.output(b.add(inner, b.bn(x)), b.op("Sigmoid", inner, shape=IMAGE))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 2, "Relu": 1, "Sigmoid": 1, "BatchNormalization": 1, "Add": 1}


def test_a_merged_sum_that_a_sub_graph_reads_keeps_its_name() -> None:
    b = Builder()
    x = stem(b)
    total = b.add(b.conv(x, 4, 3, 1), b.conv(x, 4), name="sum")
    inside = b.graph.value("loop", IMAGE, np.float32)
    b.graph.append(Node("Loop", [], [inside], captures=(total,), fallback=lambda arrays: [arrays[-1]]))
    b.output(b.relu(total))
    after = run(b.graph).graph
    assert [value.name for node in after.nodes for value in node.captures] == ["sum"]


COSTLY: dict[str, Callable[[Builder, Value], Value]] = {
    "depthwise 3x3 and dense 1x1": lambda b, x: b.add(b.conv(x, 4, 3, 1, group=4), b.conv(x, 4)),
    "average pool and dense 1x1": lambda b, x: b.add(pool(b, x), b.conv(x, 4)),
    "other strides": lambda b, x: b.add(strided(b, x, 2), strided(b, x, 3)),
    "other input": lambda b, x: b.add(b.conv(x, 4, 3, 1), b.conv(b.relu(x), 4)),
    "norm and identity": lambda b, x: b.add(b.bn(x), x),
    "other dilations": lambda b, x: b.add(b.conv(x, 4, 3, 1), dilated_conv(b, x)),
    "an activation between": lambda b, x: b.add(b.conv(x, 4, 3, 1), b.relu(b.conv(x, 4))),
    "a position is added": lambda b, x: b.add(b.conv(x, 4, 3, 1), b.add(x, b.const(b.rng.standard_normal((7, 6))))),
    "a gate of the input's size": lambda b, x: b.add(b.conv(x, 4, 3, 1), b.op("Mul", x, x, shape=x.shape)),
}


def pool(b: Builder, x: Value, **attrs: Any) -> Value:
    window = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "count_include_pad": 1}
    return b.op("AveragePool", x, shape=x.shape, **(window | attrs))


def strided(b: Builder, x: Value, kernel: int) -> Value:
    """Stride 2 or 3 to a grid of 3 x 2."""
    y = b.conv(x, 4, kernel)
    y.shape = ("N", 4, 3, 2)
    y.producer.attrs["strides"] = (2, 2) if kernel == 2 else (2, 3)
    return y


def dilated_conv(b: Builder, x: Value) -> Value:
    y = b.conv(x, 4, 3, 1)
    y.shape = x.shape
    y.producer.attrs |= {"dilations": (2, 2), "pads": (2,) * 4}
    return y


@pytest.mark.parametrize("case", COSTLY)
def test_what_costs_more_or_is_not_linear_stays(case: str) -> None:
    b = Builder()
    b.output(COSTLY[case](b, stem(b)))
    assert branches.run(b.graph, Policy()).graph is b.graph


@pytest.mark.parametrize("size, out", [(8, 4), ("H", "O")])
@pytest.mark.parametrize("stride, merged", [(2, True), (1, False)])
def test_what_a_layer_costs_depends_on_where_it_computes(size: Any, out: Any, stride: int, merged: bool) -> None:
    """1x1 to 3 channels, then 3x3: 12 and 108 multiplications against 144; in front of a stride of 2 the 12 count four times."""
    b = Builder()
    x = b.relu(b.input("x", ("N", 4, size, size)))
    chain, direct = b.conv(b.conv(x, 3, bias=False), 4, 3, 1), b.conv(x, 4)
    for y in (chain, direct):
        y.shape = ("N", 4, out, out) if stride == 2 else x.shape
        y.producer.attrs["strides"] = (stride, stride)
    b.output(b.add(chain, direct))
    assert kinds(run(b.graph, H=8))["Conv"] == (1 if merged else 3)


def test_asymmetric_kernels_merge_only_beside_a_square_one() -> None:
    def asymmetric(b: Builder, x: Value, kernel: tuple[int, int]) -> Value:
        pads = (kernel[0] // 2, kernel[1] // 2) * 2
        attrs = {"pads": pads, "strides": (1, 1), "dilations": (1, 1), "group": 1}
        return b.op("Conv", x, b.weight(4, 4, *kernel), shape=x.shape, **attrs)

    b = Builder()
    x = stem(b)
    b.output(b.add(asymmetric(b, x, (1, 3)), asymmetric(b, x, (3, 1))))
    assert branches.run(b.graph, Policy()).graph is b.graph
    b = Builder()
    x = stem(b)
    b.output(b.add(b.add(asymmetric(b, x, (1, 3)), asymmetric(b, x, (3, 1))), b.conv(x, 4, 3, 1)))
    assert kinds(run(b.graph)) == {"Conv": 2, "Relu": 1}


def test_the_identity_goes_where_it_costs_nothing() -> None:
    """Depthwise and dense stay apart, and each multiplication stays as cheap as it was."""
    b = Builder()
    x = stem(b)
    b.output(b.add(b.add(b.conv(x, 4, 3, 1, group=4), b.conv(x, 4)), b.bn(x)))
    result = run(b.graph)
    assert kinds(result) == {"Conv": 3, "Relu": 1, "Add": 1}
    assert sorted(node.attrs["group"] for node in result.graph.nodes if node.kind == "Conv") == [1, 1, 4]


@pytest.mark.parametrize("attrs", [{"count_include_pad": 0}, {"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}])
def test_pools_that_divide_by_different_numbers_stay(attrs: dict[str, Any]) -> None:
    b = Builder()
    x = stem(b)
    b.output(b.add(b.conv(x, 4, 3, 1), pool(b, x, **attrs)))
    assert branches.run(b.graph, Policy()).graph is b.graph


def test_a_convolution_whose_padding_depends_on_the_size_stays() -> None:
    b = Builder()
    x = stem(b)
    y = b.conv(x, 4, 3, 1)
    y.producer.attrs["auto_pad"] = "SAME_LOWER"
    b.output(b.add(y, b.conv(x, 4)))
    assert branches.run(b.graph, Policy()).graph is b.graph


def test_padding_decides_where_a_kernel_lies() -> None:
    """Padded on one side only, both read the same positions; a kernel laid in the middle would be wrong."""
    b = Builder()
    x = stem(b)
    y = b.conv(x, 4, 3, 1)
    y.producer.attrs["pads"] = (2, 0, 0, 2)
    b.output(b.add(y, b.conv(x, 4)))
    result = run(b.graph)
    assert result.graph.nodes[-1].attrs["pads"] == (2, 0, 0, 2)


@pytest.mark.parametrize("size, merged", [(7, True), ("H", False)])
def test_windows_that_end_elsewhere_need_known_sizes(size: Any, merged: bool) -> None:
    """Stride 2 over 7: padded by one behind or not, 3 outputs or 4; over an unknown size nothing is known."""
    b = Builder()
    x = b.relu(b.input("x", ("N", 4, size, size)))
    out = 4 if isinstance(size, int) else "O"
    first, second = b.conv(x, 4, 1), b.conv(x, 4, 3)
    for y, pads in ((first, (0,) * 4), (second, (0, 0, 2, 2))):
        y.shape = ("N", 4, out, out)
        y.producer.attrs |= {"strides": (2, 2), "pads": pads}
    third = b.conv(x, 4, 1)
    third.shape = first.shape
    third.producer.attrs |= {"strides": (2, 2), "pads": (0, 0, 1, 1)}  # 4 outputs over 7, as without
    b.output(b.add(b.add(first, second), third))
    result = run(b.graph, H=7)
    assert kinds(result)["Conv"] == (1 if merged else 2)


def _training(b: Builder, y: Value) -> None:
    y.producer.attrs["training_mode"] = 1


def _variance(number: float) -> Callable[[Builder, Value], None]:
    def change(b: Builder, y: Value) -> None:
        y.producer.inputs[4].const = Constant(np.full(4, number, np.float32))

    return change


def _pinned(b: Builder, y: Value) -> None:
    b.graph.pinned.add(y.producer.inputs[1])


def _computed(b: Builder, y: Value) -> None:
    b.graph.set_input(y.producer, 3, b.input("m", (4,)))


@pytest.mark.parametrize("spoil", [_training, _variance(-1.0), _variance(np.nan), _pinned, _computed])
def test_norms_that_are_no_constants_stay(spoil: Callable[[Builder, Value], None]) -> None:
    b = Builder()
    x = stem(b)
    y = b.bn(x, name="bn")
    spoil(b, y)
    b.output(b.add(b.conv(x, 4, 3, 1), y))
    assert branches.run(b.graph, Policy()).graph is b.graph


def test_a_norm_that_shall_be_kept_is_kept_and_the_rest_merges() -> None:
    b = Builder()
    x = stem(b)
    b.output(b.add(b.add(b.conv(x, 4, 3, 1), b.bn(x, name="bn")), b.conv(x, 4)))
    result = branches.run(b.graph, Policy(keep=lambda label: label == "bn"))
    proved(b.graph, result.graph)
    assert kinds(result) == {"Conv": 2, "Relu": 1, "BatchNormalization": 1, "Add": 1} and result.fates == []


def test_a_weight_that_a_caller_may_override_stays() -> None:
    b = Builder()
    x = stem(b)
    y = b.conv(x, 4, 3, 1)
    b.graph.pinned.add(y.producer.inputs[1])
    b.output(b.add(y, b.conv(x, 4)))
    assert branches.run(b.graph, Policy()).graph is b.graph


def _half(b: Builder, change: Callable[[Any], Any]) -> Graph:
    """A block whose tensors and weights are float16."""
    x = stem(b)
    b.output(b.add(b.conv(x, 4, 3, 1), b.conv(x, 4)))
    for value in (*b.graph.values(), *b.graph.constants()):
        value.dtype = np.dtype(np.float16)
        if value.const is not None:
            value.const = Constant(change(value.const.read()).astype(np.float16))
    return b.graph


def test_half_precision_is_rounded_once() -> None:
    graph = _half(Builder(), np.array)
    result = run(graph)
    weight = result.graph.nodes[-1].inputs[1]
    assert kinds(result) == {"Conv": 2, "Relu": 1} and weight.dtype == np.float16 and weight.const.pending
    parts = [node.inputs[1].const.float64() for node in graph.nodes if node.kind == "Conv"][1:]
    exact = parts[0] + np.pad(parts[1], [(0, 0), (0, 0), (1, 1), (1, 1)])
    assert np.array_equal(weight.const.rounded().read(), exact.astype(np.float16))


def test_what_overflows_its_type_stays() -> None:
    graph = _half(Builder(), lambda array: np.full(array.shape, 4e4))
    assert branches.run(graph, Policy()).graph is graph


@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_two_blocks_share(shared: bool) -> None:
    """Two calls of one block end with one merged weight; one that somebody else reads is copied within the budget, and said."""
    b = Builder()
    weights = [b.weight(4, 4, 3, 3), b.weight(4, 4, 1, 1)]

    def block(x: Value) -> Value:
        y = [b.conv(x, 4, 3, 1, bias=False), b.conv(x, 4, bias=False)]
        for value, weight in zip(y, weights, strict=True):
            b.graph.set_input(value.producer, 1, weight)
        return b.add(*y)

    first = block(stem(b))
    second = block(b.relu(first)) if shared else b.conv(b.relu(first), 4, 3, 1)
    if not shared:
        b.graph.set_input(second.producer, 1, weights[0])
    b.output(second)
    size = weights[0].const.nbytes
    if not shared:
        assert branches.run(b.graph, Policy(clone_budget=size - 1)).graph is b.graph
    result = run(b.graph, policy=Policy(clone_budget=0 if shared else size))
    convs = [node for node in result.graph.nodes if node.kind == "Conv"]
    assert len(convs) == 3 and (convs[1].inputs[1] is convs[2].inputs[1]) == shared
    assert result.copied == (0 if shared else size)
    if not shared:
        assert f"{size} bytes stay" in result.applied[0].detail


def test_the_largest_copy_goes_first_where_the_budget_is_short() -> None:
    """Two blocks, each with a weight that somebody else reads as it is; the budget holds the smaller copy only."""
    b = Builder()
    x, sizes = stem(b), []
    for kernel in (3, 5):
        y = b.conv(x, 4, kernel, kernel // 2, bias=False)
        x = b.relu(b.add(y, b.conv(x, 4, bias=False)))
        x, weight = b.relu(b.conv(x, 4, kernel, kernel // 2, bias=False)), y.producer.inputs[1]
        b.graph.set_input(x.producer.inputs[0].producer, 1, weight)
        sizes.append(weight.const.nbytes)
    b.output(x)
    assert kinds(run(b.graph, policy=Policy(clone_budget=sum(sizes))))["Conv"] == 5
    result = run(b.graph, policy=Policy(clone_budget=sizes[1] - 1))
    assert kinds(result)["Conv"] == 6 and result.copied == sizes[0]


def test_a_term_that_is_spread_over_the_others_comes_last() -> None:
    b = Builder()
    x = stem(b)
    small = b.op("GlobalAveragePool", x, shape=("N", 4, 1, 1))
    first = b.add(b.conv(small, 4), b.conv(small, 4), name="first")
    total = b.op("Add", b.op("Add", first, b.conv(x, 4, 3, 1), shape=x.shape), b.conv(x, 4), shape=x.shape)
    b.output(total)
    result = run(b.graph)
    assert kinds(result) == {"Conv": 3, "Relu": 1, "GlobalAveragePool": 1, "Add": 1}
    for node in result.graph.nodes:
        if node.kind == "Add":
            assert node.inputs[0].shape == x.shape


def test_small_terms_are_added_up_before_they_are_spread() -> None:
    b = Builder()
    x = stem(b)
    small = b.op("GlobalAveragePool", x, shape=("N", 4, 1, 1))
    both = b.add(b.op("Sigmoid", small, shape=small.shape), b.op("Tanh", small, shape=small.shape), name="both")
    total = b.op("Add", b.op("Add", both, b.conv(x, 4, 3, 1), shape=x.shape), b.conv(x, 4), shape=x.shape)
    b.output(total)
    result = run(b.graph)
    assert kinds(result)["Conv"] == 2 and kinds(result)["Add"] == 2
    assert "both" in {value.name for value in result.graph.values()}


def test_a_channel_that_is_spread_is_no_identity() -> None:
    b = Builder()
    x = b.relu(b.input("x", ("N", 1, 7, 6)))
    b.output(b.op("Add", b.conv(x, 4, 3, 1), x, shape=("N", 4, 7, 6)))
    assert branches.run(b.graph, Policy()).graph is b.graph


@pytest.mark.parametrize("form", ["Gemm", "MatMul"])
def test_parallel_linear_layers(form: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", ("N", 5)), shape=("N", 5))

    def linear() -> Value:
        if form == "Gemm":
            return b.gemm(x, 3)
        return b.add(b.op("MatMul", x, b.weight(5, 3), shape=("N", 3)), b.const(b.rng.standard_normal(3)))

    one = b.op("Mul", linear(), b.const(0.25), shape=("N", 3))
    b.output(b.op("Div", sub(b, one, linear()), b.const(2.0), shape=("N", 3)))
    expected = {"Gemm": 1} if form == "Gemm" else {"MatMul": 1, "Add": 1}
    assert kinds(run(b.graph)) == {"Sigmoid": 1, "Div": 1, **expected}


@pytest.mark.parametrize("attrs", [{"alpha": 2.0}, {"beta": 0.5}, {"transB": 0}, {"transA": 1}])
def test_what_gemm_does_besides(attrs: dict[str, Any]) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", (4, 4)), shape=(4, 4))
    first, second = b.gemm(x, 4), b.gemm(x, 4)
    first.producer.attrs |= attrs
    b.output(b.add(first, second))
    result = branches.run(b.graph, Policy())
    proved(b.graph, result.graph)
    assert kinds(result)["Gemm"] == (2 if "transA" in attrs else 1)


def test_a_bias_that_differs_by_row_stays() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", (4, 4)), shape=(4, 4))
    first = b.gemm(x, 4)
    b.graph.set_input(first.producer, 2, b.const(b.rng.standard_normal((4, 1))))
    b.output(b.add(first, b.gemm(x, 4)))
    assert branches.run(b.graph, Policy()).graph is b.graph
