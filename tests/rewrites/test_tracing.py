"""What an explanation says of a norm: where it went, or exactly who stopped it, on which channels and by which way."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from normfold.graph import Node, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.rewrites.trace import Hop, Stop, Trace
from normfold.rewrites.tracing import watching

IMAGE = ("N", 4, 6, 6)
PERM = (0, 2, 3, 1)


def traced(b: Builder, objective: str = "norms", name: str = "bn") -> tuple[Trace, Outcome]:
    with watching([name]) as seen:
        outcome = rewrite(b.graph, Options(objective=objective, only=("affine",)))  # type: ignore[arg-type]
    (trace,) = seen.values()
    return trace, outcome


def stem(b: Builder, channels: int = 4) -> Value:
    return b.relu(b.conv(b.input("x", IMAGE), channels, name="stem"), name="act")


def sigmoid(b: Builder, x: Value, name: str = "end") -> Value:
    return b.op("Sigmoid", x, shape=x.shape or (), name=name)


def who(stops: list[Stop]) -> list[tuple[str, str, str, list[str]]]:
    return [(stop.side, stop.code, stop.name or stop.subject, [hop.name for hop in stop.path]) for stop in stops]


def a_of(b: Builder, name: str = "bn") -> np.ndarray:
    node = next(node for node in b.graph.nodes if node.name == name)
    gamma, _, _, var = (value.const.float64() for value in node.inputs[1:5])  # type: ignore[union-attr]
    return gamma / np.sqrt(var + node.attrs["epsilon"])


# ---- where it goes --------------------------------------------------------------------------------------------------------


def test_nobody_watches_and_nothing_is_traced() -> None:
    b = Builder()
    b.output(sigmoid(b, b.bn(b.conv(b.input("x", IMAGE), 4), name="bn")))
    with watching(["another"]) as seen:
        rewrite(b.graph, Options())
    assert seen == {}


def test_a_norm_behind_its_layer_goes_into_weight_and_bias() -> None:
    b = Builder()
    b.output(sigmoid(b, b.bn(b.conv(b.input("x", IMAGE), 4, name="conv"), signed=True, name="bn")))
    a = a_of(b)
    trace, outcome = traced(b)
    assert trace.a == pytest.approx((a.min(), a.max()))
    assert (trace.negative, trace.channels, trace.stops) == (int((a < 0).sum()), 4, [])
    (region,) = trace.regions
    assert (region.side, region.beyond, region.tensors, region.ops) == ("input", "", ["conv"], [])
    assert region.scale == pytest.approx((a.min(), a.max()))
    weight, bias = trace.absorbed
    assert {(item.op, item.name, item.role, item.side) for item in (weight, bias)} == {("Conv", "conv", "writes", "input")}
    assert weight.factor == pytest.approx((a.min(), a.max())) and weight.offset is None
    assert bias.factor == pytest.approx((a.min(), a.max()))
    assert bias.offset is not None and bias.offset == pytest.approx((trace.c.low, trace.c.high))
    assert outcome.findings[0].outcome == "deleted"


def test_a_norm_without_a_layer_in_front_goes_into_the_one_behind_through_what_passes_it_on() -> None:
    b = Builder()
    y = b.bn(stem(b), name="bn")
    pooled = b.op("GlobalAveragePool", y, shape=("N", 4, 1, 1), name="pool")
    b.output(sigmoid(b, b.conv(pooled, 3, name="head")))
    trace, _ = traced(b)
    stem_weight = next(item for item in trace.absorbed if item.name == "stem")
    assert (stem_weight.side, stem_weight.role) == ("input", "writes")
    assert stem_weight.path == [Hop("Relu", "act", "stem")]
    head = [item for item in trace.absorbed if item.name == "head"]
    assert [(item.side, item.role, item.factor is None) for item in head] == [("output", "reads", True)]
    assert head[0].path == [Hop("GlobalAveragePool", "pool", "pool")]
    front, behind = trace.regions
    assert (front.tensors, front.ops) == (["act", "stem"], ["Relu (act)"])
    assert front.shift == (0.0, 0.0)
    assert behind.shift != (0.0, 0.0)
    assert behind.scale == (1.0, 1.0)


def stream(b: Builder, signed: bool = False) -> None:
    """Two pre-activation blocks: bn, first, then the stream is added to."""
    x = b.conv(b.input("x", IMAGE), 4, name="stem")
    y = b.add(x, b.conv(b.relu(b.bn(x, name="bn"), name="r1"), 4, name="k1"), name="sum")
    z = b.bn(y, gamma=np.array([1, -1, 1, -1.0]) if signed else None, name="next")
    b.output(sigmoid(b, b.conv(b.relu(z, name="r2"), 4, name="k2")))


def test_on_a_stream_every_writer_and_every_other_reader_is_named() -> None:
    b = Builder()
    stream(b)
    total = next(value for value in b.graph.values() if value.name == "sum")
    b.graph.outputs.append(b.conv(b.relu(b.bn(total, name="third"), name="r3"), 4, name="k3"))  # keeps its scale: the last one
    trace, outcome = traced(b)
    assert [item.outcome for item in outcome.findings] == ["deleted", "deleted", "shift"]
    by_name = {(item.name, item.role): item for item in trace.absorbed}
    assert ("stem", "writes") in by_name and ("k1", "writes") in by_name
    assert by_name["k1", "writes"].path == [Hop("Add", "sum", "k1")]
    assert trace.partners == ["next", "third"]


def test_what_moved_beyond_another_deleted_layer_is_a_region_of_its_own() -> None:
    b = Builder()
    stream(b)
    trace, _ = traced(b, name="next")
    beyond = [region for region in trace.regions if region.beyond == "bn"]
    assert beyond and beyond[0].side == "input" and "r1" in beyond[0].tensors


def test_tensors_that_share_only_what_is_pinned_are_not_on_the_way() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    first = b.bn(b.concat(b.conv(x, 4, name="before"), x, name="join"), name="bn")
    second = b.bn(b.concat(b.conv(x, 4, name="apart"), x, name="join2"), name="other")
    b.output(sigmoid(b, b.conv(first, 3, name="behind"), "s1"), sigmoid(b, b.conv(second, 3, name="apart2"), "s2"))
    trace, outcome = traced(b)
    assert [item.outcome for item in outcome.findings] == ["deleted", "deleted"]
    assert trace.partners == []
    assert {item.name for item in trace.absorbed} <= {"before", "behind"}
    assert not any("apart" in region.tensors for region in trace.regions)


def test_a_matmul_is_given_an_addition() -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", ("N", 4)), b.weight(4, 4), shape=("N", 4), name="mm")
    b.output(b.op("Sigmoid", b.bn(y, name="bn"), shape=("N", 4)))
    trace, _ = traced(b)
    assert [(item.op, item.factor is not None, item.offset is not None) for item in trace.absorbed] == [
        ("MatMul", True, False),
        ("Add", False, True),
    ]
    assert trace.absorbed[1].offset == pytest.approx((trace.c.low, trace.c.high))


# ---- what stops it --------------------------------------------------------------------------------------------------------


def test_sign_names_both_activations_and_the_channels() -> None:
    b = Builder()
    y = b.bn(stem(b), gamma=np.array([1, -1, 1, -1.0]), name="bn")
    pooled = b.op("GlobalAveragePool", y, shape=("N", 4, 1, 1), name="pool")
    b.output(sigmoid(b, b.conv(b.relu(pooled, name="r2"), 3)))
    trace, _ = traced(b)
    assert (trace.stage, trace.conflicts, trace.of, trace.first) == ("sign", 2, 4, [1, 3])
    assert who(trace.stops) == [("input", "sign", "act", []), ("output", "sign", "r2", ["pool"])]


def test_sign_through_a_deleted_layer() -> None:
    b = Builder()
    stream(b, signed=True)
    with watching(["next"]) as seen:
        rewrite(b.graph, Options(objective="norms", only=("affine",)))
    (trace,) = seen.values()
    assert trace.first == [1, 3]
    assert who(trace.stops) == [("input", "sign", "r1", ["sum", "bn"]), ("output", "sign", "r2", [])]


def test_zero_padding_and_the_activation_in_front() -> None:
    b = Builder()
    b.output(b.conv(b.bn(stem(b), name="bn"), 3, 3, 1, name="padded"))
    trace, _ = traced(b, "latency")
    assert (trace.stage, trace.conflicts) == ("shift", 4)
    assert who(trace.stops) == [("input", "activation", "act", []), ("output", "zero-padding", "padded", [])]


def test_a_stop_is_reached_over_layout_and_sums() -> None:
    b = Builder()
    x = stem(b)
    turned = b.op("Transpose", b.bn(x, gamma=np.array([1, -1, 1, 1.0]), name="bn"), shape=("N", 6, 6, 4), name="turn", perm=PERM)
    other = b.op("Transpose", b.conv(x, 4, name="free"), shape=("N", 6, 6, 4), name="turn2", perm=PERM)
    b.output(sigmoid(b, b.add(turned, other, name="sum")))
    trace, _ = traced(b)
    assert (trace.stage, trace.first) == ("sign", [1])
    assert who(trace.stops) == [("input", "sign", "act", []), ("output", "no-rule", "end", ["turn", "sum"])]


def test_graph_output_in_front_and_an_op_without_a_rule_behind() -> None:
    b = Builder()
    conv = b.conv(b.input("x", IMAGE), 4, name="conv")
    b.output(conv, sigmoid(b, b.bn(conv, name="bn")))
    trace, _ = traced(b)
    assert (trace.stage, trace.conflicts) == ("magnitude", 4)
    assert who(trace.stops) == [("input", "graph-output", "graph output conv", []), ("output", "no-rule", "end", [])]


def test_graph_input_in_front() -> None:
    b = Builder()
    b.output(sigmoid(b, b.bn(b.relu(b.input("x", IMAGE), name="act"), name="bn")))
    trace, _ = traced(b)
    assert who(trace.stops) == [("input", "graph-input", "graph input x", ["act"]), ("output", "no-rule", "end", [])]


def test_a_graph_input_stands_behind_the_activation_that_reads_it() -> None:
    b = Builder()
    y = b.bn(b.relu(b.input("x", IMAGE), name="act"), gamma=np.array([1, -1, 1, 1.0]), name="bn")
    b.output(sigmoid(b, b.conv(b.relu(y, name="r2"), 3)))
    trace, _ = traced(b)
    assert who(trace.stops) == [("input", "graph-input", "graph input x", ["act"]), ("output", "sign", "r2", [])]


def test_another_layer_on_the_same_tensor() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    b.output(sigmoid(b, b.bn(x, name="first"), "s1"), sigmoid(b, b.bn(x, name="bn"), "s2"))
    trace, _ = traced(b)
    assert who(trace.stops) == [("input", "no-rule", "s1", ["first"]), ("output", "no-rule", "s2", [])]


def test_two_layers_that_meet_again_in_a_sum() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    total = b.add(b.bn(x, name="first"), b.bn(x, name="bn"), name="sum")
    b.output(sigmoid(b, b.conv(total, 3)))
    trace, _ = traced(b)
    assert trace.stage == "magnitude"
    assert [stop.code for stop in trace.stops] == ["other-scale"]
    assert trace.stops[0].name == "first"


def test_conflicting_shifts_name_the_smallest_set() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 4)
    b.output(b.conv(b.relu(b.bn(x, name="first"), name="r1"), 3), b.conv(b.relu(b.bn(x, name="bn"), name="r2"), 3))
    trace, _ = traced(b)
    assert trace.stage == "shift"
    assert who(trace.stops) == [
        ("input", "other-shift", "first", []),
        ("input", "activation", "r1", ["first"]),
        ("output", "activation", "r2", []),
    ]


def test_shared_weight() -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 4, name="conv"), name="bn")
    weight = b.graph.nodes[0].inputs[1]
    assert weight is not None
    b.output(sigmoid(b, y), b.op("Sigmoid", weight, shape=weight.shape or ()))
    trace, _ = traced(b)
    assert who(trace.stops) == [("input", "shared-weight", "conv", []), ("output", "no-rule", "end", [])]


def test_precision_gives_the_ratio_and_the_other_readers() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    y = b.conv(b.relu(b.bn(x, gamma=np.array([1.0, 1e-7] + [1.0] * 6), name="bn")), 8)
    b.output(sigmoid(b, b.conv(b.relu(b.add(x, y, name="sum")), 3)))
    trace, outcome = traced(b)
    assert outcome.findings[0].refusal is not None and outcome.findings[0].refusal.code == "precision"
    assert (trace.conflicts, trace.of, trace.first) == (1, 8, [1])
    assert trace.lost is not None and trace.lost.low > 1e5
    assert who(trace.stops) == [("input", "precision", "sum", [])]


def test_what_is_refused_at_sight_names_its_neighbour() -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 4), name="bn")
    out = b.graph.value("loop", IMAGE, np.float32)
    b.graph.append(Node("Loop", [], [out], captures=(y,), name="loop"))
    b.output(y, out)
    trace, _ = traced(b)
    assert who(trace.stops) == [("output", "captured", "loop", [])]

    b = Builder()
    b.output(sigmoid(b, b.bn(sigmoid(b, b.input("x", IMAGE), "s"), gamma=np.array([1, 0.0, 1, 0]), name="bn")))
    trace, _ = traced(b)
    assert (trace.zero, trace.conflicts, trace.first) == (2, 2, [1, 3])


@pytest.mark.parametrize("kind", ["gate", "transposed-conv", "needs-bias"])
def test_shift_stops_of_other_kinds(kind: str) -> None:
    b = Builder()
    if kind == "needs-bias":
        y = b.op("MatMul", b.input("x", ("N", 4)), b.weight(4, 4), shape=("N", 4), name="stopper")
        b.output(b.op("Sigmoid", b.bn(y, name="bn"), shape=("N", 4), name="end"))
        expected = [("input", kind, "stopper", []), ("output", "no-rule", "end", [])]
    else:
        y = b.bn(stem(b), name="bn")
        if kind == "gate":
            gate = sigmoid(b, b.conv(b.graph.inputs[0], 4), "g")
            b.output(b.conv(b.op("Mul", y, gate, shape=IMAGE, name="stopper"), 3))
        else:
            attrs = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "output_padding": (0, 0), "kernel_shape": (1, 1)}
            b.output(b.op("ConvTranspose", y, b.weight(4, 3, 1, 1), shape=("N", 3, 6, 6), name="stopper", group=1, **attrs))
        expected = [("input", "activation", "act", []), ("output", kind, "stopper", [])]
    trace, _ = traced(b, "latency")
    assert trace.stage == "shift"
    assert who(trace.stops) == expected
