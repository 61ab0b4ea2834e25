"""What every stage reports.  One record is filled on the way from file to result; reports only render it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["deleted", "shift", "kept"]


@dataclass(frozen=True)
class Refusal:
    """Why something was not rewritten.  `code` is stable ("zero-padding"), `reason` plain words, `fix` what to do."""

    code: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Recurrence:
    """Where a norm stands on a recurrent path.

    place: "inside" (between the steps of an unrolled loop), "body" (of a Loop or Scan), "front" of a recurrent layer, "behind"
    one, "between" two.  steps: how often it is applied, 0 when that is not known.  statistics: "shared" by all steps, "own"
    (others at every step), or taken at "run time".
    """

    place: Literal["inside", "body", "front", "behind", "between"]
    steps: int = 0
    statistics: Literal["shared", "own", "run time"] = "shared"


@dataclass
class Finding:
    """One normalization layer of the input model and what became of it.

    name: module path, else node name.  kind: "batch", "layer", ...  axes: reduced axes.  channels: C, 0 when unknown.
    health: remarks on its statistics.  outcome: "deleted" (into the parameters named in `into`), "shift" (only an addition
    is left) or "kept" (then `refusal` says why).  recurrence: where it stands on a recurrent path, None elsewhere.
    """

    name: str
    kind: str
    op: str
    node: str
    axes: tuple[int, ...] = ()
    channels: int = 0
    health: list[str] = field(default_factory=list[str])
    outcome: Outcome = "kept"
    into: list[str] = field(default_factory=list[str])
    refusal: Refusal | None = None
    recurrence: Recurrence | None = None


@dataclass(frozen=True)
class Applied:
    """One rewrite that was made: rule id, the node or module it was made on, what it did."""

    rule: str
    target: str
    detail: str = ""


@dataclass(frozen=True)
class Comparison:
    """One judged comparison.

    gate: "G1", "certificate", "G3", ...  subject: output or value name.  family: input family.
    error, allowed: in the gate's own measure; `passed` is error <= allowed.  where: worst channel or index.
    """

    gate: str
    subject: str
    family: str
    error: float
    allowed: float
    passed: bool
    where: str = ""


@dataclass(frozen=True)
class Judged:
    """One rewrite as the gates saw it.

    rule: its id.  made: how many changes it made.  verdict: "passed", or "undone" (then `failed` is the comparison that it
    failed, and `targets` are the layers that were left as they were; all of the rewrite's where it is empty).
    """

    rule: str
    made: int
    verdict: Literal["passed", "undone"]
    targets: tuple[str, ...] = ()
    failed: Comparison | None = None


@dataclass(frozen=True)
class Timing:
    """Interleaved latency of `before` and `after` in seconds.

    ratio: median of after/before; low, high: its bootstrap interval at `confidence`.  verdict: "faster", "slower",
    "no difference" or "too noisy to tell".  runtime, level, threads: what was measured.  runs: samples of each side.
    self_low, self_high: interval of `before` against itself, measured in between: it should hold 1 and be narrow.
    """

    runtime: str
    level: str
    threads: int
    before: float
    after: float
    ratio: float
    low: float
    high: float
    confidence: float
    runs: int
    verdict: str
    self_low: float = 1.0
    self_high: float = 1.0


@dataclass(frozen=True)
class Size:
    """Counts of one side: nodes, parameters (elements), bytes of constants, norms."""

    nodes: int
    parameters: int
    bytes: int
    norms: int


@dataclass
class Record:
    """Everything one run of `optimize` learnt; `as_dict()` is what --json prints and the manifest holds."""

    source: str = ""
    source_sha256: str = ""
    objective: str = ""
    outputs: dict[str, str] = field(default_factory=dict[str, str])  # path -> sha256
    versions: dict[str, str] = field(default_factory=dict[str, str])
    findings: list[Finding] = field(default_factory=list[Finding])
    applied: list[Applied] = field(default_factory=list[Applied])
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    rewrites: list[Judged] = field(default_factory=list[Judged])
    timings: list[Timing] = field(default_factory=list[Timing])
    before: Size | None = None
    after: Size | None = None
    inserted: dict[str, int] = field(default_factory=dict[str, int])  # "Add": bias additions put in, ...
    warnings: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])  # what was found or decided, nothing to worry about
    seconds: dict[str, float] = field(default_factory=dict[str, float])  # stage -> wall seconds

    @property
    def passed(self) -> bool:
        """True when comparisons were made and none failed."""
        return bool(self.comparisons) and all(item.passed for item in self.comparisons)

    def warn(self, text: str) -> None:
        """Add a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def note(self, text: str) -> None:
        """Add a note once."""
        if text not in self.notes:
            self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, ready for json.dumps."""
        return asdict(self)
