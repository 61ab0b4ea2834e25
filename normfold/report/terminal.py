"""The report on the terminal.  It degrades: narrow windows lose columns, no colour where there is none, ASCII where needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normfold.record import Finding, Record, Size, Timing
from normfold.report.recurrent import DRAWBACK, UNROLLED, groups
from normfold.report.words import (
    bytes_text,
    difference,
    failure_sentence,
    gate_sentence,
    latency_sentence,
    seconds_text,
    shown,
    verification_word,
)

_STYLES = {"deleted": "green", "shift": "yellow", "kept": "red"}
_OUTCOMES = {"deleted": "deleted", "shift": "shift left", "kept": "kept"}
_USUAL = {
    "batch": "BatchNormalization",
    "layer": "LayerNormalization",
    "instance": "InstanceNormalization",
    "group": "GroupNormalization",
    "rms": "RMSNormalization",
    "l2": "LpNormalization",
}
_VERDICTS = {"faster": "green", "slower": "red", "too noisy to tell": "yellow"}
_NARROW, _WIDE = 72, 100
_NAMED = 6  # layers named in a group


def render(record: Record, console: Console, *, planned: bool = False) -> None:
    """Print everything that `record` holds.  Names of the model are escaped, never interpreted.

    planned: nothing was done yet, the record says what would be (`normfold inspect`).
    """
    _header(record, console)
    _norms(record, console, planned)
    _kept(record, console)
    _recurrent(record, console)
    _sizes(record, console, planned)
    _inserted(record, console)
    _others(record, console, planned)
    if not planned:
        _verification(record, console)
    _latency(record.timings, console)
    _lines("Warnings", record.warnings, console, "yellow")
    _outputs(record, console, planned)


def _print(console: Console, text: Text | str, indent: int = 0) -> None:
    body = text if isinstance(text, Text) else Text(shown(text))
    console.print(Padding(body, (0, 0, 0, indent), expand=False))


def _title(console: Console, text: str, note: str = "") -> None:
    console.print()
    line = Text(text, style="bold")
    if note:
        line.append(f"  {note}", style="not bold")
    console.print(line)


def _lines(title: str, lines: Iterable[str], console: Console, style: str = "") -> None:
    texts = list(lines)
    if texts:
        _title(console, title)
        for line in texts:
            _print(console, Text(shown(line), style=style), 2)


def _header(record: Record, console: Console) -> None:
    line = Text(shown(record.source) or "model", style="bold")
    if record.objective:
        line.append(f"  objective {record.objective}", style="not bold")
    console.print(line)
    facts = [f"sha256 {record.source_sha256[:16]}"] if record.source_sha256 else []
    facts += [f"{name} {version}" for name, version in record.versions.items()]
    if facts:
        _print(console, Text(", ".join(facts), style="dim"), 2)
    for note in record.notes:
        _print(console, note, 2)


# ---- norms --------------------------------------------------------------------------------------------------------------


def _norms(record: Record, console: Console, planned: bool) -> None:
    findings = record.findings
    if not findings:
        _title(console, "Normalization layers", "none found")
        return
    counts = Counter(item.outcome for item in findings)
    summary = ", ".join(f"{counts[name]} {_OUTCOMES[name]}" for name in _OUTCOMES if counts[name])
    _title(console, "Normalization layers", f"{len(findings)}: {'`normfold optimize` gives ' if planned else ''}{summary}")
    rows = _alike(findings)
    if console.width < _NARROW:
        for item, times in rows:
            _print(console, _brief(item, times), 2)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("layer", overflow="fold", ratio=3)
    table.add_column("kind", no_wrap=True)
    wide = console.width >= _WIDE
    axes = wide and any(item.axes for item in findings)
    if axes:
        table.add_column("axes", no_wrap=True)
    table.add_column("channels", justify="right", no_wrap=True)
    remarks = any(item.health for item in findings)
    if remarks and wide:
        table.add_column("remarks", overflow="fold", ratio=3)
    table.add_column("would be" if planned else "outcome", overflow="fold", ratio=4)
    for item, times in rows:
        cells = [Text(_name(item, times)), Text(_kind(item))]
        if axes:
            cells.append(Text(",".join(map(str, item.axes))))
        cells.append(Text(str(item.channels) if item.channels else "?"))
        if remarks and wide:
            cells.append(Text(shown("; ".join(item.health))))
        cells.append(_outcome(item))
        table.add_row(*cells)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if remarks and not wide:
        for item, _ in rows:
            if item.health:
                _print(console, f"{item.name}: {'; '.join(item.health)}", 2)


def _alike(findings: list[Finding]) -> list[tuple[Finding, int]]:
    """Layers of which nothing differs, once, with how often they came: a layer that every step of a recurrence applies."""
    found: dict[tuple[object, ...], tuple[Finding, int]] = {}
    for item in findings:
        key = (item.name, _kind(item), item.axes, item.channels, tuple(item.health), _outcome(item).plain)
        found[key] = (item, found[key][1] + 1 if key in found else 1)
    return list(found.values())


def _name(item: Finding, times: int) -> str:
    return f"{shown(item.name)}, {times} times" if times > 1 else shown(item.name)


def _kind(item: Finding) -> str:
    """``batch``; with the op where it is not the usual one."""
    return item.kind if item.op == _USUAL.get(item.kind) else f"{item.kind} ({shown(item.op)})"


def _outcome(item: Finding) -> Text:
    text = Text(_OUTCOMES[item.outcome], style=_STYLES[item.outcome])
    if item.outcome == "kept":
        return text.append(f": {item.refusal.code}" if item.refusal else "", style="default")
    into = "scale into" if item.outcome == "shift" else "into"
    return text.append(f", {into} {_parameters(item.into)}" if item.into else "", style="default")


def _parameters(names: list[str]) -> str:
    """``conv1.weight, bias``: a module path that repeats is left out."""
    parts: list[str] = []
    last = None
    for name in names:
        module, dot, leaf = shown(name).rpartition(".")
        parts.append(leaf if dot and module == last else shown(name))
        last = module if dot else None
    return ", ".join(parts)


def _brief(item: Finding, times: int) -> Text:
    text = Text(f"{_name(item, times)}: {_kind(item)}" + (f", {item.channels} channels" if item.channels else ""))
    text.append(", ").append_text(_outcome(item))
    if item.health:
        text.append(f" ({shown('; '.join(item.health))})")
    return text


def _kept(record: Record, console: Console) -> None:
    """Reason and remedy of what was not deleted, equal ones together."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for item in record.findings:
        if item.refusal is not None and item.outcome != "deleted":
            reasons = groups.setdefault((item.refusal.code, item.refusal.fix), {})
            reasons.setdefault(item.refusal.reason, []).append(shown(item.name))
    if not groups:
        return
    _title(console, "Why layers are left")
    for (code, fix), reasons in groups.items():
        _print(console, Text.assemble((code, "bold"), f" ({sum(map(len, reasons.values()))})"), 2)
        for reason, names in reasons.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            _print(console, f"{', '.join(names[:_NAMED])}{more}: {reason}", 4)
        if fix:
            _print(console, Text.assemble(("what to do: ", "dim"), shown(fix)), 4)


