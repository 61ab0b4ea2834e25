"""Latency of two models in the runtime that will run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normfold.errors import CannotTell, UsageError
from normfold.graph import Array
from normfold.profile.clock import compare, compare_made
from normfold.record import Timing

LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
"""Optimisation levels of ONNX Runtime; "all" is its default."""


def session_options(*, level: str = "all", threads: int = 1, spinning: bool = True) -> Any:
    """Options of a sequential ONNX Runtime session, silent.  Raises UsageError for an unknown level.

    spinning: idle threads of the pool spin, the runtime's default; it costs other processes their time.
    """
    import onnxruntime as ort

    if level not in LEVELS:
        raise UsageError(f"the level is one of {', '.join(LEVELS)}; got {level!r}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def onnx_session(path: Path, *, level: str = "all", threads: int = 1, spinning: bool = True) -> Any:
    """An ONNX Runtime session on the CPU.  Raises CannotTell when the runtime does not take the model."""
    import onnxruntime as ort

    options = session_options(level=level, threads=threads, spinning=spinning)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base
        raise CannotTell(f"ONNX Runtime cannot load {path} ({_line(error)}); its latency is not known") from error


def compare_onnx(
    before: Path,
    after: Path,
    feeds: Mapping[str, Array],
    *,
    level: str = "all",
    threads: int = 1,
    spinning: bool = True,
    seconds: float = 5.0,
    confidence: float = 0.95,
) -> Timing:
    """Latency of two ONNX files with the same inputs.  Raises CannotTell when the runtime does not run one of them."""

    def maker(path: Path) -> Callable[[], Callable[[], object]]:
        return lambda: _runner(onnx_session(path, level=level, threads=threads, spinning=spinning), path, feeds)

    return compare_made(
        maker(before),
        maker(after),
        seconds=seconds,
        confidence=confidence,
        runtime="ONNX Runtime",
        level=level,
        threads=threads,
    )


def _runner(session: Any, path: Path, feeds: Mapping[str, Array]) -> Callable[[], object]:
    feed = dict(feeds)
    run = session.run
    try:
        run(None, feed)
    except Exception as error:  # as above
        raise CannotTell(
            f"ONNX Runtime cannot run {path} with the example inputs ({_line(error)}); give others with --data"
        ) from error
    return lambda: run(None, feed)


def compare_torch(
    before: Callable[..., object],
    after: Callable[..., object],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    threads: int = 1,
    seconds: float = 5.0,
    confidence: float = 0.95,
) -> Timing:
    """Latency of two torch callables (modules, programs' modules) in eager mode, without gradients."""
    import torch

    named = dict(kwargs or {})
    known = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return compare(
                lambda: before(*args, **named),
                lambda: after(*args, **named),
                seconds=seconds,
                confidence=confidence,
                runtime="PyTorch",
                level="eager",
                threads=threads,
            )
    finally:
        torch.set_num_threads(known)


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
