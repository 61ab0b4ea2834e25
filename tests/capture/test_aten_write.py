"""Edits of a view, written back: the program computes what the edited view says, and nothing else has changed.

Where the edit keeps the function (a BatchNorm folded by hand) the program must agree with the eager model.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from normfold.capture.aten import from_aten
from normfold.capture.aten_inputs import flatten_inputs, user_outputs
from normfold.capture.aten_write import to_program
from normfold.capture.program import dim_names, export_module
from normfold.graph import Constant, Graph, Node, Value, to_text
from normfold.verify.evaluate import run

N = torch.export.Dim("N", min=1, max=64)


def randomized(net: nn.Module) -> nn.Module:
    """Norms with statistics and parameters of both signs, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in net.modules():
            for name, low, high in (("running_mean", -1, 1), ("running_var", 0.5, 2), ("weight", -1.5, 1.5), ("bias", -1, 1)):
                tensor = getattr(part, name, None)
                if tensor is not None and isinstance(part, nn.modules.batchnorm._NormBase):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return net.eval()


def arrays_of(norm: Node) -> list[np.ndarray]:
    return [value.const.float64() for value in norm.inputs[1:]]


def fold(graph: Graph, norm: Node) -> None:
    """By hand: W' = a W, b' = a b + c into the convolution or linear in front, then the layer is taken out."""
    gamma, beta, mean, var = arrays_of(norm)
    a = gamma / np.sqrt(var + norm.attrs["epsilon"])
    c = beta - a * mean
    linear = norm.inputs[0].producer
    weight, bias = linear.inputs[1], linear.input(2)
    array = weight.const.float64()
    graph.set_input(linear, 1, graph.derived(weight, array * a.reshape(-1, *[1] * (array.ndim - 1))))
    old = 0.0 if bias is None else bias.const.float64()
    graph.set_input(linear, 2, graph.derived(bias if bias is not None else norm.inputs[2], a * old + c))
    graph.bypass(norm)


def norms(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.kind == "BatchNormalization"]


def agree(program: ExportedProgram, net: nn.Module, *args: Any, atol: float = 2e-5) -> None:
    with torch.no_grad():
        came, expected = program.module()(*args), net(*args)
    torch.testing.assert_close(came, expected, rtol=1e-4, atol=atol)


def judged(graph: Graph, *args: Any) -> ExportedProgram:
    """Write, and compare the written program with the view in float64; the captured program stays as it was."""
    text, before = str(graph.origin), {key: item.clone() for key, item in graph.origin.state_dict.items()}
    graph.validate()
    program = to_program(graph)
    assert str(graph.origin) == text
    assert all(torch.equal(graph.origin.state_dict[key], item) for key, item in before.items())
    values = run(graph, flatten_inputs(program, args))
    with torch.no_grad():
        came = [item.detach() for item in torch.utils._pytree.tree_leaves(program.module()(*args))]
    for value, tensor in zip(user_outputs(graph), came, strict=True):
        exact = values[value.name]
        assert exact.shape == tuple(tensor.shape)
        assert np.allclose(tensor.numpy(), exact, rtol=1e-4, atol=1e-5), value.name
    assert not [spec for spec in program.graph_signature.input_specs if spec.arg.name not in str(program.graph_module.code)]
    return program


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.block = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3, groups=2), "bn": nn.BatchNorm2d(6, affine=False)})
        self.head = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = F.relu(self.block["bn"](self.block["conv"](x)))
        return self.head(x.mean((2, 3)))


image = torch.linspace(-1, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8).sin() * 3


@functools.cache
def conv_net(dynamic: bool = False) -> tuple[nn.Module, ExportedProgram]:
    """Captured once: no test may write to it."""
    net = randomized(ConvNet())
    return net, export_module(net, (image,), dynamic_shapes=({0: N},) if dynamic else None)


FOLDED = """\
graph main(%image: float32[N, 3, 8, 8]) {
  %getitem: float32[N, 4, 6, 6] = Conv(%image, @stem.0.weight:float32[4, 3, 3, 3], @stem.0.bias:float32[4]) \
{dilations=[1, 1], group=1, kernel_shape=[3, 3], pads=[0, 0, 0, 0], strides=[1, 1]}  # stem.0
  %relu: float32[N, 4, 6, 6] = Relu(%getitem)  # stem.2
  %getitem_3: float32[N, 6, 4, 4] = Conv(%relu, @block.conv.weight:float32[6, 2, 3, 3], @block.conv.bias:float32[6]) \
{dilations=[1, 1], group=2, kernel_shape=[3, 3], pads=[0, 0, 0, 0], strides=[1, 1]}  # block.conv
  %relu_1: float32[N, 6, 4, 4] = Relu(%getitem_3)
  %mean: float32[N, 6] = ReduceMean(%relu_1) {axes=[2, 3], keepdims=0}
  %linear: float32[N, 5] = Gemm(%mean, @head.weight:float32[5, 6], @head.bias:float32[5]) \
{alpha=1, beta=1, transA=0, transB=1}  # head
  return %linear
}
"""


