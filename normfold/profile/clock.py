"""A clock that says which of two functions is faster, or that it cannot tell.

Both are run interleaved, so that whatever slows the machine slows both, and `before` is also measured against itself:

    block:   A  A' B   B  A' A          (A, A': two instances of before; B: after; the first half rotates)

Mirrored blocks cancel every linear drift.  One sample is a batch of calls that takes at least `SAMPLE` seconds; short calls
follow one that is not timed (it pays for the change of caches).  Blocks are grouped in rounds, and every round makes its
instances anew where it can: two sessions of one and the same graph differ by up to 5 % on small kernels, for their whole life,
by where their memory happened to fall.  A round gives one ratio, B to the mean of A and A', and one of A' to A (medians over
its blocks); the medians over the rounds get percentile bootstrap intervals (Efron 1979) over the rounds.  The verdict:

    "faster", "slower"    the interval of B/A lies below 1, above 1
    "no difference"       it holds 1 and is no wider than +-2 %
    "too noisy to tell"   otherwise; also when the interval of A'/A misses 1 or is wider than +-2 %, unless the interval of B/A
                          lies more than twice as far out (half the time is half the time on a noisy machine too); also
                          when there are too few rounds for the confidence
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from normfold.graph import Array
from normfold.record import Timing

Run = Callable[[], object]
Clock = Callable[[], float]

SAMPLE = 2e-3
WIDTH = 0.02  # half-width of an interval, relative
RESOLUTION = 1e-3  # relative; nothing smaller is claimed, drift and clock leave that much
_ROUNDS = 40  # at most, within the budget
_RESAMPLES = 2000
_OVERTIME = 4.0  # the budget may be exceeded so many times to reach the fewest rounds that can tell
_WARM_SHARE, _STABLE, _WINDOW = 0.2, 0.02, 3
_ORDERS = (("self", "before", "after"), ("before", "after", "self"), ("after", "self", "before"))


class Interval(NamedTuple):
    """Median of the ratios with its bootstrap interval."""

    ratio: float
    low: float
    high: float

    @property
    def wide(self) -> bool:
        """Wider than +-2 %."""
        return (self.high - self.low) / 2 > WIDTH * self.ratio

    @property
    def holds_one(self) -> bool:
        """No difference beyond the resolution of the clock is shown."""
        return self.low <= 1.0 + RESOLUTION and self.high >= 1.0 - RESOLUTION


def compare(
    before: Run,
    after: Run,
    *,
    seconds: float = 5.0,
    confidence: float = 0.95,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    runtime: str = "",
    level: str = "",
    threads: int = 1,
) -> Timing:
    """Time the function `before` against the function `after`; see `compare_made`, which makes them anew every round."""
    return compare_made(
        lambda: before,
        lambda: after,
        fresh=False,
        seconds=seconds,
        confidence=confidence,
        seed=seed,
        clock=clock,
        runtime=runtime,
        level=level,
        threads=threads,
    )


def compare_made(
    before: Callable[[], Run],
    after: Callable[[], Run],
    *,
    fresh: bool = True,
    seconds: float = 5.0,
    confidence: float = 0.95,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    runtime: str = "",
    level: str = "",
    threads: int = 1,
) -> Timing:
    """Time what `after` makes against what `before` makes, for about `seconds`.

    The ratio of the result is time(after) / time(before): below 1 is faster.  fresh: every making gives a new
    instance.  clock: seconds, monotonic.  runtime, level and threads are only passed on.
    """
    makers = {"before": before, "self": before, "after": after}
    needed, start = fewest(confidence), clock()
    rounds: list[dict[str, Array]] = []
    batches: dict[str, int] = {}
    runs: dict[str, Run] = {}
    with _no_collection():
        while True:
            now = clock()
            spent, budget = now - start, seconds if len(rounds) >= needed else _OVERTIME * seconds
            if rounds and (spent >= budget or spent + spent / len(rounds) > _OVERTIME * seconds):
                break
            rounds.append(_round(makers, runs, batches, fresh, len(rounds), clock, now, seconds))
    mean = [(item["before"] + item["self"]) / 2 for item in rounds]
    ratio = bootstrap(
        np.array([np.median(item["after"] / one) for item, one in zip(rounds, mean, strict=True)]), confidence, seed
    )
    own = bootstrap(np.array([np.median(item["self"] / item["before"]) for item in rounds]), confidence, seed)
    return Timing(
        runtime=runtime,
        level=level,
        threads=threads,
        before=float(np.median(np.concatenate(mean))),
        after=float(np.median(np.concatenate([item["after"] for item in rounds]))),
        ratio=ratio.ratio,
        low=ratio.low,
        high=ratio.high,
        confidence=confidence,
        runs=2 * sum(len(item["before"]) for item in rounds),
        verdict=verdict(ratio, own, enough=len(rounds) >= needed),
        self_low=own.low,
        self_high=own.high,
    )


def verdict(ratio: Interval, own: Interval, *, enough: bool) -> str:
    """What the two intervals allow to say; `enough`: there were rounds enough for their confidence."""
    shaky = own.wide or not own.holds_one
    if not enough or (shaky and not _dwarfs(ratio, own)) or (ratio.wide and ratio.holds_one):
        return "too noisy to tell"
    if ratio.holds_one:
        return "no difference"
    return "faster" if ratio.ratio < 1.0 else "slower"


def _dwarfs(ratio: Interval, own: Interval) -> bool:
    """The nearest end of `ratio` lies on the log scale more than twice as far from 1 as the farthest of `own`."""
    if ratio.holds_one:
        return False
    nearest = min(abs(math.log(ratio.low)), abs(math.log(ratio.high)))
    return nearest > 2.0 * max(abs(math.log(own.low)), abs(math.log(own.high)))


def fewest(confidence: float) -> int:
    """The fewest values whose extremes enclose their true median with this confidence: 2 * 0.5^n <= 1 - confidence."""
    return math.ceil(1.0 - math.log2(1.0 - confidence) - 1e-9)


def bootstrap(ratios: Array, confidence: float, seed: int = 0) -> Interval:
    """Median of `ratios` [rounds] with its percentile bootstrap interval, seeded."""
    rng = np.random.default_rng(seed)
    drawn = ratios[rng.integers(0, len(ratios), size=(_RESAMPLES, len(ratios)))]
    low, high = np.quantile(np.median(drawn, axis=1), [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(float(np.median(ratios)), float(low), float(high))


def _round(
    makers: dict[str, Callable[[], Run]],
    runs: dict[str, Run],
    batches: dict[str, int],
    fresh: bool,
    index: int,
    clock: Clock,
    start: float,
    seconds: float,
) -> dict[str, Array]:
    """Make the three arms and measure: seconds a call [blocks] of each.

    runs: the arms of the last round, replaced.  batches: calls a sample, filled by the first round.  Which arm is made first
    rotates from round to round, so that none always gets the same memory.
    """
    runs.clear()  # frees the old ones before new ones take memory
    for name in _ORDERS[index % len(_ORDERS)]:
        runs[name] = makers[name]()
    made = clock()
    if not batches:
        batches |= _warm(runs, clock, made + _WARM_SHARE * seconds)
    if fresh:
        for run in (*runs.values(), *runs.values()):  # a new instance allocates in its first calls
            run()
    now = clock()
    end = max(start + seconds / _ROUNDS, now + (made - start))  # making costs at most half of the time
    samples: dict[str, list[float]] = {name: [] for name in runs}
    block = index
    while True:
        order = _ORDERS[block % len(_ORDERS)]
        half = {name: _batch(runs[name], batches[name], clock) for name in order}
        for name in reversed(order):
            samples[name].append((half[name] + _batch(runs[name], batches[name], clock)) / 2.0)
        block += 1
        if clock() >= end:
            return {name: np.maximum(np.asarray(values), 1e-12) for name, values in samples.items()}


def _batch(run: Run, count: int, clock: Clock) -> float:
    """Seconds a call, over `count` calls; several follow one that is not timed."""
    if count > 1:
        run()
    start = clock()
    for _ in range(count):
        run()
    return (clock() - start) / count


def _warm(runs: dict[str, Run], clock: Clock, end: float) -> dict[str, int]:
    """Run all until their times settle or it is `end`; returns how many calls make one sample of each."""
    history: dict[str, list[float]] = {name: [] for name in runs}
    counts = dict.fromkeys(runs, 1)
    while True:
        for name, past in history.items():
            past.append(_batch(runs[name], counts[name], clock))
            counts[name] = _count(past[-1])
        if clock() >= end or all(_settled(past) for past in history.values()):
            break
    counts = {name: _count(min(past)) for name, past in history.items()}
    return {**counts, "self": counts["before"]}


def _count(seconds: float) -> int:
    return max(1, math.ceil(SAMPLE / max(seconds, 1e-9)))


def _settled(past: list[float]) -> bool:
    """True when the median of the last window differs little from the one before it."""
    if len(past) < 2 * _WINDOW:
        return False
    last, earlier = statistics.median(past[-_WINDOW:]), statistics.median(past[-2 * _WINDOW : -_WINDOW])
    return abs(last - earlier) <= _STABLE * max(earlier, 1e-12)


@contextmanager
def _no_collection() -> Generator[None]:
    """Keep Python's garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
