"""The clock on a machine of which we know everything: time passes only where a function says so."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from normfold.profile.clock import SAMPLE, Interval, bootstrap, compare, compare_made, fewest, verdict


class Machine:
    """A clock, and functions that take a known time on it, with noise, drift and spikes."""

    def __init__(self, seed: int = 0, *, noise: float = 0.0, drift: float = 0.0, spikes: float = 0.0) -> None:
        self.now, self.calls = 0.0, 0
        self.rng = np.random.default_rng(seed)
        self.noise, self.drift, self.spikes = noise, drift, spikes

    def clock(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls += 1
            factor = (1.0 + self.drift * self.now) * np.exp(self.noise * self.rng.standard_normal())
            if self.rng.random() < self.spikes:
                factor *= 20.0
            self.now += seconds * float(factor)

        return run


@pytest.mark.parametrize("seed", range(10))
def test_equal_functions_differ_in_nothing(seed: int) -> None:
    machine = Machine(seed, noise=0.02)
    timing = compare(machine.takes(0.005), machine.takes(0.005), seconds=5.0, confidence=0.99, clock=machine.clock)
    assert timing.verdict in ("no difference", "too noisy to tell")
    assert 0.98 < timing.ratio < 1.02
    assert timing.before == pytest.approx(0.005, rel=0.02)


@pytest.mark.parametrize("factor, expected", [(1.1, "slower"), (0.9, "faster"), (0.3, "faster"), (1.02, "slower")])
def test_a_real_difference_is_called(factor: float, expected: str) -> None:
    machine = Machine(1, noise=0.01)
    timing = compare(machine.takes(0.004), machine.takes(0.004 * factor), clock=machine.clock)
    assert timing.verdict == expected
    assert timing.low <= factor <= timing.high
    assert timing.ratio == pytest.approx(factor, rel=0.01)
    assert timing.after == pytest.approx(0.004 * factor, rel=0.02)


def test_a_machine_that_slows_down_slows_both() -> None:
    machine = Machine(drift=0.2)
    timing = compare(machine.takes(0.003), machine.takes(0.003), clock=machine.clock)
    assert timing.verdict == "no difference"
    assert timing.ratio == pytest.approx(1.0, abs=1e-3)


def test_spikes_do_not_move_the_median() -> None:
    machine = Machine(2, noise=0.005, spikes=0.02)
    timing = compare(machine.takes(0.003), machine.takes(0.0033), clock=machine.clock)
    assert timing.verdict == "slower"
    assert timing.ratio == pytest.approx(1.1, rel=0.03)


def test_a_noisy_machine_is_said_to_be_noisy() -> None:
    machine = Machine(3, noise=1.0)
    timing = compare(machine.takes(0.05), machine.takes(0.05), clock=machine.clock)
    assert timing.verdict == "too noisy to tell"


@pytest.mark.parametrize("seed", range(10))
def test_instances_that_differ_by_chance_make_no_winner(seed: int) -> None:
    """Every session of a runtime is a few percent faster or slower for its whole life."""
    machine = Machine(seed, noise=0.002)
    rng = np.random.default_rng(seed)
    made = 0

    def maker() -> Callable[[], None]:
        nonlocal made
        made += 1
        machine.now += 0.05
        return machine.takes(0.003 * float(np.exp(0.05 * rng.standard_normal())))

    timing = compare_made(maker, maker, clock=machine.clock, confidence=0.99)
    assert made >= 3 * fewest(0.99)
    assert timing.verdict == "too noisy to tell"


def test_which_instance_is_made_first_rotates() -> None:
    machine, order = Machine(), list[str]()

    def maker(name: str) -> Callable[[], Callable[[], None]]:
        def make() -> Callable[[], None]:
            order.append(name)
            return machine.takes(0.003)

        return make

    compare_made(maker("A"), maker("B"), clock=machine.clock)
    assert "".join(order[:9]) == "AABABABAA"  # after: third, second, first
    assert len(order) % 3 == 0
    assert len(order) >= 3 * fewest(0.95)


@pytest.mark.parametrize("seconds", [3e-6, 3e-5, 1e-3])
def test_short_functions_are_run_in_batches(seconds: float) -> None:
    machine, reads = Machine(), list[float]()

    def clock() -> float:
        reads.append(machine.now)
        return machine.now

    compare(machine.takes(seconds), machine.takes(seconds), seconds=0.5, clock=clock)
    spans = np.diff(reads)
    assert np.median(spans[spans > 1.5 * seconds]) >= SAMPLE * 0.999  # once it is warm, whatever is timed is a sample


def test_the_budget_is_kept() -> None:
    machine = Machine()
    timing = compare(machine.takes(0.01), machine.takes(0.01), seconds=3.0, clock=machine.clock)
    assert machine.now < 4.5
    assert timing.runs > 2 * fewest(0.95)


def test_slow_functions_get_overtime_but_not_for_ever() -> None:
    machine = Machine()
    timing = compare(machine.takes(0.2), machine.takes(0.2), seconds=3.0, clock=machine.clock)
    assert timing.verdict == "no difference"
    assert machine.now < 4.0 * 3.0 + 3.0
    machine = Machine()
    timing = compare(machine.takes(5.0), machine.takes(1.0), seconds=3.0, clock=machine.clock)
    assert timing.verdict == "too noisy to tell"
    assert machine.calls < 60


def test_functions_that_take_no_time_at_all_end() -> None:
    machine = Machine()

    def clock() -> float:
        machine.now += 1e-3
        return machine.now

    timing = compare(lambda: None, lambda: None, seconds=0.5, clock=clock)
    assert np.isfinite([timing.ratio, timing.low, timing.high]).all()


def test_what_was_measured_is_passed_on() -> None:
    machine = Machine()
    run = machine.takes(0.01)
    timing = compare(run, run, clock=machine.clock, runtime="R", level="basic", threads=3, confidence=0.9)
    assert (timing.runtime, timing.level, timing.threads, timing.confidence) == ("R", "basic", 3, 0.9)


def test_the_same_samples_give_the_same_interval() -> None:
    timings = [compare(m.takes(0.004), m.takes(0.0041), clock=m.clock) for m in (Machine(5, noise=0.02), Machine(5, noise=0.02))]
    assert timings[0] == timings[1]


def test_the_garbage_collector_stays_out_and_comes_back() -> None:
    machine, seen = Machine(), set[bool]()
    run = machine.takes(0.01)

    def watching() -> None:
        seen.add(gc.isenabled())
        run()

    compare(watching, run, clock=machine.clock)
    assert seen == {False}
    assert gc.isenabled()

    def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        compare(failing, run, clock=machine.clock)
    assert gc.isenabled()


ONE = Interval(1.0, 0.995, 1.005)


@pytest.mark.parametrize(
    "ratio, own, enough, expected",
    [
        (Interval(1.0, 0.99, 1.01), ONE, True, "no difference"),
        (Interval(0.9, 0.89, 0.91), ONE, True, "faster"),
        (Interval(1.1, 1.09, 1.11), ONE, True, "slower"),
        (Interval(0.3, 0.25, 0.35), ONE, True, "faster"),  # wide, but nobody doubts it
        (Interval(1.0, 0.96, 1.04), ONE, True, "too noisy to tell"),  # a gain of 3 % could hide there
        (Interval(0.97, 0.965, 0.975), Interval(1.01, 1.005, 1.015), True, "too noisy to tell"),  # A/A misses 1
        (Interval(0.93, 0.91, 0.945), Interval(1.0, 0.97, 1.03), True, "too noisy to tell"),  # A/A is wide
        (Interval(0.9, 0.89, 0.91), ONE, False, "too noisy to tell"),
        (Interval(0.45, 0.40, 0.51), Interval(1.05, 0.95, 1.30), True, "faster"),  # dwarfs what before shows against itself
        (Interval(2.2, 1.8, 2.6), Interval(1.05, 1.01, 1.20), True, "slower"),
        (Interval(0.6, 0.55, 0.65), Interval(1.05, 0.95, 1.30), True, "too noisy to tell"),
        (Interval(1.0, 0.981, 1.019), ONE, True, "no difference"),
        (Interval(0.99, 0.98, 1.0), ONE, True, "no difference"),
        (Interval(0.9985, 0.998, 0.9993), ONE, True, "no difference"),  # below what the clock resolves
        (Interval(1.002, 1.0015, 1.0025), ONE, True, "slower"),
    ],
)
def test_verdicts(ratio: Interval, own: Interval, enough: bool, expected: str) -> None:
    assert verdict(ratio, own, enough=enough) == expected


def test_fewest() -> None:
    assert [fewest(confidence) for confidence in (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)] == [2, 3, 5, 6, 8, 11]


def test_bootstrap_intervals_hold_the_true_median_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    tries, held = 300, 0
    for seed in range(tries):
        interval = bootstrap(np.exp(0.05 * rng.standard_normal(15)), 0.95, seed)
        held += interval.holds_one
    assert 0.90 <= held / tries <= 0.99
    assert bootstrap(np.full(8, 1.25), 0.95) == Interval(1.25, 1.25, 1.25)
    wide, narrow = bootstrap(np.linspace(0.9, 1.1, 21), 0.99), bootstrap(np.linspace(0.9, 1.1, 21), 0.5)
    assert wide.low < narrow.low < 1.0 < narrow.high < wide.high
