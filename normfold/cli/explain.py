"""``normfold explain MODEL NORM``."""

from __future__ import annotations

from typing import Any

import click

from normfold.cli.common import State, load_model, loading_options, log_warnings, output_options, target_option, terminal


@click.command(short_help="Say where a norm went, or what stopped it.")
@click.argument("source", metavar="MODEL")
@click.argument("norm", metavar="NORM")
@click.option(
    "--objective",
    type=click.Choice(["latency", "norms"]),
    default="latency",
    show_default=True,
    help="As for `normfold optimize`.",
)
@target_option
@loading_options
@click.option("--only", metavar="RULE", multiple=True, help="Use only this rewrite; repeatable.")
@click.option("--skip", metavar="RULE", multiple=True, help="Leave this rewrite out; repeatable.")
@click.option("--keep", metavar="PATTERN", multiple=True, help="Keep norms whose module path or node name matches; repeatable.")
@output_options
def explain(source: str, norm: str, state: State, json: bool, **asked: Any) -> None:
    """Say of NORM in MODEL where its scale and its shift would go, or what exactly stands in the way.

    NORM is a module path, a node's name, or a shell pattern of either. Nothing is written.
    """
    from normfold.pipeline.explaining import explain as ask
    from normfold.pipeline.options import Options
    from normfold.record import Record

    record = Record()
    options = Options(
        objective=asked["objective"], target=asked["target"], only=asked["only"], skip=asked["skip"], keep=asked["keep"]
    )
    try:
        found = ask(load_model(source, record, asked), norm, options, record)
    finally:
        log_warnings(record)
    if json:
        from normfold.report.json import explanations_to_json

        click.echo(explanations_to_json(found))
    elif state.verbosity >= 0:
        from normfold.report.explanation import render

        render(found, terminal(100), every=state.verbosity > 0)
