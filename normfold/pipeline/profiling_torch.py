"""A torch model profiled in PyTorch itself: eager, module by module, or compiled."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from normfold.capture.tidy import tidy
from normfold.errors import UsageError
from normfold.load import Loaded
from normfold.pipeline.options import Options
from normfold.pipeline.profiling import latency_of, measured_machine
from normfold.pipeline.rewriting import rewrite
from normfold.pipeline.routes import open_route
from normfold.profile.clock import compare
from normfold.profile.kernels import layers, robust
from normfold.profile.norms import module_costs, module_sentence
from normfold.profile.percentiles import USUAL, needed
from normfold.profile.result import Cold, Kernel, Level, Machine, ModelProfile, Parallel, Reconciled, Setting
from normfold.profile.tasks import single_runs, warm_up
from normfold.profile.torch_modules import COMPILED, compiled, first_call, measure_modules
from normfold.record import Record

LEVELS = ("eager", "compile")


def profile_torch(
    loaded: Loaded,
    setting: Setting,
    record: Record,
    *,
    machine: Machine | None = None,
    percents: Sequence[float] = USUAL,
) -> ModelProfile:
    """Measure a loaded torch model in this process (it cannot be handed to another); see normfold.pipeline.profiling.profile.

    Raises UsageError for an ONNX model and without example inputs, CannotTell where torch does not run or compile it.
    """
    import torch

    if loaded.kind == "onnx":
        raise UsageError(f"{record.source or loaded.name} is an ONNX model, which torch does not run; leave --runtime out")
    if not loaded.calls:
        raise UsageError("a torch model needs example inputs to be run: give --input, --data or --inputs")
    here = machine if machine is not None else measured_machine(setting)
    module = loaded.module.eval() if loaded.kind == "module" else torch.export.unflatten(loaded.program)
    args, kwargs = loaded.calls[-1]
    with _as_set(setting), torch.no_grad():
        chosen = compiled(module) if setting.level == "compile" else module
        first = first_call(lambda: chosen(*args, **kwargs))
        second = first_call(lambda: chosen(*args, **kwargs))

        def run() -> object:
            return chosen(*args, **kwargs)

        part = setting.seconds / 4
        warm, settled = warm_up(run, part / 2)
        least = max(needed(percent, setting.confidence) for percent in percents)
        latency = latency_of(np.asarray(single_runs(run, part, least)), warm, settled, percents, setting.confidence)
        noise = compare(run, run, seconds=part, confidence=setting.confidence, runtime="PyTorch", level=setting.level)
        levels = [_eager(module, lambda: module(*args, **kwargs), part)]
        if setting.level == "compile":
            levels.append(_whole(run, part))
    findings = _findings(loaded, record)
    rows = module_costs(levels[0], levels[-1], findings)
    return ModelProfile(
        source=record.source or loaded.name,
        sha256=loaded.sha256,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()),
        nodes=len(list(module.modules())),
        inputs={f"input {i}": list(item.shape) for i, item in enumerate(args) if isinstance(item, torch.Tensor)},
        setting=setting,
        machine=here,
        cold=Cold(0.0, 0.0, first, second, None, None),
        latency=latency,
        noise=replace(noise, threads=setting.threads),
        levels=levels,
        norms=rows,
        sentence=module_sentence(rows, levels[0], levels[-1], latency.median),
        notes=[*record.notes, *record.warnings],
    )


@contextmanager
def _as_set(setting: Setting) -> Generator[None]:
    """Threads as asked for, and no collections of garbage."""
    import torch

    known = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(known)


def _eager(module: Any, run: Callable[[], object], seconds: float) -> Level:
    kernels, bare, watched, inside = measure_modules(module, run, seconds)
    return _level("eager", kernels, bare, watched, inside)


def _whole(run: Callable[[], object], seconds: float) -> Level:
    """A compiled model: one kernel, which takes the whole time."""
    times = single_runs(run, seconds / 2, 20)
    wall = float(robust(np.asarray(times)).mean())
    return _level("compile", [Kernel(COMPILED, "compiled", wall, layer=COMPILED)], times, times, 0.0)


def _level(name: str, kernels: list[Kernel], bare: list[float], watched: list[float], inside: float) -> Level:
    total = sum(kernel.seconds for kernel in kernels)
    wall, profiled = (float(robust(np.asarray(times)).mean()) for times in (bare, watched))
    share = sum(kernel.seconds for kernel in kernels if kernel.norm) / total if total else 0.0
    return Level(
        name=name,
        runs=len(watched),
        kernels=kernels,
        reconciled=Reconciled(wall, total, wall - total, 0.0, 0.0, profiled, inside),
        mapped=sum(kernel.seconds for kernel in kernels if kernel.module) / total if total else 0.0,
        inserted=0.0,
        norms=share,
        norms_low=share,
        norms_high=share,
        parallel=Parallel(0.0, {}, []),
        layers=layers(kernels),
    )


def _findings(loaded: Loaded, record: Record) -> Any:
    options = Options(objective="norms", verify=False, simplify=False, timing=False)
    route = open_route(loaded, options, record)
    route.graph.keep_exact = False
    tidy(route.graph)
    return rewrite(route.graph, options).findings
