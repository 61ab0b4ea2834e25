"""Kernels back to the user's layers, through every fusion and every level of the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
import torch
from torch import nn

from normfold.export.to_onnx import save_onnx
from normfold.export.to_torch import to_onnx_model
from normfold.pipeline.profiling import save_with_norms
from normfold.profile.mapping import Mapped, map_kernels
from normfold.profile.origin import Original, read_original
from normfold.profile.sessions import LEVELS, session_options
from onnx_models import floats, info, model
from tools._nets import ResNet18, randomised

IMAGE = (1, 3, 32, 32)


def mapped_at(path: Path, level: str) -> tuple[Original, dict[str, Mapped]]:
    """As the worker does it, without timing."""
    original, optimized = read_original(path), path.with_name(f"{level}.onnx")
    options = session_options(level=level)
    options.optimized_model_filepath = str(optimized)
    onnxruntime.InferenceSession(original.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return original, map_kernels(original, onnx.load(optimized))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its norms, as PyTorch's exporter writes it when it optimises nothing."""
    path = tmp_path_factory.mktemp("resnet") / "full.onnx"
    net = randomised(ResNet18(8, 10))
    save_with_norms(torch.export.export(net, (torch.zeros(IMAGE),)), path)
    return path


@pytest.mark.parametrize("level", LEVELS)
def test_every_kernel_of_a_resnet_has_its_module_at_every_level(resnet: Path, level: str) -> None:
    original, mapped = mapped_at(resnet, level)
    real = {name: layer for name, layer in ResNet18(8, 10).named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    unnamed = [item.name for item in mapped.values() if item.primary is None or not item.primary.module]
    assert unnamed == []
    seen = {item.primary.layer for item in mapped.values() if item.primary and item.op in ("Conv", "FusedConv", "Gemm", "MatMul")}
    assert seen >= set(real)
    covered = {node.index for item in mapped.values() for node in item.members}
    left = [node.name for node in original.nodes if node.index not in covered and not node.constant]
    assert left == [], "every node of the original is in some kernel"
    inserted = {item.op for item in mapped.values() if item.inserted}
    assert inserted <= {"ReorderInput", "ReorderOutput"}


def test_a_sum_and_an_activation_fused_into_a_blocked_convolution_belong_to_it(resnet: Path) -> None:
    """Its name says the convolution's own output only."""
    _, mapped = mapped_at(resnet, "all")
    last = [
        item
        for item in mapped.values()
        if item.primary is not None and item.primary.layer == "layer1.1.conv2" and not item.inserted
    ]
    assert [sorted(node.op for node in item.members) for item in last] == [["Add", "BatchNormalization", "Conv", "Relu"]]
    following = [item for item in mapped.values() if item.primary is not None and item.primary.layer == "layer2.0.conv1"]
    assert [sorted(node.op for node in item.members) for item in following if not item.inserted] == [
        ["BatchNormalization", "Conv", "Relu"]
    ]


def test_norms_are_kernels_without_optimisation_and_gone_with_it(resnet: Path) -> None:
    original, off = mapped_at(resnet, "disabled")
    norms = set(original.norms())
    assert {"bn1", "layer1.0.bn1", "layer4.1.bn2", "layer2.0.downsample.1"} <= norms and len(norms) == 20
    assert {item.norm for item in off.values()} - {""} == norms
    _, basic = mapped_at(resnet, "basic")
    assert {item.norm for item in basic.values()} == {""}


class Many(nn.Module):
    """A GroupNorm and an RMSNorm, five and seven nodes in ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group, self.act = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()
        self.first, self.rms, self.last = nn.Linear(30, 8), nn.RMSNorm(8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.rms(self.first(self.act(self.group(self.conv(x))))).relu())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "net.onnx"
    save_onnx(to_onnx_model(torch.export.export(Many().eval(), (torch.zeros(IMAGE),))), path)
    return path


@pytest.mark.parametrize("level", ["disabled", "all"])
def test_a_norm_written_as_many_nodes_is_one_norm(many: Path, level: str) -> None:
    original, mapped = mapped_at(many, level)
    assert set(original.norms()) == {"group", "rms"}
    assert original.kinds == {"group": "group", "rms": "rms"}
    kernels = [item.norm for item in mapped.values()]
    assert kernels.count("group") >= 4 and kernels.count("rms") >= 1
    rest = {item.primary.layer for item in mapped.values() if item.primary and not item.norm and not item.inserted}
    assert rest - {"act"} == {"conv", "first", "last", "node_relu_1"}


def spelled(kind: str) -> onnx.ModelProto:
    """A norm as old exporters wrote it, without any metadata."""
    weights = {"w": floats(8, 8), "two": np.float32(2.0), "eps": np.float32(1e-5), "g": floats(8), "b": floats(8)}
    nodes = [oh.make_node("MatMul", ["x", "w"], ["h"])]
    d = "h"
    if kind == "layer":
        nodes += [oh.make_node("ReduceMean", ["h"], ["m"], axes=[-1]), oh.make_node("Sub", ["h", "m"], ["d"])]
        d = "d"
    nodes += [
        oh.make_node("Pow", [d, "two"], ["s"]),
        oh.make_node("ReduceMean", ["s"], ["v"], axes=[-1]),
        oh.make_node("Add", ["v", "eps"], ["e"]),
        oh.make_node("Sqrt", ["e"], ["r"]),
        oh.make_node("Div", [d, "r"], ["n"]),
        oh.make_node("Mul", ["n", "g"], ["a"]),
        *([oh.make_node("Add", ["a", "b"], ["y"])] if kind == "layer" else [oh.make_node("Identity", ["a"], ["y"])]),
        oh.make_node("Relu", ["y"], ["z"]),
    ]
    return model(nodes, [info("x", [4, 8])], [info("z", [4, 8])], weights, opset=13)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_norm_spelled_as_arithmetic_is_found_by_its_shape(tmp_path: Path, kind: str, level: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(spelled(kind).SerializeToString())
    original, mapped = mapped_at(path, level)
    [members] = original.norms().values()
    assert len(members) == (9 if kind == "layer" else 6)
    assert next(iter(original.kinds.values())) == kind
    rest = {item.op for item in mapped.values() if not item.norm}
    assert rest <= {"MatMul", "FusedMatMul", "Relu", "Identity"}
    assert [item for item in mapped.values() if not item.members] == []


def test_a_root_that_normalises_nothing_is_no_norm(tmp_path: Path) -> None:
    nodes: list[Any] = [
        oh.make_node("Mul", ["x", "x"], ["s"]),
        oh.make_node("ReduceMean", ["s"], ["v"], axes=[-1]),
        oh.make_node("Sqrt", ["v"], ["r"]),  # no epsilon, and nothing is divided
        oh.make_node("Relu", ["r"], ["z"]),
    ]
    path = tmp_path / "net.onnx"
    path.write_bytes(model(nodes, [info("x", [4, 8])], [info("z", [4, 1])], opset=13).SerializeToString())
    assert read_original(path).norms() == {}


def test_nodes_without_names_and_with_the_same_name_get_their_own(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("Relu", ["x"], ["a"]),
        oh.make_node("Relu", ["a"], ["b"], "twice"),
        oh.make_node("Abs", ["b"], ["y"], "twice"),
    ]
    path = tmp_path / "net.onnx"
    path.write_bytes(model(nodes, [info("x", [4])], [info("y", [4])]).SerializeToString())
    original, mapped = mapped_at(path, "disabled")
    names = [node.name for node in original.nodes]
    assert len(set(names)) == 3 and "" not in names and names[1] == "twice"
    assert [[node.op for node in item.members] for item in mapped.values()] == [["Relu"], ["Relu"], ["Abs"]]


def test_kernels_in_a_sub_graph_belong_to_the_node_that_holds_them(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        return oh.make_graph([oh.make_node(op, ["h"], [f"{op}_y"], f"in_{op}")], op, [], [info(f"{op}_y", None)])

    nodes = [
        oh.make_node("Abs", ["x"], ["h"], "first"),
        oh.make_node("If", ["c"], ["y"], "choice", then_branch=branch("Sin"), else_branch=branch("Cos")),
    ]
    path = tmp_path / "net.onnx"
    inputs = [info("x", [4]), info("c", [], onnx.TensorProto.BOOL)]
    path.write_bytes(model(nodes, inputs, [info("y", None)]).SerializeToString())
    _, mapped = mapped_at(path, "all")
    assert mapped["in_Sin"].owner == "choice" and mapped["first"].owner == ""
    assert mapped["choice"].reads == ["first"]
    assert [node.name for node in mapped["in_Sin"].members] == ["in_Sin"]
