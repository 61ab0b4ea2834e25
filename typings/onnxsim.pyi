# What normfold calls of onnxsim, which ships no types.
from collections.abc import Sequence

import onnx

def simplify(
    model: str | onnx.ModelProto,
    check_n: int = 0,
    perform_optimization: bool = True,
    skip_fuse_bn: bool = False,
    *,
    skipped_optimizers: list[str] | None = None,
    skip_constant_folding: bool = False,
    skip_shape_inference: bool = False,
    include_subgraph: bool = False,
    unused_output: Sequence[str] | None = None,
    tensor_size_threshold: str = "1.5GB",
    mutable_initializer: bool = False,
    initializers_as_constants: bool = True,
    certify: bool | None = None,
) -> tuple[onnx.ModelProto, bool]: ...
