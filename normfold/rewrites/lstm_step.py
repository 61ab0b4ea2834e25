"""lstm-step: one step of an LSTM that is spelled in gates becomes one LSTM, its states coming from outside.

    x W + h R + b -> 4 gates -> c' = f c + i g, h' = o tanh(c')          becomes          LSTM(x [1, B, I], h, c) -> h', c'

    x [B, I], h and c [B, H]; W [I, 4 H], R [H, 4 H]; gates in any order, cut out of one tensor or computed one by one

So streaming models are exported: the caller keeps h and c from call to call.  The step is read as polynomials and compared with
the equations of the LSTM (`algebra.cells`), as a step of an unrolled loop is; norms with constant statistics go along.

Source: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, as ONNX's LSTM has it.
It does not touch weights that several steps read (copies would be made), gates that somebody else reads, and other types than
float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.algebra.cell_match import Cell, NotStandard, match
from normfold.graph import Graph, Node, Value
from normfold.record import Applied
from normfold.rewrites.handing_over import hand_over, take_names
from normfold.rewrites.recurrent_build import Built, Writer, first_place
from normfold.rewrites.recurrent_rules import RULES
from normfold.rewrites.recurrent_sources import Source
from normfold.rewrites.recurrent_states import Recurrence
from normfold.rewrites.recurrent_steps import Steps
from normfold.rewrites.recurrent_symbols import Step
from normfold.rewrites.rewrite import Fate, Policy, Rewrite, Rewritten

_PRODUCTS = frozenset(("Gemm", "MatMul"))
_FUNCTIONS = frozenset(("Sigmoid", "Tanh"))
_NORM = "BatchNormalization"


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Make an LSTM of every such step; `graph` itself is not changed."""
    result = Rewritten(graph)
    tried: set[str] = set()
    while (ends := next((ends for ends in _ends(result.graph) if ends.new_h.name not in tried), None)) is not None:
        tried.add(ends.new_h.name)
        twin = result.graph.clone()
        try:
            inside = _replaced(twin, next(item for item in _ends(twin) if item.new_h.name == ends.new_h.name), policy)
        except NotStandard:
            continue
        name = ends.new_h.producer.label if ends.new_h.producer is not None else ends.new_h.name
        detail = f"LSTM of {ends.size}: {len(result.graph.nodes)} nodes became {len(twin.nodes)}"
        result.applied.append(Applied("lstm-step", name, detail))
        result.fates += [Fate(norm, "deleted", ["W", "B"]) for norm in inside]
        result.graph = twin.validate()
    return result


@dataclass(frozen=True, eq=False)
class _Ends:
    """What a step begins and ends with: h' and c', and the c that it reads."""

    new_h: Value
    new_c: Value
    c: Value

    @property
    def size(self) -> int:
        assert self.c.shape is not None and isinstance(self.c.shape[-1], int)
        return self.c.shape[-1]


def _ends(graph: Graph) -> list[_Ends]:
    """Where h' = sigmoid(.) tanh(c') with c' = sigmoid(.) c + ...; all of rank 2."""
    found: list[_Ends] = []
    for node in graph.nodes:
        makers = [value.producer for value in node.inputs if value is not None and value.producer is not None]
        if node.kind != "Mul" or sorted(maker.kind for maker in makers) != ["Sigmoid", "Tanh"]:
            continue
        squashed = next(maker for maker in makers if maker.kind == "Tanh").inputs[0]
        total = squashed.producer if squashed is not None else None
        if squashed is None or total is None or total.kind not in ("Add", "Sum") or squashed.rank != 2:
            continue
        old = [c for value in total.inputs if value is not None and (c := _carried(value)) is not None]
        if len(old) == 1 and old[0].shape == squashed.shape and isinstance(squashed.shape and squashed.shape[-1], int):
            found.append(_Ends(node.output, squashed, old[0]))
    return found


def _carried(value: Value) -> Value | None:
    """c of a product sigmoid(.) c."""
    node = value.producer
    if node is None or node.kind != "Mul" or None in node.inputs:
        return None
    gates = [item for item in node.inputs if item is not None and item.producer is not None and item.producer.kind in _FUNCTIONS]
    others = [item for item in node.inputs if item is not None and item not in gates]
    return others[0] if len(gates) == len(others) == 1 and others[0].const is None else None


