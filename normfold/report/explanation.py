"""What `normfold explain` prints: one norm after the other, each with its way out or with what stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from normfold.pipeline.explaining import Explanation
from normfold.report.words import plural, shown
from normfold.rewrites.trace import Absorbed, Hop, Range, Region, Stop, Trace

ROWS = 6  # of each list, without -v
HOPS = 5  # steps of a path named without -v

_STYLES = {"deleted": "green", "shift": "yellow", "kept": "red"}
_OUTCOMES = {"deleted": "would be deleted", "shift": "would leave its shift behind (an addition)", "kept": "would be kept"}
_SIDES = {"input": "In front of it", "output": "Behind it"}
_DEMANDS = {
    "graph-input": "comes from outside, as it is",
    "graph-output": "must keep its values",
    "precision": "reads the same tensor and would lose bits",
    "captured": "hands it to a sub-graph, which reads it by name",
    "shared-weight": "has a weight that something else reads too and cannot fold",
    "computed-weight": "has a weight that is computed when the model runs",
    "kept": "was kept, and takes no other gauge than it has",
    "no-rule": "lets no scale or shift per channel pass",
    "sign": "needs a positive scale",
    "activation": "does not commute with a shift",
    "zero-padding": "pads with zeros, which would not be shifted",
    "transposed-conv": "spreads a constant unevenly",
    "gate": "multiplies by a gate: a shift there would be multiplied with it",
    "sum": "sums: a shift would be counted as often as there are terms",
    "needs-bias": "has no bias that could make or take a shift",
    "pool-indices": "gives indices that are used",
    "resize-extrapolation": "fills in a constant, which would not be shifted",
    "other-scale": "goes too, and needs another scale on the same tensors",
    "one-scale": "needs one scale on tensors between which the norm puts its own",
    "other-shift": "goes too, and needs another shift on the same tensors",
}


def render(found: Sequence[Explanation], console: Console, *, every: bool = False) -> None:
    """Print explanations; every: leave out nothing, however long the lists are.  Names of the model are escaped."""
    for index, (item, times) in enumerate(_alike(found)):
        if index:
            console.print()
        _one(item, times, console, every)


def _alike(found: Sequence[Explanation]) -> list[tuple[Explanation, int]]:
    """Norms of which the same is to be said, once, with how often they came: a layer that every step of a loop applies."""
    rows: dict[object, tuple[Explanation, int]] = {}
    for index, item in enumerate(found):
        key = index if item.trace is not None else (repr(replace(item.finding, node="")), repr(item.others))
        rows[key] = item, rows[key][1] + 1 if key in rows else 1
    return list(rows.values())


def _one(item: Explanation, times: int, console: Console, every: bool) -> None:
    finding, trace = item.finding, item.trace
    head = Text(shown(finding.name) + (f", {times} times" if times > 1 else ""), style="bold")
    head.append(f"  {shown(finding.op)}" + (f", {plural(finding.channels, 'channel')}" if finding.channels else ""), "not bold")
    _print(console, head)
    outcome = Text(_OUTCOMES[finding.outcome], style=_STYLES[finding.outcome])
    if finding.refusal is not None and finding.outcome != "deleted":
        outcome.append(f": {finding.refusal.code}", "default")
    _print(console, outcome, 2)
    if trace is not None:
        _print(console, f"y = a x + c with a {_between(trace.a)}{_oddities(trace)}, c {_between(trace.c)}", 2)
    for remark in finding.health:
        _print(console, remark, 2)
    if finding.into and (trace is None or not trace.absorbed):
        _print(console, f"taken up by {_some(finding.into, every)}", 2)
    for applied in item.others:
        _print(console, f"before that, {applied.rule}: {applied.detail}", 2)
    if trace is not None and (trace.regions or trace.absorbed):
        _journey(trace, console, every)
    if finding.refusal is not None and finding.outcome != "deleted":
        _title(console, "What stops its shift" if finding.outcome == "shift" else "What stops it")
        _print(console, finding.refusal.reason, 2)
        if trace is not None:
            _conflict(trace, console, every)
        _print(console, Text.assemble(("what to do: ", "dim"), shown(finding.refusal.fix)), 2)


def _oddities(trace: Trace) -> str:
    parts = [f"{word} in {count}" for word, count in (("negative", trace.negative), ("zero", trace.zero)) if count]
    return f" ({', '.join(parts)} of {trace.channels})" if parts else ""


def _journey(trace: Trace, console: Console, every: bool) -> None:
    _title(console, "Where scale and shift go")
    for region in trace.regions[: None if every else ROWS]:
        _print(console, _region(region, every), 2)
    if trace.partners:
        _print(console, f"on the same tensors, deleted with it: {_some(trace.partners, every)}", 2)
    ops: dict[tuple[str, str, str], list[Absorbed]] = {}
    for item in trace.absorbed:
        ops.setdefault((item.op, item.name, item.role), []).append(item)
    if ops:
        _title(console, "What takes them up")
    for (op, name, role), items in list(ops.items())[: None if every else ROWS]:
        verb = {"writes": "makes", "reads": "reads", "passes": "passes on"}[role]
        end = items[0].path[-1].tensor if items[0].path else f"its {items[0].side}"
        _print(console, Text.assemble((shown(f"{op} ({name})"), "bold"), shown(f" {verb} {end}")), 2)
        _print(console, "; ".join(_change(item, name) for item in items), 4)
        if items[0].path:
            _print(console, Text(shown(_way(items[0].path, every)), style="dim"), 4)
    if not every and len(ops) > ROWS:
        _print(console, f"and {plural(len(ops) - ROWS, 'operation')} more (-v shows all)", 2)


def _change(item: Absorbed, name: str) -> str:
    """``weight times [0.5, 2]``, by the last part of the name where the rest is the operation's own."""
    parameter = item.parameter.removeprefix(f"{name}.")
    parts = [f"times {_span(item.factor)}"] if item.factor is not None else []
    parts += [f"plus {_span(item.offset)}"] if item.offset is not None else []
    return f"{parameter} {', '.join(parts) or 'plus what is computed at run time'}"


