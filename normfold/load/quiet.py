"""Libraries that log, warn and print about their own internals while they work: what matters they raise."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet(*names: str, warned: bool = True, streams: bool = False) -> Generator[None]:
    """Silence the loggers `names`; with warned=False Python's warnings too, with `streams` what is printed."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        if not warned:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        if streams:
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
