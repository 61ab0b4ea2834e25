"""collapse-loop: an ONNX Scan or Loop whose body is a recurrent cell becomes one LSTM, GRU or RNN.

    Scan(h, x) body: BN(V x_t + d) + BN(U h) + b -> gates -> h'
    becomes          x [T, B, I] -> LSTM (W, R, B) -> h [T, B, H]            W = a_x V,  R = a_h U,  B = a_x d + c_x + c_h + b

    x of any axis and direction, B and T open; a, c are scale and shift of the norms in the body

The body is read as polynomials (`algebra.cells`) and compared with the equations of the three cells, as a step of an unrolled
loop is; the statistics of a norm in it are shared by all steps, and it goes along.

A Loop has to walk through sequences, one element a step (`loop_steps`).  Where their length is open it may make no step, and
then gives its starts back.  ONNX Runtime's LSTM and RNN give h = 0 then, and a c that was never written: what is read of them
goes through Where(T = 0, start, last), unless it is h and starts from zeros.  Its GRU ends the process: none is made there.
Where results are joined from a list, no step fails by itself.  (Stacked results of no step are empty either way; their open
sizes are 0 in a Loop, and [0, B, H] behind a layer.)

On a loaded two-core machine (ONNX Runtime 1.32, one thread, time after / before): an LSTM with norms as torch.jit.script writes
it, T = 50, h = 128, .20 at batch 1 and .41 at batch 8; h = 16 .05 and .11.

Source: https://onnx.ai/onnx/operators/onnx__Scan.html, onnx__Loop.html; Cooijmans et al., Recurrent Batch Normalization (ICLR
2017, arXiv 1603.09025).
It does not touch bodies that carry more than h and c, hand out more than h of each step, or compute in other types than float32;
nor a Loop that may end early, nor an RNN of several rows where its target computes that slower than single operations.
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.cell_match import Cell, NotStandard, match, same
from normfold.graph import Graph, Node, Value
from normfold.record import Applied
from normfold.rewrites.handing_over import hand_over, keep_for_bodies, take_names
from normfold.rewrites.loop_parts import Loop, read_scan
from normfold.rewrites.loop_steps import read_loop
from normfold.rewrites.recurrent_build import (
    END,
    Built,
    Writer,
    as_state,
    first_place,
    fits_state,
    input_sequence,
    is_gain,
    is_zero,
    start,
)
from normfold.rewrites.recurrent_collect import first_to
from normfold.rewrites.recurrent_refusals import refusal
from normfold.rewrites.recurrent_rules import RULES
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_states import Recurrence
from normfold.rewrites.recurrent_steps import Steps
from normfold.rewrites.recurrent_symbols import Step, Symbol, layout
from normfold.rewrites.rewrite import Fate, Policy, Rewrite, Rewritten

_NORM = "BatchNormalization"


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Make one layer of every loop that is one; `graph` itself is not changed."""
    result = Rewritten(graph)
    tried: set[str] = set()
    while (node := next((item for item in result.graph.nodes if _is_open(item, tried)), None)) is not None:
        name = node.output.name
        tried.add(name)
        norms = [inner for inner in node.bodies["body"].nodes if inner.kind == _NORM]
        copied = _copied(node)
        if any(policy.keep(inner.label) for inner in norms) or copied > policy.clone_budget - result.copied:
            continue  # the body is rewritten by itself
        twin = result.graph.clone()
        try:
            made = _replaced(twin, next(item for item in twin.nodes if item.output.name == name), policy)
        except NotStandard as failure:
            result.fates += [Fate(norm.output.name, "kept", refusal=refusal(failure.code, failure.detail)) for norm in norms]
            continue
        if made is None:
            continue
        kind, into = made
        detail = f"{node.kind} of {len(node.bodies['body'].nodes)} nodes a step became one {kind}"
        result.applied.append(Applied("collapse-loop", node.label, detail))
        result.fates += [Fate(norm.output.name, "deleted", into) for norm in norms]
        result.graph = twin.validate()
        result.copied += copied
    return result


def _copied(node: Node) -> int:
    """Bytes of the weights around a loop that others read as they are, too."""
    shared = [value.const for value in node.captures if any(use.node is not node for use in value.uses)]
    return sum(const.nbytes for const in shared if const is not None and len(const.shape) > 1)


def _is_open(node: Node, tried: set[str]) -> bool:
    return node.kind in ("Scan", "Loop") and "body" in node.bodies and node.output.name not in tried


def _steps(loop: Loop) -> Steps:
    """The body as the one step of an unrolled loop; what the states alone lead to belongs to it as well."""
    parts = [Source(next(iter(source.taken)), 0, dict(source.taken)) for source in loop.sequences]
    steps = Steps(loop.body, parts, reverse=loop.reverse)
    steps.include(loop.leaves)
    return steps


