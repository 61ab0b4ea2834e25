"""Two models of unknown kinship: verdicts, the contract, where a difference begins, what cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir
import pytest
import torch
from torch import nn

import normfold
from folding import WRONG, folded, net
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.program import export_module
from normfold.graph import Graph
from normfold.pipeline.verifying import Verification
from normfold.verify import OnnxRunner, Party, compare, feeds
from normfold.verify.compare import agreement, likeness
from routes import exported, randomised


def proto(graph: Graph) -> onnx.ModelProto:
    """The artefact of a view."""
    twin = graph.clone()
    twin.round_constants()
    return ir.to_proto(to_model(twin))


def pair(mistake: str = "", **options: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = net(**options)
    return model, proto(folded(model, mistake)[1])


def verify(a: Any, b: Any, **options: Any) -> Verification:
    return normfold.verify(a, b, **{"level": "quick", **options})  # type: ignore[operator]


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)))


X = torch.randn(2, 3, 8, 8)

# ---- verdicts -------------------------------------------------------------------------------------------------------------


def test_the_package_can_be_called() -> None:
    found = normfold.verify(*pair())  # type: ignore[operator]
    assert found.verdict == "same" and found.exit_code == 0
    gates = {item.gate for item in found.compared.judgement.comparisons}
    assert gates == {"contract", "G2", "G3", "reference"}
    assert len(found.compared.judgement.ran) == 8  # seven families, and the second sizes


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_folds_differ_and_the_first_value_that_parts_is_named(mistake: str) -> None:
    found = verify(*pair(mistake, regime="signed gamma" if mistake == "gamma without sign" else "plain"))
    assert found.verdict == "different" and found.exit_code == 1
    assert {item.gate for item in found.compared.judgement.failed} == {"G2", "G3"}
    parting = found.compared.parting
    assert parting is not None
    assert (parting.value, parting.op, parting.node) == ("n2", "BatchNormalization", "bn2")
    assert parting.where.startswith("channel") and parting.error > parting.allowed


def test_the_worst_channel_is_named() -> None:
    model, other = pair()
    bias = next(item for item in other.graph.initializer if item.name.endswith("bias") and item.dims == [8])
    array = onnx.numpy_helper.to_array(bias).copy()
    array[5] += 0.1
    bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
    parting = verify(model, other).compared.parting
    assert parting is not None
    assert (parting.value, parting.where) == ("n1", "channel 5")


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
)
def test_live_modules_programs_and_files_are_compared_in_any_pairing(dtype: torch.dtype, tmp_path: Path) -> None:
    module, x = small().to(dtype), X.to(dtype)
    result = normfold.optimize(module, (x,), verify=False)
    result.save(tmp_path / "b.pt2")
    torch.export.save(export_module(module, (x,)), tmp_path / "a.pt2")
    assert verify(module, tmp_path / "b.pt2", inputs=(x,)).verdict == "same"
    assert verify(tmp_path / "a.pt2", tmp_path / "b.pt2").verdict == "same"
    assert verify(tmp_path / "b.pt2", module).verdict == "same"
    if dtype is torch.float32:
        onnx.save(exported(module, x), tmp_path / "a.onnx")
        assert verify(tmp_path / "a.onnx", tmp_path / "b.pt2").verdict == "same"
        assert verify(tmp_path / "b.pt2", tmp_path / "a.onnx").verdict == "same"
        assert verify(tmp_path / "a.onnx", module).verdict == "same"
    with torch.no_grad():
        module[3].bias += 0.05
    assert verify(tmp_path / "a.pt2", module).verdict == "different"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_artefact_in_half_precision_is_judged_by_its_own_ulp(dtype: str) -> None:
    """The same network with its weights stored in half precision and computed with in float32."""
    kind = np.dtype(np.float16) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    for mistake, verdict in (("", "same"), ("gamma without sign", "different"), ("mean missed", "different")):
        model, other = pair(mistake, regime="signed gamma")
        for tensor in [item for item in other.graph.initializer if len(item.dims) == 4]:
            half = onnx.numpy_helper.to_array(tensor).astype(kind)
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            cast = onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
            other.graph.node.insert(0, cast)
        found = verify(model, other, level="standard")
        assert (found.verdict, found.compared.grain) == (verdict, dtype), mistake


@pytest.mark.slow
def test_checkpoints_are_loaded_as_their_sidecars_say(models_dir: Path, tmp_path: Path) -> None:
    found = verify(models_dir / "digits_preact.pt", models_dir / "digits_preact.pt")
    assert (found.verdict, found.a.kind, found.a.sha256) == ("same", "module", found.b.sha256)
    assert found.compared.parted == 0 < found.compared.common


def test_two_unrelated_models_differ_in_what_callers_see() -> None:
    found = verify(net(), exported(nn.Sequential(nn.Linear(4, 2)).eval(), torch.randn(1, 4)))
    assert found.verdict == "different"
    assert {item.gate for item in found.compared.judgement.comparisons} == {"contract"}
    assert any("inputs differ" in note for note in found.notes)


def test_nan_in_other_places_differs() -> None:
    model, other = pair()
    scale = next(item for item in other.graph.initializer if item.dims == [6])
    array = onnx.numpy_helper.to_array(scale).copy()
    array[2] = np.nan
    scale.CopyFrom(onnx.numpy_helper.from_array(array, scale.name))
    found = verify(model, other)
    assert any("NaN or Inf differ" in item.where for item in found.compared.judgement.failed)


# ---- what cannot be told --------------------------------------------------------------------------------------------------


def with_unknown_op(shift: float = 0.0) -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Twist", ["x"], ["t"], domain="acme"), onnx.helper.make_node("Add", ["t", "k"], ["y"])],
        "g",
        [info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [info("y", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.numpy_helper.from_array(np.full(3, 1.0 + shift, np.float32), "k")],
        value_info=[info("t", onnx.TensorProto.FLOAT, [1, 3])],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("acme", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_an_unknown_op_is_named_and_nothing_is_claimed() -> None:
    found = verify(with_unknown_op(), with_unknown_op())
    assert (found.verdict, found.exit_code) == ("cannot tell", 4)
    assert any("acme::Twist" in note for note in found.notes)


def test_a_difference_behind_an_unknown_op_is_seen_all_the_same() -> None:
    assert verify(with_unknown_op(), with_unknown_op(0.01)).verdict == "different"


def test_without_runtimes_the_stored_weights_decide() -> None:
    assert verify(*pair(), runtime=False).verdict == "same"
    found = verify(*pair("bias off by 1 %"), runtime=False)
    assert {item.gate for item in found.compared.judgement.failed} == {"G2"}


# ---- common values --------------------------------------------------------------------------------------------------------


def rescaled(back: float = 0.5) -> tuple[Graph, Graph]:
    """The second stores r1 twice as large and its reader makes it right again: the same function, under the same names."""
    a, b = from_onnx(net()), from_onnx(net())
    by_name = {node.name: node for node in b.nodes}
    for slot in (1, 2):
        old = by_name["bn1"].inputs[slot]
        assert old is not None and old.const is not None
        b.set_input(by_name["bn1"], slot, b.derived(old, old.const.float64() * 2))
    weight = by_name["conv2"].inputs[1]
    assert weight is not None and weight.const is not None
    b.set_input(by_name["conv2"], 1, b.derived(weight, weight.const.float64() * back))
    b.round_constants()
    return a, b


def party(graph: Graph) -> Party:
    return Party(graph, OnnxRunner(proto(graph).SerializeToString()), "onnx")


def test_values_that_rightly_differ_are_counted_not_judged() -> None:
    a, b = rescaled()
    found = compare(party(a), party(b), feeds(a, level="quick"))
    assert found.verdict == "same" and found.parting is None
    assert (found.common, found.parted) == (7, 2)  # n1 and r1


def test_where_names_are_promised_they_are_judged() -> None:
    a, b = rescaled()
    found = compare(party(a), party(b), feeds(a, level="quick"), named=True)
    assert found.verdict == "different"
    assert found.parting is not None and found.parting.value == "n1"


def test_the_first_of_several_differences_is_named() -> None:
    a, b = rescaled(0.5001)
    found = compare(party(a), party(b), feeds(a, level="quick"))
    assert found.verdict == "different" and found.parting is not None
    assert found.parting.value == "n1"  # differs by its gauge already: nothing says here that it may


# ---- contract and figures -------------------------------------------------------------------------------------------------


def test_symbols_may_have_other_names_but_open_sizes_stay_open() -> None:
    def broken(other: onnx.ModelProto, kind: Any = "onnx") -> set[str]:
        found = agreement(Party(from_onnx(net()), None, "onnx"), Party(from_onnx(other), None, kind))
        return {item.subject for item in found if not item.passed}

    assert broken(net(batch="batch")) == set()
    assert broken(net(batch=2)) == {"input x", "output y"}
    renamed = net()
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "z"
    assert broken(renamed) == {"outputs"}
    assert broken(renamed, "torch") == set()


def test_overridable_constants_are_part_of_the_contract() -> None:
    model, other = net(), net()
    other.graph.input.append(onnx.helper.make_tensor_value_info("b2", onnx.TensorProto.FLOAT, [6]))
    found = verify(model, other)
    assert {item.subject for item in found.compared.judgement.failed} == {"overridable constants"}


def test_likeness_is_shown() -> None:
    one = np.array([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    two = one + np.array([[0, 0, 0, 2, 0], [0, 0, 0, 0, 0]])
    found = likeness(one, two)
    assert (found["top1"], found["top5"], found["largest"]) == (0.5, 1.0, 2.0)
    assert found["sqnr_db"] == pytest.approx(10 * np.log10(110 / 4))
    assert likeness(one, one)["sqnr_db"] == np.inf and "top1" not in likeness(one[0], two[0])
