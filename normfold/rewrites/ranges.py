"""A folded constant must fit its stored type: judged in float64, before the one rounding."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from normfold.graph import BFLOAT16, Array, Node, is_float
from normfold.ops.regauge import Regauge


def out_of_range(regauge: Regauge) -> list[Node]:
    """Nodes that were given a constant which overflows, or loses a whole row to underflow, in its stored type."""
    broken = [node for node, (number, dtype) in regauge.numbers.items() if not fits(np.full((1, 1), number), dtype)]
    for node in regauge.changed:
        for value in node.inputs:
            if value is None or value.const is None or value.dtype is None or not is_float(value.dtype):
                continue
            if fits(value.const.read(), value.dtype):
                continue
            broken.append(node)
            break
    return broken


def fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """True when every element is finite and below the largest number of `dtype`, and no row of a weight becomes subnormal.

    A row (index of axis 0) whose largest element is subnormal has lost relative precision in all of its elements; single small
    elements beside larger ones have not, measured against their row.
    """
    info = ml_dtypes.finfo(dtype)  # knows numpy's own types and bfloat16
    array = array.astype(np.float32) if array.dtype == BFLOAT16 else array
    flat = array.reshape(array.shape[0] if array.ndim > 1 else 1, -1)
    if flat.size == 0:
        return True
    rows = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)  # NaN stays NaN
    if not np.all(rows <= float(info.max)):
        return False
    return array.ndim < 2 or not np.any((rows > 0) & (rows < float(info.smallest_normal)))
