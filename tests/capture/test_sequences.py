"""Splits that are spelled with a sequence become a Split; everything else about sequences stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.sequences import split_sequences
from normfold.export.to_onnx import proto_bytes
from onnx_models import floats, info, model, run_ort

SPLIT = np.array([1, 4, 3])


def _model(split: Any, places: tuple[int, ...], *, output: bool = False, **attrs: Any) -> onnx.ModelProto:
    """The parts at `places`, each halved and added up."""
    held: dict[str, Any] = {f"i{n}": np.array(place) for n, place in enumerate(places)}
    held |= {} if split is None else {"sizes": np.asarray(split)}
    nodes = [helper.make_node("SplitToSequence", ["x"] + ([] if split is None else ["sizes"]), ["parts"], axis=1, **attrs)]
    for n in range(len(places)):
        nodes.append(helper.make_node("SequenceAt", ["parts", f"i{n}"], [f"part{n}"]))
        nodes.append(helper.make_node("ReduceSum", [f"part{n}"], [f"sum{n}"], keepdims=0))
    nodes.append(helper.make_node("Sum", [f"sum{n}" for n in range(len(places))], ["y"]))
    outputs = [info("y", [])] + ([info("part0", None)] if output else [])
    return model(nodes, [info("x", [2, 8, 3])], outputs, held)


@pytest.mark.parametrize(
    ("split", "places", "sizes"),
    [
        (SPLIT, (0, 1, 2), (1, 4, 3)),
        (SPLIT, (2, -3, 2), (1, 4, 3)),
        (3, (0, 2), (3, 3, 2)),
        (8, (0,), (8,)),
        (None, (7, -1), (1,) * 8),
    ],
)
def test_it_becomes_a_split(split: Any, places: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    proto = _model(split, places)
    x = {"x": floats(2, 8, 3)}
    expected = run_ort(proto, x)
    graph = from_onnx(proto)
    assert split_sequences(graph) == 1
    graph.validate()
    (node,) = [node for node in graph.nodes if node.kind == "Split"]
    assert node.attrs == {"axis": 1, "split": sizes} and "part0" in [value.name for value in node.outputs]
    assert not any("Sequence" in node.kind for node in graph.nodes)
    data = proto_bytes(to_model(graph))
    onnx.checker.check_model(data, full_check=True)
    np.testing.assert_array_equal(run_ort(data, x)[0], expected[0])


@pytest.mark.parametrize(
    "why", ["output", "squeezed", "place at run time", "sizes at run time", "length", "overridable", "beyond"]
)
def test_other_sequences_stay(why: str) -> None:
    proto = _model(
        {"squeezed": None}.get(why, SPLIT), (5 if why == "beyond" else 0, 1), output=why == "output",
        **({"keepdims": 0} if why == "squeezed" else {}),
    )  # fmt: skip
    graph = proto.graph
    if why == "length":
        graph.node.append(helper.make_node("SequenceLength", ["parts"], ["n"]))
        graph.output.append(helper.make_tensor_value_info("n", onnx.TensorProto.INT64, []))
    name = {"place at run time": "i0", "sizes at run time": "sizes", "overridable": "sizes"}.get(why)
    if name is not None:
        shape = [] if name == "i0" else [3]
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape))
        if why != "overridable":
            kept = [item for item in graph.initializer if item.name != name]
            del graph.initializer[:]
            graph.initializer.extend(kept)
    assert split_sequences(from_onnx(proto)) == 0
