"""Every spelling: the kind it becomes, and that the kind computes in float64 what torch computes in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.capture.aten import from_aten
from normfold.capture.aten_inputs import flatten_inputs, flatten_outputs, user_outputs
from normfold.capture.aten_write import to_program
from normfold.capture.program import export_module
from normfold.graph import Graph, is_float
from normfold.verify.evaluate import run


class Calls(nn.Module):
    """A module of one function over its inputs."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | torch.Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def kinds_by_output(graph: Graph) -> list[str]:
    """The kind of the node behind each user output (a constant for what is none)."""
    return [value.producer.kind if value.producer else "input" for value in user_outputs(graph)]


def judge(module: nn.Module, args: tuple[torch.Tensor, ...], dynamic_shapes: Any = None) -> Graph:
    """Capture; compare the view in float64 with the module, kernels with fallbacks, and the written program with the captured."""
    module.eval()
    program = export_module(module, args, dynamic_shapes=dynamic_shapes)
    graph = from_aten(program).validate()
    with torch.no_grad():
        eager = flatten_outputs(graph, module(*args))
        exported = flatten_outputs(graph, program.module()(*args))
        written = flatten_outputs(graph, to_program(graph).module()(*args))
    for name, value in exported.items():
        assert np.array_equal(written[name], value, equal_nan=True), name
    feeds = flatten_inputs(program, args)
    values = run(graph, feeds, watch=[value.name for node in graph.nodes for value in node.outputs])
    for value in user_outputs(graph):
        error = np.abs(values[value.name].astype(np.float64) - eager[value.name].astype(np.float64))
        assert values[value.name].shape == eager[value.name].shape, value.name
        assert np.all(error <= 2e-5 * (1 + np.abs(eager[value.name]))), (value.name, error.max())
    double = {name: array.astype(np.float64) if is_float(array.dtype) else array for name, array in feeds.items()}

    def read(value: Any) -> Any:
        if value is None:
            return None
        return value.const.float64() if value.const is not None else {**double, **values}[value.name]

    for node in graph.nodes:
        if node.fallback is None or node.kind in ("Cast", "aten::state"):
            continue
        for value, array in zip(node.outputs, node.fallback([read(item) for item in node.inputs]), strict=True):
            came = values[value.name]
            assert array.dtype == (np.float64 if is_float(value.dtype) else value.dtype), (node, array.dtype)
            assert array.shape == came.shape, node
            assert np.allclose(array, came, rtol=1e-9, atol=1e-10, equal_nan=True), node  # softplus is cut off at 20 in torch
    return graph


x4 = torch.linspace(-2, 2, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6).sin() * 2
x3 = x4[:, :, :, 0].contiguous()
x2 = x3[:, :, 0].contiguous()


def test_convolutions():
    def function(m: Any, x: torch.Tensor, s: torch.Tensor, v: torch.Tensor) -> Any:
        return (
            m.plain(x),
            m.same(x),
            m.even(x),
            m.valid(x),
            m.reflect(x),
            m.up(x),
            m.one(s),
            m.three(v),
            m.grouped(x),
            torch.convolution(x, m.plain.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            torch.convolution(x, m.up.weight, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 2),
            m.up1(s),
        )

    module = Calls(
        function,
        plain=nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False),
        same=nn.Conv2d(4, 5, 3, padding="same", dilation=2),
        even=nn.Conv2d(4, 5, (4, 3), padding="same"),
        valid=nn.Conv2d(4, 5, 3, padding="valid"),
        reflect=nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"),
        up=nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        one=nn.Conv1d(4, 5, 3, dilation=2),
        three=nn.Conv3d(2, 3, 2),
        grouped=nn.Conv2d(4, 8, 3, groups=4, padding=(1, 2)),
        up1=nn.ConvTranspose1d(4, 3, 2),
    )
    graph = judge(module, (x4, x3, torch.randn(1, 2, 3, 4, 5)))
    conv, up = "Conv", "ConvTranspose"
    assert kinds_by_output(graph) == [conv, conv, conv, conv, conv, up, conv, conv, conv, conv, up, up]
    pads = {node.module: node.attrs["pads"] for node in graph.nodes if node.kind == conv}
    assert pads["same"] == (2, 2, 2, 2)
    assert pads["even"] == (1, 1, 2, 1)
    assert pads["valid"] == (0, 0, 0, 0)


