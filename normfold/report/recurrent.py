"""Norms on a recurrent path, in words: where they stand, why batch normalization does not suit there, what can be done."""

from __future__ import annotations

from collections.abc import Iterable

from normfold.record import Finding, Recurrence

DRAWBACK = (
    "batch normalization does not suit recurrences: what it normalises differs from step to step, so that one average for all "
    "steps fits none of them, and training and evaluation compute different functions (drawback 3)"
)
UNROLLED = (
    "the loop over time is unrolled: the graph computes exactly these steps, and another number of steps needs an export of "
    "its own"
)
_SWAP = "put LayerNorm there: normfold swap --to layernorm"


def place(item: Recurrence) -> str:
    """``inside a recurrence of 8 steps, one set of statistics for all of them``."""
    if item.place in ("front", "behind", "between"):
        return {"front": "in front of a recurrent layer", "behind": "behind a recurrent layer"}.get(
            item.place, "between recurrent layers"
        )
    where = "inside a recurrence" if item.place == "inside" else "in the body of a loop"
    steps = f" of {item.steps} steps" if item.steps else ""
    statistics = {
        "shared": ", one set of statistics for all of them",
        "own": ", statistics of its own at every step",
        "run time": ", statistics taken at every step",
    }
    return where + steps + statistics[item.statistics]


def remedy(item: Finding) -> str:
    """What was or can be done about a norm on a recurrent path; empty where there is nothing to do."""
    at = item.recurrence
    if at is None or item.kind != "batch":
        return ""
    if item.outcome == "deleted" and at.statistics == "own":
        return "folded exactly, each step into weights of its own: no single recurrent layer computes that"
    if item.outcome == "deleted":
        return f"its running statistics are one affine map: folded exactly; to train on, {_SWAP}"
    return f"{_SWAP}, which also distils it (Ba et al. 2016, arXiv 1607.06450)"


def groups(findings: Iterable[Finding]) -> dict[tuple[str, str], list[str]]:
    """Names of the norms on recurrent paths, by (place, remedy)."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in findings:
        if item.recurrence is not None:
            names = found.setdefault((place(item.recurrence), remedy(item)), [])
            if item.name not in names:
                names.append(item.name)
    return found
