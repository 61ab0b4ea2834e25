"""gamma and beta of norms with run-time statistics move into their readers, through both adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.graph import Node
from routes import Taken, aten, by_onnx


class Attention(nn.Module):
    """Pre-norm: q, k and v read one LayerNorm; with or without biases."""

    def __init__(self, norm: nn.Module, bias: bool = True, features: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, features), norm
        self.q, self.k, self.v = (nn.Linear(features, features, bias=bias) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(self.stem(x))
        y = self.norm(x)
        weights = torch.softmax(self.q(y) @ self.k(y).transpose(1, 2), dim=-1)
        return x + torch.tanh(weights @ self.v(y))


def spread(norm: Any) -> Any:
    """Signed gammas and betas."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.5, 2, norm.weight.numel()).reshape(norm.weight.shape) + 0.01)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.linspace(1, -1, norm.bias.numel()).reshape(norm.bias.shape))
    return norm


def both(module: nn.Module, x: torch.Tensor, objective: str = "norms") -> list[Taken]:
    taken = [aten(module.eval(), x, objective=objective), by_onnx(module.eval(), x, objective=objective)]
    for item in taken:
        assert item.error <= 5e-6
    return taken


def norms(taken: Taken) -> list[Node]:
    kinds = ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")
    return [node for node in taken.outcome.graph.nodes if node.kind in kinds]


def is_plain(node: Node) -> bool:
    """gamma is 1 and beta absent or 0."""
    gamma, beta = node.inputs[1], node.input(2)
    assert gamma is not None and gamma.const is not None
    return bool(np.all(gamma.const.read() == 1)) and (beta is None or (beta.const is not None and not beta.const.read().any()))


def moved(taken: Taken) -> list[str]:
    return [item.detail for item in taken.outcome.applied if item.rule == "norm-affine"]


def test_layer_norm_into_q_k_v() -> None:
    for taken in both(Attention(spread(nn.LayerNorm(8))), torch.randn(2, 6, 5)):
        (norm,) = norms(taken)
        assert is_plain(norm) and norm.input(2) is None
        (detail,) = moved(taken)
        assert all(f"{name}.bias" in detail for name in "qkv")
        assert len(taken.outcome.graph.nodes) <= len(taken.before.nodes)


def test_a_beta_that_would_need_new_biases_stays_with_its_gamma() -> None:
    for taken in both(Attention(spread(nn.LayerNorm(8)), bias=False), torch.randn(2, 6, 5)):
        assert moved(taken) == [] and not is_plain(norms(taken)[0])


def test_without_beta_no_bias_is_needed() -> None:
    norm = spread(nn.LayerNorm(8, bias=False))
    for taken in both(Attention(norm, bias=False), torch.randn(2, 6, 5)):
        assert len(moved(taken)) == 1 and is_plain(norms(taken)[0])


def test_rms_norm() -> None:
    taken = aten(Attention(spread(nn.RMSNorm(8, eps=1e-5))).eval(), torch.randn(2, 6, 5))
    assert taken.error <= 5e-6 and len(moved(taken)) == 1 and is_plain(norms(taken)[0])


@pytest.mark.parametrize(
    "norm", [lambda: nn.InstanceNorm2d(6, affine=True), lambda: nn.GroupNorm(3, 6)], ids=["instance", "group"]
)
def test_planes_into_a_convolution(norm: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), spread(norm()), nn.Conv2d(6, 4, 3), nn.Sigmoid()).eval()
    taken = aten(module, torch.randn(2, 3, 9, 9))
    assert taken.error <= 5e-6 and len(moved(taken)) == 1 and is_plain(norms(taken)[0])


def test_padding_stops_a_beta() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), spread(nn.InstanceNorm2d(6, affine=True)), nn.Conv2d(6, 4, 3, padding=1), nn.Sigmoid()
    )
    taken = aten(module.eval(), torch.randn(2, 3, 9, 9))
    assert moved(taken) == []


class Tied(nn.Module):
    """The output layer shares its weight with the embedding (QuaRot, issue 30): the twin must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), spread(nn.LayerNorm(8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(torch.tanh(self.table(tokens))))


def test_a_tied_weight_stays() -> None:
    tokens = torch.arange(10).reshape(2, 5)
    taken = aten(Tied().eval(), tokens)
    assert taken.error <= 5e-6 and moved(taken) == []


def test_a_zero_gamma_and_another_reader_stop_it() -> None:
    norm = spread(nn.LayerNorm(8))
    with torch.no_grad():
        norm.weight[2] = 0
    assert moved(aten(Attention(norm).eval(), torch.randn(2, 6, 5))) == []

    class Read(Attention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(torch.sin(self.stem(x)))
            return torch.tanh(self.q(y)) + torch.tanh(y)

    assert moved(aten(Read(spread(nn.LayerNorm(8))).eval(), torch.randn(2, 6, 5))) == []


def test_the_default_objective_leaves_it() -> None:
    for taken in both(Attention(spread(nn.LayerNorm(8))), torch.randn(2, 6, 5), objective="latency"):
        assert moved(taken) == [] and not is_plain(norms(taken)[0])
