"""What one profile knows.  Measuring fills it in, the reports render it, `profile.schema.json` beside the reports describes it.

Times are seconds, sizes bytes, shares parts of 1.  A number that is not known is None.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from normfold.record import Timing

Bound = Literal["compute", "memory", ""]
Fate = Literal["own kernel", "folded by the runtime", "folded by the exporter", "not run", "not known"]
Verdict = Literal["within", "over", "cannot tell"]


@dataclass(frozen=True)
class Setting:
    """How a model is run.

    runtime: "onnxruntime" or "torch".  level: of ONNX Runtime's optimiser, the deployed one; "eager" or "compile" with torch.
    spinning: whether its idle threads spin, as is its default.
    affinity: the logical processors to stay on, () for all that are allowed.  seconds: about how long to measure one model.
    """

    runtime: str = "onnxruntime"
    level: str = "all"
    threads: int = 1
    spinning: bool = True
    affinity: tuple[int, ...] = ()
    seconds: float = 10.0
    confidence: float = 0.99


@dataclass(frozen=True)
class Machine:
    """Where it was measured.  cores: logical processors that this process may use; governor: of the processor's frequency.

    load: of the last minute, before anything was measured.  flops, bandwidth: measured peaks, float32 operations and bytes a
    second with the threads of the setting; cache: bytes a second while everything lies in the cache.
    """

    cpu: str
    cores: tuple[int, ...]
    memory: int
    system: str
    governor: str
    virtual: bool
    load: float
    versions: dict[str, str]
    flops: float = 0.0
    bandwidth: float = 0.0
    cache: float = 0.0


@dataclass(frozen=True)
class Cold:
    """The first of everything, in a process of its own: importing the runtime, loading the model, the first and second run.

    peak: largest resident memory of that process; base: what it held before the model was loaded; None where the system does
    not say.
    """

    imported: float
    loaded: float
    first: float
    second: float
    base: int | None
    peak: int | None


@dataclass(frozen=True)
class Percentile:
    """A percentile of the latency with bounds that hold with `confidence` each.

    low is 0, high infinite where fewer than `needed` runs were made.
    """

    percent: float
    value: float
    low: float
    high: float
    confidence: float
    needed: int


@dataclass(frozen=True)
class Latency:
    """Single runs, warm.  warm_up: runs before the times settled (`settled` says whether they did).  quantiles: 101 times, from
    the fastest to the slowest run."""

    runs: int
    warm_up: int
    settled: bool
    mean: float
    percentiles: list[Percentile]
    quantiles: list[float]

    def at(self, percent: float) -> Percentile:
        """The percentile that was asked for.  Raises KeyError for one that was not."""
        return next(item for item in self.percentiles if item.percent == percent)

    @property
    def median(self) -> float:
        return self.at(50.0).value


@dataclass
class Kernel:
    """What the runtime ran, at one level.

    name: the runtime's own.  op: its op type.  seconds, calls: in one run.
    start: when it would start, counted from the start of the run, if every kernel began as soon as its inputs are there;
    slack: how much longer it might take without delaying the end.
    layer: module path (else name) of the layer that it belongs to; members: the nodes of the original model that it computes.
    module: the module path is known.  inserted: the runtime put it in (a change of layout); it counts to the layer that needs it.
    norm: the normalization layer whose time this is, "" for none.
    flops, bytes: operations (a multiply-add is two) and the traffic that cannot be avoided.  bound: which roof is lower;
    attained: part of that roof that was reached.  reads: indices of the kernels whose results it needs.
    """

    name: str
    op: str
    seconds: float
    calls: float = 1.0
    layer: str = ""
    members: list[str] = field(default_factory=list[str])
    module: bool = False
    inserted: bool = False
    norm: str = ""
    flops: float | None = None
    bytes: float | None = None
    bound: Bound = ""
    attained: float | None = None
    start: float = 0.0
    slack: float = 0.0
    critical: bool = False
    reads: list[int] = field(default_factory=list[int])


@dataclass(frozen=True)
class Reconciled:
    """Where a run's wall time goes: kernels + executor + around + binding == wall.

    wall: a run without the profiler.  kernels: sum over the kernels, without what the profiler adds to them (`inside`: as much a
    call as a chain of empty kernels shows, and up to 10 us more where small kernels would not fit into the wall otherwise).
    executor: from one kernel to the next; what is left when the others are known, so measuring errors are in it too.
    around: in the runtime, outside its executor.  binding: in Python, handing arrays over.  profiled: a run with the profiler.
    """

    wall: float
    kernels: float
    executor: float
    around: float
    binding: float
    profiled: float
    inside: float

    @property
    def explained(self) -> float:
        """Kernels as a part of the wall."""
        return self.kernels / self.wall if self.wall else 0.0


@dataclass(frozen=True)
class Parallel:
    """What another executor could reach: no schedule ends before `critical`; `makespan`: workers -> end of a list schedule."""

    critical: float
    makespan: dict[str, float]
    path: list[str]


@dataclass
class Layer:
    """All kernels of one module path (or node).  share: of the kernel time.  ops: op types, the dearest first.

    slack: the least of its kernels.  norm: seconds of it that are normalization.  members: nodes of the original.
    """

    name: str
    seconds: float
    share: float
    ops: list[str]
    kernels: list[str]
    members: list[str]
    flops: float | None
    bytes: float | None
    bound: Bound
    attained: float | None
    slack: float
    critical: bool
    norm: float


@dataclass
class Level:
    """One level of the runtime's optimiser.

    runs: profiled runs.  mapped: part of the kernel time with a known module path; inserted: in kernels that the runtime put in.
    norms: part of the kernel time that normalization takes, with its bootstrap interval.
    """

    name: str
    runs: int
    kernels: list[Kernel]
    reconciled: Reconciled
    mapped: float
    inserted: float
    norms: float
    norms_low: float
    norms_high: float
    parallel: Parallel
    layers: list[Layer] = field(default_factory=list[Layer])

    @property
    def seconds(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels)


@dataclass(frozen=True)
class NormCost:
    """One normalization layer: what it costs and what would take it away or make it faster.

    off: seconds with optimisation off; now: at the deployed level.  fate: what the runtime makes of it there.
    outcome: what `normfold optimize` would do ("deleted", "shift", "kept"), code: why not.  action: in words.
    """

    name: str
    kind: str
    off: float | None
    now: float
    share: float
    fate: Fate
    outcome: str
    code: str
    action: str


@dataclass
class ModelProfile:
    """Everything that was measured of one model.

    levels: the one with optimisation off first, the deployed one, others when asked for.
    noise: the model against itself, interleaved.
    sentence: in plain words what folding the norms would gain here.
    """

    source: str
    sha256: str
    bytes: int
    nodes: int
    inputs: dict[str, list[int]]
    setting: Setting
    machine: Machine
    cold: Cold
    latency: Latency
    noise: Timing
    levels: list[Level]
    norms: list[NormCost]
    sentence: str
    notes: list[str] = field(default_factory=list[str])

    @property
    def noisy(self) -> bool:
        """The machine is too noisy to tell 2 % apart (a model that wins against itself says so too)."""
        return self.noise.verdict != "no difference"

    @property
    def deployed(self) -> Level:
        """The level of the setting."""
        return self.level(self.setting.level)

    @property
    def off(self) -> Level:
        """With optimisation off."""
        return self.levels[0]

    def level(self, name: str) -> Level:
        """The level of that name.  Raises KeyError when it was not measured."""
        for item in self.levels:
            if item.name == name:
                return item
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """One limit and how it was met.  measure: "p99", "size", "norm-share", ...  low, high: bounds of what was measured."""

    measure: str
    limit: float
    low: float
    high: float
    verdict: Verdict


@dataclass
class ProfileReport:
    """What `normfold profile` says.  model: what was asked for, judged by `budgets`.  against: the baseline.

    comparison: the two interleaved, the baseline as `before`.
    """

    model: ModelProfile
    against: ModelProfile | None = None
    comparison: Timing | None = None
    budgets: list[Budget] = field(default_factory=list[Budget])

    @property
    def exit_code(self) -> int:
        """0 fine or within all budgets, 3 over one, 4 cannot tell."""
        verdicts = {budget.verdict for budget in self.budgets}
        if "over" in verdicts:
            return 3
        if self.budgets:
            return 4 if "cannot tell" in verdicts else 0
        timing = self.comparison if self.comparison is not None else self.model.noise
        return 4 if timing.verdict == "too noisy to tell" else 0
