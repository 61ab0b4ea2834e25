"""What runs on ONNX files in a worker process: the simplifier, the checker, the runtime's own loading."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def simplify(source: str, target: str) -> bool:
    """onnxsim without its own BatchNormalization folding: what is left of these was left on purpose.

    Weights that callers may override are no constants to it.
    """
    import onnx

    modules: dict[str, Any] = sys.modules
    modules.setdefault("torch", None)  # onnxsim imports torch where it can: that takes seconds, and nothing here needs it
    from onnxsim import simplify as run

    model = onnx.ModelProto.FromString(Path(source).read_bytes())
    if any(item.data_location == onnx.TensorProto.EXTERNAL for item in model.graph.initializer):
        raise ValueError("the weights lie in external data, which onnxsim would have to read as a whole")
    listed = {item.name for item in model.graph.input}
    held = [item.name for item in model.graph.initializer]
    overridable = any(name in listed for name in held) and not (model.ir_version < 4 and all(name in listed for name in held))
    model, _ = run(model, check_n=0, skip_fuse_bn=True, certify=False, initializers_as_constants=not overridable)
    Path(target).write_bytes(model.SerializeToString(deterministic=True))
    return True


def count(path: str) -> dict[str, int]:
    """How often each op type stands in an ONNX file, its sub-graphs and functions included; weights are not looked at."""
    import onnx

    model = onnx.ModelProto.FromString(Path(path).read_bytes())
    found: dict[str, int] = {}
    nodes = [node for part in (model.graph, *model.functions) for node in part.node]
    while nodes:
        node = nodes.pop()
        found[node.op_type] = found.get(node.op_type, 0) + 1
        for attribute in node.attribute:
            nodes += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]
    return dict(sorted(found.items()))


def check(path: str) -> str:
    """onnx.checker with shape inference; returns "" or the complaint."""
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().splitlines()[0][:300]
    return ""


def load(path: str) -> str:
    """A session of ONNX Runtime at its default level; returns "" or the complaint."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        return str(error).strip().splitlines()[0][:300]
    return ""
