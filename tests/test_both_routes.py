"""ONNX and ATen routes decide alike, and put the same numbers into the same places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.graph import Graph
from normfold.load import load
from normfold.record import Record
from routes import aten, by_onnx, randomised


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8 + 4 * i) for i in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3)])
        self.end = nn.Conv2d(20, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.end(x)


class _Shared(nn.Module):
    """One Conv-BN-ReLU stack at two sizes, then a transposed conv."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.norm = nn.ConvTranspose2d(16, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(self.stack(F.avg_pool2d(x, 2)), scale_factor=2.0, mode="nearest")
        return torch.sigmoid(self.norm(self.up(torch.cat([self.stack(x), small], 1))))


class _Mixed(nn.Module):
    """Linear on [N, T, C] with a transposed norm, a reshape, a shuffle and frozen arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1, self.fc2, self.bn2 = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(48, 36), nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.conv = nn.Conv2d(4, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.bn1(self.fc1(x).transpose(1, 2))).flatten(1)
        x = self.bn2(self.fc2(x).reshape(-1, 4, 3, 3)) * self.scale - 0.5
        return self.conv(x.reshape(-1, 2, 2, 3, 3).transpose(1, 2).reshape(-1, 4, 3, 3))


def _trained(name: str) -> Any:
    def make(models_dir: Any) -> nn.Module:
        return load(models_dir / f"{name}.pt", record=Record()).module.eval()

    return make


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "digits_convbn": (_trained("digits_convbn"), (2, 1, 8, 8)),
    "digits_preact": (_trained("digits_preact"), (2, 1, 8, 8)),
    "dense": (lambda _: randomised(_Dense(), signed=False), (2, 3, 8, 8)),
    "dense signed": (lambda _: randomised(_Dense()), (2, 3, 8, 8)),
    "shared": (lambda _: randomised(_Shared()), (2, 3, 8, 8)),
    "mixed": (lambda _: randomised(_Mixed()), (2, 6, 5)),
}


@pytest.mark.parametrize("objective", ["norms", "latency"])
@pytest.mark.parametrize("case", CASES)
def test_routes_agree(case: str, objective: str, models_dir: Any) -> None:
    make, shape = CASES[case]
    module, x = make(models_dir), torch.randn(shape)
    first, second = aten(module, x, objective=objective), by_onnx(module, x, objective=objective)
    assert first.error <= 2e-5 and second.error <= 2e-5
    assert first.outcomes == second.outcomes
    assert first.codes == second.codes
    for one, two in zip(_parameters(first.outcome.graph), _parameters(second.outcome.graph), strict=True):
        _close(*one, *two)


def _parameters(graph: Graph) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(kind, weight, bias) of every linear layer, in order, as they are stored; ONNX's MatMul + Add counts as one Gemm."""
    found: list[tuple[str, np.ndarray, np.ndarray]] = []
    for node in graph.nodes:
        if node.kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        stored = [
            value.const.rounded().read() if value is not None and value.const is not None else None for value in node.inputs
        ]
        weight = next(array for array in stored[1:] if array is not None)
        bias = stored[2] if len(stored) > 2 and stored[2] is not None else None
        if node.kind == "MatMul":
            add = node.output.uses[0].node
            bias = next(v.const.rounded().read() for v in add.inputs if v is not None and v.const is not None)
        if node.kind in ("Gemm", "MatMul"):
            weight = weight if node.attrs.get("transB") else weight.T
        outputs = weight.shape[1] * node.attrs.get("group", 1) if node.kind == "ConvTranspose" else weight.shape[0]
        kind = "Gemm" if node.kind == "MatMul" else node.kind
        found.append((kind, weight, np.zeros(outputs, np.float32) if bias is None else bias.ravel()))
    return found


def _close(kind: str, weight: np.ndarray, bias: np.ndarray, kind2: str, weight2: np.ndarray, bias2: np.ndarray) -> None:
    """Weights to one ulp; biases to one ulp of |b| + sum |W t| (epsilon is float32 in ONNX, double in ATen)."""
    assert kind == kind2 and weight.shape == weight2.shape
    assert np.all(np.abs(weight.astype(np.float64) - weight2) <= np.spacing(np.maximum(np.abs(weight), np.abs(weight2))))
    axes = tuple(range(1, weight.ndim))
    size = np.abs(bias) + (np.abs(weight).sum(axis=axes).max() if kind == "ConvTranspose" else np.abs(weight).sum(axis=axes))
    assert np.all(np.abs(bias.astype(np.float64) - bias2) <= np.spacing(size.astype(np.float32)))
