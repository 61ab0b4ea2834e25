"""What tools/scoreboard runs in worker processes: other optimisers, each with its defaults, and exports of library models.

Every function takes and returns what JSON can carry (normfold.export.worker runs them).
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any


def _without_torch() -> None:
    modules: dict[str, Any] = sys.modules
    modules.setdefault("torch", None)  # these import torch where they can: that takes seconds, and nothing here needs it


def onnxsim(source: str, target: str) -> bool:
    """onnxsim with its own BatchNormalization folding."""
    _without_torch()
    import onnx
    from onnxsim import simplify

    model, _ = simplify(onnx.ModelProto.FromString(Path(source).read_bytes()), check_n=0, certify=False)
    Path(target).write_bytes(model.SerializeToString())
    return True


def onnxslim(source: str, target: str) -> bool:
    """OnnxSlim with its defaults."""
    _without_torch()
    from onnxslim import slim

    slim(source, target)
    return True


def onnxruntime(source: str, target: str, level: str) -> bool:
    """The graph that ONNX Runtime runs at one of its levels."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = target
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return True


MODELS = {
    "timm": ("resnetv2_50", "densenet121", "mixnet_s", "levit_128s", "repvit_m0_9", "efficientnet_b0", "regnety_002"),
    "torchvision": ("resnet18", "densenet121", "mobilenet_v2", "googlenet", "shufflenet_v2_x1_0", "regnet_y_400mf"),
    "transformers": ("resnet", "regnet", "mobilenet_v2", "levit"),
}
"""What `--also` exports when no names are given; transformers by the type of its configuration."""


def export(library: str, name: str, seed: int, signed: bool, target: str) -> int:
    """Write the default exporter's ONNX of a model with random weights; returns how many BatchNorm modules it has.

    Statistics and affine parameters are drawn from `seed`; signed: a third of the gammas are negative.
    """
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    model, size = _built(library, name)
    norms = [part for part in model.eval().modules() if isinstance(part, torch.nn.modules.batchnorm._NormBase)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.1)
                if signed:
                    norm.weight[torch.rand(norm.weight.shape) < 1 / 3] *= -1
    torch.onnx.export(model, (torch.randn(1, 3, size, size),), target, verbose=False, external_data=False)
    return len(norms)


def _built(library: str, name: str) -> tuple[Any, int]:
    """(the module, the side of its input image)."""
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
        return model, model.default_cfg["input_size"][-1]
    if library == "torchvision":
        import torchvision

        options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, **options), 299 if name == "inception_v3" else 224
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(name, return_dict=False)), 224
