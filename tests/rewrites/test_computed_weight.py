"""Layers whose weight is computed when the model runs: that is why a norm beside them stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.rewrites.tracing import watching
from routes import Taken, aten, by_onnx, randomised


class Rounded(nn.Linear):
    """Fake quantisation: the weight is rounded at every call."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, torch.fake_quantize_per_tensor_affine(self.weight, 0.01, 0, -128, 127), self.bias)


class Chosen(nn.Conv2d):
    """The weight depends on the input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * torch.sigmoid(input.mean()), self.bias)


class Around(nn.Module):
    """A norm between two layers, or (last) between one and an activation."""

    def __init__(self, layer: Callable[[int, int], nn.Module], norm: type[nn.Module], *, last: bool) -> None:
        super().__init__()
        self.one, self.bn = layer(3, 4), norm(4)
        self.two = nn.ReLU() if last else layer(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.bn(self.one(x)))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("route", [aten, by_onnx])
def test_a_rounded_weight_is_the_reason(route: Callable[..., Taken], last: bool) -> None:
    taken = route(randomised(Around(Rounded, nn.BatchNorm1d, last=last)), torch.randn(2, 3))
    assert taken.codes == ["computed-weight"] and taken.error < 1e-6
    (finding,) = taken.outcome.findings
    assert finding.refusal is not None and "(one), whose weight is computed" in finding.refusal.reason
    assert ("graph output" in finding.refusal.reason) == last and "quantising" in finding.refusal.fix


def test_a_weight_that_depends_on_the_input() -> None:
    module = randomised(Around(lambda i, o: Chosen(i, o, 1), nn.BatchNorm2d, last=True))
    assert aten(module, torch.randn(2, 3, 4, 4)).codes == ["computed-weight"]


def test_one_side_is_enough() -> None:
    module = Around(Rounded, nn.BatchNorm1d, last=False)
    module.two = nn.Linear(4, 2)
    assert aten(randomised(module), torch.randn(2, 3)).outcomes == ["deleted"]


def test_the_explanation_names_it() -> None:
    with watching(["bn"]) as seen:
        aten(randomised(Around(Rounded, nn.BatchNorm1d, last=True)), torch.randn(2, 3))
    (trace,) = seen.values()
    assert [(stop.side, stop.code) for stop in trace.stops] == [("input", "computed-weight"), ("output", "graph-output")]
    assert trace.stops[0].name == "one"
