"""What would remove or speed up a norm that still costs time, in words."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.profile.result import Fate
from normfold.record import Finding

# Recorded ratios of whole small nets on ONNX Runtime 1.32, CPU, to the spelling that PyTorch's exporter writes at opset 20.
_SPELLINGS = {
    "SkipLayerNormalization": "write the residual addition as Sum: ONNX Runtime then leaves LayerNormalization alone "
    "(recorded: 0.45 to 0.85 of the time of the block)",
    "GroupNormalization": "export below opset 21: the op has no kernel on the CPU, and Reshape, InstanceNormalization, Reshape "
    "is faster and more exact",
    "Reciprocal": "write RMSNorm as x / Sqrt(.) or as the op of opset 23: ONNX Runtime fuses both and not the Reciprocal "
    "(recorded: 0.71 to 0.95)",
    "LpNormalization": "write it as ReduceL2, Max, Div (recorded: 0.48 to 0.91 of the op on channels)",
    "BatchNormalization": "in front of a ReLU a depthwise 1x1 convolution is faster (recorded: 0.72 to 1.03)",
}
_SPELLED = {
    "layer": "it is spelled as arithmetic: over the last axes write torch.nn.LayerNorm and export at opset 17 or newer to have "
    "one op; over channels LayerNorm between two Transposes (recorded: 0.62 to 0.71 of the time on small tensors, 1.2 to 1.8 "
    "on large ones)",
    "rms": "it is spelled as arithmetic: export torch.nn.RMSNorm at opset 23 or newer to have one op",
}


def action(fate: Fate, holder: str, kind: str, latency: Finding | None, norms: Finding | None, ops: Sequence[str]) -> str:
    """One sentence or two on one norm.

    holder: the layer whose kernel took it in.  kind: of norm.  latency, norms: what `normfold
    optimize` makes of it with either objective; None for a norm that it does not see.  ops: of the kernels that are its cost.
    """
    if fate == "folded by the runtime":
        return (
            f"nothing to gain here: the runtime folds it into {holder}"
            if holder
            else "nothing to gain here: the runtime folds it"
        )
    if fate == "folded by the exporter":
        return "nothing to gain here: PyTorch's exporter folds it"
    if fate == "not known":
        return "what it costs inside the compiled model is not known"
    if fate == "not run":
        return "nothing to gain here: it does not run"
    if latency is not None and latency.outcome == "deleted":
        return "`normfold optimize` removes it"
    if norms is not None and norms.outcome == "deleted":
        return "`normfold optimize --objective norms` removes it; no gain on the target is recorded for that"
    if latency is not None and latency.outcome == "shift":
        return "`normfold optimize` takes its scale away and leaves an addition"
    told = [_fix(norms or latency), *(text for op, text in _SPELLINGS.items() if op in ops)]
    if len(set(ops)) > 4:
        told.append(_SPELLED.get(kind, ""))
    return "; ".join(text for text in told if text) or "nothing exact is known that removes it"


def _fix(finding: Finding | None) -> str:
    if finding is None or finding.refusal is None:
        return ""
    return finding.refusal.fix
