"""The worked cases of the affine algebra: small torch networks, with gammas of any sign, zero gammas and tiny variances.

Each goes through both adapters; each result is proved by the certificate and compared with eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.capture.program import export_module
from routes import Taken, aten, by_onnx, exported, randomised

VARIANTS = ("positive", "signed", "zero", "tiny")


class Net(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, run: Callable[[Any, torch.Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


@dataclass
class Case:
    """make: a fresh network.  outcomes: of its norms, a letter each (deleted, shift, kept): one word, or one for each variant."""

    make: Callable[[], nn.Module]
    outcomes: str
    shape: tuple[int, ...] = (2, 4, 8, 8)

    def expected(self, variant: str) -> list[str]:
        words = self.outcomes.split() or [""]
        letters = words[0] if len(words) == 1 else words[VARIANTS.index(variant)]
        return [{"d": "deleted", "s": "shift", "k": "kept"}[letter] for letter in letters]


def conv(inp: int, out: int, kernel: int = 1, pad: int = 0, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inp, out, kernel, padding=pad, groups=groups, bias=bias)


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def _stream(net: Any, x: torch.Tensor) -> torch.Tensor:
    x = net.stem(x)
    for block in net.blocks:
        x = x + block[5](F.relu(block[4](block[3](F.relu(block[1](block[0](x)))))))
    return net.end(F.relu(net.last(x)))


def _preactivation() -> nn.Module:
    blocks = [nn.ModuleList([bn(6), nn.Identity(), nn.Identity(), conv(6, 6, 3, 1), bn(6), conv(6, 6, 3, 1)]) for _ in range(2)]
    return Net(_stream, stem=conv(4, 6, 3, 1), blocks=nn.ModuleList(blocks), last=bn(6), end=conv(6, 3))


def _dense(net: Any, x: torch.Tensor) -> torch.Tensor:
    x = net.stem(x)
    for norm, layer in zip(net.norms, net.layers, strict=True):
        x = torch.cat([x, layer(F.relu(norm(x)))], 1)
    return net.end(x)


def _densenet() -> nn.Module:
    norms = nn.ModuleList([bn(6 + 4 * i) for i in range(2)])
    layers = nn.ModuleList([conv(6 + 4 * i, 4, 3, 1, bias=False) for i in range(2)])
    return Net(_dense, stem=conv(4, 6), norms=norms, layers=layers, end=conv(14, 3, 3, 1))


def _splits(net: Any, x: torch.Tensor) -> torch.Tensor:
    first, second, rest = net.stem(x).split([2, 3, 4], 1)
    return net.norm(torch.cat([net.a(first), rest, net.b(second)], 1))


def _frozen(net: Any, x: torch.Tensor) -> torch.Tensor:
    return (net.conv(x) - net.mean) / net.deviation * net.gamma + net.beta


def _frozen_torchvision(net: Any, x: torch.Tensor) -> torch.Tensor:
    """torchvision.ops.FrozenBatchNorm2d, and DETR's: the scale and the bias are computed in forward."""
    weight, bias, mean, deviation = (item.reshape(1, -1, 1, 1) for item in (net.gamma, net.beta, net.mean, net.deviation))
    scale = weight * (deviation.square() + 1e-5).rsqrt()
    return net.conv(x) * scale + (bias - mean * scale)


def _frozen_parts(channels: int) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5) for name in ("mean", "deviation", "gamma", "beta")}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.norm = conv(4, 8), conv(4, 8), conv(4, 6), bn(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).flatten(2).unflatten(1, (2, -1)).transpose(2, 3) for layer in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(2, 3) * 0.5, -1) @ v
        return F.relu(self.norm(y.transpose(2, 3).reshape(x.shape[0], 6, *x.shape[2:])))


