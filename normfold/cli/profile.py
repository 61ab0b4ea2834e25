"""``normfold profile MODEL``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from normfold.cli.common import State, load_model, loading_options, log_warnings, output_options, terminal

if TYPE_CHECKING:
    from normfold.profile.result import ProfileReport, Setting

F = TypeVar("F", bound=Callable[..., Any])


def measuring_options(function: F) -> F:
    """The options that say how to measure; they arrive as keyword arguments of `setting_of`."""
    options = (
        click.option(
            "--level",
            type=click.Choice(["disabled", "basic", "extended", "all"]),
            default="all",
            show_default=True,
            help="Optimisation level that is deployed.",
        ),
        click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the runtime."),
        click.option("--no-spinning", is_flag=True, help="Idle threads sleep instead of spinning."),
        click.option("--affinity", metavar="0,1", help="Stay on these processors."),
        click.option(
            "--seconds",
            type=click.FloatRange(min=0, min_open=True),
            default=10.0,
            show_default=True,
            help="About how long to measure one model.",
        ),
        click.option(
            "--confidence",
            type=click.FloatRange(min=50, max=100, min_open=True, max_open=True),
            default=99.0,
            show_default=True,
            metavar="PERCENT",
            help="Of every interval and bound.",
        ),
        click.option(
            "--budget",
            "budgets",
            metavar="p99=5ms,size=20MB,norm-share=2%",
            multiple=True,
            help="Limits: percentiles, size, memory, norm-share, ratio. Exit code 3: one is exceeded; 4: it cannot be told.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def setting_of(asked: dict[str, Any]) -> Setting:
    """The Setting that the arguments of `measuring_options` describe.  Raises UsageError."""
    from normfold.errors import UsageError
    from normfold.profile.result import Setting

    try:
        affinity = tuple(int(part) for part in (asked["affinity"] or "").split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--affinity takes numbers of processors, for example 0,1; got {asked['affinity']!r}") from None
    return Setting(
        level=asked["level"],
        threads=asked["threads"],
        spinning=not asked["no_spinning"],
        affinity=affinity,
        seconds=asked["seconds"],
        confidence=asked["confidence"] / 100.0,
    )


@click.command(short_help="Measure where the time of a model goes, and what its norms cost.")
@click.argument("source", metavar="MODEL")
@click.option("--against", metavar="OTHER", help="A baseline: profiled too, and timed interleaved with MODEL.")
@loading_options
@measuring_options
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "torch", "torch-compile"]),
    default="onnxruntime",
    show_default=True,
    help="What runs MODEL; torch measures module by module.",
)
@click.option("--every-level", is_flag=True, help="Profile the kernels at all levels of the runtime.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one self-contained HTML file.")
@output_options
def profile(source: str, against: str | None, state: State, json: bool, html: Path | None, **asked: Any) -> None:
    """Measure MODEL on ONNX Runtime: latency with its bounds, cold start and memory, every kernel mapped back to MODEL's own
    layers, the critical path, and what each normalization layer costs.

    Exit codes: 0 fine, 3 over a budget, 4 too noisy to tell.
    """
    from normfold.profile.budget import parse_budgets, percent_of
    from normfold.profile.percentiles import USUAL

    setting, limits = _in_runtime(setting_of(asked), asked["runtime"]), parse_budgets(asked["budgets"])
    percents = {*USUAL, *(found for name in limits if (found := percent_of(name)) is not None)}
    report = _measure(source, against, {**asked, "against": against}, setting, limits, sorted(percents))
    if html is not None:
        from normfold.report.html_page import write_page

        write_page(report, html)
    if json:
        from normfold.report.profile_json import profile_to_json

        click.echo(profile_to_json(report))
    elif state.verbosity >= 0:
        from normfold.report.profile_terminal import render

        render(report, terminal(), every=state.verbosity > 0)
    end(report)


def _in_runtime(setting: Setting, runtime: str) -> Setting:
    if runtime == "onnxruntime":
        return setting
    return replace(setting, runtime="torch", level="compile" if runtime == "torch-compile" else "eager")


def _measure(
    source: str, against: str | None, asked: dict[str, Any], setting: Setting, limits: dict[str, float], percents: list[float]
) -> ProfileReport:
    from normfold.errors import UsageError
    from normfold.pipeline.profiling import check_setting, compare_models, measured_machine
    from normfold.pipeline.profiling import profile as measure
    from normfold.pipeline.profiling_torch import profile_torch as measure_torch
    from normfold.profile.budget import judge
    from normfold.profile.result import ProfileReport
    from normfold.record import Record

    if "ratio" in limits and against is None:
        raise UsageError("a budget for the ratio needs a model to compare with: give --against")
    if setting.runtime == "torch" and against is not None:
        raise UsageError("--against compares on ONNX Runtime; leave --runtime out, or profile the two apart")
    check_setting(setting)
    records = [Record()] if against is None else [Record(), Record()]
    try:
        paths = [source] if against is None else [source, against]
        loaded = [load_model(path, record, _fitting(path, asked)) for path, record in zip(paths, records, strict=True)]
        machine = measured_machine(setting)
        models = [
            measure_torch(item, setting, record, machine=machine, percents=percents)
            if setting.runtime == "torch"
            else measure(item, setting, record, machine=machine, percents=percents, every_level=asked["every_level"])
            for item, record in zip(loaded, records, strict=True)
        ]
    except BaseException:
        for record in records:
            log_warnings(record)
        raise
    timing = compare_models(loaded[1], loaded[0], setting) if len(loaded) > 1 else None
    budgets = judge(models[0], limits, timing)
    return ProfileReport(models[0], models[1] if len(models) > 1 else None, timing, budgets)


def _fitting(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The loading options that a file of this kind takes: the two models may be of different kinds."""
    from normfold.load import sniff

    form = sniff(Path(path))
    dropped = {"onnx": ("model", "key", "prefix", "dynamic"), "pt2": ("model", "key", "prefix", "dynamic")}.get(form, ())
    if asked["against"] is None:
        return asked
    return {**asked, **{name: () if name == "dynamic" else None for name in dropped}}


def end(report: ProfileReport) -> None:
    """Raise what gives the command its exit code."""
    from normfold.errors import CannotTell, OverBudget
    from normfold.report.profile_words import budget_sentence

    code = report.exit_code
    sentences = {
        verdict: [budget_sentence(item) for item in report.budgets if item.verdict == verdict]
        for verdict in ("over", "cannot tell")
    }
    if code == OverBudget.exit_code:
        raise OverBudget(f"over budget: {'; '.join(sentences['over'])}")
    if code == CannotTell.exit_code:
        told = (
            "; ".join(sentences["cannot tell"])
            or "the machine is too noisy to tell; close what else runs, or give --seconds more time"
        )
        raise CannotTell(told)
