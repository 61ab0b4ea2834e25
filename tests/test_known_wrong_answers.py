"""Known wrong answers of today's releases (other tools): each is a test here, through both adapters where torch can say it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from normfold.api import optimize
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.program import export_module
from normfold.errors import InputRefused
from normfold.export.to_onnx import proto_bytes
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.record import Record
from routes import Taken, aten, by_onnx, randomised, run_onnx, through_onnx

TOLERANCE = 2e-5  # float32 against eager float32, relative to the largest output


def both(module: nn.Module, *args: torch.Tensor, **options: Any) -> list[Taken]:
    """Both routes, with the function kept."""
    taken = [aten(module, *args, **options), by_onnx(module, *args, **options)]
    for item in taken:
        assert item.error <= TOLERANCE
    return taken


@pytest.mark.parametrize("features", [6, 5])
def test_01_batchnorm1d_over_axis_1_behind_a_linear_over_the_last(features: int) -> None:
    """torch fx.fuse, jit.freeze and ao.fuse_modules fold it into the features: error 0.7 to 0.95."""
    model = randomised(nn.Sequential(nn.Linear(4, features), nn.BatchNorm1d(6), nn.Sigmoid()))
    for taken in both(model, torch.randn(3, 6, 4)):
        assert taken.outcomes == ["kept"]


def test_02_one_conv_called_twice_with_two_norms() -> None:
    """torch fx.fuse, ao and mmcv fold both into the one weight: error 1.1 to 2.0."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn1, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.bn1(self.conv(x))) + torch.sigmoid(self.bn2(self.conv(x.flip(2))))

    for taken in both(randomised(Twice()), torch.randn(2, 4, 6, 6)):
        assert sorted(taken.outcomes) == ["deleted", "shift"] or sorted(taken.outcomes) == ["deleted", "kept"]
        assert len({node.input(1) for node in taken.outcome.graph.nodes if node.kind == "Conv"}) == 1


class _Norm(nn.BatchNorm2d):
    """A subclass that does more than its base."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(input)) + 1


class _InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.steps = [self.conv, self.bn, torch.sigmoid]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid())
    model[0].register_forward_hook(lambda module, args, output: output * 2 + 1)
    return model


def _weight_normed() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.Sigmoid())


def _weight_normed_earlier() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4), nn.Sigmoid())


class _TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.alias = self.bn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.alias(self.conv(x)))


@pytest.mark.parametrize(
    "make",
    [
        _hooked,
        _weight_normed,
        _weight_normed_earlier,
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), _Norm(4), nn.Sigmoid()),
        _InList,
        _TwoNames,
    ],
    ids=["hook", "weight_norm", "earlier weight_norm", "subclass", "plain list", "two names"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_03_what_folding_modules_gets_wrong(make: Any) -> None:
    """Folding modules leaves hooks, subclasses and listed layers running: a silent no-op, or wrong by 344."""
    model = randomised(make())
    taken = aten(model, torch.randn(2, 4, 6, 6))
    assert taken.error <= TOLERANCE
    assert taken.outcomes == ["deleted"]
    assert {node.kind for node in taken.before.nodes} <= {"Conv", "BatchNormalization", "Sigmoid", "Relu", "Add", "Mul"}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_03_a_weight_that_was_computed_with_gradients_is_copied() -> None:
    model, x = _weight_normed_earlier().eval(), torch.randn(2, 4, 6, 6)
    assert model(x).requires_grad  # so that the weight at hand is no leaf
    program = export_module(model, (x,))
    with torch.no_grad():
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)


def test_03_a_hook_that_no_capture_sees_is_refused() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()))
    model[0].register_forward_hook(lambda module, args, output: None if torch.compiler.is_compiling() else output * 2)
    with pytest.raises(InputRefused, match="hooks"):
        aten(model, torch.randn(2, 4, 6, 6))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_04_grouped_transposed_conv(groups: int) -> None:
    """pytorch#180995, onnxscript#2867: the scale on the wrong channels."""
    conv = nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, output_padding=1, groups=groups)
    for taken in both(randomised(nn.Sequential(conv, nn.BatchNorm2d(8), nn.Sigmoid())), torch.randn(2, 4, 5, 5)):
        assert taken.outcomes == ["deleted"]


