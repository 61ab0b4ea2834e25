"""What a normalization layer is, independent of how it was spelled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from normfold.graph.node import Node
from normfold.graph.values import Array, Value

NormKind = Literal["batch", "layer", "instance", "group", "rms", "l2"]


@dataclass(eq=False)
class NormSpec:
    """One normalization layer found in a graph.

    kind: "batch" (statistics are constants), "instance", "group", "layer", "rms", "l2".
    nodes: the operations that spell it, in order; the last one produces `output`.
    axes: axes of `input` over which statistics are taken at run time (empty for "batch").
    channel_axis: axis of `input` that gamma and beta run along (None when there is no affine part).
    epsilon: added to the variance (inside the root).
    gamma, beta, mean, var: float64 arrays of shape [C], None when absent or computed at run time.
    training: the layer takes batch statistics at run time; it is never folded.
    """

    kind: NormKind
    nodes: list[Node]
    input: Value
    output: Value
    axes: tuple[int, ...] = ()
    channel_axis: int | None = None
    groups: int = 1
    epsilon: float = 0.0
    gamma: Array | None = None
    beta: Array | None = None
    mean: Array | None = None
    var: Array | None = None
    training: bool = False
    health: list[str] = field(default_factory=list[str])

    @property
    def node(self) -> Node:
        """The node that carries the layer's identity: the last one."""
        return self.nodes[-1]

    @property
    def name(self) -> str:
        return self.node.label
