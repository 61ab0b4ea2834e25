"""What one model costs at run time, and what its norms have to do with it: loading, exporting and measuring in order."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from normfold.capture.tidy import tidy
from normfold.errors import NormfoldError, UsageError
from normfold.graph import Array
from normfold.load import Loaded
from normfold.pipeline.options import Options
from normfold.pipeline.rewriting import rewrite
from normfold.pipeline.routes import Route, TorchRoute, feeds_by_name, open_route
from normfold.profile.kernels import Feeds, ask, measure_level, shared, write_feeds
from normfold.profile.machine import describe
from normfold.profile.norms import norm_costs, sentence
from normfold.profile.origin import Original, read_original
from normfold.profile.percentiles import USUAL, needed, percentile
from normfold.profile.result import Cold, Latency, Level, Machine, ModelProfile, Setting
from normfold.profile.sessions import LEVELS
from normfold.record import Finding, Record, Timing

_OFF = "disabled"
_SHARES = {"latency": 0.3, "noise": 0.4, "kernels": 0.15}  # of the seconds asked for


@dataclass(frozen=True)
class Deployed:
    """The file that is run, the same model with all its norms, and the arrays to run them on."""

    path: Path
    original: Original
    full: Original
    full_path: Path
    feeds: Feeds
    arrays: dict[str, Array]
    findings: dict[str, list[Finding]]


def measured_machine(setting: Setting) -> Machine:
    """The machine with its peaks.  Raises WorkerCrashed when these cannot be measured."""
    machine = describe(setting.affinity)
    arguments = {
        "threads": setting.threads,
        "spinning": setting.spinning,
        "affinity": list(setting.affinity),
        "seconds": min(2.0, 0.2 * setting.seconds),
    }
    return replace(machine, **ask("peaks", arguments, "measuring the machine's peaks"))


def check_setting(setting: Setting) -> None:
    """Raises UsageError for what does not fit together."""
    if setting.runtime == "onnxruntime" and setting.level not in LEVELS:
        raise UsageError(f"the level is one of {', '.join(LEVELS)}; got {setting.level!r}")
    if setting.threads < 1:
        raise UsageError(f"at least one thread is needed; got {setting.threads}")
    known = set(describe().cores)
    if not set(setting.affinity) <= known:
        raise UsageError(f"this process may use the processors {', '.join(map(str, sorted(known)))}; got {setting.affinity}")


def profile(
    loaded: Loaded,
    setting: Setting,
    record: Record,
    *,
    machine: Machine | None = None,
    percents: Sequence[float] = USUAL,
    every_level: bool = False,
) -> ModelProfile:
    """Measure a loaded model.

    machine: measured before; its load is taken anew.  percents: percentiles of the latency to give bounds for.
    every_level: profile the kernels at all levels of the runtime and not only with optimisation off and at the setting's.
    Raises UsageError where there are no example inputs, CannotTell where the runtime does not run the model.
    """
    check_setting(setting)
    here = replace(machine, load=describe().load) if machine is not None else measured_machine(setting)
    with tempfile.TemporaryDirectory(prefix="normfold-") as name:
        folder = Path(name)
        deployed = _deploy(loaded, record, folder)
        start = Cold(
            **ask("cold", {"path": str(deployed.path), **shared(setting, deployed.feeds, setting.level)}, "the cold start")
        )
        latency = _latency(deployed, setting, percents, folder)
        noise = compare(deployed, deployed, setting, seconds=_SHARES["noise"] * setting.seconds)
        seconds = max(_SHARES["kernels"] * setting.seconds, 0.2)

        def level(which: str, *, full: bool = False) -> Level:
            original, path = (deployed.full, deployed.full_path) if full else (deployed.original, deployed.path)
            return measure_level(original, path.parent, deployed.feeds, which, setting, here, folder, seconds)

        off = level(_OFF, full=True)
        names = [item for item in LEVELS if item != _OFF and (every_level or item == setting.level)]
        levels = [off, *(level(item) for item in names)]
        now = next((item for item in levels if item.name == setting.level), off)
        rows = norm_costs(deployed.full, off, deployed.original, now, deployed.findings["latency"], deployed.findings["norms"])
        return ModelProfile(
            source=record.source or loaded.name,
            sha256=loaded.sha256,
            bytes=_bytes(deployed.path),
            nodes=len(deployed.original.nodes),
            inputs={key: list(array.shape) for key, array in deployed.arrays.items()},
            setting=setting,
            machine=here,
            cold=start,
            latency=latency,
            noise=noise,
            levels=levels,
            norms=rows,
            sentence=sentence(rows, off, now),
            notes=[*record.notes, *record.warnings],
        )


def compare(before: Deployed, after: Deployed, setting: Setting, *, seconds: float) -> Timing:
    """Two deployed files interleaved, in a process of their own."""
    arguments = {
        "before": str(before.path),
        "after": str(after.path),
        **shared(setting, before.feeds, setting.level),
        "feeds": [str(before.feeds.path), str(after.feeds.path)],
        "names": [before.feeds.names, after.feeds.names],
        "seconds": seconds,
        "confidence": setting.confidence,
    }
    return Timing(**ask("compare", arguments, "the interleaved comparison"))


def compare_models(before: Loaded, after: Loaded, setting: Setting) -> Timing:
    """The latency of one model against that of another.  Each runs on its own example inputs."""
    with tempfile.TemporaryDirectory(prefix="normfold-") as name:
        sides: list[Deployed] = []
        for side, loaded in (("before", before), ("after", after)):
            folder = Path(name, side)
            folder.mkdir()
            sides.append(_deploy(loaded, Record(), folder, findings=False))
        return compare(sides[0], sides[1], setting, seconds=setting.seconds)


def _latency(deployed: Deployed, setting: Setting, percents: Sequence[float], folder: Path) -> Latency:
    out = folder / "latency.npy"
    arguments = {
        "path": str(deployed.path),
        "seconds": _SHARES["latency"] * setting.seconds,
        "least": max(needed(percent, setting.confidence) for percent in percents),
        "out": str(out),
        **shared(setting, deployed.feeds, setting.level),
    }
    answer: dict[str, Any] = ask("latency", arguments, "measuring the latency")
    return latency_of(np.load(out, allow_pickle=False), answer["warm_up"], answer["settled"], percents, setting.confidence)


def latency_of(times: Array, warm_up: int, settled: bool, percents: Sequence[float], confidence: float) -> Latency:
    """What single runs of so many seconds each say."""
    return Latency(
        runs=len(times),
        warm_up=warm_up,
        settled=settled,
        mean=float(times.mean()),
        percentiles=[percentile(times, percent, confidence) for percent in sorted({50.0, *percents})],
        quantiles=[float(value) for value in np.quantile(times, np.linspace(0.0, 1.0, 101))],
    )


def _deploy(loaded: Loaded, record: Record, folder: Path, *, findings: bool = True) -> Deployed:
    """The ONNX file to run, what `normfold optimize` would say of its norms, and the example inputs as a file."""
    options = Options(objective="latency", verify=False, simplify=False, timing=False)
    route = open_route(loaded, options, record)
    examples = route.examples()
    if not examples:
        reasons = "; ".join(record.warnings)
        raise UsageError(f"{record.source or loaded.name} cannot be run without example inputs{': ' if reasons else ''}{reasons}")
    path, full_path = _files(route, folder, record)
    original = read_original(path)
    full = original if full_path == path else read_original(full_path)
    arrays = feeds_by_name(_inputs(original), examples[-1])
    feeds = write_feeds(arrays, folder / "feeds.npz")
    found: dict[str, list[Finding]] = {"latency": [], "norms": []}
    if findings:
        route.graph.keep_exact = False
        tidy(route.graph)
        for objective in ("latency", "norms"):
            found[objective] = rewrite(route.graph, replace(options, objective=objective)).findings
    return Deployed(path, original, full, full_path, feeds, arrays, found)


def _inputs(original: Original) -> list[str]:
    graph = original.model.graph
    given = {item.name for item in graph.initializer}
    return [item.name for item in graph.input if item.name not in given]


def _files(route: Route, folder: Path, record: Record) -> tuple[Path, Path]:
    """(the file as it is deployed, the file with all its norms): they differ where PyTorch's exporter writes it."""
    if isinstance(route, TorchRoute):
        from normfold.export.to_onnx import save_onnx
        from normfold.export.to_torch import to_onnx_model

        path, full = folder / "deployed.onnx", folder / "full.onnx"
        save_onnx(to_onnx_model(route.before), path)
        try:
            save_with_norms(route.before, full)
        except NormfoldError as error:
            record.note(f"the share of normalization with optimisation off is that of the exporter's optimised file: {error}")
            return path, path
        return path, full
    if route.loaded.onnx is not None:
        return route.loaded.onnx, route.loaded.onnx
    path = folder / "model.onnx"
    path.write_bytes(route.loaded.proto.SerializeToString())
    return path, path


def save_with_norms(program: Any, path: Path) -> None:
    """Write an ExportedProgram as ONNX with every norm that it has: the exporter's optimiser would fold some.

    Without it the biases of convolutions are computed at run time, from a constant: such are computed here.
    """
    from normfold.capture.onnx import from_onnx
    from normfold.capture.onnx_write import to_model
    from normfold.export.to_onnx import save_onnx
    from normfold.export.to_torch import to_onnx_model

    graph = from_onnx(to_onnx_model(program, optimize=False))
    tidy(graph)
    save_onnx(to_model(graph), path)


def _bytes(path: Path) -> int:
    """The file with the files of its external data."""
    import onnx

    model = onnx.ModelProto.FromString(path.read_bytes())
    beside = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
