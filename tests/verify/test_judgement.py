"""The judgement as a whole: which feeds ran, what is left out and why, ops without evaluation, the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from build import Builder
from folding import fold, folded, net, runner
from normfold.errors import CannotTell
from normfold.graph import Array, Gauge, Graph, Node
from normfold.record import Comparison
from normfold.verify import Feed, OnnxRunner, certificate, contract, feeds, judge, run
from normfold.verify.judgement import Judgement, keep_worst


class Stub:
    """A runner made of a function; `like` float32 evaluation by default."""

    def __init__(self, graph: Graph, change: Any = None, outputs: list[str] | None = None) -> None:
        self.graph, self.change = graph, change
        self.inputs = [value.name for value in graph.inputs]
        self.outputs = outputs or [value.name for value in graph.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        result = {name: array.astype(np.float32) for name, array in run(self.graph, feeds).items()}
        result = dict(zip(self.outputs, list(result.values())[-len(self.outputs) :], strict=True))
        return result if self.change is None else self.change(result)


def judged(mistake: str = "", **rest: Any) -> Judgement:
    model = net(**rest.pop("net", {}))
    before, after = folded(model, mistake)
    return judge(before, after, OnnxRunner(model.SerializeToString()), runner(after), rest.pop("on", feeds(before)), **rest)


def test_the_time_budget_leaves_out_the_last_feeds_and_says_so() -> None:
    result = judged(budget=0.0)
    assert result.ran == ["normal"]
    assert set(result.left_out) >= {"spread", "zero"}
    assert all("budget of 0 s" in reason for reason in result.left_out.values())
    assert result.verdict == "same"
    assert result.seconds > 0


def test_every_gate_and_subject_is_reported_once_with_its_worst_family() -> None:
    result = judged("bias off by 1 %")
    keys = [(item.gate, item.subject) for item in result.comparisons]
    assert len(keys) == len(set(keys))
    assert all(item.family in result.ran for item in result.comparisons if item.gate != "contract")


def test_of_several_families_the_worst_is_kept() -> None:
    def one(family: str, error: float) -> Comparison:
        return Comparison("G3", "y", family, error, 1.0, error <= 1.0)

    for errors, family in (([0.1, 0.5, 0.3], "1"), ([0.1, 2.0, 0.3], "1"), ([0.9, 2.0, 3.0], "1"), ([0.2, 0.1], "0")):
        worst: dict[tuple[str, str], Comparison] = {}
        for place, error in enumerate(errors):
            keep_worst(worst, [one(str(place), error)])
        assert [item.family for item in worst.values()] == [family]  # the first that fails, else the closest to failing


def test_sizes_that_the_original_does_not_run_are_left_out_with_the_reason() -> None:
    before, _ = folded(net())
    small = Feed("small", {"x": np.zeros((1, 3, 1, 1), np.float32)})
    result = judged(on=[*feeds(before, level="quick"), small])
    assert "the original does not run on it" in result.left_out["small"]
    assert result.verdict == "same"


def test_a_result_that_does_not_run_is_different() -> None:
    model = net()
    before, after = folded(model)

    def broken(_: Any) -> Any:
        raise CannotTell("out of order")

    result = judge(before, after, OnnxRunner(model.SerializeToString()), Stub(after, broken), feeds(before, level="quick"))
    assert result.verdict == "different"
    assert "out of order" in next(item.where for item in result.failed)


def test_a_runtime_that_computes_something_else_than_the_reference_cannot_judge() -> None:
    before, after = folded(net())
    off = Stub(before, lambda result: {name: array * 1.01 for name, array in result.items()})
    result = judge(before, after, off, off, feeds(before, level="quick"))
    assert not result.failed
    assert result.verdict == "cannot tell"


def test_a_family_on_which_the_reference_fails_is_noted_and_the_others_decide() -> None:
    before, after = folded(net())

    class Drifting(Stub):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            off = 0.0 if feeds["x"].any() else 0.1
            return {name: array + np.float32(off) for name, array in super().run(feeds).items()}

    result = judge(before, after, Drifting(before), Drifting(after), feeds(before))
    assert result.verdict == "same"
    assert all(item.passed for item in result.comparisons)
    assert [
        note
        for note in result.notes
        if note.startswith("zero: the original's runtime and its float64 evaluation differ by 0.1 in y")
    ]


def test_a_channel_that_fails_by_little_gets_more_draws_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.verify import proof

    before, after = folded(net())
    seen: list[int] = []
    real = proof.perturbed
    noisy = 1e-4

    def perturbed(seed: int, _grain: Any = None) -> Any:
        seen.append(seed)
        constants = real(seed)
        return constants if seed < 2 else lambda value: constants(value) * (1 + noisy)

    monkeypatch.setattr(proof, "perturbed", perturbed)
    for error, verdict, draws in ((1e-6, "same", 10), (1e-2, "different", 2)):
        seen.clear()
        off = Stub(
            after, lambda result, error=error: {name: (array * (1 + error)).astype(np.float32) for name, array in result.items()}
        )
        assert judge(before, after, Stub(before), off, feeds(before)[:1], draws=2).verdict == verdict
        assert len(seen) == draws


def test_nothing_judged_is_cannot_tell() -> None:
    before, after = folded(net())
    assert judge(before, after, None, None, []).verdict == "cannot tell"
    assert Judgement().verdict == "cannot tell"


def test_outputs_are_matched_in_order_where_names_differ() -> None:
    before, after = folded(net())
    other = Stub(after, outputs=["renamed_by_the_exporter"])
    assert judge(before, after, Stub(before), other, feeds(before, level="quick")).verdict == "same"


def test_outputs_of_another_number_do_not_run() -> None:
    before, after = folded(net())
    wide = Stub(after, lambda result: {"a": result["y"], "b": result["y"]}, outputs=["y"])
    result = judge(before, after, Stub(before), wide, feeds(before, level="quick"))
    assert "2 outputs" in result.failed[0].where


# ---- ops without evaluation -------------------------------------------------------------------------------------------------


def custom(shape: Any = ("N", 4, 5, 5)) -> tuple[Graph, Graph]:
    """conv - bn - acme::Twist - conv - bn, and its fold."""
    graphs: list[Graph] = []
    for _ in range(2):
        b = Builder()
        x = b.input("x", ("N", 3, 7, 7))
        c1 = b.conv(x, 4, 3, name="c1")
        twisted = b.op("acme::Twist", b.bn(c1, name="bn1"), shape=shape, name="twisted")
        graphs.append(b.output(b.bn(b.conv(twisted, 2, name="c2"), name="bn2")))
    return graphs[0], fold(graphs[1])


class Twisting(Stub):
    """A runtime that knows acme::Twist."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        for node in self.graph.nodes:
            if node.kind == "acme::Twist":
                node.fallback = lambda arrays: [np.sin(arrays[0])]
        try:
            return super().run(feeds)
        finally:
            for node in self.graph.nodes:
                node.fallback = None


