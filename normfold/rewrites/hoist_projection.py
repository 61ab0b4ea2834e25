"""hoist-projection: what every step of a Scan or Loop does to its element of the input alone is done once, for all steps.

    x [T, B, I] -> Scan body: (x_t W + b -> LN) + h U -> ...
    becomes        x -> [T B, I] -> W + b -> LN -> y [T, B, O] -> Scan body: y_t + h U -> ...

    y_t [B, O] = f(x_t W + b) for all t    is rows t B to t B + B of    f([x_0; x_1; ...] W + b)

Each row is the same sum of the same products.  It is what is left to gain where the body is a step of no layer that ONNX has
(norms with statistics of the step, peepholes).  With a product goes what stands before and behind it and treats each row alone
(`row_wise`), as long as it makes nothing larger; where the body reads x_t otherwise, too, it goes on taking it.  A weight that
the body still reads stands in front of the loop once, and the body reads it there; nothing is copied.  A Loop has to walk through
its sequence (`loop_steps`); it takes element t of y where it took that of x.

On a loaded two-core machine (ONNX Runtime 1.32, one thread, time after / before): a layer-norm LSTM of torch's scan, T = 50,
h = 128, .79 at batch 1 and .93 at batch 8; h = 16 .90 and .91; the same in a Loop of torch.jit.script, whose body then also loses
the arithmetic on sizes, .59 and .70; .59 and .60.

Source: Appleyard et al., Optimizing Performance of Recurrent Neural Networks on GPUs (arXiv 1604.01946): the input products of
all steps at once.  It does not touch convolutions, elements whose first axis is not that of the rows (no batch), and what bodies
within the body read.  The projections of all steps are held at once, as ONNX Runtime's own LSTM holds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from normfold.algebra.cell_match import NotStandard
from normfold.graph import Dim, Graph, Node, Shape, Value
from normfold.record import Applied
from normfold.rewrites.body_rows import alike
from normfold.rewrites.loop_inputs import Element, LoopInputs, ScanInputs
from normfold.rewrites.loop_steps import read_loop
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten
from normfold.rewrites.row_wise import NORMS, PRODUCTS, Attributes

_EMPTY_SIZES = 14
"""The first opset whose Reshape can be told sizes at run time that may be zero."""


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Take the projection of the input out of every loop over time; `graph` itself is not changed."""
    result = Rewritten(graph)
    for name in [node.output.name for node in graph.nodes if node.kind in ("Scan", "Loop") and "body" in node.bodies]:
        twin = result.graph.clone()
        node = next(item for item in twin.nodes if item.output.name == name)
        inputs = _inputs(twin, node)
        if inputs is None:
            continue
        elements = [item for item in inputs.elements if _can_be_told(item, twin)]
        steady = inputs.body.inputs[len(node.inputs) :]
        found = alike(inputs.body, {item.value: item.order for item in elements}, steady, policy)
        if found:
            ahead = _Ahead(twin, node, inputs.body, elements, found)
            result.renamed |= ahead.norms()
            inputs.take(twin, ahead.crossing())
            result.applied.append(_applied(node, list(found)))
            result.graph = twin.validate()
    return result


def _inputs(graph: Graph, node: Node) -> ScanInputs | LoopInputs | None:
    if node.kind == "Scan":
        return ScanInputs(node)
    try:
        loop = read_loop(graph, node)
    except NotStandard:
        return None
    return LoopInputs(node, loop)


def _can_be_told(item: Element, graph: Graph) -> bool:
    """True where there are steps to put together, and the rows of all can be parted again."""
    shape, element = item.source.shape, item.value.shape
    if not shape or not element or item.value.captured or item.sizes[2:] != element[1:]:
        return False
    return item.sizes[0] != 1 and (any(isinstance(size, int) for size in item.sizes[:2]) or (graph.opset or 0) >= _EMPTY_SIZES)


def _applied(node: Node, gone: Sequence[Node]) -> Applied:
    products = sum(item.kind in PRODUCTS for item in gone)
    what = "one product" if products == 1 else f"{products} products"
    others = len(gone) - products
    more = f" and {others} more operation{'s' if others > 1 else ''}" if others else ""
    return Applied("hoist-projection", node.label, f"{what} of its input{more}, once for all steps")


