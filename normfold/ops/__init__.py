"""One entry an op kind: how it treats gauges, how it absorbs them, how it is evaluated in float64.

To add an op: an `OpRule(kind, wire, absorb)` in the module of its family (or, from another package, under the entry point
`normfold.ops`), and its float64 arithmetic in `kernels/`.  An op without a rule is pinned: left alone, with everything that
it touches.
"""

from normfold.ops.kernels import can_evaluate, evaluate, is_light
from normfold.ops.registry import op_rules
from normfold.ops.rule import OpRule

__all__ = ["OpRule", "can_evaluate", "evaluate", "is_light", "op_rules"]
