"""``normfold verify A B``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from normfold.cli.common import State, loading_options, output_options, terminal


@click.command(short_help="Do two models compute one function?")
@click.argument("a", metavar="[A", required=False)
@click.argument("b", metavar="B]", required=False)
@click.option(
    "--level",
    type=click.Choice(["quick", "standard", "thorough"]),
    default="standard",
    show_default=True,
    help="Two kinds of input; seven and a second choice of open sizes; those at both sizes from three seeds.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the inputs and of the noise.")
@click.option("--no-runtime", is_flag=True, help="Judge the stored weights in float64 alone (G2); run neither model.")
@click.option("--model-b", metavar="FILE.py:FACTORY", help="What builds the network of B; --model when left out.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Leave out what does not fit into this time.")
@click.option("--report", type=click.Path(path_type=Path), metavar="R.json", help="Run the verification of this report again.")
@click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    metavar="R.json",
    help="Write the report as JSON, to run it again.",
)
@click.option("--force", is_flag=True, help="Replace an existing report.")
@loading_options
@output_options
def verify(a: str | None, b: str | None, state: State, json: bool, **asked: Any) -> int:
    """Say whether A and B (any two of .onnx, .pt2, and checkpoints with --model) compute one function, and where they part.

    B is judged by the rounding noise that A has itself: its stored weights in float64 (G2), and its runtime (G3). Exit status: 0
    the same, 1 different, 4 cannot tell. The time is that of 4, 32 or 120 and more float64 evaluations, for the three levels.
    """
    from normfold.errors import UsageError
    from normfold.pipeline.verifying import again
    from normfold.pipeline.verifying import verify as compare

    output, report = asked["output"], asked["report"]
    if (report is None) == (a is None or b is None):
        raise UsageError("give two models, or --report with the report of an earlier verification")
    if output is not None and output.exists() and not asked["force"]:
        raise UsageError(f"{output} exists; pass --force to replace it")
    with _progress(state) as tell:
        if report is not None:
            found, verdict = again(report, tell=tell)
            agrees = "as" if verdict == found.verdict else "NOT as"
            found.notes.insert(0, f"{agrees} in {report}, where the verdict is {verdict!r}")
        else:
            found = compare(a, b, _plan(asked), tell=tell)
    if output is not None:
        from normfold.export.atomic import write_files
        from normfold.report.verification_json import verification_to_json

        text = verification_to_json(found) + "\n"
        write_files({output: lambda file: file.write(text.encode())}, force=asked["force"])
    if json:
        from normfold.report.verification_json import verification_to_json

        click.echo(verification_to_json(found))
    elif state.verbosity >= 0:
        from normfold.report.verification import render

        render(found, terminal(), every=state.verbosity > 0)
    return found.exit_code


def _plan(asked: dict[str, Any]) -> Any:
    from normfold.pipeline.verifying import Plan

    return Plan(
        level=asked["level"],
        seed=asked["seed"],
        runtime=not asked["no_runtime"],
        data=asked["data"],
        inputs=asked["inputs"],
        inputs_from=asked["inputs_from"],
        dynamic=asked["dynamic"],
        model=asked["model"],
        model_b=asked["model_b"],
        key=asked["key"],
        prefix=asked["prefix"],
        sidecar=not asked["no_sidecar"],
        seconds=asked["seconds"],
    )


@contextmanager
def _progress(state: State) -> Generator[Callable[[str, int, int], None] | None]:
    """A line on stderr that says what is being compared; nothing where that is no terminal."""
    if state.verbosity < 0 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading", total=None)

        def tell(label: str, done: int, count: int) -> None:
            progress.update(task, description=f"comparing on {label} inputs", completed=done, total=count)

        yield tell