def test_05_never_across_a_relu() -> None:
    """mmcv, glow#5892: Conv -> ReLU -> BN folded across the ReLU."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Sigmoid())
    for taken in both(randomised(model), torch.randn(2, 4, 6, 6), objective="latency"):
        assert taken.outcomes == ["kept"]
        assert taken.codes == ["sign"]


def test_05_nor_with_positive_gammas_where_only_the_shift_is_in_the_way() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Sigmoid())
    for taken in both(randomised(model, signed=False), torch.randn(2, 4, 6, 6)):
        assert taken.outcomes == ["shift"]


def test_05_call_order_counts_not_definition_order() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.conv2, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.bn2(self.conv2(torch.sigmoid(self.bn1(self.conv1(x))))))

    for taken in both(randomised(Crossed()), torch.randn(2, 4, 6, 6)):
        assert taken.outcomes == ["deleted", "deleted"]


def test_06_a_model_left_in_training_mode_is_captured_in_eval_mode_and_says_so() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()))
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = model(x)
    model.train()
    result = optimize(model, (x,), verify=False)
    assert model.training and model[1].num_batches_tracked == 0
    with torch.no_grad():
        assert torch.allclose(result.module(x), expected, rtol=0, atol=1e-5)
    assert any("training mode" in text for text in result.record.warnings)


def _model(
    nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], constants: dict[str, np.ndarray], opset: int = 20
) -> Any:
    graph = oh.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in constants.items()]
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9)


def _tensor(name: str, *shape: Any, dtype: int = TensorProto.FLOAT) -> Any:
    return oh.make_tensor_value_info(name, dtype, shape)


def _bn(channels: int, dtype: Any = np.float32, prefix: str = "") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = (
        rng.uniform(0.5, 1.5, channels),
        rng.standard_normal(channels),
        rng.standard_normal(channels),
        rng.uniform(0.5, 2, channels),
    )
    return {prefix + name: array.astype(dtype) for name, array in zip(("gamma", "beta", "mean", "var"), arrays, strict=True)}


BN = ["gamma", "beta", "mean", "var"]
X = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
W = np.random.default_rng(2).standard_normal((4, 4, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("opset", "outputs", "attrs"),
    [(20, ["y", "m", "v"], {"training_mode": 1}), (20, ["y"], {"training_mode": 1}), (9, ["y", "m", "v", "sm", "sv"], {})],
    ids=["training_mode", "training_mode, one output", "five outputs at opset 9"],
)
def test_06_batch_norm_in_training_mode_is_kept(opset: int, outputs: list[str], attrs: dict[str, int]) -> None:
    """onnxscript folds it: moved by 5.8."""
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("BatchNormalization", ["c", *BN], outputs, **attrs),
    ]
    declared = [_tensor("y", 2, 4, 5, 5), *(_tensor(name, 4) for name in outputs[1:])]
    model = _model(nodes, [_tensor("x", 2, 4, 5, 5)], declared, {"w": W, **_bn(4)}, opset)
    finding = rewrite(from_onnx(model), Options(objective="norms")).findings[0]
    assert finding.outcome == "kept" and finding.refusal is not None and finding.refusal.code == "training"


def test_07_a_vector_on_the_last_axis_is_no_channel_scale() -> None:
    """OnnxSlim: wrong by 15.1 when W == C."""
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype(np.float32)
    nodes = [oh.make_node("Conv", ["x", "w"], ["c"]), oh.make_node("Mul", ["c", "k"], ["y"])]
    constants = {"w": W, "k": np.array([1, 2, 3, 4], np.float32)}
    model = _model(nodes, [_tensor("x", 2, 4, 4, 4)], [_tensor("y", 2, 4, 4, 4)], constants)
    outcome, _, came = through_onnx(model, {"x": x})
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": x})[0], atol=1e-5)
    assert [node.kind for node in outcome.graph.nodes] == ["Conv", "Mul"]


@pytest.mark.parametrize(("size", "var"), [(60.0, 6e-8), (1e-3, 6e4)], ids=["overflow", "subnormal rows"])
def test_09_what_leaves_the_range_of_half_precision_is_refused_not_written(size: float, var: float) -> None:
    """Four tools write NaN."""
    constants = {"w": (W * size).astype(np.float16), **_bn(4, np.float16)}
    constants["var"] = np.full(4, var, np.float16)
    nodes = [oh.make_node("Conv", ["x", "w"], ["c"]), oh.make_node("BatchNormalization", ["c", *BN], ["b"], epsilon=0.0),
             oh.make_node("Sigmoid", ["b"], ["y"])]  # fmt: skip
    model = _model(
        nodes,
        [_tensor("x", 2, 4, 5, 5, dtype=TensorProto.FLOAT16)],
        [_tensor("y", 2, 4, 5, 5, dtype=TensorProto.FLOAT16)],
        constants,
    )
    outcome, _, came = through_onnx(model, {"x": X.astype(np.float16)})
    assert outcome.findings[0].outcome == "kept"
    assert outcome.findings[0].refusal is not None and outcome.findings[0].refusal.code == "range"
    assert np.array_equal(came[0], run_onnx(model.SerializeToString(), {"x": X.astype(np.float16)})[0])


def test_09_a_variance_that_half_precision_cannot_hold() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3).half(), randomised(nn.BatchNorm2d(4))
            self.bn.running_var = torch.tensor([1e5, 2e5, 1.0, 3e5])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.bn(self.conv(x)))

    taken = aten(Mixed().eval(), torch.randn(2, 4, 6, 6).half())
    assert taken.outcomes == ["deleted"]
    assert taken.error <= 2e-3


@pytest.mark.parametrize("bias", [(), (6,), (1, 6), (3, 1), (3, 6)])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_10_gemm_attributes_and_bias_shapes(bias: tuple[int, ...], trans_b: int) -> None:
    """onnxscript#3027."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 5) if trans_b else (5, 6)).astype(np.float32)
    constants = {"w": weight, "k": rng.standard_normal(bias).astype(np.float32), **_bn(6)}
    nodes = [oh.make_node("Gemm", ["x", "w", "k"], ["g"], alpha=0.5, beta=2.0, transB=trans_b),
             oh.make_node("BatchNormalization", ["g", *BN], ["b"]), oh.make_node("Sigmoid", ["b"], ["y"])]  # fmt: skip
    model = _model(nodes, [_tensor("x", 3, 5)], [_tensor("y", 3, 6)], constants)
    x = rng.standard_normal((3, 5)).astype(np.float32)
    outcome, _, came = through_onnx(model, {"x": x})
    assert outcome.findings[0].outcome == "deleted"
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": x})[0], atol=1e-5)


