"""Run the rewrites in order, and tell for every normalization layer what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from normfold.detect import channel_count, find_norms, recurrences
from normfold.errors import UsageError
from normfold.graph import Graph, NormSpec
from normfold.pipeline.options import Options
from normfold.record import Applied, Finding, Refusal, Size
from normfold.rewrites import Fate, Fates, Policy, rewrites
from normfold.rewrites.choices import recorded
from normfold.rewrites.refusals import REFUSALS, explain_unwired


@dataclass(frozen=True)
class Step:
    """One rewrite that changed something: its id, the view after it, what it did."""

    rule: str
    graph: Graph
    applied: tuple[Applied, ...] = ()


@dataclass
class Outcome:
    """The rewritten graph with what was done to it.

    stands_for: the output of a norm in the graph as captured -> that of what stood for it in the end.
    steps: the rewrites that changed something, in order.
    """

    graph: Graph
    applied: list[Applied] = field(default_factory=list[Applied])
    findings: list[Finding] = field(default_factory=list[Finding])
    inserted: dict[str, int] = field(default_factory=dict[str, int])
    stands_for: dict[str, str] = field(default_factory=dict[str, str])
    steps: list[Step] = field(default_factory=list[Step])


def policy_of(graph: Graph, options: Options) -> Policy:
    """What `options` allow the rewrites of a graph."""
    budget = options.clone_bytes(sum(value.const.nbytes for value in graph.constants() if value.const is not None))
    return Policy(options.objective, options.keeps, budget, options.uses, recorded(options.target, options.objective))


def rewrite(graph: Graph, options: Options) -> Outcome:
    """All rewrites that `options` allow, on a copy.  Raises UsageError for an unknown rule id."""
    known = {item.id for item in rewrites()}
    for rule in (*options.only, *options.skip):
        if rule not in known:
            raise UsageError(f"there is no rewrite called {rule!r}; `normfold rules` lists them: {', '.join(sorted(known))}")
    specs = find_norms(graph)
    outcome = Outcome(graph)
    fates = Fates(spec.output.name for spec in specs)
    policy = policy_of(graph, options)
    for item in rewrites():
        if options.uses(item.id):
            result = item.run(outcome.graph, policy)
            if result.graph is not outcome.graph:
                outcome.steps.append(Step(item.id, result.graph, tuple(result.applied)))
            outcome.graph = result.graph
            outcome.applied += result.applied
            for kind, count in result.inserted.items():
                outcome.inserted[kind] = outcome.inserted.get(kind, 0) + count
            policy = replace(policy, clone_budget=policy.clone_budget - result.copied)
            fates.take(result)
    outcome.stands_for = fates.now
    switched_off = not options.uses("affine")
    places = recurrences(graph, specs)
    outcome.findings = [_finding(spec, fates.of(spec.output.name), graph, switched_off=switched_off) for spec in specs]
    for spec, finding in zip(specs, outcome.findings, strict=True):
        finding.recurrence = places.get(spec.node)
    return outcome


def _described(spec: NormSpec) -> Finding:
    return Finding(
        name=spec.name,
        kind=spec.kind,
        op=spec.node.kind,
        node=spec.node.name or spec.output.name,
        axes=spec.axes,
        channels=channel_count(spec),
        health=list(spec.health),
    )


def _finding(spec: NormSpec, fate: Fate | None, graph: Graph, *, switched_off: bool) -> Finding:
    finding = _described(spec)
    if fate is not None:
        finding.outcome, finding.into, finding.refusal = fate.outcome, list(fate.into), fate.refusal
        return finding
    pinned = any(value in graph.pinned for value in spec.node.inputs if value is not None)
    finding.refusal = explain_unwired(spec, pinned)
    in_body = not any(node is spec.node for node in graph.nodes)
    affine = spec.kind == "batch" and not spec.training and spec.mean is not None
    if (switched_off or in_body) and affine:
        finding.refusal = REFUSALS["skipped"]
    return finding


def undone(findings: list[Finding], refusal: Refusal) -> None:
    """Mark every layer as kept after all."""
    for finding in findings:
        if finding.outcome != "kept":
            finding.outcome, finding.into, finding.refusal = "kept", [], refusal


def size_of(graph: Graph) -> Size:
    """Nodes, parameters, bytes of constants and norms of one graph."""
    constants = [value.const for value in graph.constants() if value.const is not None]
    return Size(
        nodes=len(graph.nodes),
        parameters=sum(const.size for const in constants if const.dtype.kind not in "biu"),
        bytes=sum(const.nbytes for const in constants),
        norms=len(find_norms(graph)),
    )
