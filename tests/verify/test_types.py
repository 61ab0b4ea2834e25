"""The gates on models stored in each float type, by the torch route."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normfold.graph import Graph
from normfold.verify import TorchRunner, feeds, judge


def program(dtype: str) -> Any:
    import torch
    from torch import nn

    from normfold.capture.program import export_module

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_()
    kind = getattr(torch, dtype)
    return export_module(net.to(kind).eval(), (torch.randn(2, 3, 10, 10, dtype=kind),))


def artefact(graph: Graph) -> TorchRunner:
    from normfold.capture.aten_write import to_program

    rounded = graph.clone()
    rounded.round_constants()
    return TorchRunner(to_program(rounded))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_right_fold_passes_and_a_wrong_one_fails_in_every_type(dtype: str) -> None:
    from normfold.capture.aten import from_aten
    from normfold.rewrites import affine
    from normfold.rewrites.rewrite import Policy

    source = program(dtype)
    before, after = from_aten(source), affine.run(from_aten(source), Policy("norms")).graph
    assert not any(node.kind == "BatchNormalization" for node in after.nodes)
    on = feeds(before)
    right = judge(before, after, TorchRunner(source), artefact(after), on)
    assert right.verdict == "same", right.failed[:3]
    assert set(right.ran) >= {"large", "denormal"}
    conv = [node for node in after.nodes if node.kind == "Conv"][-1]
    bias = conv.inputs[2]
    assert bias is not None
    assert bias.const is not None
    exact = bias.const.float64()
    for factor, gates in ((1.01, {"certificate", "G1"}), (1.3, {"certificate", "G1", "G3"})):
        after.set_input(conv, 2, after.derived(bias, np.asarray(exact * factor)))
        wrong = judge(before, after, TorchRunner(source), artefact(after), on[:1])
        assert gates <= {item.gate for item in wrong.failed}
