"""Judge what was rewritten and written; undo what fails, and judge again.

The certificate and the algebra (G1) are of the view, and made once; the stored weights (G2) and the runtime (G3) are judged for
each artefact.  When a gate fails, the rewrite that made the difference is searched for: the first one whose view fails its
certificate, else the first one whose artefact fails when it is written.  Its layers are left as they were (all of them when it
cannot be told which), everything is rewritten again, and the gates start anew.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from normfold.errors import CannotTell, NormfoldError, ResultDiffers
from normfold.graph import Graph
from normfold.pipeline.options import Options
from normfold.pipeline.rewriting import Outcome, rewrite, undone
from normfold.pipeline.routes import Route
from normfold.record import Comparison, Judged, Record
from normfold.rewrites import rewrites
from normfold.rewrites.refusals import REFUSALS

if TYPE_CHECKING:
    from normfold.verify import Feed, Judgement, Runner

ATTEMPTS = 8  # results that are judged before nothing is written
BY_LAYER = 3  # of these, those that leave single layers out; then whole rewrites go
Write = Callable[[str], Path]
"""Writes the finished route in the format of a suffix; returns the file."""


@dataclass(frozen=True)
class Blamed:
    """The rewrite that made a difference ("": none did), the layers that it was made on, and the comparison that shows it."""

    rule: str
    targets: tuple[str, ...]
    failed: Comparison


def prove(route: Route, outcome: Outcome, suffixes: list[str], write: Write, options: Options, record: Record) -> Outcome:
    """Judge the artefacts of `outcome`; returns what passed: `outcome`, or less than that, finished in `route`.

    Raises ResultDiffers when nothing passes, CannotTell when it cannot be judged.
    """
    taken_back: list[Blamed] = []
    while True:
        failure = _judged(route, outcome, suffixes, write, options, record)
        if failure is None:
            break
        judgement, feed, suffix = failure
        blamed = None if len(taken_back) + 1 >= ATTEMPTS else blame(route, outcome, judgement, feed, suffix, write)
        if blamed is None or not blamed.rule:
            record.comparisons += judgement.comparisons
            undone(record.findings, REFUSALS["undone"])
            raise _differs(judgement) if blamed is None else _written_otherwise(route, blamed.failed, suffix)
        if len(taken_back) >= BY_LAYER:
            blamed = replace(blamed, targets=())
        taken_back.append(blamed)
        options = _without(options, blamed)
        outcome = rewrite(route.graph, options)
        route.finish(outcome.graph)
    if taken_back:
        _report(outcome, taken_back, record)
    record.rewrites = [Judged(step.rule, len(step.applied), "passed") for step in outcome.steps if step.applied]
    record.rewrites += [
        Judged(item.rule, len(item.targets), "undone", item.targets, item.failed) for item in taken_back
    ]  # fmt: skip
    return outcome


def prove_also(route: Route, graph: Graph, path: Path, options: Options, record: Record) -> None:
    """Judge one more artefact of a result, `path`, that was written from its view `graph`.

    Raises ResultDiffers when it does not pass, CannotTell when it cannot be judged.
    """
    failure = _judged(route, Outcome(graph), [path.suffix], lambda suffix: path, options, record)
    if failure is not None:
        record.comparisons += failure[0].comparisons
        raise _written_otherwise(route, failure[0].failed[0], path.suffix)


def objection(route: Route, path: Path, options: Options) -> str:
    """Why another form of the result, the file `path`, is not to be used: what the gates say of it alone; "" where they pass."""
    from normfold.verify import judge

    try:
        judged = judge(
            route.graph, None, route.original(), route.result(path), inputs_of(route),
            stored=route.stored(path), budget=options.proof_seconds / 4, stop=True, peer=partial(route.peer, path),
        )  # fmt: skip
    except NormfoldError as error:
        return str(error)
    return "" if judged.verdict == "same" else "its result does not pass the gates"


def blame(route: Route, outcome: Outcome, judgement: Judgement, feed: Feed, suffix: str, write: Write) -> Blamed | None:
    """The rewrite that made the difference that `judgement` found on `feed`; None where none can be told.

    The views after each rewrite are certified in their order; where all pass, each is written and judged as an artefact.  The
    rule is "" where the model as it came differs already once it is written.
    """
    from normfold.verify import locate
    from normfold.verify.blind import made_up

    graphs = [step.graph for step in outcome.steps]
    given = made_up(route.graph, feed.arrays) if judgement.blind else None
    found = locate.first_wrong_step(route.graph, graphs, feed, given=given)
    if found is not None:
        place, failed = found
        step = outcome.steps[place]
        targets = [item.target for item in step.applied]
        return Blamed(step.rule, tuple(locate.suspects(route.graph, step.graph, failed.subject, targets)), failed)
    for step in [None, *outcome.steps]:
        graph = route.graph if step is None else step.graph
        try:
            route.finish(graph)
            failed = locate.first_failure(_artefact(route, outcome, write(suffix), feed))
        except NormfoldError as error:
            failed = Comparison("G3", "the result", feed.label, float("inf"), 0.0, False, str(error))
        if failed is not None:
            return Blamed("" if step is None else step.rule, (), failed)
    return None


def _artefact(route: Route, outcome: Outcome, path: Path, feed: Feed) -> list[Comparison]:
    """G2 and G3 of one artefact on one feed."""
    from normfold.verify import judge

    stored = route.stored(path)
    peer = partial(route.peer, path)
    return judge(route.graph, None, route.original(), route.result(path), [feed], stored=stored, peer=peer).comparisons


def _judged(
    route: Route, outcome: Outcome, suffixes: list[str], write: Write, options: Options, record: Record
) -> tuple[Judgement, Feed, str] | None:
    """All gates on all artefacts: the first judgement that says "different", with its feed and suffix; None when all pass."""
    from normfold.verify import Proof, judge

    inputs = inputs_of(route)
    proof = Proof(route.graph, outcome.graph)
    comparisons: list[Comparison] = []
    for suffix in suffixes:
        path = write(suffix)
        if suffix == ".onnx":
            _load_check(route, path, record)
        judgement = judge(
            route.graph, outcome.graph, _original(route), route.result(path), inputs,
            stored=route.stored(path), proof=proof, budget=options.proof_seconds, stop=True, peer=partial(route.peer, path),
        )  # fmt: skip
        if judgement.verdict == "different":
            label = judgement.failed[0].family
            return judgement, next((feed for feed in inputs if feed.label == label), inputs[0]), suffix
        comparisons += [item for item in judgement.comparisons if item not in comparisons]
        for label, reason in judgement.left_out.items():
            record.note(f"not compared on {label} inputs: {reason}")
        for note in judgement.notes:
            record.note(note)
        if judgement.verdict == "cannot tell":
            record.comparisons += comparisons
            failed = [item for item in judgement.comparisons if not item.passed]
            detail = f" ({failed[0].subject}: {failed[0].where})" if failed else ""
            raise CannotTell(f"the result could not be judged{detail}; nothing was written. --no-verify writes it without proof")
    record.comparisons += comparisons
    return None


def inputs_of(route: Route) -> list[Feed]:
    """What to compare on: the caller's own data first, then the input families."""
    from normfold.verify import feeds

    examples = route.examples()[-1:]
    return feeds(route.graph, data=examples) if route.loaded.own_inputs else feeds(route.graph, examples=examples)