def _replaced(graph: Graph, ends: _Ends, policy: Policy) -> list[str]:
    """Put one LSTM in; returns the outputs of the norms that went.  Raises NotStandard where the step is no LSTM."""
    products = _products(ends)
    if any(value in graph.pinned or len(value.uses) > 1 for node in products for value in _weights(node)):
        raise NotStandard("step-parameters")
    leaves = list(dict.fromkeys(node.inputs[0] for node in products))
    if len(leaves) != 2 or ends.c.dtype != np.float32:
        raise NotStandard("not-a-cell", "its gates read other tensors than x and h")
    x, h = _told_apart(leaves, ends)
    steps = Steps(graph, [Source(x, 0, {x: 0})], reverse=False)
    steps.include((h, ends.c))
    step = Step(graph, steps, [h, ends.c], 0, RULES)
    news = [step.of(value) for value in (ends.new_h, ends.new_c)]
    cell = match(step.atoms, {str(place): symbol.poly for place, symbol in enumerate(news)})
    if cell.kind != "LSTM" or cell.states != ("0", "1"):
        raise NotStandard("not-a-cell")
    norms = [node for node in step.nodes if node.kind == _NORM]
    if any(policy.keep(node.label) for node in norms):
        raise NotStandard("not-a-cell", "a norm in it is to be kept")
    _write(graph, Recurrence(steps, 0, [h, ends.c], [[ends.new_h], [ends.new_c]], [h, ends.c]), cell, x)
    if any(node in products for node in graph.nodes):
        raise NotStandard("state-read", "a gate")
    return [node.output.name for node in norms]


def _products(ends: _Ends) -> list[Node]:
    """The products of constant weights that the gates are made of."""
    found: dict[Node, None] = {}
    stack, seen = [ends.new_h], {ends.new_h, ends.c}
    while stack:
        node = stack.pop().producer
        if node is None:
            raise NotStandard("not-a-cell", "its gates read other tensors than x and h")
        if node.kind in _PRODUCTS:
            found[node] = None
            continue
        fresh = [value for value in node.inputs if value is not None and value.const is None and value not in seen]
        seen.update(fresh)
        stack += fresh
    return list(found)


def _weights(node: Node) -> list[Value]:
    return [value for value in node.inputs[1:] if value is not None and value.const is not None]


def _told_apart(leaves: list[Value | None], ends: _Ends) -> tuple[Value, Value]:
    """(x, h) of the two tensors that the products read: h is as wide as c; which of two of that width, is the same."""
    fitting = [value for value in leaves if value is not None and value.const is None and value.rank == 2]
    likely = [value for value in fitting if value.shape == ends.c.shape]
    if len(fitting) != 2 or not likely:
        raise NotStandard("not-a-cell", "its gates read other tensors than x and h")
    h = next((value for value in likely if value.producer is None), likely[-1])
    x = next(value for value in fitting if value is not h)
    if x.shape is None or ends.c.shape is None or x.shape[0] != ends.c.shape[0] or not isinstance(x.shape[1], int):
        raise NotStandard("not-a-cell", f"{x.name} of shape {x.shape}")
    return x, h


def _write(graph: Graph, item: Recurrence, cell: Cell, x: Value) -> None:
    """The LSTM in the place of the step."""
    (h, c), ((new_h,), (new_c,)) = item.leaves, item.states
    assert x.shape is not None and c.shape is not None
    maker = new_h.producer
    assert maker is not None
    module = maker.module.rpartition(".")[0]
    w = Writer(graph, new_h.name, module, first_place(graph, [x, h, c]))
    rows = w.add("Unsqueeze", [x], (1, *x.shape), "x", axes=(0,))
    built = Built(w, item, cell, rows, [w.add("Unsqueeze", [value], (1, *c.shape), "start", axes=(0,)) for value in (h, c)])
    made = w.add("Squeeze", [built.node.outputs[1]], c.shape, "h", axes=(0,))
    pairs = ((new_h, made), (new_c, built.last_c()))
    hand_over(graph, pairs)
    take_names(graph, pairs)


REWRITE = Rewrite("lstm-step", "Make one LSTM of a single step that is spelled in gates.", run)
