"""reroll: a loop over time that was unrolled, and whose step is none of ONNX's recurrent layers, becomes one Scan.

    x_0 -> step -> h_0 -> step -> ... -> h_T          becomes          Scan(h, x) { step } -> h_T; h_0 ... h_T

    step: any operations, the same with the same constants at every step (a layer-norm cell, peepholes, a norm on c)

The nodes of one step become the body as they are, so every step computes what it computed.  What somebody else reads of the
steps is collected by the Scan.  Steps that are not like the others stay: the first where an exporter has computed a part of it,
the last where it makes no use of what the others do.

An unrolled loop has a copy of its weights, prepared for its kernels, at every step, and as many nodes as steps; a Scan has one
of each and its own cost at every step.  Measured with ONNX Runtime 1.32, one thread, with the projection of the input hoisted
in both (time after / before): a layer-norm LSTM at T = 25 1.01, 50 .97 (h = 128), 100 .88 (h = 64), .79 (h = 128), .85 (batch 8),
200 .73 (h = 16), .81 (h = 128); peepholes and a norm on c at T = 50 1.15, 100 .94, .91 (batch 8), 200 .77.  Steps without a
product of their state (a simple recurrent unit) are cheaper than a Scan's: 1.08 to 1.40 at T = 100 and 200; they stay.

Source: https://onnx.ai/onnx/operators/onnx__Scan.html.
It does not touch loops of which sub-graphs read, steps without a product of their state, graphs of torch.export (which has no
such operation to write), opsets before 9, and loops shorter than what was measured to gain.
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.cell_match import NotStandard
from normfold.detect import find_norms
from normfold.graph import Graph, Node, Shape, Value
from normfold.ops.bodies import runner
from normfold.record import Applied
from normfold.rewrites import hoist_projection
from normfold.rewrites.choices import Question
from normfold.rewrites.handing_over import hand_over, name_apart, take_names
from normfold.rewrites.recurrent_build import Writer, label_of, writer_of
from normfold.rewrites.recurrent_collect import collect
from normfold.rewrites.recurrent_compare import Constants, Differs
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_states import Recurrence, recurrences
from normfold.rewrites.recurrent_steps import loops
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten
from normfold.rewrites.row_wise import PRODUCTS
from normfold.rewrites.step_body import AlikeSteps, StepBody

OLDEST = 9  # opset: the Scan of opset 8 has a batch axis of its own
SHORTEST = 3  # steps: of fewer nothing can be compared
LONG = 96  # steps: of 100, from which on a Scan was measured to be faster, the first and the last may stay


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Make a Scan of every such loop that gains by it; `graph` itself is not changed."""
    result = Rewritten(graph)
    if graph.opset is None or graph.opset < OLDEST:
        return result
    tried: set[tuple[str, ...]] = set()
    while (item := _next(result.graph, tried, policy)) is not None:
        twin = result.graph.clone()
        try:
            applied, norms = _rolled(twin, item.moved(twin))
        except (NotStandard, Differs):
            continue
        result.applied.append(applied)
        result.follow(norms)
        result.graph = twin.validate()
    return _hoisted(result, policy) if result.applied else result


def _hoisted(result: Rewritten, policy: Policy) -> Rewritten:
    """Take the projections out of the new bodies: they are half of what there is to gain."""
    if policy.uses(hoist_projection.REWRITE.id):
        made = hoist_projection.run(result.graph, policy)
        result.graph, result.applied = made.graph, result.applied + made.applied
        result.follow(made.renamed)
    return result


def _next(graph: Graph, tried: set[tuple[str, ...]], policy: Policy) -> Recurrence | None:
    """A loop that was not tried yet and is to become a Scan.  tried: loops, by the names of their states."""
    constants = Constants(graph)
    for steps in loops(graph, SHORTEST):
        if not _gains(steps.count, policy):
            continue
        try:
            items = recurrences(steps, constants)
        except Differs:
            continue
        for item in items:
            key = tuple(values[-1].name for values in item.states)
            if key not in tried and _gains(min(len(values) for values in item.states), policy):
                tried.add(key)
                return item
    return None


def may_gain(graph: Graph, policy: Policy) -> bool:
    """True where there is a loop long enough, whatever its steps do."""
    return any(_gains(steps.count, policy) for steps in loops(graph, SHORTEST))


def _gains(steps: int, policy: Policy) -> bool:
    answer = policy.answer(Question("reroll", steps=steps))
    return steps >= (LONG if answer == "when long" else SHORTEST) and answer != "no"


def _rolled(graph: Graph, item: Recurrence) -> tuple[Applied, dict[str, str]]:
    """Put a Scan in the place of the steps; returns what was done, and norms by the names of their outputs, before and now.

    Raises NotStandard or Differs where that cannot be.
    """
    alike, starts = _alike(graph, item)
    if not any(node.kind in PRODUCTS and _reads_state(node, item) for node in alike.nodes):
        raise NotStandard("not-a-cell", "no product of its state: its steps cost less than those of a Scan")
    if any(node.bodies or node.captures or "::" in node.kind for node in alike.nodes):
        raise NotStandard("step-operation", "a sub-graph")
    norms = _norms(graph, alike)
    count = len(graph.nodes)
    body = StepBody(graph, item, alike.nodes)
    if not body.sources:
        raise NotStandard("not-a-cell", "its steps read no sequence")
    label = label_of(alike.nodes, item)
    anchors = [*(source.value for source in body.sources), *starts, *(v for v in body.captures if v.const is None)]
    w = writer_of(graph, label, anchors)
    parts = [_part(w, source, alike) for source in body.sources]
    made = _Made(w, body, alike, [*starts, *parts])
    hand_over(graph, made.pairs)
    for every, places in made.collected.items():
        collect(graph, every, places)
    graph.prune()
    if any(node in alike.gone for node in graph.nodes) or not graph.sort():
        raise NotStandard("state-read")
    take_names(graph, made.pairs)
    name_apart(graph)
    detail = f"{alike.count} steps of {len(alike.nodes)} operations: {count} nodes became {len(graph.nodes)} and a Scan's body"
    return Applied("reroll", label, detail), {old: body.of[value].name for old, value in norms.items()}


