"""Pieces of HTML that the pages share: escaped text, tables that sort and filter, the frame with its styles and scripts."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from normfold.report.words import shown


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, and the number that it sorts by (None: it sorts by its text).

    href: where it leads.  style: a class of page.css.
    """

    text: str
    value: float | None = None
    href: str = ""
    style: str = ""


def escaped(text: str) -> str:
    """Names of the model are text, never markup."""
    return html.escape(shown(text))


def paragraph(text: str, style: str = "") -> str:
    """Text of its own; style: a class of page.css."""
    return f"<p{_style(style)}>{escaped(text)}</p>"


def section(title: str, *parts: str) -> str:
    """A box with a heading; parts are HTML already."""
    return f"<section><h2>{escaped(title)}</h2>{''.join(parts)}</section>"


def chart(name: str) -> str:
    """The place of a chart."""
    return f'<div id="chart-{name}"></div>'


def table(name: str, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Cell]], styles: Sequence[str] = ()) -> str:
    """A table with a search field.  columns: (title, whether it holds numbers).  styles: a class for each row."""
    heads = "".join(
        f'<th scope="col"{_style("number" if number else "")}><button type="button">{escaped(title)}</button></th>'
        for title, number in columns
    )
    body: list[str] = []
    for index, row in enumerate(rows):
        cells = "".join(_cell(cell, number) for cell, (_, number) in zip(row, columns, strict=True))
        body.append(f"<tr{_style(styles[index] if styles else '')}>{cells}</tr>")
    field = f'<input type="search" data-table="{name}" placeholder="filter" aria-label="filter {escaped(name)}">'
    rest = f'<table class="sortable" id="{name}"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'{field}<div class="tall">{rest}</div>'


def _cell(cell: Cell, number: bool) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    text = f'<a href="{html.escape(cell.href)}">{escaped(cell.text)}</a>' if cell.href else escaped(cell.text)
    return f"<td{_style('number' if number else cell.style)}{value}>{text}</td>"


def _style(name: str) -> str:
    return f' class="{name}"' if name else ""


def frame(
    title: str, body: str, charts: Mapping[str, Any] | None = None, *, script: str = "", renderer: str = "svg", wide: bool = False
) -> str:
    """The whole page.  charts: Vega-Lite specifications by name; script: what draws them.  wide: for tables of many columns."""
    here = files("normfold.report")
    style, code = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = ""
    if charts:
        text = json.dumps(charts, ensure_ascii=False, allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\u0021--")
        data = f'<script type="application/json" id="charts" data-renderer="{renderer}">{text}</script>'
        data += f"<script>{script.replace('</script', '<' + chr(92) + '/script')}</script>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escaped(title)}</title><style>{style}</style></head>\n'
        f"<body{_style('wide' if wide else '')}>{body}\n{data}\n<script>{code}</script></body></html>\n"
    )
