"""A verification as JSON, schema ``normfold.verification/1``; `normfold verify --report FILE` runs it again.

    schema       "normfold.verification/1"
    verdict      "same", "different" or "cannot tell"; exit_code is 0, 1 or 4
    a, b         {path, sha256, kind}: kind is "onnx", "program" or "module"; path and sha256 are "" for what was never a file
    settings     all that a second run needs: level, seed, runtime, data, inputs, inputs_from, dynamic, model, model_b, key,
                 prefix, sidecar, seconds
    data_sha256  of the file of `settings.data`, null without one
    versions     package -> release
    noise        {grain, factor, draws}: the type whose half ulps perturb the original, k, perturbed evaluations per input
    inputs       [{label, family, sizes}]: what was compared on; seeds follow from settings.seed and the label
    left_out     label -> why not
    gates        gate -> {compared, failed, needed}: `needed` is the k that would have passed, null where none would
    comparisons  [{gate, subject, family, error, allowed, passed, where}]: the worst of each gate and subject
    parting      where a difference begins: {value, node, op, where, family, error, allowed, common, parted}, or null
    common       {held, parted}: values inside that both models hold by name, and how many of them differ
    responsible  the rewrite at that place, "" when it is not known
    rewrites     what made B of A, from the manifest beside B: [{rule, made, ...}]
    likeness     output -> {sqnr_db, largest, top1, top5}: shown, never judged
    notes        sentences
    seconds      wall time

Numbers that JSON does not know are the strings "nan", "inf" and "-inf".
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from normfold.pipeline.verifying import DRAWS, SCHEMA, Verification, sha256_of
from normfold.report.json import plain
from normfold.report.words import share
from normfold.verify.gates import FACTOR


def verification_to_json(found: Verification) -> str:
    """The report of a verification as indented JSON, keys in the order of the schema."""
    compared, plan = found.compared, found.plan
    judgement = compared.judgement
    settings = {**asdict(plan), "data": None if plan.data is None else str(plan.data)}
    content = {
        "schema": SCHEMA,
        "verdict": found.verdict,
        "exit_code": found.exit_code,
        "a": asdict(found.a),
        "b": asdict(found.b),
        "settings": settings,
        "data_sha256": None if plan.data is None else sha256_of(plan.data),
        "versions": found.versions,
        "noise": {"grain": compared.grain, "factor": FACTOR, "draws": DRAWS[plan.level]},
        "inputs": found.feeds,
        "left_out": judgement.left_out,
        "gates": _gates(found),
        "comparisons": [asdict(item) for item in judgement.comparisons],
        "parting": None if compared.parting is None else asdict(compared.parting),
        "common": {"held": compared.common, "parted": compared.parted},
        "responsible": found.responsible,
        "rewrites": found.rewrites,
        "likeness": compared.likeness,
        "notes": found.notes,
        "seconds": found.seconds,
    }
    return json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False)


def _gates(found: Verification) -> dict[str, Any]:
    gates: dict[str, Any] = {}
    for gate in dict.fromkeys(item.gate for item in found.compared.judgement.comparisons):
        items = [item for item in found.compared.judgement.comparisons if item.gate == gate]
        worst = max(map(share, items))
        gates[gate] = {
            "compared": len(items),
            "failed": sum(not item.passed for item in items),
            "needed": None if gate == "contract" or worst == float("inf") else FACTOR * worst,
        }
    return gates
