"""``normfold audit FOLDER``."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.cli.common import State, output_options, terminal
from normfold.cli.profile import measuring_options, setting_of

if TYPE_CHECKING:
    from normfold.pipeline.auditing import Entry
    from normfold.profile.result import ModelProfile, ProfileReport, Setting


@click.command(short_help="Profile all models below a folder, on one page.")
@click.argument("places", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("normfold-audit"),
    show_default=True,
    help="Folder for the results: one JSON file a model, and index.html.",
)
@measuring_options
@click.option(
    "--jobs",
    type=int,
    default=1,
    show_default=True,
    help="Models at once, by joblib; -1 for all processors. They disturb each other.",
)
@click.option(
    "--open", "open_size", type=click.IntRange(min=1), help="Size for what .onnx files leave open beyond the first axis."
)
@click.option("--fresh", is_flag=True, help="Measure again what is measured already.")
@click.option("--pages", is_flag=True, help="Write an HTML page for every model, too.")
@output_options
def audit(places: tuple[Path, ...], output: Path, state: State, json: bool, **asked: Any) -> None:
    """Measure all models below FOLDER (or files) as `normfold profile` does.

    Interrupted, it goes on where it was: a file with the same content and the same options is not measured twice. Files that
    cannot be loaded or run are listed with the reason. Torch checkpoints need a sidecar (MODEL's-name.toml) that says what
    builds them.
    """
    from normfold.errors import InputRefused
    from normfold.profile.budget import parse_budgets

    setting, limits = setting_of(asked), parse_budgets(asked["budgets"])
    entries = _entries(places, output, setting, limits, asked, quiet=state.verbosity < 0)
    reports = {entry.path: _report(entry.profile, limits) for entry in entries if entry.profile is not None}
    failed = {entry.path: entry.reason for entry in entries if entry.profile is None}
    if json:
        from normfold.report.html_index import index_fields

        click.echo(json_module.dumps(index_fields(reports, failed), indent=2, allow_nan=False, ensure_ascii=False))
    elif state.verbosity >= 0:
        from normfold.report.profile_terminal import render_audit

        render_audit(reports, failed, terminal())
        click.echo(f"\n{output / 'index.html'}")
    if not reports:
        raise InputRefused(f"none of {len(failed)} files could be measured")
    _end(reports)


def _entries(
    places: Sequence[Path], output: Path, setting: Setting, limits: dict[str, float], asked: dict[str, Any], *, quiet: bool
) -> list[Entry]:
    """Every file with its profile, from `output` where it is there; the index is written anew with each that comes in."""
    from normfold.pipeline.auditing import audit as run
    from normfold.pipeline.auditing import find_models, key_of
    from normfold.pipeline.profiling import check_setting, measured_machine
    from normfold.profile.budget import percent_of
    from normfold.profile.machine import describe
    from normfold.profile.percentiles import USUAL

    check_setting(setting)
    percents = sorted({*USUAL, *(found for name in limits if (found := percent_of(name)) is not None)})
    versions = describe().versions
    output.mkdir(parents=True, exist_ok=True)
    models = [path for path in find_models(places) if output.resolve() not in path.resolve().parents]
    keys = {path: key_of(path, setting, asked["open_size"], versions, percents) for path in models}
    entries = [] if asked["fresh"] else [entry for path, key in keys.items() if (entry := _kept(path, key, output)) is not None]
    there = {entry.path for entry in entries}
    missing = {path: key for path, key in keys.items() if str(path) not in there}
    if entries and not quiet:
        click.echo(f"{len(entries)} of {len(keys)} models were measured before", err=True)
    _write_index(entries, limits, output)
    if missing:
        machine = measured_machine(setting)
        for entry in run(missing, setting, machine, jobs=asked["jobs"], open_size=asked["open_size"], percents=percents):
            entries.append(entry)
            _keep(entry, limits, output, pages=asked["pages"])
            _write_index(entries, limits, output)
            if not quiet:
                click.echo(f"[{len(entries)}/{len(keys)}] {_line(entry)}", err=True)
    order = {str(path): place for place, path in enumerate(keys)}
    return sorted(entries, key=lambda entry: order[entry.path])


def _line(entry: Entry) -> str:
    from normfold.cli.common import one_line
    from normfold.report.words import seconds_text, shown

    if entry.profile is None:
        return one_line(f"{shown(entry.path)}: {entry.reason}")
    return f"{shown(entry.path)}: median {seconds_text(entry.profile.latency.median)}"


def _file(path: Path | str, key: str, output: Path) -> Path:
    return output / f"{Path(path).stem}-{key[:16]}.json"


def _kept(path: Path, key: str, output: Path) -> Entry | None:
    """The entry that an earlier run left; None where there is none, or it cannot be read."""
    from normfold.errors import InputRefused
    from normfold.pipeline.auditing import Entry
    from normfold.profile.read import profile_from

    try:
        data = json_module.loads(_file(path, key, output).read_text(encoding="utf-8"))
        return Entry(str(path), key, profile_from(data["model"]))
    except (OSError, ValueError, KeyError, TypeError, InputRefused):
        return None


def _keep(entry: Entry, limits: dict[str, float], output: Path, *, pages: bool) -> None:
    from normfold.export.atomic import write_files
    from normfold.report.profile_json import profile_to_json

    if entry.profile is None:
        return
    report, path = _report(entry.profile, limits), _file(entry.path, entry.key, output)
    data = profile_to_json(report).encode()
    write_files({path: lambda file: file.write(data)}, force=True)
    if pages:
        from normfold.report.html_page import write_page

        write_page(report, path.with_suffix(".html"))


def _report(profile: ModelProfile, limits: dict[str, float]) -> ProfileReport:
    from normfold.profile.budget import judge
    from normfold.profile.result import ProfileReport

    return ProfileReport(profile, budgets=judge(profile, limits))


def _write_index(entries: Sequence[Entry], limits: dict[str, float], output: Path) -> None:
    from normfold.export.atomic import write_files
    from normfold.report.html_index import index_page

    reports = {entry.path: _report(entry.profile, limits) for entry in entries if entry.profile is not None}
    files = {entry.path: _file(entry.path, entry.key, output) for entry in entries}
    failed = {entry.path: entry.reason for entry in entries if entry.profile is None}
    data = index_page(reports, failed, {path: file.name for path, file in files.items()}, output).encode()
    write_files({output / "index.html": lambda file: file.write(data)}, force=True)


def _end(reports: dict[str, ProfileReport]) -> None:
    """Raise what gives the command its exit code: only budgets decide here."""
    from normfold.errors import CannotTell, OverBudget
    from normfold.report.profile_words import budget_sentence

    for verdict, error in (("over", OverBudget), ("cannot tell", CannotTell)):
        told = [
            f"{path}: {budget_sentence(item)}"
            for path, report in reports.items()
            for item in report.budgets
            if item.verdict == verdict
        ]
        if told:
            raise error("; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else ""))