def _replaced(graph: Graph, node: Node, policy: Policy) -> tuple[str, list[str]] | None:
    """Put one layer in the place of `node`; returns its kind and the names of its weights, None where that is no gain.

    Raises NotStandard.
    """
    loop = read_scan(node) if node.kind == "Scan" else read_loop(graph, node)
    if any(leaf.dtype != np.float32 for leaf in loop.leaves):
        raise NotStandard("not-a-cell", "it computes in another type than float32")
    steps = _steps(loop)
    step = Step(loop.body, steps, loop.leaves, 0, RULES)
    news = [step.of(value) for value in loop.news]
    cell = match(step.atoms, {str(place): symbol.poly for place, symbol in enumerate(news)})
    step.check_states(loop.leaves, news)
    order = [int(name) for name in cell.states]
    hidden = loop.leaves[order[0]]
    for inner, _, _, _ in loop.collected:
        if not _is(step.of(inner), news[order[0]]) or hidden.rank != 2 or layout(hidden.shape) != layout(inner.shape):
            raise NotStandard("state-read")
    built = _write(graph, node, loop, Recurrence(steps, 0, loop.leaves, [[value] for value in loop.news], loop.starts), cell)
    into = [value.param or value.name for value in built.weights]
    return (cell.kind, into) if is_gain(cell, loop.leaves[0], policy) else None


def _is(one: Symbol, other: Symbol) -> bool:
    """True for one and the same tensor, under two names."""
    return one is other or (one.lead == other.lead and one.dims == other.dims and same(one.poly, other.poly))


def _write(graph: Graph, node: Node, loop: Loop, item: Recurrence, cell: Cell) -> Built:
    order = [int(name) for name in cell.states]
    if not all(fits_state(graph, value, leaf) for value, leaf in zip(loop.starts, loop.leaves, strict=True)):
        raise NotStandard("not-a-cell", "a start of another shape than the states")
    anchors = [*(source.value for source in loop.sequences), *loop.starts]
    w = Writer(graph, node.output.name, node.module, first_place(graph, anchors))
    x = input_sequence(w, loop.sequences, loop.leaves, 0, loop.count)
    if loop.is_open:
        _check_no_step(loop, cell, x)
    built = Built(w, item, cell, x, [start(w, loop.starts[place], loop.leaves[place], x) for place in order])
    pairs: list[tuple[Value, Value]] = []
    h = w.add("Squeeze", [built.node.outputs[1]], (built.batch, built.hidden), "last", axes=(0,))
    lasts = [h, built.last_c()] if len(order) > 1 else [h]
    empty = None if loop.is_listed or not loop.is_open else _is_empty(w, x)
    for number, (place, matrix) in enumerate(zip(order, lasts, strict=True)):
        begin, last = loop.starts[place], as_state(w, matrix, loop.leaves[place], built.batch, built.hidden)
        if empty is not None and not (number == 0 and is_zero(graph, begin)):
            last = _chosen(w, empty, begin, last)
        pairs.append((loop.lasts[place], last))
    for _, output, axis, turned in loop.collected:
        every, shape = built.every, (built.count, built.batch, built.hidden)
        if turned:
            every = w.add("Slice", [every], shape, "turned", starts=(-1,), ends=(-END,), axes=(0,), steps=(-1,))
        perm = first_to(axis % 3, 3)
        if axis % 3:
            every = w.add("Transpose", [every], [shape[place] for place in perm], "moved", perm=perm)
        pairs.append((output, every))
    pairs = [(old, new) for old, new in pairs if not (old.captured and keep_for_bodies(graph, old, new))]
    hand_over(graph, pairs)
    take_names(graph, pairs)
    return built


def _check_no_step(loop: Loop, cell: Cell, x: Value) -> None:
    """Raises NotStandard where a layer cannot stand for a loop that makes no step.  x: the sequence [T, B, I]."""
    if cell.kind == "GRU":
        raise NotStandard("empty-sequence", "a GRU of ONNX Runtime ends the process there")
    for begin, leaf in zip(loop.starts, loop.leaves, strict=True):
        found = layout(leaf.shape)
        one = begin.shape is None or found is None or all(size == 1 for size in begin.shape[: found[0]])
        if one and x.shape is not None and x.shape[1] != 1 and not loop.is_listed:
            raise NotStandard("empty-sequence", "it starts from one row for the whole batch")


def _is_empty(w: Writer, x: Value) -> Value:
    """Whether the sequence x [T, B, I] has no element, told at run time."""
    first, nothing = (w.graph.constant(f"{w.name}_zero", np.array(0, np.int64)) for _ in range(2))
    sizes = w.add("Shape", [x], (3,), "sizes")
    count = w.add("Gather", [sizes, first], (), "count", axis=0)
    sizes.dtype = count.dtype = np.dtype(np.int64)
    empty = w.add("Equal", [count, nothing], (), "empty")
    empty.dtype = np.dtype(bool)
    return empty


def _chosen(w: Writer, empty: Value, begin: Value, last: Value) -> Value:
    """A state behind the last step: where there is none, what it was before the first."""
    chosen = w.add("Where", [empty, begin, last], last.shape or (), "last")
    chosen.dtype = last.dtype
    return chosen


REWRITE = Rewrite("collapse-loop", "Make one LSTM, GRU or RNN of an ONNX Scan or Loop whose body is one.", run)
