"""Percentiles as bounds with a confidence, from order statistics: no distribution is assumed.

Of n independent runs the k-th smallest lies at or above the p-th quantile q with the probability P(Bin(n, p) <= k - 1), for how
many runs fall below q is binomial.  So the upper bound is the first sorted time for which that reaches the confidence, and there
is none below

    n = ceil(log(1 - confidence) / log(p))        at 99 %: 44 runs for the 90th percentile, 459 for the 99th

(David and Nagaraja, Order Statistics, section 7.1; MLPerf's LoadGen counts its queries by the same argument.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normfold.graph import Array
from normfold.profile.result import Percentile

USUAL = (50.0, 90.0, 99.0)


def needed(percent: float, confidence: float) -> int:
    """The fewest runs whose slowest is an upper bound of this percentile with this confidence."""
    return math.ceil(math.log1p(-confidence) / math.log(percent / 100.0) - 1e-9)


def percentile(times: Sequence[float] | Array, percent: float, confidence: float) -> Percentile:
    """The percentile of `times` (seconds, any order) with a lower and an upper bound, each one-sided at `confidence`.

    low is 0 and high is infinite where there are too few runs for a bound.  percent lies strictly between 0 and 100.
    """
    ordered = np.sort(np.asarray(times, dtype=np.float64))
    count, p = len(ordered), percent / 100.0
    if not count or not 0.0 < p < 1.0:
        raise ValueError(f"a percentile needs runs, and lies between 0 and 100; got {count} runs and {percent}")
    at_most = _binomial(count, p)  # at_most[k]: k runs or fewer fall below the quantile
    above = np.flatnonzero(at_most[:count] >= confidence)
    below = np.flatnonzero(1.0 - at_most[:count] >= confidence)  # more than k runs fall below it
    return Percentile(
        percent=percent,
        value=float(ordered[min(count - 1, math.ceil(p * count) - 1)]),
        low=float(ordered[below[-1]]) if len(below) else 0.0,
        high=float(ordered[above[0]]) if len(above) else math.inf,
        confidence=confidence,
        needed=needed(percent, confidence),
    )


def _binomial(count: int, p: float) -> Array:
    """P(Bin(count, p) <= k) for k = 0 .. count."""
    k = np.arange(1, count + 1, dtype=np.float64)
    steps = np.log((count - k + 1.0) / k) + math.log(p / (1.0 - p))  # log of P(k) / P(k - 1)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + count * math.log1p(-p)
    return np.minimum(np.cumsum(np.exp(logs)), 1.0)
