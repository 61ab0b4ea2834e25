"""Worked cases of the affine engine on hand-built views; each is proved by the certificate."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import judged, rewritten
from normfold.graph import Value, to_text

IMAGE = ("N", 4, 6, 6)


def end(b: Builder, y: Value) -> Value:
    """A pinned end, so that nothing can be pushed out of the graph."""
    return b.op("Sigmoid", y, shape=y.shape)


@pytest.mark.parametrize("signed", [False, True])
def test_preactivation_stream_telescopes_when_signs_allow(signed: bool) -> None:
    b = Builder()
    stream = b.conv(b.input("x", IMAGE), 8, name="stem")
    for i in range(4):
        h = b.conv(b.relu(b.bn(stream, signed=signed, name=f"pre{i}")), 8, 3, 1)
        h = b.conv(b.relu(b.bn(h, signed=True, name=f"mid{i}")), 8, 3, 1)
        stream = b.add(stream, h)
    b.output(b.conv(b.relu(b.bn(stream, signed=signed, name="post")), 3))
    fates = judged(b.graph)
    outcomes = [fates[f"pre{i}"].outcome for i in range(4)]
    assert all(fates[f"mid{i}"].outcome == "deleted" for i in range(4))
    if signed:
        # Each of them wants the sign of its own gammas on the one stream.
        assert "kept" in outcomes
        assert {fate.refusal.code for fate in fates.values() if fate.refusal} == {"sign"}
    else:
        assert outcomes == ["deleted"] * 4 and fates["post"].outcome == "deleted"


def test_the_default_objective_inserts_nothing_and_leaves_shifts_alone() -> None:
    b = Builder()
    a, c = b.conv(b.input("x", IMAGE), 8), b.conv(b.input("z", IMAGE), 8)
    joined = b.concat(a, c)
    for i in range(3):  # a dense block: several norms on the same features, each behind it an activation
        b.graph.outputs.append(b.conv(b.relu(b.bn(joined, name=f"bn{i}")), 4))
    b.output()
    norms, latency = judged(b.graph, "norms"), rewritten(b.graph, "latency")
    assert sorted(fate.outcome for fate in norms.values()) == ["deleted", "shift", "shift"]
    assert sorted(fate.outcome for fate in latency.fates) == ["deleted", "kept", "kept"]
    assert latency.inserted == {} and len(latency.graph.nodes) == len(b.graph.nodes) - 1


def test_bn_on_a_concat_of_a_conv_and_the_stream() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.bn(b.concat(b.conv(x, 4), x), name="bn")
    b.output(b.conv(b.relu(y), 3, 3, 1))
    assert judged(b.graph)["bn"].outcome == "shift"  # the stream's half comes out of an activation


def test_bn_bn_and_bn_around_a_conv_vanish_together() -> None:
    b = Builder()
    y = b.bn(b.bn(b.conv(b.input("x", IMAGE), 8), signed=True), signed=True)
    y = b.bn(b.conv(y, 8, 3), signed=True)
    b.output(end(b, y))
    assert {fate.outcome for fate in judged(b.graph).values()} == {"deleted"}


def test_one_conv_output_read_by_two_norms() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8)
    b.output(b.conv(b.bn(y, name="bn1"), 3), b.conv(b.bn(y, name="bn2"), 3))
    assert {fate.outcome for fate in judged(b.graph).values()} == {"deleted"}  # into the convs behind
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8)
    b.output(end(b, b.bn(y, name="bn1")), end(b, b.bn(y, name="bn2")))
    fates = judged(b.graph)
    assert sorted(fate.outcome for fate in fates.values()) == ["deleted", "kept"]


def test_preprocessing_goes_into_an_unpadded_first_conv_and_not_into_a_padded_one() -> None:
    for pad, expected in ((0, "deleted"), (1, "kept")):
        b = Builder()
        x = b.op("Sub", b.input("x", IMAGE), b.const(b.rng.standard_normal((4, 1, 1))), shape=IMAGE, name="minus_mean")
        x = b.op("Div", x, b.const(b.rng.uniform(0.5, 2, (4, 1, 1))), shape=IMAGE, name="over_std")
        b.output(b.conv(x, 8, 3, pad))
        fates = judged(b.graph)
        assert fates["minus_mean"].outcome == expected, pad


def test_frozen_batch_norm_arithmetic() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8)
    for i, kind in enumerate(("Sub", "Div", "Mul", "Add")):
        y = b.op(kind, y, b.const(b.rng.uniform(0.5, 2, (1, 8, 1, 1))), shape=y.shape, name=f"step{i}")
    b.output(end(b, y))
    result = rewritten(b.graph, "latency")
    assert {fate.outcome for fate in result.fates} == {"deleted"}
    assert [node.kind for node in result.graph.nodes] == ["Conv", "Sigmoid"]


def test_bn_on_transposed_features() -> None:
    b = Builder()
    y = b.gemm(b.input("x", ("N", "T", 5)), 8)
    y = b.op("Transpose", y, shape=("N", 8, "T"), perm=(0, 2, 1))
    b.output(end(b, b.bn(y, signed=True, name="bn")))
    assert judged(b.graph)["bn"].outcome == "deleted"


def test_linear_reshaped_to_an_image() -> None:
    b = Builder()
    y = b.op("Reshape", b.gemm(b.input("x", ("N", 5)), 4 * 3 * 3), shape=("N", 4, 3, 3), target=(-1, 4, 3, 3))
    b.output(end(b, b.bn(y, signed=True, name="bn")))
    assert judged(b.graph)["bn"].outcome == "deleted"


@pytest.mark.parametrize("variance", [1e-30, 1e-12])
def test_tiny_variances_with_a_private_reader_are_exact(variance: float) -> None:
    b = Builder()
    var = np.array([variance, 1.0, variance, 0.5, 1.0, 1.0, 1.0, 1.0])
    y = b.bn(b.conv(b.input("x", IMAGE), 8), var=var, name="bn")
    y.producer.attrs["epsilon"] = 0.0
    b.output(end(b, y))
    assert judged(b.graph)["bn"].outcome == "deleted"


def test_a_vanishing_gamma_on_a_shared_stream_is_guarded() -> None:
    """|t| / (|s| rms(x)) > 64: the other readers of the stream would lose bits."""
    b = Builder()
    gamma = np.ones(8)
    stream = b.conv(b.input("x", IMAGE), 8, name="stem")
    gamma[3] = 1e-7
    first = b.conv(b.relu(b.bn(stream, gamma=gamma, name="faint")), 8)
    b.output(end(b, b.conv(b.relu(b.add(stream, first)), 3)))
    fate = judged(b.graph)["faint"]
    assert fate.outcome == "shift" and fate.refusal is not None and fate.refusal.code == "precision"
    fate = judged(b.graph, "latency")["faint"]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "precision"


def test_half_precision_overflow_is_refused_before_it_is_written() -> None:
    """Known wrong answer 9."""
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8, bias=False)
    weight = y.producer.inputs[1]
    half = b.graph.constant("half", (weight.const.read() * 100).astype(np.float16))
    b.graph.set_input(y.producer, 1, half)
    y = b.bn(y, var=np.full(8, 1e-8), name="bn")
    y.producer.attrs["epsilon"] = 0.0
    b.output(end(b, y))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "range"


def test_half_precision_row_underflow_is_refused() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8, bias=False)
    half = b.graph.constant("half", y.producer.inputs[1].const.read().astype(np.float16))
    b.graph.set_input(y.producer, 1, half)
    y = b.bn(y, gamma=np.array([1e-6] + [1.0] * 7), name="bn")
    b.output(end(b, y))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "range"


def test_a_sum_branch_is_deleted_by_default() -> None:
    """Measured: without it the sum is as quick, and the branch costs nothing (mixnet)."""
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 4, name="stem"))
    b.output(b.relu(b.add(b.conv(x, 4, 3, 1), b.bn(x, name="identity"))))
    fate = judged(b.graph, "latency")["identity"]
    assert fate.outcome == "deleted"


def test_a_conv_bn_branch_of_a_sum_is_folded() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 4, name="stem"))
    b.output(b.relu(b.add(x, b.bn(b.conv(x, 4, 3, 1), signed=True, name="bn"))))
    assert judged(b.graph, "latency")["bn"].outcome == "deleted"


def test_values_that_change_are_renamed_and_say_what_they_hold() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4, name="first")
    y = b.conv(b.relu(b.bn(x, name="bn")), 3, name="last")
    b.output(y)
    result = rewritten(b.graph)
    assert to_text(result.graph).count("Conv") == 2
    names = {value.name: value.gauges for value in result.graph.values()}
    assert "first" not in names  # what is stored there now is bn's output
    assert [gauge.original for gauge in names["bn"]] == ["first", "bn"]
    assert names["last"] == ()


def test_untouched_constants_keep_every_bit() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4, name="first")
    y = b.conv(b.relu(b.bn(x, name="bn")), 3, name="last")
    b.output(y)
    result = rewritten(b.graph)
    last = next(node for node in result.graph.nodes if node.name == "last")
    assert last.inputs[1].const is y.producer.inputs[1].const


def test_the_graph_that_came_in_is_not_changed() -> None:
    b = Builder()
    y = b.relu(b.bn(b.conv(b.input("x", IMAGE), 4), name="bn"))
    b.output(b.conv(y, 3))
    text = to_text(b.graph)
    rewritten(b.graph)
    assert to_text(b.graph) == text
    b.graph.validate()


def test_keep_patterns_leave_a_layer_alone() -> None:
    from normfold.rewrites import affine
    from normfold.rewrites.rewrite import Policy

    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 4), name="bn")
    b.output(end(b, y))
    fate = affine.run(b.graph, Policy("norms", keep=lambda label: label == "bn")).fates[0]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "asked-to-keep"


def test_two_runs_give_the_same_constants() -> None:
    def constants() -> list[bytes]:
        b = Builder(3)
        y = b.relu(b.bn(b.conv(b.input("x", IMAGE), 4), name="bn"))
        b.output(b.conv(b.add(y, b.conv(b.relu(b.bn(y)), 4)), 3))
        graph = rewritten(b.graph).graph
        return [value.const.read().tobytes() for value in graph.constants()]

    assert constants() == constants()
