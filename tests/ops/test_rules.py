"""Every op rule: what may pass, what must not, always judged by the float64 certificate over all values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from build import Builder
from judge import feeds_for, judged, rewritten
from normfold.graph import Value

IMAGE = ("N", 4, 6, 6)


def conv_bn(b: Builder, x: Value | None = None, channels: int = 8, **bn: Any) -> Value:
    """Conv-BN whose gauge is free to move: the producer of most cases."""
    return b.bn(b.conv(x if x is not None else b.input("x", IMAGE), channels), name="bn", **bn)


def outcome(b: Builder, y: Value, objective: str = "norms") -> str:
    b.output(y)
    return judged(b.graph, objective)["bn"].outcome


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
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    b.output(b.conv(b.bn(x, name="bn"), 8, 3, 1))
    fate = judged(b.graph)["bn"]
    assert (fate.outcome, fate.refusal and fate.refusal.code) == ("kept", "no-rule") or fate.outcome == "shift"
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 4))
    b.output(b.conv(b.bn(x, name="bn"), 8, 3, 1))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == "shift"
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
    fate = judged(b.graph)["bn"]
    assert fate.outcome == "shift" and fate.refusal is not None and fate.refusal.code == "transposed-conv"


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
    assert result.fates[0].outcome == "deleted" and result.inserted == {"Add": 1}
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
    assert result.fates[0].outcome == "deleted" and result.inserted == {"Add": 1}


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


# ---- activations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "PRelu", "Clip", "Max", "Min"])
@pytest.mark.parametrize("signed", [False, True])
def test_positive_scales_pass_activations_signs_do_not(kind: str, signed: bool) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    extra: list[Value | None] = []
    attrs: dict[str, Any] = {}
    if kind == "LeakyRelu":
        attrs["alpha"] = 0.1
    elif kind == "PRelu":
        extra = [b.const(b.rng.uniform(0.1, 0.5, (8, 1, 1)))]
    elif kind == "Clip":
        attrs["min"] = 0.0
    elif kind in ("Max", "Min"):
        extra = [b.const(0.0)]
    y = b.op(kind, x, *extra, shape=x.shape, **attrs)
    # The conv before is the only one that can take the scale: behind the norm stands a pinned op.
    y = b.bn(y, signed=signed, gamma=None, name="bn")
    b.output(b.op("Sigmoid", y, shape=y.shape))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == ("kept" if signed else "shift")
    if signed:
        assert fate.refusal is not None and fate.refusal.code == "sign" and kind in fate.refusal.reason


def test_clip_with_an_upper_bound_is_not_relu() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(b.op("Clip", x, shape=x.shape, min=0.0, max=6.0), name="bn")
    b.output(b.op("Sigmoid", y, shape=y.shape))
    assert judged(b.graph)["bn"].outcome == "kept"


def test_conv_relu_bn_is_never_folded_across_the_relu_with_its_shift() -> None:
    """Known wrong answer 5."""
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn")
    b.output(y)
    assert judged(b.graph)["bn"].outcome == "shift"
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 8)), name="bn")
    b.output(y)
    assert judged(b.graph, "latency")["bn"].outcome == "kept"


# ---- pools, means, resizes -----------------------------------------------------------------------------------------

POOL = {"kernel_shape": (2, 2), "strides": (2, 2), "dilations": (1, 1), "ceil_mode": 0}


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_bn_pool_conv(kind: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op(
        kind,
        b.bn(x, name="bn"),
        shape=("N", 8, 3, 3),
        pads=(0,) * 4,
        **POOL,
        **({} if kind == "MaxPool" else {"count_include_pad": 0}),
    )
    assert outcome(b, b.conv(y, 5)) == "deleted"


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_a_negative_gamma_passes_an_average_but_not_a_maximum(kind: str) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    attrs = {**POOL, "pads": (0,) * 4, **({} if kind == "MaxPool" else {"count_include_pad": 0})}
    y = b.op(kind, b.bn(x, gamma=np.array([1.0, -1, 0.5, 2]), name="bn"), shape=("N", 4, 3, 3), **attrs)
    assert outcome(b, b.conv(y, 5)) == ("kept" if kind == "MaxPool" else "deleted")


@pytest.mark.parametrize("include", [0, 1])
def test_a_padded_average_takes_a_shift_unless_it_counts_the_padding(include: int) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    attrs = {**POOL, "kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "count_include_pad": include}
    y = b.op("AveragePool", b.bn(x, name="bn"), shape=("N", 8, 6, 6), **attrs)
    assert outcome(b, b.conv(y, 5)) == ("shift" if include else "deleted")


@pytest.mark.parametrize("keepdims", [0, 1])
def test_bn_mean_linear(keepdims: int) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("ReduceMean", b.bn(x, name="bn"), shape=("N", 8, 1, 1) if keepdims else ("N", 8), axes=(2, 3), keepdims=keepdims)
    y = b.op("Flatten", y, shape=("N", 8), axis=1) if keepdims else y
    assert outcome(b, b.gemm(y, 3)) == "deleted"


def test_a_sum_takes_the_scale_and_not_the_shift() -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("ReduceSum", b.bn(x, name="bn"), shape=("N", 8), axes=(2, 3), keepdims=0)
    assert outcome(b, b.gemm(y, 3)) == "shift"


def test_a_mean_over_channels_stops_a_scale_per_channel() -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("ReduceMean", b.bn(x, name="bn"), shape=("N", 1, 6, 6), axes=(1,), keepdims=1)
    assert outcome(b, b.conv(y, 3)) == "kept"


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_bn_resize_conv(mode: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("Resize", b.bn(x, name="bn"), shape=("N", 8, 12, 12), mode=mode, scales=(1.0, 1.0, 2.0, 2.0),
             coordinate_transformation_mode="half_pixel", nearest_mode="floor", cubic_coeff_a=-0.75, exclude_outside=0,
             extrapolation_value=0.0, antialias=0)  # fmt: skip
    assert outcome(b, b.conv(y, 5)) == "deleted"


# ---- layout: the gauge travels ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads_that_copy_pass_a_shift_pads_of_zero_do_not(mode: str) -> None:
    b = Builder()
    x = b.relu(b.conv(b.input("x", IMAGE), 8))
    y = b.op("Pad", b.bn(x, name="bn"), shape=("N", 8, 8, 8), mode=mode, pads=(0, 0, 1, 1, 0, 0, 1, 1), constant_value=0.0)
    assert outcome(b, b.conv(y, 5, 3)) == ("shift" if mode == "constant" else "deleted")


# ---- sums, gates and constant affine layers ------------------------------------------------------------------------


def test_add_of_two_convs_then_bn() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    y = b.bn(b.add(b.conv(x, 8, 3, 1), b.conv(x, 8)), signed=True, name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "deleted"


def test_sub_and_sum_of_tensors() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    parts = [b.conv(x, 8) for _ in range(3)]
    total = b.op("Sum", *parts, shape=parts[0].shape)
    y = b.op("Sub", total, b.conv(x, 8), shape=total.shape)
    assert outcome(b, b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=y.shape)) == "deleted"


def test_a_tensor_added_to_itself_counts_twice() -> None:
    b = Builder()
    y = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(b.add(y, y), signed=True, name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "deleted"


def test_a_sum_that_spreads_over_channels_joins_them() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    y = b.bn(b.add(b.conv(x, 8), b.conv(x, 1)), name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "kept"


def test_a_squared_tensor_is_not_a_gate() -> None:
    b = Builder()
    y = conv_bn(b)
    z = b.op("Mul", y, y, shape=y.shape)
    b.output(b.conv(z, 3))
    assert judged(b.graph)["bn"].outcome == "deleted"  # into the conv before, never into the one behind
    b = Builder()
    y = b.bn(b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE), name="bn")
    b.output(b.conv(b.op("Mul", y, y, shape=y.shape), 3))
    assert judged(b.graph)["bn"].outcome == "kept"


def test_a_gate_passes_the_scale_and_not_the_shift() -> None:
    b = Builder()
    x = b.input("x", IMAGE)
    gate = b.op("Sigmoid", b.conv(x, 8), shape=("N", 8, 6, 6))
    y = b.bn(b.op("Mul", b.conv(x, 8), gate, shape=gate.shape), signed=True, name="bn")
    assert outcome(b, b.op("Tanh", y, shape=y.shape)) == "shift"


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (1,), (), (6,), (1, 1, 6, 6)])
def test_constant_arithmetic_in_any_operand_order(kind: str, constant_first: bool, shape: tuple[int, ...]) -> None:
    """Known wrong answer 7 among them: a vector on the last axis is not a channel scale, whatever its size."""
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    k = b.const(b.rng.uniform(0.5, 2.0, shape))
    y = b.op(kind, *((k, x) if constant_first else (x, k)), shape=x.shape, name="k")
    y = b.bn(y, name="bn")
    b.output(b.conv(b.relu(y), 5, 3))
    fates = judged(b.graph)
    per_channel = shape in ((8, 1, 1), (1, 8, 1, 1), (1,), ())
    if kind == "Div" and constant_first:
        assert fates["bn"].outcome == "shift"  # K / x is no affine layer; the one behind it can still lose its scale
    elif kind == "Sub" and constant_first:
        assert fates["bn"].outcome == "deleted"
    else:
        assert fates["k"].outcome == "deleted" if per_channel else "k" not in fates or fates["k"].outcome == "kept"
        # A factor that varies over space stays, and no shift passes it.
        assert fates["bn"].outcome == ("deleted" if per_channel or kind in ("Add", "Sub") else "shift")


@pytest.mark.parametrize("kind", ["Add", "Sub"])
@pytest.mark.parametrize("constant_first", [False, True])
def test_a_constant_that_stays_takes_up_the_shift_of_the_norm_before_it(kind: str, constant_first: bool) -> None:
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.bn(x, signed=True, name="bn")
    k = b.const(b.rng.standard_normal((6, 6)))  # varies over space: it stays
    y = b.op(kind, *((k, y) if constant_first else (y, k)), shape=IMAGE, name="k")
    b.output(b.conv(b.op("MaxPool", b.relu(b.conv(y, 4)), shape=("N", 4, 3, 3), pads=(0,) * 4, **POOL), 3))
    assert judged(b.graph)["bn"].outcome == "deleted"


def test_width_equal_to_channels_is_no_reason_to_fold() -> None:
    """Known wrong answer 7: Mul by a vector on the last axis when W == C."""
    b = Builder()
    x = b.conv(b.input("x", ("N", 4, 8, 8)), 8)
    y = b.op("Mul", x, b.const(b.rng.uniform(0.5, 2, 8)), shape=x.shape, name="k")
    b.output(y)
    assert judged(b.graph)["k"].outcome == "kept"


@pytest.mark.parametrize("kind", ["Add", "Mul"])
@pytest.mark.parametrize("values", ["equal", "different"])
def test_a_constant_that_broadcasts_a_tensor_up_is_never_deleted(kind: str, values: str) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 1)
    k = b.const(np.full((1, 8, 1, 1), 0.5) if values == "equal" else b.rng.uniform(0.5, 2, (1, 8, 1, 1)))
    y = b.op(kind, x, k, shape=("N", 8, 6, 6), name="k")
    b.output(b.conv(b.bn(y, name="bn"), 3))
    fates = judged(b.graph)
    assert "k" not in fates and fates["bn"].outcome == "deleted"


def test_layers_that_cancel_between_an_input_and_an_output_stay() -> None:
    b = Builder()
    x = b.op("Mul", b.input("x", IMAGE), b.const(2.0), shape=IMAGE, name="twice")
    b.output(b.op("Mul", x, b.const(0.5), shape=IMAGE, name="half"))
    result = rewritten(b.graph)
    assert result.graph.outputs[0].producer is not None and result.graph.inputs[0].name == "x"


def test_equal_norms_on_two_outputs_stay_two_outputs() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(x, name="bn1")
    parameters = y.producer.inputs[1:]
    z = b.op("BatchNormalization", x, *parameters, shape=y.shape, name="bn2", epsilon=1e-5, training_mode=0)
    b.output(y, z)
    outcomes = sorted(fate.outcome for fate in judged(b.graph).values())
    assert outcomes == ["deleted", "shift"] or outcomes == ["deleted", "kept"]


@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_square_weight_tied_in_two_roles_stays(trans_b: int) -> None:
    """An embedding tied to the output layer reads the same matrix the other way round."""
    b = Builder()
    weight = b.weight(6, 6)
    y = b.op("Gemm", b.input("x", ("N", 6)), weight, shape=("N", 6), alpha=1.0, beta=1.0, transA=0, transB=0)
    y = b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=("N", 6))
    y = b.op("Gemm", y, weight, shape=("N", 6), alpha=1.0, beta=1.0, transA=0, transB=trans_b)
    b.output(b.op("Sigmoid", y, shape=("N", 6)))
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
