"""The float64 evaluator: interprets the view node by node, in double precision, holding only what is still to be read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from normfold.errors import CannotTell, UsageError
from normfold.graph import Array, Graph, Node, Value, is_float
from normfold.ops.kernels import evaluate as evaluate_node

Constants = Callable[[Value], Array]
"""What stands for a constant: the value's own array in float64 unless a caller perturbs it."""


def exact(array: Array) -> Array:
    """Float arrays as float64; integers and bools as they are."""
    return array.astype(np.float64) if is_float(array.dtype) and array.dtype != np.float64 else array


def stored(value: Value) -> Array:
    """The array of a constant value, in float64."""
    assert value.const is not None
    return value.const.float64()


def compute(node: Node, arrays: list[Array | None]) -> list[Array]:
    """One node in float64.  A cast to a float type does not round: it is no more than a change of type here.

    arrays: the inputs, followed by the captures.  Raises CannotTell.
    """
    if node.kind in ("Cast", "CastLike") and arrays[0] is not None:
        target = node.attrs.get("to") if node.kind == "Cast" else (None if arrays[1] is None else arrays[1].dtype)
        if target is not None and is_float(np.dtype(target)):
            return [arrays[0].astype(np.float64, copy=False)]
    results = [exact(array) for array in evaluate_node(node, arrays)]
    if len(results) < len(node.outputs):
        raise CannotTell(f"{node.kind} {node.label!r} has {len(node.outputs)} outputs, its evaluation gave {len(results)}")
    return results[: len(node.outputs)]


class Walk:
    """One evaluation of a graph in the hands of its consumer.

    Iterating yields (value, array): graph inputs first, then node outputs in order.  An array is dropped after the last node
    that reads it; the consumer keeps what it needs.  Arrays must not be written to: one may be a view of another.
    Consumers that steer an evaluation themselves use `results_of` and `settle`, node by node.
    given: outputs, by name, of nodes that are not to be evaluated.
    Raises CannotTell, naming the op, where a node has no evaluation; UsageError when the feeds do not fit the graph's inputs.
    """

    def __init__(
        self,
        graph: Graph,
        feeds: Mapping[str, Array],
        constants: Constants | None = None,
        given: Mapping[str, Array] | None = None,
    ) -> None:
        self.graph = graph
        self.given = given or {}
        self.constants = constants or stored
        self._held: dict[Value, Array] = {}
        self._readers: dict[Value, int] = {}
        for node in graph.nodes:
            for value in _read_by(node):
                self._readers[value] = self._readers.get(value, 0) + 1
        _check_names(graph, feeds)
        for value in graph.inputs:
            self._held[value] = exact(np.asarray(feeds[value.name]))

    def __iter__(self) -> Iterator[tuple[Value, Array]]:
        for value in self.graph.inputs:
            array = self._held[value]
            if not self._readers.get(value):
                del self._held[value]
            yield value, array
        for node in self.graph.nodes:
            results = self.results_of(node)
            self.settle(node, results)
            yield from zip(node.outputs, results, strict=True)

    def results_of(self, node: Node) -> list[Array]:
        """The outputs of `node`, evaluated or given."""
        if self.given and all(value.name in self.given for value in node.outputs):
            return [self.given[value.name] for value in node.outputs]
        return compute(node, self.inputs_of(node))

    def settle(self, node: Node, results: Sequence[Array]) -> None:
        """`node` has run: drop what nobody reads any more, hold its outputs for their readers."""
        for value in _read_by(node):
            self._readers[value] -= 1
            if not self._readers[value]:
                self._held.pop(value, None)
        for value, array in zip(node.outputs, results, strict=True):
            if self._readers.get(value):
                self._held[value] = array

    def inputs_of(self, node: Node) -> list[Array | None]:
        """What `node` reads: inputs, then captures."""
        return [None if value is None else self.read(value) for value in (*node.inputs, *node.captures)]

    def read(self, value: Value) -> Array:
        """The array of a constant, or of a value that is still held."""
        return self.constants(value) if value.const is not None else self._held[value]

    def holds(self, value: Value) -> bool:
        """True while somebody is still to read `value`."""
        return value in self._held

    def replace(self, value: Value, array: Array) -> None:
        """Let every later reader of `value` read `array`."""
        if value in self._held:
            self._held[value] = array


def _read_by(node: Node) -> AbstractSet[Value]:
    return {value for value in (*node.inputs, *node.captures) if value is not None and value.const is None}


def _check_names(graph: Graph, feeds: Mapping[str, Array]) -> None:
    names = {value.name for value in graph.inputs}
    missing, unknown = sorted(names - set(feeds)), sorted(set(feeds) - names)
    if missing or unknown:
        wrong = f"{', '.join(missing)} came without an array" if missing else f"{', '.join(unknown)} is not among them"
        raise UsageError(f"the inputs are {', '.join(sorted(names)) or 'none'}; {wrong}")


def run(
    graph: Graph,
    feeds: Mapping[str, Array],
    *,
    watch: Collection[str] | None = None,
    constants: Constants | None = None,
    given: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Evaluate `graph` in float64; returns its outputs and the values named in `watch`.

    feeds: an array for every graph input, by name; floats are widened.  constants: what stands for a constant value (its
    own array in float64).  given: outputs, by name, of nodes that are not to be evaluated.
    To look at every value without keeping them, iterate over a `Walk`.
    Raises CannotTell and UsageError as `Walk` does.
    """
    wanted = {value.name for value in graph.outputs} | set(watch or ())
    walk = Walk(graph, feeds, constants, given)
    result = {value.name: array for value, array in walk if value.name in wanted}
    for value in graph.outputs:
        if value.const is not None:
            result[value.name] = walk.read(value)
    return {name: result[name] for name in _ordered(graph, result)}


def _ordered(graph: Graph, result: Mapping[str, Array]) -> list[str]:
    """Outputs first, in the graph's order."""
    outputs = list(dict.fromkeys(value.name for value in graph.outputs))
    return [*outputs, *(name for name in result if name not in set(outputs))]
