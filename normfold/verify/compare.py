"""Two models of unknown kinship: the contract, G2 and G3, and the values that both hold by name.

Nothing is known here of how one became the other, so certificate and G1 do not exist: an error that stays below eight times the
original's own rounding noise is not seen (epsilon times 1.1 in one layer of a ResNet-18, say).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from normfold.errors import CannotTell, UsageError
from normfold.graph import Array, Graph, Shape, Value, is_float
from normfold.record import Comparison
from normfold.verify.blind import made_up
from normfold.verify.evaluate import Walk, exact
from normfold.verify.gates import judge_output
from normfold.verify.inputs import Feed
from normfold.verify.judgement import Judgement, Tell, Verdict, contract, judge, keep_worst
from normfold.verify.noise import coarsest, unit
from normfold.verify.promises import Reference
from normfold.verify.proof import DRAWS, Proof
from normfold.verify.runtimes import Runner, in_order


@dataclass(frozen=True)
class Party:
    """One of two models: its view, and its runtime (None where it is not run; `unrun` says why)."""

    graph: Graph
    runner: Runner | None
    kind: Literal["onnx", "torch"]
    unrun: str = ""


@dataclass(frozen=True)
class Parting:
    """The first value, in the original's order, that both hold by name and that differs by more than its noise.

    value, node, op: its name and what makes it in the original.  where: the worst channel.  error, allowed: of that channel.
    common, parted: how many values both hold by name, and how many of them differ.
    """

    value: str
    node: str
    op: str
    where: str
    family: str
    error: float
    allowed: float
    common: int
    parted: int


@dataclass
class Compared:
    """judgement: the gates.  verdict: with what could not be judged.  parting: where a difference begins, None when nowhere.

    common, parted: values that both hold by name, and how many of those differ.  grain: the type whose ulp made the noise.
    likeness: output -> figures that are shown and never judged.
    """

    judgement: Judgement
    verdict: Verdict
    parting: Parting | None = None
    common: int = 0
    parted: int = 0
    grain: str = "float32"
    likeness: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])


def compare(
    a: Party,
    b: Party,
    feeds: Sequence[Feed],
    *,
    named: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    budget: float = float("inf"),
    tell: Tell | None = None,
    peer: Callable[[], Runner | None] | None = None,
) -> Compared:
    """Judge `b` by `a`.

    named: values of the same name are promised to be the same (a manifest of normfold's says so), and are judged like outputs;
    otherwise they only say where a difference begins.  draws, seed, budget, tell, peer: as for `judge`.

    An op without float64 evaluation or a model without runtime makes the verdict "cannot tell", unless something else differs.
    """
    types = [coarsest(party.graph) for party in (a, b)]
    grain = types[0] if unit(a.graph) >= unit(b.graph) else types[1]
    proof = Proof(a.graph, None, draws, seed, grain=None if grain == types[0] else grain)
    held = agreement(a, b)
    judgement = Judgement(held)
    runs = a.runner is not None and b.runner is not None
    fits = all(item.passed for item in held if item.subject.startswith("input"))
    if fits:
        runners = (a.runner, b.runner) if runs else (None, None)
        try:
            judgement = judge(
                a.graph, None, *runners, feeds,
                stored=b.graph, proof=proof, budget=budget, draws=draws, seed=seed, tell=tell, peer=peer,
            )  # fmt: skip
        except CannotTell as error:
            judgement.blind = str(error)
            judgement.notes.append(str(error))
        worst: dict[tuple[str, str], Comparison] = {}
        keep_worst(worst, [*held, *(item for item in judgement.comparisons if item.gate != "contract")])
        judgement.comparisons = list(worst.values())
    else:
        judgement.notes.append("the inputs differ: no values were compared")
    judgement.notes += [party.unrun for party in (a, b) if party.unrun and party.unrun not in judgement.notes]
    result = Compared(judgement, judgement.verdict, grain=str(grain))
    feed = _telling(judgement, feeds)
    if fits and feed is not None:
        _values(result, a, b, feed, proof, named)
        result.likeness = _likeness(a, b, feed)
    if result.verdict == "same" and (judgement.blind or a.unrun or b.unrun):
        result.verdict = "cannot tell"
    return result


def _telling(judgement: Judgement, feeds: Sequence[Feed]) -> Feed | None:
    """The feed on which a difference shows, else the first that ran."""
    labels = [item.family for item in judgement.failed if item.family] + judgement.ran
    return next((feed for label in labels for feed in feeds if feed.label == label), None)


# ---- the contract ---------------------------------------------------------------------------------------------------------


def agreement(a: Party, b: Party) -> list[Comparison]:
    """Gate "contract".  Between ONNX and torch names are not compared: an exporter chooses those of outputs."""
    if a.kind == b.kind:
        found = [item for item in contract(a.graph, b.graph) if item.subject in ("inputs", "outputs", "overridable constants")]
    else:
        found = []
    outputs = a.graph.outputs if a.kind == b.kind else a.graph.outputs[-len(b.graph.outputs) or None :]
    others = b.graph.outputs if a.kind == b.kind else b.graph.outputs[-len(outputs) or None :]
    for what, old, new in (("input", a.graph.inputs, b.graph.inputs), ("output", outputs, others)):
        if len(old) != len(new):
            found.append(_broken(f"{what} count", f"{len(old)}: {_list(old)}; {len(new)}: {_list(new)}"))
            continue
        for x, y in zip(old, new, strict=True):
            same = x.dtype == y.dtype and _accepts(x.shape, y.shape)
            text = "" if same else f"{_shown(x)} against {_shown(y)}"
            found.append(Comparison("contract", f"{what} {x.name}", "", 0.0 if same else 1.0, 0.0, same, text))
    return found


def _broken(subject: str, text: str) -> Comparison:
    return Comparison("contract", subject, "", 1.0, 0.0, False, text)


def _list(values: Sequence[Value]) -> str:
    names = [value.name for value in values]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _accepts(old: Shape | None, new: Shape | None) -> bool:
    """True when `new` fixes no size that `old` leaves open, and has no other size; symbols may have other names."""
    if old is None or new is None:
        return True
    return len(old) == len(new) and all(not isinstance(n, int) or n == o for o, n in zip(old, new, strict=True))


def _shown(value: Value) -> str:
    shape = "?" if value.shape is None else "x".join("?" if dim is None else str(dim) for dim in value.shape)
    return f"{value.dtype} {shape}"


# ---- common values --------------------------------------------------------------------------------------------------------


def values(a: Graph, b: Graph, feed: Feed, proof: Proof) -> list[Comparison]:
    """What `a` and `b` hold under the same name, in the order of `a`: each judged as an output would be (gate "value").

    Graph inputs and constants are left out.  Raises CannotTell where an op has no evaluation.
    """
    made = {value.name for node in b.nodes for value in node.outputs}
    common = {value.name for node in a.nodes for value in node.outputs} & made
    given = made_up(a, feed.arrays) if proof.blind else None
    names = [value.name for value in b.inputs]
    other = Reference(b, dict(zip(names, in_order(names, feed.arrays), strict=True)), iter(sorted(common)), given)
    walks = [Walk(a, feed.arrays, given=given)]
    walks += [Walk(a, feed.arrays, proof.drawn(draw), given) for draw in range(proof.seed, proof.seed + proof.draws)]
    found: list[Comparison] = []
    for (value, array), *moved in zip(*walks, strict=True):
        if value.name not in common or value.producer is None:
            continue
        result = other.take(value.name)
        if result is not None:
            draws = [draw for _, draw in moved]
            found.append(judge_output("value", value.name, array, None, result, draws, unit=proof.unit, family=feed.label))
    return found


def _values(result: Compared, a: Party, b: Party, feed: Feed, proof: Proof, named: bool) -> None:
    """Compare common values: where a difference begins, and with `named` whether there is one.

    An exporter that takes its names from torch gives some of them to other values: between the two formats they are a hint.
    """
    if a.kind != b.kind and result.verdict != "different":
        return
    try:
        found = values(a.graph, b.graph, feed, proof)
    except (CannotTell, UsageError) as error:
        result.judgement.notes.append(f"values inside were not compared: {error}")
        return
    parted = [item for item in found if not item.passed]
    result.common, result.parted = len(found), len(parted)
    outputs = {value.name for value in a.graph.outputs}
    if named:
        extra = [Comparison("G2", x.subject, x.family, x.error, x.allowed, x.passed, x.where) for x in found]
        result.judgement.comparisons += [item for item in extra if item.subject not in outputs]
        result.verdict = result.judgement.verdict
    if parted and (named or result.verdict == "different"):
        first = parted[0]
        node = next(value.producer for value in a.graph.values() if value.name == first.subject)
        assert node is not None
        result.parting = Parting(
            first.subject, node.label, node.kind, first.where, first.family, first.error, first.allowed, len(found), len(parted)
        )


# ---- what is shown and never judged ---------------------------------------------------------------------------------------


def _likeness(a: Party, b: Party, feed: Feed) -> dict[str, dict[str, float]]:
    if a.runner is None or b.runner is None:
        return {}
    try:
        first, second = a.runner.run(feed.arrays), b.runner.run(feed.arrays)
    except CannotTell:
        return {}
    found: dict[str, dict[str, float]] = {}
    for (name, one), two in zip(first.items(), second.values(), strict=False):
        if is_float(one.dtype) and one.shape == two.shape and one.size:
            found[name] = likeness(exact(one), exact(two))
    return found


def likeness(one: Array, two: Array) -> dict[str, float]:
    """Signal to noise in dB, the largest difference, and for rows of at least 5 scores how often top-1 and top-5 agree."""
    with np.errstate(all="ignore"):
        usable = np.isfinite(one) & np.isfinite(two)
        error = np.where(usable, one - two, 0.0)
        power, noise = float(np.sum(np.square(one[usable]))), float(np.sum(np.square(error)))
        found: dict[str, Any] = {
            "sqnr_db": float("inf") if noise == 0 else float(10 * np.log10(power / noise)) if power else float("-inf"),
            "largest": float(np.max(np.abs(error), initial=0.0)),
        }
    if one.ndim == 2 and one.shape[1] >= 5:
        best = [np.argsort(-item, axis=1, kind="stable")[:, :5] for item in (one, two)]
        found["top1"] = float(np.mean(best[0][:, 0] == best[1][:, 0]))
        found["top5"] = float(np.mean([set(x) == set(y) for x, y in zip(*(item.tolist() for item in best), strict=True)]))
    return found


__all__ = ["Compared", "Parting", "Party", "agreement", "compare", "likeness", "values"]
