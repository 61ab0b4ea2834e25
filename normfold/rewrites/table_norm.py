"""table-norm: a norm of rows looked up in a constant table normalises the table instead, once.

    T, i -> Gather -> Reshape, Transpose -> LayerNorm -> y      becomes      T', i -> Gather -> Reshape, Transpose -> y

    T'[v] = norm(T[v])      T, T' [V, *row]; the norm takes its statistics (and its parameters) within a row

A row of a table gives the same result wherever it is looked up.  LayerNorm, RMSNorm and BatchNorm in eval mode are worked out in
float64 for every row and rounded once to the table's type.

Source: follows from the definitions (Ba et al. 2016, arXiv 1607.06450; Zhang & Sennrich 2019, arXiv 1910.07467).  A table, or
rows, that somebody else reads as they are must be copied: that is done within the clone budget.  It does not touch rows to which
something is added (positions) or that change type, and norms that average over several rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from normfold.algebra.ratios import Floats, Ints
from normfold.graph import Graph, Node, Value
from normfold.ops import evaluate
from normfold.ops.affine import batch_norm_constants
from normfold.ops.wiring import constant_of, is_foldable
from normfold.record import Applied
from normfold.rewrites.following import LAYOUT, carried, disown, is_private
from normfold.rewrites.ranges import fits
from normfold.rewrites.refusals import REFUSALS, over_budget
from normfold.rewrites.rewrite import Fate, Policy, Rewrite, Rewritten

NORMS = frozenset(("LayerNormalization", "RMSNormalization", "BatchNormalization"))


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Normalise the tables that can be; `graph` itself is not changed."""
    if not any(_find(node, graph) is not None for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    result = Rewritten(twin)
    tables: dict[Value, list[_Lookup]] = {}
    for node in twin.nodes:
        lookup = _find(node, twin)
        if lookup is not None and policy.keep(node.label):
            result.fates.append(Fate(node.output.name, "kept", refusal=REFUSALS["asked-to-keep"]))
        elif lookup is not None:
            tables.setdefault(lookup.table, []).append(lookup)
    for table, lookups in tables.items():
        _normalise(table, lookups, twin, policy, result)
    if not result.applied:
        result.graph = graph
        return result
    twin.prune()
    twin.validate()
    return result


@dataclass(eq=False)
class _Lookup:
    """A norm of looked-up rows.

    chain: the Gather and the layout operations behind it, in order.  place: at every place of the norm's input the number of the
    row's element that lies there (axes along which whole rows lie have size 1).
    """

    norm: Node
    chain: list[Node]
    place: Ints

    @property
    def table(self) -> Value:
        table = self.chain[0].inputs[0]
        assert table is not None
        return table

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for norms that make the same of the table."""
        parameters = tuple(id(value) for value in self.norm.inputs[1:])
        axis, epsilon = self.norm.attrs.get("axis"), self.norm.attrs.get("epsilon")
        return self.norm.kind, parameters, axis, epsilon, self.place.shape, self.place.tobytes()

    def is_private(self, graph: Graph) -> bool:
        """True when the rows are read by the norm alone."""
        return all(is_private(node.output, graph) for node in self.chain)


def _find(norm: Node, graph: Graph) -> _Lookup | None:
    """The lookup whose rows `norm` normalises one by one; None when there is none."""
    if norm.kind not in NORMS or norm.output.captured:
        return None
    if any(value.uses or graph.is_output(value) for value in norm.outputs[1:]):
        return None
    chain: list[Node] = []
    x = norm.inputs[0]
    while x is not None and x.producer is not None and x.producer.kind in LAYOUT:
        chain.insert(0, x.producer)
        x = x.producer.inputs[0]
    gather = x.producer if x is not None else None
    if gather is None or gather.kind != "Gather" or gather.attrs.get("axis", 0) != 0:
        return None
    table, indices = gather.inputs[0], gather.inputs[1]
    if table is None or indices is None or table.const is None or not is_foldable(table, graph) or indices.rank is None:
        return None
    row = table.const.shape[1:]
    if not row or table.dtype != norm.output.dtype or gather.output.rank != indices.rank + len(row):
        return None
    place: Ints | None = np.arange(np.prod(row, dtype=np.int64)).reshape((1,) * indices.rank + row)
    for node in chain:
        place = carried(node, place) if place is not None else None
    if place is None or not np.array_equal(np.sort(place, axis=None), np.arange(place.size)):
        return None  # rows are mixed with each other
    lookup = _Lookup(norm, [gather, *chain], place)
    if not lookup.is_private(graph) and chain:
        return None  # others read what lies between
    return lookup if _within_rows(lookup, graph) else None


def _within_rows(lookup: _Lookup, graph: Graph) -> bool:
    """True when the norm's statistics and parameters vary only within a row, and its parameters are constants."""
    norm, place = lookup.norm, lookup.place
    x = norm.inputs[0]
    if x is None or x.shape is None:
        return False
    inside = [isinstance(dim, int) and dim == size for dim, size in zip(x.shape, place.shape, strict=True)]
    if norm.kind == "BatchNormalization":
        return batch_norm_constants(norm, graph) is not None and len(x.shape) > 1 and inside[1]
    if not all(inside[int(norm.attrs.get("axis", -1)) % len(x.shape) :]):
        return False
    for value in norm.inputs[1:3]:
        if value is None:
            continue
        if not is_foldable(value, graph) or value.const is None or len(value.const.shape) > len(x.shape):
            return False
        tail = place.shape[place.ndim - len(value.const.shape) :]
        if any(size not in (1, own) for size, own in zip(value.const.shape, tail, strict=True)):
            return False
    return True


def _normalise(table: Value, lookups: list[_Lookup], graph: Graph, policy: Policy, result: Rewritten) -> None:
    """Give the lookups of one table their normalised tables, or record why not."""
    assert table.const is not None
    norms = {lookup.norm for lookup in lookups}
    gathers = {lookup.chain[0] for lookup in lookups if _only_read_by(lookup.chain[0].output, norms, lookup, graph)}
    others = any(use.node not in gathers for use in table.uses)
    copies = len({lookup.key for lookup in lookups}) - (0 if others else 1)
    needed, left = copies * table.const.nbytes, policy.clone_budget - result.copied
    if needed > left:
        refusal = over_budget(f"the table {table.param or table.name}, which is also read as it is,", needed, left)
        result.fates += [Fate(lookup.norm.output.name, "kept", refusal=refusal) for lookup in lookups]
        return
    rows = {lookup.key: _rows(lookup, graph) for lookup in {lookup.key: lookup for lookup in lookups}.values()}
    if not all(fits(array, table.const.dtype) for array in rows.values()):
        result.fates += [Fate(lookup.norm.output.name, "kept", refusal=REFUSALS["range"]) for lookup in lookups]
        return
    made = {key: graph.derived(table, array) for key, array in rows.items()}
    for lookup in lookups:
        fate = Fate(lookup.norm.output.name, "deleted", [table.param or table.name])
        _replace(lookup, made[lookup.key], graph)
        result.fates.append(fate)
        result.applied.append(Applied("table-norm", lookup.norm.label, f"deleted into {fate.into[0]}"))
    result.copied += needed


def _only_read_by(value: Value, norms: Iterable[Node], lookup: _Lookup, graph: Graph) -> bool:
    """True when the rows are read by norms that get their own alone."""
    return lookup.is_private(graph) or (not graph.is_fixed(value) and {use.node for use in value.uses} <= set(norms))


def _rows(lookup: _Lookup, graph: Graph) -> Floats:
    """The normalised table, [V, *row] in float64."""
    norm, table = lookup.norm, lookup.table
    assert table.const is not None
    rows = table.const.float64()
    order = lookup.place.ravel()
    x = rows.reshape(len(rows), -1)[:, order].reshape(len(rows), *lookup.place.shape)
    if norm.kind == "BatchNormalization":
        constants = batch_norm_constants(norm, graph)
        assert constants is not None
        gamma, beta, mean, var = (item.reshape(1, 1, -1, *(1,) * (x.ndim - 3)) for item in constants)
        y = (x - mean) * (gamma / np.sqrt(var + float(norm.attrs.get("epsilon", 1e-5)))) + beta
    else:
        axis = int(norm.attrs.get("axis", -1)) % lookup.place.ndim
        per_row = Node(norm.kind, list(norm.inputs), [norm.output], {**norm.attrs, "axis": axis + 1})
        y = evaluate(per_row, [x, *(constant_of(value, graph) for value in norm.inputs[1:])])[0]
    result = np.empty_like(rows).reshape(len(rows), -1)
    result[:, order] = y.reshape(len(rows), -1)
    return result.reshape(rows.shape)


def _replace(lookup: _Lookup, table: Value, graph: Graph) -> None:
    """Look rows up in `table` and drop the norm; what it made is then what the last operation of the chain makes."""
    norm, chain = lookup.norm, lookup.chain
    if lookup.is_private(graph):
        graph.set_input(chain[0], 0, table)
    else:
        rows = chain[0].output
        copy = graph.value(f"{rows.name}_normed", rows.shape, rows.dtype)
        gather = Node("Gather", [table, chain[0].inputs[1]], [copy], dict(chain[0].attrs), module=chain[0].module)
        graph.insert_after(chain[0], gather)
        chain = [gather]
        graph.set_input(norm, 0, copy)
    for node in chain[:-1]:
        disown(node.output, graph, "normed")
    name, gauges = norm.output.name, norm.output.gauges
    source = graph.bypass(norm)
    graph.rename(source, name)
    source.gauges = gauges


REWRITE = Rewrite("table-norm", "Normalise a constant table instead of the rows looked up in it.", run)
