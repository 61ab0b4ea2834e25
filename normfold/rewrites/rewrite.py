"""What a rewrite is: a function-keeping change of the graph, with an id and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from normfold.graph import Graph
from normfold.ops.wiring import Inserts
from normfold.record import Applied, Outcome, Refusal
from normfold.rewrites.choices import Chooser, Question, recorded


@dataclass(frozen=True)
class Policy:
    """What a rewrite may do.

    objective: "latency" does what the target gains by; "norms" does everything that is exact.
    keep: decides by label (module path or node name) that a layer must stay.
    clone_budget: bytes that copies of shared constants may take, all together.
    uses: decides by id that a rewrite runs.
    choose: answers what only measurement settles; by default from the records of ONNX Runtime.
    """

    objective: str = "latency"
    keep: Callable[[str], bool] = lambda label: False
    clone_budget: int = 0
    uses: Callable[[str], bool] = lambda rule: True
    choose: Chooser | None = None

    def answer(self, question: Question) -> str:
        """What the chooser says to `question`."""
        return (self.choose or recorded("onnxruntime", self.objective))(question)

    @property
    def inserts(self) -> Inserts:
        """The new nodes that may be put in so that a norm can go."""
        return Inserts(
            bias=self.answer(Question("bias-add")) != "no",
            shift=self.answer(Question("leftover-shift")) != "keep",
            border_map=self.answer(Question("border-map")) != "no",
        )


@dataclass(eq=False)
class Fate:
    """What became of one affine layer, by the name of its output in the graph before."""

    output: str
    outcome: Outcome
    into: list[str] = field(default_factory=list[str])
    refusal: Refusal | None = None


@dataclass
class Rewritten:
    """The result of a rewrite: a new graph (the old one is untouched), what was done, and the fate of each layer looked at.

    copied: bytes of constants that were copied.  renamed: the output of a layer in the graph before -> of what stands for it now.
    """

    graph: Graph
    applied: list[Applied] = field(default_factory=list[Applied])
    fates: list[Fate] = field(default_factory=list[Fate])
    inserted: dict[str, int] = field(default_factory=dict[str, int])
    copied: int = 0
    renamed: dict[str, str] = field(default_factory=dict[str, str])

    def follow(self, renamed: Mapping[str, str]) -> None:
        """Add what one more change `renamed`, of which some may have stood for others before."""
        self.renamed = {old: renamed.get(new, new) for old, new in self.renamed.items()} | dict(renamed)


class Fates:
    """What became of norms, told by the names of their outputs before the first of several rewrites.

    now: such a name -> the name of what stands for it.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.now = {name: name for name in names}
        self._fates: dict[str, Fate] = {}

    def take(self, made: Rewritten) -> None:
        """Follow one more rewrite; where a layer stays, the reason of an earlier one that knew it better stays too."""
        self.now = {first: made.renamed.get(name, name) for first, name in self.now.items()}
        for before, after in made.renamed.items():
            if before in self._fates:
                self._fates[after] = self._fates.pop(before)
        for fate in made.fates:
            earlier = self._fates.get(fate.output)
            if earlier is not None and earlier.refusal is not None and fate.outcome != "deleted":
                fate.refusal = earlier.refusal
            self._fates[fate.output] = fate

    def of(self, name: str) -> Fate | None:
        """The fate of the norm whose output was called `name` at first; None where no rewrite looked at it."""
        return self._fates.get(self.now[name])


@dataclass(frozen=True)
class Rewrite:
    """id: stable, used by --only and --skip.  summary: one sentence for `normfold rules`."""

    id: str
    summary: str
    run: Callable[[Graph, Policy], Rewritten]
