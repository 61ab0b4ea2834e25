"""Constant folding and removal of operations that do nothing, on the view, for both adapters.

What constants alone decide is computed here once: floats in float64, rounded when they are stored; integers, and floats on
their way into a comparison, a rounding or a cast, in their own type, as the model would.  Numpy computes, and torch the few calls
of its own that models make of their weights and that ONNX has no operation for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from normfold.capture.dims import KnownDims
from normfold.capture.no_effect import no_effect
from normfold.capture.sequences import split_sequences
from normfold.capture.static import known_count, settle
from normfold.errors import CannotTell
from normfold.graph import Array, Constant, Graph, Node, Value, is_float
from normfold.ops import evaluate, is_light
from normfold.record import Applied, Record

LIMIT = 1 << 22  # elements of a computed constant; more only where its inputs were as large

# a rounding error in their input may change their output by far more: computed from values as the model would hold them
_JUMPS = frozenset(
    "Cast CastLike Floor Ceil Round Sign Mod Equal Greater GreaterOrEqual Less LessOrEqual ArgMax ArgMin TopK NonZero Range "
    "Unique Resize OneHot".split()
)
_KEPT = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear".split()
)  # integers are what the weights are meant to be
_OF_TORCH = frozenset(
    [f"aten::{name}{form}" for name in ("std", "var", "std_mean", "var_mean") for form in ("", ".dim", ".correction")]
    + ["aten::_native_batch_norm_legit.no_stats", "aten::_weight_norm", "aten::linalg_matrix_norm"]
)  # smooth functions that models standardise their weights with in forward


@dataclass
class Tidied:
    """What `tidy` did: nodes computed ahead, operations without effect removed, nodes that reached no output."""

    folded: int = 0
    bypassed: int = 0
    dead: int = 0

    def __bool__(self) -> bool:
        return bool(self.folded or self.bypassed or self.dead)


def tidy(graph: Graph, record: Record | None = None) -> Tidied:
    """Fold constants and remove no-ops in place, bit for bit where no constant is computed.

    Never touched: overridable constants (`graph.pinned`), what sub-graphs read, graph outputs' names, types and order.
    """
    split_sequences(graph)
    done = _Tidier(graph).run()
    if record is not None and done:
        detail = f"{done.folded} computed from constants, {done.bypassed} without effect, {done.dead} unused"
        record.applied.append(Applied("tidy", graph.name or "graph", detail))
    return done


class _Tidier:
    """One pass in topological order: what a node reads is final when it is visited."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.dims = KnownDims(graph)
        self.done = Tidied()
        self.outputs = {id(value) for value in graph.outputs}
        self.exact = _exact_nodes(graph)
        self.gone: list[Node] = []
        self.named: list[tuple[Value, str]] = []

    def run(self) -> Tidied:
        for node in list(self.graph.nodes):
            settle(node, self.graph)
            if self.graph.infer is not None:
                self.graph.infer(self.graph, node)
                settle(node, self.graph)
            _copied_sizes(node, self.graph, self.dims)
            if not (self._fold_dims(node) or self._fold(node)):
                self._bypass(node)
        self.graph.remove(self.gone)
        for value, name in self.named:
            self.graph.rename(value, name)
        self.done.dead = self.graph.prune()
        return self.done

    def _replaceable(self, node: Node) -> bool:
        """True when nobody outside the graph's nodes sees the outputs."""
        return not node.captures and not any(value.captured or id(value) in self.outputs for value in node.outputs)

    def _fold_dims(self, node: Node) -> bool:
        array = self.dims.visit(node)
        if array is None or not self._replaceable(node):
            return False
        return self._replace(node, [Constant(array)])

    def _fold(self, node: Node) -> bool:
        if node.kind in _KEPT or not _computable(node) or not self._replaceable(node) or not node.inputs:
            return False
        if not all(value is None or self._constant(value) for value in node.inputs) or not self._affordable(node):
            return False
        own_type = node in self.exact or node.kind in _JUMPS
        try:
            arrays = evaluate(node, [None if value is None else _read(value, own_type) for value in node.inputs])
        except CannotTell:
            return False
        if len(arrays) < len(node.outputs):
            return False
        constants = [_store(array, value, own_type) for array, value in zip(arrays, node.outputs, strict=False)]
        return self._replace(node, [item for item in constants if item is not None])

    def _constant(self, value: Value) -> bool:
        return value.const is not None and value not in self.graph.pinned and value.dtype is not None

    def _affordable(self, node: Node) -> bool:
        inputs = sum(value.const.size for value in node.inputs if value is not None and value.const is not None)
        bound = _output_bound(node)
        return bound is not None and (bound <= LIMIT or bound <= inputs)

    def _replace(self, node: Node, constants: list[Constant]) -> bool:
        if len(constants) != len(node.outputs):
            return False
        for value, const in zip(node.outputs, constants, strict=True):
            if not value.uses:
                continue
            made = self.graph.constant(value.name, const if self.graph.keep_exact else const.rounded(), param=value.param)
            self.graph.replace_uses(value, made)
            self.named.append((made, value.name))
        self.gone.append(node)
        self.done.folded += 1
        return True

    def _bypass(self, node: Node) -> None:
        """Readers of an operation without effect read its input."""
        source = node.input(0)
        if source is None or node.captures or any(value.uses or id(value) in self.outputs for value in node.outputs[1:]):
            return
        slot = no_effect(node)
        if slot is None:
            return
        source, output = node.inputs[slot], node.output
        if source is None or output.captured or source in self.graph.pinned:
            return
        if id(output) not in self.outputs:
            self.graph.replace_uses(output, source)
            self.gone.append(node)
            self.done.bypassed += 1
            return
        seen = source.const is not None or source.producer is None or source.captured or id(source) in self.outputs
        twice = sum(1 for value in self.graph.outputs if value is output) > 1
        if seen or twice or source.dtype != output.dtype:
            return
        self.graph.replace_uses(output, source)
        self.graph.outputs = [source if value is output else value for value in self.graph.outputs]
        self.outputs.discard(id(output))
        self.outputs.add(id(source))
        self.gone.append(node)
        self.named.append((source, output.name))
        self.done.bypassed += 1


