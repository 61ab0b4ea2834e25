"""hoist-unrolled: what every step of an unrolled loop does to its own element of a sequence is done once, for all steps.

    x [B, T, I] -> x_0 -> W -> y_0            x -> [T B, I] -> W -> [T B, O] -> y_0
                -> x_1 -> W -> y_1   becomes                                 -> y_1
                    ...                                                          ...

    y_t [B, O] = x_t W + b for all t          is rows t B to t B + B of          [x_0; x_1; ...] W + b

Each row is the same sum of the same products.  So the projection of the input leaves the steps of a cell that is none of the
layers that ONNX has; the head that reads every h_t of an LSTM becomes one head behind it; and where the results are only joined
again, slices and Concat disappear.  With a product goes what stands before and behind it at every step and treats each row alone
(norms with one set of parameters, activations, arithmetic with constants).  Steps whose results are joined without having been
taken from one sequence (the heads of a loop that stays) are joined in front of the product instead.

On a loaded two-core machine (ONNX Runtime 1.32, one thread, time after / before): a layer-norm LSTM with a head a step, h = 128,
T = 50, .64 at batch 1 and .84 at batch 8, h = 16 .69 at batch 1; heads behind an LSTM, h = 128, .71 at T = 10 and .72 at T = 50;
at T = 10 the cells' intervals still held 1, but for .93 at h = 128, batch 8.  Nothing was slower.

Source: Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs (arXiv 1604.01946): the input products of
all steps at once.  It does not touch convolutions, steps with constants of their own, and what sub-graphs read; it stays out
where the graph would not get fewer nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from normfold.graph import Graph
from normfold.record import Applied
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten
from normfold.rewrites.row_wise import NORMS, PRODUCTS
from normfold.rewrites.step_lines import Layer, Lines, components, sequences
from normfold.rewrites.step_rows import Rows
from normfold.rewrites.step_stacks import stacks


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Do for all steps at once what they do alike; `graph` itself is not changed."""
    result = Rewritten(graph)
    for find in (_taken_from_sequences, _joined_later):
        tried: set[str] = set()
        while (name := next((name for name in _names(find(result.graph, policy)) if name not in tried), None)) is not None:
            tried.add(name)
            twin = result.graph.clone()
            layers = next(layers for layers in find(twin, policy) if _name(layers) == name)
            renamed = Rows(twin, layers).written()
            if renamed is not None and len(twin.nodes) < len(result.graph.nodes):
                result.applied.append(_applied(layers, len(result.graph.nodes) - len(twin.nodes)))
                result.follow(renamed)
                result.graph = twin.validate()
    return result


_Find = Callable[[Graph, Policy], Iterator[list[Layer]]]


def _taken_from_sequences(graph: Graph, policy: Policy) -> Iterator[list[Layer]]:
    """What is done to the elements of sequences."""
    yield from components(Lines(graph, sequences(graph)), lambda layer: _allowed(layer, graph, policy))


def _joined_later(graph: Graph, policy: Policy) -> Iterator[list[Layer]]:
    """What is done to tensors alike before they are joined."""
    for root, nodes in stacks(graph):
        yield from components(Lines(graph, [root], nodes), lambda layer: _allowed(layer, graph, policy))


def _allowed(layer: Layer, graph: Graph, policy: Policy) -> bool:
    outputs = [value for line in layer.outputs for value in line.members]
    fixed = [place for line in layer.outputs for value, place in line.members.items() if graph.is_output(value)]
    return (
        not any(value.captured for value in outputs)
        and len(fixed) == len(set(fixed))  # one tensor cannot be two outputs
        and not any(node.kind in NORMS and policy.keep(node.label) for node in layer.nodes)
    )


def _name(layers: list[Layer]) -> str:
    return next(layer for layer in layers if layer.first.kind in PRODUCTS).first.output.name


def _names(found: Iterator[list[Layer]]) -> Iterator[str]:
    return (_name(layers) for layers in found)


def _applied(layers: list[Layer], saved: int) -> Applied:
    products = [layer for layer in layers if layer.first.kind in PRODUCTS]
    count, steps = len(products), len(products[0].places)
    what = "one product" if count == 1 else f"{count} products"
    behind = len(layers) - count
    more = f" and {behind} operations beside it" if behind else ""
    return Applied("hoist-unrolled", products[0].first.label, f"{what}{more} for all {steps} steps: {saved} nodes less")


REWRITE = Rewrite("hoist-unrolled", "Do at once for all steps of an unrolled loop what they do alike to a sequence.", run)
