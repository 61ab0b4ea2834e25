"""What runs on ONNX files in a worker process: the simplifier, the checker, the runtime's own loading."""

from __future__ import annotations

import os


def simplify(source: str, target: str) -> bool:
    """onnxsim without its own BatchNormalization folding: what is left of these was left on purpose."""
    import onnx
    from onnxsim import simplify as run

    model, _ = run(source, check_n=0, skip_fuse_bn=True, certify=False, initializers_as_constants=False)
    onnx.save(model, target)
    return os.path.getsize(target) > 0


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