def test_a_convolution_without_batch_axis_stays_opaque():
    graph = judge(Calls(lambda m, x: m.conv(x), conv=nn.Conv2d(4, 5, 3)), (x4[0].contiguous(),))
    assert "Conv" not in {node.kind for node in graph.nodes if node.outputs[0].rank == 3}


def test_matrix_products():
    def function(m: Any, x: torch.Tensor, v: torch.Tensor) -> Any:
        w = m.linear.weight
        return (
            m.linear(x),
            m.bare(v),
            torch.addmm(m.linear.bias, x, w.t(), beta=0.5, alpha=2.0),
            x @ w.t(),
            torch.bmm(v, v.transpose(1, 2)),
            torch.mv(x, w[0]),
            torch.baddbmm(v, v, m.square.expand(2, 6, 6)),
            torch.einsum("bij,kj->bik", v, m.square),
        )

    module = Calls(function, linear=nn.Linear(4, 5), bare=nn.Linear(6, 3, bias=False), square=torch.randn(6, 6))
    graph = judge(module, (x2, x3))
    kinds = kinds_by_output(graph)
    assert kinds[:7] == ["Gemm", "Gemm", "Gemm", "MatMul", "MatMul", "MatMul", "aten::baddbmm"]
    gemms = [node for node in graph.nodes if node.kind == "Gemm"]
    assert [node.attrs["transB"] for node in gemms] == [1, 1, 0]
    assert (gemms[2].attrs["alpha"], gemms[2].attrs["beta"]) == (2.0, 0.5)


def test_norms():
    def function(m: Any, x: torch.Tensor, v: torch.Tensor) -> Any:
        return (
            m.bn(x),
            m.bare(x),
            m.tracked(x),
            m.instance(x),
            m.group(x),
            m.layer(v),
            m.plain_layer(v),
            m.rms(v),
            F.layer_norm(v, (4, 6), eps=1e-3),
            F.rms_norm(v, (6,), eps=1e-2),
            m.batch(x),
        )

    module = Calls(
        function,
        bn=nn.BatchNorm2d(4, eps=1e-3),
        bare=nn.BatchNorm2d(4, affine=False),
        tracked=nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        instance=nn.InstanceNorm2d(4),
        group=nn.GroupNorm(2, 4),
        layer=nn.LayerNorm(6, bias=False),
        plain_layer=nn.LayerNorm((4, 6), elementwise_affine=False),
        rms=nn.RMSNorm(6),
        batch=nn.BatchNorm2d(4, track_running_stats=False),
    )
    for part in module.modules():
        for name in ("running_var", "weight"):
            if getattr(part, name, None) is not None:
                with torch.no_grad():
                    getattr(part, name).uniform_(0.5, 2.0)
    graph = judge(module, (x4, x3))
    bn, layer, rms = "BatchNormalization", "LayerNormalization", "RMSNormalization"
    assert kinds_by_output(graph) == [
        *(bn, bn, bn, "InstanceNormalization", "GroupNormalization", layer, layer, rms, layer, rms),
        "aten::_native_batch_norm_legit.no_stats",
    ]
    by_module = {node.module: node for node in graph.nodes}
    assert by_module["bn"].attrs["epsilon"] == 1e-3
    assert by_module["bn"].attrs["training_mode"] == 0
    assert [value.param for value in by_module["tracked"].inputs[1:]] == [
        "tracked.weight", "tracked.bias", "tracked.running_mean", "tracked.running_var",
    ]  # fmt: skip
    assert np.array_equal(by_module["bare"].inputs[1].const.read(), np.ones(4, np.float32))
    assert len(by_module["layer"].inputs) == 2
    assert by_module["plain_layer"].attrs["axis"] == 1
    assert by_module["rms"].attrs["epsilon"] == pytest.approx(float(np.finfo(np.float32).eps), rel=0)


