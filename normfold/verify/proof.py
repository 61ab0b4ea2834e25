"""What is known of an original on each feed before any artefact is looked at: reference, noise, and the judged rewrite.

One `Proof` serves all artefacts of a run: a view that is written in two formats is certified once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Value
from normfold.record import Comparison
from normfold.verify.blind import behind, made_up
from normfold.verify.certificate import certify
from normfold.verify.evaluate import Constants, run
from normfold.verify.full_scale import full_scales
from normfold.verify.gates import Yardstick
from normfold.verify.inputs import Feed
from normfold.verify.noise import perturbed, perturbed_feed, unit, unit_of

DRAWS = 2
MORE = 8  # draws of noise, where a channel fails by little
KEPT_BYTES = 1 << 30  # of perturbed constants, which are drawn once for all feeds


@dataclass(frozen=True)
class Evidence:
    """One feed: certificate and G1, the outputs (by name) of ops that were stepped over, and what measures results."""

    comparisons: list[Comparison]
    given: dict[str, Array]
    hidden: frozenset[str]
    measure: Callable[[], Yardstick]

    @cached_property
    def by(self) -> Yardstick:
        """The yardstick; its noise is made when it is first asked for."""
        return self.measure()


@dataclass
class Proof:
    """The original `before` and, where there is one, its rewritten view `after` (its new constants still float64).

    draws: perturbed evaluations of the original per feed.  grain: the type whose half ulps perturb, where that is coarser than
    what the original stores.  notes: what could not be evaluated, and why.
    blind: why the comparison has to step over an op; "" where everything is evaluated.
    """

    before: Graph
    after: Graph | None = None
    draws: int = DRAWS
    seed: int = 0
    grain: np.dtype[Any] | None = None
    notes: list[str] = field(default_factory=list[str])
    blind: str = ""
    _known: dict[tuple[str, bool], Evidence] = field(default_factory=dict[tuple[str, bool], Evidence])
    _constants: dict[int, Constants] = field(default_factory=dict[int, Constants])

    def __post_init__(self) -> None:
        self.unit = unit(self.before) if self.grain is None else unit_of(self.grain)
        self.full = full_scales(self.before)

    def on(self, feed: Feed, *, algebra: bool = True) -> Evidence:
        """The evidence of one feed, worked out when it is first asked for.  algebra: also G1.

        Raises CannotTell where an op can be neither evaluated nor stepped over.
        """
        key = (feed.label, algebra)
        if key not in self._known:
            self._known[key] = self._work_out(feed, algebra)
        return self._known[key]

    def _work_out(self, feed: Feed, algebra: bool) -> Evidence:
        if not self.blind:
            try:
                return self._evaluated(feed, {}, algebra)
            except CannotTell as error:
                given = made_up(self.before, feed.arrays)
                if not given:
                    raise
                self.blind = str(error)
                self.notes.append(f"{error}; what follows was judged with made-up arrays in its place")
        else:
            given = made_up(self.before, feed.arrays)
        return self._evaluated(feed, given, algebra)

    def _evaluated(self, feed: Feed, given: dict[str, Array], algebra: bool) -> Evidence:
        found: list[Comparison] = []
        if self.after is not None:
            certified = certify(self.before, self.after, feed.arrays, family=feed.label, algebra=algebra, given=given)
            reference, found = certified.outputs, certified.comparisons
        else:
            reference = run(self.before, feed.arrays, given=given)

        def measure() -> Yardstick:
            noise = [
                run(self.before, feed.arrays, constants=self.drawn(draw), given=given)
                for draw in range(self.seed, self.seed + self.draws)
            ]
            return Yardstick(reference, noise, self.unit, feed.label, self.full)

        hidden = frozenset(behind(self.before, given)) if given else frozenset[str]()
        return Evidence(found, given, hidden, measure)

    def with_more_noise(self, feed: Feed, evidence: Evidence) -> Yardstick:
        """The yardstick with further draws, in which the inputs move as well.

        A norm of a constant input divides rounding by rounding: what an ulp of the input does belongs to the noise.
        """
        first = self.seed + self.draws
        more = [
            run(self.before, perturbed_feed(feed.arrays, draw), constants=perturbed(draw, self.grain), given=evidence.given)
            for draw in range(first, first + MORE)
        ]
        by = evidence.by
        return replace(by, noise=[*by.noise, *more])

    def drawn(self, seed: int) -> Constants:
        """The original's constants, perturbed; drawn once for all feeds."""
        if seed not in self._constants:
            self._constants[seed] = kept(perturbed(seed, self.grain), KEPT_BYTES // max(self.draws, 1))
        return self._constants[seed]


def kept(read: Callable[[Value], Array], limit: int) -> Constants:
    """`read`, with its arrays kept while they fit into `limit` bytes."""
    arrays: dict[Value, Array] = {}
    used = 0

    def again(value: Value) -> Array:
        nonlocal used
        array = arrays.get(value)
        if array is None:
            array = read(value)
            if used + array.nbytes <= limit:
                arrays[value] = array
                used += array.nbytes
        return array

    return again
