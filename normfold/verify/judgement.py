"""The judgement of one result: every gate on every feed that the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from normfold.errors import CannotTell, UsageError
from normfold.graph import Array, Graph, Shape, Value
from normfold.record import Comparison
from normfold.verify import gates
from normfold.verify.evaluate import run
from normfold.verify.gates import Yardstick
from normfold.verify.inputs import Feed
from normfold.verify.proof import DRAWS, Evidence, Proof
from normfold.verify.runtimes import Runner, in_order

Verdict = Literal["same", "different", "cannot tell"]
Tell = Callable[[str, int, int], None]
BUDGET = 60.0


@dataclass
class Judgement:
    """What was compared and how it came out.

    comparisons: the worst of each gate and subject over all families.  ran: labels of the feeds that were judged.
    left_out: label -> why not.  notes: what could not be compared, and why.  seconds: wall time.
    blind: why an op could not be evaluated in float64; "" where all could.
    """

    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    ran: list[str] = field(default_factory=list[str])
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    blind: str = ""

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
    stored: Graph | None = None,
    proof: Proof | None = None,
    budget: float = BUDGET,
    draws: int = DRAWS,
    seed: int = 0,
    stop: bool = False,
    tell: Tell | None = None,
    peer: Callable[[], Runner | None] | None = None,
) -> Judgement:
    """Judge a rewritten model.

    before: the view as captured.  after: the rewritten view, its new constants still float64 (None: no certificate, no G1).
    original, result: the two models in their runtimes (None: no G3).  stored: the view of the written artefact, for G2; without
    one that is `after` rounded.  proof: what is known of `before` and `after` from judging another artefact of theirs.
    feeds: what to compare on, the most telling first (`inputs.feeds`); the first is always judged, the others while the time that
    the first took fits into what is left of `budget` seconds.  draws: perturbed evaluations of the original per feed.
    stop: nothing further after a certificate or a feed that failed.  tell: called before each feed with its label, its
    place and their number.
    peer: makes the original in the runtime of the result, where that is another one; asked where G3 fails.  What the original
    loses there is that runtime's own (a sigmoid that ends at zero, say) and granted; where that is more than the gate "reference"
    allows, the runtimes tell nothing on that feed.

    A difference is a failed comparison, never an exception.  A feed that the original itself cannot run (sizes that it does not
    allow) is left out with the reason.  Ops without float64 evaluation are stepped over (`blind`) and noted; where even that
    is not possible on the first feed, CannotTell is raised.
    """
    began = time.perf_counter()
    verdict = Judgement()
    worst: dict[tuple[str, str], Comparison] = {}
    if after is not None:
        keep_worst(worst, contract(before, after))
    proof = proof or Proof(before, after, draws, seed)
    if stored is None and after is not None:
        stored = after.clone()
        stored.round_constants()
    one = _One(proof, original, result, stored, peer)
    longest = 0.0
    doubts: list[list[Comparison]] = []
    for place, feed in enumerate(feeds):
        started = time.perf_counter()
        if place and started - began + longest > budget:
            verdict.left_out[feed.label] = f"the budget of {budget:g} s was spent"
            continue
        if tell is not None:
            tell(feed.label, place, len(feeds))
        try:
            found = one.judge(feed, algebra=place < 2, stop=stop)
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
            one.notes.append(f"{feed.label}: {_unsure(unsure[0])}")
        keep_worst(worst, found)
        verdict.ran.append(feed.label)
        longest = max(longest, time.perf_counter() - started)
        if stop and any(not item.passed for item in found):
            break
    if doubts and len(doubts) == len(verdict.ran):  # nowhere could the runtimes be trusted to be judged
        keep_worst(worst, doubts[0])
    verdict.comparisons = list(worst.values())
    verdict.notes = list(dict.fromkeys([*proof.notes, *one.notes]))
    verdict.blind = proof.blind or one.blind
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

    proof: Proof
    original: Runner | None
    result: Runner | None
    stored: Graph | None
    peer: Callable[[], Runner | None] | None = None
    notes: list[str] = field(default_factory=list[str])
    blind: str = ""

    def judge(self, feed: Feed, *, algebra: bool, stop: bool) -> list[Comparison]:
        """All gates on one feed; with `stop` the artefact is not looked at where the view is wrong already."""
        first = self._original(feed)
        evidence = self.proof.on(feed, algebra=algebra)
        found = list(evidence.comparisons)
        if stop and any(not item.passed for item in found):
            return found
        rounded = self._rounded(feed, evidence)
        second: dict[str, Array] = {}
        if first is not None and self.result is not None:
            known = {name: array for name, array in first.items() if name not in evidence.hidden}
            found += gates.sanity(evidence.by, known)
            try:
                second = self._named(self.result.run(feed.arrays), self.result.outputs)
            except CannotTell as error:
                text = f"it does not run: {error}"
                return [*found, Comparison("G3", "the result", feed.label, float("inf"), 0.0, False, text)]

        def judged(by: Yardstick) -> list[Comparison]:
            items = [] if rounded is None else gates.artefact(by, rounded)
            if first is not None and self.result is not None:
                alone = {name: array for name, array in first.items() if name in evidence.hidden}
                items += gates.runtime(by, {name: first[name] for name in first if name not in alone}, second)
                items += gates.runtimes_alone(by, alone, second)
            return items

        items = judged(evidence.by)
        if any(gates.doubtful(item) for item in items) and all(item.passed or gates.doubtful(item) for item in items):
            items = judged(self.proof.with_more_noise(feed, evidence))
        if any(item.gate == "G3" and not item.passed and item.error < float("inf") for item in items):
            items = self._beside_peer(feed, evidence, items, first or {}, second)
        return found + items

    def _beside_peer(
        self, feed: Feed, evidence: Evidence, items: list[Comparison], first: dict[str, Array], second: dict[str, Array]
    ) -> list[Comparison]:
        """`items` with G3 judged anew, by the original in the result's runtime; as they are where there is no such thing."""
        try:
            peer = self.peer() if self.peer is not None else None
            lost = {} if peer is None else self._named(peer.run(feed.arrays), peer.outputs)
        except CannotTell:
            return items
        known = {name: array for name, array in first.items() if name not in evidence.hidden and name in lost}
        if not known or len(known) < len(first):
            return items
        others = [item for item in items if item.gate != "G3"]
        by = evidence.by
        unsure = [item for item in gates.sanity(by, {name: lost[name] for name in known}) if not item.passed]
        return others + (unsure or gates.runtime(replace(by, noise=[*by.noise, lost]), known, second))

    def _original(self, feed: Feed) -> dict[str, Array] | None:
        if self.original is None:
            return None
        try:
            return self._named(self.original.run(feed.arrays), self.original.outputs)
        except CannotTell as error:
            raise _NotRun(f"the original does not run on it: {error}") from error

    def _rounded(self, feed: Feed, evidence: Evidence) -> dict[str, Array] | None:
        """The stored weights in float64; None, with a note, where that has no evaluation."""
        if self.stored is None:
            return None
        if self.original is None or self.result is None:
            self._note("no runtime was compared: the stored weights were judged in float64 (G2)")
        names = _names(self.stored.inputs)
        try:
            arrays = dict(zip(names, in_order(names, feed.arrays), strict=True))
            return self._named(run(self.stored, arrays, given=evidence.given), _names(self.stored.outputs))
        except (CannotTell, UsageError) as error:
            self.blind = self.blind or str(error)
            self._note(f"G2 cannot tell: {error}")
            return None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _named(self, outputs: Mapping[str, Array], order: Sequence[str]) -> dict[str, Array]:
        """Outputs under the original's output names: by name, else in order, aligned at the end.

        What a program writes to its own buffers comes first among the outputs of its view; a runner does not return it.
        """
        names = _names(self.proof.before.outputs)
        if set(outputs) <= set(names):
            return dict(outputs)
        if len(outputs) > len(names):
            raise CannotTell(f"the model gives {len(outputs)} outputs ({', '.join(order)}), expected {', '.join(names)}")
        return dict(zip(names[len(names) - len(outputs) :], outputs.values(), strict=True))


def _names(values: Sequence[Value]) -> list[str]:
    return [value.name for value in values]


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
