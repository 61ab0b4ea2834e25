"""A small Conv-BN net as an ONNX model, and its fold written by hand on the view: right, or wrong in one of many ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.graph import Array, Graph, Node, Value
from normfold.verify import OnnxRunner

REGIMES = ("plain", "tiny variance", "large mean", "signed gamma", "spread")
SAMPLES = 64  # that the statistics were taken over: what makes a variance unbiased


def net(regime: str = "plain", seed: int = 0, batch: Any = "N", size: Any = 9) -> onnx.ModelProto:
    """x [N, 3, 9, 9] -> Conv(8) - BN - Relu - Conv(6, bias) - BN - GlobalAveragePool - Flatten -> y."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {"w1": rng.standard_normal((8, 3, 3, 3)) / 5, "w2": rng.standard_normal((6, 8, 3, 3)) / 8}
    tensors["b2"] = rng.standard_normal(6)
    for name, channels in (("1", 8), ("2", 6)):
        gamma = rng.uniform(0.5, 1.5, channels)
        mean, var = rng.standard_normal(channels) * 0.3, rng.uniform(0.5, 1.5, channels)
        if regime == "signed gamma":
            gamma = gamma * np.where(np.arange(channels) % 3 == 0, -1, 1)
        if regime == "tiny variance":
            var = var * 1e-5
        if regime == "large mean":
            mean = mean * 100
        if regime == "spread":
            gamma = gamma * 10 ** rng.uniform(-3, 1, channels)
        tensors |= {f"gamma{name}": gamma, f"beta{name}": rng.standard_normal(channels), f"mean{name}": mean, f"var{name}": var}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], name="conv1"),
        onnx.helper.make_node("BatchNormalization", ["c1", "gamma1", "beta1", "mean1", "var1"], ["n1"], name="bn1"),
        onnx.helper.make_node("Relu", ["n1"], ["r1"], name="relu1"),
        onnx.helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2"),
        onnx.helper.make_node("BatchNormalization", ["c2", "gamma2", "beta2", "mean2", "var2"], ["n2"], name="bn2"),
        onnx.helper.make_node("GlobalAveragePool", ["n2"], ["g"], name="pool"),
        onnx.helper.make_node("Flatten", ["g"], ["y"], name="flat"),
    ]
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [info("x", kind, [batch, 3, size, size])],
        [info("y", kind, [batch, 6])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


WRONG = (
    "bias off by 1 %", "epsilon * 1.1", "epsilon outside the root", "channels swapped", "gamma without sign", "bias missed",
    "variance unbiased", "weights through float16", "mean missed", "beta missed", "epsilon missed",
)  # fmt: skip


def fold(graph: Graph, mistake: str = "", layer: str = "bn2") -> Graph:
    """Fold both BN of `net` into their convolutions, in place; with `mistake`, that of `layer` wrongly."""
    assert mistake in ("", *WRONG)
    for node in [node for node in graph.nodes if node.kind == "BatchNormalization"]:
        source = node.inputs[0]
        assert source is not None and source.producer is not None
        _absorb(graph, source.producer, node, mistake if node.name == layer else "")
        graph.rename(source, f"{source.name}_old")
        output = node.output.name
        graph.bypass(node)
        graph.rename(source, output)
    return graph.validate()


def _read(value: Value | None) -> Array:
    assert value is not None and value.const is not None
    return value.const.float64()


def _absorb(graph: Graph, conv: Node, norm: Node, mistake: str) -> None:
    gamma, beta, mean, var = (_read(value) for value in norm.inputs[1:5])
    weight, weight_value = _read(conv.inputs[1]), conv.inputs[1]
    bias = _read(conv.inputs[2]) if conv.input(2) is not None else np.zeros(len(weight))
    epsilon = float(norm.attrs["epsilon"])
    if mistake == "gamma without sign":
        gamma = np.abs(gamma)
    if mistake == "variance unbiased":
        var = var * SAMPLES / (SAMPLES - 1)
    epsilon *= {"epsilon * 1.1": 1.1, "epsilon missed": 0.0}.get(mistake, 1.0)
    root = np.sqrt(var) + epsilon if mistake == "epsilon outside the root" else np.sqrt(var + epsilon)
    a = gamma / root
    bias = bias * (mistake != "bias missed") - mean * (mistake != "mean missed")
    folded, shift = weight * a[:, None, None, None], a * bias + beta * (mistake != "beta missed")
    if mistake == "bias off by 1 %":
        shift = shift * 1.01
    if mistake == "channels swapped":
        folded = folded[[1, 0, *range(2, len(folded))]]
    if mistake == "weights through float16":
        folded = folded.astype(np.float16).astype(np.float64)
    assert weight_value is not None
    graph.set_input(conv, 1, graph.derived(weight_value, folded))
    like = norm.inputs[2]
    assert like is not None
    graph.set_input(conv, 2, graph.derived(like, shift, suffix="bias"))


def folded(model: onnx.ModelProto, mistake: str = "", layer: str = "bn2") -> tuple[Graph, Graph]:
    """(view as captured, view folded with float64 constants)."""
    return from_onnx(model), fold(from_onnx(model), mistake, layer)


def runner(graph: Graph) -> OnnxRunner:
    """The artefact of a view: its constants rounded, written, and loaded into the runtime."""
    twin = graph.clone()
    twin.round_constants()
    return OnnxRunner(ir.to_proto(to_model(twin)).SerializeToString())
