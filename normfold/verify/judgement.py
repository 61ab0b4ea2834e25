"""The judgement of one result: every gate on every feed that the time allows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Shape, Value
from normfold.record import Comparison
from normfold.verify import gates
from normfold.verify.blind import behind, made_up
from normfold.verify.certificate import certify
from normfold.verify.evaluate import run
from normfold.verify.inputs import Feed
from normfold.verify.noise import perturbed, perturbed_feed, unit
from normfold.verify.runtimes import Runner

Verdict = Literal["same", "different", "cannot tell"]
BUDGET = 60.0
MORE = 8  # draws of noise, where a channel fails by little


@dataclass
class Judgement:
    """What was compared and how it came out.

    comparisons: the worst of each gate and subject over all families.  ran: labels of the feeds that were judged.
    left_out: label -> why not.  notes: what could not be compared, and why.  seconds: wall time.
    """

    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    ran: list[str] = field(default_factory=list[str])
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    @property
    def failed(self) -> list[Comparison]:
        """The comparisons that say "different"."""
        return [item for item in self.comparisons if not item.passed and item.gate != "reference"]

    @property
    def verdict(self) -> Verdict:
        """A failed gate says "different"; no gate, or a reference that is not to be trusted, "cannot tell"."""
        if self.failed:
            return "different"
        judged = any(item.gate != "contract" and item.gate != "reference" for item in self.comparisons)
        return "same" if judged and all(item.passed for item in self.comparisons) else "cannot tell"


def judge(
    before: Graph,
    after: Graph | None,
    original: Runner | None,
    result: Runner | None,
    feeds: Sequence[Feed],
    *,
    budget: float = BUDGET,
    draws: int = 2,
    seed: int = 0,
) -> Judgement:
    """Judge a rewritten model.

    before: the view as captured.  after: the rewritten view, its new constants still float64 (None: runtimes only).
    original, result: the two models in their runtimes (None: G2 instead of G3, on `after` rounded).
    feeds: what to compare on, the most telling first (`inputs.feeds`); the first is always judged, the others while the time that
    the first took fits into what is left of `budget` seconds.  draws: perturbed evaluations of the original per feed.

    A difference is a failed comparison, never an exception.  A feed that the original itself cannot run (sizes that it does not
    allow) is left out with the reason.  Ops without float64 evaluation are stepped over (`blind`) and noted; where even that
    is not possible on the first feed, CannotTell is raised.
    """
    began = time.perf_counter()
    verdict = Judgement()
    worst: dict[tuple[str, str], Comparison] = {}
    if after is not None:
        keep_worst(worst, contract(before, after))
    one = _One(before, after, original, result, unit(before), draws, seed, verdict.notes)
    longest = 0.0
    doubts: list[list[Comparison]] = []
    for place, feed in enumerate(feeds):
        started = time.perf_counter()
        if place and started - began + longest > budget:
            verdict.left_out[feed.label] = f"the budget of {budget:g} s was spent"
            continue
        try:
            found = one.judge(feed, algebra=place < 2)
        except _NotRun as reason:
            verdict.left_out[feed.label] = str(reason)
            continue
        except CannotTell as reason:
            if not verdict.ran:
                raise
            verdict.left_out[feed.label] = str(reason)
            continue
        unsure = [item for item in found if item.gate == "reference" and not item.passed]
        if unsure:
            doubts.append(unsure)
            found = [item for item in found if item.gate != "reference"]
            verdict.notes.append(f"{feed.label}: {_unsure(unsure[0])}")
        keep_worst(worst, found)
        verdict.ran.append(feed.label)
        longest = max(longest, time.perf_counter() - started)
    if doubts and len(doubts) == len(verdict.ran):  # nowhere could the runtimes be trusted to be judged
        keep_worst(worst, doubts[0])
    verdict.comparisons = list(worst.values())
    verdict.seconds = time.perf_counter() - began
    return verdict


def _unsure(item: Comparison) -> str:
    """Why a feed's runtimes say little."""
    return (
        f"the original's runtime and its float64 evaluation differ by {item.error:.2g} in {item.subject} "
        f"(up to {item.allowed:.2g} is rounding), so that little can be told from the runtimes there"
    )


class _NotRun(Exception):
    """The original does not run on a feed."""


def keep_worst(worst: dict[tuple[str, str], Comparison], comparisons: Sequence[Comparison]) -> None:
    """Keep the worst comparison of each gate and subject: the first that failed, else the closest to failing."""
    for item in comparisons:
        key = (item.gate, item.subject)
        held = worst.get(key)
        if held is None or (held.passed and (not item.passed or _closeness(item) > _closeness(held))):
            worst[key] = item


def _closeness(item: Comparison) -> float:
    return item.error / item.allowed if item.allowed else item.error


