"""A profile as JSON: what ``normfold profile --json`` prints.  profile.schema.json beside this file describes every field."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from normfold.profile.result import ModelProfile, ProfileReport
from normfold.report.json import plain

SCHEMA = 1


def profile_fields(report: ProfileReport) -> dict[str, Any]:
    """Plain types only, as the schema says: {"schema", "exit_code", "model", "against", "comparison", "budgets"}.

    Bounds that too few runs cannot give are null.
    """
    fields = asdict(report)
    for item in (fields["model"], fields["against"]):
        for percentile in item["latency"]["percentiles"] if item else ():
            percentile["high"] = _finite(percentile["high"])
    for budget in fields["budgets"]:
        budget["high"] = _finite(budget["high"])
    return plain({"schema": SCHEMA, "exit_code": report.exit_code, **fields})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def profile_to_json(report: ProfileReport) -> str:
    """Indented JSON."""
    return json.dumps(profile_fields(report), indent=2, allow_nan=False, ensure_ascii=False)


def headline(profile: ModelProfile) -> dict[str, Any]:
    """One row of an audit: the few numbers that models are compared by."""
    return {
        "source": profile.source,
        "bytes": profile.bytes,
        "median": profile.latency.median,
        "cold": profile.cold.loaded + profile.cold.first,
        "peak": profile.cold.peak,
        "norms": len(profile.norms),
        "norms_now": sum(row.fate == "own kernel" for row in profile.norms),
        "share_off": profile.off.norms,
        "share_now": profile.deployed.norms,
        "slowest": profile.deployed.layers[0].name if profile.deployed.layers else "",
        "noisy": profile.noisy,
        "sentence": profile.sentence,
    }


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what `profile_to_json` writes."""
    return json.loads(files("normfold.report").joinpath("profile.schema.json").read_text(encoding="utf-8"))
