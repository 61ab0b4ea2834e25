"""What the view of a program holds: names, shapes, tied parameters, sizes, state, inputs and outputs of any structure."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfold.capture.aten import from_aten
from normfold.capture.aten_inputs import flatten_inputs, flatten_outputs, user_outputs
from normfold.capture.aten_values import to_array, to_tensor
from normfold.capture.program import export_module
from normfold.errors import UsageError
from normfold.graph import to_text
from normfold.record import Record
from normfold.verify.evaluate import run

N, L = torch.export.Dim("N", min=1, max=64), torch.export.Dim("L", min=2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image), inplace=True)
        return self.head(x.mean((2, 3)) * 0.5)


GOLDEN = """\
graph main(%image: float32[N, 3, 8, 8]) {
  %conv2d: float32[N, 4, 6, 6] = Conv(%image, @stem.0.weight:float32[4, 3, 3, 3]) \
{dilations=[1, 1], group=1, kernel_shape=[3, 3], pads=[0, 0, 0, 0], strides=[1, 1]}  # stem.0
  %getitem: float32[N, 4, 6, 6] = BatchNormalization(%conv2d, @stem.1.weight:float32[4], @stem.1.bias:float32[4], \
@stem.1.running_mean:float32[4], @stem.1.running_var:float32[4]) {epsilon=1e-05, momentum=0.1, training_mode=0}  # stem.1
  %relu: float32[N, 4, 6, 6] = Relu(%getitem)
  %mean: float32[N, 4] = ReduceMean(%relu) {axes=[2, 3], keepdims=0}
  %mul: float32[N, 4] = Mul(%mean, 0.5)
  %linear: float32[N, 5] = Gemm(%mul, @head.weight:float32[5, 4], @head.bias:float32[5]) \
{alpha=1, beta=1, transA=0, transB=1}  # head
  return %linear
}
"""


def test_golden_text():
    graph = from_aten(export_module(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: N},)))
    assert re.sub(r"%mul_\d+", "%mul", to_text(graph.validate())) == GOLDEN  # torch numbers its names by what it traced before


def test_constants_read_the_program_s_own_memory():
    program = export_module(Net().eval(), (torch.randn(2, 3, 8, 8),))
    weight = from_aten(program).nodes[0].inputs[1]
    assert weight.name == "p_stem_0_weight"
    assert np.shares_memory(weight.const.read(), program.state_dict["stem.0.weight"].detach().numpy())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 10, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, input: torch.Tensor) -> dict[str, Any]:
        x = self.embed(input)
        for _ in range(3):
            x = self.body(x)
        return {"logits": self.lm_head(x), "rest": [x, None, 3], "input": input}


def test_tied_parameters_are_one_constant_and_a_module_called_three_times_has_one_weight():
    program = export_module(Tied().eval(), (torch.randint(0, 10, (2, 5)),), dynamic_shapes=({0: N, 1: L},))
    graph = from_aten(program).validate()
    gather, *linears = graph.nodes
    assert gather.inputs[0] is linears[-1].inputs[1]
    assert gather.inputs[0].param == "embed.weight"
    assert gather.inputs[0].origin.names == ("embed.weight", "lm_head.weight")
    assert len({id(node.inputs[1]) for node in linears[:3]}) == 1
    assert len(linears[0].inputs[1].uses) == 3
    assert [node.module for node in linears] == ["body", "body", "body", "lm_head"]
    assert [value.name for value in graph.inputs] == ["input"]


def test_outputs_of_any_structure():
    net, ids = Tied().eval(), torch.randint(0, 10, (2, 5))
    graph = from_aten(export_module(net, (ids,)))
    names = [value.name for value in user_outputs(graph)]
    assert names[-1] == "input"
    with torch.no_grad():
        result = net(ids)
    arrays = flatten_outputs(graph, result)
    assert list(arrays) == names
    assert np.array_equal(arrays[names[0]], result["logits"].numpy())
    assert np.array_equal(arrays[names[1]], result["rest"][0].numpy())
    assert np.array_equal(arrays["input"], ids.numpy())


class Structured(nn.Module):
    def forward(self, x: torch.Tensor, pair: list[torch.Tensor], scale: int = 2, more: Any = None) -> Any:
        y = x * scale + pair[0] - pair[1]
        return y if more is None else y + more["b"]


def test_inputs_of_any_structure():
    a, b, c, d = (torch.full((3,), float(value)) for value in range(4))
    program = export_module(Structured().eval(), (a, [b, c]), {"more": {"b": d, "a": None}, "scale": 3})
    graph = from_aten(program)
    names = [value.name for value in graph.inputs]
    assert names == ["x", "pair_0", "pair_1", "more_b"]
    arrays = flatten_inputs(program, (a, [b, c]), {"scale": 3, "more": {"b": d, "a": None}})
    assert {name: array[0] for name, array in arrays.items()} == dict(zip(names, range(4), strict=True))
    with pytest.raises(UsageError, match=r"inputs nested as \(.*\) were expected, but \(.*\) came; pass the same"):
        flatten_inputs(program, (a, b, c), {"scale": 3, "more": {"b": d, "a": None}})
    with pytest.raises(UsageError, match="inputs nested as"):
        flatten_inputs(program, (a, [b, c]))


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)
        self.register_buffer("total", torch.ones(4))
        self.register_buffer("offset", torch.ones(4), persistent=False)

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.mean(0))
        out.copy_(x[0])
        return self.scale(x) + self.total + self.offset + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_what_the_program_writes_to_is_no_constant():
    record = Record()
    program = export_module(Stateful().eval(), (torch.randn(2, 4), torch.zeros(4)), record=record)
    graph = from_aten(program, record).validate()
    assert graph.nodes[0].kind == "aten::state"
    assert graph.nodes[0].output.param == "total"
    assert "the model writes to total; what reads it stays as it is" in record.warnings
    assert {value.param for value in graph.constants() if value.param} == {
        "scale.weight", "scale.bias", "offset", "lifted_tensor_0",
    }  # fmt: skip
    assert len(graph.outputs) == 3
    assert len(user_outputs(graph)) == 1
    x = torch.randn(2, 4)
    values = run(graph, flatten_inputs(program, (x, torch.zeros(4))))
    assert np.allclose(values[graph.outputs[0].name], 1.0 + x.mean(0).numpy(), atol=1e-6)
    net = Stateful().eval()
    net.load_state_dict(program.state_dict)
    with torch.no_grad():
        assert np.allclose(values[user_outputs(graph)[0].name], net(x, torch.zeros(4)).numpy(), atol=1e-5)


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        b, t, c = x.shape
        return (
            x.view(b * t, c),
            x.view(b, t * c),
            x.view(t, b, c),
            x.reshape(b, 2 * t, 2),
            x.expand(b, t, c),
            x[:, :1].expand(b, t, c),
            x.flip(1)[:, : t - 1],
            x.new_zeros(b, 3),
            torch.arange(t) + torch.full((b, 1), 0.5),
            F.interpolate(x, size=t + 1),
            x.mean() / b,
            b,
            x.unsqueeze(1).repeat(1, 2, 1, 1),
        )


def test_sizes_computed_at_run_time():
    program = export_module(Sizes().eval(), (torch.randn(2, 5, 4),), dynamic_shapes=({0: N, 1: torch.export.Dim("L", min=3)},))
    graph = from_aten(program).validate()
    kinds = [value.producer.kind for value in user_outputs(graph)]
    nodes = [value.producer for value in user_outputs(graph)]
    assert kinds[:7] == ["Reshape", "Reshape", "Reshape", "Reshape", "Expand", "Expand", "Slice"]
    assert [node.attrs.get("shape") for node in nodes[:6]] == [(-1, 4), (0, -1), None, (0, -1, 2), (1, 1, 1), None]
    assert nodes[2].attrs["computed"] == "aten::view"
    assert [value.producer.kind for value in nodes[2].inputs[1:]] == ["aten::sym_size", "aten::sym_size"]
    assert nodes[6].attrs["axes"] == (1,)
    assert "starts" not in nodes[6].attrs
    assert user_outputs(graph)[0].shape == ("L*N", 4)
    for shape in ((2, 5, 4), (3, 7, 4)):
        x = torch.randn(shape)
        expected = flatten_outputs(graph, Sizes()(x))
        values = run(graph, flatten_inputs(program, (x,)))
        for name, value in expected.items():
            assert values[name].shape == value.shape, name
            assert np.allclose(values[name], value, atol=1e-6), name


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> Any:
        y = torch.cond(x.sum() > 0, lambda x: self.linear(x) + 1, lambda x: x * 2, (x,))
        k = count.item()
        torch._check(k >= 0)
        torch._check(k < 4)
        return y[:k], y.nonzero()


def test_control_flow_and_sizes_made_from_data_are_kept_and_evaluated():
    net = DataDependent().eval()
    program = export_module(net, (torch.ones(4, 4), torch.tensor(2)))
    graph = from_aten(program).validate()
    kinds = [node.kind for node in graph.nodes]
    assert "higher_order::cond" in kinds
    assert "aten::item" in kinds
    for x in (torch.randn(4, 4).abs(), -torch.randn(4, 4).abs()):
        feeds = flatten_inputs(program, (x, torch.tensor(3)))
        values = run(graph, feeds)
        with torch.no_grad():
            expected = flatten_outputs(graph, net(x, torch.tensor(3)))
        for name, value in expected.items():
            assert np.allclose(values[name], value, atol=1e-6), name


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def test(step: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return step < 3

        def body(step: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return step + 1, x * 2 + torch.full((4,), 0.1)

        return torch.while_loop(test, body, (torch.tensor(0), x))[1]


def test_a_while_loop_is_evaluated_in_double():
    x = torch.randn(4)
    program = export_module(Loop().eval(), (x,))
    graph = from_aten(program).validate()
    values = run(graph, flatten_inputs(program, (x,)))
    exact = x.numpy().astype(np.float64) * 8 + 0.1 * 7
    assert np.allclose(values[user_outputs(graph)[0].name], exact, rtol=0, atol=1e-12)


def test_casts_and_factories_do_not_round_when_evaluated_in_double():
    class Casts(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.half().cumsum(0).float(), torch.zeros(x.shape[0]) + 0.1, torch.full((x.shape[0],), 0.1).cumsum(0)

    program = export_module(Casts().eval(), (torch.rand(4),), dynamic_shapes=({0: L},))
    graph = from_aten(program)
    x = np.array([0.1, 0.2, 0.3])
    halves, zeros, tenths = run(graph, {"x": x}).values()
    assert np.array_equal(halves, np.cumsum(x))
    assert zeros.dtype == tenths.dtype == np.float64
    assert np.allclose(tenths, [0.1, 0.2, 0.3], rtol=0, atol=1e-16)


def test_bfloat16_and_float16_parameters():
    net = nn.Linear(4, 3).to(torch.bfloat16).eval()
    graph = from_aten(export_module(net, (torch.randn(2, 4, dtype=torch.bfloat16),)))
    weight = graph.nodes[0].inputs[1]
    assert weight.dtype == np.dtype(ml_dtypes.bfloat16)
    assert np.array_equal(weight.const.float64(), net.weight.detach().double().numpy())
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64):
        tensor = torch.tensor([[0.0, 1.0], [2.0, -3.5]]).to(dtype)[:, 1:]
        back = to_tensor(to_array(tensor))
        assert back.dtype == dtype
        assert torch.equal(back.to(torch.complex64), tensor.to(torch.complex64))


def test_a_saved_program_is_read_as_well():
    import io

    program = export_module(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: N},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = from_aten(torch.export.load(buffer)).validate()
    assert [(node.kind, node.module) for node in loaded.nodes] == [(node.kind, node.module) for node in from_aten(program).nodes]


def test_a_program_that_is_not_functional_yet_is_decomposed():
    with torch.no_grad():
        program = torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),))
    assert program.dialect == "TRAINING"
    assert [node.kind for node in from_aten(program).nodes] == ["Conv", "BatchNormalization", "Relu", "ReduceMean", "Mul", "Gemm"]


def test_random_and_training_forms_stay_opaque():
    class Train(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))

        def forward(self, x: torch.Tensor) -> Any:
            return F.batch_norm(x, self.mean, self.var, training=True), F.dropout(x, 0.5, training=True)

    graph = from_aten(export_module(Train().eval(), (torch.randn(4, 3),)))
    kinds = {node.kind for node in graph.nodes}
    assert "BatchNormalization" not in kinds
    assert "Identity" not in kinds
    assert not any(value.param for value in graph.constants())


def test_a_size_that_is_an_input():
    class Takes(nn.Module):
        def forward(self, n: int, x: torch.Tensor) -> Any:
            return x[:, :n] * 2, x.shape[0] * n

    shapes = {"n": torch.export.Dim.DYNAMIC, "x": {0: N}}
    program = export_module(Takes().eval(), (3, torch.randn(2, 5)), dynamic_shapes=shapes)
    graph = from_aten(program).validate()
    assert [(value.name, value.shape) for value in graph.inputs] == [("n", ()), ("x", ("N", 5))]
    x = torch.randn(4, 5)
    values = run(graph, flatten_inputs(program, (2, x)))
    expected = flatten_outputs(graph, Takes()(2, x))
    assert {name: np.allclose(values[name], array) for name, array in expected.items()} == dict.fromkeys(expected, True)
    assert values[graph.outputs[1].name] == 8


def test_complex_numbers_and_ops_of_other_libraries_are_opaque():
    @torch.library.custom_op("normfold_test::twice", mutates_args=())
    def twice(x: torch.Tensor, scale: float) -> torch.Tensor:
        return x * 2 * scale

    @twice.register_fake
    def _(x: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.empty_like(x)

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.fft.rfft(x).abs(), twice(x, 1.5), torch.topk(x, 2).indices

    x = torch.randn(2, 6)
    program = export_module(Odd().eval(), (x,))
    graph = from_aten(program).validate()
    assert [node.kind for node in graph.nodes] == ["aten::fft_rfft", "aten::abs", "normfold_test::twice", "aten::topk"]
    assert graph.nodes[0].output.dtype == np.complex64
    assert graph.nodes[2].attrs == {"scale": 1.5}
    values = run(graph, flatten_inputs(program, (x,)))
    for name, array in flatten_outputs(graph, Odd()(x)).items():
        assert np.allclose(values[name], array, atol=1e-5)
    assert values[graph.outputs[1].name].dtype == np.float64
