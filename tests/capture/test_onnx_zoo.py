"""Real models: read, written without an edit, folded; ONNX Runtime gives the same bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.errors import InputRefused
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array
from onnx_models import run_ort, run_view

FAST = {  # name -> nodes of the view as captured, after folding
    "basic-pitch-onnx/nmp": (248, 241),
    "dtln-onnx/model_1": (36, 36),
    "dtln-onnx/model_2": (78, 75),
    "gtcrn/gtcrn": (1248, 426),
    "gtcrn/gtcrn_simple": (415, 415),
    "onnx-light/light_shufflenet": (446, 203),
    "silero-vad/silero_vad": (4, 2),
    "silero-vad/silero_vad_op18_ifless": (4, 4),
    "ultraface/RFB-640-masked_face-v2": (161, 128),
    "ultraface/version-RFB-320": (211, 163),
    "ultraface/version-slim-320_without_postprocessing": (168, 120),
}
FAMILIES = [
    "botnet26t_256",
    "coatnet_nano_rw_224",
    "inception_next_atto",
    "levit_128s",
    "mixnet_s",
    "swiftformer_xs",
    "xcit_nano_12_p16_224",
]
SIZES: dict[str, tuple[int, ...]] = {"silero-vad:input": (1, 512), "silero-vad:state": (2, 1, 128)}


def feeds(proto: onnx.ModelProto, name: str) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    held = {item.name for item in proto.graph.initializer}
    result: dict[str, Array] = {}
    for item in proto.graph.input:
        if item.name in held:
            continue
        folder = name.partition("/")[0]
        dims = item.type.tensor_type.shape.dim
        shape = SIZES.get(f"{folder}:{item.name}", tuple(dim.dim_value or 1 for dim in dims))
        if item.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            result[item.name] = np.full(shape, 16000, np.int64)
        else:
            result[item.name] = rng.standard_normal(shape).astype(np.float32)
    return result


def contract(proto: onnx.ModelProto) -> tuple[Any, ...]:
    held = {item.name for item in proto.graph.initializer}
    return (
        [item for item in proto.graph.input if item.name not in held],
        list(proto.graph.output),
        proto.ir_version,
        {item.domain: item.version for item in proto.opset_import},
    )


def same_bits(source: onnx.ModelProto | str, written: bytes, inputs: dict[str, Array]) -> None:
    onnx.checker.check_model(written, full_check=True)
    for found, expected in zip(run_ort(written, inputs), run_ort(source, inputs), strict=True):
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", FAST)
def test_zoo_models_are_written_and_folded_to_the_same_bits(shared: Path, name: str) -> None:
    path = shared / "zoo" / f"{name}.onnx"
    proto = onnx.load(path)
    inputs = feeds(proto, name)
    graph = from_onnx(path).validate()
    captured = len(graph.nodes)
    written = proto_bytes(to_model(graph))
    same_bits(str(path), written, inputs)
    assert contract(onnx.load_from_string(written)) == contract(proto)
    tidy(graph)
    graph.validate()
    assert (captured, len(graph.nodes)) == FAST[name]
    assert all(
        value.shape is not None for node in graph.nodes for value in node.outputs if value.uses and value.dtype is not None
    )
    same_bits(str(path), proto_bytes(to_model(graph)), inputs)
    assert not tidy(graph)


def test_a_real_model_in_float64_agrees_with_the_runtime(shared: Path) -> None:
    for name in ("silero-vad/silero_vad", "dtln-onnx/model_1"):
        path = shared / "zoo" / f"{name}.onnx"
        inputs = feeds(onnx.load(path), name)
        for found, expected in zip(run_view(from_onnx(path), inputs), run_ort(str(path), inputs), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_a_model_from_before_opsets_is_refused(shared: Path) -> None:
    with pytest.raises(InputRefused, match="IR version 1"):
        from_onnx(shared / "zoo" / "superres-onnx" / "super_resolution.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_written_to_the_same_bits(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(shared / "families"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from materialise import materialise

    proto = materialise(name)
    graph = from_onnx(proto).validate()
    assert not any("::" in node.kind for node in graph.nodes)
    assert all(node.module for node in graph.nodes if node.kind == "BatchNormalization")
    same_bits(proto, proto_bytes(to_model(graph)), feeds(proto, name))
