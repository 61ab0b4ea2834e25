"""A live module becomes a program: eval mode, baked parametrizations, hooks, refusals; the module itself is never touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import nn
from torch.nn.utils import spectral_norm, weight_norm

from normfold.capture.aten import from_aten
from normfold.capture.program import TRAINING_WARNING, bake, dim_names, export_module, functional
from normfold.errors import InputRefused
from normfold.record import Record


def conv_bn() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    with torch.no_grad():
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
    return net


x = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6).sin()


def test_a_model_left_in_training_mode_is_captured_in_eval_mode_and_it_is_said():
    net, record = conv_bn().train(), Record()
    program = export_module(net, (x,), record=record)
    assert record.warnings == [TRAINING_WARNING]
    assert net.training
    assert net[1].training
    assert [node.kind for node in from_aten(program).nodes] == ["Conv", "BatchNormalization", "Relu"]
    with torch.no_grad():
        came = program.module()(x)
        assert torch.allclose(came, net.eval()(x), atol=1e-6)


def test_a_model_in_eval_mode_is_captured_without_a_word():
    record = Record()
    export_module(conv_bn().eval(), (x,), record=record)
    assert record.warnings == []


def test_one_submodule_in_training_mode_is_enough():
    net, record = conv_bn().eval(), Record()
    net[1].train()
    export_module(net, (x,), record=record)
    assert record.warnings == [TRAINING_WARNING]


def test_the_result_shares_no_memory_with_the_module():
    net = conv_bn().eval()
    program = export_module(net, (x,))
    before = program.state_dict["0.weight"].clone()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert torch.equal(program.state_dict["0.weight"], before)


def weight_normed(kind: str) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    if kind == "old weight_norm":
        weight_norm(net[0])
    elif kind == "new weight_norm":
        parametrizations.weight_norm(net[0])
    elif kind == "old spectral_norm":
        spectral_norm(net[2])
    elif kind == "new spectral_norm":
        parametrizations.spectral_norm(net[2])
    else:
        parametrizations.orthogonal(net[2])
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["old weight_norm", "new weight_norm", "old spectral_norm", "new spectral_norm", "orthogonal"])
def test_parametrizations_are_baked_on_the_copy(kind: str):
    net, record = weight_normed(kind).eval(), Record()
    names = sorted(name for name, _ in net.named_parameters())
    with torch.no_grad():
        expected = net(x)
        program = export_module(net, (x,), record=record)
        assert torch.allclose(program.module()(x), expected, atol=1e-6)
        assert torch.equal(net(x), expected)
    assert sorted(name for name, _ in net.named_parameters()) == names
    assert len(record.warnings) == 1
    assert "baked" in record.warnings[0]
    assert [node.kind for node in from_aten(program).nodes] == ["Conv", "Reshape", "Gemm"]
    assert sorted(program.state_dict) == ["0.bias", "0.weight", "2.bias", "2.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_of_a_recurrent_layer_is_baked():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = weight_norm(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    net, sequence = Net().eval(), torch.randn(2, 5, 3)
    with torch.no_grad():
        expected = net(sequence)
        program = export_module(net, (sequence,))
        assert torch.allclose(program.module()(sequence), expected, atol=1e-6)
    assert "rnn.weight_hh_l0" in program.state_dict
    assert "rnn.weight_hh_l0_g" not in program.state_dict


def test_bake_returns_the_names():
    assert bake(weight_normed("new weight_norm")) == ["0.weight"]
    assert bake(conv_bn()) == []


def test_forward_hooks_are_captured():
    net = conv_bn().eval()
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    net.register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    net.register_forward_hook(lambda module, args, output: output + 3)
    program = export_module(net, (x,))
    with torch.no_grad():
        assert torch.allclose(program.module()(x), net(x), atol=1e-6)


def test_a_hook_that_cannot_be_captured_is_refused():
    net, calls = conv_bn().eval(), []

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * float(len(calls))

    net[0].register_forward_hook(hook)
    with pytest.raises(InputRefused, match=r"forward hooks that torch\.export does not capture .*; remove the hooks"):
        export_module(net, (x,))


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else x * 2


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return h


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() * 2)


N, T = torch.export.Dim("N"), torch.export.Dim("T")


@pytest.mark.parametrize(
    "module, args, dynamic, message",
    [
        (
            Branches(),
            (x,),
            None,
            r"at test_aten_program\.py:\d+ .*branches or sizes something on the values of a tensor",
        ),
        (
            Packs(),
            (torch.randn(2, 3, 4), torch.tensor([3, 2])),
            None,
            "does not take packed sequences; run the recurrent layer",
        ),
        (Loops(), (torch.randn(2, 5, 4),), ({0: N, 1: T},), r"marked T as dynamic .* constant \(5\); make that size static"),
        (nn.Linear(4, 4), (torch.randn(1, 4),), ({0: N},), "example size of 1 was taken as fixed; pass example inputs"),
        (nn.Linear(4, 4), (torch.randn(2, 5),), None, "Linear does not run on the given inputs: RuntimeError: mat1 and mat2"),
        (nn.Linear(4, 4), (), None, "Linear does not run on the given inputs: TypeError"),
        (Numpy(), (x,), None, r"at test_aten_program\.py:\d+ \(return torch\.from_numpy.*torch\.export says RuntimeError"),
    ],
    ids=["branch", "packed", "time loop", "example of one", "wrong shape", "no input", "numpy"],
)
def test_refusals_are_one_line_with_a_hint(
    module: nn.Module, args: Any, dynamic: Any, message: str, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(InputRefused, match=message) as raised:
        export_module(module.eval(), args, dynamic_shapes=dynamic)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_module_that_cannot_be_copied_is_refused():
    import threading

    net = conv_bn().eval()
    net.lock = threading.Lock()
    with pytest.raises(InputRefused, match="a module that can be copied was expected, but copying Sequential failed"):
        export_module(net, (x,))


def test_names_of_dynamic_sizes_are_kept():
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, more: dict[str, Any], b: torch.Tensor) -> torch.Tensor:
            return a.sum(1) + more["x"][0].sum() + b.sum()

    batch, length = torch.export.Dim("batch"), torch.export.Dim("N")
    shapes = {"a": {0: batch, 1: length}, "more": {"x": [{1: torch.export.Dim("E", max=9)}]}, "b": None}
    args = (torch.randn(2, 3), {"x": [torch.randn(2, 4)]})
    program = export_module(Two().eval(), args, {"b": torch.randn(3)}, dynamic_shapes=shapes)
    assert sorted(dim_names(program).values()) == ["E", "N", "batch"]
    graph = from_aten(program)
    assert {value.name: value.shape for value in graph.inputs} == {"a": ("batch", "N"), "more_x_0": (2, "E"), "b": (3,)}


def test_a_program_is_decomposed_once():
    program = export_module(conv_bn().eval(), (x,))
    assert functional(program) is program