def _gemm_model(first: str, second: str, constants: dict[str, np.ndarray], bias: bool, **attrs: Any) -> Any:
    """A Gemm and a norm, either in front."""
    made = {
        "gemm": lambda x, y: oh.make_node("Gemm", [x, "w", "k"] if bias else [x, "w"], [y], **attrs),
        "norm": lambda x, y: oh.make_node("BatchNormalization", [x, *BN], [y]),
    }
    nodes = [made[first]("x", "h"), made[second]("h", "z"), oh.make_node("Sigmoid", ["z"], ["y"])]
    inner, outer = constants["w"].shape[::-1] if attrs.get("transB") else constants["w"].shape
    shape = (inner, 3) if attrs.get("transA") else (3, inner)
    return _model(nodes, [_tensor("x", *shape)], [_tensor("y", 3, outer)], constants), shape


@pytest.mark.parametrize("bias", [None, (), (6,), (3, 1)])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_10_gemm_behind_the_norm(bias: tuple[int, ...] | None, trans_b: int) -> None:
    """There alpha counts: the shift passes through alpha W."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((6, 5) if trans_b else (5, 6)).astype(np.float32), **_bn(5)}
    if bias is not None:
        constants["k"] = rng.standard_normal(bias).astype(np.float32)
    model, shape = _gemm_model("norm", "gemm", constants, bias is not None, alpha=0.5, beta=2.0, transB=trans_b)
    x = rng.standard_normal(shape).astype(np.float32)
    outcome, _, came = through_onnx(model, {"x": x})
    assert outcome.findings[0].outcome == "deleted"
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": x})[0], atol=1e-5)


@pytest.mark.parametrize(("order", "fate"), [(("gemm", "norm"), "deleted"), (("norm", "gemm"), "kept")], ids=["behind", "before"])
def test_10_gemm_with_a_transposed_a(order: tuple[str, str], fate: str) -> None:
    """In front of it a norm over axis 1 runs over the rows of A', not over the features."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((3, 3)).astype(np.float32), **_bn(3)}
    model, shape = _gemm_model(*order, constants, False, transA=1)
    x = rng.standard_normal(shape).astype(np.float32)
    outcome, _, came = through_onnx(model, {"x": x})
    assert outcome.findings[0].outcome == fate
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": x})[0], atol=1e-5)