def _computable(node: Node) -> bool:
    return is_light(node.kind) or node.kind in _OF_TORCH


def _read(value: Value, own_type: bool) -> Array:
    assert value.const is not None
    return value.const.rounded().read() if own_type else value.const.float64()


def _store(array: Array, value: Value, own_type: bool) -> Constant | None:
    """A constant of the value's type; None where the arithmetic left it."""
    if value.dtype is None:
        return None if is_float(array.dtype) and not own_type else Constant(array)
    if is_float(value.dtype) and is_float(array.dtype):
        return (
            Constant(array, dtype=value.dtype) if array.dtype == np.float64 else Constant(array.astype(value.dtype, copy=False))
        )
    if value.dtype.kind in "biu" and array.dtype.kind in "biu":
        return Constant(array.astype(value.dtype, copy=False))
    return None


def _exact_nodes(graph: Graph) -> set[Node]:
    """Nodes computed from constants whose results end, through such nodes, in an operation of `_JUMPS`."""
    constant: set[Value] = set()
    ahead: list[Node] = []
    for node in graph.nodes:
        if all(value is None or value.const is not None or value in constant for value in node.inputs) and _computable(node):
            ahead.append(node)
            constant.update(node.outputs)
    computed, exact = set(ahead), set[Node]()
    for node in reversed(ahead):
        readers = {use.node for value in node.outputs for use in value.uses} & computed
        if any(reader.kind in _JUMPS or reader in exact for reader in readers):
            exact.add(node)
    return exact


_ELEMENTWISE_BOUND = frozenset(
    "Reshape Transpose Squeeze Unsqueeze Identity Cast CastLike Slice Split Concat Flatten Dropout".split()
)


def _output_bound(node: Node) -> int | None:
    """The most elements that the outputs can have together; None when that cannot be told before computing."""
    counts = [known_count(value.shape) for value in node.outputs]
    if all(count is not None for count in counts):
        return sum(count or 0 for count in counts)
    sizes = [value.const.shape for value in node.inputs if value is not None and value.const is not None]
    if node.kind in _ELEMENTWISE_BOUND:
        return sum(math.prod(size) for size in sizes)
    wanted = node.attrs.get("shape")
    if node.kind == "ConstantOfShape" and wanted is not None:
        return math.prod(wanted)
    if node.kind == "Range":
        return _range_count(node)
    if node.kind == "Gather" and len(sizes) == 2 and sizes[0]:
        axis = node.attrs.get("axis", 0)
        return math.prod(sizes[0]) // max(sizes[0][axis], 1) * math.prod(sizes[1])
    if node.kind == "Expand" and wanted is not None:
        sizes = [sizes[0], wanted]
    if node.kind == "Expand" or node.kind in _BROADCASTING:
        try:
            return math.prod(np.broadcast_shapes(*sizes))
        except ValueError:
            return None
    return None


def _range_count(node: Node) -> int | None:
    numbers = [value.const.float64() for value in node.inputs if value is not None and value.const is not None]
    if len(numbers) != 3 or any(number.size != 1 for number in numbers):
        return None
    start, limit, delta = (float(number.reshape(())) for number in numbers)
    count = math.ceil((limit - start) / delta) if delta and math.isfinite((limit - start) / delta) else None
    return None if count is None else max(count, 0)


_BROADCASTING = frozenset(
    "Add Sub Mul Div Pow Min Max Sum Mean Where Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not Mod Neg Abs Sqrt "
    "Exp Log Reciprocal Floor Ceil Round Sign Clip Relu".split()
)


def _copied_sizes(node: Node, graph: Graph, dims: KnownDims) -> None:
    """A Reshape to sizes that are its input's own, by name: 0 copies them, and the computed shape is needed no more."""
    if node.kind != "Reshape" or "shape" in node.attrs or node.attrs.get("allowzero"):
        return
    x, wanted = node.inputs[0], dims.of(node.input(1))
    if x is None or x.shape is None or wanted is None or 0 in wanted:
        return
    sizes = list(wanted)
    for axis, size in enumerate(sizes):
        if isinstance(size, str) and axis < len(x.shape) and x.shape[axis] == size:
            sizes[axis] = 0
    unknown = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if len(unknown) == 1 and -1 not in sizes:
        sizes[unknown[0]] = -1
    numbers = [size for size in sizes if isinstance(size, int)]
    if len(numbers) == len(sizes):
        graph.set_input(node, 1, graph.constant(f"{node.output.name}_shape", np.asarray(numbers, dtype=np.int64)))
        settle(node, graph)
