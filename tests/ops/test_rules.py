"""Rules of linear layers, of shared constants, and of layers that must stay, judged by the float64 certificate."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, conv_bn, feeds_for, judged, outcome, rewritten

# ---- linear layers: both sides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_bn_goes_into_the_conv_behind(group: int, kernel: int) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    assert outcome(b, b.conv(b.bn(x, signed=True, name="bn"), 8, kernel, group=group)) == "deleted"


@pytest.mark.parametrize("group", [1, 2, 4])
def test_bn_goes_into_the_padded_conv_before(group: int) -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 8, 3, 1, group=group), signed=True, name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "deleted"


def test_zero_padding_keeps_the_shift() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 4))
    b.output(b.conv(b.bn(x, name="bn"), 8, 3, 1))
    fate = judged(b.graph, "latency")["bn"]
    assert fate.outcome == "kept"
    assert fate.refusal is not None and fate.refusal.code == "zero-padding"


@pytest.mark.parametrize("group", [1, 2, 4])
def test_transposed_conv(group: int) -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    y = b.op("ConvTranspose", x, b.weight(4, 8 // group, 3, 3), shape=("N", 8, 13, 13), group=group, strides=(2, 2),
             pads=(0,) * 4, dilations=(1, 1), output_padding=(0, 0), kernel_shape=(3, 3))  # fmt: skip
    y = b.bn(y, signed=True, name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "deleted"


def test_a_shift_does_not_enter_a_transposed_conv() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 4))
    y = b.op("ConvTranspose", b.bn(x, name="bn"), b.weight(4, 8, 3, 3), shape=("N", 8, 8, 8), group=1, strides=(1, 1),
             pads=(0,) * 4, dilations=(1, 1), output_padding=(0, 0), kernel_shape=(3, 3))  # fmt: skip
    b.output(y)
    fate = judged(b.graph, "latency")["bn"]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "transposed-conv"


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (6,), (1, 6), (3, 1), (3, 6)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
def test_gemm_with_every_form_of_bias(trans_b: int, bias: tuple[int, ...] | None, alpha: float, beta: float) -> None:
    b = Builder()
    x = b.input("x", (3, 5))
    weight = b.weight(6, 5) if trans_b else b.weight(5, 6)
    inputs = [x, weight] + ([] if bias is None else [b.const(b.rng.standard_normal(bias))])
    y = b.op("Gemm", *inputs, shape=(3, 6), alpha=alpha, beta=beta, transA=0, transB=trans_b)
    y = b.bn(y, signed=True, name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=(3, 6))) == "deleted"
    b = Builder()
    x = b.op("Sigmoid", b.input("x", (3, 5)), shape=(3, 5))
    inputs = [b.bn(x, signed=True, name="bn"), b.weight(6, 5) if trans_b else b.weight(5, 6)]
    inputs += [] if bias is None else [b.const(b.rng.standard_normal(bias))]
    assert outcome(b, b.op("Gemm", *inputs, shape=(3, 6), alpha=alpha, beta=beta, transA=0, transB=trans_b)) == "deleted"


def test_transposed_a_scales_rows_not_features() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", (5, 3)), shape=(5, 3))
    y = b.op("Gemm", b.bn(x, name="bn"), b.weight(5, 6), shape=(3, 6), alpha=1.0, beta=1.0, transA=1, transB=0)
    b.output(y)
    assert judged(b.graph)["bn"].outcome == "kept"


def test_transposed_a_absorbs_along_its_first_axis() -> None:
    b = Builder()
    y = b.bn(b.op("Sigmoid", b.input("x", (3, 5)), shape=(3, 5)), signed=True, name="bn")
    y = b.op("Transpose", y, shape=(5, 3), perm=(1, 0))
    assert outcome(b, b.op("Gemm", y, b.weight(5, 6), shape=(3, 6), alpha=1.0, beta=1.0, transA=1, transB=0)) == "deleted"


@pytest.mark.parametrize("on_right", [True, False])
def test_matmul_takes_a_scale_and_gets_an_add_only_when_asked(on_right: bool) -> None:
    def graph() -> Builder:
        b = Builder()
        x = b.input("x", ("N", 5, 5))
        y = b.op("MatMul", *((x, b.weight(5, 5)) if on_right else (b.weight(5, 5), x)), shape=("N", 5, 5))
        y = b.op("Transpose", y, shape=("N", 5, 5), perm=(0, 2, 1)) if on_right else y
        b.output(b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=("N", 5, 5)))
        return b

    result = rewritten(graph().graph, "norms")
    assert result.fates[0].outcome == "deleted" and result.inserted == {"bias Add": 1}
    kept = judged(graph().graph, "latency")["bn"]
    assert kept.outcome == "kept" and kept.refusal is not None and kept.refusal.code == "needs-bias"


@pytest.mark.parametrize("on_right", [True, False])
def test_bn_goes_into_the_matmul_behind(on_right: bool) -> None:
    b = Builder()
    shape = ("N", 5) if on_right else ("N", 5, 4)
    y = b.bn(b.op("Sigmoid", b.input("x", shape), shape=shape), signed=True, name="bn")
    y = b.op("MatMul", y, b.weight(5, 3), shape=("N", 3)) if on_right else b.op("MatMul", b.weight(3, 5), y, shape=("N", 3, 4))
    b.output(y)
    result = rewritten(b.graph, "norms")
    assert result.fates[0].outcome == "deleted" and result.inserted == {"bias Add": 1}


def test_a_norm_that_stays_takes_up_the_norms_around_it() -> None:
    from normfold.rewrites import affine
    from normfold.rewrites.rewrite import Policy
    from normfold.verify.certificate import certificate

    b = Builder()
    y = b.bn(b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE), signed=True, name="first")
    y = b.bn(b.bn(y, signed=True, name="stays"), signed=True, name="last")
    b.output(b.op("Sigmoid", y, shape=IMAGE))
    result = affine.run(b.graph, Policy("norms", keep=lambda label: label == "stays"))
    assert [fate.outcome for fate in result.fates] == ["deleted", "kept", "deleted"]
    assert all(item.passed for item in certificate(b.graph, result.graph, feeds_for(b.graph)))


def test_linear_on_features_then_bn_on_axis_1_never_folds_into_the_features() -> None:
    """Known wrong answer 1: Linear(., 6) -> BatchNorm1d(6) on [N, 6, 6]."""
    b = Builder()
    y = b.bn(b.gemm(b.input("x", ("N", 6, 6)), 6), name="bn")
    b.output(b.op("Sigmoid", y, shape=y.shape))
    assert judged(b.graph)["bn"].outcome == "kept"


# ---- shared constants ----------------------------------------------------------------------------------------------


def test_a_weight_used_twice_is_replaced_once() -> None:
    b = Builder()
    weight, gamma = b.weight(8, 8, 1, 1), b.rng.uniform(0.5, 1.5, 8)
    parameters = [b.const(item) for item in (gamma, *b.rng.standard_normal((2, 8)), np.ones(8))]
    outputs = []
    for name in ("x", "z"):
        y = b.op("Conv", b.input(name, ("N", 8, 6, 6)), weight, shape=("N", 8, 6, 6), group=1, pads=(0,) * 4)
        y = b.op("BatchNormalization", y, *parameters, shape=y.shape, name=f"bn_{name}", epsilon=1e-5, training_mode=0)
        outputs.append(b.op("Sigmoid", y, shape=y.shape))
    b.output(*outputs)
    result = rewritten(b.graph)
    assert {fate.outcome for fate in result.fates} == {"deleted"}
    weights = {node.inputs[1].name for node in result.graph.nodes if node.kind == "Conv"}
    assert len(weights) == 1


def test_one_conv_weight_with_two_different_bn_is_not_folded_into_both() -> None:
    """Known wrong answer 2: one conv called twice with two BN."""
    b = Builder()
    weight = b.weight(8, 8, 1, 1)
    outputs = []
    for name in ("x", "z"):
        y = b.op("Conv", b.input(name, ("N", 8, 6, 6)), weight, shape=("N", 8, 6, 6), group=1, pads=(0,) * 4)
        outputs.append(b.op("Sigmoid", b.bn(y, name=f"bn_{name}"), shape=y.shape))
    b.output(*outputs)
    outcomes = [fate.outcome for fate in judged(b.graph).values()]
    assert outcomes.count("deleted") == 1


def test_a_weight_with_a_foreign_reader_stays() -> None:
    """Known wrong answer 14: the twin of a tied weight must not change."""
    b = Builder()
    weight = b.weight(8, 4)
    y = b.op("MatMul", b.input("x", ("N", 8)), weight, shape=("N", 4))
    y = b.bn(y, name="bn")
    b.output(b.op("Sigmoid", y, shape=y.shape), b.op("Sigmoid", weight, shape=(8, 4)))
    assert judged(b.graph)["bn"].outcome == "kept"


def test_an_overridable_parameter_is_pinned() -> None:
    """Known wrong answer 11: initializers that are also graph inputs."""
    for slot in (1, 2):
        b = Builder()
        y = conv_bn(b)
        b.output(b.op("Sigmoid", y, shape=y.shape))
        conv = next(node for node in b.graph.nodes if node.kind == "Conv")
        b.graph.pinned.add(conv.inputs[slot])
        assert judged(b.graph)["bn"].outcome == "kept"


# ---- layers that must stay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["training", "nan", "inf", "negative variance", "zero variance and epsilon"])
def test_unhealthy_layers_stay(what: str) -> None:
    """Known wrong answers 6 and 13."""
    b = Builder()
    y = conv_bn(b, channels=2, var=np.array([0.5, {"negative variance": -0.1, "zero variance and epsilon": 0.0}.get(what, 1.0)]))
    node = y.producer
    if what == "training":
        node.attrs["training_mode"] = 1
    elif what in ("nan", "inf"):
        node.inputs[1].const = b.const(np.array([1.0, float(what)])).const
    elif what == "zero variance and epsilon":
        node.attrs["epsilon"] = 0.0
    b.output(b.relu(y))
    from normfold.rewrites import affine
    from normfold.rewrites.rewrite import Policy

    assert affine.run(b.graph, Policy("norms")).fates == []


def test_a_captured_value_is_pinned() -> None:
    """Known wrong answer 12: a conv output read by a sub-graph."""
    from normfold.graph import Node
    from normfold.rewrites import affine
    from normfold.rewrites.rewrite import Policy

    b = Builder()
    conv = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(conv, name="bn")
    out = b.graph.value("loop", ("N", 8, 6, 6), np.float32)
    b.graph.append(Node("Loop", [], [out], captures=(conv,)))
    b.output(b.op("Sigmoid", y, shape=y.shape), out)
    fate = affine.run(b.graph, Policy("norms")).fates[0]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "captured"


def test_a_conv_that_is_also_a_graph_output_keeps_its_values() -> None:
    """Known wrong answer 12."""
    b = Builder()
    conv = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(conv, name="bn")
    b.output(conv, b.op("Sigmoid", y, shape=y.shape))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == "kept" and fate.refusal is not None and fate.refusal.code == "graph-output"


@pytest.mark.parametrize("kind", ["Shape", "Size"])
def test_what_reads_only_sizes_asks_nothing(kind: str) -> None:
    b = Builder()
    y = conv_bn(b, signed=True)
    sizes = b.op(kind, y, shape=(4,) if kind == "Shape" else ())
    sizes.dtype = np.dtype(np.int64)
    b.output(b.op("Sigmoid", y, shape=y.shape), sizes)
    assert judged(b.graph)["bn"].outcome == "deleted"
