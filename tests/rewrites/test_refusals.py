"""Every refusal code is reached by a small graph, with a reason and a fix in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from build import Builder
from normfold.graph import Graph, Node, Value
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.record import Refusal
from normfold.rewrites import refusals

IMAGE = ("N", 4, 6, 6)


def _sigmoid(b: Builder, x: Value) -> Value:
    return b.op("Sigmoid", x, shape=x.shape or ())


def _input(b: Builder) -> Value:
    return _sigmoid(b, b.input("x", IMAGE))


def _conv_bn(b: Builder) -> Value:
    return b.bn(b.conv(b.input("x", IMAGE), 4), name="bn")


def _asked_to_keep(b: Builder) -> None:
    b.output(_sigmoid(b, _conv_bn(b)))


def _captured(b: Builder) -> None:
    y = _conv_bn(b)
    out = b.graph.value("loop", IMAGE, np.float32)
    b.graph.append(Node("Loop", [], [out], captures=(y,)))
    b.output(y, out)


def _output_is_input(b: Builder) -> None:
    b.output(b.bn(b.input("x", IMAGE), name="bn"))


def _zero_gamma(b: Builder) -> None:
    y = b.bn(_input(b), gamma=np.array([0.0, 1, 1, 1]), name="bn")
    b.output(_sigmoid(b, y))


def _precision(b: Builder) -> None:
    stream = b.conv(b.input("x", IMAGE), 8)
    y = b.conv(b.relu(b.bn(stream, gamma=np.array([1e-7] + [1.0] * 7), name="bn")), 8)
    b.output(_sigmoid(b, b.conv(b.relu(b.add(stream, y)), 3)))


def _range(b: Builder) -> None:
    y = b.conv(b.input("x", IMAGE), 4, bias=False)
    weight = y.producer.inputs[1]  # type: ignore[union-attr]
    b.graph.set_input(y.producer, 1, b.graph.constant("half", (weight.const.read() * 100).astype(np.float16)))  # type: ignore
    b.output(_sigmoid(b, b.bn(y, gamma=np.full(4, 1e4), name="bn")))


def _training(b: Builder) -> None:
    y = _conv_bn(b)
    y.producer.attrs["training_mode"] = 1  # type: ignore[union-attr]
    b.output(y)


def _batch_statistics(b: Builder) -> None:
    y = _conv_bn(b)
    mean = b.op("Sigmoid", b.input("m", (4,)), shape=(4,))
    b.graph.set_input(y.producer, 3, mean)  # type: ignore[arg-type]
    b.graph.nodes.sort(key=lambda node: node.kind != "Sigmoid")
    b.output(y)


def _computed_parameters(b: Builder) -> None:
    y = _conv_bn(b)
    gamma = b.op("Sigmoid", b.input("m", (4,)), shape=(4,))
    b.graph.set_input(y.producer, 1, gamma)  # type: ignore[arg-type]
    b.graph.nodes.sort(key=lambda node: node.kind != "Sigmoid")
    b.output(y)


def _run_time_statistics(b: Builder) -> None:
    x = b.input("x", IMAGE)
    parameters = [b.const(np.ones(4)), b.const(np.zeros(4))]
    b.output(b.op("InstanceNormalization", x, *parameters, shape=IMAGE, name="bn", epsilon=1e-5))


def _non_finite(b: Builder) -> None:
    b.output(_sigmoid(b, b.bn(b.conv(b.input("x", IMAGE), 4), var=np.array([1.0, -1, 1, 1]), name="bn")))


def _overridable(b: Builder) -> None:
    y = _conv_bn(b)
    b.graph.pinned.add(y.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    b.output(_sigmoid(b, y))


def _unknown_shape(b: Builder) -> None:
    y = _conv_bn(b)
    y.producer.inputs[0].shape = None  # type: ignore[union-attr]
    b.output(_sigmoid(b, y))


def _sign(b: Builder) -> None:
    b.output(_sigmoid(b, b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), gamma=np.array([-1.0, 1, 1, 1]), name="bn")))


def _no_rule(b: Builder) -> None:
    b.output(_sigmoid(b, b.bn(_input(b), name="bn")))


def _graph_output(b: Builder) -> None:
    conv = b.conv(b.input("x", IMAGE), 4)
    b.output(conv, _sigmoid(b, b.bn(conv, name="bn")))


def _shared_weight(b: Builder) -> None:
    y = _conv_bn(b)
    weight = y.producer.inputs[0].producer.inputs[1]  # type: ignore[union-attr]
    b.output(_sigmoid(b, y), b.op("Sigmoid", weight, shape=weight.shape))  # type: ignore[union-attr]


def _clone_budget(b: Builder) -> None:
    first, x = b.conv(b.input("z", IMAGE), 4), b.conv(b.input("x", IMAGE), 4)
    b.graph.set_input(x.producer, 1, first.producer.inputs[1])  # type: ignore[union-attr, arg-type]
    b.output(_sigmoid(b, b.bn(first)), _sigmoid(b, b.bn(x, name="bn")))


def _kept_neighbour(b: Builder) -> None:
    x = b.conv(b.input("x", IMAGE), 4)
    spatial = b.op("Mul", x, b.const(b.rng.uniform(0.5, 2, (6, 6))), shape=IMAGE, name="spatial")
    b.output(_sigmoid(b, b.bn(spatial, name="bn")))


def _conflicting_scale(b: Builder) -> None:
    x = b.conv(b.input("x", IMAGE), 4)
    b.output(_sigmoid(b, b.bn(x, name="first")), _sigmoid(b, b.bn(x, name="bn")))


def _conflicting_shift(b: Builder) -> None:
    x = b.conv(b.input("x", IMAGE), 4)
    b.output(b.conv(b.relu(b.bn(x, name="first")), 3), b.conv(b.relu(b.bn(x, name="bn")), 3))


def _computed_weight(b: Builder) -> None:
    y = b.conv(b.input("x", IMAGE), 4)
    scale = b.op("Sigmoid", b.input("s", (4, 4, 1, 1)), shape=(4, 4, 1, 1))
    b.graph.set_input(y.producer, 1, scale)  # type: ignore[arg-type]
    b.graph.nodes.sort(key=lambda node: node.kind != "Sigmoid")
    b.output(b.relu(b.bn(y, name="bn")))


def _zero_padding(b: Builder) -> None:
    b.output(b.conv(b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), name="bn"), 3, 3, 1))


def _transposed_conv(b: Builder) -> None:
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), name="bn")
    attrs = {
        "group": 1,
        "strides": (1, 1),
        "pads": (0,) * 4,
        "dilations": (1, 1),
        "output_padding": (0, 0),
        "kernel_shape": (1, 1),
    }
    b.output(b.op("ConvTranspose", y, b.weight(4, 3, 1, 1), shape=("N", 3, 6, 6), **attrs))


def _activation(b: Builder) -> None:
    b.output(b.conv(b.relu(b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), name="bn")), 3))


def _needs_bias(b: Builder) -> None:
    y = b.op("MatMul", b.input("x", ("N", 4)), b.weight(4, 4), shape=("N", 4))
    b.output(b.op("Sigmoid", b.bn(y, name="bn"), shape=("N", 4)))


def _gate(b: Builder) -> None:
    x = b.input("x", IMAGE)
    gate = _sigmoid(b, b.conv(x, 4))
    b.output(b.conv(b.op("Mul", b.bn(b.relu(b.conv(x, 4)), name="bn"), gate, shape=IMAGE), 3))


def _sum(b: Builder) -> None:
    y = b.op(
        "ReduceSum", b.bn(b.relu(b.conv(b.input("x", ("N", 4, 6, "W")), 4)), name="bn"), shape=("N", 4), axes=(2, 3), keepdims=0
    )
    b.output(b.gemm(y, 3))


def _pool_indices(b: Builder) -> None:
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), name="bn")
    shape = ("N", 4, 3, 3)
    attrs = {"kernel_shape": (2, 2), "strides": (2, 2), "dilations": (1, 1), "ceil_mode": 0, "pads": (0,) * 4}
    pooled, index = b.op("MaxPool", y, shape=(shape, shape), outputs=2, **attrs)
    b.output(b.conv(pooled, 3), index)


def _resize_extrapolation(b: Builder) -> None:
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), name="bn")
    attrs = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "scales": (1.0, 1.0, 2.0, 2.0)}
    b.output(b.conv(b.op("Resize", y, shape=("N", 4, 12, 12), **attrs), 3))


def _ambiguous_body(b: Builder) -> None:
    def body() -> Graph:
        inner = Builder()
        return inner.output(inner.bn(inner.input("inner", (2, 4)), name="bn"))

    y = b.op("If", b.input("condition", ()), shape=(2, 4))
    y.producer.bodies = {"then_branch": body(), "else_branch": body()}
    b.output(y)


CASES: dict[str, tuple[Callable[[Builder], None], str]] = {
    "asked-to-keep": (_asked_to_keep, "norms"),
    "captured": (_captured, "norms"),
    "output-is-input": (_output_is_input, "norms"),
    "zero-gamma": (_zero_gamma, "norms"),
    "precision": (_precision, "latency"),
    "range": (_range, "norms"),
    "training": (_training, "norms"),
    "batch-statistics": (_batch_statistics, "norms"),
    "run-time-statistics": (_run_time_statistics, "norms"),
    "non-finite": (_non_finite, "norms"),
    "overridable": (_overridable, "norms"),
    "computed-parameters": (_computed_parameters, "norms"),
    "ambiguous-body": (_ambiguous_body, "norms"),
    "skipped": (_asked_to_keep, "norms"),
    "unknown-shape": (_unknown_shape, "norms"),
    "sign": (_sign, "norms"),
    "no-rule": (_no_rule, "norms"),
    "graph-output": (_graph_output, "norms"),
    "shared-weight": (_shared_weight, "norms"),
    "clone-budget": (_clone_budget, "latency"),
    "kept": (_kept_neighbour, "norms"),
    "conflicting-scale": (_conflicting_scale, "norms"),
    "conflicting-shift": (_conflicting_shift, "norms"),
    "computed-weight": (_computed_weight, "norms"),
    "zero-padding": (_zero_padding, "latency"),
    "transposed-conv": (_transposed_conv, "latency"),
    "activation": (_activation, "latency"),
    "needs-bias": (_needs_bias, "latency"),
    "gate": (_gate, "latency"),
    "sum": (_sum, "latency"),
    "pool-indices": (_pool_indices, "latency"),
    "resize-extrapolation": (_resize_extrapolation, "latency"),
}
BY_THE_PIPELINE = {"undone", "slower"}  # tests/pipeline reaches these: they need a result that fails, or is slow


@pytest.mark.parametrize("code", CASES)
def test_code(code: str) -> None:
    make, objective = CASES[code]
    b = Builder()
    make(b)
    keep = ("bn",) if code == "asked-to-keep" else ()
    others = {"skipped": ("affine",), "clone-budget": ()}
    skip = others.get(code, ("shared-conv",))  # a copy would do, within the budget
    outcome = rewrite(b.graph, Options(objective=objective, keep=keep, skip=skip))  # type: ignore[arg-type]
    finding = next(item for item in outcome.findings if item.node == "bn")
    assert finding.outcome != "deleted"
    assert isinstance(finding.refusal, Refusal)
    assert finding.refusal.code == code
    assert "{" not in finding.refusal.reason and len(finding.refusal.reason) > 20 and len(finding.refusal.fix) > 10


def test_every_code_has_a_case() -> None:
    written = set(refusals.REFUSALS) | set(refusals._PINS) | set(refusals._ZEROS)
    written |= {"sign", "clone-budget", "conflicting-scale", "conflicting-shift"}
    assert written - BY_THE_PIPELINE == set(CASES)
