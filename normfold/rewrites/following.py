"""What rewrites share that follow a tensor through operations which only move its elements."""

from __future__ import annotations

import numpy as np

from normfold.algebra import labels as lab
from normfold.algebra.ratios import Floats, Ints
from normfold.graph import Gauge, Graph, Node, Value, is_float

LAYOUT = frozenset("Identity Dropout Transpose Reshape Flatten Squeeze Unsqueeze".split())


def carried(node: Node, labels: Ints) -> Ints | None:
    """Labels of the output of a node of `LAYOUT`, given those of its input; None where that cannot be followed.

    labels: of the input's rank; an axis of size 1 does not vary.
    """
    x, y = node.inputs[0], node.output
    if x is None or x.shape is None or y.shape is None or labels.ndim != len(x.shape):
        return None
    if node.kind in ("Identity", "Dropout"):
        found: Ints | None = labels
    elif node.kind == "Transpose":
        found = np.transpose(labels, node.attrs["perm"]) if "perm" in node.attrs else None
    elif node.kind in ("Reshape", "Flatten"):
        found = lab.reshape(labels, x.shape, y.shape)
    elif "axes" not in node.attrs:
        found = None
    elif node.kind == "Squeeze":
        gone = {int(axis) % len(x.shape) for axis in node.attrs["axes"]}
        found = labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in gone])
    else:
        found = np.expand_dims(labels, tuple(int(axis) % len(y.shape) for axis in node.attrs["axes"]))
    return found if found is not None and found.ndim == len(y.shape) else None


def is_private(value: Value, graph: Graph) -> bool:
    """True when exactly one node reads `value`, once, and nothing outside sees it."""
    return len(value.uses) == 1 and not graph.is_fixed(value)


def regauged(value: Value, scale: Floats, shift: Floats) -> tuple[Gauge, ...]:
    """The promises of a value that now holds ``scale * v + shift`` of what it held."""
    before = value.gauges or (Gauge(value.name, np.ones(()), np.zeros(())),)
    return tuple(Gauge(gauge.original, scale * gauge.scale, scale * gauge.shift + shift) for gauge in before)


def disown(value: Value, graph: Graph, suffix: str) -> None:
    """Record that `value` holds something else now, of which nothing is promised, and take the old name from it.

    The promise is NaN along axis 1, as constant-channels writes it; integers have none at all.
    """
    if is_float(value.dtype):
        sizes = [size if axis == 1 and isinstance(size, int) else 1 for axis, size in enumerate(value.shape or ())]
        value.gauges = regauged(value, np.full(sizes, np.nan), np.zeros(()))
    graph.rename(value, f"{value.name}_{suffix}", unique=True)
