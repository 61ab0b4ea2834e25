"""What a rewrite is: a function-keeping change of the graph, with an id and a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from normfold.graph import Graph
from normfold.ops.wiring import Inserts
from normfold.record import Applied, Outcome, Refusal


@dataclass(frozen=True)
class Policy:
    """What a rewrite may do.

    objective: "latency" deletes only whole layers and inserts no node; "norms" does everything that is exact.
    keep: decides by label (module path or node name) that a layer must stay.
    clone_budget: bytes that copies of shared constants may take, all together.
    uses: decides by id that a rewrite runs.
    """

    objective: str = "latency"
    keep: Callable[[str], bool] = lambda label: False
    clone_budget: int = 0
    uses: Callable[[str], bool] = lambda rule: True

    @property
    def inserts(self) -> Inserts:
        """The new nodes that may be put in so that a norm can go."""
        everything = self.objective == "norms"
        return Inserts(bias=everything, shift=everything, border_map=everything)


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


@dataclass(frozen=True)
class Rewrite:
    """id: stable, used by --only and --skip.  summary: one sentence for `normfold rules`."""

    id: str
    summary: str
    run: Callable[[Graph, Policy], Rewritten]
