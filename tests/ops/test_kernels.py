"""Every kernel against ONNX Runtime (or onnx.reference where the runtime lacks the op), and every attribute for effect."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.reference
import onnxruntime
import pytest

from kernel_cases import CASES, Case
from normfold.errors import CannotTell
from normfold.graph import Graph, Node
from normfold.ops import kernels
from normfold.ops.kernels import can_evaluate, evaluate, is_light
from normfold.ops.kernels.registry import ATTRIBUTES

# Attributes without effect on the value of what the kernels compute.
INERT = {
    "Conv": {"kernel_shape"},  # repeats the weight's shape; a mismatch is refused
    "ConvTranspose": {"kernel_shape"},
    "ConvInteger": {"kernel_shape", "auto_pad", "dilations"},  # the code of Conv
    "Cast": {"saturate", "round_mode"},  # only for float8
    "CastLike": {"saturate", "round_mode"},
    "Dropout": {"ratio", "seed", "training_mode"},  # random: training_mode is refused
    "GroupNormalization": {"stash_type"},
    "LayerNormalization": {"stash_type"},
    "RMSNormalization": {"stash_type"},
    "Attention": {"softmax_precision", "qk_matmul_output_mode"},  # other modes are refused
    "DequantizeLinear": {"output_dtype", "block_size"},  # blocks are refused
    "QuantizeLinear": {"saturate", "precision", "block_size"},
    "TopK": {"sorted"},  # the order is open without it
    "Split": {"num_outputs"},  # the number of outputs says the same
    "MaxPool": {"storage_order"},  # refused where it shows
    "MaxUnpool": {"output_shape"},  # refused where it shows
    "DFT": {"axis", "dft_length"},  # tested as inputs
    "STFT": {"frame_length", "frame_step"},
    "Range": {"stash_type"},  # half precision is computed in float32 anyway
    **{kind: {"noop_with_empty_axes"} for kind in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")},
    **{kind: {"hidden_size"} for kind in ("GRU", "LSTM", "RNN")},  # repeats the weights' shape; a mismatch is refused
}
AS_INPUT = {  # static parameters that the table passes as inputs
    "AffineGrid": {"size"}, "ConstantOfShape": {"shape"}, "CumSum": {"axis"}, "OneHot": {"depth"},
    "Range": {"start", "limit", "delta"}, "TopK": {"k"}, "HannWindow": {"size"}, "HammingWindow": {"size"},
    "BlackmanWindow": {"size"},
}  # fmt: skip


def node_of(case: Case, attrs: dict[str, Any] | None = None, slots: int | None = None) -> Node:
    graph = Graph()
    inputs = [None if item is None else graph.value(f"x{i}") for i, item in enumerate(case.inputs)]
    outputs = [graph.value(f"y{i}") for i in range(case.outputs)]
    return Node(case.kind, inputs, outputs, dict(case.attrs if attrs is None else attrs), name="tested")


def wide(array: Any) -> Any:
    if array is None:
        return None
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype == np.float32 else array


def schema_inputs(kind: str) -> list[str]:
    return [item.name for item in onnx.defs.get_schema(kind).inputs]


def onnx_form(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The case as a model: static parameters become inputs where the newest schema has them there."""
    formal = schema_inputs(case.kind)
    values: list[Any] = list(case.inputs)
    attributes: dict[str, Any] = {}
    known = onnx.defs.get_schema(case.kind).attributes
    for key, value in case.attrs.items():
        if key in known:
            if isinstance(value, np.dtype):
                value = onnx.helper.np_dtype_to_tensor_dtype(value)
            attributes[key] = onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
            continue
        slot = formal.index(key)
        while len(values) <= slot:
            values.append(None)
        reference = np.asarray(values[0])
        if isinstance(value, float):
            value = np.asarray(value, reference.dtype)
        values[slot] = np.asarray(value) if not isinstance(value, tuple) else np.asarray(value, np.int64)
    feeds = {f"x{i}": np.asarray(value) for i, value in enumerate(values) if value is not None}
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(values)]
    while names and not names[-1]:
        names.pop()
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = onnx.helper.make_node(case.kind, names, outputs, **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    graph = onnx.helper.make_graph([node], "case", infos, [onnx.helper.make_empty_tensor_value_info(name) for name in outputs])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", case.opset)], ir_version=10)
    return model, feeds


def judged(case: Case) -> list[Any]:
    model, feeds = onnx_form(case)
    if case.judge == "onnx":
        return list(onnx.reference.ReferenceEvaluator(model).run(None, feeds))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def close(mine: Any, theirs: Any, tolerance: float) -> None:
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    assert mine.shape == theirs.shape
    if theirs.dtype.kind in "biu":
        assert mine.dtype.kind == theirs.dtype.kind
        np.testing.assert_array_equal(mine, theirs)
        return
    assert np.array_equal(np.isnan(mine), np.isnan(theirs))
    scale = np.max(np.abs(theirs[np.isfinite(theirs)]), initial=1e-30)
    np.testing.assert_allclose(mine.astype(np.float64), theirs.astype(np.float64), rtol=tolerance * 4, atol=tolerance * scale)


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case.label}" for n, case in enumerate(CASES)])
def test_kernel_agrees_with_the_runtime(case: Case) -> None:
    if case.judge == "scalars":
        case = Case(case.kind, tuple(np.asarray(item).reshape(()) for item in case.inputs), case.attrs, case.outputs)
    results = evaluate(node_of(case), [wide(item) for item in case.inputs])
    for mine, theirs in zip(results, judged(case), strict=True):
        close(mine, theirs, case.tolerance)


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case.label}" for n, case in enumerate(CASES)])
def test_kernel_keeps_the_type_that_comes_in(case: Case) -> None:
    narrow = evaluate(node_of(case), [None if item is None else np.asarray(item) for item in case.inputs])
    broad = evaluate(node_of(case), [wide(item) for item in case.inputs])
    for a, b in zip(narrow, broad, strict=True):
        assert a.shape == b.shape
        assert a.dtype == (np.float32 if b.dtype == np.float64 and case.attrs.get("output_datatype") is None else b.dtype)


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case.label}" for n, case in enumerate(CASES)])
def test_kernel_leaves_its_inputs_alone(case: Case) -> None:
    arrays = [wide(item) for item in case.inputs]
    before = [None if item is None else item.copy() for item in arrays]
    for item in arrays:
        if item is not None:
            item.flags.writeable = False
    evaluate(node_of(case), arrays)
    for a, b in zip(arrays, before, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "case", [case for case in CASES if set(case.attrs) & set(schema_inputs(case.kind))], ids=lambda c: c.label
)
def test_a_static_parameter_may_come_as_an_input(case: Case) -> None:
    formal = schema_inputs(case.kind)
    arrays: list[Any] = [wide(item) for item in case.inputs]
    attrs = dict(case.attrs)
    for name in set(attrs) & set(formal):
        slot = formal.index(name)
        while len(arrays) <= slot:
            arrays.append(None)
        arrays[slot] = np.asarray(attrs.pop(name))
    for mine, theirs in zip(
        evaluate(node_of(case, attrs), arrays), evaluate(node_of(case), [wide(x) for x in case.inputs]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def differs(case: Case, attrs: dict[str, Any]) -> bool:
    """True when these attributes give another result than the case's own, or none."""
    arrays = [wide(item) for item in case.inputs]
    try:
        other = evaluate(node_of(case, attrs), arrays)
    except CannotTell:
        return True
    own = evaluate(node_of(case), arrays)
    return any(
        a.shape != b.shape or a.dtype != b.dtype or not np.allclose(a, b, 1e-4, 1e-6, equal_nan=True)
        for a, b in zip(other, own, strict=True)
    )


@pytest.mark.parametrize("kind", sorted(kernels.KERNELS))
def test_every_attribute_matters(kind: str) -> None:
    """For each attribute a kernel accepts, the table holds a case that comes out otherwise when it is ignored."""
    mine = [case for case in CASES if case.kind == kind]
    for name in ATTRIBUTES[kind] - INERT.get(kind, set()) - AS_INPUT.get(kind, set()):
        assert any(
            name in case.attrs and differs(case, {key: value for key, value in case.attrs.items() if key != name})
            for case in mine
        ), f"no case of {kind} shows {name}"


def test_every_kernel_is_in_the_table() -> None:
    random = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
    optional = {"Optional", "OptionalHasElement", "OptionalGetElement"}
    assert set(kernels.KERNELS) - {case.kind for case in CASES} == random | optional


@pytest.mark.parametrize("kind", sorted(kernels.KERNELS))
def test_every_attribute_of_the_newest_schema_is_known(kind: str) -> None:
    """So that an attribute is refused only when it is not ONNX's; forms that are not computed are refused by value."""
    known = set(onnx.defs.get_schema(kind).attributes)
    deliberate = {"Constant": {"sparse_value", "value_string", "value_strings"}}
    random = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Optional"}
    if kind not in random:
        assert known - ATTRIBUTES[kind] == deliberate.get(kind, set())


Make = Callable[..., Node]


@pytest.fixture
def make() -> Make:
    def build(kind: str, inputs: int, outputs: int = 1, **attrs: Any) -> Node:
        graph = Graph()
        return Node(kind, [graph.value("x") for _ in range(inputs)], [graph.value("y") for _ in range(outputs)], attrs, name="n0")

    return build


def test_gemm_acts_on_the_last_axis_of_any_rank(make: Make) -> None:
    a, w, c = np.random.default_rng(0).standard_normal((2, 3, 4)), np.eye(4)[:3] * 2, np.arange(3.0)
    (y,) = evaluate(make("Gemm", 3, transB=1, alpha=0.5), [a, w, c])
    np.testing.assert_allclose(y, a[..., :3] + c)


def test_erf_is_right_to_the_last_digits_of_float64(make: Make) -> None:
    x = np.concatenate([np.linspace(-6.5, 6.5, 2601), [0.46875, 4.0, 1e-300, 0.0, -0.0]])
    (y,) = evaluate(make("Erf", 1), [x])
    np.testing.assert_allclose(y, [math.erf(item) for item in x], rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    "kind, inputs, attrs, words",
    [
        ("Resize", [np.zeros((1, 1, 4))], {"mode": "area", "sizes": (1, 1, 2)}, "mode 'area'"),
        ("Pad", [np.zeros(4)], {"mode": "mirror", "pads": (1, 1)}, "mode 'mirror'"),
        ("Conv", [np.zeros((1, 3, 4)), np.zeros((2, 2, 1))], {}, "group 1"),
        ("Conv", [np.zeros((1, 2, 4)), np.zeros((2, 2, 1))], {"strides": (0,)}, "strides"),
        ("Dropout", [np.zeros(4)], {"training_mode": 1}, "training_mode"),
        ("GroupNormalization", [np.zeros((1, 4, 2)), np.zeros(2), np.zeros(2)], {"num_groups": 2}, "scale of 2"),
        ("Relu", [np.zeros(4)], {"slope": 0.1}, "attribute slope"),
        ("RandomNormal", [], {}, "random"),
        ("Softmax", [np.zeros((2, 2))], {"axis": 2}, "axis 2"),
        ("DFT", [np.zeros((2, 6, 1))], {"axis": 2}, "axis 2 of shape"),
        ("LSTM", [np.zeros((1, 1, 2)), np.zeros((1, 8, 2)), np.zeros((1, 8, 2))], {"activations": ["A", "B", "C"]}, "activation"),
        ("Reshape", [np.zeros(4), np.array([3])], {}, "failed"),
        ("Gather", [np.zeros(4), np.array([9])], {}, "failed"),
        ("acme::Twist", [np.zeros(4)], {}, "acme::Twist"),
    ],
)
def test_what_is_not_computed_is_said(make: Make, kind: str, inputs: list[Any], attrs: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotTell, match=words) as caught:
        evaluate(make(kind, len(inputs), **attrs), inputs)
    assert kind in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_fallback_serves_kinds_without_kernel_and_unknown_attributes(make: Make) -> None:
    custom, odd = make("acme::Twist", 1), make("Relu", 1, slope=0.1)
    assert not can_evaluate(custom)
    for node in (custom, odd):
        node.fallback = lambda arrays: [-arrays[0]] if arrays[0] is not None else []
        assert can_evaluate(node)
        np.testing.assert_array_equal(evaluate(node, [np.array([1.0, -2.0])])[0], [-1.0, 2.0])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_and_rounded_once(make: Make, half: str) -> None:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, half)) if half == "bfloat16" else np.dtype(half)
    x = np.full(4096, 0.001, dtype=dtype)
    (total,) = evaluate(make("ReduceSum", 1, keepdims=0), [x])
    assert total.dtype == dtype
    assert total == np.asarray(x.astype(np.float64).sum()).astype(dtype)
    (scaled,) = evaluate(make("Clip", 1, min=0.0, max=0.5), [x])
    assert scaled.dtype == dtype