def test_an_op_without_evaluation_is_stepped_over_and_noted() -> None:
    before, after = custom()
    result = judge(before, after, Twisting(before), Twisting(after), feeds(before, level="quick"))
    assert result.verdict == "same"
    assert any("acme::Twist" in note for note in result.notes)
    assert {"twisted", "bn2"} <= {item.subject for item in result.comparisons if item.gate == "certificate"}
    assert {item.gate for item in result.comparisons} == {"certificate", "G1", "G2", "G3", "contract"}


@pytest.mark.parametrize("name, subjects", [("c1", {"bn1"}), ("c2", {"bn2"})])
def test_a_wrong_fold_on_either_side_of_it_is_caught(name: str, subjects: set[str]) -> None:
    before, after = custom()
    conv = next(node for node in after.nodes if node.name == name)
    bias = conv.inputs[2]
    assert bias is not None and bias.const is not None
    after.set_input(conv, 2, after.derived(bias, bias.const.float64() * 1.01))
    result = judge(before, after, Twisting(before), Twisting(after), feeds(before, level="quick"))
    assert result.verdict == "different"
    assert {item.subject for item in result.failed if item.gate == "G1"} == subjects
    assert "G3" in {item.gate for item in result.failed}


def test_where_even_the_shape_is_unknown_the_comparison_cannot_be_made() -> None:
    before, after = custom(shape=(None, None, None, None))
    with pytest.raises(CannotTell, match=r"acme::Twist.*shape of its output 'twisted'"):
        judge(before, after, None, None, feeds(before, level="quick"))


def test_a_rewrite_that_breaks_the_graph_is_different_not_an_error() -> None:
    before, after = folded(net())
    flat = next(node for node in after.nodes if node.kind == "GlobalAveragePool")
    flat.kind, flat.attrs = "Reshape", {"shape": (7, 7)}
    bad = [item for item in certificate(before, after, feeds(before)[0].arrays) if not item.passed]
    assert "can no longer be evaluated" in bad[0].where
    assert judge(before, after, None, None, []).verdict == "cannot tell"


# ---- promises ---------------------------------------------------------------------------------------------------------------


