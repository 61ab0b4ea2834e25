"""Constant folding and operations without effect: what goes, what stays, and that the function is the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from build import Builder
from normfold.capture import tidy as module
from normfold.capture.dims import KnownDims
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import Tidied, tidy
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array, Graph, Node, Value, to_text
from normfold.record import Record
from onnx_models import I64, F, conv_bn, floats, info, model, run_ort

Nodes = list[onnx.NodeProto]
op = helper.make_node


def captured(nodes: Nodes, shape: tuple[Any, ...] = (2, 3), weights: dict[str, Array] | None = None, **options: Any) -> Graph:
    return from_onnx(model(nodes, [info("x", shape)], [info("y", None)], weights, **options))


def tidied(nodes: Nodes, shape: tuple[Any, ...] = (2, 3), weights: dict[str, Array] | None = None, **options: Any) -> list[str]:
    """Kinds that are left; ONNX Runtime gives the same bits before and after."""
    x = floats(*(size if isinstance(size, int) else 2 for size in shape), seed=3)
    proto = model(nodes, [info("x", shape)], [info("y", None)], weights, **options)
    (expected,) = run_ort(proto, {"x": x})
    proto.graph.output[0].CopyFrom(info("y", [None] * expected.ndim))
    graph = from_onnx(proto)
    tidy(graph)
    written = proto_bytes(to_model(graph.validate()))
    onnx.checker.check_model(written, full_check=True)
    (found,) = run_ort(written, {"x": x})
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
    return [node.kind for node in graph.nodes]


# ---- constants ----------------------------------------------------------------------------------------------------------


def test_what_constants_alone_decide_is_computed_once_in_float64() -> None:
    weights = {"a": floats(2, 3), "b": floats(2, 3, seed=1)}
    graph = captured([op("Mul", ["a", "b"], ["p"]), op("Exp", ["p"], ["e"]), op("Add", ["x", "e"], ["y"])], weights=weights)
    record = Record()
    assert tidy(graph, record) == Tidied(folded=2)
    (node,) = graph.nodes
    const = node.inputs[1].const
    assert (node.inputs[1].name, const.dtype, const.pending) == ("e", np.float32, True)
    exact = np.exp(weights["a"].astype(np.float64) * weights["b"])
    np.testing.assert_allclose(const.read(), exact, rtol=1e-15)
    assert not np.array_equal(const.read(), exact.astype(np.float32))
    assert [item.rule for item in record.applied] == ["tidy"]


def test_without_exact_constants_they_are_rounded_at_once() -> None:
    graph = captured([op("Exp", ["a"], ["e"]), op("Add", ["x", "e"], ["y"])], weights={"a": floats(3)})
    graph.keep_exact = False
    tidy(graph)
    assert not graph.nodes[0].inputs[1].const.pending


def test_numbers_on_their_way_to_a_jump_are_computed_as_the_model_would() -> None:
    """0.1 + 0.2 - 0.3 is 0 in float32 with these constants and 1e-9 in float64: the comparison must see the former."""
    a, b, c = (np.array([value], np.float32) for value in (0.1, 0.2, 0.3))
    assert (a + b) - c != (a.astype(np.float64) + b) - c
    nodes = [
        op("Add", ["a", "b"], ["s"]),
        op("Sub", ["s", "c"], ["d"]),
        op("Sign", ["d"], ["g"]),
        op("Add", ["x", "g"], ["t"]),
        op("Floor", ["s3"], ["f"]),
        op("Mul", ["s", "ten"], ["s3"]),
        op("Mul", ["t", "f"], ["y"]),
    ]
    nodes[4], nodes[5] = nodes[5], nodes[4]
    assert tidied(nodes, weights={"a": a, "b": b, "c": c, "ten": np.array([10 / 3], np.float32)}) == ["Add"]


def test_a_cast_to_a_smaller_type_rounds() -> None:
    nodes = [op("Cast", ["w"], ["h"], to=10), op("Cast", ["h"], ["f"], to=1), op("Mul", ["x", "f"], ["y"])]
    assert tidied(nodes, weights={"w": floats(3)}) == ["Mul"]


def test_the_computed_zero_bias_of_the_exporter_becomes_a_constant() -> None:
    nodes = [
        op("Shape", ["w"], ["s"], start=0, end=1),
        op("Expand", ["s", "one"], ["n"]),
        op("Constant", [], ["zero"], value_float=0.0),
        op("CastLike", ["zero", "x"], ["z"]),
        op("Expand", ["z", "n"], ["b"]),
        op("Conv", ["x", "w", "b"], ["y"]),
    ]
    graph = captured(nodes, ("N", 3, 8, 8), {"w": floats(4, 3, 3, 3), "one": np.array([1])})
    tidy(graph)
    (conv,) = graph.nodes
    assert conv.inputs[2].const.read().tolist() == [0, 0, 0, 0]
    assert conv.inputs[2].dtype == np.float32


def test_several_outputs_are_folded_together() -> None:
    nodes = [op("Split", ["w"], ["a", "b"], axis=0, num_outputs=2), op("Add", ["x", "a"], ["t"]), op("Add", ["t", "b"], ["y"])]
    assert tidied(nodes, weights={"w": floats(2, 3)}) == ["Add", "Add"]


def test_overridable_captured_and_output_constants_are_not_folded() -> None:
    nodes = [op("Neg", ["w"], ["n"]), op("Add", ["x", "n"], ["y"])]
    assert [node.kind for node in _tidy(captured(nodes, weights={"w": floats(3), "v": floats(3)}, listed=["w"])).nodes] == [
        "Neg",
        "Add",
    ]
    proto = model([op("Neg", ["w"], ["y"])], [info("x", [1])], [info("y", None)], {"w": floats(3)})
    assert [node.kind for node in _tidy(from_onnx(proto)).nodes] == ["Neg"]
    then = helper.make_graph([op("Add", ["n", "x"], ["t"])], "t", [], [info("t", [3])])
    other = helper.make_graph([op("Neg", ["x"], ["e"])], "e", [], [info("e", [3])])
    inputs = [info("x", [3]), info("f", [], onnx.TensorProto.BOOL)]
    proto = model(
        [op("Neg", ["w"], ["n"]), op("If", ["f"], ["y"], then_branch=then, else_branch=other)],
        inputs,
        [info("y", None)],
        {"w": floats(3)},
    )
    assert [node.kind for node in _tidy(from_onnx(proto)).nodes] == ["Neg", "If"]


def _tidy(graph: Graph) -> Graph:
    tidy(graph)
    return graph.validate()


def test_bombs_are_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "evaluate", lambda node, arrays: pytest.fail(f"{node.kind} was evaluated"))
    size = np.array([1 << 12, 1 << 12])
    row, column = np.zeros((1, 1 << 12), np.float32), np.zeros((1 << 12, 1), np.float32)
    for nodes, weights in (
        ([op("ConstantOfShape", ["s"], ["c"])], {"s": size}),
        ([op("Tile", ["t", "s"], ["c"])], {"t": floats(1, 1), "s": size}),
        ([op("Expand", ["t", "s"], ["c"])], {"t": floats(1, 1), "s": size}),
        ([op("Add", ["r", "k"], ["c"])], {"r": row, "k": column}),
        ([op("Range", ["a", "b", "d"], ["c"])], {"a": np.int64(0), "b": np.int64(1 << 40), "d": np.int64(1)}),
        ([op("Pad", ["t", "p"], ["c"])], {"t": floats(1, 1), "p": np.array([0, 0, 1 << 12, 1 << 12])}),
        ([op("OneHot", ["i", "n", "v"], ["c"])], {"i": np.zeros(4, np.int64), "n": np.int64(1 << 40), "v": floats(2)}),
    ):
        kind = I64 if "Range" in nodes[0].op_type else F
        graph = from_onnx(model([*nodes, op("Identity", ["c"], ["y"])], [], [info("y", None, kind)], weights))
        tidy(graph)
        assert graph.nodes[0].kind == nodes[0].op_type


def test_large_constants_are_folded_where_they_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 4)
    nodes = [op("Transpose", ["w"], ["t"]), op("MatMul", ["x", "t"], ["y"])]
    assert tidied(nodes, weights={"w": floats(5, 3)}) == ["MatMul"]
    nodes = [op("Add", ["a", "b"], ["w"]), op("MatMul", ["x", "w"], ["y"])]
    assert tidied(nodes, weights={"a": floats(3, 1), "b": floats(1, 5)}) == ["Add", "MatMul"]


def test_quantised_weights_stay_integers() -> None:
    nodes = [op("DequantizeLinear", ["w", "s"], ["f"]), op("MatMul", ["x", "f"], ["y"])]
    weights = {"w": np.arange(15, dtype=np.int8).reshape(3, 5), "s": np.float32(0.5)}
    assert tidied(nodes, weights=weights) == ["DequantizeLinear", "MatMul"]


def test_random_and_unknown_ops_are_kept() -> None:
    proto = model(
        [op("RandomNormalLike", ["w"], ["r"]), op("Fancy", ["w"], ["q"], domain="d"), op("Add", ["r", "q"], ["y"])],
        [], [info("y", None)], {"w": floats(3)}, domains=["d"],
    )  # fmt: skip
    assert len(_tidy(from_onnx(proto)).nodes) == 3


def test_dead_nodes_go() -> None:
    graph = captured([op("Neg", ["x"], ["unused"]), op("Exp", ["unused"], ["more"]), op("Relu", ["x"], ["y"])])
    assert tidy(graph) == Tidied(dead=2)


# ---- shapes -------------------------------------------------------------------------------------------------------------


def test_shapes_known_in_part_are_folded_in_part() -> None:
    nodes = [
        op("Shape", ["x"], ["s"]),
        op("Gather", ["s", "one"], ["c"]),
        op("Slice", ["s", "two", "four"], ["hw"]),
        op("Unsqueeze", ["c", "zero"], ["cv"]),
        op("Concat", ["cv", "hw"], ["chw"], axis=0),
        op("ReduceProd", ["hw"], ["area"], keepdims=1),
        op("Concat", ["minus", "cv", "area"], ["t"], axis=0),
        op("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"one": np.int64(1), "two": np.array([2]), "four": np.array([4]), "zero": np.array([0]), "minus": np.array([-1])}
    assert tidied(nodes, ("N", 3, 4, 5), weights) == ["Reshape"]
    graph = _tidy(captured(nodes, ("N", 3, 4, 5), weights))
    assert graph.nodes[0].attrs == {"shape": (-1, 3, 20)}


def test_sizes_that_are_the_inputs_own_by_name_are_copied() -> None:
    nodes = [
        op("Shape", ["x"], ["s"], start=0, end=2),
        op("Concat", ["s", "rest"], ["t"], axis=0),
        op("Reshape", ["x", "t"], ["y"]),
    ]
    assert tidied(nodes, ("N", "T", 6), {"rest": np.array([2, 3])}) == ["Reshape"]
    assert _tidy(captured(nodes, ("N", "T", 6), {"rest": np.array([2, 3])})).nodes[0].attrs["shape"] == (0, 0, 2, 3)


def test_sizes_of_another_name_are_not_copied() -> None:
    nodes = [op("Shape", ["x"], ["s"], start=1), op("Concat", ["s", "two"], ["t"], axis=0), op("Reshape", ["x", "t"], ["y"])]
    graph = _tidy(
        captured(
            [op("Shape", ["x"], ["s"], start=0, end=2), op("Gather", ["s", "i"], ["t"]), op("Reshape", ["x", "t"], ["y"])],
            ("A", "B"),
            {"i": np.array([1, 0])},
        )
    )
    assert [node.kind for node in graph.nodes] == ["Shape", "Gather", "Reshape"]
    assert "shape" not in graph.nodes[-1].attrs
    assert tidied(nodes, ("A", 4), {"two": np.array([2])}) == ["Reshape"]  # -1 is what is left


def test_folding_tells_shapes_that_were_computed() -> None:
    nodes = [
        op("Range", ["zero", "n", "one"], ["r"]),
        op("Unsqueeze", ["r", "axes"], ["u"]),
        op("Cast", ["u"], ["f"], to=1),
        op("Add", ["x", "f"], ["a"]),
        op("Relu", ["a"], ["y"]),
    ]
    weights = {"zero": np.int64(0), "n": np.int64(2), "one": np.int64(1), "axes": np.array([1])}
    graph = captured(nodes, (2, 1), weights)
    _tidy(graph)
    assert [node.kind for node in graph.nodes] == ["Add", "Relu"]
    assert graph.outputs[0].shape == (2, 1)


def test_an_old_softmax_is_told_once_the_rank_is_known() -> None:
    nodes = [
        op("Shape", ["x"], ["s"]),
        op("Gather", ["s", "zero"], ["n"]),
        op("Unsqueeze", ["n"], ["u"], axes=[0]),
        op("Concat", ["u", "rest"], ["t"], axis=0),
        op("Cast", ["t"], ["tf"], to=1),
        op("Cast", ["tf"], ["ti"], to=7),
        op("Reshape", ["x", "ti"], ["r"]),
        op("Softmax", ["r"], ["y"], axis=2),
    ]
    weights = {"zero": np.int64(0), "rest": np.array([-1, 2])}
    assert [node.kind for node in captured(nodes, (2, 8), weights, opset=9, ir=4).nodes][-1] == "legacy::Softmax"
    assert tidied(nodes, (2, 8), weights, opset=9, ir=4) == ["Reshape", "Softmax"]


def _known(kind: str, *operands: Any, **attrs: Any) -> tuple[Any, ...] | None:
    graph = Graph()
    inputs = [graph.constant("c", np.asarray(item)) for item in operands]
    node = graph.append(Node(kind, list(inputs), [graph.value("o", (None,), np.int64)], attrs))
    dims = KnownDims(graph)
    dims.visit(node)
    return dims.of(node.output)


@pytest.mark.parametrize(
    "kind, operands, attrs, expected",
    [
        ("Add", ([1, 2], [10]), {}, (11, 12)),
        ("Sub", ([1, 2], [10, 20]), {}, (-9, -18)),
        ("Mul", ([3], [4, 5]), {}, (12, 15)),
        ("Div", ([7, -7, 7], [2, 2, -2]), {}, (3, -3, -3)),
        ("Div", ([7], [0]), {}, (None,)),
        ("Mul", ([1 << 30], [4]), {}, (None,)),
        ("Gather", ([5, 6, 7], [2, -3]), {}, (7, 5)),
        ("Gather", ([5, 6, 7], [3]), {}, None),
        ("Concat", ([1], [2, 3]), {"axis": 0}, (1, 2, 3)),
        ("Slice", ([1, 2, 3, 4],), {"starts": (1,), "ends": (9,), "axes": (0,), "steps": (2,)}, (2, 4)),
        ("Slice", ([1, 2, 3],), {"starts": (-1,), "ends": (-9,), "axes": (0,), "steps": (-1,)}, (3, 2, 1)),
    ],
)
def test_shape_arithmetic(kind: str, operands: Any, attrs: dict[str, Any], expected: tuple[Any, ...] | None) -> None:
    assert _known(kind, *operands, **attrs) == expected


def test_shape_arithmetic_keeps_names_through_neutral_elements() -> None:
    graph = Graph()
    x = graph.value("x", ("N", 4), np.float32)
    shape = graph.append(Node("Shape", [x], [graph.value("s", (2,), np.int64)]))
    dims = KnownDims(graph)
    assert dims.visit(shape) is None
    for kind, other, expected in (
        ("Mul", [1, 2], ("N", 8)),
        ("Add", [0, 1], ("N", 5)),
        ("Div", [1, 2], ("N", 2)),
        ("Sub", [1, 1], (None, 3)),
    ):
        node = graph.append(Node(kind, [shape.output, graph.constant("k", np.array(other))], [graph.value("o", (2,), np.int64)]))
        dims.visit(node)
        assert dims.of(node.output) == expected


# ---- operations without effect ------------------------------------------------------------------------------------------

one, zero, minus_zero = np.ones(3, np.float32), np.zeros(3, np.float32), -np.zeros(3, np.float32)
NOTHING: dict[str, tuple[onnx.NodeProto, dict[str, Array]]] = {
    "identity": (op("Identity", ["r"], ["y"]), {}),
    "dropout": (op("Dropout", ["r"], ["y"]), {}),
    "cast": (op("Cast", ["r"], ["y"], to=1), {}),
    "cast like": (op("CastLike", ["r", "k"], ["y"]), {"k": one}),
    "transpose": (op("Transpose", ["r"], ["y"], perm=[0, 1]), {}),
    "reshape": (op("Reshape", ["r", "k"], ["y"]), {"k": np.array([2, -1])}),
    "flatten": (op("Flatten", ["r"], ["y"]), {}),
    "pad": (op("Pad", ["r", "k"], ["y"]), {"k": np.zeros(4, np.int64)}),
    "expand": (op("Expand", ["r", "k"], ["y"]), {"k": np.array([1, 3])}),
    "tile": (op("Tile", ["r", "k"], ["y"]), {"k": np.array([1, 1])}),
    "slice": (op("Slice", ["r", "k", "e"], ["y"]), {"k": np.array([0]), "e": np.array([9])}),
    "concat": (op("Concat", ["r"], ["y"], axis=1), {}),
    "sum": (op("Sum", ["r"], ["y"]), {}),
    "mul": (op("Mul", ["r", "k"], ["y"]), {"k": one}),
    "mul left": (op("Mul", ["k", "r"], ["y"]), {"k": one}),
    "div": (op("Div", ["r", "k"], ["y"]), {"k": one}),
    "sub": (op("Sub", ["r", "k"], ["y"]), {"k": zero}),
    "add": (op("Add", ["k", "r"], ["y"]), {"k": minus_zero}),
}  # fmt: skip
SOMETHING: dict[str, tuple[onnx.NodeProto, dict[str, Array]]] = {
    "add 0.0 turns -0.0": (op("Add", ["r", "k"], ["y"]), {"k": zero}),
    "sub -0.0 turns -0.0": (op("Sub", ["r", "k"], ["y"]), {"k": minus_zero}),
    "1 / x": (op("Div", ["k", "r"], ["y"]), {"k": one}),
    "0 - x": (op("Sub", ["k", "r"], ["y"]), {"k": zero}),
    "mul not all 1": (op("Mul", ["r", "k"], ["y"]), {"k": np.array([1, 1, 1.0000001], np.float32)}),
    "mul that broadcasts": (op("Mul", ["r", "k"], ["y"]), {"k": np.ones((4, 1, 1), np.float32)}),
    "cast": (op("Cast", ["r"], ["y"], to=11), {}),
    "transpose": (op("Transpose", ["r"], ["y"], perm=[1, 0]), {}),
    "reshape": (op("Reshape", ["r", "k"], ["y"]), {"k": np.array([3, 2])}),
    "slice backwards": (
        op("Slice", ["r", "k", "e", "a", "k"], ["y"]),
        {"k": np.array([-1]), "e": np.array([-9]), "a": np.array([1])},
    ),
    "expand": (op("Expand", ["r", "k"], ["y"]), {"k": np.array([1, 1, 3])}),
    "concat": (op("Concat", ["r", "r"], ["y"], axis=1), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("last", [True, False], ids=["output", "inside"])
def test_operations_without_effect_go(name: str, last: bool) -> None:
    node, weights = NOTHING[name]
    nodes = [op("Neg", ["x"], ["r"]), node]
    if not last:
        renamed = onnx.NodeProto.FromString(node.SerializeToString())
        renamed.output[0] = "t"
        nodes = [nodes[0], renamed, op("Abs", ["t"], ["y"])]
    assert tidied(nodes, weights=weights) == ["Neg"] + ([] if last else ["Abs"])


@pytest.mark.parametrize("name", SOMETHING)
def test_operations_with_an_effect_stay(name: str) -> None:
    node, weights = SOMETHING[name]
    graph = captured([op("Neg", ["x"], ["r"]), node], weights=weights)
    tidy(graph)
    assert [item.kind for item in graph.nodes] == ["Neg", node.op_type]


def test_a_reshape_with_one_open_size_is_nothing_where_the_others_agree() -> None:
    nodes = [op("Neg", ["x"], ["r"]), op("Reshape", ["r", "k"], ["y"])]
    assert tidied(nodes, ("N", 3), {"k": np.array([-1, 3])}) == ["Neg"]
    assert tidied(nodes, ("N", 4), {"k": np.array([-1, 2])}) == ["Neg", "Reshape"]
    assert tidied(nodes, ("N", "M"), {"k": np.array([4, -1])}) == ["Neg", "Reshape"]


@pytest.mark.parametrize(
    "nodes, outputs",
    [
        ([op("Identity", ["x"], ["y"])], ["y"]),  # an input
        ([op("Neg", ["x"], ["n"]), op("Identity", ["n"], ["y"])], ["n", "y"]),  # an output of its own
        ([op("Identity", ["w"], ["y"])], ["y"]),  # a constant
    ],
)
def test_an_output_keeps_its_identity_where_nothing_else_can_carry_its_name(nodes: Nodes, outputs: list[str]) -> None:
    proto = model(nodes, [info("x", [2])], [info(name, None) for name in outputs], {"w": floats(2)})
    graph = from_onnx(proto)
    before = to_text(graph)
    tidy(graph)
    assert to_text(graph.validate()) == before


def test_what_a_sub_graph_reads_is_not_bypassed() -> None:
    then = helper.make_graph([op("Neg", ["i"], ["t"])], "t", [], [info("t", [2])])
    other = helper.make_graph([op("Abs", ["i"], ["e"])], "e", [], [info("e", [2])])
    inputs = [info("x", [2]), info("f", [], onnx.TensorProto.BOOL)]
    nodes = [op("Neg", ["x"], ["n"]), op("Identity", ["n"], ["i"]), op("If", ["f"], ["y"], then_branch=then, else_branch=other)]
    graph = _tidy(from_onnx(model(nodes, inputs, [info("y", None)])))
    assert [node.kind for node in graph.nodes] == ["Neg", "Identity", "If"]


def test_a_layer_is_left_to_the_rewrites() -> None:
    graph = from_onnx(conv_bn())
    before = to_text(graph)
    assert not tidy(graph)
    assert to_text(graph) == before


def test_a_hand_built_view_without_adapter_is_tidied() -> None:
    b = Builder()
    x = b.input("x", ("N", 4))
    half: Value = b.op("Mul", b.const(floats(4)), b.const(floats(4, seed=1)), shape=(4,))
    y = b.op("Add", x, half, shape=("N", 4))
    graph = b.output(b.op("Relu", b.op("Identity", y, shape=("N", 4)), shape=("N", 4)))
    assert tidy(graph) == Tidied(folded=1, bypassed=1)
    assert [node.kind for node in graph.validate().nodes] == ["Add", "Relu"]


@pytest.mark.parametrize(
    "kind, operands, attrs, folds",
    [
        ("Add", [(4096, 1), (1, 4096)], {}, False),
        ("Add", [(8, 1), (1, 8)], {}, True),
        ("Add", [(3,), (4,)], {}, False),
        ("Expand", [(1, 1)], {"shape": (4096, 4096)}, False),
        ("Expand", [(1, 1)], {"shape": (4, 4)}, True),
        ("ConstantOfShape", [], {"shape": (4096, 4096)}, False),
        ("Gather", [(4096, 4096), "indices"], {"axis": 0}, True),
        ("Transpose", [(4, 5)], {"perm": (1, 0)}, True),
        ("Tile", [(4, 5)], {"repeats": (2, 2)}, False),
    ],
)
def test_where_the_size_of_the_result_is_not_told_a_bound_is(
    kind: str, operands: list[Any], attrs: dict[str, Any], folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    real = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda node, arrays: computed.append(node.kind) or real(node, arrays))
    graph = Graph()
    x = graph.value("x", (2,), np.float32)
    graph.inputs.append(x)
    arrays = [np.arange(8) if item == "indices" else np.zeros(item, np.float32) for item in operands] or [np.array([4096, 4096])]
    inputs: list[Value | None] = [graph.constant("c", array) for array in arrays]
    made = graph.append(Node(kind, inputs, [graph.value("made", None, np.float32)], attrs)).output
    graph.outputs.append(graph.append(Node("Fancy", [x, made], [graph.value("y")])).output)
    tidy(graph)
    assert bool(computed) == folds
    assert [node.kind for node in graph.nodes] == ([] if folds else [kind]) + ["Fancy"]