def test_light_kernels_never_import_torch() -> None:
    code = "import sys, normfold.ops; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert is_light("Conv")
    assert is_light("Reshape")
    assert not is_light("acme::Twist")


def test_large_convolutions_go_in_slabs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from normfold.ops.kernels import conv

    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 13, 9)), rng.standard_normal((6, 2, 3, 3))
    node = make("Conv", 2, group=2, strides=(2, 1), dilations=(2, 1), pads=(1, 1, 0, 1))
    (whole,) = evaluate(node, [x, w])
    monkeypatch.setattr(conv, "_SLAB_BYTES", 1)
    np.testing.assert_allclose(evaluate(node, [x, w])[0], whole, rtol=0, atol=1e-13)


def _attended(make: Make, mask: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((1, 2, 3, 4)), rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((1, 2, 5, 6))
    return evaluate(make("Attention", 4), [q, k, v, mask])[0]


def test_attention_neither_overflows_nor_divides_by_nothing(make: Make) -> None:
    plain = _attended(make, np.zeros((3, 5)))
    np.testing.assert_allclose(_attended(make, np.full((3, 5), 720.0)), plain, rtol=1e-10)  # a softmax does not feel a shift
    blind = np.ones((3, 5), dtype=np.bool_)
    blind[1] = False
    half = _attended(make, blind)
    np.testing.assert_array_equal(half[:, :, 1], 0.0)  # a query that may see nothing
    np.testing.assert_allclose(half[:, :, [0, 2]], plain[:, :, [0, 2]])


def test_attention_refuses_a_mask_for_fewer_keys(make: Make) -> None:
    with pytest.raises(CannotTell, match="a mask of 4 for 5 keys"):
        _attended(make, np.zeros((1, 1, 3, 4)))
    assert _attended(make, np.zeros((1, 1, 3, 5))).shape == (1, 2, 3, 6)
