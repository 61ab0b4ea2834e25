"""The longest path, slack and list schedules, against every path and every order of small graphs."""

from __future__ import annotations

import numpy as np
import pytest

from normfold.profile.critical_path import critical_path, makespan


def paths(reads: list[list[int]], end: int) -> list[list[int]]:
    return [[end]] if not reads[end] else [[*path, end] for j in reads[end] for path in paths(reads, j)]


def random_graph(seed: int, count: int = 9) -> tuple[list[float], list[list[int]]]:
    rng = np.random.default_rng(seed)
    reads = [[j for j in range(i) if rng.random() < 0.3] for i in range(count)]
    return [float(value) for value in rng.random(count)], reads


@pytest.mark.parametrize("seed", range(30))
def test_the_longest_of_all_paths_is_found(seed: int) -> None:
    seconds, reads = random_graph(seed)
    found = critical_path(seconds, reads)
    every = [path for end in range(len(seconds)) for path in paths(reads, end)]
    assert found.length == pytest.approx(max(sum(seconds[i] for i in path) for path in every))
    assert sum(seconds[i] for i in found.path) == pytest.approx(found.length)
    assert all(j in reads[i] for j, i in zip(found.path, found.path[1:], strict=False))


@pytest.mark.parametrize("seed", range(30))
def test_slack_is_what_a_kernel_may_grow_by(seed: int) -> None:
    seconds, reads = random_graph(seed)
    found = critical_path(seconds, reads)
    for i, slack in enumerate(found.slack):
        longer = [time + (slack if k == i else 0.0) for k, time in enumerate(seconds)]
        assert critical_path(longer, reads).length == pytest.approx(found.length)
        longer[i] += 0.01
        assert critical_path(longer, reads).length == pytest.approx(found.length + 0.01)
    assert all(found.slack[i] == pytest.approx(0.0, abs=1e-12) for i in found.path)


@pytest.mark.parametrize("seed", range(10))
def test_schedules_lie_between_the_path_and_the_sum(seed: int) -> None:
    seconds, reads = random_graph(seed)
    found = critical_path(seconds, reads)
    spans = [makespan(seconds, reads, found.tail, workers) for workers in (1, 2, 4, 100)]
    assert spans[0] == pytest.approx(sum(seconds))
    assert spans[-1] == pytest.approx(found.length)
    for workers, span in zip((1, 2, 4), spans, strict=False):
        best = max(found.length, sum(seconds) / workers)
        assert best <= span + 1e-12 <= (2 - 1 / workers) * best + 1e-9


def test_kernels_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        critical_path([1.0, 1.0], [[1], []])


def test_nothing_takes_no_time() -> None:
    found = critical_path([], [])
    assert found.length == 0.0 and found.path == []
    assert makespan([], [], [], 2) == 0.0
