"""branches: parallel linear branches on one input that are summed become one layer.

    x -+-> Conv 3x3 -> BatchNorm -+
       +-> Conv 1x1 --------------+-> Add -> y      becomes      x -> Conv 3x3 (W, b) -> y
       +-> BatchNorm -------------+

    W = E_1 W_1 + E_2 W_2 + E_3 diag(a),  b = b_1 + b_2 + c      x [N, I, ...], W [O, I / groups, *kernel], b [O]

E lays a smaller kernel into the larger one where its padding puts it, and a grouped weight into fewer groups
(normfold.algebra.branches).  A branch is whatever is linear over a window: convolutions, average pools that divide by one number,
eval-mode norms, constants per channel, the identity, and chains of them without padding in between.  Trees of sums and
differences are looked at as a whole; terms that are not merged keep one addition each.  In the same way matrix products.

Source: Ding et al., RepVGG (CVPR 2021, arXiv 2101.03697), Diverse Branch Block (CVPR 2021, arXiv 2103.13425), ACNet (ICCV 2019);
Vasu et al., MobileOne (CVPR 2023), FastViT (ICCV 2023); recognised here by their arithmetic alone.
A weight that other layers read as it is counts as a copy: it is merged within the clone budget.
It does not merge what costs more multiplications afterwards (depthwise and dense, 1x3 and 3x1 alone), branches whose output
somebody else reads, norms in training mode or with unhealthy statistics, overridable constants, and transposed convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.algebra.branches import Form, embedded, joined
from normfold.algebra.ratios import Floats
from normfold.graph import Graph, Node, Value, is_float
from normfold.record import Applied
from normfold.rewrites.linear_maps import Frame, Layer, LinearMap, frames, is_inner, linear_map
from normfold.rewrites.merged import Merger, attributes, become, carrier, fates, names_of, unpromised, unread_bytes
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten

SUMS = ("Add", "Sub", "Sum")


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Merge branches where that saves multiplications or additions; `graph` itself is not changed."""
    barred: set[str] = set()
    while True:
        twin = graph.clone()
        result = Rewritten(twin)
        merger = Merger(twin)
        for node in list(twin.nodes):
            if _is_sum(node) and not _is_part(node, twin):
                for frame in frames(node.output):
                    if _is_sum(node):  # the first frame may have left one layer
                        _merge(node, merger, frame, policy, result, barred)
        copies = merger.copies()
        result.copied = sum(copies.values())
        if result.copied <= policy.clone_budget:
            twin.validate()
            return result if result.applied else Rewritten(graph)
        barred.add(max(copies, key=lambda name: copies[name]))


def _is_sum(node: Node) -> bool:
    """A sum or difference of tensors of one type."""
    values = node.inputs
    return (
        node.kind in SUMS
        and len(values) > 1
        and len(node.outputs) == 1
        and is_float(node.output.dtype)
        and all(value is not None and value.const is None and value.dtype == node.output.dtype for value in values)
    )


def _is_part(node: Node, graph: Graph) -> bool:
    """True when the sum is a term of another sum of the same shape, and nothing else."""
    y = node.output
    return is_inner(y, graph) and _is_sum(y.uses[0].node) and y.shape == y.uses[0].node.output.shape


@dataclass(eq=False)
class _Tree:
    """A tree of sums: terms with their signs, in order; inner sums with the terms that they stand for and their sign."""

    terms: list[tuple[int, Value]]
    inner: list[tuple[int, Value, frozenset[int]]]

    @classmethod
    def of(cls, root: Node, graph: Graph) -> _Tree:
        tree = cls([], [])

        def visit(node: Node, sign: int) -> frozenset[int]:
            covered: frozenset[int] = frozenset()
            for slot, value in enumerate(node.inputs):
                assert value is not None
                own = -sign if node.kind == "Sub" and slot else sign
                below = value.producer
                if below is not None and _is_sum(below) and _is_part(below, graph):
                    part = visit(below, own)
                    tree.inner.append((own, value, part))
                    covered |= part
                else:
                    covered |= {len(tree.terms)}
                    tree.terms.append((own, value))
            return covered

        visit(root, 1)
        return tree


@dataclass(eq=False)
class _Group:
    """Terms of a sum that one form can stand for."""

    places: frozenset[int]
    parts: list[tuple[int, LinearMap]]
    form: Form
    cost: float
    shape: Value  # a member: all have the same shape

    @property
    def layers(self) -> list[Layer]:
        return [layer for _, part in self.parts for layer in part.layers]

    def arrays(self) -> tuple[Floats, Floats]:
        """(weight, bias) of the sum, in float64."""
        total, offset = np.zeros(self.form.shape), np.zeros(self.form.outputs)
        for sign, part in self.parts:
            weight, bias = part.arrays()
            total += sign * embedded(weight, part.form, self.form)
            offset += sign * bias
        return total, offset


def _merged(one: _Group, other: _Group) -> tuple[float, _Group] | None:
    """(multiplications saved per output position, the two as one); None when that is impossible or saves nothing."""
    first, second = one.parts[0][1], other.parts[0][1]
    if first.source is not second.source or carrier([*one.layers, *other.layers]) is None:
        return None
    sizes = zip(first.frame.sizes(one.shape), first.frame.sizes(other.shape), strict=True)
    form = joined(one.form, other.form, [isinstance(a, int) and a == b for a, b in sizes])
    if form is None:
        return None
    cost = one.cost + other.cost + form.outputs  # an addition, too, is one pass over the output
    saved = cost - form.macs
    group = _Group(one.places | other.places, [*one.parts, *other.parts], form, cost, one.shape)
    return (saved, group) if saved > 0 else None


