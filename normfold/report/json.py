"""The record as JSON: what ``--json`` prints and the manifest holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from normfold.pipeline.explaining import Explanation
from normfold.record import Record

SCHEMA = 1


def to_json(record: Record) -> str:
    """Indented JSON; keys stand in the order of the record's fields, names of outputs, versions and stages sorted.

    Numbers that JSON does not know are the strings "nan", "inf" and "-inf".
    """
    fields = record.as_dict()
    for name in ("outputs", "versions", "inserted"):
        fields[name] = dict(sorted(fields[name].items()))
    return json.dumps(plain({"schema": SCHEMA, "passed": record.passed, **fields}), indent=2, allow_nan=False, ensure_ascii=False)


def explanations_to_json(found: Sequence[Explanation]) -> str:
    """Explanations of norms as indented JSON; ranges are [low, high]."""
    items = [asdict(item) for item in found]
    return json.dumps(plain({"schema": SCHEMA, "explanations": items}), indent=2, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """`value` in types that JSON knows; numbers that it does not know as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in cast("list[Any]", value)]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()  # a numpy scalar
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