def _tied() -> nn.Module:
    """Two linear layers with one weight, each with a norm of its own behind it."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return Net(
        lambda m, x: (m.n1(m.first(x)), m.n2(m.second(torch.tanh(x)))),
        first=first, second=second, n1=nn.BatchNorm1d(6), n2=nn.BatchNorm1d(6),
    )  # fmt: skip


def _transposed(groups: int) -> nn.Module:
    return Net(lambda m, x: m.norm(m.up(x)), up=nn.ConvTranspose2d(4, 8, 3, 2, groups=groups), norm=bn(8))


CASES: dict[str, Case] = {
    **{
        f"Conv-BN-ReLU, groups {groups}": Case(
            lambda groups=groups: Net(
                lambda m, x: F.relu(m.norm(m.conv(x))), conv=conv(4, 8, 3, 1, groups, bias=groups > 1), norm=bn(8)
            ),
            "d",
        )
        for groups in (1, 2, 4)
    },
    **{
        f"BN-ReLU-Conv(pad), groups {groups}": Case(
            lambda groups=groups: Net(
                lambda m, x: m.conv(F.relu(m.norm(torch.tanh(x)))), norm=bn(4), conv=conv(4, 8, 3, 1, groups)
            ),
            "s k k k",
        )
        for groups in (1, 4)
    },
    "BN-ReLU-Conv(pad) on a residual stream": Case(_preactivation, "ddddd ddkdk ddkdk ddkdk"),
    **{
        f"Conv-ReLU-BN-Conv(pad), groups {groups}": Case(
            lambda groups=groups: Net(
                lambda m, x: m.b(m.norm(F.relu(m.a(x)))), a=conv(4, 6, 3, 1), norm=bn(6), b=conv(6, 6, 3, 1, groups)
            ),
            "d",
        )
        for groups in (1, 2, 6)
    },
    "Conv-ReLU-BN-MaxPool-Conv": Case(
        lambda: Net(lambda m, x: m.b(F.max_pool2d(m.norm(F.relu(m.a(x))), 3, 2, 1)), a=conv(4, 6), norm=bn(6), b=conv(6, 3)),
        "d k k k",
    ),
    "Concat(conv, conv)-BN": Case(
        lambda: Net(lambda m, x: m.norm(torch.cat([m.a(x), m.b(x)], 1)), a=conv(4, 3), b=conv(4, 6, 3, 1, 2), norm=bn(9)),
        "d",
    ),
    "Concat(conv, stream)-BN": Case(
        lambda: Net(
            lambda m, x: m.b(m.norm(torch.cat([m.a(x), torch.tanh(x)], 1))), a=conv(4, 3), norm=bn(7), b=conv(7, 3),
        ),
        "d",
    ),
    "DenseNet block": Case(_densenet, "sd kd kk kd"),
    "Split-...-Concat-BN": Case(
        lambda: Net(_splits, stem=conv(4, 9), a=conv(2, 2, 3, 1), b=conv(3, 3, 3, 1, 3), norm=bn(9)), "d"
    ),
    "Add(conv, conv)-BN": Case(
        lambda: Net(lambda m, x: F.relu(m.norm(m.a(x) + m.b(x))), a=conv(4, 6, 3, 1), b=conv(4, 6, groups=2), norm=bn(6)), "d"
    ),
    "BN-Flatten-Linear": Case(
        lambda: Net(lambda m, x: m.end(m.norm(torch.tanh(x)).flatten(1)), norm=bn(4), end=nn.Linear(36, 5)),
        "d",
        (2, 4, 3, 3),
    ),
    "BN-GAP-Linear": Case(
        lambda: Net(
            lambda m, x: m.end(F.adaptive_avg_pool2d(m.norm(F.relu(m.a(x))), 1).flatten(1)),
            a=conv(4, 6), norm=bn(6), end=nn.Linear(6, 3),
        ),
        "d",
    ),
    "Linear on [N, T, F]-Transpose-BN1d": Case(
        lambda: Net(lambda m, x: m.norm(m.a(x).transpose(1, 2)), a=nn.Linear(5, 7, bias=False), norm=nn.BatchNorm1d(7)),
        "d",
        (2, 3, 5),
    ),
    "Linear on [N, 6, 6]-BN1d on axis 1": Case(
        lambda: Net(lambda m, x: F.relu(m.norm(m.a(x))), a=nn.Linear(6, 6), norm=nn.BatchNorm1d(6)), "k", (2, 6, 6)
    ),
    "Linear-Reshape-BN2d": Case(
        lambda: Net(lambda m, x: m.norm(m.a(x).unflatten(1, (4, 3, 3))), a=nn.Linear(5, 36), norm=bn(4)), "d", (2, 5)
    ),
    "BN-BN": Case(lambda: Net(lambda m, x: m.n2(m.n1(m.a(x))), a=conv(4, 6), n1=bn(6), n2=bn(6)), "dd"),
    "Conv-AvgPool-BN": Case(
        lambda: Net(lambda m, x: m.norm(F.avg_pool2d(m.a(x), 3, 2, 1)), a=conv(4, 6, groups=2), norm=bn(6)), "s"
    ),
    "Conv-Resize-BN": Case(
        lambda: Net(
            lambda m, x: m.norm(F.interpolate(m.a(x), scale_factor=2.0, mode="bilinear")), a=conv(4, 6, 3), norm=bn(6)
        ),
        "d",
    ),
    **{f"ConvTranspose-BN, groups {groups}": Case(lambda groups=groups: _transposed(groups), "d") for groups in (1, 2, 4)},
    **{
        f"BN-ConvTranspose, groups {groups}": Case(
            lambda groups=groups: Net(
                lambda m, x: m.up(m.norm(F.relu(m.a(x)))),
                a=conv(4, 6), norm=bn(6), up=nn.ConvTranspose2d(6, 6, 3, 2, 1, groups=groups),
            ),
            "d",
        )
        for groups in (1, 2, 6)
    },
    "BN-LSTM": Case(
        lambda: Net(
            lambda m, x: m.cell(m.norm(torch.tanh(x)).transpose(1, 2))[0],
            norm=nn.BatchNorm1d(5), cell=nn.LSTM(5, 4, batch_first=True, bidirectional=True),
        ),
        "d",
        (2, 5, 6),
    ),
    "LSTM-BN-Linear": Case(
        lambda: Net(
            lambda m, x: m.end(m.norm(m.cell(x)[0].transpose(1, 2)).transpose(1, 2)),
            cell=nn.LSTM(5, 4, batch_first=True), norm=nn.BatchNorm1d(4), end=nn.Linear(4, 3),
        ),
        "d",
        (2, 6, 5),
    ),
    "frozen BN arithmetic": Case(lambda: Net(_frozen, conv=conv(4, 6, 3, 1), **_frozen_parts(6)), ""),
    "frozen BN arithmetic, computed": Case(lambda: Net(_frozen_torchvision, conv=conv(4, 6, 3, 1), **_frozen_parts(6)), ""),
    "preprocessing arithmetic in front of an unpadded conv": Case(
        lambda: Net(lambda m, x: m.conv((x - m.mean) / m.deviation), conv=conv(4, 6, 3), **_frozen_parts(4)), ""
    ),
    "BN after attention": Case(_Attention, "d", (2, 4, 3, 3)),
    "one conv read twice with two BN": Case(
        lambda: Net(lambda m, x: (m.n1(m.a(x)), m.n2(m.a(x * 2))), a=conv(4, 6, 3, 1), n1=bn(6), n2=bn(6)), "dk"
    ),
    "a tied weight": Case(_tied, "dk", (3, 6)),
    "a conv whose output is also a graph output": Case(
        lambda: Net(lambda m, x: (lambda y: (y, m.norm(y)))(m.a(x)), a=conv(4, 6), norm=bn(6)), "k"
    ),
    "one gamma 1e-7 on a shared stream": Case(
        lambda: Net(
            lambda m, x: (lambda y: m.b(F.relu(y + m.c(F.relu(m.norm(y))))))(m.a(x)),
            a=conv(4, 6), norm=bn(6), c=conv(6, 6), b=conv(6, 3),
        ),
        "s k k k",
    ),
}  # fmt: skip


def network(name: str, variant: str) -> nn.Module:
    torch.manual_seed(0)
    module = randomised(CASES[name].make(), signed=variant != "positive")
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                if variant == "zero":
                    norm.weight[::3] = 0
                if variant == "tiny":
                    norm.running_var[::3] = 1e-10
                    norm.eps = 1e-12
                if "1e-7" in name:
                    norm.weight[1] = 1e-7
    return module


def judge(taken: Taken, name: str, variant: str) -> None:
    assert taken.error <= 2e-5
    assert taken.outcomes == CASES[name].expected(variant), taken.codes
    if "arithmetic" in name:
        assert not any(node.kind in ("Add", "Sub", "Mul", "Div") for node in taken.outcome.graph.nodes)


# torch.export and the ONNX exporter take nearly all of the time: each case is exported once, and its variants only put in their
# parameters.  "tiny" has an epsilon of its own, which is in the graph.


@cache
def _program(name: str, tiny: bool) -> Any:
    return export_module(network(name, "tiny" if tiny else "signed"), (torch.randn(CASES[name].shape),))


@cache
def _model(name: str) -> onnx.ModelProto:
    return exported(network(name, "signed"), torch.randn(CASES[name].shape))


def program_of(name: str, variant: str, module: nn.Module) -> Any:
    """The exported case with the parameters of `module`."""
    program, state = _program(name, variant == "tiny"), module.state_dict(keep_vars=True)
    assert program.state_dict.keys() <= state.keys()
    program.state_dict.update({key: state[key] for key in program.state_dict})
    return program


def model_of(name: str, module: nn.Module) -> onnx.ModelProto | None:
    """The case as ONNX with the parameters of `module`; None where the file does not hold each under its name."""
    model = onnx.ModelProto()
    model.CopyFrom(_model(name))
    state = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    found = {item.name: item for item in model.graph.initializer}
    if not state.keys() <= found.keys():
        return None
    for key, value in state.items():
        found[key].CopyFrom(onnx.numpy_helper.from_array(value.numpy(), key))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_through_export(name: str, variant: str) -> None:
    module = network(name, variant)
    judge(aten(module, torch.randn(CASES[name].shape), program=program_of(name, variant, module)), name, variant)


@pytest.mark.parametrize("variant", ["signed", "zero"])
@pytest.mark.parametrize("name", CASES)
def test_through_onnx(name: str, variant: str) -> None:
    module = network(name, variant)
    judge(by_onnx(module, torch.randn(CASES[name].shape), model=model_of(name, module)), name, variant)