def test_10_gemm_with_a_beta_of_zero_has_no_bias_to_fold_into() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((5, 6)).astype(np.float32), "k": np.ones(6, np.float32), **_bn(6)}
    model, shape = _gemm_model("gemm", "norm", constants, True, beta=0.0)
    x = rng.standard_normal(shape).astype(np.float32)
    outcome, _, came = through_onnx(model, {"x": x})
    assert outcome.findings[0].outcome == "kept"
    assert np.array_equal(came[0], run_onnx(model.SerializeToString(), {"x": x})[0])


def _conv_bn_model(extra_inputs: list[Any]) -> Any:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("BatchNormalization", ["c", *BN], ["b"]),
        oh.make_node("Sigmoid", ["b"], ["y"]),
    ]
    return _model(nodes, [_tensor("x", 2, 4, 5, 5), *extra_inputs], [_tensor("y", 2, 4, 5, 5)], {"w": W, **_bn(4)})


def test_11_some_initializers_that_are_inputs_stay_overridable() -> None:
    model = _conv_bn_model([_tensor("gamma", 4)])
    outcome, graph, came = through_onnx(model, {"x": X})
    assert np.array_equal(came[0], run_onnx(model.SerializeToString(), {"x": X})[0])
    assert [value.name for value in graph.pinned] == ["gamma"]
    assert outcome.findings[0].outcome == "kept"
    assert outcome.findings[0].refusal is not None and outcome.findings[0].refusal.code == "overridable"


def test_11_all_initializers_that_are_inputs_are_constants() -> None:
    arrays = {"w": W, **_bn(4)}
    record = Record()
    model = _conv_bn_model([_tensor(name, *array.shape) for name, array in arrays.items()])
    graph = from_onnx(model, record=record)
    assert not graph.pinned and len(record.warnings) == 1


def test_11_a_taken_name_and_an_empty_optional_bias() -> None:
    nodes = [oh.make_node("Conv", ["x", "w", ""], ["c"]), oh.make_node("BatchNormalization", ["c", *BN], ["w_bias"]),
             oh.make_node("Sigmoid", ["w_bias"], ["w_folded"])]  # fmt: skip
    model = _model(nodes, [_tensor("x", 2, 4, 5, 5)], [_tensor("w_folded", 2, 4, 5, 5)], {"w": W, **_bn(4)})
    outcome, _, came = through_onnx(model, {"x": X})
    assert outcome.findings[0].outcome == "deleted"
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": X})[0], atol=1e-5)


