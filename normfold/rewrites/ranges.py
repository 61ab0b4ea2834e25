"""A folded constant must fit its stored type: judged in float64, before the one rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from normfold.graph import BFLOAT16, Array, Node
from normfold.ops.regauge import Regauge


def out_of_range(regauge: Regauge) -> list[Node]:
    """Nodes that were given a constant which overflows, or loses a whole row to underflow, in its stored type."""
    broken: list[Node] = []
    for node in regauge.changed:
        for value in node.inputs:
            if value is not None and value.const is not None and value.dtype is not None:
                if not fits(value.const.read(), value.dtype):
                    broken.append(node)
                    break
    return broken


def fits(array: Array, dtype: np.dtype[np.generic]) -> bool:
    """True when every element is finite and below the largest number of `dtype`, and no row of a weight becomes subnormal.

    A row (index of axis 0) whose largest element is subnormal has lost relative precision in all of its elements; single small
    elements beside larger ones have not, measured against their row.
    """
    info = ml_dtypes.finfo(dtype) if dtype == BFLOAT16 else np.finfo(dtype)
    size = np.abs(array.astype(np.float64))
    if not np.all(size <= float(info.max)):
        return False
    if array.ndim < 2 or array.size == 0:
        return True
    rows = size.reshape(size.shape[0], -1).max(axis=1)
    return not np.any((rows > 0) & (rows < float(info.smallest_normal)))
