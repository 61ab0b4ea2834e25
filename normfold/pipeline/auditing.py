"""Every model below some folders profiled, one after the other or many at once.

`audit` hands the models to joblib: processes of this machine (`jobs`), or whatever backend is in force, such as a dask cluster
whose workers have normfold and see the same files:

    from dask.distributed import Client
    from joblib import parallel_config

    with Client("scheduler:8786"), parallel_config(backend="dask"):
        entries = list(audit(keys, Setting(), machine, jobs=-1))

Models that are measured at the same time on the same machine disturb each other: their profiles say how far (the model against
itself), and a budget for a latency is then rather not told than told wrongly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normfold.errors import NormfoldError, UsageError
from normfold.load import Loaded, load
from normfold.pipeline.profiling import profile
from normfold.profile.percentiles import USUAL
from normfold.profile.result import Machine, ModelProfile, Setting
from normfold.record import Record

SUFFIXES = frozenset(".onnx .pt2 .pt .pth .safetensors .ckpt .th .jit".split())


@dataclass(frozen=True)
class Entry:
    """One file: its profile, or why there is none.  key: of the file's content and everything that it was measured with."""

    path: str
    key: str
    profile: ModelProfile | None
    reason: str = ""


def find_models(places: Sequence[Path]) -> list[Path]:
    """The model files among `places` and below those that are folders, each once, in order; hidden ones are left out.

    Raises UsageError for a place that does not exist, and when there is no model at all.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise UsageError(f"{place} does not exist; name a folder with models, or a model")
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in inside:
            hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
            if path.is_file() and (path == place or (path.suffix.lower() in SUFFIXES and not hidden)):
                found.setdefault(path.resolve(), path)
    if not found:
        known = " ".join(sorted(SUFFIXES))
        raise UsageError(f"there is no model in {', '.join(map(str, places))} (files that end in {known})")
    return list(found.values())


def key_of(path: Path, setting: Setting, open_size: int | None, versions: dict[str, str], percents: Sequence[float]) -> str:
    """sha256 of the file, of the sidecar beside it and of how it is measured: equal keys need no second measurement."""
    digest = hashlib.sha256()
    for part in (path, path.with_suffix(".toml")):
        if part.is_file():
            with open(part, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    told = {"setting": asdict(setting), "open": open_size, "versions": versions, "percents": list(percents)}
    digest.update(json.dumps(told, sort_keys=True).encode())
    return digest.hexdigest()


def audit(
    keys: Mapping[Path, str],
    setting: Setting,
    machine: Machine,
    *,
    jobs: int = 1,
    open_size: int | None = None,
    percents: Sequence[float] = USUAL,
) -> Iterator[Entry]:
    """Profile every file; entries come as they are ready.

    keys: the files with what `key_of` says of each.  jobs: how many at once, -1 for as many as there are processors.
    open_size: for sizes beyond the first axis that an .onnx file leaves open (None: such a file is not measured).
    Raises UsageError where joblib is needed and not installed.
    """
    if jobs == 1 and not _configured():
        for path, key in keys.items():
            yield measure(path, key, setting, open_size, percents, machine)
        return
    try:
        from joblib import Parallel, delayed
    except ImportError:
        raise UsageError("--jobs needs joblib: pip install normfold[audit]") from None
    tasks: Any = (delayed(measure)(path, key, setting, open_size, percents, machine) for path, key in keys.items())
    pool: Any = Parallel(n_jobs=jobs, return_as="generator_unordered")
    yield from pool(tasks)


def _configured() -> bool:
    """The caller chose a backend of joblib."""
    try:
        from joblib.parallel import get_active_backend
    except ImportError:
        return False
    backend: Any = get_active_backend()[0]
    return type(backend).__name__ not in ("LokyBackend", "SequentialBackend")


def measure(path: Path, key: str, setting: Setting, open_size: int | None, percents: Sequence[float], machine: Machine) -> Entry:
    """One file; whatever is wrong with it becomes the entry's reason."""
    record = Record()
    try:
        loaded = _loaded(path, open_size, record)
        found = profile(loaded, setting, record, machine=machine, percents=percents)
    except NormfoldError as error:
        return Entry(str(path), key, None, str(error).removeprefix(f"{path} "))
    except Exception as error:  # one file must not end the audit of all others
        lines = str(error).strip().splitlines()
        return Entry(str(path), key, None, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
    return Entry(str(path), key, found)


def _loaded(path: Path, open_size: int | None, record: Record) -> Loaded:
    loaded = load(path, record=record)
    if loaded.kind != "onnx" or loaded.feeds or open_size is None or loaded.onnx is None:
        return loaded
    specs = _specs(loaded.onnx, open_size)
    again = load(path, inputs=specs, record=Record())
    record.warnings.clear()
    record.note(f"open sizes were taken as {open_size}: {', '.join(specs)}")
    return again


def _specs(path: Path, size: int) -> list[str]:
    """--input of every input, with `size` for what is open beyond the first axis."""
    from normfold.load.feeds import inputs_of
    from normfold.load.onnx_file import read_head

    specs: list[str] = []
    for item in inputs_of(read_head(path)):
        if item.dtype is not None and item.shape:
            dims = [dim if isinstance(dim, int) else (1 if axis == 0 else size) for axis, dim in enumerate(item.shape)]
            specs.append(f"{item.name}={'x'.join(map(str, dims))}")
    return specs
