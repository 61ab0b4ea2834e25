"""What every normalization layer costs, with optimisation off and as deployed, and in one sentence what folding would gain."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.profile.advice import action
from normfold.profile.origin import Original, SourceNode
from normfold.profile.result import Fate, Level, NormCost
from normfold.record import Finding


def norm_costs(
    before: Original,
    off: Level,
    deployed: Original,
    now: Level,
    latency: Sequence[Finding],
    norms: Sequence[Finding],
) -> list[NormCost]:
    """Every norm of `before`, the dearest now first.

    before, off: the model with all its norms, run with optimisation off.  deployed, now: the file that is deployed, at its level
    (the same model, unless an exporter had its hands on it).  latency, norms: findings of `normfold optimize` by objective.
    """
    left = deployed.norms()
    total = now.seconds or 1.0
    rows: list[NormCost] = []
    for name, nodes in before.norms().items():
        cost = sum(kernel.seconds for kernel in now.kernels if kernel.norm == name)
        ops = [kernel.op for kernel in now.kernels if kernel.norm == name]
        fate, holder = _fate(name, cost, bool(ops), left, now)
        seen, other = _finding(name, nodes, latency), _finding(name, nodes, norms)
        rows.append(
            NormCost(
                name=name,
                kind=before.kinds.get(name, ""),
                off=sum(kernel.seconds for kernel in off.kernels if kernel.norm == name),
                now=cost,
                share=cost / total,
                fate=fate,
                outcome=seen.outcome if seen is not None else "kept",
                code=seen.refusal.code if seen is not None and seen.refusal is not None else "",
                action=action(fate, holder, before.kinds.get(name, ""), seen, other, ops),
            )
        )
    return sorted(rows, key=lambda row: (-row.now, -(row.off or 0.0)))


def _fate(name: str, cost: float, runs: bool, left: dict[str, list[SourceNode]], now: Level) -> tuple[Fate, str]:
    """What became of a norm at the deployed level, and the layer whose kernel holds it."""
    if runs or cost:
        return "own kernel", ""
    if name not in left:
        return "folded by the exporter", ""
    names = {node.name for node in left[name]}
    for kernel in now.kernels:
        if names & set(kernel.members):
            return "folded by the runtime", kernel.layer
    return "not run", ""


def _finding(name: str, nodes: list[SourceNode], findings: Sequence[Finding]) -> Finding | None:
    known = {name, *(node.name for node in nodes), *(output for node in nodes for output in node.outputs)}
    exact = next((item for item in findings if item.node in known), None)
    return exact or next((item for item in findings if item.name == name), None)


def sentence(rows: Sequence[NormCost], off: Level, now: Level, *, runtime: str = "ONNX Runtime") -> str:
    """In plain words what folding the norms would gain at the deployed level."""
    if not rows:
        return "The model has no normalization layer."
    count = f"{len(rows)} normalization layer{'s' if len(rows) > 1 else ''}"
    before = f"with optimisation off normalization takes {_percent(off.norms)} of the kernel time"
    if all(row.fate == "folded by the exporter" for row in rows):
        return f"PyTorch's exporter already does this: it folds all {count}; {before}. Folding them gains nothing here."
    costly = [row for row in rows if row.fate == "own kernel"]
    if not costly:
        return (
            f"Your runtime already does this: at level {now.name} {runtime} runs none of the {count} as a kernel of its own; "
            f"{before}. Folding them gains nothing here."
        )
    gone = [row for row in costly if row.outcome == "deleted"]
    gain = sum(row.now for row in gone) / (now.seconds or 1.0)
    start = f"Of {count}, {len(costly)} still run{'s' if len(costly) == 1 else ''} at level {now.name} and take"
    start = f"{start}{'s' if len(costly) == 1 else ''} {_percent(now.norms)} of the kernel time ({before})."
    if not gone:
        return f"{start} None of them can exactly go: their rows say what would help."
    return f"{start} `normfold optimize` removes {len(gone)} of them, which gains at most {_percent(gain)}."


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def module_costs(off: Level, now: Level, norms: Sequence[Finding]) -> list[NormCost]:
    """The same of a torch model's modules.  off: eager; now: eager, or compiled, where no module is a kernel of its own.

    norms: findings of `normfold optimize --objective norms`.
    """
    whole = now.seconds or 1.0
    rows: list[NormCost] = []
    for kernel in off.kernels:
        if kernel.norm:
            seen = next((item for item in norms if item.name == kernel.norm), None)
            cost = kernel.seconds if now is off else 0.0
            fate: Fate = "own kernel" if now is off else "not known"
            kind = seen.kind if seen is not None else kernel.op
            does = seen.outcome if seen is not None else "kept"
            code = seen.refusal.code if seen is not None and seen.refusal is not None else ""
            told = action(fate, "", kind, seen, seen, [])
            rows.append(NormCost(kernel.norm, kind, kernel.seconds, cost, cost / whole, fate, does, code, told))
    return sorted(rows, key=lambda row: -(row.off or 0.0))


def module_sentence(rows: Sequence[NormCost], off: Level, now: Level, median: float) -> str:
    """In plain words what folding the norms would gain in PyTorch."""
    if not rows:
        return "The model has no normalization layer."
    eager = f"In eager mode {len(rows)} normalization layers take {_percent(off.norms)} of the time"
    if now is not off:
        faster = off.reconciled.wall / median if median else 0.0
        return f"{eager}; torch.compile runs the whole {faster:.2f} times as fast, and what its norms cost there is not known."
    gone = [row for row in rows if row.outcome == "deleted"]
    gain = sum(row.now for row in gone) / (now.seconds or 1.0)
    if not gone:
        return f"{eager}. None of them can exactly go: their rows say what would help."
    return f"{eager}. `normfold optimize` removes {len(gone)} of them, which gains at most {_percent(gain)}."
