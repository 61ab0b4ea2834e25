"""loop-bodies: what stands in the body of a Loop, a Scan or an If is rewritten like a graph of its own.

    Scan(h, x) body: BN(W x_t) + BN(U h) + b -> gates -> h'
    becomes          W' x_t + U' h + b'     -> gates -> h'

The body reads its state and its slices of the input, and hands on the next state: all of them keep their values, so one step
computes what it computed, and with it every step.  The statistics of a norm in a body are shared by all steps (Cooijmans et al.
2017, arXiv 1603.09025, keep some for each): they are one affine map, and W', U' and b' are those of all steps.

Constants that a body alone read of the graph around it move into the body when they are changed; weights that others read too
stay as they are, and with them the norms beside them.  A body is left alone where it hands on a value of the graph around it, or
where its names are taken elsewhere.  A body that is a whole cell has become one layer before (`collapse_loop`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from normfold.detect import find_norms
from normfold.graph import Graph, Node, NormSpec
from normfold.ops.bodies import runner
from normfold.record import Applied
from normfold.rewrites.refusals import REFUSALS
from normfold.rewrites.rewrite import Fate, Fates, Policy, Rewrite, Rewritten


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Rewrite every body in which norms stand; `graph` itself is not changed."""
    if not any(_norms_of(node) for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    result = Rewritten(graph)
    for node in twin.nodes:
        norms = _norms_of(node)
        if norms and _ambiguous(node, twin):
            result.fates += [Fate(spec.output.name, "kept", refusal=REFUSALS["ambiguous-body"]) for spec in norms]
        elif norms:
            before = node.bodies
            for name, body in before.items():
                view = _guarded(body, node)
                inner = _rewritten(view, replace(policy, clone_budget=policy.clone_budget - result.copied))
                _merge(result, inner)
                if inner.graph is not view:
                    node.bodies = node.bodies | {name: _renamed(body, inner, twin)}
            if node.bodies is not before:
                result.graph = twin
                _drop_captures(twin, node)
                node.fallback = runner(node)
    result.graph.validate()
    return result


def _norms_of(node: Node) -> list[NormSpec]:
    return [spec for body in node.bodies.values() for spec in find_norms(body)]


def _made_in(body: Graph) -> Iterator[str]:
    """Names of what the nodes of a body make, at any depth."""
    for node in body.nodes:
        yield from (value.name for value in node.outputs)
        for inner in node.bodies.values():
            yield from _made_in(inner)


def _guarded(body: Graph, node: Node) -> Graph:
    """The body, where weights that others read too are not to be changed: a changed one would be a copy."""
    others = {
        value.name
        for value in node.captures
        if any(use.node is not node for use in value.uses)
        or sum(value.name in {item.name for item in view.constants()} for view in node.bodies.values()) > 1
    }
    shared = [value.name for value in body.constants() if value.name in others and (value.rank or 0) > 1]
    if not shared:
        return body
    view = body.clone()
    view.pinned |= {value for value in view.constants() if value.name in shared}
    return view


def _ambiguous(node: Node, graph: Graph) -> bool:
    """True when something in the bodies of `node` has the name of something in another body: fates are told by names."""
    names = [name for other in graph.nodes for body in other.bodies.values() for name in _made_in(body)]
    own = {name for body in node.bodies.values() for name in _made_in(body)}
    return len([name for name in names if name in own]) > len(own)


def _rewritten(body: Graph, policy: Policy) -> Rewritten:
    """All rewrites that the policy uses, one after another; what became of each norm under the name that it had."""
    from normfold.rewrites.registry import rewrites

    total = Rewritten(body)
    fates = Fates(spec.output.name for spec in find_norms(body))
    for item in rewrites():
        if policy.uses(item.id):
            made = item.run(total.graph, replace(policy, clone_budget=policy.clone_budget - total.copied))
            total.graph, total.copied = made.graph, total.copied + made.copied
            total.applied += made.applied
            total.inserted = dict(Counter(total.inserted) + Counter(made.inserted))
            fates.take(made)
    total.fates = [replace(fate, output=name) for name in fates.now if (fate := fates.of(name)) is not None]
    return total


def _merge(result: Rewritten, inner: Rewritten) -> None:
    result.applied += [Applied("loop-bodies", item.target, item.detail) for item in inner.applied]
    result.fates += inner.fates
    result.copied += inner.copied
    result.inserted = dict(Counter(result.inserted) + Counter(inner.inserted))


def _renamed(before: Graph, inner: Rewritten, graph: Graph) -> Graph:
    """The rewritten body, with names of new values that nothing in the graph around it has."""
    body = inner.graph
    old = {value.name for value in (*before.values(), *before.constants())}
    for value in (*body.values(), *body.constants()):
        if value.name not in old:
            name = graph.claim(value.name)
            if name != value.name:
                body.rename(value, name, unique=True)
    return body


def _drop_captures(graph: Graph, node: Node) -> None:
    """The node reads no more of the graph around it than its bodies do."""
    read = {
        value.name
        for body in node.bodies.values()
        for inner in body.nodes
        for value in (*inner.inputs, *inner.captures)
        if value is not None
    }
    graph.set_captures(node, [value for value in node.captures if value.name in read])


REWRITE = Rewrite("loop-bodies", "Rewrite the bodies of Loop, Scan and If like graphs of their own.", run)
