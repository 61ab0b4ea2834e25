"""The exceptions of normfold and the exit code that the command line gives each.

    NormfoldError
    +-- UsageError         2   options that do not fit together, an unknown name
    +-- InputRefused       2   a file or model that is not accepted (malformed, unsafe, not understood)
    +-- ResultDiffers      1   the result does not compute the same function; nothing was written
    +-- OverBudget         3   a measured budget was exceeded
    +-- CannotTell         4   the comparison could not be made (unknown op, too much noise)
    +-- WorkerCrashed      5   a native library crashed in its worker process

Exit code 0 is "fine" and 130 "interrupted".  Every message says what was expected, what came and what to do next.
"""

from __future__ import annotations


class NormfoldError(Exception):
    """Base of every error that normfold raises on purpose."""

    exit_code = 2


class UsageError(NormfoldError):
    """Options, names or arguments that do not fit together."""

    exit_code = 2


class InputRefused(NormfoldError):
    """A file or model that is refused: malformed, unsafe to read, or outside what normfold understands."""

    exit_code = 2


class ResultDiffers(NormfoldError):
    """The rewritten model does not compute the original's function; it was not written."""

    exit_code = 1


class OverBudget(NormfoldError):
    """A measurement exceeded the budget that the caller set."""

    exit_code = 3


class CannotTell(NormfoldError):
    """The two models could not be compared: an op without float64 evaluation, or too much noise."""

    exit_code = 4


class WorkerCrashed(NormfoldError):
    """A native library died (signal, memory, time) in the worker process that ran it."""

    exit_code = 5


INTERRUPTED = 130
