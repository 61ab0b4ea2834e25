"""Budgets: limits that a profile is held to, `p99=5ms,size=20MB,norm-share=2%`.

    p50, p99.9     a percentile of the latency: us, ms, s
    size           bytes of the model with its external data: B, KB, MB, GB, KiB, MiB, GiB
    memory         peak resident memory of a process that loads and runs it: the same
    norm-share     part of the kernel time at the deployed level that is normalization: %, or a number
    ratio          latency relative to the model that it is profiled against: a number

A measurement has bounds.  It is within when its upper bound is, over when its lower bound is beyond the limit, and otherwise
cannot be told.  On a machine that is too noisy, a latency is over only by more than the machine disagrees with itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from normfold.errors import UsageError
from normfold.profile.result import Budget, ModelProfile, Verdict
from normfold.record import Timing

_ENTRY = re.compile(r"\s*([a-z][a-z-]*|p\d+(?:\.\d+)?)\s*=\s*(\d+(?:\.\d+)?)\s*([a-zA-Zµ%]*)\s*")
_TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_PARTS = {"": 1.0, "%": 0.01}
_UNITS = {"size": _SIZES, "memory": _SIZES, "norm-share": _PARTS, "ratio": {"": 1.0}}
_EXAMPLE = "p99=5ms,size=20MB,norm-share=2%"


def parse_budgets(texts: Sequence[str]) -> dict[str, float]:
    """measure -> limit in seconds, bytes or parts of 1.  Raises UsageError for what is not understood."""
    limits: dict[str, float] = {}
    for entry in ",".join(texts).split(","):
        if not entry.strip():
            continue
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise UsageError(f"a budget is MEASURE=LIMIT, for example {_EXAMPLE}; got {entry.strip()!r}")
        name, number, unit = found[1], float(found[2]), found[3].lower()
        percent = percent_of(name)
        units = _TIMES if percent is not None else _UNITS.get(name)
        if units is None:
            raise UsageError(
                f"a budget limits p50, p99, size, memory, norm-share or ratio; got {name!r} (for example {_EXAMPLE})"
            )
        if percent is not None and not 0.0 < percent < 100.0:
            raise UsageError(f"a percentile lies between p0 and p100; got {name}")
        if unit not in units:
            raise UsageError(f"{name} takes {', '.join(filter(None, units)) or 'a number without a unit'}; got {entry.strip()!r}")
        if name in limits:
            raise UsageError(f"{name} is limited twice; give it once")
        limits[name] = number * units[unit]
    return limits


def percent_of(measure: str) -> float | None:
    """99.0 for "p99", None for what is no percentile."""
    return float(measure[1:]) if re.fullmatch(r"p\d+(\.\d+)?", measure) else None


def judge(profile: ModelProfile, limits: dict[str, float], comparison: Timing | None = None) -> list[Budget]:
    """Every limit with what was measured.  Raises UsageError for `ratio` without something to compare with."""
    return [_judged(name, limit, profile, comparison) for name, limit in limits.items()]


def _judged(name: str, limit: float, profile: ModelProfile, comparison: Timing | None) -> Budget:
    percent = percent_of(name)
    if percent is not None:
        found = profile.latency.at(percent)
        return Budget(name, limit, found.low, found.high, _verdict(found.low, found.high, limit, _wobble(profile)))
    if name == "norm-share":
        level = profile.deployed
        return Budget(name, limit, level.norms_low, level.norms_high, _verdict(level.norms_low, level.norms_high, limit))
    if name == "ratio":
        if comparison is None:
            raise UsageError("a budget for the ratio needs a model to compare with: give --against")
        noisy = comparison.verdict == "too noisy to tell"
        verdict = "cannot tell" if noisy else _verdict(comparison.low, comparison.high, limit)
        return Budget(name, limit, comparison.low, comparison.high, verdict)
    value = float(profile.bytes) if name == "size" else profile.cold.peak
    if value is None:
        return Budget(name, limit, 0.0, math.inf, "cannot tell")
    return Budget(name, limit, value, value, _verdict(value, value, limit))


def _verdict(low: float, high: float, limit: float, wobble: float = 1.0) -> Verdict:
    if high <= limit:
        return "within"
    return "over" if low > limit * wobble else "cannot tell"


def _wobble(profile: ModelProfile) -> float:
    """How far the machine disagrees with itself, as a factor; 1 on a quiet one."""
    if not profile.noisy:
        return 1.0
    noise = profile.noise
    return max(noise.high, noise.self_high, 1.0 / noise.low, 1.0 / noise.self_low)
