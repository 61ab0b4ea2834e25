"""Times of kernels from runs of which some were interrupted."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.profile.kernels import _norm_share, fitted, robust, roof, without
from normfold.profile.result import Kernel
from profiled import MACHINE


def test_runs_that_were_interrupted_in_one_kernel_do_not_count_there() -> None:
    rng = np.random.default_rng(0)
    true = np.array([1e-4, 5e-4, 2e-5, 8e-5])
    times = true * rng.normal(1.0, 0.02, size=(60, 4))
    for row in range(60):  # every run is interrupted somewhere
        times[row, rng.integers(4)] += 2e-3
    assert robust(times).mean(axis=0) == pytest.approx(true, rel=0.1)
    assert times.mean(axis=0).max() > 2 * true.max()


def test_without_outliers_means_stay() -> None:
    times = np.random.default_rng(1).normal(1.0, 0.05, size=(200, 3))
    assert robust(times).mean(axis=0) == pytest.approx(times.mean(axis=0), rel=0.01)
    assert robust(np.ones(5)).mean() == 1.0


def test_the_share_of_norms_is_that_of_the_table_and_lies_in_its_interval() -> None:
    kernels = [Kernel("a", "Conv", 3.0), Kernel("b", "LayerNormalization", 1.0, norm="b")]
    times = np.random.default_rng(2).normal([3.0, 1.0], 0.1, size=(100, 2))
    found = _norm_share(kernels, times, 0.99)
    sums = times.mean(axis=0)
    assert found.ratio == pytest.approx(sums[1] / sums.sum())
    assert 0.24 < found.low < found.ratio < found.high < 0.26
    assert _norm_share(kernels[:1], times[:, :1], 0.99) == (0.0, 0.0, 0.0)


def test_the_lower_roof_binds() -> None:
    assert roof(1e9, 1e6, 0.02, MACHINE) == ("compute", pytest.approx(0.5))  # 10 ms at 100 Gflop/s
    assert roof(1e6, 2e8, 0.01, MACHINE) == ("memory", pytest.approx(1.0))
    assert roof(1e6, 2e8, 0.005, MACHINE)[1] == pytest.approx(2.0)  # from the cache
    assert roof(None, 1e6, 1.0, MACHINE) == ("", None)


def test_the_profiler_s_own_cost_is_raised_until_small_kernels_fit_into_the_wall() -> None:
    true, calls = np.array([1e-4, 9e-6, 2e-6, 1e-6]), np.array([1.0, 1.0, 3.0, 1.0])
    shown = true + 5e-6 * calls
    assert fitted(shown, calls, 1e-6, float(true.sum())) == pytest.approx(5e-6)
    assert fitted(shown, calls, 6e-6, 1.0) == 6e-6, "what fits is left alone"
    assert fitted(shown, calls, 1e-6, 0.0) <= 11.01e-6, "and noise is not explained away"
    assert without(shown, fitted(shown, calls, 1e-6, 0.0), calls).sum() >= 0.49 * without(shown, 1e-6, calls).sum()


def test_no_kernel_vanishes() -> None:
    shown = np.array([[1e-4, 2e-6]])
    assert without(shown, 5e-6, np.ones((1, 2))) == pytest.approx(np.array([[9.5e-5, 2e-7]]))
