"""Known wrong answers of today's releases (other tools): each is a test here, through both adapters where torch can say it."""

from __future__ import annotations

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


class _TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.alias = self.bn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.alias(self.conv(x)))


@pytest.mark.parametrize(
    "make",
    [_hooked, _weight_normed, lambda: nn.Sequential(nn.Conv2d(4, 4, 3), _Norm(4), nn.Sigmoid()), _InList, _TwoNames],
    ids=["hook", "weight_norm", "subclass", "plain list", "two names"],
)
def test_03_what_folding_modules_gets_wrong(make: Any) -> None:
    """Folding modules leaves hooks, subclasses and listed layers running: a silent no-op, or wrong by 344."""
    model = randomised(make())
    taken = aten(model, torch.randn(2, 4, 6, 6))
    assert taken.error <= TOLERANCE
    assert taken.outcomes == ["deleted"]


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


def test_06_batch_norm_with_training_mode_1_is_kept() -> None:
    """onnxscript folds it: moved by 5.8."""
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("BatchNormalization", ["c", *BN], ["y", "m", "v"], training_mode=1),
    ]
    outputs = [_tensor("y", 2, 4, 5, 5), _tensor("m", 4), _tensor("v", 4)]
    model = _model(nodes, [_tensor("x", 2, 4, 5, 5)], outputs, {"w": W, **_bn(4)})
    graph = from_onnx(model)
    from normfold.pipeline import Options
    from normfold.pipeline.rewriting import rewrite

    finding = rewrite(graph, Options(objective="norms")).findings[0]
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


def test_09_half_precision_overflow_is_refused_not_written_as_nan() -> None:
    constants = {"w": (W * 60).astype(np.float16), **_bn(4, np.float16)}
    constants["var"] = np.full(4, 6e-8, np.float16)
    nodes = [oh.make_node("Conv", ["x", "w"], ["c"]), oh.make_node("BatchNormalization", ["c", *BN], ["b"], epsilon=0.0),
             oh.make_node("Sigmoid", ["b"], ["y"])]  # fmt: skip
    model = _model(
        nodes,
        [_tensor("x", 2, 4, 5, 5, dtype=TensorProto.FLOAT16)],
        [_tensor("y", 2, 4, 5, 5, dtype=TensorProto.FLOAT16)],
        constants,
    )
    outcome, _, _ = through_onnx(model, {"x": X.astype(np.float16)})
    assert outcome.findings[0].refusal is not None and outcome.findings[0].refusal.code == "range"


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


def test_10_gemm_with_a_transposed_a() -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((5, 6)).astype(np.float32), **_bn(6)}
    nodes = [oh.make_node("Gemm", ["x", "w"], ["g"], transA=1), oh.make_node("BatchNormalization", ["g", *BN], ["b"]),
             oh.make_node("Sigmoid", ["b"], ["y"])]  # fmt: skip
    model = _model(nodes, [_tensor("x", 5, 3)], [_tensor("y", 3, 6)], constants)
    x = rng.standard_normal((5, 3)).astype(np.float32)
    outcome, _, came = through_onnx(model, {"x": x})
    assert outcome.findings[0].outcome == "deleted"
    assert np.allclose(came[0], run_onnx(model.SerializeToString(), {"x": x})[0], atol=1e-5)


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


@pytest.mark.parametrize("inside", ["the conv's output is captured", "conv and norm inside"])
def test_12_sub_graphs(inside: str) -> None:
    norm = oh.make_node("BatchNormalization", ["c", *BN], ["b"])
    sigmoid = oh.make_node("Sigmoid", ["b"], ["y"])
    conv = oh.make_node("Conv", ["x", "w"], ["c"])
    if inside == "conv and norm inside":
        inner = [f"i{name}" for name in BN]
        body = [oh.make_node("Conv", ["x", "iw"], ["ic"]), oh.make_node("BatchNormalization", ["ic", *inner], ["branch"])]
    else:
        body = [oh.make_node("Identity", ["c"], ["branch"])]
    rest = [oh.make_node("Add", ["y", "z"], ["out"])]
    then = oh.make_graph(body, "then", [], [_tensor("branch", 2, 4, 5, 5)])
    other = oh.make_graph([oh.make_node("Identity", ["x"], ["other"])], "else", [], [_tensor("other", 2, 4, 5, 5)])
    nodes = [conv, norm, sigmoid, oh.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=other), *rest]
    inputs = [_tensor("x", 2, 4, 5, 5), _tensor("flag", dtype=TensorProto.BOOL)]
    model = _model(nodes, inputs, [_tensor("out", 2, 4, 5, 5)], {"w": W, "iw": W, **_bn(4), **_bn(4, prefix="i")})
    from normfold.capture.onnx_write import to_model
    from normfold.export.to_onnx import proto_bytes
    from normfold.pipeline import Options
    from normfold.pipeline.rewriting import rewrite

    outcome = rewrite(from_onnx(model), Options(objective="norms"))
    assert outcome.findings[0].outcome == ("deleted" if inside == "conv and norm inside" else "kept")
    data = proto_bytes(to_model(outcome.graph))
    for flag in (True, False):
        feeds = {"x": X, "flag": np.array(flag)}
        assert np.allclose(run_onnx(data, feeds)[0], run_onnx(model.SerializeToString(), feeds)[0], atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("var", -1.0), ("var", np.nan), ("gamma", np.inf), ("mean", np.nan), ("var", 0.0)])
def test_13_unhealthy_statistics_are_kept_with_their_nan_pattern(name: str, value: float) -> None:
    constants = {"w": W, **_bn(4)}
    constants[name] = constants[name].copy()
    constants[name][1] = value
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["c"]),
        oh.make_node("BatchNormalization", ["c", *BN], ["b"], epsilon=0.0),
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
        assert taken.error <= TOLERANCE


def test_16_half_precision_norm_between_float_convs() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3), randomised(nn.BatchNorm2d(4)).half()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.bn(self.conv(x).half()).float())

    taken = aten(Mixed().eval(), torch.randn(2, 4, 6, 6))
    assert taken.error <= 2e-3  # half an ulp of float16 through the norm, as in the original


def test_17_a_right_fold_is_not_reported_as_a_bug() -> None:
    """onnx/optimizer#255: a right fold of a layer with a tiny variance fails fixed tolerances and passes the gates."""
    model = randomised(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    model[1].running_var = torch.tensor([1e-9, 1.0, 1e-12, 0.5])
    x = torch.randn(2, 4, 12, 12)
    result = optimize(model, (x,), verify=True)
    assert result.record.passed
    assert [finding.outcome for finding in result.record.findings] == ["deleted"]
