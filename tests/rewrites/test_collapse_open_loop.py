"""ONNX Loops of open length: one layer where that gives the same after no step, too, and a reason where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from loop_texts import COUNTED, GIVEN, OPEN, WAYS, changed, feeds, judged, model, taking
from normfold.capture.onnx import from_onnx
from normfold.capture.tidy import tidy
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from routes import run_onnx


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_that_starts_from_zeros(way: str) -> None:
    """Any length, none included."""
    proto = model(WAYS[way])
    outcome, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 2, 7))])
    kinds = [node.op_type for node in result.graph.node]
    assert kinds.count("RNN") == 1 and "Loop" not in kinds
    assert [finding.outcome for finding in outcome.findings] == ["deleted", "deleted"]
    nothing = feeds(proto, 0, 0)
    before, after = (run_onnx(data.SerializeToString(), nothing) for data in (proto, result))
    assert np.array_equal(before[0], after[0]) and before[0].shape == (2, 4) and before[1].size == after[1].size == 0


def test_a_loop_that_starts_from_anything() -> None:
    """After no step it gives that back."""
    proto = model(GIVEN)
    _, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 2, 7))])
    kinds = [node.op_type for node in result.graph.node]
    assert "RNN" in kinds and kinds.count("Where") == 1
    nothing = feeds(proto, 0, 0)
    before, after = (run_onnx(data.SerializeToString(), nothing) for data in (proto, result))
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[0], nothing["h0"])


def test_an_element_that_is_taken_twice_is_one_input() -> None:
    proto = model(
        OPEN.replace("a = MatMul (xt, w)", "x2 = Gather <axis = 0> (x, t)\n both = Add (xt, x2)\n a = MatMul (both, w)")
    )
    _, result = judged(proto, [feeds(proto, 0, 5)])
    (weight,) = (item for item in result.graph.initializer if item.name.endswith("_W"))
    assert list(weight.dims) == [1, 4, 3]


STAYS = {
    "one row for the batch": (changed(OPEN, ("rows = Gather (shape, one)", "rows = Identity (one)")), "empty-sequence"),
    "the length of another": (
        changed(
            OPEN,
            ("float[T, N, 3] x)", "float[T, N, 3] x, float[S] other)"),
            ("steps = Gather (shape, zero)", "lengths = Shape (other)\n steps = Gather (lengths, zero)"),
        ),
        "loop-length",
    ),
    "not from the first on": (changed(OPEN, taking("p = Sub (t, one)")), "loop-length"),
    "every other": (changed(OPEN, taking("p = Add (t, t)")), "loop-length"),
    "one and the same": (changed(OPEN, taking("p = Sub (t, t)")), "loop-length"),
    "as often as is computed": (
        changed(OPEN, ("(steps, , h0)", "(half, , h0)"), ("last, all = Loop", "half = Div (steps, two)\n last, all = Loop")),
        "loop-length",
    ),
    "may end early": (changed(OPEN, ("on = Identity (going)", "on = Less (far, limit)")), "loop-length"),
    "may not begin": (
        changed(OPEN, ("(steps, , h0)", "(steps, is, h0)"), ("last, all = Loop", "is = Less (zero, steps)\n last, all = Loop")),
        "loop-length",
    ),
    "counts from one": (changed(COUNTED, ("none = Identity (zero)", "none = Identity (one)")), "loop-length"),
    "begins by another length": (changed(COUNTED, ("Less (zero, steps)", "Less (one, steps)")), "loop-length"),
    "always begins": (changed(COUNTED, ("(, begin, none, h0)", "(, , none, h0)")), "loop-length"),
    "counts by two": (
        changed(COUNTED, ("t1 = Add (t, one)", "t1 = Add (t, two)"), ("(x, t)", "(x, number)")),
        "loop-length",
    ),
    "counts to less": (changed(COUNTED, ("on = Less (t1, steps)", "m = Sub (steps, one)\n on = Less (t1, m)")), "loop-length"),
    "a counter that is read": (changed(COUNTED, ("=> (float[N, 4] last,", "=> (int64 end, float[N, 4] last,")), "state-read"),
}


LISTED = changed(
    GIVEN,
    ("last, all = Loop", "empty = SequenceEmpty <dtype = 1> ()\n last, list = Loop"),
    ("float[N, 4] h) =>", "float[N, 4] h, seq(float[N, 4]) s) =>"),
    ("float[N, 4] y)", "seq(float[N, 4]) s1)"),
    ("y = Identity (next)", "s1 = SequenceInsert (s, next)"),
    ("(steps, , h0)", "(steps, , h0, empty)\n all = ConcatFromSequence <axis = 0, new_axis = 1> (list)"),
)
INSERT = "s1 = SequenceInsert (s, next)"
STAYS |= {
    name: (changed(LISTED, *pairs), "state-read")
    for name, pairs in {
        "a list in another order": [(INSERT, "z = Constant <value = int64 {0}> ()\n s1 = SequenceInsert (s, next, z)")],
        "a list of something else": [(INSERT, "s1 = SequenceInsert (s, biased)")],
        "a list that its steps read": [
            (
                "bn = BatchNormalization (b,",
                "n = SequenceLength (s)\n f = Cast <to = 1> (n)\n q = Mul (b, f)\n bn = BatchNormalization (q,",
            )
        ],
        "a list that starts with something": [("SequenceEmpty <dtype = 1> ()", "SequenceConstruct (h0)")],
        "a list of which one is taken": [
            ("all = Concat", "one = SequenceAt (list, zero)\n all = Concat"),
            ("=> (float[N, 4] last,", "=> (float[N, 4] one,"),
        ],
        "a list that is joined without an axis": [
            ("axis = 0, new_axis = 1> (list)", "axis = 0> (list)\n flat = Identity (wide)"),
            ("all = Concat", "wide = Concat"),
            ("float[S, N, 4] all", "float[M, 4] flat"),
        ],
    }.items()
}


def test_a_list_that_is_joined() -> None:
    """From any start: where nothing is in the list, joining it fails."""
    proto = model(LISTED)
    _, result = judged(proto, [feeds(proto, seed, steps) for seed, steps in enumerate((4, 1, 7))])
    assert "RNN" in {node.op_type for node in result.graph.node}
    with pytest.raises(Exception, match="ConcatFromSequence"):
        run_onnx(proto.SerializeToString(), feeds(proto, 0, 0))


@pytest.mark.parametrize("name", STAYS)
def test_loops_that_stay(name: str) -> None:
    source, code = STAYS[name]
    proto = model(source)
    graph = from_onnx(proto)
    tidy(graph)
    outcome = rewrite(graph, Options(skip=("loop-bodies", "hoist-projection")))
    assert "Loop" in {node.kind for node in outcome.graph.nodes} and not outcome.applied
    assert {finding.refusal.code for finding in outcome.findings if finding.refusal} == {code}
