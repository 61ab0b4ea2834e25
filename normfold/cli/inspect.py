"""``normfold inspect MODEL``."""

from __future__ import annotations

from typing import Any

import click

from normfold.cli.common import State, load_model, loading_options, output_options, reported


@click.command(short_help="List the norms of a model.")
@click.argument("source", metavar="MODEL")
@loading_options
@output_options
def inspect(source: str, state: State, json: bool, **asked: Any) -> None:
    """List the normalization layers of MODEL, how healthy their statistics look, and what `normfold optimize` would make of them.

    Nothing is written.
    """
    from normfold.record import Record

    record = Record()
    with reported(record, state, json=json, planned=True):
        loaded = load_model(source, record, asked)
        from normfold.pipeline import inspect as look

        look(loaded, record)