def test_12_a_conv_output_that_is_a_graph_output() -> None:
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("BatchNormalization", ["c", *BN], ["b"]),
        oh.make_node("Sigmoid", ["b"], ["y"]),
    ]
    model = _model(nodes, [_tensor("x", 2, 4, 5, 5)], [_tensor("c", 2, 4, 5, 5), _tensor("y", 2, 4, 5, 5)], {"w": W, **_bn(4)})
    outcome, _, came = through_onnx(model, {"x": X})
    assert outcome.findings[0].outcome == "kept"
    for a, b in zip(came, run_onnx(model.SerializeToString(), {"x": X}), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("inside", ["the conv's output is captured", "the norm's output is captured", "conv and norm inside"])
def test_12_sub_graphs(inside: str) -> None:
    norm = oh.make_node("BatchNormalization", ["c", *BN], ["b"])
    sigmoid = oh.make_node("Sigmoid", ["b"], ["y"])
    conv = oh.make_node("Conv", ["x", "w"], ["c"])
    if inside == "conv and norm inside":
        inner = [f"i{name}" for name in BN]
        # a name inside that the folded weight outside would like to have
        body = [
            oh.make_node("Conv", ["x", "iw"], ["w_folded"]),
            oh.make_node("BatchNormalization", ["w_folded", *inner], ["branch"]),
        ]
    else:
        body = [oh.make_node("Identity", ["c" if "conv's" in inside else "b"], ["branch"])]
    rest = [oh.make_node("Add", ["y", "z"], ["out"])]
    then = oh.make_graph(body, "then", [], [_tensor("branch", 2, 4, 5, 5)])
    other = oh.make_graph([oh.make_node("Identity", ["x"], ["other"])], "else", [], [_tensor("other", 2, 4, 5, 5)])
    nodes = [conv, norm, sigmoid, oh.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=other), *rest]
    inputs = [_tensor("x", 2, 4, 5, 5), _tensor("flag", dtype=TensorProto.BOOL)]
    model = _model(nodes, inputs, [_tensor("out", 2, 4, 5, 5)], {"w": W, "iw": W, **_bn(4), **_bn(4, prefix="i")})
    outcome = rewrite(from_onnx(model), Options(objective="norms"))
    assert outcome.findings[0].outcome == ("deleted" if inside == "conv and norm inside" else "kept")
    refusal = outcome.findings[0].refusal
    assert refusal is None or refusal.code == "captured"
    written = to_model(outcome.graph)
    inner_names = {value.name for graph in written.graph.subgraphs() for node in graph for value in node.outputs}
    assert inner_names.isdisjoint(written.graph.initializers)
    data = proto_bytes(written)
    for flag in (True, False):
        feeds = {"x": X, "flag": np.array(flag)}
        assert np.allclose(run_onnx(data, feeds)[0], run_onnx(model.SerializeToString(), feeds)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "epsilon"),
    [
        ("var", -1.0, 0.0),
        ("var", -1e-6, 1e-5),  # finite, but no variance
        ("var", np.nan, 0.0),
        ("var", 0.0, 0.0),
        ("gamma", np.inf, 0.0),
        ("mean", np.nan, 0.0),
        ("beta", np.inf, 0.0),
    ],
)
def test_13_unhealthy_statistics_are_kept_with_their_nan_pattern(name: str, value: float, epsilon: float) -> None:
    constants = {"w": W, **_bn(4)}
    constants[name] = constants[name].copy()
    constants[name][1] = value
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("BatchNormalization", ["c", *BN], ["b"], epsilon=epsilon),
        oh.make_node("Relu", ["b"], ["y"]),
    ]
    model = _model(nodes, [_tensor("x", 2, 4, 5, 5)], [_tensor("y", 2, 4, 5, 5)], constants)
    outcome, _, came = through_onnx(model, {"x": X})
    assert outcome.findings[0].outcome == "kept"
    assert outcome.findings[0].refusal is not None and outcome.findings[0].refusal.code == "non-finite"
    assert np.array_equal(came[0], run_onnx(model.SerializeToString(), {"x": X})[0], equal_nan=True)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, eps=0.5),
        nn.BatchNorm2d(4, eps=1e-12),
        nn.BatchNorm2d(4, momentum=None),
        nn.InstanceNorm2d(4, track_running_stats=True, affine=True),
    ],
    ids=["affine=False", "large eps", "small eps", "momentum None", "tracked instance norm"],
)
def test_16_unusual_norms(norm: nn.Module) -> None:
    for taken in both(randomised(nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.Sigmoid())), torch.randn(2, 4, 6, 6)):
        assert taken.outcomes == ["deleted"]
        assert taken.norms_left() == 0
        (captured,) = [node for node in taken.before.nodes if node.kind == "BatchNormalization"]
        assert captured.attrs["epsilon"] == pytest.approx(norm.eps, rel=1e-6, abs=0)


def test_16_half_precision_norm_between_float_convs() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3), randomised(nn.BatchNorm2d(4)).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.bn(self.conv(x).half()).float())

    taken = aten(Mixed().eval(), torch.randn(2, 4, 6, 6))
    assert taken.outcomes == ["deleted"]
    assert {value.dtype for value in taken.outcome.graph.constants()} == {np.dtype(np.float32)}
    assert taken.error <= 2e-3  # half an ulp of float16 through the norm, as in the original


def test_17_a_right_fold_is_not_reported_as_a_bug() -> None:
    """onnx/optimizer#255: a right fold of a layer with a tiny variance fails fixed tolerances and passes the gates."""
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model[1].running_var = torch.tensor([1e-9, 1.0, 1e-12, 0.5])
    x = torch.randn(2, 4, 12, 12)
    with torch.no_grad():
        expected = model(x)
    result = optimize(model, (x,), verify=True)
    assert result.record.passed
    assert [finding.outcome for finding in result.record.findings] == ["deleted"]
    with torch.no_grad():
        assert (result.module(x) - expected).abs().max() > 1e-5  # what a fixed tolerance would call a bug


def test_every_answer_has_a_guard_that_tools_mutate_can_take_out() -> None:
    root = Path(__file__).parent.parent
    guards = tomllib.loads((root / "tools/guards.toml").read_text())["guard"]
    named = re.findall(r"^def test_(\d\d)_", Path(__file__).read_text(), re.MULTILINE)
    assert {guard["item"] for guard in guards} == {int(number) for number in named}
    for cut in (cut for guard in guards for cut in guard["cut"]):
        assert (root / cut["file"]).read_text().count(cut["code"].strip("\n")) == 1, f"tools/guards.toml: {cut}"
