"""Every kind of wrong fold, planted inside the rewriting of a small network: caught, and the right rewrite is blamed for it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from normfold.capture.onnx import from_onnx
from normfold.capture.tidy import tidy
from normfold.graph import Graph
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.verify import feeds, judge, locate

OPTIONS = Options(objective="norms")


@cache
def plants() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "_plants.py"
    spec = importlib.util.spec_from_file_location("_plants", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["_plants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def net() -> onnx.ModelProto:
    """Conv - BN - Relu - BN in front of zero padding - grouped Conv - BN, added to a second Conv - BN; a weight read twice."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}

    def weight(name: str, *shape: int) -> str:
        tensors[name] = rng.standard_normal(shape) / 3
        return name

    def bn(name: str, x: str) -> onnx.NodeProto:
        size = 8
        tensors.update(
            {
                f"{name}.gamma": rng.uniform(0.5, 1.5, size) * np.where(np.arange(size) % 3 == 1, -1, 1),
                f"{name}.beta": rng.standard_normal(size),
                f"{name}.mean": rng.standard_normal(size),
                f"{name}.var": rng.uniform(0.5, 1.5, size),
            }
        )
        inputs = [x, *(f"{name}.{part}" for part in ("gamma", "beta", "mean", "var"))]
        return onnx.helper.make_node("BatchNormalization", inputs, [name], name=name)

    def conv(name: str, x: str, weight: str, *bias: str, **attrs: Any) -> onnx.NodeProto:
        return onnx.helper.make_node("Conv", [x, weight, *bias], [name], name=name, pads=[1, 1, 1, 1], **attrs)

    nodes = [
        conv("c1", "x", weight("w1", 8, 3, 3, 3), weight("b1", 8)),
        bn("n1", "c1"),
        onnx.helper.make_node("Relu", ["n1"], ["r1"], name="r1"),
        bn("n2", "r1"),
        conv("c2", "n2", weight("w2", 8, 4, 3, 3), weight("b2", 8), group=2),
        bn("n3", "c2"),
        conv("c3", "r1", weight("w3", 8, 8, 3, 3), weight("b3", 8)),
        bn("n4", "c3"),
        onnx.helper.make_node("Add", ["n3", "n4"], ["sum"], name="sum"),
        onnx.helper.make_node("Relu", ["sum"], ["r2"], name="r2"),
        conv("c4", "r2", weight("w4", 8, 8, 3, 3), weight("b4", 8)),
        bn("n5", "c4"),
        onnx.helper.make_node("Sigmoid", ["n5"], ["s1"], name="s1"),
        conv("c5", "s1", "w4", "b4"),
        bn("n6", "c5"),
        onnx.helper.make_node("Sigmoid", ["n6"], ["y"], name="y"),
    ]
    # n6 normalises like n5, so that one folded weight serves both
    for part in ("gamma", "beta", "mean", "var"):
        tensors[f"n6.{part}"] = tensors[f"n5.{part}"]
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "net", [info("x", kind, [2, 3, 7, 7])], [info("y", kind, [2, 8, 7, 7])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@cache
def captured() -> tuple[Graph, Outcome]:
    graph = from_onnx(net())
    tidy(graph)
    return graph, rewrite(graph, OPTIONS)


def test_the_right_fold_passes() -> None:
    graph, right = captured()
    assert [item.outcome for item in right.findings] == ["deleted"] * 6
    assert judge(graph, right.graph, None, None, feeds(graph)).verdict == "same"


KINDS = tuple(plants().KINDS)


def test_there_are_at_least_19_kinds() -> None:
    assert len(set(KINDS)) >= 19


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_caught_and_blamed_on_its_rewrite_and_layer(kind: str) -> None:
    graph, right = captured()
    for seed in range(2):
        plant = plants().planted(graph, right, kind, "affine", np.random.default_rng(seed), OPTIONS)
        assert plant is not None, "there is a place for every kind here"
        found = judge(graph, plant.outcome.graph, None, None, feeds(graph), stop=True)
        assert found.verdict == "different"
        feed = next(item for item in feeds(graph) if item.label == found.failed[0].family)
        blamed = locate.first_wrong_step(graph, [step.graph for step in plant.outcome.steps], feed)
        assert blamed is not None
        place, failed = blamed
        step = plant.outcome.steps[place]
        assert step.rule == plant.rule == "affine" and failed.gate in ("G1", "certificate")
        layers = locate.suspects(graph, step.graph, failed.subject, [item.target for item in step.applied])
        details = [item.detail for item in step.applied if item.target in layers]
        assert plant.layer in layers or any(name in detail for name in plant.parameters for detail in details)


def test_another_rewrite_is_blamed_when_it_is_the_wrong_one() -> None:
    graph, right = captured()
    rules = plants().rules_of(right)
    assert rules == ["affine"]
    assert plants().planted(graph, right, "stale weight", "chains", np.random.default_rng(0), OPTIONS) is None