def _original(route: Route) -> Runner:
    try:
        return route.original()
    except CannotTell as error:
        raise CannotTell(f"{error}; nothing was written. --no-verify writes the result without proof") from error


def _load_check(route: Route, path: Path, record: Record) -> None:
    """The written ONNX file, in ONNX's checker and in ONNX Runtime: what they say of the original too is no fault of the result.

    Raises ResultDiffers where only the result is refused, CannotTell where the runtime takes neither.
    """
    from normfold.export.to_onnx import FileCheck, check

    found = check(path)
    if found.passed:
        return
    pair = route.onnx_pair(path.parent)
    before = FileCheck("", "") if pair is None else check(pair[0])
    if found.runtime and before.runtime:
        raise CannotTell(
            f"ONNX Runtime takes neither the original nor the result: {found.runtime}; nothing was written. "
            "--no-verify writes the result without proof"
        )
    if found.runtime or not before.checker:
        raise ResultDiffers(f"the written ONNX file is not accepted: {found.runtime or found.checker}; nothing was written")
    record.note(f"ONNX's checker complains of the result as it does of the original: {found.checker}")


def _differs(judgement: Judgement) -> ResultDiffers:
    worst = judgement.failed[0]
    return ResultDiffers(
        f"the result differs from the original: gate {worst.gate} on {worst.subject} ({worst.family} inputs), error "
        f"{worst.error:.3g} where {worst.allowed:.3g} is allowed; nothing was written. "
        "This is a defect of normfold: please report it"
    )


def _written_otherwise(route: Route, failed: Comparison, suffix: str) -> ResultDiffers:
    """The error for a view that is right and a file of it that is not."""
    exported = suffix == ".onnx" and route.default != ".onnx"
    writer = "torch.onnx.export writes this model as one that computes something else" if exported else "the file differs"
    advice = "write the .pt2, and report it to PyTorch" if exported else "this is a defect of normfold: please report it"
    return ResultDiffers(
        f"{writer}: gate {failed.gate} on {failed.subject} ({failed.family} inputs), error "
        f"{failed.error:.3g} where {failed.allowed:.3g} is allowed; nothing was written. What to do: {advice}"
    )


def _without(options: Options, blamed: Blamed) -> Options:
    """Options that leave out what is blamed: its layers, or the whole rewrite."""
    if blamed.targets and not all(options.keeps(name) for name in blamed.targets):
        return replace(options, keep=(*options.keep, *map(glob.escape, blamed.targets)))
    skipped = {item.id for item in rewrites() if not options.uses(item.id)} | {blamed.rule}
    return replace(options, only=(), skip=tuple(sorted(skipped)))


def _report(outcome: Outcome, taken_back: list[Blamed], record: Record) -> None:
    """What the record says of a repaired result."""
    lost = {(item.name, item.node) for item in record.findings if item.outcome == "deleted"}
    lost -= {(item.name, item.node) for item in outcome.findings if item.outcome == "deleted"}
    for finding in outcome.findings:
        if finding.outcome == "kept" and (finding.name, finding.node) in lost:
            finding.refusal = REFUSALS["undone"]
    record.findings, record.inserted = outcome.findings, outcome.inserted
    for item in taken_back:
        where = f" on {', '.join(item.targets)}" if item.targets else ""
        failed = item.failed
        place = f" in {failed.where}" if failed.where else ""
        record.warn(
            f"the rewrite {item.rule} was undone{where}: gate {failed.gate} on {failed.subject}{place} ({failed.family} inputs), "
            f"error {failed.error:.3g} where {failed.allowed:.3g} is allowed. This is a defect of normfold: please report it"
        )
