"""Where a torch model spends its time, module by module, in eager mode; and what torch.compile makes of the whole.

Hooks before and behind every module's forward take the time; a module's own time is without its children's.  What a hook costs is
measured on a module that does nothing, and taken off.  A compiled model is one kernel: modules no longer exist in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from normfold.errors import CannotTell
from normfold.profile.kernels import robust
from normfold.profile.result import Kernel

_NORM = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")
_TURN = 6
ROOT = "(the model itself)"
COMPILED = "(the compiled model)"


class _Watch:
    """Own seconds and calls of every module, of the run that is on."""

    def __init__(self) -> None:
        self.own: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._open: list[list[float]] = []  # (start, seconds of children) of the forwards that are running

    def before(self, _module: Any, _inputs: Any) -> None:
        self._open.append([time.perf_counter(), 0.0])

    def behind(self, name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, _result: Any) -> None:
            start, children = self._open.pop()
            spent = time.perf_counter() - start
            self.own[name] = self.own.get(name, 0.0) + spent - children
            self.calls[name] = self.calls.get(name, 0) + 1
            if self._open:
                self._open[-1][1] += spent

        return hook


@contextmanager
def _watched(module: Any) -> Generator[_Watch]:
    watch, handles = _Watch(), list[Any]()
    for name, part in module.named_modules():
        handles += [part.register_forward_pre_hook(watch.before), part.register_forward_hook(watch.behind(name or ROOT))]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def measure_modules(
    module: Any, run: Callable[[], object], seconds: float
) -> tuple[list[Kernel], list[float], list[float], float]:
    """Modules as kernels in the order of their first call; the walls of runs without and with hooks; what the hooks cost a run.

    run: one forward of `module`, as the caller makes it.
    """
    overhead, rows = _hook_cost(), list[dict[str, float]]()
    bare, watched, calls = list[float](), list[float](), dict[str, int]()
    began = time.perf_counter()
    while len(rows) < 4 * _TURN or time.perf_counter() - began < seconds:
        bare += _turn(run)
        with _watched(module) as watch:
            for index in range(_TURN):
                watch.own, watch.calls = {}, {}
                start = time.perf_counter()
                run()
                if index:  # the first finds the caches of another kind of run
                    watched.append(time.perf_counter() - start)
                    rows.append(watch.own)
                    calls = watch.calls
    names = list(calls)
    times = robust(np.array([[row.get(name, 0.0) for name in names] for row in rows]))
    parts = dict(module.named_modules())
    kernels: list[Kernel] = []
    for name, shown in zip(names, times.mean(axis=0), strict=True):
        kind = type(parts["" if name == ROOT else name]).__name__
        own = max(0.0, float(shown) - overhead * calls[name])
        norm = name if any(word in kind for word in _NORM) else ""
        kernels.append(Kernel(name, kind, own, float(calls[name]), layer=name, members=[name], module=True, norm=norm))
    return kernels, bare, watched, overhead * sum(calls.values())


def _turn(run: Callable[[], object]) -> list[float]:
    times: list[float] = []
    for index in range(_TURN):
        start = time.perf_counter()
        run()
        if index:
            times.append(time.perf_counter() - start)
    return times


def _hook_cost() -> float:
    """Seconds that its hooks add to the own time of a module."""
    import torch

    module, x = torch.nn.Identity(), torch.zeros(1)

    def each() -> float:
        start = time.perf_counter()
        for _ in range(200):
            module(x)
        return (time.perf_counter() - start) / 200

    bare = statistics.median(each() for _ in range(5))
    shown: list[float] = []
    for _ in range(5):
        with _watched(module) as watch:
            each()
        shown.append(watch.own[ROOT] / watch.calls[ROOT])
    return max(0.0, statistics.median(shown) - bare)


def compiled(module: Any) -> Any:
    """What torch.compile makes of a module; compiled at its first call."""
    import torch

    return torch.compile(module)


def first_call(run: Callable[[], object]) -> float:
    """Seconds of a first call.  Raises CannotTell with what torch says where it cannot be made."""
    start = time.perf_counter()
    try:
        run()
    except Exception as error:  # inductor's failures have no common base, a missing C++ compiler among them
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CannotTell(f"torch cannot run this model ({lines[0][:200] if lines else type(error).__name__})") from error
    return time.perf_counter() - start
