"""The longest path through a graph of kernels, the slack of every other one, and what several workers could reach.

    start[i]  = max of start[j] + seconds[j] over the kernels j that i reads          (0 without any)
    tail[i]   = seconds[i] + max of tail[k] over the kernels k that read i
    slack[i]  = length - start[i] - tail[i],   length = max of tail                  (0 on the critical path)

(Kelley and Walker 1959.)  With p workers the end of a list schedule, longest tail first, lies within (2 - 1/p) of the best
(Graham 1969): it can be reached, where `length` may not be.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

WORKERS = (2, 4, 8)


@dataclass(frozen=True)
class Paths:
    """start, slack: seconds, by kernel.  path: one longest path, indices in order.  length: its seconds."""

    start: list[float]
    slack: list[float]
    tail: list[float]
    path: list[int]
    length: float


def critical_path(seconds: Sequence[float], reads: Sequence[Sequence[int]]) -> Paths:
    """reads[i]: the kernels whose results kernel i needs, each before i.  Raises ValueError for another order."""
    if any(j >= i for i, needed in enumerate(reads) for j in needed):
        raise ValueError("kernels come in the order in which they can run")
    count = len(seconds)
    start, tail = [0.0] * count, [0.0] * count
    for i in range(count):
        start[i] = max((start[j] + seconds[j] for j in reads[i]), default=0.0)
    behind = [0.0] * count
    for i in reversed(range(count)):
        tail[i] = seconds[i] + behind[i]
        for j in reads[i]:
            behind[j] = max(behind[j], tail[i])
    length = max(tail, default=0.0)
    path: list[int] = []
    if count:
        current = max((i for i in range(count) if not reads[i]), key=lambda i: tail[i])
        path.append(current)
        readers = _readers(reads)
        while readers[current]:
            current = max(readers[current], key=lambda i: tail[i])
            path.append(current)
    return Paths(start, [max(0.0, length - start[i] - tail[i]) for i in range(count)], tail, path, length)


def makespan(seconds: Sequence[float], reads: Sequence[Sequence[int]], tail: Sequence[float], workers: int) -> float:
    """When the last kernel ends with so many workers, each free worker taking the ready kernel with the longest tail."""
    readers, missing = _readers(reads), [len(set(needed)) for needed in reads]
    ready = [(-tail[i], i) for i in range(len(seconds)) if not missing[i]]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, i = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[i], i))
        now, done = heapq.heappop(running)
        for i in readers[done]:
            missing[i] -= 1
            if not missing[i]:
                heapq.heappush(ready, (-tail[i], i))
    return now


def _readers(reads: Sequence[Sequence[int]]) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in reads]
    for i, needed in enumerate(reads):
        for j in set(needed):
            readers[j].append(i)
    return readers