def test_folded_by_hand_with_a_dynamic_batch():
    net, captured = conv_net(dynamic=True)
    graph = from_aten(captured)
    for norm in norms(graph):
        fold(graph, norm)
    program = judged(graph, image)
    assert list(program.state_dict) == [
        "stem.0.weight", "stem.0.bias", "block.conv.weight", "block.conv.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    assert all(isinstance(item, nn.Parameter) for item in program.state_dict.values())
    assert program.range_constraints == captured.range_constraints
    assert dim_names(program) == dim_names(captured)
    agree(program, net, image)
    agree(program, net, image[:2])
    text = to_text(from_aten(program).validate())
    assert text.replace("%conv2d:", "%getitem:").replace("%conv2d)", "%getitem)").replace("%conv2d_1", "%getitem_3") == FOLDED
    assert {name for name, _ in program.module().named_parameters()} == set(program.state_dict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    agree(torch.export.load(buffer), net, image[:1])


def test_nothing_edited_gives_the_same_program():
    _net, captured = conv_net()
    graph = from_aten(captured)
    program = judged(graph, image)
    assert to_text(from_aten(program)) == to_text(graph)
    assert all(program.state_dict[name] is graph.origin.state_dict[name] for name in program.state_dict)
    assert "stem.1.num_batches_tracked" not in program.state_dict
    with torch.no_grad():
        assert torch.equal(program.module()(image), graph.origin.module()(image))


def test_a_clone_of_the_view_is_written_just_as_well():
    net, captured = conv_net()
    graph = from_aten(captured)
    twin = graph.clone()
    for norm in norms(twin):
        fold(twin, norm)
    agree(judged(twin, image), net, image)
    agree(judged(graph, image), net, image)
    assert len(norms(graph)) == 2


def test_the_layer_behind_the_output_is_folded():
    net = randomized(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    x = torch.randn(5, 4)
    graph = from_aten(export_module(net, (x,)))
    name = graph.outputs[0].name
    fold(graph, norms(graph)[0])
    program = judged(graph, x)
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == [name]
    agree(program, net, x)


class Shared(nn.Module):
    """One convolution read three times; then one BatchNorm each, or one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = F.relu(self.bn(self.conv(x)))
        return x


def test_a_module_called_three_times_is_folded_once_and_used_three_times():
    net = randomized(Shared())
    graph = from_aten(export_module(net, (image,)))
    layers = norms(graph)
    gamma, beta, mean, var = arrays_of(layers[0])
    a = gamma / np.sqrt(var + 1e-5)
    first = layers[0].inputs[0].producer
    weight = graph.derived(first.inputs[1], first.inputs[1].const.float64() * a[:, None, None, None])
    bias = graph.derived(layers[0].inputs[2], beta - a * mean)
    for norm in layers:
        conv = norm.inputs[0].producer
        graph.set_input(conv, 1, weight)
        graph.set_input(conv, 2, bias)
        graph.bypass(norm)
    program = judged(graph, image)
    assert list(program.state_dict) == ["conv.weight", "conv.bias"]
    agree(program, net, image)


def test_clones_of_a_shared_weight_get_legal_names_of_their_own():
    net = randomized(Shared())
    graph = from_aten(export_module(net, (image,)))
    for norm in norms(graph)[:2]:
        fold(graph, norm)
    program = judged(graph, image)
    agree(program, net, image)
    folded = {name for name in program.state_dict if name.startswith("conv.")}
    assert folded == {"conv.weight", "conv.weight_1", "conv.weight_2", "conv.bias", "conv.bias_1"}, folded
    assert torch.equal(program.state_dict["conv.weight"], net.conv.weight), "the third call still reads the original"
    assert {name for name, _ in program.module().named_parameters()} >= folded


class TiedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.embed(ids)))


def test_folding_into_a_tied_weight_leaves_its_twin_alone():
    net, ids = TiedHead().eval(), torch.tensor([[1, 2, 3], [0, 6, 5]])
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 2)
        net.norm.bias.uniform_(-1, 1)
    graph = from_aten(export_module(net, (ids,)))
    layer, head = graph.nodes[1], graph.nodes[2]
    gamma, beta = (value.const.float64() for value in layer.inputs[1:])
    table = head.inputs[1].const.float64()
    graph.set_input(head, 1, graph.derived(head.inputs[1], table * gamma))
    graph.set_input(head, 2, graph.derived(layer.inputs[2], table @ beta))
    graph.set_input(layer, 1, graph.derived(layer.inputs[1], np.ones(4)))
    graph.set_input(layer, 2, None)
    program = judged(graph, ids)
    agree(program, net, ids)
    assert torch.equal(program.state_dict["embed.weight"], net.embed.weight)
    assert {"embed.weight", "norm.weight"} <= set(program.state_dict)
    assert "norm.bias" not in program.state_dict


class Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 - self.conv((x / 255 - 0.5) * 4.0 + 2)


def test_numbers_in_the_code_become_buffers():
    graph = from_aten(export_module(Numbers().eval(), (image,), dynamic_shapes=({0: N},)))
    assert [node.kind for node in graph.nodes] == ["Div", "Sub", "Mul", "Add", "Conv", "Sub"]
    shape = (1, 3, 1, 1)
    for node, slot in zip(graph.nodes, (1, 1, 1, 1, None, 0), strict=True):
        if slot is not None:
            array = np.arange(1.0, 4.0).reshape(shape) if slot else np.arange(4.0).reshape(1, 4, 1, 1)
            graph.set_input(node, slot, graph.derived(node.inputs[slot], array))
    program = judged(graph, image)
    assert len([name for name in program.state_dict if not name.startswith("conv.")]) == 5
    assert all(spec.persistent for spec in program.graph_signature.input_specs if spec.kind.name == "BUFFER")
    assert "Range constraints: {s" in str(program)
    x = image[:1].double()
    steps = torch.arange(1.0, 4.0).reshape(shape).double()
    conv = Numbers().double().conv
    conv.load_state_dict({key.removeprefix("conv."): item for key, item in program.state_dict.items() if key.startswith("conv.")})
    with torch.no_grad():
        expected = torch.arange(4.0).reshape(1, 4, 1, 1) - conv((x / steps - steps) * steps + steps)
        torch.testing.assert_close(program.module()(image[:1]).double(), expected, rtol=1e-5, atol=1e-5)


def inserted(graph: Graph, anchor: Node, kind: str, array: Any, name: str, *, before: bool = False, **attrs: Any) -> Node:
    """Put ``kind(value, constant)`` between `anchor` and its readers (or between it and its first input)."""
    value = anchor.inputs[0] if before else anchor.output
    assert value is not None
    result = graph.value(name, value.shape, value.dtype)
    readers = [use for use in value.uses if not before or use.node is anchor]
    inputs: list[Value | None] = [value]
    if array is not None:
        inputs.append(graph.constant(f"{name}_constant", np.asarray(array, np.float32)))
    node = Node(kind, inputs, [result], attrs, module=anchor.module)
    (graph.insert_before if before else graph.insert_after)(anchor, node)
    for use in readers:
        graph.set_input(use.node, use.slot, result)
    if not before:
        graph.outputs = [result if item is value else item for item in graph.outputs]
    return node


def test_inserted_nodes_with_dynamic_sizes():
    _net, captured = conv_net(dynamic=True)
    graph = from_aten(captured)
    first, *_, head = graph.nodes
    inserted(graph, first, "Mul", np.full((1, 4, 1, 1), 2.0), "scaled")
    inserted(graph, first, "Add", np.arange(4).reshape(1, 4, 1, 1), "shifted.here")
    inserted(graph, head, "Div", [2.0], "halved", before=True)
    inserted(graph, head, "LeakyRelu", None, "leaky", alpha=0.25)
    program = judged(graph, image)
    names = [node.name for node in program.graph.nodes]
    assert {"scaled", "shifted_here", "halved", "leaky"} <= set(names)
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == ["leaky"]
    assert {name for name in program.state_dict if "constant" in name} == {
        "stem.0.scaled_constant", "stem.0.here_constant", "head.halved_constant",
    }  # fmt: skip
    assert from_aten(program).outputs[0].shape == ("N", 5)
    stack = next(node for node in program.graph.nodes if node.name == "scaled").meta["nn_module_stack"]
    assert list(stack.values())[-1][0] == "stem.0"
    with torch.no_grad():
        program.module()(image[:2])
        with pytest.raises(AssertionError):
            program.module()(image[:, :, :4])


def test_a_kept_layer_with_new_constants():
    _net, captured = conv_net()
    graph = from_aten(captured)
    for norm in norms(graph):
        for slot in range(1, 5):
            old = norm.inputs[slot]
            graph.set_input(norm, slot, graph.derived(old, np.abs(old.const.float64()) * 1.25 + 0.1))
    program = judged(graph, image)
    assert {"stem.1.weight", "stem.1.running_mean", "block.bn.running_var"} <= set(program.state_dict)
    assert len(program.state_dict) == 13, "gamma and beta of the layer without affine are buffers now; both counters are gone"
    specs = {spec.target: spec.kind.name for spec in program.graph_signature.input_specs}
    assert specs["stem.1.weight"] == "PARAMETER"
    assert specs["stem.1.running_mean"] == "BUFFER"


def test_only_gamma_is_replaced_where_there_was_no_affine_part():
    _net, captured = conv_net()
    graph = from_aten(captured)
    norm = norms(graph)[1]
    graph.set_input(norm, 1, graph.derived(norm.inputs[1], np.arange(1.0, 7.0)))
    program = judged(graph, image)
    call = next(node for node in program.graph.nodes if node.args and str(node.args[0]) == "conv2d_1")
    assert all(isinstance(argument, torch.fx.Node) for argument in call.args[:5])


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.layer = nn.LayerNorm(8)
        self.group = nn.GroupNorm(3, 3)
        self.instance = nn.InstanceNorm2d(3)
        self.rms = nn.RMSNorm(8)
        self.prelu = nn.PReLU(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 3, 2)

    def forward(self, x: torch.Tensor) -> Any:
        x = F.pad(F.leaky_relu(self.bn(x), 0.1), (1, 1, 1, 1), value=0.25)[:, :, 1:-1, 1:-1]
        x = self.instance(self.group(self.rms(self.layer(x))))
        x = self.up(self.conv(self.prelu(x)))[:, :, :8, :8]
        return F.max_pool2d(x, 2), F.avg_pool2d(x, 2), x.clamp(-1, 1).mean((2, 3)), F.relu6(x).sum(1)


def test_changed_attributes():
    net = randomized(Attributes())
    graph = from_aten(export_module(net, (image,), dynamic_shapes=({0: N},)))
    changes: dict[str, dict[str, Any]] = {
        "BatchNormalization": {"epsilon": 0.5}, "LeakyRelu": {"alpha": 0.75}, "Pad": {"constant_value": -2.0},
        "LayerNormalization": {"epsilon": 0.5}, "GroupNormalization": {"epsilon": 0.5}, "InstanceNormalization": {"epsilon": 0.5},
        "RMSNormalization": {"epsilon": 0.5}, "Conv": {"pads": (2, 1, 0, 1)}, "ConvTranspose": {"strides": (2, 2)},
        "MaxPool": {"strides": (3, 3)}, "AveragePool": {"pads": (1, 1, 1, 1)}, "Clip": {"min": -0.5},
        "ReduceMean": {"keepdims": 1}, "ReduceSum": {"axes": (2,)},
    }  # fmt: skip
    seen = set()
    for node in graph.nodes:
        if node.kind in changes:
            node.attrs.update(changes[node.kind])
            seen.add(node.kind)
    assert seen == set(changes)
    program = to_program(graph.validate())
    values = run(graph, flatten_inputs(program, (image,)))
    with torch.no_grad():
        came = program.module()(image)
    for value, tensor in zip(graph.outputs, came, strict=True):
        assert np.allclose(tensor.numpy(), values[value.name], rtol=1e-4, atol=1e-5), value.name
    assert sorted(program.state_dict) == sorted(key for key in net.state_dict() if not key.endswith("tracked"))


def test_a_slope_per_channel():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU()).eval()
    graph = from_aten(export_module(net, (image,)))
    prelu = graph.nodes[1]
    graph.set_input(prelu, 1, graph.derived(prelu.inputs[1], np.array([0.1, -0.5, 2.0, 0.0]).reshape(4, 1, 1)))
    program = judged(graph, image)
    assert program.state_dict["1.weight"].shape == (4,)


class Thin(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :, :1] * 2.0


@functools.cache
def thin() -> ExportedProgram:
    return export_module(Thin().eval(), (torch.ones(2, 3, 4, 4),), dynamic_shapes=({0: N},))


@pytest.mark.parametrize(
    "kind, attrs, slots",
    [
        ("Sub", {}, 2), ("Max", {}, 2), ("Min", {}, 2), ("Sum", {}, 2), ("Pow", {}, 2), ("Relu", {}, 1), ("Identity", {}, 1),
        ("Abs", {}, 1), ("Sigmoid", {}, 1), ("Softmax", {"axis": 1}, 1), ("Transpose", {"perm": (0, 3, 1, 2)}, 1),
        ("Reshape", {"shape": (0, -1, 2)}, 1), ("Flatten", {"axis": 1}, 1), ("Squeeze", {"axes": (3,)}, 1),
        ("Unsqueeze", {"axes": (1, 4)}, 1), ("Expand", {"shape": (1, 1, 1, 4)}, 1), ("Concat", {"axis": 1}, 2),
        ("Slice", {"starts": (1, 0), "ends": (9, 2), "axes": (1, 2), "steps": (1, 1)}, 1), ("GlobalAveragePool", {}, 1),
        ("Pad", {"pads": (0, 0, 1, 0, 0, 0, 2, 0), "mode": "reflect"}, 1), ("ReduceMax", {"axes": (1,), "keepdims": 1}, 1),
        ("Cast", {"to": np.dtype(np.float64)}, 1),
    ],
)  # fmt: skip
def test_every_kind_that_can_be_inserted(kind: str, attrs: dict[str, Any], slots: int):
    x = torch.rand(2, 3, 4, 4) + 0.5
    graph = from_aten(thin())
    last = graph.outputs[0]
    constant = graph.constant("constant", np.linspace(0.5, 1.5, 12, dtype=np.float32).reshape(1, 3, 4, 1))
    if kind == "Concat":
        constant = graph.inputs[0]
        last = graph.nodes[0].inputs[0]
    inputs: list[Value | None] = [last, constant][:slots]
    result = graph.value("result", None, np.float32)
    graph.append(Node(kind, inputs, [result], attrs))
    graph.outputs = [result]
    judged(graph, x)


def test_gemm_with_every_attribute_and_matmul():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False)).eval()
    x = torch.randn(5, 4)
    graph = from_aten(export_module(net, (x,)))
    first, second = graph.nodes
    graph.set_input(first, 1, graph.derived(first.inputs[1], first.inputs[1].const.float64().T))
    first.attrs.update(transB=0, alpha=0.5, beta=2.0)
    second.attrs.update(alpha=3.0)
    program = judged(graph, x)
    expected = (x @ net[0].weight.T * 0.5 + net[0].bias * 2.0) @ net[1].weight.T * 3.0
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-5, atol=1e-5)


def test_a_select_with_another_index_and_a_table_with_other_rows():
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids)[:, 0]

    ids = torch.tensor([[0, 1], [2, 4]])
    graph = from_aten(export_module(Picks().eval(), (ids,)))
    lookup, select = graph.nodes
    graph.set_input(select, 1, graph.constant("index", np.array(1)))
    graph.set_input(lookup, 0, graph.derived(lookup.inputs[0], np.arange(15.0).reshape(5, 3)))
    program = judged(graph, ids)
    assert program.module()(ids).tolist() == [[3.0, 4.0, 5.0], [12.0, 13.0, 14.0]]


def test_constants_replaced_in_their_value():
    net, captured = conv_net()
    graph = from_aten(captured)
    weight = graph.nodes[0].inputs[1]
    weight.const = Constant(weight.const.float64() * 2.0, dtype=weight.dtype)
    program = judged(graph, image)
    assert torch.equal(program.state_dict["stem.0.weight"], net.stem[0].weight * 2)
    assert not torch.equal(graph.origin.state_dict["stem.0.weight"], program.state_dict["stem.0.weight"])


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("steps", torch.zeros(1))
        self.register_buffer("offset", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> Any:
        self.steps.add_(1.0)
        seen.add_(x.mean())
        return {"y": [self.bn(self.conv(x)) + self.steps + self.offset + torch.tensor([0.5]), None], "n": 3, "seen": seen * 2}


def test_buffers_and_inputs_that_are_written_to_keep_their_contract():
    net = randomized(Stateful())
    graph = from_aten(export_module(net, (image, torch.zeros(1)), dynamic_shapes=({0: N}, None)))
    fold(graph, norms(graph)[0])
    program = to_program(graph.validate())
    module = program.module()
    assert [spec.kind.name for spec in program.graph_signature.output_specs][:2] == ["BUFFER_MUTATION", "USER_INPUT_MUTATION"]
    mine, theirs = torch.zeros(1), torch.zeros(1)
    for step in range(3):
        with torch.no_grad():
            came, expected = module(image[: step + 1], mine), net(image[: step + 1], theirs)
        assert came["n"] == 3
        assert came["y"][1] is None
        torch.testing.assert_close(came["y"][0], expected["y"][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(came["seen"], expected["seen"])
        torch.testing.assert_close(mine, theirs)
    assert module.steps.item() == 3
    assert graph.origin.state_dict["steps"].item() == 0, "running the result writes into the result alone"
    assert set(program.constants) == {"offset", "lifted_tensor_0"}


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> Any:
        y = self.bn(self.conv(x))
        k = count.item()
        torch._check(k >= 1)
        torch._check(k <= x.shape[0])
        b, c, h, w = y.shape
        shuffled = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return shuffled[:k], torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,))


def test_assertions_sizes_and_sub_graphs_are_carried_over():
    net = randomized(Guarded())
    count = torch.tensor(2)
    graph = from_aten(export_module(net, (image, count), dynamic_shapes=({0: torch.export.Dim("N", min=2, max=9)}, None)))
    fold(graph, norms(graph)[0])
    program = judged(graph, image, count)
    agree(program, net, image, count)
    agree(program, net, image[:2], count)
    assert sum("_assert_scalar" in str(node.target) for node in program.graph.nodes) >= 2
    with pytest.raises(RuntimeError, match="Runtime assertion failed"):
        program.module()(image, torch.tensor(0))


def test_a_parameter_name_with_dots_and_digits_and_a_placeholder_called_input():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({"0": nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4)]), "out": nn.Linear(4, 2)})

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.layers["out"](self.layers["0"][1](self.layers["0"][0](input)))

    net, x = randomized(Odd()), torch.randn(3, 4)
    graph = from_aten(export_module(net, (x,), dynamic_shapes=({0: N},)))
    fold(graph, norms(graph)[0])
    program = judged(graph, x)
    agree(program, net, x)
    assert list(program.state_dict) == ["layers.0.0.weight", "layers.0.0.bias", "layers.out.weight", "layers.out.bias"]
    assert program.graph_signature.user_inputs == ("input",)
    assert [value.name for value in from_aten(program).inputs] == ["input"]
    agree(to_program(from_aten(program)), net, x)


def test_half_precision_constants_are_rounded_once():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(torch.bfloat16).eval()
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    graph = from_aten(export_module(net, (x,)))
    weight = graph.nodes[0].inputs[1]
    exact = weight.const.float64() * (1 + 1e-3)
    graph.set_input(graph.nodes[0], 1, graph.derived(weight, exact))
    program = to_program(graph)
    stored = program.state_dict["0.weight"]
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored, torch.from_numpy(exact).to(torch.bfloat16))


def test_an_output_that_is_an_input_or_a_constant():
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> Any:
            return x, self.scale, self.scale * 1, x + self.scale

    net, x = Returns().eval(), torch.randn(2, 3)
    graph = from_aten(export_module(net, (x,)))
    add = graph.outputs[3].producer
    graph.set_input(add, 1, graph.derived(add.inputs[1], np.array([1.0, 2.0, 3.0])))
    program = judged(graph, x)
    with torch.no_grad():
        came = program.module()(x)
    assert torch.equal(came[1], torch.ones(3))
    assert torch.equal(came[3], x + torch.tensor([1.0, 2.0, 3.0]))


def test_what_has_no_spelling_is_named():
    graph = from_aten(export_module(nn.Linear(4, 4).eval(), (torch.randn(2, 4),)))
    result = graph.value("odd", (2, 4), np.float32)
    graph.append(Node("com.example::Odd", [graph.outputs[0]], [result]))
    graph.outputs = [result]
    with pytest.raises(ValueError, match=r"com\.example::Odd odd> was inserted, and ATen has no spelling for it"):
        to_program(graph)


def test_an_edited_program_can_be_edited_again():
    net, captured = conv_net(dynamic=True)
    graph = from_aten(captured)
    fold(graph, norms(graph)[0])
    graph = from_aten(judged(graph, image))
    fold(graph, norms(graph)[0])
    program = judged(graph, image)
    assert not norms(from_aten(program))
    agree(program, net, image[:2])
