"""One entry an op kind: how it is evaluated, how it treats gauges, how it absorbs them."""

from normfold.ops.kernels import can_evaluate, evaluate, is_light

__all__ = ["can_evaluate", "evaluate", "is_light"]