def scaled(gauge: Gauge | None, factor: Any = 2.0) -> tuple[Graph, Graph]:
    """relu(x) in the original; relu(x) * factor, then divided again, in the result."""
    b = Builder()
    before = b.output(b.op("Neg", b.relu(b.input("x", (2, 3, 4)), "r"), shape=(2, 3, 4), name="y"))
    b = Builder()
    x = b.input("x", (2, 3, 4))
    r = b.op("Mul", b.relu(x, "r0"), b.const(np.broadcast_to(factor, (3, 1))), shape=(2, 3, 4), name="r_scaled")
    r.gauges = () if gauge is None else (gauge,)
    back = b.op("Div", r, b.const(np.broadcast_to(factor, (3, 1))), shape=(2, 3, 4), name="back")
    return before, b.output(b.op("Neg", back, shape=(2, 3, 4), name="y"))


FEED = {"x": np.random.default_rng(0).standard_normal((2, 3, 4))}


def verdicts(before: Graph, after: Graph) -> dict[tuple[str, str], Comparison]:
    return {(item.gate, item.subject): item for item in certificate(before, after, FEED)}


def test_a_recorded_gauge_is_what_a_value_is_held_to() -> None:
    good = verdicts(*scaled(Gauge("r", np.full((3, 1), 2.0), np.zeros(()))))
    assert all(item.passed for item in good.values())
    assert ("certificate", "r_scaled") in good
    bad = verdicts(*scaled(Gauge("r", np.array([[2.0], [2.0 + 1e-9], [2.0]]), np.zeros(()))))
    assert not bad["certificate", "r_scaled"].passed
    assert bad["certificate", "r_scaled"].where == "channel 1"
    assert not verdicts(*scaled(Gauge("r", np.full((), 2.0), np.full((), 1e-9))))["certificate", "r_scaled"].passed


def test_an_output_must_keep_its_values_whatever_is_recorded() -> None:
    before, _ = scaled(None)
    b = Builder()
    y = b.op("Neg", b.relu(b.input("x", (2, 3, 4)), "r"), shape=(2, 3, 4), name="y0")
    doubled = b.op("Mul", y, b.const(np.full((), 2.0)), shape=(2, 3, 4), name="y")
    doubled.gauges = (Gauge("y", np.full((), 2.0), np.zeros(())),)
    bad = [item for item in certificate(before, b.output(doubled), FEED) if not item.passed]
    assert [item.subject for item in bad] == ["y"] and "an output keeps its values" in bad[0].where


def test_nan_in_a_scale_promises_nothing_there() -> None:
    factor = np.array([[2.0], [5.0], [2.0]])
    assert verdicts(*scaled(Gauge("r", np.array([[2.0], [np.nan], [2.0]]), np.zeros(())), factor))[
        "certificate", "r_scaled"
    ].passed
    bad = verdicts(*scaled(Gauge("r", np.array([[2.1], [np.nan], [2.0]]), np.zeros(())), factor))["certificate", "r_scaled"]
    assert not bad.passed
    assert bad.where == "channel 0"


def test_a_promise_about_a_value_that_is_not_there_fails() -> None:
    bad = verdicts(*scaled(Gauge("nowhere", np.ones(()), np.zeros(()))))["certificate", "r_scaled"]
    assert not bad.passed
    assert "'nowhere'" in bad.where


def test_a_value_without_gauge_and_namesake_is_not_judged_but_an_output_must_be() -> None:
    before, after = scaled(None)
    assert ("certificate", "r_scaled") not in verdicts(before, after)
    after.rename(after.outputs[0], "z")
    bad = verdicts(before, after)["certificate", "z"]
    assert not bad.passed
    assert "no value 'z'" in bad.where


def test_tensors_without_elements_have_nothing_to_compare() -> None:
    b = Builder()
    x = b.input("x", ("N", 0, 4))
    graph = b.output(b.op("Neg", b.relu(x, "r"), shape=("N", 0, 4), name="y"))
    assert all(item.passed for item in certificate(graph, graph.clone(), {"x": np.zeros((2, 0, 4))}))


def test_infinities_in_the_same_places_are_no_difference() -> None:
    before, after = scaled(Gauge("r", np.full((3, 1), 2.0), np.zeros(())))
    array = FEED["x"].copy()
    array[0, 1, 2], array[1, 0, 0] = np.inf, np.nan
    found = certificate(before, after, {"x": array})
    assert all(item.passed for item in found)
    back = next(node for node in after.nodes if node.output.name == "back")
    back.kind = "Mul"
    bad = [item for item in certificate(before, after, {"x": array}) if not item.passed]
    assert {(item.gate, item.subject) for item in bad} == {("certificate", "y"), ("G1", "y")}
    assert all(item.error < np.inf for item in bad)


