"""Percentile bounds: against the textbook's numbers, scipy's binomial, and how often they really hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from normfold.profile.percentiles import needed, percentile


@pytest.mark.parametrize(("percent", "runs"), [(50.0, 7), (90.0, 44), (99.0, 459)])
def test_how_many_runs_a_bound_needs_at_99_percent(percent: float, runs: int) -> None:
    assert needed(percent, 0.99) == runs
    rng = np.random.default_rng(0)
    assert math.isinf(percentile(rng.random(runs - 1), percent, 0.99).high)
    times = rng.random(runs)
    assert percentile(times, percent, 0.99).high == times.max()


@pytest.mark.parametrize("runs", [44, 100, 1000])
@pytest.mark.parametrize("percent", [10.0, 50.0, 90.0])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_bounds_are_the_order_statistics_that_the_binomial_says(runs: int, percent: float, confidence: float) -> None:
    found = percentile(np.arange(1.0, runs + 1), percent, confidence)
    spread = stats.binom(runs, percent / 100.0)
    above = [k for k in range(1, runs + 1) if spread.cdf(k - 1) >= confidence]
    below = [k for k in range(1, runs + 1) if spread.sf(k - 1) >= confidence]
    assert found.high == (above[0] if above else math.inf)
    assert found.low == (below[-1] if below else 0.0)
    assert found.low <= found.value <= found.high


def test_the_bounds_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    true = stats.expon.ppf(0.9)
    found = [percentile(rng.exponential(size=60), 90.0, 0.95) for _ in range(2000)]
    assert np.mean([item.high >= true for item in found]) >= 0.945
    assert np.mean([item.low <= true for item in found]) >= 0.945
    assert np.mean([item.high >= true for item in found]) < 0.999  # and are not simply wide


def test_many_runs_do_not_underflow() -> None:
    times = np.random.default_rng(2).random(50_000)
    found = percentile(times, 99.0, 0.99)
    assert found.low < 0.99 < found.high
    assert found.high - found.low < 0.01
