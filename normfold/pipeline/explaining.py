"""What became of single norms, in detail: where scale and shift went, or what exactly stopped them."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass, field

from normfold.capture.tidy import tidy
from normfold.detect import find_norms
from normfold.errors import UsageError
from normfold.graph import NormSpec
from normfold.load import Loaded
from normfold.pipeline.options import Options
from normfold.pipeline.rewriting import rewrite
from normfold.pipeline.routes import open_route
from normfold.record import Applied, Finding, Record
from normfold.rewrites.trace import Trace
from normfold.rewrites.tracing import watching

SHOWN = 5  # names offered for one that is unknown


@dataclass
class Explanation:
    """One norm: what became of it, the trace of the affine rewrite (None where that never got to it), what others did to it."""

    finding: Finding
    trace: Trace | None = None
    others: list[Applied] = field(default_factory=list[Applied])


def explain(loaded: Loaded, wanted: str, options: Options, record: Record) -> list[Explanation]:
    """Explain every norm of a loaded model that `wanted` names; nothing is written and nothing measured.

    wanted: a module path, a node's name, or a shell pattern of either.  Raises UsageError when there is none.
    """
    route = open_route(loaded, options, record)
    tidy(route.graph)
    specs = find_norms(route.graph)
    names = [_names(spec) for spec in specs]
    exact = [i for i, known in enumerate(names) if wanted in known]
    chosen = exact or [i for i, known in enumerate(names) if any(fnmatch.fnmatchcase(name, wanted) for name in known)]
    if not chosen:
        raise UsageError(_unknown(wanted, list(dict.fromkeys(spec.name for spec in specs))))
    with watching([specs[i].name for i in chosen]) as traces:
        outcome = rewrite(route.graph, options)
    return [
        Explanation(
            outcome.findings[i],
            traces.get(specs[i].output.name) or traces.get(outcome.stands_for[specs[i].output.name]),
            [item for item in outcome.applied if item.target == specs[i].name and item.rule != "affine"],
        )
        for i in chosen
    ]


def _names(spec: NormSpec) -> list[str]:
    return [name for name in dict.fromkeys((spec.name, spec.node.name, spec.output.name)) if name]


def _unknown(wanted: str, known: list[str]) -> str:
    """known: the names that every report shows."""
    if not known:
        return "the model has no normalization layer to explain"
    within = [name for name in known if wanted.lower() in name.lower()]
    likely = sorted((name for name in known if _likeness(wanted, name) >= 0.5), key=lambda name: -_likeness(wanted, name))
    close = (within or likely)[:SHOWN]
    hint = f"close to it: {', '.join(close)}" if close else f"there are for example: {', '.join(known[:SHOWN])}"
    return f"no norm is called {wanted!r}; {hint} (`normfold inspect` lists all)"


def _likeness(wanted: str, name: str) -> float:
    """From 0 to 1; of a path whatever is more alike, the whole or as many of its last parts as `wanted` has."""
    tail = ".".join(name.split(".")[-1 - wanted.count(".") :])
    return max(difflib.SequenceMatcher(None, wanted.lower(), item.lower()).ratio() for item in (name, tail))
