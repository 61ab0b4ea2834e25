"""Graphs in which every other tool leaves BatchNormalization (beside the checkout; skipped where they are not)."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from normfold.api import optimize
from normfold.capture.onnx import from_onnx
from normfold.capture.tidy import tidy
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite

# family -> (deleted, shift, kept) with positive gammas, and with a third of them negative
COUNTS = {
    "resnetv2_50": ((17, 0, 0), (4, 0, 13)),
    "mixnet_s": ((34, 0, 0), (34, 0, 0)),
    "inception_next_atto": ((15, 0, 0), (15, 0, 0)),
    "botnet26t_256": ((3, 0, 0), (3, 0, 0)),
    "mobileone_s0": ((35, 0, 0), (35, 0, 0)),
    "repvit_m0_9": ((25, 0, 0), (25, 0, 0)),
    "levit_128s": ((48, 0, 0), (48, 0, 0)),
    "coatnet_nano_rw_224": ((7, 0, 0), (7, 0, 0)),
    "swiftformer_xs": ((5, 0, 0), (5, 0, 0)),
    "xcit_nano_12_p16_224": ((12, 0, 0), (12, 0, 0)),
    "dpn48b": ((4, 17, 0), (4, 0, 17)),
    "densenet121": ((3, 59, 0), (3, 0, 59)),
}
# what comes for what goes: LeViT's linear layers have no bias, XCiT's norms stand in front of zero padding
INSERTED = {"levit_128s": {"bias Add": 24}, "xcit_nano_12_p16_224": {"border map": 12}}


def materialised(shared: Path, family: str, signed: bool) -> Any:
    path = shared / "families" / "materialise.py"
    spec = importlib.util.spec_from_file_location("materialise", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.materialise(family, 0, signed)


@pytest.mark.parametrize("signed", [False, True], ids=["positive", "signed"])
@pytest.mark.parametrize("family", COUNTS)
def test_counts(family: str, signed: bool, shared: Path) -> None:
    graph = from_onnx(materialised(shared, family, signed))
    tidy(graph)
    outcome = rewrite(graph, Options(objective="norms"))
    found = Counter(finding.outcome for finding in outcome.findings if finding.kind == "batch")
    assert (found["deleted"], found["shift"], found["kept"]) == COUNTS[family][signed]
    assert outcome.inserted == INSERTED.get(family, {})
    assert all(finding.refusal is not None for finding in outcome.findings if finding.outcome != "deleted")


# family -> Conv and Gemm before and after parallel branches were merged
MERGED = {"mobileone_s0": (192, 44), "repvit_m0_9": (128, 104)}


@pytest.mark.parametrize("signed", [False, True], ids=["positive", "signed"])
@pytest.mark.parametrize("family", MERGED)
def test_branches_are_merged_by_default(family: str, signed: bool, shared: Path) -> None:
    graph = from_onnx(materialised(shared, family, signed))
    tidy(graph)
    outcome = rewrite(graph, Options())
    linear = [sum(node.kind in ("Conv", "Gemm") for node in item.nodes) for item in (graph, outcome.graph)]
    assert tuple(linear) == MERGED[family]
    assert {finding.outcome for finding in outcome.findings} == {"deleted"}


SIGNED_ONLY = ("inception_next_atto", "botnet26t_256", "mobileone_s0", "coatnet_nano_rw_224", "swiftformer_xs", "dpn48b")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "signed"),
    [(family, signed) for family in COUNTS for signed in (False, True) if signed or family not in SIGNED_ONLY],
)
def test_gates(family: str, signed: bool, shared: Path) -> None:
    result = optimize(materialised(shared, family, signed), objective="norms", proof_seconds=1)
    assert result.record.passed
    assert {item.gate for item in result.record.comparisons} >= {"certificate", "G1", "G3"}
