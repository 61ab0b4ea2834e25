"""Rules of activations, sums, gates and constant arithmetic, judged by the float64 certificate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, POOL, conv_bn, judged, outcome, rewritten
from normfold.graph import Value

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


@pytest.mark.parametrize("bounds", [{"max": 0.0}, {"min": -np.inf, "max": 0.0}, {"min": 0.0, "max": np.inf}])
def test_clip_at_zero_from_either_side_passes_a_positive_scale(bounds: dict[str, float]) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(b.op("Clip", x, shape=x.shape, **bounds), name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "shift"


@pytest.mark.parametrize("bounds", [{}, {"min": 0.0, "max": 0.0}, {"min": 0.0, "max": -np.inf}, {"min": 1.0}, {"max": -1.0}])
def test_other_clips_are_pinned(bounds: dict[str, float]) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(b.op("Clip", x, shape=x.shape, **bounds), name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "kept"


def test_abs_takes_any_sign_and_gives_a_positive_scale() -> None:
    """Two readers of one stream: the ReLU behind the Abs sees a positive scale, the conv beside it the signed one."""
    b = Builder()
    x = b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE)
    y = b.op("Mul", x, b.const(np.array([-2.0, 0.5, -1.0, 3.0]).reshape(4, 1, 1)), shape=IMAGE, name="factor")
    b.output(b.conv(b.relu(b.op("Abs", y, shape=IMAGE)), 3), b.conv(y, 3))
    assert judged(b.graph)["factor"].outcome == "deleted"


@pytest.mark.parametrize("signed", [False, True])
def test_abs_gives_no_negative_scale_and_takes_no_shift(signed: bool) -> None:
    b = Builder()
    y = b.bn(b.op("Abs", b.conv(b.input("x", IMAGE), 8), shape=("N", 8, 6, 6)), signed=signed, name="bn")
    b.output(b.op("Sigmoid", y, shape=y.shape))
    fate = judged(b.graph)["bn"]
    assert fate.outcome == ("kept" if signed else "shift")
    assert fate.refusal is not None and (fate.refusal.code == "sign") == signed
    b = Builder()
    y = b.bn(b.relu(b.conv(b.input("x", IMAGE), 4)), signed=signed, name="bn")
    b.output(b.conv(b.op("Abs", y, shape=y.shape), 3))
    assert judged(b.graph)["bn"].outcome == "shift"  # the scale passes with any sign, the shift stays


def test_the_magnitude_behind_abs_is_the_one_in_front_of_it() -> None:
    """A pinned reader in front of the Abs keeps the scale behind it at one."""
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    y = b.bn(b.op("Abs", x, shape=x.shape), name="bn")
    b.output(b.op("Sigmoid", y, shape=y.shape), x)
    assert judged(b.graph)["bn"].outcome == "kept"


def test_neg_turns_the_shift_around() -> None:
    b = Builder()
    y = b.bn(b.op("Neg", b.conv(b.input("x", IMAGE), 8), shape=("N", 8, 6, 6)), signed=True, name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "deleted"
    b = Builder()
    y = b.bn(b.op("Sigmoid", b.input("x", IMAGE), shape=IMAGE), signed=True, name="bn")
    assert outcome(b, b.conv(b.op("Neg", y, shape=IMAGE), 3)) == "deleted"


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


@pytest.mark.parametrize("gate", [(1, 8, 1, 1), ("N", 8, 1, 1), ("N", 1, 6, 6), (6,), ("N", 8, 6, 6)])
@pytest.mark.parametrize("gate_first", [False, True])
def test_a_gate_of_any_shape_passes_the_scale(gate: tuple[Any, ...], gate_first: bool) -> None:
    b = Builder()
    values = [b.conv(b.input("x", IMAGE), 8), b.op("Sigmoid", b.input("g", gate), shape=gate)]
    y = b.op("Mul", *(values[::-1] if gate_first else values), shape=("N", 8, 6, 6))
    assert outcome(b, b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=y.shape)) == "shift"


@pytest.mark.parametrize("shape", [("N", 8, 1, 1), ("N", 1, 6, 6)])
def test_a_tensor_that_is_broadcast_over_its_gate(shape: tuple[Any, ...]) -> None:
    """One scale for all channels that it is spread over."""
    b = Builder()
    x = b.op("Sigmoid", b.input("x", shape), shape=shape)
    factor = b.rng.uniform(0.5, 2, (8, 1, 1)) if shape[1] == 8 else np.array(3.0)
    x = b.op("Mul", x, b.const(factor), shape=shape, name="k")
    y = b.op("Mul", x, b.op("Sigmoid", b.input("g", ("N", 8, 6, 6)), shape=("N", 8, 6, 6)), shape=("N", 8, 6, 6))
    b.output(b.conv(y, 3))
    assert judged(b.graph)["k"].outcome == "deleted"


@pytest.mark.parametrize("gate_first", [False, True])
def test_of_two_tensors_that_could_move_the_broadcast_one_is_the_gate(gate_first: bool) -> None:
    """A hard sigmoid in the old spelling ends in a constant factor, so it could move, too."""
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    gate = b.conv(b.op("GlobalAveragePool", b.op("Sigmoid", x, shape=x.shape), shape=("N", 8, 1, 1)), 8)
    gate = b.op("Clip", b.op("Add", gate, b.const(3.0), shape=gate.shape), shape=gate.shape, min=0.0, max=6.0)
    gate = b.op("Div", gate, b.const(6.0), shape=gate.shape)
    z = b.conv(b.input("z", IMAGE), 8)
    y = b.op("Mul", *((gate, z) if gate_first else (z, gate)), shape=z.shape)
    assert outcome(b, b.op("Sigmoid", b.bn(y, signed=True, name="bn"), shape=y.shape)) == "shift"


@pytest.mark.parametrize("shapes", [(IMAGE, IMAGE), (("N", 4, 1, 6), ("N", 4, 6, 1))])
def test_two_tensors_that_could_move_keep_their_gauges(shapes: tuple[tuple[Any, ...], ...]) -> None:
    b = Builder()
    first, second = (b.conv(b.input(name, shape), 4) for name, shape in zip("xz", shapes, strict=True))
    y = b.op("Mul", first, second, shape=IMAGE)
    assert outcome(b, b.op("Sigmoid", b.bn(y, name="bn"), shape=IMAGE)) == "kept"


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh", "Softmax", "Gelu", "Swish", "Elu", "HardSwish", "HardSigmoid"])
def test_activations_without_a_rule_are_pinned(kind: str) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8)
    attrs: dict[str, Any] = {"Softmax": {"axis": 1}, "Swish": {"alpha": 1.0}}.get(kind, {})
    y = b.bn(b.op(kind, x, shape=x.shape, **attrs), name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "kept"


@pytest.mark.parametrize("kind", ["Where", "Max", "Pow"])
def test_arithmetic_without_a_rule_is_pinned(kind: str) -> None:
    b = Builder()
    x, z = b.conv(b.input("x", IMAGE), 8), b.conv(b.input("z", IMAGE), 8)
    inputs = [b.graph.constant("c", np.arange(8).reshape(8, 1, 1) % 2 == 0)] if kind == "Where" else []
    inputs += [x, b.const(3.0)] if kind == "Pow" else [x, z]
    y = b.bn(b.op(kind, *inputs, shape=x.shape), name="bn")
    assert outcome(b, b.op("Sigmoid", y, shape=y.shape)) == "kept"


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