def _recurrent(record: Record, console: Console) -> None:
    """Where norms stand on recurrent paths, why that matters, what was or can be done."""
    found = groups(record.findings)
    if not found:
        return
    _title(console, "Recurrent paths")
    for (where, what), names in found.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        _print(console, f"{', '.join(map(shown, names[:_NAMED]))}{more}: {where}", 2)
        if what:
            _print(console, what, 4)
    if any(item.recurrence is not None and item.kind == "batch" for item in record.findings):
        _print(console, Text(DRAWBACK, style="dim"), 2)
    if any(item.recurrence is not None and item.recurrence.place == "inside" for item in record.findings):
        _print(console, Text(UNROLLED, style="dim"), 2)


# ---- numbers ------------------------------------------------------------------------------------------------------------


def _sizes(record: Record, console: Console, planned: bool) -> None:
    before, after = record.before, record.after
    if before is None:
        return
    _title(console, "Size")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    table.add_column("before" if after else "", justify="right", no_wrap=True)
    if after is not None:
        table.add_column("would be" if planned else "after", justify="right", no_wrap=True)
        table.add_column("change", justify="right", no_wrap=True)
    for label, old, new in _rows(before, after):
        cells = [label, bytes_text(old) if label == "weights" else f"{old:,}"]
        if new is not None:
            cells += [bytes_text(new) if label == "weights" else f"{new:,}", _change(label, old, new)]
        table.add_row(*(Text(cell) for cell in cells))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _rows(before: Size, after: Size | None) -> list[tuple[str, int, int | None]]:
    fields = (("nodes", "nodes"), ("parameters", "parameters"), ("weights", "bytes"), ("norms", "norms"))
    return [(label, getattr(before, name), getattr(after, name) if after else None) for label, name in fields]


def _change(label: str, old: int, new: int) -> str:
    text = difference(old, new)
    return (
        text.replace(f"{new - old:+,}", f"{'+' if new > old else '-'}{bytes_text(abs(new - old))}")
        if label == "weights"
        else text
    )


def _inserted(record: Record, console: Console) -> None:
    if record.inserted:
        parts = ", ".join(f"{count} {kind}" for kind, count in sorted(record.inserted.items()))
        _title(console, "Inserted nodes", parts)


def _others(record: Record, console: Console, planned: bool) -> None:
    """What was done beside the norms that have a row of their own."""
    names = {item.name for item in record.findings}
    done = [item for item in record.applied if item.target not in names and item.rule != "tidy"]
    lines = [f"{item.rule}, {item.target}: {item.detail}" for item in done[:_NAMED]]
    if len(done) > _NAMED:
        lines.append(f"and {len(done) - _NAMED} more")
    _lines("Would be rewritten beside them" if planned else "Rewritten beside them", lines, console)


def _verification(record: Record, console: Console) -> None:
    if not record.comparisons:
        _title(console, "Verification", "not made: nothing is known of the result's function")
        return
    failed = [item for item in record.comparisons if not item.passed]
    _title(console, "Verification", verification_word(record.comparisons))
    gates: dict[str, list[int]] = {}
    for index, item in enumerate(record.comparisons):
        gates.setdefault(item.gate, []).append(index)
    for gate, indices in gates.items():
        _print(console, gate_sentence(gate, [record.comparisons[index] for index in indices]), 2)
    if failed:
        _print(console, Text(f"first failure: {failure_sentence(failed[0])}", style="red"), 2)


def _latency(timings: list[Timing], console: Console) -> None:
    if not timings:
        return
    _title(console, "Latency")
    for timing in timings:
        _print(console, Text(latency_sentence(timing), style=_VERDICTS.get(timing.verdict, "")), 2)


def _outputs(record: Record, console: Console, planned: bool) -> None:
    if record.outputs:
        _title(console, "Written")
        for path, digest in record.outputs.items():
            _print(console, Text.assemble(shown(path), (f"  sha256 {digest[:16]}" if digest else "", "dim")), 2)
    elif not planned:
        _title(console, "Nothing was written")
    if record.seconds:
        stages = ", ".join(f"{name} {seconds_text(value)}" for name, value in record.seconds.items())
        console.print()
        _print(console, Text(f"{seconds_text(sum(record.seconds.values()))}: {stages}", style="dim"))
