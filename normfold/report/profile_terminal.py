"""A profile on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normfold.profile.result import Layer, ModelProfile, NormCost, ProfileReport
from normfold.record import Timing
from normfold.report import profile_words as words
from normfold.report.words import bytes_text, plural, seconds_text, shown
from normfold.report.words import latency_sentence as compared

ROWS = 15  # layers and norms shown without -v
_VERDICTS = {"within": "green", "over": "red", "cannot tell": "yellow"}


def render(report: ProfileReport, console: Console, *, every: bool = False) -> None:
    """Print a profile.  every: leave out no layer and no norm.  Names of the model are escaped."""
    _model(report.model, console, every)
    if report.against is not None:
        _against(report.model, report.against, report.comparison, console)
    if report.budgets:
        _title(console, "Budget")
        for budget in report.budgets:
            _line(console, Text(words.budget_sentence(budget), style=_VERDICTS[budget.verdict]))


def _model(profile: ModelProfile, console: Console, every: bool) -> None:
    level, inputs = profile.deployed, ", ".join(f"{k} {'x'.join(map(str, v)) or 'scalar'}" for k, v in profile.inputs.items())
    console.print(Text(shown(profile.source) or "model", style="bold"))
    _line(console, f"{bytes_text(profile.bytes)}, {plural(profile.nodes, 'node')}, input {inputs}, sha256 {profile.sha256[:16]}")
    _line(console, words.setting_sentence(profile.setting, profile.machine))
    _line(console, words.machine_sentence(profile.machine))
    _line(console, words.peaks_sentence(profile.machine))
    _line(console, ", ".join(f"{name} {version}" for name, version in profile.machine.versions.items()), style="dim")
    for note in profile.notes:
        _line(console, note, style="dim")

    _title(console, "Latency")
    _line(console, words.latency_sentence(profile.latency))
    _line(console, words.runs_sentence(profile.latency))
    _line(console, words.noise_sentence(profile), style="yellow" if profile.noisy else "")
    _line(console, f"cold start: {words.cold_sentence(profile)}")

    _title(console, "Where the time goes")
    _line(console, words.reconciled_sentence(level))
    _line(console, words.profiler_sentence(level))
    _line(console, words.mapped_sentence(level))
    _line(console, words.parallel_sentence(level))
    _layers(level.layers, console, every)

    _title(console, "Normalization")
    _line(console, profile.sentence, style="bold")
    _norms(profile.norms, console, every)


def _against(profile: ModelProfile, other: ModelProfile, timing: Timing | None, console: Console) -> None:
    _title(console, "Against", shown(other.source))
    if timing is not None:
        style = {"faster": "green", "slower": "red", "too noisy to tell": "yellow"}.get(timing.verdict, "")
        _line(console, Text(compared(timing), style=style))
    table = _table(console, ("", "left"), ("before", "right"), ("after", "right"))
    for name, before, after in comparison_rows(other, profile):
        table.add_row(name, before, after)
    _show(console, table)
    changes = layer_changes(other, profile)
    if changes:
        table = _table(console, ("layer", "left"), ("before", "right"), ("after", "right"), ("change", "right"))
        for name, before, after in changes[:ROWS]:
            table.add_row(Text(shown(name)), seconds_text(before), seconds_text(after), _signed(after - before))
        _show(console, table)


def comparison_rows(before: ModelProfile, after: ModelProfile) -> list[tuple[str, str, str]]:
    """What stands beside each other of two models."""

    def row(profile: ModelProfile) -> dict[str, str]:
        level, cold = profile.deployed, profile.cold
        return {
            "median": seconds_text(profile.latency.median),
            "kernels": f"{len(level.kernels):,}",
            "normalization": words.percent(level.norms),
            "normalization, optimisation off": words.percent(profile.off.norms),
            "norms that run": f"{sum(item.fate == 'own kernel' for item in profile.norms):,}",
            "critical path": seconds_text(level.parallel.critical),
            "size": bytes_text(profile.bytes),
            "load and first run": seconds_text(cold.loaded + cold.first),
            "peak memory": "unknown" if cold.peak is None else bytes_text(cold.peak),
        }

    first, second = row(before), row(after)
    return [(name, value, second[name]) for name, value in first.items()]


def layer_changes(before: ModelProfile, after: ModelProfile) -> list[tuple[str, float, float]]:
    """(layer, seconds before, seconds after) of the layers of either, the largest change first."""
    first = {layer.name: layer.seconds for layer in before.deployed.layers}
    second = {layer.name: layer.seconds for layer in after.deployed.layers}
    rows = [(name, first.get(name, 0.0), second.get(name, 0.0)) for name in dict.fromkeys((*first, *second))]
    return sorted(rows, key=lambda item: -abs(item[2] - item[1]))


def _layers(layers: Sequence[Layer], console: Console, every: bool) -> None:
    table = _table(
        console,
        ("layer", "left"),
        ("time", "right"),
        ("share", "right"),
        ("kernels", "left"),
        ("bound by", "left"),
        ("of peak", "right"),
        ("slack", "right"),
    )
    for layer in layers if every else layers[:ROWS]:
        table.add_row(
            Text(shown(layer.name)),
            seconds_text(layer.seconds),
            words.percent(layer.share),
            Text(shown(", ".join(layer.ops))),
            layer.bound,
            "" if layer.attained is None else f"{100 * layer.attained:.0f} %",
            "critical" if layer.critical else seconds_text(layer.slack),
        )
    _show(console, table)
    _more(console, len(layers), every, "layer", sum(layer.share for layer in layers[ROWS:]))


def _norms(rows: Sequence[NormCost], console: Console, every: bool) -> None:
    if not rows:
        return
    table = _table(console, ("norm", "left"), ("kind", "left"), ("off", "right"), ("now", "right"), ("what to do", "left"))
    for row in rows if every else rows[:ROWS]:
        off = "" if row.off is None else seconds_text(row.off)
        table.add_row(Text(shown(row.name)), row.kind, off, seconds_text(row.now) if row.now else "-", Text(shown(row.action)))
    _show(console, table)
    _more(console, len(rows), every, "norm", sum(row.share for row in rows[ROWS:]))


def _more(console: Console, count: int, every: bool, what: str, share: float) -> None:
    if not every and count > ROWS:
        _line(
            console, f"and {plural(count - ROWS, what)} more with {words.percent(share)} of the time (-v shows all)", style="dim"
        )


def _table(console: Console, *columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for index, (name, justify) in enumerate(columns):
        last = index == len(columns) - 1 and justify == "left"
        fold = index == 0 or last
        table.add_column(
            name,
            justify="right" if justify == "right" else "left",
            overflow="fold" if fold else "ellipsis",
            no_wrap=not fold,
            ratio=2 if last else None,
        )
    return table


def _show(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _title(console: Console, text: str, note: str = "") -> None:
    console.print()
    console.print(Text.assemble((text, "bold"), f"  {note}" if note else ""))


def _line(console: Console, text: Text | str, style: str = "") -> None:
    body = text if isinstance(text, Text) else Text(shown(text), style=style)
    console.print(Padding(body, (0, 0, 0, 2), expand=False))


def _signed(seconds: float) -> str:
    return f"{'+' if seconds >= 0 else '-'}{seconds_text(abs(seconds))}"


def render_audit(reports: Mapping[str, ProfileReport], failed: Mapping[str, str], console: Console) -> None:
    """One line a model, and every file that could not be measured with the reason."""
    table = _table(
        console, ("model", "left"), ("median", "right"), ("size", "right"), ("norms", "right"), ("off", "right"), ("now", "right")
    )
    for path, report in reports.items():
        model = report.model
        table.add_row(
            Text(shown(path)),
            seconds_text(model.latency.median) + (" (noisy)" if model.noisy else ""),
            bytes_text(model.bytes),
            f"{len(model.norms)}",
            words.percent(model.off.norms),
            words.percent(model.deployed.norms),
        )
    _show(console, table)
    if failed:
        _title(console, "Not measured", plural(len(failed), "file"))
        for path, reason in failed.items():
            _line(console, f"{path}: {reason}")
