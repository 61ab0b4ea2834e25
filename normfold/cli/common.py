"""What the commands share: options for loading, verbosity, and how a record is printed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

    from normfold.load import Loaded
    from normfold.record import Record

F = TypeVar("F", bound=Callable[..., Any])
_PIPE_WIDTH = 120


@dataclass
class State:
    """What the whole run knows: verbosity (-1 quiet, 0, 1, 2) and whether errors come with a traceback."""

    verbosity: int = 0
    debug: bool = False


def loading_options(function: F) -> F:
    """The options that say how to load a model; they arrive as keyword arguments of `load_model`."""
    options = (
        click.option(
            "--model", metavar="FILE.py:FACTORY", help="What builds the network of a checkpoint; or package.module:factory."
        ),
        click.option("--key", help="Where the state_dict lies in the checkpoint; found when left out."),
        click.option("--prefix", help="What the names in the state_dict carry; found when left out."),
        click.option(
            "--input",
            "inputs",
            metavar="NAME=1x3x32x32",
            multiple=True,
            help="Shape of an example input; NAME= and :dtype optional.",
        ),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            metavar="X.npz",
            help="Example inputs as arrays, by input name or arr_0, arr_1.",
        ),
        click.option(
            "--inputs",
            "inputs_from",
            metavar="FILE.py:FN",
            help="A function that returns example inputs, any nesting, several calls.",
        ),
        click.option("--dynamic", metavar="NAME=Nx3xHxW", multiple=True, help="Sizes of a torch model that stay open."),
        click.option("--no-sidecar", is_flag=True, help="Leave MODEL's .toml beside it unread."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def target_option(function: F) -> F:
    """--target: whose records say what is faster."""
    return click.option(
        "--target",
        type=click.Choice(["onnxruntime", "openvino", "tensorrt", "generic"]),
        default="onnxruntime",
        show_default=True,
        help="The runtime whose recorded measurements say what is faster.",
    )(function)


def output_options(function: F) -> F:
    """--json, -v, -q and --debug; the command gets `json` and the state."""

    @click.option("--json", "json", is_flag=True, help="Print the report as JSON.")
    @click.option("-v", "--verbose", count=True, help="Say more; twice for everything.")
    @click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
    @click.option("--debug", is_flag=True, help="Show tracebacks.")
    @click.pass_context
    @wraps(function)
    def command(context: click.Context, /, *args: Any, verbose: int, quiet: bool, debug: bool, **kwargs: Any) -> Any:
        state = context.ensure_object(State)
        state.verbosity, state.debug = (-1 if quiet else verbose), debug or verbose >= 2
        _set_up_logging(state.verbosity)
        return context.invoke(function, *args, state=state, **kwargs)

    return cast("F", command)


def load_model(source: str, record: Record, options: dict[str, Any]) -> Loaded:
    """Load what the arguments of `loading_options` describe."""
    from normfold.load import load

    return load(
        source,
        model=options["model"],
        key=options["key"],
        prefix=options["prefix"],
        inputs=options["inputs"],
        data=options["data"],
        inputs_from=options["inputs_from"],
        dynamic=options["dynamic"],
        sidecar=not options["no_sidecar"],
        record=record,
    )


@contextmanager
def reported(record: Record, state: State, *, json: bool, planned: bool = False) -> Generator[None]:
    """Print the record after the body, on an error too when anything is known; otherwise its warnings go to stderr."""
    try:
        yield
    except BaseException:
        if record.comparisons or record.findings:
            _print(record, state, json=json, planned=planned)
        else:
            log_warnings(record)
        raise
    _print(record, state, json=json, planned=planned)


def _print(record: Record, state: State, *, json: bool, planned: bool) -> None:
    if json:
        from normfold.report.json import to_json

        log_warnings(record)
        click.echo(to_json(record))
    elif state.verbosity >= 0:
        from normfold.report.terminal import render

        render(record, terminal(), planned=planned)


def terminal(pipe_width: int = _PIPE_WIDTH) -> Console:
    """The console on stdout; `pipe_width` columns where it is no terminal and COLUMNS does not say."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; that the reader has seen enough is no error

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Terminal(highlight=False, width=pipe_width if wide else None)


def log_warnings(record: Record) -> None:
    """Warnings of a record that is not printed, one line each."""
    for warning in record.warnings:
        logging.getLogger("normfold").warning(one_line(warning))


def one_line(text: str) -> str:
    """`text` on one line, control characters written out."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in joined)


def _set_up_logging(verbosity: int) -> None:
    """normfold's log goes to stderr; Python warnings of the libraries only with -vv."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lower("normfold: %(levelname)s: %(message)s"))
    logger = logging.getLogger("normfold")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel({-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))
    logging.captureWarnings(True)
    foreign = logging.getLogger("py.warnings")
    foreign.handlers, foreign.propagate = [handler if verbosity >= 2 else logging.NullHandler()], False


class _Lower(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)
