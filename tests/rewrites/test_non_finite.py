"""Norms whose stored numbers are broken stay, and the refusal says which number it is."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite

IMAGE = ("N", 4, 6, 6)


@pytest.mark.parametrize(
    ("slot", "number", "words"),
    [
        (1, np.inf, "gamma is infinite in 1 of 4 channels"),
        (2, np.nan, "beta is NaN in 1 of 4 channels"),
        (3, -np.inf, "running_mean is infinite in 1 of 4 channels"),
        (4, np.inf, "running_var is infinite in 1 of 4 channels"),
        (4, np.nan, "running_var is NaN in 1 of 4 channels"),
        (4, -1.0, "running_var is negative in 1 of 4 channels"),
        (4, -1e-5, "running_var is negative in 1 of 4 channels"),
    ],
)
def test_what_is_not_finite_is_said(slot: int, number: float, words: str) -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 4), name="bn")
    norm = y.producer
    assert norm is not None and norm.inputs[slot] is not None
    array = norm.inputs[slot].const.read().copy()  # type: ignore[union-attr]
    array[2] = number
    b.graph.set_input(norm, slot, b.const(array))
    b.output(b.conv(b.relu(y), 3))
    (finding,) = rewrite(b.graph, Options(objective="norms")).findings
    assert finding.outcome == "kept" and finding.refusal is not None
    assert finding.refusal.code == "non-finite" and words in finding.refusal.reason


def test_no_variance_and_no_epsilon() -> None:
    b = Builder()
    y = b.bn(b.conv(b.input("x", IMAGE), 4), var=np.array([0.0, 1, 1, 0]), name="bn")
    y.producer.attrs["epsilon"] = 0.0  # type: ignore[union-attr]
    b.output(b.conv(b.relu(y), 3))
    (finding,) = rewrite(b.graph, Options(objective="norms")).findings
    assert finding.refusal is not None and "epsilon) is not finite in 2 of 4 channels" in finding.refusal.reason
