"""A profile as one self-contained HTML file: nothing in it is fetched from a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normfold.export.atomic import write_files
from normfold.profile.result import Layer, ModelProfile, NormCost, ProfileReport
from normfold.report import profile_words as words
from normfold.report.html_charts import changes_chart, charts, script
from normfold.report.html_parts import Cell, chart, escaped, frame, paragraph, section, table
from normfold.report.profile_terminal import comparison_rows, layer_changes
from normfold.report.words import bytes_text, plural, seconds_text
from normfold.report.words import latency_sentence as compared

_MANY = 1500  # kernels beyond which shapes are painted, not kept as elements
_CHANGED = 20  # layers in the chart of before and after


def page(report: ProfileReport) -> str:
    """The page as text.  Raises UsageError where the chart library is not installed."""
    model = report.model
    specifications = charts(model)
    parts = [_head(model), _cards(model), section("Normalization", paragraph(model.sentence, "plain"), _norms(model.norms))]
    if report.budgets:
        lines = [paragraph(words.budget_sentence(item), item.verdict.replace(" ", "-")) for item in report.budgets]
        parts.append(section("Budget", *lines))
    if report.against is not None:
        rows = layer_changes(report.against, model)[:_CHANGED]
        specifications["changes"] = changes_chart(rows)
        said = [paragraph(compared(report.comparison), "plain")] if report.comparison is not None else []
        parts.append(section(f"Against {report.against.source}", *said, _beside(report.against, model), chart("changes")))
    level = model.deployed
    parts += [
        section(
            "Timeline of one run",
            paragraph(words.reconciled_sentence(level)),
            paragraph(words.profiler_sentence(level), "dim"),
            chart("timeline"),
        ),
        section(
            "Critical path on the graph",
            paragraph(words.parallel_sentence(level)),
            paragraph("First row, with dark borders: the critical path. Below it what could run beside it.", "dim"),
            chart("graph"),
        ),
        section("Layers", paragraph(words.mapped_sentence(level)), _layers(level.layers)),
        '<div class="pair">',
        section("Levels of the runtime", chart("levels")),
        section("Latency of single runs", chart("latency")),
        "</div>",
    ]
    renderer = "canvas" if len(level.kernels) > _MANY else "svg"
    return frame(f"{model.source} - normfold profile", "".join(parts), specifications, script=script(), renderer=renderer)


def write_page(report: ProfileReport, path: Path) -> None:
    """Write the page, whole or not at all.  Raises UsageError where that is not possible."""
    data = page(report).encode()
    write_files({path: lambda file: file.write(data)}, force=True)


def _head(model: ModelProfile) -> str:
    inputs = ", ".join(f"{name} {'x'.join(map(str, sizes)) or 'scalar'}" for name, sizes in model.inputs.items())
    lines = [
        f"{plural(model.nodes, 'node')}, input {inputs}, sha256 {model.sha256[:16]}",
        words.setting_sentence(model.setting, model.machine),
        words.machine_sentence(model.machine),
        words.peaks_sentence(model.machine),
        ", ".join(f"{name} {version}" for name, version in model.machine.versions.items()),
        *model.notes,
    ]
    return f"<h1>{escaped(model.source)}</h1>" + "".join(paragraph(line, "dim") for line in lines)


def _cards(model: ModelProfile) -> str:
    """The numbers that are looked for first."""
    latency, cold, level = model.latency, model.cold, model.deployed
    facts = [
        ("median", seconds_text(latency.median), words.runs_sentence(latency)),
        *((f"p{item.percent:g}", _bound(item.high), "upper bound") for item in latency.percentiles if item.percent != 50.0),
        ("load and first run", seconds_text(cold.loaded + cold.first), words.cold_sentence(model)),
        ("peak memory", "unknown" if cold.peak is None else bytes_text(cold.peak), "of a process that loads and runs it"),
        ("size", bytes_text(model.bytes), "with external data"),
        ("normalization", words.percent(level.norms), f"{words.percent(model.off.norms)} with optimisation off"),
        ("against itself", "too noisy" if model.noisy else "quiet", words.noise_sentence(model)),
    ]
    cards = "".join(
        f'<div class="card{" bad" if name == "against itself" and model.noisy else ""}" title="{escaped(title)}">'
        f"{escaped(name)}<b>{escaped(value)}</b></div>"
        for name, value, title in facts
    )
    return f'<div class="cards">{cards}</div>'


def _bound(value: float) -> str:
    return "too few runs" if value == float("inf") else f"≤ {seconds_text(value)}"


def _layers(layers: Sequence[Layer]) -> str:
    columns = [
        ("layer", False),
        ("time", True),
        ("share", True),
        ("kernels", False),
        ("bound by", False),
        ("of peak", True),
        ("Mflop", True),
        ("KiB", True),
        ("slack", True),
    ]
    rows = [
        [
            Cell(layer.name),
            Cell(seconds_text(layer.seconds), layer.seconds),
            Cell(words.percent(layer.share), layer.share),
            Cell(", ".join(layer.ops)),
            Cell(layer.bound),
            _maybe(layer.attained, lambda value: f"{100 * value:.0f} %"),
            _maybe(layer.flops, lambda value: f"{value / 1e6:,.2f}"),
            _maybe(layer.bytes, lambda value: f"{value / 1024:,.1f}"),
            Cell("critical" if layer.critical else seconds_text(layer.slack), 0.0 if layer.critical else layer.slack),
        ]
        for layer in layers
    ]
    styles = [
        " ".join(name for name, held in (("critical", layer.critical), ("norm", layer.norm > 0)) if held) for layer in layers
    ]
    return table("layers", columns, rows, styles)


def _maybe(value: float | None, text: object) -> Cell:
    assert callable(text)
    return Cell("", -1.0) if value is None else Cell(str(text(value)), value)


def _norms(rows: Sequence[NormCost]) -> str:
    if not rows:
        return ""
    columns = [("norm", False), ("kind", False), ("optimisation off", True), ("now", True), ("share", True), ("fate", False)]
    cells = [
        [
            Cell(row.name),
            Cell(row.kind),
            _maybe(row.off, seconds_text),
            Cell(seconds_text(row.now) if row.now else "-", row.now),
            Cell(words.percent(row.share), row.share),
            Cell(row.fate),
            Cell(row.action),
        ]
        for row in rows
    ]
    return table("norms", [*columns, ("what to do", False)], cells)


def _beside(before: ModelProfile, after: ModelProfile) -> str:
    rows = "".join(
        f'<tr><td>{escaped(name)}</td><td class="number">{escaped(old)}</td><td class="number">{escaped(new)}</td></tr>'
        for name, old, new in comparison_rows(before, after)
    )
    head = '<tr><th></th><th class="number">before</th><th class="number">after</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
