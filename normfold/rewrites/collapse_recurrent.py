"""collapse-recurrent: a loop over time that was unrolled becomes one LSTM, GRU or RNN.

    x_0 -> step -> x_1 -> step -> ... -> h_T          becomes          x [T, B, I] -> LSTM (W, R, B) -> h [T, B, H]

    step:  BN(V x_t + d) + BN(U h) + b -> gates            W = a_x V,  R = a_h U,  B = a_x d + c_x + c_h + b

where a, c are scale and shift of the norms; the gates may stand in any order, be cut out of one tensor or computed one by one.
One step is read as polynomials (`algebra.cells`) and compared with the equations of the three cells; the other steps are
compared with it node by node.  Where step 0 is not like the others (an exporter has computed a part of it) it stays, and the
layer starts from the state behind it.  Of two steps (`recurrent_two`) the first is compared with the second, whole: where it
has another start than zeros or values handed over, the loop stays.

Source: Cooijmans et al., Recurrent Batch Normalization (ICLR 2017, arXiv 1603.09025), for statistics shared over time.
Where its target computes an RNN slower than its single operations (ONNX Runtime, batches of several rows) it makes none; the
norms are folded into the steps then, which share their weights.  It does not touch loops whose steps differ in their parameters,
cells with norms or other affine layers on the cell state, peepholes, coupled gates, or of which somebody reads more than h and
the last c.
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.cell_match import Cell, NotStandard, match
from normfold.graph import Graph, Node, Value
from normfold.record import Applied
from normfold.rewrites.handing_over import hand_over, name_apart, take_names
from normfold.rewrites.recurrent_build import Built, as_state, fits_state, input_sequence, is_gain, label_of, start, writer_of
from normfold.rewrites.recurrent_collect import collect
from normfold.rewrites.recurrent_compare import Constants, Differs
from normfold.rewrites.recurrent_projection import before_projection
from normfold.rewrites.recurrent_refusals import refusal
from normfold.rewrites.recurrent_rules import RULES
from normfold.rewrites.recurrent_start import starts_from_zero
from normfold.rewrites.recurrent_states import Recurrence, recurrences
from normfold.rewrites.recurrent_steps import Steps, loops
from normfold.rewrites.recurrent_symbols import Step
from normfold.rewrites.recurrent_two import recurrences_of_two
from normfold.rewrites.rewrite import Fate, Policy, Rewrite, Rewritten

SHORTEST = 2  # steps: of one nothing can be compared
CALLED_LOOP = 3  # steps: what repeats no more often than this, and has no state, may be no loop at all
_NORMS = frozenset(("BatchNormalization",))


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Collapse every loop that is one of the three cells; `graph` itself is not changed."""
    result = Rewritten(graph)
    refused: dict[str, NotStandard] = {}
    tried: set[tuple[str, ...]] = set()
    while (collapsed := _next(result.graph, refused, tried, policy)) is not None:
        twin, applied, norms, into = collapsed
        result.graph = twin
        result.applied.append(applied)
        result.fates += [Fate(name, "deleted", into) for name in norms]
    done = {fate.output for fate in result.fates}
    left = {value.name for node in result.graph.nodes for value in node.outputs}
    result.fates += [
        Fate(name, "kept", [], refusal(failure.code, failure.detail))
        for name, failure in refused.items()
        if name not in done and name in left
    ]
    return result


_Collapsed = tuple[Graph, Applied, list[str], list[str]]


def _next(graph: Graph, refused: dict[str, NotStandard], tried: set[tuple[str, ...]], policy: Policy) -> _Collapsed | None:
    """The graph with one more loop collapsed; None when there is none left.  tried: loops, by the names of their states."""
    constants = Constants(graph)
    for steps in loops(graph, SHORTEST):
        try:
            items = recurrences_of_two(graph, steps, constants) if steps.count == 2 else recurrences(steps, constants)
        except Differs as failure:
            _refuse(steps, None, NotStandard("step-parameters" if failure.parameters else "not-a-cell"), refused)
            continue
        for item in items:
            key = tuple(values[-1].name for values in item.states)
            if key in tried:
                continue
            tried.add(key)
            try:
                if any(policy.keep(node.label) for node in _inside(item) if node.kind in _NORMS):
                    continue
                collapsed = _collapse(graph, item, policy)
                if collapsed is not None:
                    return collapsed
            except NotStandard as failure:
                _refuse(steps, item, failure, refused)
    return None


def _inside(item: Recurrence) -> list[Node]:
    """The nodes on the way to the last states that depend on some x_t."""
    seen: dict[Node, None] = {}
    stack = [values[-1] for values in item.states]
    while stack:
        node = stack.pop().producer
        if node is not None and node not in seen:
            seen[node] = None
            stack += [value for value in node.inputs if value is not None and item.steps.mask(value)]
    return list(seen)