def test_layout():
    def function(m: Any, x: torch.Tensor) -> Any:
        first, second = x.split([1, 3], dim=1)
        parts = x.chunk(2, -1)
        unbound = x.unbind(1)
        return (
            x.flatten(1),
            x.reshape(2, -1, 3),
            x.permute(0, 3, 1, 2),
            x.transpose(1, -1),
            x.movedim(1, -1),
            x[:, :1].squeeze(1),
            x.unsqueeze(-1),
            x[:, 1:4:2],
            x[:, -1],
            second,
            parts[1],
            torch.cat([first, second, x], 1),
            torch.stack([first, first], 2),
            unbound[3],
            x[:, :1].expand(2, 4, 6, 6),
            x.repeat(1, 2, 1, 1),
            torch.index_select(x, 1, m.index),
            x[:, m.index],
            F.pixel_shuffle(x, 2),
            x.unflatten(1, (2, 2)),
            x.mT,
            x.squeeze(1),
            torch.gather(x, 1, m.places),
            F.pixel_unshuffle(x, 2),
            x.flip(1),
            F.channel_shuffle(x, 2),
        )

    module = Calls(function, index=torch.tensor([2, 0]), places=torch.zeros(2, 1, 6, 6, dtype=torch.int64))
    graph = judge(module, (x4,))
    assert kinds_by_output(graph) == [
        "Reshape", "Reshape", "Transpose", "Transpose", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Split",
        "Concat", "Concat", "Gather", "Expand", "Tile", "Gather", "Gather", "DepthToSpace", "Reshape", "Transpose", "Identity",
        "GatherElements", "aten::pixel_unshuffle", "Slice", "aten::channel_shuffle",
    ]  # fmt: skip
    depth = next(node for node in graph.nodes if node.kind == "DepthToSpace")
    assert depth.attrs == {"blocksize": 2, "mode": "CRD"}


