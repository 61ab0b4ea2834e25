"""What `normfold swap`, its advice and `normfold recalibrate` print: what was exchanged and, always, what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normfold.record import Record
from normfold.report.words import latency_sentence, plural, seconds_text, shown
from normfold.swap.result import Advice, Left, Metric, Recalibrated, Swapped

DRAWBACKS = {
    1: "BatchNorm's stored statistics do not fit the data",
    2: "norms cost time at inference",
    3: "BatchNorm in a recurrent network",
    4: "norms lose detail in generators",
    5: "norms destabilise discriminators",
    6: "gamma and beta that do nothing",
}
_WHAT = {"accuracy": "accuracy", "agreement": "decisions as the original's", "drift": "drift of the outputs"}


def render(result: Swapped, console: Console) -> None:
    """Print a swap.  Names of the model are escaped, never interpreted."""
    record = result.record
    _head(record, f"swap to {result.to}", console)
    if result.replaced:
        _title(console, "Norms exchanged", str(len(result.replaced)))
        table = _table("norm", "was", "is", "calls", "error at first", "now")
        for item in result.replaced:
            now = f"{item.now['kind']}" + (f", {plural(item.now['groups'], 'group')}" if item.now.get("groups") else "")
            table.add_row(
                *(Text(shown(cell)) for cell in (" = ".join(item.names), item.was, now, str(item.calls))),
                *(Text(_percent(100 * error)) for error in (item.start, item.fitted)),
            )
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
        _line(console, "error: of the norm's output where all in front of it is as in the original, of its standard deviation", 2)
    _left(result.left, console)
    if result.metric is not None:
        _cost(result, result.metric, console)
    _tail(
        record,
        console,
        "the original's norms, where they can go exactly, cost nothing after `normfold optimize`: compare that too",
    )


def metric_sentence(metric: Metric, start: Metric | None = None) -> str:
    """Before and after in one line."""
    if metric.measure == "drift":
        first = f"{_percent(start.after)} with the first guess, " if start else ""
        return f"{_WHAT['drift']}, as a part of their standard deviation: {first}{_percent(metric.after)} now"
    before = f"{metric.before:.2f} % before, " if metric.measure == "accuracy" else ""
    first = f"{start.after:.2f} % with the first guess, " if start else ""
    return f"{_WHAT[metric.measure]}: {before}{first}{metric.after:.2f} % now"


def loss_sentence(metric: Metric) -> str:
    """What was lost or gained, decision by decision."""
    if metric.measure == "drift":
        return f"{_percent(metric.lost)} are counted as lost points: without labels or class scores nothing better is known"
    change = "no point lost" if metric.lost == 0 else f"{abs(metric.lost):.2f} points {'lost' if metric.lost > 0 else 'gained'}"
    margin = f" (+-{metric.margin:.2f} at 95 %)" if metric.margin is not None else ""
    if metric.measure == "agreement":
        return f"at most {metric.lost:.2f} points lost{margin}: {metric.broken} of {metric.samples} decisions differ"
    return f"{change}{margin}: {metric.broken} decisions became wrong, {metric.fixed} right"


def _cost(result: Swapped, metric: Metric, console: Console) -> None:
    _title(console, "What it costs", f"on {plural(metric.samples, 'decision')} that were not fitted: {shown(metric.held_out)}")
    _line(console, metric_sentence(metric, result.start), 2)
    style = "green" if result.allowed else "red"
    console.print(Padding(Text(loss_sentence(metric), style=style), (0, 0, 0, 2), expand=False))
    if metric.measure != "drift":
        _line(console, f"{_WHAT['drift']}: {_percent(100 * result.drift)} of their standard deviation", 2)
    fitted = f"fitted to the original's outputs on {plural(result.fitted_on, 'sample')} without labels"
    _line(
        console, f"This is another function than the original's, {fitted}; what it does on other kinds of input is not known.", 2
    )


def render_advice(found: Sequence[Advice], left: Sequence[Left], record: Record, console: Console) -> None:
    """Print which remedy fits which norm; equal remedies for an equal reason together."""
    _head(record, "which norm fits which remedy", console)
    groups: dict[tuple[int, str, str], list[str]] = {}
    for item in found:
        groups.setdefault((item.drawback, item.remedy, item.why), []).append(item.name)
    if not groups:
        _title(console, "Nothing to advise", "no norm that could be exchanged was found")
    for number in sorted({key[0] for key in groups}):
        _title(console, f"{number}. {DRAWBACKS[number]}")
        for (drawback, remedy, why), names in groups.items():
            if drawback == number:
                _line(console, f"{', '.join(names)}: {why}", 2)
                console.print(Padding(Text.assemble(("remedy: ", "dim"), shown(remedy)), (0, 0, 0, 4), expand=False))
    _left(left, console)
    _tail(record, console)


def render_recalibrated(result: Recalibrated, console: Console) -> None:
    """Print new statistics against the stored ones."""
    _head(result.record, "recalibrate", console)
    _title(console, "Statistics renewed", f"{plural(len(result.layers), 'layer')} on {plural(result.fitted_on, 'sample')}")
    table = _table("norm", "channels", "mean moved by", "variance times", "KL, mean and worst")
    for item in result.layers:
        cells = (
            item.name,
            str(item.channels),
            f"{item.shift:.3g} deviations",
            f"{item.low:.3g} to {item.high:.3g}",
            f"{item.divergence:.3g}, {item.worst:.3g}",
        )
        table.add_row(*(Text(shown(cell)) for cell in cells))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if result.metric is not None:
        _title(console, "What it costs", f"on {plural(result.metric.samples, 'decision')} of {shown(result.metric.held_out)}")
        _line(console, metric_sentence(result.metric), 2)
        _line(console, loss_sentence(result.metric), 2)
    _line(console, "This is another function than the original's.", 2)
    _left(result.left, console)
    _tail(result.record, console)


# ---- parts ---------------------------------------------------------------------------------------------------------------


def _head(record: Record, what: str, console: Console) -> None:
    console.print(Text.assemble((shown(record.source) or "model", "bold"), f"  {what}"))
    facts = [f"sha256 {record.source_sha256[:16]}"] if record.source_sha256 else []
    facts += [f"{name} {version}" for name, version in record.versions.items()]
    if facts:
        console.print(Padding(Text(", ".join(facts), style="dim"), (0, 0, 0, 2), expand=False))
    for note in record.notes:
        _line(console, note, 2)


def _tail(record: Record, console: Console, timed: str = "") -> None:
    if record.timings:
        _title(console, "Latency")
        for timing in record.timings:
            _line(console, latency_sentence(timing), 2)
        if timed:
            _line(console, timed, 2)
    if record.warnings:
        _title(console, "Warnings")
        for warning in record.warnings:
            console.print(Padding(Text(shown(warning), style="yellow"), (0, 0, 0, 2), expand=False))
    if record.outputs:
        _title(console, "Written")
        for path, digest in record.outputs.items():
            console.print(Padding(Text.assemble(shown(path), (f"  sha256 {digest[:16]}", "dim")), (0, 0, 0, 2), expand=False))
    if record.seconds:
        stages = ", ".join(f"{name} {seconds_text(value)}" for name, value in record.seconds.items())
        console.print()
        console.print(Text(f"{seconds_text(sum(record.seconds.values()))}: {stages}", style="dim"))


def _left(left: Sequence[Left], console: Console) -> None:
    if left:
        _title(console, "Norms that are left")
        for item in left:
            _line(console, f"{item.name} ({item.refusal.code}): {item.refusal.reason}; {item.refusal.fix}", 2)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for place, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=place > 0)
    return table


def _title(console: Console, text: str, note: str = "") -> None:
    console.print()
    console.print(Text.assemble((text, "bold"), f"  {note}" if note else ""))


def _line(console: Console, text: str, indent: int) -> None:
    console.print(Padding(Text(shown(text)), (0, 0, 0, indent), expand=False))


def _percent(value: float) -> str:
    return f"{value:.3g} %"
