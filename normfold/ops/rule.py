"""What an op kind contributes; see `normfold.ops` for how to add one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from normfold.graph import Node
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import Rule


@dataclass(frozen=True)
class OpRule:
    """How one op kind treats gauges.

    wire: states labels of the outputs and demands on the inputs (affine-algebra's "what each op allows").
    absorb: puts the gauges of inputs and outputs into the node's constants; None for ops without any.
    """

    kind: str
    wire: Rule
    absorb: Callable[[Node, Regauge], None] | None = None