@dataclass
class _One:
    """Judges one feed after the other."""

    before: Graph
    after: Graph | None
    original: Runner | None
    result: Runner | None
    unit: float
    draws: int
    seed: int
    notes: list[str]
    blind: bool = False

    def judge(self, feed: Feed, *, algebra: bool) -> list[Comparison]:
        """All gates on one feed."""
        first = self._original(feed)
        if not self.blind:
            try:
                return self._gates(feed, first, {}, algebra=algebra)
            except CannotTell as error:
                given = made_up(self.before, feed.arrays)
                if not given:
                    raise
                self.blind = True
                self.notes.append(f"{error}; what follows was judged with made-up arrays in its place")
        else:
            given = made_up(self.before, feed.arrays)
        return self._gates(feed, first, given, algebra=algebra)

    def _original(self, feed: Feed) -> dict[str, Array] | None:
        if self.original is None:
            return None
        try:
            return _named(self.before, self.original.run(feed.arrays), self.original)
        except CannotTell as error:
            raise _NotRun(f"the original does not run on it: {error}") from error

    def _gates(self, feed: Feed, first: dict[str, Array] | None, given: dict[str, Array], *, algebra: bool) -> list[Comparison]:
        found: list[Comparison] = []
        if self.after is not None:
            certified = certify(self.before, self.after, feed.arrays, family=feed.label, algebra=algebra, given=given)
            reference = certified.outputs
            found += certified.comparisons
        else:
            reference = run(self.before, feed.arrays, given=given)
        noise = self._noise(feed, given, range(self.draws))
        if first is None or self.result is None:
            return found + self._artefact(feed, reference, noise, given)
        hidden = behind(self.before, given) if given else set[str]()
        known = {name: array for name, array in first.items() if name not in hidden}
        alone = {name: array for name, array in first.items() if name in hidden}
        found += gates.sanity(reference, known, noise, unit=self.unit, family=feed.label)
        try:
            second = _named(self.before, self.result.run(feed.arrays), self.result)
        except CannotTell as error:
            text = f"it does not run: {error}"
            return [*found, Comparison("G3", "the result", feed.label, float("inf"), 0.0, False, text)]

        def runtimes() -> list[Comparison]:
            judged = gates.runtime(reference, known, second, noise, unit=self.unit, family=feed.label)
            return judged + gates.runtimes_alone(reference, alone, second, noise, unit=self.unit, family=feed.label)

        judged = runtimes()
        if any(gates.doubtful(item) for item in judged) and all(item.passed or gates.doubtful(item) for item in judged):
            # A norm of a constant input divides rounding by rounding: what an ulp of the input does belongs to the noise.
            noise += self._noise(feed, given, range(self.draws, self.draws + MORE), inputs=True)
            judged = runtimes()
        return found + judged

    def _noise(self, feed: Feed, given: dict[str, Array], draws: range, *, inputs: bool = False) -> list[dict[str, Array]]:
        """The original's outputs for perturbed parameters, and with `inputs` for inputs perturbed alike."""
        return [
            run(
                self.before,
                perturbed_feed(feed.arrays, self.seed + draw) if inputs else feed.arrays,
                constants=perturbed(self.seed + draw),
                given=given,
            )
            for draw in draws
        ]

    def _artefact(
        self, feed: Feed, reference: dict[str, Array], noise: list[dict[str, Array]], given: dict[str, Array]
    ) -> list[Comparison]:
        """G2, where there is no runtime to run."""
        if self.after is None:
            return []
        text = "no runtime was compared: the stored weights were judged in float64 (G2)"
        if text not in self.notes:
            self.notes.append(text)
        rounded = self.after.clone()
        rounded.round_constants()
        outputs = run(rounded, feed.arrays, given=given)
        return gates.artefact(reference, outputs, noise, unit=self.unit, family=feed.label)


def _named(before: Graph, outputs: Mapping[str, Array], runner: Runner) -> dict[str, Array]:
    """A runner's outputs under the graph's output names: by name, else in order, aligned at the end.

    What a program writes to its own buffers comes first among the outputs of its view; a runner does not return it.
    """
    names = [value.name for value in before.outputs]
    if set(outputs) <= set(names):
        return dict(outputs)
    if len(outputs) > len(names):
        raise CannotTell(f"the model gives {len(outputs)} outputs ({', '.join(runner.outputs)}), expected {', '.join(names)}")
    return dict(zip(names[len(names) - len(outputs) :], outputs.values(), strict=True))


def contract(before: Graph, after: Graph) -> list[Comparison]:
    """Gate "contract": inputs, outputs and overridable constants keep their names, order, types and shapes."""
    found = [
        _same("inputs", [value.name for value in before.inputs], [value.name for value in after.inputs]),
        _same("outputs", [value.name for value in before.outputs], [value.name for value in after.outputs]),
        _same("overridable constants", sorted(v.name for v in before.pinned), sorted(v.name for v in after.pinned)),
    ]
    for old, new in [*zip(before.inputs, after.inputs, strict=False), *zip(before.outputs, after.outputs, strict=False)]:
        same = old.dtype == new.dtype and _fits(old.shape, new.shape)
        text = "" if same else f"was {_text(old)}, is {_text(new)}"
        found.append(Comparison("contract", old.name, "", 0.0 if same else 1.0, 0.0, same, text))
    return found


def _same(subject: str, old: list[str], new: list[str]) -> Comparison:
    same = old == new
    text = "" if same else f"were {', '.join(old)}; are {', '.join(new)}"
    return Comparison("contract", subject, "", 0.0 if same else 1.0, 0.0, same, text)


def _fits(old: Shape | None, new: Shape | None) -> bool:
    """Known sizes agree; what was dynamic is not fixed."""
    if old is None or new is None:
        return True
    return len(old) == len(new) and all(a == b or a is None or b is None for a, b in zip(old, new, strict=True))


def _text(value: Value) -> str:
    shape = "?" if value.shape is None else "x".join("?" if dim is None else str(dim) for dim in value.shape)
    return f"{value.dtype} {shape}"
