"""``normfold explain`` as users run it: what it says of a norm, its exit codes, and that its lines stay short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from torch import nn

from build import Builder
from normfold.errors import UsageError
from normfold.graph import Value
from normfold.load import load
from normfold.pipeline import Options
from normfold.pipeline.explaining import explain as ask
from normfold.record import Record

IMAGE = (1, 4, 6, 6)


def explain(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-m", "normfold", "explain", *arguments], capture_output=True, text=True, env=env)


def saved(b: Builder, folder: Path) -> Path:
    """What a Builder holds as an ONNX file."""
    nodes = [
        oh.make_node(n.kind, [v.name if v else "" for v in n.inputs], [v.name for v in n.outputs], name=n.name, **n.attrs)
        for n in b.graph.nodes
    ]
    tensors = [onnx.numpy_helper.from_array(v.const.read(), v.name) for v in b.graph.constants() if v.const is not None]
    ends = [
        [oh.make_tensor_value_info(v.name, onnx.TensorProto.FLOAT, v.shape) for v in values]
        for values in (b.graph.inputs, b.graph.outputs)
    ]
    graph = oh.make_graph(nodes, "net", *ends, tensors)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def stem(b: Builder) -> Value:
    return b.relu(b.conv(b.input("x", IMAGE), 4, name="stem"), name="act")


def sigmoid(b: Builder, x: Value, name: str = "end") -> Value:
    return b.op("Sigmoid", x, shape=x.shape or (), name=name)


def stream(b: Builder) -> None:
    x = b.conv(b.input("x", IMAGE), 4, name="stem")
    y = b.add(x, b.conv(b.relu(b.bn(x, name="bn"), name="r1"), 4, name="branch"), name="sum")
    b.output(sigmoid(b, b.conv(b.relu(y, name="r2"), 4, name="last")))


def sign(b: Builder) -> None:
    b.output(sigmoid(b, b.conv(b.relu(b.bn(stem(b), gamma=np.array([1, 1, -1, 1.0]), name="bn"), name="r2"), 3)))


def zero_padding(b: Builder) -> None:
    b.output(b.conv(b.bn(stem(b), name="bn"), 3, 3, 1, name="padded"))


def shared_weight(b: Builder) -> None:
    y = b.bn(b.conv(b.input("x", IMAGE), 4, name="stem"), name="bn")
    weight = b.graph.nodes[0].inputs[1]
    assert weight is not None
    b.output(sigmoid(b, y), b.op("Sigmoid", weight, shape=weight.shape or (), name="reader"))


def graph_output(b: Builder) -> None:
    conv = b.conv(b.input("x", IMAGE), 4, name="stem")
    b.output(conv, sigmoid(b, b.bn(conv, name="bn")))


def precision(b: Builder) -> None:
    x = b.conv(b.input("x", IMAGE), 4, name="stem")
    y = b.conv(b.relu(b.bn(x, gamma=np.array([1, 1, 1, 1e-7]), name="bn")), 4)
    b.output(sigmoid(b, b.conv(b.relu(b.add(x, y, name="sum")), 3)))


def training(b: Builder) -> None:
    y = b.bn(b.conv(b.input("x", IMAGE), 4), name="bn")
    assert y.producer is not None
    y.producer.attrs["training_mode"] = 1
    for name in ("mean", "var"):
        extra = b.graph.value(f"running_{name}", (4,), np.float32)
        extra.producer = y.producer
        y.producer.outputs.append(extra)
    b.output(y)


def gate(b: Builder) -> None:
    y = b.bn(stem(b), name="bn")
    scale = sigmoid(b, b.conv(b.graph.inputs[0], 4), "g")
    b.output(b.conv(b.op("Mul", y, scale, shape=IMAGE, name="gated"), 3))


ALONE = ("--only", "affine")  # without the rewrites that would copy a shared layer
CASES: dict[str, tuple[Callable[[Builder], None], tuple[str, ...], str, list[tuple[str, str, str]], list[int]]] = {
    # what is built, options, code, (side, op or subject, path) of each stop, channels
    "sign": (sign, (), "sign", [("input", "act", ""), ("output", "r2", "")], [2]),
    "zero padding": (zero_padding, (), "zero-padding", [("input", "act", ""), ("output", "padded", "")], [0, 1, 2, 3]),
    "shared weight": (shared_weight, ALONE, "shared-weight", [("input", "stem", ""), ("output", "end", "")], [0, 1, 2, 3]),
    "graph output": (
        graph_output,
        ALONE,
        "graph-output",
        [("input", "graph output stem", ""), ("output", "end", "")],
        [0, 1, 2, 3],
    ),
    "precision": (precision, ALONE, "precision", [("input", "sum", "")], [3]),
    "training": (training, (), "training", [], []),
    "gate": (gate, (), "gate", [("input", "act", ""), ("output", "gated", "")], [0, 1, 2, 3]),
    "kept": (stream, ("--keep", "b*"), "asked-to-keep", [], []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_stops_a_norm(case: str, tmp_path: Path) -> None:
    make, options, code, stops, channels = CASES[case]
    b = Builder()
    make(b)
    path = saved(b, tmp_path)
    done = explain(str(path), "bn", "--json", *options)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["explanations"]
    assert found["finding"]["outcome"] == "kept"
    assert found["finding"]["refusal"]["code"] == code
    trace: dict[str, Any] = found["trace"] or {"stops": [], "first": []}
    said = [
        (stop["side"], stop["name"] or stop["subject"], " ".join(hop["name"] for hop in stop["path"])) for stop in trace["stops"]
    ]
    assert said == stops
    assert trace["first"] == channels

    text = explain(str(path), "bn", *options).stdout
    assert f"would be kept: {code}" in text
    assert "what to do: " in text
    for _, name, _ in stops:
        assert name in text
    if channels:
        assert f"in {len(channels)} of 4 channels: {', '.join(map(str, channels))}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_norm_on_a_residual_stream_goes_into_all_who_touch_it(tmp_path: Path) -> None:
    b = Builder()
    stream(b)
    path = saved(b, tmp_path)
    done = explain(str(path), "bn", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["explanations"]
    assert (found["finding"]["outcome"], found["finding"]["refusal"], found["trace"]["stops"]) == ("deleted", None, [])
    took = {(item["name"], item["role"]): item for item in found["trace"]["absorbed"]}
    assert set(took) == {("stem", "writes"), ("branch", "writes"), ("branch", "reads")}
    assert took["branch", "writes"]["path"] == [{"op": "Add", "name": "sum", "tensor": "branch"}]
    assert took["branch", "reads"]["path"] == [{"op": "Relu", "name": "r1", "tensor": "r1"}]
    text = explain(str(path), "bn", COLUMNS="70").stdout
    assert "would be deleted" in text
    assert "Conv (branch) makes branch" in text
    assert "through Add (sum)" in text
    assert max(map(len, text.splitlines())) <= 70


def test_patterns_and_unknown_names(tmp_path: Path) -> None:
    b = Builder()
    x = b.bn(b.conv(b.input("x", IMAGE), 4), name="block.first")
    b.output(sigmoid(b, b.bn(b.conv(x, 4), name="block.second")))
    path = str(saved(b, tmp_path))
    both = explain(path, "block.*", "--json")
    assert [item["finding"]["name"] for item in json.loads(both.stdout)["explanations"]] == ["block.first", "block.second"]
    unknown = explain(path, "block.secnd")
    assert unknown.returncode == 2
    (line,) = unknown.stderr.splitlines()
    assert "no norm is called 'block.secnd'; close to it: block.second" in line


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("bn_1", "close to it: block.bn1"),
        ("BN", "close to it: block.bn1"),
        ("batch_norm_0", "there are for example: block.bn1, 1"),
    ],
)
def test_a_torch_model_offers_its_modules(wanted: str, offered: str) -> None:
    """Not what torch.export calls the tensors."""
    block = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), bn1=nn.BatchNorm2d(3)))
    module = nn.Sequential(OrderedDict([("block", block), ("1", nn.BatchNorm2d(3))])).eval()
    loaded = load(module, calls=[((torch.randn(1, 3, 4, 4),), {})], record=Record())
    with pytest.raises(UsageError, match=f"{offered} "):
        ask(loaded, wanted, Options(), Record())


def test_usage_errors_and_files_that_are_no_model(tmp_path: Path) -> None:
    assert explain("net.onnx").returncode == 2
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    done = explain(str(broken), "bn")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
