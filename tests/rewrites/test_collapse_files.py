"""Loops of files that no exporter of today wrote: long ones, and such whose parameters callers may override."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from build import Builder
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array
from normfold.rewrites import collapse_recurrent
from normfold.rewrites.rewrite import Policy, Rewritten
from normfold.verify.certificate import certificate
from routes import run_onnx

INPUTS, HIDDEN = 3, 4


def lstm(steps: int, overridable: tuple[str, ...] = (), *, copies: bool = False, odd: int | None = None) -> onnx.ModelProto:
    """x [1, T, 3] -> BN-LSTM written in operations -> h [1, 4] and last c.

    overridable: initializers that are graph inputs too.  copies: every step has initializers of its own, of equal content; those
    of step `odd` differ.
    """
    rng = np.random.default_rng(0)
    wide = 4 * HIDDEN
    arrays: dict[str, Array] = {"w": rng.standard_normal((wide, INPUTS)), "u": rng.standard_normal((wide, HIDDEN)) / 2}
    arrays |= {"gamma": rng.uniform(0.5, 1.5, wide), "beta": rng.standard_normal(wide), "mean": rng.standard_normal(wide)}
    arrays |= {"var": rng.uniform(0.5, 1.5, wide), "h": np.zeros((1, HIDDEN)), "c": np.zeros((1, HIDDEN))}
    tensors = {name: array.astype(np.float32) for name, array in arrays.items() if not copies or name in "hc"}
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], outputs: list[str], **attrs: int) -> None:
        nodes.append(onnx.helper.make_node(kind, inputs, outputs, name=f"{kind}{len(nodes)}", **attrs))  # type: ignore[arg-type]

    h, c = "h", "c"
    for t in range(steps):
        names = {name: f"{name}_{t}" if copies else name for name in ("w", "u", "gamma", "beta", "mean", "var")}
        if copies:
            tensors |= {new: (arrays[old] + (0.5 if t == odd else 0.0)).astype(np.float32) for old, new in names.items()}
        tensors[f"t{t}"] = np.array(t)
        add("Gather", ["x", f"t{t}"], [f"x{t}"], axis=1)
        add("Gemm", [f"x{t}", names["w"]], [f"wx{t}"], transB=1)
        add("Gemm", [h, names["u"]], [f"uh{t}"], transB=1)
        add("Add", [f"wx{t}", f"uh{t}"], [f"sum{t}"])
        statistics = [names[name] for name in ("gamma", "beta", "mean", "var")]
        add("BatchNormalization", [f"sum{t}", *statistics], [f"n{t}"])
        add("Split", [f"n{t}"], [f"{gate}{t}" for gate in "ifgo"], axis=1, num_outputs=4)
        for gate, kind in zip("ifgo", ("Sigmoid", "Sigmoid", "Tanh", "Sigmoid"), strict=True):
            add(kind, [f"{gate}{t}"], [f"a_{gate}{t}"])
        add("Mul", [f"a_f{t}", c], [f"kept{t}"])
        add("Mul", [f"a_i{t}", f"a_g{t}"], [f"new{t}"])
        c, h = f"c{t}", f"h{t}"
        add("Add", [f"kept{t}", f"new{t}"], [c])
        add("Tanh", [c], [f"tanh{t}"])
        add("Mul", [f"a_o{t}", f"tanh{t}"], [h])
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [info("x", kind, [1, steps, INPUTS]), *(info(name, kind, list(tensors[name].shape)) for name in overridable)]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    outputs = [info(name, kind, [1, HIDDEN]) for name in (h, c)]
    graph = onnx.helper.make_graph(nodes, "loop", inputs, outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def collapse(model: onnx.ModelProto, **more: Array) -> Rewritten:
    graph = from_onnx(model)
    tidy(graph)
    result = collapse_recurrent.run(graph, Policy("norms"))
    steps = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    feeds = {"x": np.random.default_rng(1).standard_normal((1, steps, INPUTS)).astype(np.float32)}
    failed = [item for item in certificate(graph, result.graph, feeds) if not item.passed]
    assert not failed, failed[:3]
    data = proto_bytes(to_model(result.graph))
    for one, two in zip(run_onnx(model.SerializeToString(), feeds | more), run_onnx(data, feeds | more), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    return result


def kinds(result: Rewritten) -> list[str]:
    return [node.kind for node in result.graph.nodes]


@pytest.mark.parametrize("steps", [2, 3, 50])
def test_lengths(steps: int) -> None:
    result = collapse(lstm(steps))
    assert kinds(result) == ["Transpose", "LSTM", "Squeeze", "Squeeze"]
    assert [fate.outcome for fate in result.fates] == ["deleted"] * steps
    assert "LSTM of 4" in result.applied[0].detail


def test_one_step_is_too_few() -> None:
    assert "LSTM" not in kinds(collapse(lstm(1)))


def test_two_steps_with_parameters_of_their_own() -> None:
    """They may be two layers: nothing is done, and nothing said."""
    assert kinds(collapse(lstm(2, copies=True))).count("LSTM") == 1
    for odd in (0, 1):
        result = collapse(lstm(2, copies=True, odd=odd))
        assert "LSTM" not in kinds(result) and not result.fates


def test_copies_of_the_parameters() -> None:
    """Equal content is enough; one step that differs is told."""
    assert kinds(collapse(lstm(4, copies=True))).count("LSTM") == 1
    for odd in (1, 2, 3):
        result = collapse(lstm(4, copies=True, odd=odd))
        assert "LSTM" not in kinds(result)
        assert {fate.refusal.code for fate in result.fates if fate.refusal is not None} == {"step-parameters"}


def test_first_step_with_parameters_of_its_own() -> None:
    """It stays in front of the layer."""
    result = collapse(lstm(5, copies=True, odd=0))
    assert kinds(result).count("LSTM") == 1 and kinds(result).count("BatchNormalization") == 1


def test_overridable_start_is_read_at_run_time() -> None:
    state = {"h": np.full((1, HIDDEN), 0.5, np.float32), "c": np.full((1, HIDDEN), -1.0, np.float32)}
    result = collapse(lstm(4, ("h", "c")), **state)
    (node,) = (node for node in result.graph.nodes if node.kind == "LSTM")
    assert node.inputs[5] is not None and node.inputs[6] is not None


@pytest.mark.parametrize("name", ["w", "u", "gamma", "var"])
def test_overridable_parameters_stay(name: str) -> None:
    result = collapse(lstm(4, (name,)))
    assert "LSTM" not in kinds(result)


def test_two_elements_of_one_place() -> None:
    """A loop that skips an element is none over the whole sequence."""
    model = lstm(4)
    next(item for item in model.graph.initializer if item.name == "t2").CopyFrom(onnx.numpy_helper.from_array(np.array(1), "t2"))
    assert "LSTM" not in kinds(collapse(model))


def test_what_is_no_loop() -> None:
    """Three elements of an axis that are used for themselves (query, key, value): nothing is said of the norm on one of them."""
    b = Builder()
    x = b.input("x", ("N", 3, 8))
    parts = [b.op("Gather", x, b.graph.constant(f"at{t}", np.array(t)), shape=("N", 8), axis=1) for t in range(3)]
    query = b.bn(b.op("Tanh", parts[0], shape=("N", 8)), name="bn")
    both = b.op("Mul", query, b.bn(parts[1]), shape=("N", 8))
    b.output(b.op("Mul", b.op("Tanh", both, shape=("N", 8)), parts[2], shape=("N", 8)))
    result = collapse_recurrent.run(b.graph, Policy("norms"))
    assert result.graph is b.graph and not result.applied and not result.fates


def test_every_h_is_read() -> None:
    model = lstm(4)
    info = onnx.helper.make_tensor_value_info
    model.graph.output.extend(info(f"h{t}", onnx.TensorProto.FLOAT, [1, HIDDEN]) for t in range(3))
    result = collapse(model)
    assert kinds(result).count("Gather") == 4 and [value.name for value in result.graph.outputs] == ["h3", "c3", "h0", "h1", "h2"]


def test_what_else_is_read() -> None:
    """A gate is computed from x_t and the h before, for itself; c before the last step is not there."""
    for name, there in (("a_o1", True), ("c1", False)):
        model = lstm(4)
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, HIDDEN]))
        result = collapse(model)
        assert ("LSTM" in kinds(result)) == there and kinds(result).count("Sigmoid") == (1 if there else 12)
        codes = {fate.refusal.code for fate in result.fates if fate.refusal is not None}
        assert codes == (set() if there else {"state-read"})