def test_integers_must_be_equal() -> None:
    graphs: list[Graph] = []
    for axis in (1, 2):
        b = Builder()
        y = b.op("ArgMax", b.input("x", (2, 3, 3)), shape=(2, 1, 3), name="y", axis=1, keepdims=1)
        y.producer.attrs["axis"] = axis if axis == 1 else 1
        y.producer.attrs["select_last_index"] = axis - 1
        graphs.append(b.output(y))
    ties = {"x": np.zeros((2, 3, 3))}
    bad = [item for item in certificate(*graphs, ties) if not item.passed]
    assert [(item.subject, item.error) for item in bad] == [("y", 6.0)]


def test_rounding_that_a_norm_of_equal_inputs_magnifies_is_no_difference() -> None:
    """Per-channel scales in front of an instance norm, on a constant input: all that is left of the input is rounding."""
    graphs: list[Graph] = []
    for moved in (False, True):
        b = Builder(3)
        x = b.input("x", (1, 3, 5, 5))
        weight = b.rng.standard_normal((4, 3, 1, 1))
        c = b.op("Conv", x, b.const(weight), shape=(1, 4, 5, 5), name="c_scaled" if moved else "c", kernel_shape=(1, 1))
        eps = 1e-12
        if moved:
            conv = c.producer
            b.graph.set_input(conv, 1, b.graph.derived(conv.inputs[1], conv.inputs[1].const.float64() * 3.0))
            c.gauges = (Gauge("c", np.full((), 3.0), np.zeros(())),)
            eps *= 9.0
        n = b.op("InstanceNormalization", c, b.const(np.ones(4)), b.const(np.zeros(4)), shape=(1, 4, 5, 5), name="n", epsilon=eps)
        graphs.append(b.output(b.op("Tanh", n, shape=(1, 4, 5, 5), name="y")))
    for array in (np.full((1, 3, 5, 5), 0.7), np.random.default_rng(0).standard_normal((1, 3, 5, 5))):
        bad = [item for item in certificate(*graphs, {"x": array}) if not item.passed]
        assert not bad


def test_a_wrong_constant_is_not_excused_by_magnified_rounding() -> None:
    before, after = scaled(Gauge("r", np.full((3, 1), 2.0), np.zeros(())), np.array([[2.0], [2.0001], [2.0]]))
    assert not verdicts(before, after)["certificate", "r_scaled"].passed
    assert not verdicts(before, after)["G1", "r_scaled"].passed


# ---- contract ---------------------------------------------------------------------------------------------------------------


def broken(change: Any) -> set[str]:
    before, after = folded(net())
    change(after)
    return {item.subject for item in contract(before, after) if not item.passed}


def test_names_types_shapes_and_overridable_constants_are_the_contract() -> None:
    assert broken(lambda graph: None) == set()
    assert broken(lambda graph: graph.rename(graph.outputs[0], "z")) == {"outputs"}
    assert broken(lambda graph: graph.rename(graph.inputs[0], "z")) == {"inputs"}
    assert broken(lambda graph: graph.pinned.add(next(graph.constants()))) == {"overridable constants"}
    assert broken(lambda graph: setattr(graph.inputs[0], "shape", (1, 3, 9, 9))) == {"x"}
    assert broken(lambda graph: setattr(graph.outputs[0], "dtype", np.dtype(np.float64))) == {"y"}
    assert broken(lambda graph: setattr(graph.outputs[0], "shape", None)) == set()


def test_a_node_is_compared_by_kind_attributes_constants_and_inputs() -> None:
    from importlib import import_module

    same = import_module("normfold.verify.node_by_node")._same
    graph, twin = folded(net())[0], folded(net())[0]
    pairs = list(zip(graph.nodes, twin.nodes, strict=True))
    assert all(same(a, b) for a, b in pairs)
    a, b = next((a, b) for a, b in pairs if a.name == "conv2")
    assert not same(a, Node("Conv", b.inputs, b.outputs, {**b.attrs, "group": 2}))
    assert not same(a, Node("Conv", b.inputs[:2], b.outputs, b.attrs))
    weight = b.inputs[1]
    assert weight is not None and weight.const is not None
    other = twin.derived(weight, weight.const.float64() * (1 + 1e-9))
    assert not same(a, Node("Conv", [b.inputs[0], other, b.inputs[2]], b.outputs, b.attrs))
    assert not same(a, None)
