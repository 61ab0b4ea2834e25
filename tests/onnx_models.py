"""Small ONNX models for tests, and the ways to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from normfold.graph import Array, Graph
from normfold.verify.evaluate import run

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def info(name: str, shape: Sequence[Any] | None, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 20,
    ir: int = 9,
    listed: Sequence[str] = (),
    value_info: Sequence[onnx.ValueInfoProto] = (),
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """listed: initializers that are also graph inputs."""
    weights = weights or {}
    extra = [info(name, list(weights[name].shape), helper.np_dtype_to_tensor_dtype(weights[name].dtype)) for name in listed]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [*inputs, *extra],
        list(outputs),
        [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in weights.items()],
        value_info=list(value_info),
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, ir_version=ir, opset_imports=opsets, functions=list(functions))


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_ort(source: onnx.ModelProto | bytes | str, feeds: Mapping[str, Array]) -> list[Array]:
    """ONNX Runtime with its optimiser off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    data = source.SerializeToString() if isinstance(source, onnx.ModelProto) else source
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, dict(feeds))


def run_view(graph: Graph, feeds: Mapping[str, Array]) -> list[Array]:
    """The view in float64."""
    wide = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    return list(run(graph, wide).values())


def conv_bn(**options: Any) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu on a dynamic batch, with PyTorch's names."""
    weights = {
        "stem.conv.weight": floats(4, 3, 3, 3),
        "stem.bn.weight": floats(4, seed=1),
        "stem.bn.bias": floats(4, seed=2),
        "stem.bn.running_mean": floats(4, seed=3),
        "stem.bn.running_var": np.abs(floats(4, seed=4)) + 0.5,
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem.conv.weight"], ["c"], "conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", *list(weights)[1:]], ["n"], "bn", epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    return model(nodes, [info("x", ["N", 3, 8, 8])], [info("y", ["N", 4, 8, 8])], weights, **options)