def _groups(tree: _Tree, graph: Graph, frame: Frame, policy: Policy) -> list[_Group]:
    """Terms merged two by two, the largest saving first; only groups of several terms."""
    groups: list[_Group] = []
    for place, (sign, value) in enumerate(tree.terms):
        found = linear_map(value, graph, frame, policy.keep)
        if found is not None:
            groups.append(_Group(frozenset({place}), [(sign, found)], found.form, found.cost(), value))
    while True:
        best: tuple[float, _Group] | None = None
        for index, one in enumerate(groups):
            for other in groups[index + 1 :]:
                pair = _merged(one, other)
                if pair is not None and (best is None or pair[0] > best[0]):
                    best = pair
        if best is None:
            return [group for group in groups if len(group.places) > 1]
        places = best[1].places
        groups = [best[1], *(group for group in groups if not group.places <= places)]


@dataclass(eq=False)
class _Term:
    """A term of the sum to be written: a value that exists, or an operation to be made."""

    sign: int
    places: frozenset[int]
    like: Value
    kind: str = ""
    inputs: tuple[Value | None, ...] = ()
    layer: Layer | None = None
    form: Form | None = None


def _merge(root: Node, merger: Merger, frame: Frame, policy: Policy, result: Rewritten, barred: set[str]) -> None:
    """Merge what can be merged of the sum that ends in `root`.  barred: names of weights that must not be copied."""
    graph = merger.graph
    tree = _Tree.of(root, graph)
    made: list[_Term] = []
    gone: list[Layer] = []
    done = Rewritten(graph)
    for group in _groups(tree, graph, frame, policy):
        layer = carrier(group.layers)
        assert layer is not None
        if any(value is not None and value.name in barred for value in layer.node.inputs):
            continue
        before, read = unread_bytes(group.layers), [value for item in group.layers for value in item.node.inputs]
        constants = merger.constants(layer, *group.arrays())
        if constants is None:
            continue
        weight, bias = constants
        source, into = group.parts[0][1].source, names_of(weight, bias, layer)
        shared = sum(v.const.nbytes for v in set(read) if v is not None and v.const is not None) - before
        if layer.node.kind == "MatMul":
            made.append(_Term(1, group.places, group.shape, "MatMul", (source, weight), layer, group.form))
            if bias is not None:
                made.append(_Term(1, frozenset(), bias))
        else:
            inputs = (source, weight) if bias is None else (source, weight, bias)
            made.append(_Term(1, group.places, group.shape, layer.node.kind, inputs, layer, group.form))
        gone += group.layers
        done.fates += fates(group.layers, into)
        detail = f"{len(group.parts)} branches merged into {', '.join(into)}"
        detail += f"; {shared} bytes stay for other readers" if shared else ""
        done.applied.append(Applied("branches", root.label, detail))
    covered = frozenset[int]().union(*(term.places for term in made))
    left = [_Term(sign, frozenset({i}), value) for i, (sign, value) in enumerate(tree.terms) if i not in covered]
    terms = sorted([*made, *left], key=lambda term: min(term.places, default=len(tree.terms)))
    # A sum takes the shape of the largest: begin with a term that has it, so that every partial sum has it too.
    terms.sort(key=lambda term: (term.like.shape != root.output.shape, term.sign < 0))
    if made and (len(terms) == 1 or (terms[0].like.shape == root.output.shape and terms[0].sign > 0)):
        _write(root, tree, terms, gone, graph)
        result.fates += done.fates
        result.applied += done.applied


def _write(root: Node, tree: _Tree, terms: list[_Term], gone: list[Layer], graph: Graph) -> None:
    """The sum anew: merged terms in the place of their first branch, one addition for each further term."""
    parts = {places: value for sign, value, places in tree.inner if sign > 0}
    become(graph, root, "Add", [], {})
    graph.remove({*(layer.node for layer in gone), *(v.producer for _, v, _ in tree.inner if v.producer is not None)})

    def output(term: _Term, suffix: str) -> Value:
        """A value for a partial sum: the one that stood for it before, where there was one."""
        old = parts.get(term.places)
        if old is None:
            return unpromised(graph, root.output, suffix)
        value = graph.value(old.name, old.shape, old.dtype, origin=old.origin)
        value.gauges = old.gauges
        return value

    operands: list[tuple[_Term, Value]] = []
    for term in terms:
        value = term.like
        if term.layer is not None and term.form is not None:
            attrs = attributes(term.layer, term.form)
            if len(terms) == 1:
                root.name = term.layer.node.name or root.name
                return become(graph, root, term.kind, list(term.inputs), attrs)
            value = output(term, "merged")
            value.shape = term.like.shape
            like = term.layer.node
            graph.insert_before(root, Node(term.kind, list(term.inputs), [value], attrs, like.name, root.module or like.module))
        operands.append((term, value))
    (first, total), *others, (last, end) = operands
    places = first.places
    for term, value in others:
        places |= term.places
        partial = output(_Term(1, places, root.output), "part")
        graph.insert_before(root, Node(_joining(term), [total, value], [partial], module=root.module))
        total = partial
    return become(graph, root, _joining(last), [total, end], {})


def _joining(term: _Term) -> str:
    return "Add" if term.sign > 0 else "Sub"


REWRITE = Rewrite("branches", "Merge parallel linear branches that are summed (RepVGG, MobileOne, ...) into one layer.", run)
