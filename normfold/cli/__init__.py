"""The command line: one file a command, which parses, calls and renders.

Nothing heavy is imported here: ``normfold --help`` must be quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import click

from normfold.cli.audit import audit
from normfold.cli.common import State, one_line
from normfold.cli.explain import explain
from normfold.cli.inspect import inspect
from normfold.cli.optimize import optimize
from normfold.cli.profile import profile
from normfold.cli.rules import rules
from normfold.cli.swap import recalibrate, swap
from normfold.cli.verify import verify
from normfold.errors import INTERRUPTED, NormfoldError, WorkerCrashed

__all__ = ["cli", "main"]


def _version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        try:
            number = version("normfold")
        except PackageNotFoundError:
            number = "(not installed)"
        click.echo(f"normfold {number}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit.")
def cli() -> None:
    """Take normalization layers out of trained networks exactly, check the result, measure the gain.

    Exit codes: 0 fine; 1 the result differs and was not written; 2 usage, or the input was refused; 3 over budget; 4 cannot tell;
    5 a worker or normfold itself crashed; 130 interrupted.
    """


for command in (optimize, inspect, explain, rules, verify, swap, recalibrate, profile, audit):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; errors become one line on stderr and an exit code."""
    state = State()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a model's names must not end the run on a plain terminal
    sys.exit(_run(list(arguments) if arguments is not None else None, state))


def _run(arguments: list[str] | None, state: State) -> int:
    try:
        code = cli.main(arguments, prog_name="normfold", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "normfold"
        return _fail(f"{error.format_message()} (`{where} --help` shows the options)", 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NormfoldError as error:
        if state.debug:
            raise
        return _fail(str(error), error.exit_code)
    except Exception as error:
        if state.debug:
            raise
        what = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        return _fail(f"{what}. This is a defect of normfold; --debug shows where it happened", WorkerCrashed.exit_code)


def _fail(message: str, code: int) -> int:
    click.echo(f"normfold: error: {one_line(message)}", err=True)
    return code
