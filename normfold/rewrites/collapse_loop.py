"""collapse-loop: an ONNX Scan or Loop whose body is a recurrent cell becomes one LSTM, GRU or RNN.

    Scan(h, x) body: BN(V x_t + d) + BN(U h) + b -> gates -> h'
    becomes          x [T, B, I] -> LSTM (W, R, B) -> h [T, B, H]            W = a_x V,  R = a_h U,  B = a_x d + c_x + c_h + b

    x of any axis and direction, B and T open; a, c are scale and shift of the norms in the body

The body is read as polynomials (`algebra.cells`) and compared with the equations of the three cells, as a step of an unrolled
loop is; the statistics of a norm in it are shared by all steps, and it goes along.

Source: https://onnx.ai/onnx/operators/onnx__Scan.html, onnx__Loop.html; Cooijmans et al., Recurrent Batch Normalization (ICLR
2017, arXiv 1603.09025).
It does not touch bodies that carry more than h and c, hand out more than h of each step, or compute in other types than float32;
nor a Loop whose number of steps is open or that may end early: after no step at all it gives its start back, which ONNX Runtime's
recurrent layers do not (a Scan of no step it refuses by itself).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from normfold.algebra.cell_match import Cell, NotStandard, match, same
from normfold.graph import Dim, Graph, Node, Value
from normfold.record import Applied
from normfold.rewrites.recurrent_build import (
    END,
    Built,
    Writer,
    as_state,
    first_place,
    fits_state,
    hand_over,
    input_sequence,
    start,
    take_names,
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
            kind, into = _replaced(twin, next(item for item in twin.nodes if item.output.name == name))
        except NotStandard as failure:
            result.fates += [Fate(norm.output.name, "kept", refusal=refusal(failure.code, failure.detail)) for norm in norms]
            continue
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


@dataclass(frozen=True, eq=False)
class _Loop:
    """What a Scan or Loop does.

    starts, leaves, news, lasts: its states, before the first step, before and after a step (in the body), after the last step.
    sequences: what it reads step by step, with the slice in the body; all of `count` elements from the first on.
    collected: (value in the body, output, axis) of what it stacks; turned: in the order opposite to that of the sequences.
    """

    body: Graph
    starts: list[Value]
    leaves: list[Value]
    news: list[Value]
    lasts: list[Value]
    sequences: list[Source]
    count: Dim
    reverse: bool
    collected: list[tuple[Value, Value, int, bool]]


def _read(node: Node, pinned: Collection[Value]) -> _Loop:
    """Raises NotStandard where it does not go through whole sequences."""
    return _read_scan(node) if node.kind == "Scan" else _read_loop(node, pinned)


def _read_scan(node: Node) -> _Loop:
    body, count = node.bodies["body"], int(node.attrs["num_scan_inputs"])
    given = [value for value in node.inputs if value is not None]
    states = len(node.inputs) - count
    if len(given) != len(node.inputs) or any(value.rank is None for value in given):
        raise NotStandard("not-a-cell", "the rank of an input is not known")
    collected = len(node.outputs) - states

    def each(name: str, size: int) -> list[int]:
        return [int(item) for item in node.attrs.get(name) or (0,) * size]

    backward = each("scan_input_directions", count)
    if not count or len(set(backward)) != 1:
        raise NotStandard("not-a-cell", "its sequences are read in different directions")
    axes = [axis % (value.rank or 1) for axis, value in zip(each("scan_input_axes", count), given[states:], strict=True)]
    slices = body.inputs[states : states + count]
    sequences = [Source(x, axis, {part: 0}) for x, axis, part in zip(given[states:], axes, slices, strict=True)]
    ends = zip(body.outputs[states:], node.outputs[states:], each("scan_output_axes", collected), strict=True)
    turned = [bool(item) != bool(backward[0]) for item in each("scan_output_directions", collected)]
    return _Loop(
        body,
        given[:states],
        body.inputs[:states],
        body.outputs[:states],
        node.outputs[:states],
        sequences,
        _length(sequences),
        bool(backward[0]),
        [(*end, flip) for end, flip in zip(ends, turned, strict=True)],
    )


def _read_loop(node: Node, pinned: Collection[Value]) -> _Loop:
    """A loop that takes element t of sequences around it, a constant number of times."""
    body, (limit, going, *given) = node.bodies["body"], node.inputs
    number, condition, *rest = body.inputs
    states = len(given)
    if any(value is None for value in given):
        raise NotStandard("not-a-cell", "a state without a start")
    if limit in pinned or going in pinned:
        raise NotStandard("not-a-cell", "how many steps it makes is up to the caller")
    if limit is None or limit.const is None or int(limit.const.read().reshape(-1)[0]) < 1:
        raise NotStandard("not-a-cell", "how many steps it makes is not known: it may be none")
    on = body.outputs[0]
    while on.producer is not None and on.producer.kind == "Identity" and on.producer.inputs[0] is not None:
        on = on.producer.inputs[0]
    if not (_true(going) and (on is condition or _true(on))):
        raise NotStandard("not-a-cell", "it may end early")
    outer = {value.name: value for value in node.captures}
    sequences: list[Source] = []
    for reader in [use.node for use in number.uses]:
        x = reader.inputs[0] if reader.kind == "Gather" else None
        base = None if x is None else outer.get(x.name)
        if base is None or base.rank is None or reader.inputs[1] is not number or x not in rest[states:]:
            raise NotStandard("not-a-cell", "it reads the number of the step")
        sequences.append(Source(base, int(reader.attrs.get("axis", 0)) % base.rank, {reader.output: 0}))
    count = int(limit.const.read().reshape(-1)[0])
    if not sequences or not all(isinstance(size := _size(item), int) and size >= count for item in sequences):
        raise NotStandard("not-a-cell", "its sequences may be shorter than it runs")
    ends = zip(body.outputs[1 + states :], node.outputs[states:], strict=True)
    return _Loop(
        body,
        [value for value in given if value is not None],
        rest[:states],
        body.outputs[1 : 1 + states],
        node.outputs[:states],
        sequences,
        count,
        False,
        [(inner, output, 0, False) for inner, output in ends],
    )


def _true(value: Value | None) -> bool:
    return value is None or (value.const is not None and bool(value.const.read().all()))


def _size(source: Source) -> Dim:
    return None if source.value.shape is None else source.value.shape[source.axis]


def _length(sequences: list[Source]) -> Dim:
    """The number of steps of a Scan: all its sequences have it."""
    return next((size for item in sequences if isinstance(size := _size(item), int)), _size(sequences[0]))


def _steps(loop: _Loop) -> Steps:
    """The body as the one step of an unrolled loop; what the states alone lead to belongs to it as well."""
    parts = [Source(part, 0, {part: 0}) for source in loop.sequences for part in source.taken]
    steps = Steps(loop.body, parts, reverse=loop.reverse)
    steps.include(loop.leaves)
    return steps


def _replaced(graph: Graph, node: Node) -> tuple[str, list[str]]:
    """Put one layer in the place of `node`; returns its kind and the names of its weights.  Raises NotStandard."""
    loop = _read(node, graph.pinned)
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
    return cell.kind, [value.param or value.name for value in built.weights]


def _is(one: Symbol, other: Symbol) -> bool:
    """True for one and the same tensor, under two names."""
    return one is other or (one.lead == other.lead and one.dims == other.dims and same(one.poly, other.poly))


def _write(graph: Graph, node: Node, loop: _Loop, item: Recurrence, cell: Cell) -> Built:
    order = [int(name) for name in cell.states]
    if not all(fits_state(graph, value, leaf) for value, leaf in zip(loop.starts, loop.leaves, strict=True)):
        raise NotStandard("not-a-cell", "a start of another shape than the states")
    anchors = [*(source.value for source in loop.sequences), *loop.starts]
    w = Writer(graph, node.output.name, node.module, first_place(graph, anchors))
    x = input_sequence(w, loop.sequences, loop.leaves, 0, loop.count)
    built = Built(w, item, cell, x, [start(w, loop.starts[place], loop.leaves[place], x) for place in order])
    pairs: list[tuple[Value, Value]] = []
    h = w.add("Squeeze", [built.node.outputs[1]], (built.batch, built.hidden), "last", axes=(0,))
    lasts = [h, built.last_c()] if len(order) > 1 else [h]
    for place, matrix in zip(order, lasts, strict=True):
        pairs.append((loop.lasts[place], as_state(w, matrix, loop.leaves[place], built.batch, built.hidden)))
    for _, output, axis, turned in loop.collected:
        every, shape = built.every, (built.count, built.batch, built.hidden)
        if turned:
            every = w.add("Slice", [every], shape, "turned", starts=(-1,), ends=(-END,), axes=(0,), steps=(-1,))
        perm = first_to(axis % 3, 3)
        if axis % 3:
            every = w.add("Transpose", [every], [shape[place] for place in perm], "moved", perm=perm)
        pairs.append((output, every))
    hand_over(graph, pairs)
    take_names(graph, pairs)
    return built


REWRITE = Rewrite("collapse-loop", "Make one LSTM, GRU or RNN of an ONNX Scan or Loop whose body is one.", run)
