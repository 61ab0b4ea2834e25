"""``normfold swap MODEL`` and ``normfold recalibrate MODEL``: what changes the function of a network."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from normfold.cli.common import State, load_model, loading_options, log_warnings, output_options, terminal

if TYPE_CHECKING:
    from normfold.load import Loaded
    from normfold.record import Record
    from normfold.swap.artefact import Origin

_KINDS = ("layernorm", "groupnorm", "instancenorm", "rmsnorm", "none")
_SOURCES = ("batch", "layer", "group", "instance", "rms")
_held = click.option(
    "--eval", "held", metavar="XY.npz|FILE.py:FN", help="Held-out samples: the inputs by name, and labels. Never fitted."
)


def _output(several: bool) -> Callable[[Any], Any]:
    kinds = "File to write (.pt, .pt2 or .onnx); repeatable." if several else "File to write (.pt)."
    return click.option("-o", "--output", "outputs", type=click.Path(path_type=Path), multiple=several, help=kinds)


@click.command(short_help="Exchange norms for others: another function, measured.")
@click.argument("source", metavar="MODEL")
@click.option("--to", type=click.Choice(_KINDS), help="What the norms become.")
@click.option("--from", "kind", type=click.Choice(_SOURCES), default="batch", show_default=True, help="Which norms.")
@_output(several=True)
@loading_options
@_held
@click.option("--only", metavar="PATTERN", multiple=True, help="Swap norms whose module path matches; repeatable.")
@click.option("--skip", metavar="PATTERN", multiple=True, help="Leave norms whose module path matches; repeatable.")
@click.option("--groups", type=click.IntRange(min=1), help="Groups of a groupnorm; up to 32 of 8 or more channels otherwise.")
@click.option("--layer-steps", type=click.IntRange(min=0), default=200, show_default=True, help="Steps layer by layer.")
@click.option("--steps", type=click.IntRange(min=0), default=300, show_default=True, help="Steps of the whole network.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples a step.")
@click.option("--rate", type=float, default=2e-3, show_default=True, help="Adam's learning rate at the start.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of the samples.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="Points that may be lost; more is not written, exit 1.",
)
@click.option("--advise", is_flag=True, help="Only say which norm fits which remedy.")
@click.option("--no-timing", is_flag=True, help="Do not measure latency.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True, help="How long to measure."
)
@click.option("--force", is_flag=True, help="Replace existing outputs, and write whatever was lost.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@output_options
def swap(source: str, state: State, json: bool, outputs: tuple[Path, ...], **asked: Any) -> None:
    """Exchange norms of MODEL, a checkpoint, for others, distil the original into the result, and say what that costs.

    The result is ANOTHER FUNCTION. It is fitted to the original's outputs on samples without labels (--data, or a function that
    returns them, --inputs) and measured on others: on --eval with labels, else on every fifth sample of the data. An interrupted
    run goes on when the command is repeated. Without -o the result is MODEL's-name_KIND.pt; beside a .pt stand the factory
    and the sidecar that make it a model to load.
    """
    from normfold.errors import UsageError

    if asked["advise"]:
        _advise(source, state, json, asked)
        return
    if asked["to"] is None:
        raise UsageError(f"say what the norms become: --to {', '.join(_KINDS)}; or --advise")
    from normfold.swap.result import Swapped

    result = Swapped(asked["to"])
    record = result.record
    try:
        loaded = load_model(source, record, asked)
        from normfold.swap.run import SwapOptions
        from normfold.swap.run import swap as run

        path = Path(source)
        options = SwapOptions(
            to=asked["to"],
            source=asked["kind"],
            only=asked["only"],
            skip=asked["skip"],
            groups=asked["groups"],
            layer_steps=asked["layer_steps"],
            steps=asked["steps"],
            batch=asked["batch"],
            rate=asked["rate"],
            seed=asked["seed"],
            held=asked["held"],
            max_drop=asked["max_drop"],
            force=asked["force"],
            outputs=outputs or (path.with_name(f"{path.stem}_{asked['to']}.pt"),),
            dry_run=asked["dry_run"],
            timing=not asked["no_timing"],
            seconds=asked["seconds"],
        )
        stages = {"layers": options.layer_steps, "whole": options.steps}
        with _progress(stages, quiet=json or state.verbosity < 0) as progress:
            run(loaded, options, record, origin=_origin(loaded, asked), progress=progress, result=result)
    finally:
        if result.metric is not None:
            _show("render", result, {"swap": result.as_dict()}, record, state, json)
        else:
            log_warnings(record)


@click.command(short_help="Renew BatchNorm's statistics from data.")
@click.argument("source", metavar="MODEL")
@_output(several=False)
@loading_options
@_held
@click.option("--only", metavar="PATTERN", multiple=True, help="Renew norms whose module path matches; repeatable.")
@click.option("--skip", metavar="PATTERN", multiple=True, help="Leave norms whose module path matches; repeatable.")
@click.option("--batch", type=click.IntRange(min=2), default=256, show_default=True, help="Samples a batch of the statistics.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="Points of accuracy on --eval that may be lost; more is not written, exit 1.",
)
@click.option("--force", is_flag=True, help="Replace existing outputs, and write whatever was lost.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@output_options
def recalibrate(source: str, state: State, json: bool, outputs: Path | None, **asked: Any) -> None:
    """Replace the stored mean and variance of every BatchNorm of MODEL, a checkpoint, by those of your data.

    Precise statistics (Wu & Johnson 2021): of all samples of --data, no labels, not a moving average. The result is ANOTHER
    FUNCTION; with --eval its accuracy before and after is measured. Without -o it is MODEL's-name_recalibrated.pt.
    """
    from normfold.swap.result import Recalibrated

    result = Recalibrated()
    record, path = result.record, Path(source)
    try:
        loaded = load_model(source, record, asked)
        from normfold.swap.recalibrate import recalibrate as run

        run(
            loaded,
            record,
            output=None if asked["dry_run"] else outputs or path.with_name(f"{path.stem}_recalibrated.pt"),
            only=asked["only"],
            skip=asked["skip"],
            batch=asked["batch"],
            held=asked["held"],
            max_drop=asked["max_drop"],
            force=asked["force"],
            origin=_origin(loaded, asked),
            result=result,
        )
    finally:
        if result.layers:
            _show("render_recalibrated", result, {"recalibrate": result.as_dict()}, record, state, json)
        else:
            log_warnings(record)


def _advise(source: str, state: State, json: bool, asked: dict[str, Any]) -> None:
    from dataclasses import asdict

    from normfold.record import Record

    record = Record()
    try:
        loaded = load_model(source, record, asked)
        from normfold.swap.advise import advise

        found, left = advise(loaded, record)
    except BaseException:
        log_warnings(record)
        raise
    if json:
        fields = {"advice": [asdict(item) for item in found], "left": [asdict(item) for item in left]}
        _show("", None, fields, record, state, json)
    elif state.verbosity >= 0:
        from normfold.report.swap import render_advice

        render_advice(found, left, record, terminal())


def _show(how: str, result: Any, fields: dict[str, Any], record: Record, state: State, json: bool) -> None:
    if json:
        from json import dumps

        from normfold.report.json import SCHEMA, plain

        log_warnings(record)

        click.echo(dumps(plain({"schema": SCHEMA, **fields}), indent=2, allow_nan=False, ensure_ascii=False))
    elif state.verbosity >= 0:
        import normfold.report.swap as report

        getattr(report, how)(result, terminal())


@contextmanager
def _progress(steps: dict[str, int], *, quiet: bool) -> Generator[Callable[[Any, int, float], None] | None]:
    """A bar for every stage on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    words = {"layers": "layer by layer", "whole": "whole network"}
    loss = TextColumn("loss {task.fields[loss]:.2e}")
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {name: bars.add_task(words[name], total=total, loss=0.0) for name, total in steps.items() if total}
        yield lambda stage, done, value: bars.update(tasks[stage.name], completed=done, loss=value)


def _origin(loaded: Loaded, asked: dict[str, Any]) -> Origin | None:
    """What built the network: said on the command line, else in the sidecar."""
    from normfold.load.sidecar import Sidecar, find_sidecar, read_sidecar
    from normfold.swap.artefact import Origin

    beside = find_sidecar(loaded.path) if loaded.path is not None and not asked["no_sidecar"] else None
    said = read_sidecar(beside) if beside is not None else Sidecar(Path())
    factory = asked["model"] or said.model
    if factory is None:
        return None
    base = None if asked["model"] else said.folder
    return Origin(factory, base, tuple(asked["inputs"]) or said.inputs, tuple(asked["dynamic"]) or said.dynamic)
