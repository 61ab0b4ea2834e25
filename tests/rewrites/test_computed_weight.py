"""Layers whose weight is computed in forward: ahead, where constants alone decide it; else a norm beside them stays for that."""

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


class RoundedByChannel(nn.Linear):
    """Fake quantisation with a scale a channel, as torch's default configurations have it."""

    def forward(self, input: Tensor) -> Tensor:
        scale, zero = torch.linspace(0.01, 0.02, len(self.weight)), torch.zeros(len(self.weight), dtype=torch.int32)
        return F.linear(input, torch.fake_quantize_per_channel_affine(self.weight, scale, zero, 0, -128, 127), self.bias)


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019) at every call, in one of the ways in which models write it."""

    def __init__(self, inputs: int, outputs: int, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inputs, outputs, 3)
        self.way = way

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.way(self.weight), self.bias)


def by_std(w: Tensor) -> Tensor:
    return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)


def by_var_mean(w: Tensor) -> Tensor:
    var, mean = torch.var_mean(w, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (w - mean) * torch.rsqrt(var + 1e-5)


def by_batch_norm(w: Tensor) -> Tensor:
    return F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


def by_weight_norm(w: Tensor) -> Tensor:
    return torch.ops.aten._weight_norm.default(w, torch.arange(1.0, 1 + len(w)).view(-1, 1, 1, 1), 0)


def by_largest_singular_value(w: Tensor) -> Tensor:
    return w / torch.linalg.matrix_norm(w.flatten(1), 2)


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
@pytest.mark.parametrize(("route", "layer"), [(aten, Rounded), (by_onnx, Rounded), (aten, RoundedByChannel)])
def test_a_rounded_weight_is_the_reason(route: Callable[..., Taken], layer: type[nn.Linear], last: bool) -> None:
    taken = route(randomised(Around(layer, nn.BatchNorm1d, last=last)), torch.randn(2, 3))
    assert taken.codes == ["computed-weight"] and taken.error < 1e-6
    (finding,) = taken.outcome.findings
    assert finding.refusal is not None and "(one), whose weight is computed" in finding.refusal.reason
    assert ("graph output" in finding.refusal.reason) == last and "quantising" in finding.refusal.fix


def test_a_weight_that_depends_on_the_input() -> None:
    module = randomised(Around(lambda i, o: Chosen(i, o, 1), nn.BatchNorm2d, last=True))
    assert aten(module, torch.randn(2, 3, 4, 4)).codes == ["computed-weight"]


@pytest.mark.parametrize("way", [by_std, by_var_mean, by_batch_norm, by_weight_norm, by_largest_singular_value])
def test_what_is_made_of_the_weight_alone_is_computed_ahead(way: Callable[[Tensor], Tensor]) -> None:
    module = randomised(Around(lambda i, o: Standardised(i, o, way), nn.BatchNorm2d, last=True))
    taken = aten(module, torch.randn(2, 3, 5, 5))
    assert taken.outcomes == ["deleted"] and taken.error < 1e-6
    assert [node.kind for node in taken.outcome.graph.nodes] == ["Conv", "Relu"]


def test_what_is_made_of_the_input_is_not() -> None:
    class Standardise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return by_std(x)

    assert "aten::std.dim" in [node.kind for node in aten(Standardise(), torch.randn(2, 3, 5, 5)).outcome.graph.nodes]


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
