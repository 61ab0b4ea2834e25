"""What a swap and its advice hand to the report: plain types only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from normfold.record import Record, Refusal

Measure = Literal["accuracy", "agreement", "drift"]


@dataclass(frozen=True)
class Advice:
    """One remedy for one norm.

    name: module path.  kind: "batch", "layer", ...  drawback: which of the six drawbacks of normalization it is about.
    remedy: what to run.  why: what was found.
    """

    name: str
    kind: str
    drawback: int
    remedy: str
    why: str


@dataclass(frozen=True)
class Left:
    """A norm that is not swapped, and why."""

    name: str
    refusal: Refusal


@dataclass
class Replaced:
    """One norm that was exchanged.

    names: every module path under which the one module is known.  was: its class.  now: what `NewNorm.make` builds.
    calls: runs of it in one forward pass.  start, fitted: the error of its output, where everything in front of it has the
    original's values, as a part of the standard deviation of the original's output: of the first guess, and of the result.
    """

    names: tuple[str, ...]
    was: str
    now: dict[str, Any]
    calls: int
    start: float = 0.0
    fitted: float = 0.0

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True)
class Metric:
    """What the swap costs on samples that were not fitted.

    measure: "accuracy" in percent where there are labels; else "agreement" of the largest class score with the original's, in
    percent; else "drift" (see `Swapped.drift`) in percent.  before, after: of the original and of the result.  lost: points.
    broken, fixed: decisions that became wrong (different) and right.  margin: half width of the 95 % interval of `lost`, in
    points, by Agresti & Min 2005 for matched pairs; None for a drift.
    samples: how many decisions were compared.  held_out: where they come from.
    """

    measure: Measure
    before: float
    after: float
    lost: float
    samples: int
    held_out: str
    broken: int = 0
    fixed: int = 0
    margin: float | None = None


@dataclass
class Swapped:
    """Everything one run of `swap` learnt.  `record` holds source, versions, outputs, timings, notes and warnings.

    drift: root mean square difference of the outputs, as a part of the standard deviation of the original's (the worst output).
    losses: of each stage, on all data that is fitted, before and after.  start, metric: of the first guess and of the result.
    written: False where the loss was more than allowed.
    """

    to: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    replaced: list[Replaced] = field(default_factory=list[Replaced])
    left: list[Left] = field(default_factory=list[Left])
    losses: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    start: Metric | None = None
    metric: Metric | None = None
    drift: float = 0.0
    fitted_on: int = 0
    max_drop: float = 0.0
    written: bool = False
    record: Record = field(default_factory=Record)

    @property
    def allowed(self) -> bool:
        """True when the metric fell by no more than `max_drop` points.  A metric that is no number is not allowed."""
        return self.metric is not None and self.metric.lost <= self.max_drop + 1e-9

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, ready for json.dumps."""
        return {**asdict(self), "allowed": self.allowed}


@dataclass(frozen=True)
class Renewed:
    """New statistics of one BatchNorm against the stored ones.

    shift: the largest move of a mean, in stored standard deviations.  low, high: the extremes of new variance / stored variance.
    divergence, worst: mean and largest Kullback-Leibler divergence of a channel, new against stored, both taken as normal.
    """

    name: str
    channels: int
    calls: int
    shift: float
    low: float
    high: float
    divergence: float
    worst: float


@dataclass
class Recalibrated:
    """Everything one run of `recalibrate` learnt."""

    layers: list[Renewed] = field(default_factory=list[Renewed])
    left: list[Left] = field(default_factory=list[Left])
    metric: Metric | None = None
    fitted_on: int = 0
    record: Record = field(default_factory=Record)

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, ready for json.dumps."""
        return asdict(self)