def test_pointwise():
    def function(m: Any, x: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> Any:
        return (
            x + y, x - 2, 3 * x, x / y, 1 - x, x + n, torch.add(x, y, alpha=2), x**2, torch.square(x),
            torch.maximum(x, y), torch.minimum(x, y), torch.where(x > 0, x, y), torch.where(x > y, x, 0.5),
            F.relu(x), F.leaky_relu(x, 0.2), m.prelu(x), m.prelu1(x), F.relu6(x), F.hardtanh(x, -0.5, 0.25), x.clamp(min=0.1),
            x.sigmoid(), x.tanh(), F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"), F.elu(x), F.hardswish(x),
            F.hardsigmoid(x), x.abs(), -x, x.exp(), (x.abs() + 1).sqrt(), (x.abs() + 1).rsqrt(), F.softplus(x),
            torch.erf(x), F.mish(x), F.selu(x),
            F.softmax(x, 1), F.log_softmax(x, -1), x.double().float(), n.float(), (x > 0) & (y > 0), n // 2, x // 1,
            x.masked_fill(x > 0, -5.0),
        )  # fmt: skip

    module = Calls(function, prelu=nn.PReLU(4, init=0.3), prelu1=nn.PReLU())
    graph = judge(module, (x4, x4.flip(1).contiguous() + 3, torch.arange(6)))
    assert kinds_by_output(graph) == [
        "Add", "Sub", "Mul", "Div", "Sub", "aten::add.Tensor", "aten::add.Tensor", "Pow", "Mul",
        "Max", "Min", "Where", "Where",
        "Relu", "LeakyRelu", "PRelu", "PRelu", "Clip", "Clip", "Clip",
        "Sigmoid", "Tanh", "Swish", "Gelu", "Gelu", "Elu", "HardSwish", "HardSigmoid",
        "Abs", "Neg", "Exp", "Sqrt", "Pow", "aten::softplus", "Erf", "Mish", "Selu",
        "Softmax", "LogSoftmax", "Cast", "Cast", "And", "aten::floor_divide", "aten::floor_divide", "Where",
    ]  # fmt: skip
    slopes = [node.input(1) for node in graph.nodes if node.kind == "PRelu"]
    assert [value.shape for value in slopes] == [(4, 1, 1), (1, 1, 1)]
    backwards = [node for node in graph.nodes if node.kind == "Sub"][1]
    assert backwards.inputs[0].const.read() == 1.0


def test_spatial_and_reductions():
    def function(m: Any, x: torch.Tensor, s: torch.Tensor) -> Any:
        return (
            F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 4, 3, ceil_mode=True), F.avg_pool2d(x, 2, padding=1),
            F.avg_pool2d(x, 3, 2, count_include_pad=False), F.avg_pool2d(x, 2, divisor_override=3), F.max_pool1d(s, 2),
            F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (3, 2)), F.adaptive_avg_pool2d(x, 4),
            F.adaptive_max_pool2d(x, 1), F.pad(x, (1, 2)), F.pad(x, (1, 0, 2, 1), value=0.5),
            F.pad(x, (1, 1, 2, 2), mode="reflect"), F.pad(x, (1, 1, 2, 2), mode="replicate"),
            F.pad(s, (1, 2), mode="circular"), F.pad(x, (-1, 0)),
            F.interpolate(x, scale_factor=2), F.interpolate(x, size=(9, 7)), F.interpolate(x, scale_factor=1.5, mode="bilinear"),
            F.interpolate(x, size=(3, 11), mode="bilinear", align_corners=True), F.interpolate(s, scale_factor=2, mode="linear"),
            F.interpolate(x, scale_factor=2, mode="bicubic"), x.mean((2, 3)), x.mean(), x.sum(1, keepdim=True), x.sum((-1, 1)),
            x.amax((2, 3)), x.amin(1), x.std(1), x.norm(dim=1), x.max(1).values, x.argmax(1), x.cumsum(1), torch.logsumexp(x, 1),
        )  # fmt: skip

    graph = judge(Calls(function), (x4, x3))
    assert kinds_by_output(graph) == [
        "MaxPool", "MaxPool", "AveragePool", "AveragePool", "aten::avg_pool2d", "MaxPool",
        "GlobalAveragePool", "AveragePool", "aten::adaptive_avg_pool2d", "GlobalMaxPool",
        *["Pad"] * 6, *["Resize"] * 6, "ReduceMean", "ReduceMean", "ReduceSum", "ReduceSum",
        "ReduceMax", "ReduceMin", "aten::std.dim", "ReduceL2", "aten::max.dim", "aten::argmax", "aten::cumsum", "ReduceLogSumExp",
    ]  # fmt: skip
    attrs = [node.attrs for node in graph.nodes]
    assert attrs[0]["pads"] == (1, 1, 1, 1)
    assert attrs[1]["ceil_mode"] == 1
    assert attrs[2]["count_include_pad"] == 1
    assert attrs[3]["count_include_pad"] == 0


