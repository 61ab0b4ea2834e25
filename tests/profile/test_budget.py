"""Budgets: what is understood, and when something is within, over, or cannot be told."""

from __future__ import annotations

import math

import pytest

from normfold.errors import UsageError
from normfold.profile.budget import judge, parse_budgets
from normfold.profile.result import Budget, Percentile, ProfileReport
from profiled import a_profile, a_timing


def test_every_measure_and_unit() -> None:
    text = ["p99=5ms, size=20MB,norm-share=2%", "p50=300us,p99.9=1s,memory=1GiB,ratio=1.05"]
    assert parse_budgets(text) == pytest.approx(
        {"p99": 5e-3, "size": 2e7, "norm-share": 0.02, "p50": 3e-4, "p99.9": 1.0, "memory": 2**30, "ratio": 1.05}
    )
    assert parse_budgets(["norm-share=0.02,size=512KiB"]) == {"norm-share": 0.02, "size": 2**19}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p99", "MEASURE=LIMIT"),
        ("p99=fast", "MEASURE=LIMIT"),
        ("latency=5ms", "limits p50, p99"),
        ("p99=5", "p99 takes us"),
        ("size=5ms", "size takes b, kb"),
        ("ratio=5%", "a number without a unit"),
        ("p0=1ms", "between p0 and p100"),
        ("p100=1ms", "between p0 and p100"),
        ("p99=1ms,p99=2ms", "limited twice"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_budgets([text])


def verdict(limit: str, profile: object, comparison: object = None) -> str:
    [budget] = judge(profile, parse_budgets([limit]), comparison)  # type: ignore[arg-type]
    return budget.verdict


def test_bounds_decide_and_not_the_value() -> None:
    profile = a_profile(
        percentiles=[Percentile(50.0, 1e-3, 0.9e-3, 1.1e-3, 0.99, 7), Percentile(99.0, 2e-3, 1.8e-3, 2.4e-3, 0.99, 459)]
    )
    assert [verdict(f"p99={limit}ms", profile) for limit in (2.4, 2.3, 1.8, 1.7)] == [
        "within",
        "cannot tell",
        "cannot tell",
        "over",
    ]


def test_too_few_runs_cannot_tell() -> None:
    profile = a_profile(
        percentiles=[Percentile(50.0, 1e-3, 0.9e-3, 1.1e-3, 0.99, 7), Percentile(99.0, 2e-3, 0.0, math.inf, 0.99, 459)]
    )
    assert verdict("p99=1s", profile) == "cannot tell"


def test_a_noisy_machine_is_over_only_beyond_its_own_noise() -> None:
    percentiles = [Percentile(50.0, 1.1e-3, 1.1e-3, 1.15e-3, 0.99, 7)]
    quiet, noisy = a_profile(percentiles=percentiles), a_profile(percentiles=percentiles, noise=a_timing(low=0.8, high=1.3))
    assert verdict("p50=1ms", quiet) == "over"
    assert verdict("p50=1ms", noisy) == "cannot tell"
    assert verdict("p50=0.8ms", noisy) == "over"
    assert verdict("p50=2ms", noisy) == "within"


def test_size_memory_and_share() -> None:
    profile = a_profile(size=10**6, peak=10**8, shares=(0.02, 0.03))
    assert [verdict(text, profile) for text in ("size=1MB", "size=0.9MB")] == ["within", "over"]
    assert [verdict(text, profile) for text in ("memory=100MB", "memory=99MB")] == ["within", "over"]
    assert [verdict(f"norm-share={text}", profile) for text in ("3%", "2.5%", "1%")] == ["within", "cannot tell", "over"]
    assert verdict("memory=1GB", a_profile(peak=None)) == "cannot tell"


def test_the_ratio_needs_a_baseline_and_a_quiet_machine() -> None:
    profile = a_profile()
    with pytest.raises(UsageError, match="--against"):
        verdict("ratio=1", profile)
    assert [verdict(f"ratio={limit}", profile, a_timing(low=0.9, high=1.0, verdict="faster")) for limit in (1.0, 0.95, 0.8)] == [
        "within",
        "cannot tell",
        "over",
    ]
    assert verdict("ratio=2", profile, a_timing(verdict="too noisy to tell")) == "cannot tell"


def test_the_exit_code() -> None:
    within, over, unknown = (Budget("p99", 1.0, 0.5, 0.6, word) for word in ("within", "over", "cannot tell"))  # type: ignore[arg-type]
    quiet, noisy = a_profile(), a_profile(noise=a_timing(low=0.5, high=2.0, verdict="too noisy to tell"))
    assert ProfileReport(quiet).exit_code == 0
    assert ProfileReport(noisy).exit_code == 4
    assert ProfileReport(noisy, budgets=[within]).exit_code == 0
    assert ProfileReport(quiet, budgets=[within, unknown]).exit_code == 4
    assert ProfileReport(quiet, budgets=[unknown, over, within]).exit_code == 3
    assert ProfileReport(quiet, quiet, a_timing(verdict="too noisy to tell")).exit_code == 4
    assert ProfileReport(noisy, quiet, a_timing(verdict="faster")).exit_code == 0