def _refuse(steps: Steps, item: Recurrence | None, failure: NotStandard, refused: dict[str, NotStandard]) -> None:
    """Give the norms of a loop the reason why it stays.

    Where no state was found (item None) it may be no loop at all: only norms that depend on several x_t of a long one are told.
    The same block used on two inputs may be no loop either: of two steps only those are told that are a cell but for something.
    """
    if steps.count == 2 and failure.code in ("not-a-cell", "step-operation"):
        return
    if item is not None:
        nodes = _inside(item)
    else:
        inner = {steps.upto(step) for step in range(1, steps.count - 1)} if steps.count > CALLED_LOOP else set[int]()
        nodes = [node for node in steps.graph.nodes if node.outputs and steps.mask(node.output) in inner]
    for node in nodes:
        if node.kind in _NORMS:
            refused.setdefault(node.output.name, failure)


# ---- one loop ------------------------------------------------------------------------------------------------------------------


def _collapse(graph: Graph, item: Recurrence, policy: Policy) -> _Collapsed | None:
    """None where the layer is no gain; raises NotStandard where there is none, or somebody reads what it does not give."""
    if any(leaf.dtype != np.float32 for leaf in item.leaves):
        raise NotStandard("not-a-cell", f"it computes in {item.leaves[0].dtype}, which ONNX Runtime's recurrent layers do not")
    step = Step(graph, item.steps, item.leaves, item.reference, RULES)
    news = [step.of(value) for value in item.news]
    cell = match(step.atoms, {str(place): symbol.poly for place, symbol in enumerate(news)})
    step.check_states(item.leaves, news)
    if not item.complete:
        changed = item.differs is not None and item.differs.parameters
        raise NotStandard(
            "step-parameters" if changed else "not-a-cell", "" if changed else "its last steps are not like the others"
        )
    label = label_of(step.nodes, item)
    twin = graph.clone()
    moved = item.moved(twin)
    count = len(twin.nodes)
    gone = _build(twin, moved, cell, label)
    if not is_gain(cell, item.leaves[0], policy):
        return None
    norms = [node.output.name for node in graph.nodes if node.kind in _NORMS and node.output.name in gone]
    into = list(dict.fromkeys(value.param or value.name for value in twin_weights(twin, label)))
    detail = f"{cell.kind} of {cell.w.shape[1]} over {item.steps.count} steps: {count} nodes became {len(twin.nodes)}"
    return twin.validate(), Applied("collapse-recurrent", label, detail), norms, into


def _build(graph: Graph, item: Recurrence, cell: Cell, label: str) -> set[str]:
    """Put the layer in; returns the names of values that are gone.  Raises NotStandard."""
    steps, order = item.steps, [int(name) for name in cell.states]
    begins = item.start
    if begins is not None and not all(fits_state(graph, value, leaf) for value, leaf in zip(begins, item.leaves, strict=True)):
        begins = None
    zeros = item.start is None and starts_from_zero(item)
    peeled = begins is None and not zeros
    begins = [values[0] for values in item.states] if begins is None else begins
    if len(steps.sources) == 1:
        steps.sources[0], cell = before_projection(steps.sources[0], cell, graph)
    before = {value.name for value in graph.values()}
    anchors = [source.value for source in steps.sources] + ([] if zeros else begins)
    w = writer_of(graph, label, anchors)
    first = steps.first + int(peeled and not steps.reverse)
    x = input_sequence(w, steps.sources, item.leaves, first, steps.count - peeled)
    starts = [None if zeros else start(w, begins[place], item.leaves[place], x) for place in order]
    built = Built(w, item, cell, x, starts)
    olds: list[tuple[Value, Value]] = []
    places: dict[Value, int] = {}
    matrix = built.every
    for step in range(1 if peeled else 0, steps.count):
        place = steps.count - 1 - step if steps.reverse else step - peeled
        matrix = built.at(place)
        places[matrix] = place
        olds.append((item.states[order[0]][step], as_state(w, matrix, item.leaves[order[0]], built.batch, built.hidden)))
    if len(order) > 1:
        olds.append((item.states[order[1]][-1], as_state(w, built.last_c(), item.leaves[order[1]], built.batch, built.hidden)))
    chain = {values[step].producer for values in item.states for step in range(1 if peeled else 0, steps.count)}
    hand_over(graph, olds)
    collect(graph, built.every, places)
    graph.prune()
    if any(node in chain for node in graph.nodes):
        raise NotStandard("state-read")
    built.only_last(places[matrix])
    take_names(graph, olds)
    name_apart(graph)
    return before - {value.name for value in graph.values()}


def twin_weights(graph: Graph, label: str) -> list[Value]:
    """Weights of the layer that was put in for `label`."""
    names = {f"{label}.{part}" for part in "WRB"}
    return [value for value in graph.constants() if value.param in names]


REWRITE = Rewrite("collapse-recurrent", "Make one LSTM, GRU or RNN of an unrolled loop over time.", run)