def _region(region: Region, every: bool) -> str:
    where = {"input": "its input", "output": "its output"}[region.side]
    where = f"{where}, beyond {region.beyond}" if region.beyond else where
    text = f"{where}: {plural(len(region.tensors), 'tensor')} stored times {_span(region.scale)}, plus {_span(region.shift)}"
    return f"{text}; passed on by {_some(region.ops, every)}" if region.ops else text


def _conflict(trace: Trace, console: Console, every: bool) -> None:
    if trace.lost is not None:
        _print(console, f"the shift would be {_span(trace.lost)} times the size of its input {_channels(trace)}", 2)
    elif trace.conflicts:
        what = {"magnitude": "the scales contradict", "sign": "the signs contradict", "shift": "the shifts contradict"}
        _print(console, f"{what.get(trace.stage, 'this is so')} {_channels(trace)}", 2)
    for side in ("input", "output"):
        stops = [stop for stop in trace.stops if stop.side == side]
        if stops:
            one = f", {_kind(trace)} {trace.first[0]}" if trace.conflicts > 1 and trace.lost is None else ""
            _print(console, f"{_SIDES[side]}{one}:", 2)
        for stop in stops if every else stops[:ROWS]:
            _print(console, _stop(stop), 4)
            _print(console, Text(shown(_way(stop.path, every)) if stop.path else "directly", style="dim"), 6)


def _stop(stop: Stop) -> Text:
    who = f"{stop.op} ({stop.name})" if stop.op else stop.subject
    text = Text(shown(who), style="bold")
    return text.append(f" {_DEMANDS.get(stop.code, f'asks for it: {stop.code}')}", "not bold")


def _channels(trace: Trace) -> str:
    more = ", ..." if trace.conflicts > len(trace.first) else ""
    return f"in {trace.conflicts} of {plural(trace.of, _kind(trace))}: {', '.join(map(str, trace.first))}{more}"


def _kind(trace: Trace) -> str:
    return "channel" if trace.of == trace.channels else "element"


def _way(path: Sequence[Hop], every: bool) -> str:
    """``through Relu (a) and Add (b)``; the middle of a long way is left out."""
    steps = [f"{hop.op} ({hop.name})" for hop in path]
    if len(steps) > HOPS and not every:
        steps = [*steps[: HOPS - 2], f"{len(steps) - HOPS + 1} more", steps[-1]]
    return f"through {', '.join(steps)}"


def _some(names: Sequence[str], every: bool) -> str:
    if every or len(names) <= ROWS:
        return ", ".join(names)
    return f"{', '.join(names[:ROWS])} and {len(names) - ROWS} more"


def _between(span: Range) -> str:
    return f"= {span.low:.4g}" if span.low == span.high else f"in {_span(span)}"


def _span(span: Range | None) -> str:
    """``[0.5, 2]``, one number where both ends are the same, nothing for None."""
    if span is None:
        return ""
    low, high = (f"{end + 0.0:.4g}" for end in span)  # no negative zero
    return low if low == high else f"[{low}, {high}]"


def _title(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def _print(console: Console, text: Text | str, indent: int = 0) -> None:
    body = text if isinstance(text, Text) else Text(shown(text))
    console.print(Padding(body, (0, 0, 0, indent), expand=False))
