"""Golden texts: what a view looks like before and after.  `REGOLD=1 pytest tests/test_golden.py` writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from normfold.capture.aten import from_aten
from normfold.capture.onnx import from_onnx
from normfold.capture.program import export_module
from normfold.capture.tidy import tidy
from normfold.graph import Graph, to_text
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from routes import exported, randomised

GOLDEN = Path(__file__).parent / "golden"


class Block(nn.Module):
    """Conv-BN-ReLU, a pre-activation residual branch, pooling, a linear layer behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.norm, self.branch = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head_norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.stem(image))
        x = x + self.branch(torch.relu(self.norm(x)))
        return self.head(self.head_norm(x.mean((2, 3))))


def graphs(route: str) -> Graph:
    module, x = randomised(Block(), signed=False), torch.zeros(2, 3, 8, 8)
    batch = ({0: torch.export.Dim("N")},)
    if route == "aten":
        graph = from_aten(export_module(module, (x,), dynamic_shapes=batch))
    else:
        graph = from_onnx(exported(module, x, dynamic=batch))
    tidy(graph)
    return graph


@pytest.mark.parametrize("route", ["aten", "onnx"])
def test_golden(route: str) -> None:
    before = graphs(route)
    after = rewrite(before, Options()).graph
    text = f"# before\n{to_text(before)}\n# after\n{to_text(after)}"
    file = GOLDEN / f"block_{route}.txt"
    if os.environ.get("REGOLD"):
        file.write_text(text)
    assert text == file.read_text()
