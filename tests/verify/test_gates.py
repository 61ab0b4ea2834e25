"""Right folds pass every gate on every family; each planted mistake is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from folding import REGIMES, WRONG, folded, net, runner
from normfold.graph import BFLOAT16
from normfold.record import Comparison
from normfold.verify import OnnxRunner, certificate, feeds, judge, run
from normfold.verify.gates import Yardstick, artefact, judge_output, runtime, runtimes_alone, sanity
from normfold.verify.noise import perturbed, unit


def failed(comparisons: list[Comparison]) -> list[Comparison]:
    return [item for item in comparisons if not item.passed]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_right_fold_passes_all_gates_on_all_families(regime: str, seed: int) -> None:
    model = net(regime, seed)
    before, after = folded(model)
    result = judge(before, after, OnnxRunner(model.SerializeToString()), runner(after), feeds(before, seed=seed))
    assert not failed(result.comparisons)
    assert result.verdict == "same"
    assert {item.gate for item in result.comparisons} == {"certificate", "G1", "G2", "reference", "G3", "contract"}
    assert set(result.ran) >= {"normal", "spread", "zero", "large", "constant", "uniform", "denormal"}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("seed", range(2))
def test_a_wrong_fold_is_caught_by_every_gate(mistake: str, seed: int) -> None:
    model = net("signed gamma" if mistake == "gamma without sign" else "plain", seed)
    before, after = folded(model, mistake)
    result = judge(before, after, OnnxRunner(model.SerializeToString()), runner(after), feeds(before, seed=seed))
    assert {item.gate for item in result.failed} == {"certificate", "G1", "G2", "G3"}
    assert result.verdict == "different"


@pytest.mark.parametrize("mistake", ["epsilon * 1.1", "epsilon outside the root", "epsilon missed"])
def test_a_wrong_epsilon_shows_in_the_runtime_when_the_variance_is_tiny(mistake: str) -> None:
    model = net("tiny variance")
    before, after = folded(model, mistake)
    result = judge(before, after, OnnxRunner(model.SerializeToString()), runner(after), feeds(before, level="quick"))
    assert {item.gate for item in result.failed} == {"certificate", "G1", "G2", "G3"}


@pytest.mark.parametrize("mistake", WRONG)
def test_g1_names_the_layer_and_the_certificate_what_follows(mistake: str) -> None:
    before, after = folded(net("signed gamma"), mistake)
    bad = failed(certificate(before, after, feeds(before)[0].arrays, family="normal"))
    assert {item.subject for item in bad if item.gate == "G1"} == {"n2"}
    assert {item.subject for item in bad if item.gate == "certificate"} == {"n2", "g", "y"}
    assert all(item.family == "normal" for item in bad)


def test_an_error_stays_with_its_layer_in_g1() -> None:
    """The next layer is rewritten too; it is judged on what it should have read."""
    before, after = folded(net(), "bias off by 1 %", layer="bn1")
    bad = failed(certificate(before, after, feeds(before)[0].arrays))
    assert {item.subject for item in bad if item.gate == "G1"} == {"n1"}
    assert {item.subject for item in bad if item.gate == "certificate"} == {"n1", "r1", "n2", "g", "y"}


def test_the_worst_channel_is_named() -> None:
    before, after = folded(net())
    conv = next(node for node in after.nodes if node.name == "conv2")
    bias = conv.inputs[2]
    assert bias is not None and bias.const is not None
    array = bias.const.float64().copy()
    array[4] *= 1.01
    after.set_input(conv, 2, after.derived(bias, array))
    bad = failed(certificate(before, after, feeds(before)[0].arrays))
    assert {item.where for item in bad} == {"channel 4"}


def test_without_runtimes_the_stored_weights_are_judged() -> None:
    before, after = folded(net())
    result = judge(before, after, None, None, feeds(before, level="quick"))
    assert "G2" in {item.gate for item in result.comparisons}
    assert result.verdict == "same"
    assert any("G2" in note for note in result.notes)
    before, after = folded(net(), "weights through float16")
    assert "G2" in {item.gate for item in judge(before, after, None, None, feeds(before, level="quick")).failed}


def test_two_models_without_a_rewrite_are_judged_by_their_runtimes() -> None:
    model = net()
    for mistake, verdict in (("", "same"), ("bias off by 1 %", "different")):
        before, after = folded(model, mistake)
        result = judge(before, None, OnnxRunner(model.SerializeToString()), runner(after), feeds(before, level="quick"))
        assert result.verdict == verdict
        assert {item.gate for item in result.comparisons} == {"reference", "G3"}


# ---- the measure itself ---------------------------------------------------------------------------------------------------

U = 2.0**-24


def compared(reference: Any, original: Any, result: Any, noise: Any = (), gate: str = "G3") -> Comparison:
    draws = [np.asarray(item, np.float64) for item in noise]
    reference = np.asarray(reference)
    reference = reference.astype(np.float64) if reference.dtype.kind == "f" else reference
    return judge_output(gate, "y", reference, np.asarray(original), np.asarray(result), draws, unit=U)


def test_an_error_is_granted_eight_times_the_original_s() -> None:
    ref = np.ones((1, 1, 8, 8))
    near, far = (ref + 7.9e-4).astype(np.float32), (ref + 8.2e-4).astype(np.float32)
    original = (ref + 1e-4).astype(np.float32)
    assert compared(ref, original, near).passed
    assert not compared(ref, original, far).passed
    assert compared(ref, ref.astype(np.float32), near, noise=[ref - 1e-4]).passed
    assert not compared(ref, ref.astype(np.float32), far, noise=[ref - 1e-4]).passed


def test_the_floor_is_sixteen_u_of_the_tensor_s_rms() -> None:
    ref = np.full((1, 1, 8, 8), 100.0)
    exact = ref.astype(np.float32)
    assert compared(ref, exact, (ref * (1 + 15 * U)).astype(np.float32)).passed
    assert not compared(ref, exact, (ref * (1 + 18 * U)).astype(np.float32)).passed


def test_below_the_smallest_normal_number_there_are_few_digits() -> None:
    ref = np.full((1, 1, 8, 8), 1e-42)
    near, far = (ref + 8e-41).astype(np.float32), (ref + 1e-40).astype(np.float32)
    assert compared(ref, ref.astype(np.float32), near).passed
    assert not compared(ref, ref.astype(np.float32), far).passed


def test_each_channel_is_judged_by_its_own_noise() -> None:
    ref = np.ones((1, 2, 8, 8))
    original = ref.copy()
    original[:, 0] += 1e-3  # a noisy channel grants the quiet one nothing
    result = ref.copy()
    result[:, 1] += 1e-4
    bad = compared(ref, original.astype(np.float32), result.astype(np.float32))
    assert not bad.passed
    assert bad.where == "channel 1"


def test_a_channel_of_one_element_is_also_granted_the_tensor_s_average() -> None:
    rng = np.random.default_rng(0)
    ref = rng.standard_normal((1, 1000))
    original, result = (ref + rng.standard_normal(ref.shape) * 1e-6 for _ in range(2))
    assert compared(ref, original.astype(np.float32), result.astype(np.float32)).passed
    result[0, 7] += 6e-5
    found = compared(ref, original.astype(np.float32), result.astype(np.float32))
    assert not found.passed and found.where == "channel 7"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_stand_where_the_original_has_them(value: float) -> None:
    ref = np.ones((1, 2, 3))
    ref[0, 1, 2] = value
    array, clean = ref.astype(np.float32), np.ones((1, 2, 3), np.float32)
    assert compared(ref, array, array.copy()).passed
    for original, result in ((array, clean), (clean, array)):
        comparison = compared(ref, original, result)
        assert not comparison.passed
        assert comparison.error == np.inf
        assert comparison.where == "NaN or Inf differ in 1 elements, first at (0, 1, 2)"


def test_infinities_have_a_sign() -> None:
    array = np.array([[np.inf, 1.0]], np.float32)
    assert not compared(array, array, array * np.array([-1, 1], np.float32)).passed


def test_where_the_reference_does_not_overflow_the_runtimes_may() -> None:
    ref = np.array([[1e39, 1.0]])
    array = np.array([[np.inf, 1.0]], np.float32)
    assert compared(ref, array, array.copy()).passed


@pytest.mark.parametrize("shape", [(0,), (0, 4), (2, 0), (2, 0, 3)])
def test_outputs_without_elements_differ_in_nothing(shape: tuple[int, ...]) -> None:
    """A detector that found nothing."""
    none = np.zeros(shape)
    for gate in ("reference", "G2", "G3"):
        assert judge_output(gate, "scores", none, none.astype("f4"), none.astype("f4"), [none], unit=2.0**-24).passed


def test_shapes_and_types_are_part_of_the_contract() -> None:
    ref = np.ones((2, 3))
    assert "shape" in compared(ref, ref.astype(np.float32), np.ones((3, 2), np.float32)).where
    assert "type" in compared(ref, ref.astype(np.float32), ref).where


def test_integers_are_equal() -> None:
    ref = np.array([[1, 2, 3]])
    assert compared(ref, ref, ref.copy()).passed
    bad = compared(ref, ref, ref + np.array([0, 1, 0]))
    assert not bad.passed
    assert bad.where == "first at (0, 1)"


def test_integers_that_the_original_s_own_rounding_changes_say_nothing() -> None:
    ref = np.arange(100).reshape(1, 100)
    unsure = ref.copy()
    unsure[0, 5] += 1
    other = ref.copy()
    other[0, :8] += 1
    assert compared(ref, ref, other, noise=[unsure.astype(np.float64)]).passed
    other[0, 8] += 1
    assert not compared(ref, ref, other, noise=[unsure.astype(np.float64)]).passed


def test_a_missing_output_fails() -> None:
    arrays = {"y": np.ones(3, np.float32)}
    by = Yardstick({"y": np.ones(3)})
    for found in (runtime(by, arrays, {}), runtimes_alone(by, arrays, {})):
        assert [item.passed for item in found] == [False]


def test_a_reference_that_is_far_from_the_runtime_is_not_trusted() -> None:
    ref, noise = {"y": np.linspace(1, 2, 64).reshape(1, 1, 64)}, [{"y": np.linspace(1, 2, 64).reshape(1, 1, 64) + 1e-7}]
    close, off = {"y": (ref["y"] + 1e-5).astype(np.float32)}, {"y": (ref["y"] * 1.01).astype(np.float32)}
    by = Yardstick(ref, noise)
    assert sanity(by, close)[0].passed
    assert not sanity(by, off)[0].passed
    assert not sanity(by, {"y": np.ones((2, 2), np.float32)})[0].passed


def test_artefact_leaves_out_what_the_result_lacks() -> None:
    assert artefact(Yardstick({"y": np.ones(3)}), {}) == []


# ---- noise ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, u", [(np.float16, 2.0**-11), (BFLOAT16, 2.0**-8), (np.float32, 2.0**-24)])
def test_perturbations_are_half_an_ulp_of_the_stored_type(dtype: Any, u: float) -> None:
    from normfold.graph import Graph

    array = np.array([0.0, 1.0, 1.9, -3.0, 1000.0]).astype(dtype)
    value = Graph().constant("w", array)
    draws = np.stack([perturbed(seed)(value) for seed in range(200)])
    exact = array.astype(np.float64)
    assert np.all(draws[:, 0] == 0)
    relative = np.abs(draws - exact)[:, 1:] / (2.0 ** np.floor(np.log2(np.abs(exact[1:]))) * u)
    assert relative.max() <= 1.0
    assert relative.max(axis=0).min() > 0.9
    np.testing.assert_array_equal(perturbed(3)(value), perturbed(3)(value))
    assert not np.array_equal(perturbed(3)(value), perturbed(4)(value))


def test_integers_are_not_perturbed() -> None:
    from normfold.graph import Graph

    value = Graph().constant("shape", np.array([2, 3]))
    np.testing.assert_array_equal(perturbed(0)(value), [2, 3])


def test_the_unit_is_that_of_the_coarsest_type_computed_in() -> None:
    from build import Builder

    b = Builder()
    x = b.input("x", (2,))
    y = b.relu(x, "y")
    assert unit(b.output(y)) == 2.0**-24
    y.dtype = BFLOAT16
    assert unit(b.graph) == 2.0**-8


def test_noise_is_what_stored_parameters_lose() -> None:
    """The perturbed original stays within what float32 rounding of its parameters explains, and does move."""
    model = net("tiny variance")
    before, _ = folded(model)
    arrays = feeds(before)[0].arrays
    ref, moved = run(before, arrays)["y"], run(before, arrays, constants=perturbed(0))["y"]
    size = np.abs(ref - moved).max() / np.abs(ref).max()
    assert 1e-9 < size < 1e-4
