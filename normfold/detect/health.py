"""Remarks on a layer's stored statistics and parameters."""

from __future__ import annotations

import numpy as np

from normfold.graph import NormSpec

TINY_VARIANCE = 1e-10


def health_of(spec: NormSpec) -> list[str]:
    """Plain remarks, most serious first; empty when nothing is odd."""
    remarks: list[str] = []
    if spec.training:
        remarks.append("training mode: takes batch statistics at run time")
    elif spec.kind == "batch" and (spec.mean is None or spec.var is None):
        remarks.append("no stored statistics: takes batch statistics at run time")
    for name in ("gamma", "beta", "mean", "var"):
        array = getattr(spec, name)
        if array is not None and not np.isfinite(array).all():
            remarks.append(f"{name} is not finite in {int((~np.isfinite(array)).sum())} channels")
    if spec.var is not None:
        negative = int((spec.var < 0).sum())
        if negative:
            remarks.append(f"variance is negative in {negative} channels")
        tiny = int(((spec.var >= 0) & (spec.var < TINY_VARIANCE)).sum())
        if tiny:
            remarks.append(f"variance below {TINY_VARIANCE:g} in {tiny} channels")
        if bool(((spec.var + spec.epsilon) == 0).any()):
            remarks.append("variance + epsilon is zero")
    if spec.gamma is not None:
        dead, flipped = int((spec.gamma == 0).sum()), int((spec.gamma < 0).sum())
        if dead:
            remarks.append(f"gamma is zero in {dead} channels")
        if flipped:
            remarks.append(f"gamma is negative in {flipped} channels")
    return remarks
