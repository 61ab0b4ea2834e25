"""Ops that float64 cannot evaluate (custom domains, random numbers): the comparison steps over them.

A rewrite leaves such an op, and what it reads and gives, untouched.  So both graphs are evaluated with the same made-up outputs
in its place: what comes in must agree, what follows is judged given equal outputs.  Graph outputs behind it have no float64
reference; there the two runtimes are compared with each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Node, Value, is_float
from normfold.verify.evaluate import Walk, compute
from normfold.verify.sizes import size_of, symbol_of


def made_up(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs for every node of `graph` that has no evaluation on these feeds: normal floats, zeros for other types.

    Raises CannotTell, naming the op, where the shape of such an output is not known.
    """
    walk = Walk(graph, feeds)
    sizes = _sizes(graph, feeds)
    found: dict[str, Array] = {}
    for node in graph.nodes:
        arrays = walk.inputs_of(node)
        try:
            results = compute(node, arrays)
        except CannotTell as reason:
            results = [_array(node, value, sizes, reason) for value in node.outputs]
            found.update(zip((value.name for value in node.outputs), results, strict=True))
        walk.settle(node, results)
    return found


def behind(graph: Graph, names: Mapping[str, Array]) -> set[str]:
    """Names of all values that depend on the values `names`."""
    reached = set(names)
    for node in graph.nodes:
        if any(value is not None and value.name in reached for value in (*node.inputs, *node.captures)):
            reached.update(value.name for value in node.outputs)
    return reached


def _sizes(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, int]:
    """Sizes of the symbols that graph inputs name."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, str):
                sizes.setdefault(dim, int(np.shape(feeds[value.name])[axis]))
    return sizes


def _array(node: Node, value: Value, sizes: Mapping[str, int], reason: CannotTell) -> Array:
    dims = [] if value.shape is None else [
        dim if isinstance(dim, int) else size_of(symbol_of(value, axis), sizes) for axis, dim in enumerate(value.shape)
    ]  # fmt: skip
    if value.shape is None or value.dtype is None or any(dim is None for dim in dims):
        raise CannotTell(
            f"{node.kind} {node.label!r} cannot be evaluated in float64, and the shape of its output {value.name!r} is not "
            f"known, so the comparison cannot step over it ({reason})"
        ) from reason
    shape = tuple(dim for dim in dims if dim is not None)
    rng = np.random.default_rng(zlib.crc32(value.name.encode()))
    return rng.standard_normal(shape) if is_float(value.dtype) else np.zeros(shape, dtype=value.dtype)