def test_recurrent_and_attention_stay_opaque_and_are_evaluated_in_double():
    def function(m: Any, x: torch.Tensor, ids: torch.Tensor) -> Any:
        hidden, (h, c) = m.lstm(x)
        again, _ = m.gru(hidden)
        e = m.embedding(ids)
        attended, _ = m.attention(e, e, e, need_weights=False)
        return again, h, c, attended, F.scaled_dot_product_attention(e, e, e), F.dropout(e, 0.5, m.training)

    module = Calls(
        function,
        lstm=nn.LSTM(6, 5, batch_first=True, bidirectional=True),
        gru=nn.GRU(10, 3),
        embedding=nn.Embedding(7, 8, padding_idx=0),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    graph = judge(module, (x3, torch.tensor([[1, 2, 0], [3, 4, 6]])))
    kinds = kinds_by_output(graph)
    assert kinds[:3] == ["aten::gru.input", "aten::lstm.input", "aten::lstm.input"]
    assert kinds[4:] == ["aten::scaled_dot_product_attention", "Identity"]
    lstm = next(node for node in graph.nodes if node.kind == "aten::lstm.input")
    assert lstm.attrs["bidirectional"] is True
    assert lstm.inputs[3].param == "lstm.weight_ih_l0"
    assert all(value.const is not None for value in lstm.inputs[1:3]), "initial states made by the program are constants"


def test_core_aten_spellings():
    """A program that somebody decomposed to core ATen: convolution, addmm, native norms, _softmax, pools with indices."""

    def function(m: Any, x: torch.Tensor) -> Any:
        y = m.gn(m.bn(m.conv(x)))
        z = F.max_pool2d(F.hardtanh(y), 2)
        return F.softmax(m.ln(m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))), 1), F.pad(m.up(z), (1, 1, 1, 1), mode="replicate")

    module = Calls(
        function, conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4), gn=nn.GroupNorm(2, 4), fc=nn.Linear(4, 5), ln=nn.LayerNorm(5),
        up=nn.ConvTranspose2d(4, 2, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        program = torch.export.export(module, (x4,)).run_decompositions()
    graph = from_aten(program).validate()
    kinds = {node.kind for node in graph.nodes}
    assert {
        "Conv",
        "BatchNormalization",
        "GroupNormalization",
        "Clip",
        "MaxPool",
        "Gemm",
        "LayerNormalization",
        "Softmax",
    } <= kinds
    values = run(graph, flatten_inputs(program, (x4,)))
    with torch.no_grad():
        eager = flatten_outputs(graph, module(x4))
        written = flatten_outputs(graph, to_program(graph).module()(x4))
    for name, value in eager.items():
        assert np.allclose(values[name], value, atol=1e-5)
        assert np.allclose(written[name], value, atol=1e-6)


def test_odd_forms_stay_opaque():
    def function(m: Any, x: torch.Tensor, n: torch.Tensor, empty: torch.Tensor) -> Any:
        one = x[0]
        return (
            F.softmax(n, 0, dtype=torch.float64), F.log_softmax(x.sum() * 0 + 1, 0), x.sum(dtype=torch.float64), (x > 0).sum(),
            torch.cat([empty, n]), x[:, m.index, m.index], x[x > 100.0], x.repeat(2, 1, 1, 1, 1), torch.gather(x, 1, m.short),
            F.pixel_shuffle(one, 2), F.avg_pool2d(x, 4, 3, ceil_mode=True), F.max_pool2d(one, 2), F.adaptive_avg_pool2d(one, 1),
            F.adaptive_max_pool2d(x, 2), F.interpolate(x, scale_factor=(2, 1), mode="nearest-exact"),
            F.interpolate(x, 5, mode="area"),
            x.clamp(m.low), torch.where(x > 0, x, m.high), x > n[:1], n > 0.5, n & 3, x.norm(3, 1), torch.add(n, n, alpha=3),
            n / 2, n**2, F.celu(x, 0.5), F.threshold(x, 0.1, 2.0), F.batch_norm(x, None, None, training=True),
            m.lstm(x[:, 0])[1][0], n.clamp(max=3), (n > 2) | (n < 1), (n > 2) ^ (n < 4), ~(n > 2), x.max(), x.min(), x.norm(1, 1),
            F.max_pool2d(x, 2, return_indices=True)[1], torch.dot(x[0, 0, 0], x[0, 0, 1]), x.sum(()), F.glu(x, 1), n.abs(),
        )  # fmt: skip

    module = Calls(
        function, index=torch.tensor([1, 0]), short=torch.zeros(1, 2, 3, 3, dtype=torch.int64), low=torch.tensor(0.1),
        high=torch.tensor(1.0, dtype=torch.float64), lstm=nn.LSTM(6, 2),
    )  # fmt: skip
    graph = judge(module, (x4, torch.arange(5), torch.zeros(0, dtype=torch.int64)))
    known = {place: kind for place, kind in enumerate(kinds_by_output(graph)) if "::" not in kind}
    assert known == {
        4: "Concat", 25: "Celu", 29: "Clip", 30: "Or", 31: "Xor", 32: "Not", 33: "ReduceMax", 34: "ReduceMin", 35: "ReduceL1",
        37: "MatMul", 38: "ReduceSum",
    }  # fmt: skip
