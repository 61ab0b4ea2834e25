"""The index of an audit: all models on one page, and what could not be measured with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normfold.profile.result import ProfileReport
from normfold.report import profile_words as words
from normfold.report.html_parts import Cell, escaped, frame, paragraph, section, table
from normfold.report.profile_json import SCHEMA, headline
from normfold.report.words import bytes_text, plural, seconds_text

_COLUMNS = [
    ("model", False),
    ("median", True),
    ("load and first run", True),
    ("size", True),
    ("peak memory", True),
    ("norms", True),
    ("run", True),
    ("share, off", True),
    ("share now", True),
    ("slowest layer", False),
    ("what folding gains", False),
    ("budget", False),
]


def index_fields(reports: Mapping[str, ProfileReport], failed: Mapping[str, str]) -> dict[str, Any]:
    """The index as plain types: {"schema", "models": {path: numbers}, "failed": {path: reason}}."""
    models = {
        path: {**headline(report.model), "budgets": {item.measure: item.verdict for item in report.budgets}}
        for path, report in reports.items()
    }
    return {"schema": SCHEMA, "models": models, "failed": dict(failed)}


def index_page(reports: Mapping[str, ProfileReport], failed: Mapping[str, str], files: Mapping[str, str], folder: Path) -> str:
    """The page.  files: path of a model -> name of its JSON file in `folder`, beside which its own page may lie."""
    rows: list[list[Cell]] = []
    styles: list[str] = []
    for path, report in reports.items():
        row, name = headline(report.model), files[path]
        own = Path(name).with_suffix(".html").name
        verdicts = [item.verdict for item in report.budgets]
        worst = next((word for word in ("over", "cannot tell", "within") if word in verdicts), "")
        rows.append(
            [
                Cell(path, href=own if (folder / own).exists() else name),
                Cell(seconds_text(row["median"]) + (" (noisy)" if row["noisy"] else ""), row["median"]),
                Cell(seconds_text(row["cold"]), row["cold"]),
                Cell(bytes_text(row["bytes"]), row["bytes"]),
                Cell("unknown" if row["peak"] is None else bytes_text(row["peak"]), row["peak"] or 0),
                Cell(str(row["norms"]), row["norms"]),
                Cell(str(row["norms_now"]), row["norms_now"]),
                Cell(words.percent(row["share_off"]), row["share_off"]),
                Cell(words.percent(row["share_now"]), row["share_now"]),
                Cell(row["slowest"]),
                Cell(row["sentence"], style="said"),
                Cell(worst),
            ]
        )
        styles.append(worst.replace(" ", "-"))
    machines = {words.machine_sentence(report.model.machine): None for report in reports.values()}
    settings = {words.setting_sentence(report.model.setting, report.model.machine): None for report in reports.values()}
    body = f"<h1>{escaped('Audit')}</h1>" + "".join(paragraph(line, "dim") for line in (*settings, *list(machines)[:1]))
    body += section(plural(len(rows), "model"), table("models", _COLUMNS, rows, styles))
    if failed:
        cells = [[Cell(path), Cell(reason)] for path, reason in failed.items()]
        body += section(
            f"{plural(len(cells), 'file')} not measured", table("failed", [("file", False), ("reason", False)], cells)
        )
    return frame("normfold audit", body, wide=True)