def _reads_state(node: Node, item: Recurrence) -> bool:
    """True where an operation of the reference step depends on more than the elements of that step."""
    own = 1 << item.reference
    return any(value is not None and item.steps.mask(value) & ~own for value in node.inputs)


def _alike(graph: Graph, item: Recurrence) -> tuple[AlikeSteps, list[Value]]:
    """The steps that become the Scan, and its states before them; step 0 stays in front where it is not like the others."""
    constants = Constants(graph)
    if item.start is not None and all(_fit(value, leaf) for value, leaf in zip(item.start, item.leaves, strict=True)):
        alike = AlikeSteps(graph, item, constants, 0)
        if alike.distinct:
            return alike, item.start
    alike = AlikeSteps(graph, item, constants, 1)
    starts = [values[0] for values in item.states]
    if not alike.distinct or not all(_fit(value, leaf) for value, leaf in zip(starts, item.leaves, strict=True)):
        raise NotStandard("not-a-cell", "its steps share operations, or its state changes its shape")
    return alike, starts


def _fit(start: Value, leaf: Value) -> bool:
    """True when both surely have one shape: a Scan's state keeps that of its start."""
    return start.dtype == leaf.dtype and leaf.shape is not None and None not in leaf.shape and start.shape == leaf.shape


def _norms(graph: Graph, alike: AlikeSteps) -> dict[str, Value]:
    """Outputs of norms in the steps, by name -> that of the reference step."""
    found: dict[str, Value] = {}
    for spec in find_norms(graph):
        maker = spec.output.producer
        if maker in alike.nodes:
            slot = maker.outputs.index(spec.output)
            found |= {twins[maker].outputs[slot].name: spec.output for twins in alike.twins.values()}
    return found


def _part(w: Writer, source: Source, alike: AlikeSteps) -> Value:
    """The elements of a sequence that the steps read, along its own axis."""
    steps, value, axis = alike.item.steps, source.value, source.axis
    assert value.shape is not None
    first = steps.first + (steps.count - 1 - alike.last if steps.reverse else alike.first)
    if value.shape[axis] == alike.count:
        return value
    shape = [*value.shape[:axis], alike.count, *value.shape[axis + 1 :]]
    return w.add("Slice", [value], shape, "part", starts=(first,), ends=(first + alike.count,), axes=(axis,), steps=(1,))


class _Made:
    """The Scan in the graph.

    pairs: what a step made -> what gives it now.  collected: all steps of a value -> {one step of it: its place}.
    """

    def __init__(self, w: Writer, body: StepBody, alike: AlikeSteps, inputs: list[Value]) -> None:
        self.w, self.alike = w, alike
        item, graph = alike.item, w.graph
        self.pairs: list[tuple[Value, Value]] = []
        self.collected: dict[Value, dict[Value, int]] = {}
        lasts = [self._output(f"{w.name}_last", value, value.shape or ()) for value in item.leaves]
        outputs, last = [*lasts], alike.last
        collected: list[tuple[Value, dict[int, Value]]] = []
        for value, at in alike.read_outside(graph).items():
            if value in item.news and set(at) == {last}:
                self.pairs.append((at[last], lasts[item.news.index(value)]))
                continue
            body.hand_out(value)
            outputs.append(self._output(f"{w.name}_steps", value, (alike.count, *(value.shape or ()))))
            collected.append((outputs[-1], at))
        backwards = item.steps.reverse
        attrs: dict[str, object] = {"num_scan_inputs": len(body.sources)}
        if any(source.axis for source in body.sources):
            attrs["scan_input_axes"] = tuple(source.axis for source in body.sources)
        if backwards:
            attrs["scan_input_directions"] = (1,) * len(body.sources)
            attrs["scan_output_directions"] = (1,) * len(collected)
        node = Node("Scan", [*inputs], outputs, attrs, outputs[0].name, w.module, captures=tuple(body.captures))
        node.bodies = {"body": body.view.validate()}
        node.fallback = runner(node)
        graph.insert_at(w.place, node)
        w.place += 1
        for every, at in collected:
            places = self.collected[every] = {}
            for step, old in at.items():
                place = last - step if backwards else step - alike.first
                index = graph.constant(f"{w.name}_at", np.array(place, np.int64))
                one = w.add("Gather", [every, index], old.shape or (), "step", axis=0)
                places[one] = place
                self.pairs.append((old, one))

    def _output(self, name: str, like: Value, shape: Shape) -> Value:
        return self.w.graph.fresh(name, shape, like.dtype)


REWRITE = Rewrite("reroll", "Make one Scan of an unrolled loop whose step is none of ONNX's recurrent layers.", run)