class _Ahead:
    """The same operations in front of the loop, on the rows of all steps laid on each other: [T B, ...]."""

    def __init__(
        self, graph: Graph, node: Node, body: Graph, elements: Sequence[Element], found: Mapping[Node, Attributes]
    ) -> None:
        self.graph, self.node, self.body, self.found = graph, node, body, found
        self.outer = {value.name: value for value in node.captures}
        self.held = {value.const: value for value in graph.constants() if value not in graph.pinned}
        self.of = {item.value: item for item in elements}  # the element whose rows a value has
        self.rows: dict[Value, Value] = {}
        self.sequences: dict[Value, Value] = {}  # element -> [T, B, ...]
        self.constants: dict[Value, Value] = {}
        for inner, attrs in found.items():
            self._once(inner, attrs)

    def norms(self) -> dict[str, str]:
        """What went along, by the names of outputs before and now."""
        return {node.output.name: self.rows[node.output].name for node in self.found if node.kind in NORMS}

    def crossing(self) -> dict[Value, tuple[Value, Element]]:
        """What the rest of the body reads -> the sequence [T, B, ...] of it, and the element that it is computed from."""
        values = [value for node in self.found for value in node.outputs]
        read = [v for v in values if self.body.is_output(v) or any(use.node not in self.found for use in v.uses)]
        return {value: (self._sequence(value), self.of[value]) for value in read}

    def _once(self, inner: Node, attrs: Attributes) -> None:
        element = next(self.of[value] for value in inner.inputs if value is not None and value in self.of)
        inputs = [None if value is None else self._input(value) for value in inner.inputs]
        outputs: list[Value] = []
        for value in inner.outputs:
            self.of[value] = element
            sizes = (_product(element.sizes[:2]), *(value.shape or ())[1:])
            self.rows[value] = self._value(f"{value.name}_steps", sizes, value)
            outputs.append(self.rows[value])
        name = f"{inner.name}_steps" if inner.name else ""
        made = Node(inner.kind, inputs, outputs, dict(attrs), name, inner.module or self.node.module)
        self.graph.insert_before(self.node, made)

    def _input(self, value: Value) -> Value:
        if value in self.rows:
            return self.rows[value]
        if value in self.of:
            return self._laid(value)
        return self._constant(value)

    def _laid(self, value: Value) -> Value:
        """The rows of a whole sequence: those of its first element, then those of the second, ..."""
        element = self.of[value]
        sequence, sizes = element.source, element.sizes
        if element.axis:
            sequence = self._add("Transpose", [sequence], sizes, "in_turn", value, perm=element.perm)
        self.sequences[value] = sequence
        rest = sizes[2:]
        self.rows[value] = self._add("Reshape", [sequence], (_product(sizes[:2]), *rest), "rows", value, shape=(-1, *rest))
        return self.rows[value]

    def _sequence(self, value: Value) -> Value:
        """Rows as [T, B, ...] again."""
        element, rest = self.of[value], (value.shape or ())[1:]
        steps, size = element.sizes[:2]
        rows, wanted = self.rows[value], (steps, size, *rest)
        if isinstance(steps, int) or isinstance(size, int):
            shape = (-1, size, *rest) if isinstance(size, int) else (steps, -1, *rest)
            return self._add("Reshape", [rows], wanted, "sequence", value, shape=shape)
        of_all = self._add("Shape", [self.sequences[element.value]], (len(element.sizes),), "sizes", value, np.int64)
        both = {"starts": (0,), "ends": (2,), "axes": (0,), "steps": (1,)}
        first = self._add("Slice", [of_all], (2,), "sizes", value, np.int64, **both)
        others = self.graph.constant(f"{value.name}_sizes", np.array(rest, np.int64))
        shape = self._add("Concat", [first, others], (len(wanted),), "sizes", value, np.int64, axis=0)
        return self._add("Reshape", [rows, shape], wanted, "sequence", value, allowzero=1)

    def _constant(self, inner: Value) -> Value:
        """A constant of the body in the graph around it: the one that is there, or a new one for both."""
        if inner.name in self.outer:
            return self.outer[inner.name]
        if inner.const in self.held:
            return self.held[inner.const]
        if inner not in self.constants:
            assert inner.const is not None
            const = inner.const if self.graph.keep_exact else inner.const.rounded()
            made = self.constants[inner] = self.graph.constant(inner.name, const, param=inner.param)
            stays = any(use.node not in self.found for use in inner.uses) or self.body.is_output(inner)
            if stays and (inner.rank or 0) > 1:
                self.body.rename(inner, made.name)
                self.graph.set_captures(self.node, (*self.node.captures, made))
        return self.constants[inner]

    def _value(self, name: str, shape: Sequence[Dim], like: Value) -> Value:
        return self.graph.fresh(name, shape, like.dtype)

    def _add(
        self,
        kind: str,
        inputs: list[Value | None],
        sizes: Sequence[Dim],
        suffix: str,
        like: Value,
        dtype: type[np.int64] | None = None,
        **attrs: object,
    ) -> Value:
        made = self._value(f"{like.name}_{suffix}", sizes, like)
        made.dtype = like.dtype if dtype is None else np.dtype(dtype)
        self.graph.insert_before(self.node, Node(kind, inputs, [made], dict(attrs), made.name, self.node.module))
        return made


def _product(sizes: Shape) -> Dim:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


REWRITE = Rewrite("hoist-projection", "Do at once for all steps of a Scan or Loop what its body does to the input alone.", run)
