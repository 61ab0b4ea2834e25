"""The whole way of one model: capture, tidy, rewrite, judge, write, measure.  The only place that decides."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.capture.tidy import tidy
from normfold.errors import CannotTell, NormfoldError, ResultDiffers
from normfold.export.manifest import write_manifest
from normfold.graph import Graph
from normfold.load import Loaded
from normfold.pipeline.options import Options, check_outputs
from normfold.pipeline.rewriting import Outcome, rewrite, size_of, undone
from normfold.pipeline.routes import Route, feeds_by_name, open_route
from normfold.record import Record, Refusal
from normfold.rewrites.choices import has_records
from normfold.rewrites.refusals import REFUSALS

if TYPE_CHECKING:
    from normfold.verify import Feed

PACKAGES = ("normfold", "torch", "onnx", "onnx-ir", "onnxruntime", "onnxsim", "numpy")
CONFIDENCE = 0.99  # a verdict "slower" undoes the fold, so it must not be drawn from noise


@dataclass
class Result:
    """What `optimize` returns.

    record: everything that was learnt.  graph: the rewritten view.
    """

    record: Record
    graph: Graph
    route: Route

    @property
    def program(self) -> Any:
        """The rewritten torch.export.ExportedProgram; None for an ONNX input."""
        return getattr(self.route, "program", None)

    @property
    def model(self) -> Any:
        """The rewritten onnx_ir.Model; None for a torch input (save one with `save("x.onnx")`)."""
        return getattr(self.route, "model", None)

    @property
    def module(self) -> Any:
        """The rewritten model as a callable nn.Module; None for an ONNX input."""
        return None if self.program is None else self.program.module()

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the result in the format that the suffix names (.onnx, .pt2); returns the files."""
        return self.route.write(Path(path), force=force)


def run(loaded: Loaded, options: Options, record: Record) -> Result:
    """Optimise a loaded model as `options` say and fill `record` on the way.

    Raises ResultDiffers when the result does not pass the gates (nothing is written then), CannotTell when it cannot be
    judged, and what loading, capture and writing raise.
    """
    outputs = _outputs(loaded, options)
    record.objective = options.objective
    record.versions = _versions()
    if not has_records(options.target):
        record.note(f"nothing was measured on {options.target}: what is faster is answered as for target generic")
    with _stage(record, "capture"):
        route = open_route(loaded, options, record)
        record.before = size_of(route.graph)
        route.graph.keep_exact = options.verify  # without proof constants are rounded at once: half the memory
        tidy(route.graph, record)
    with _stage(record, "rewrite"):
        outcome = rewrite(route.graph, options)
        record.findings, record.inserted = outcome.findings, outcome.inserted
        record.applied += outcome.applied
    with _stage(record, "build"):
        route.finish(outcome.graph)
        record.after = size_of(outcome.graph)
    result = Result(record, outcome.graph, route)
    if not options.verify and not options.simplify and not options.timing:
        _write(result, outputs, {}, options)
        return result
    with tempfile.TemporaryDirectory(prefix="normfold-") as name:
        folder = Path(name)
        tidied: dict[str, bytes] = {}
        for suffix in dict.fromkeys([path.suffix for path in outputs] or [route.default]):
            _check(result, outcome, suffix, folder, options, tidied)
        if options.timing:
            with _stage(record, "timing"):
                _time(route, folder, options, record)
        if _slower(record, options):
            return _unchanged(loaded, options, record)
        _write(result, outputs, tidied, options)
    return result


def inspect(loaded: Loaded, record: Record, options: Options | None = None) -> Record:
    """Every normalization layer of a loaded model and what `optimize` would do with it; nothing is written."""
    options = options or Options()
    record.objective, record.versions = options.objective, _versions()
    route = open_route(loaded, options, record)
    record.before = size_of(route.graph)
    tidy(route.graph)
    outcome = rewrite(route.graph, options)
    record.findings, record.inserted, record.after = outcome.findings, outcome.inserted, size_of(outcome.graph)
    return record


def _outputs(loaded: Loaded, options: Options) -> tuple[Path, ...]:
    outputs = (loaded.path,) if options.in_place and loaded.path is not None else options.outputs
    check_outputs(outputs, kind=loaded.kind, source=loaded.path, force=options.force, in_place=options.in_place)
    return outputs


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was not installed
            found[package] = "unknown"
    return found


@contextmanager
def _stage(record: Record, name: str) -> Generator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[name] = round(record.seconds.get(name, 0.0) + time.perf_counter() - began, 3)


def _check(result: Result, outcome: Outcome, suffix: str, folder: Path, options: Options, tidied: dict[str, bytes]) -> None:
    """Write one artefact to a temporary place and judge the file; then the same for its onnxsim form, if that is wanted."""
    route, record = result.route, result.record
    path = folder / f"result{suffix}"
    with _stage(record, "write"):
        files = route.write(path, force=True)
    if options.verify:
        with _stage(record, "verify"):
            _judge(result, outcome, path, options)
    if suffix == ".onnx" and options.simplify and len(files) == 1:
        with _stage(record, "simplify"):
            simplified = _simplified(result, path, folder, options)
        if simplified is not None:
            tidied[suffix] = simplified


def _judge(result: Result, outcome: Outcome, path: Path, options: Options) -> None:
    """All gates on the written file.  Raises ResultDiffers or CannotTell."""
    from normfold.verify import judge

    route, record = result.route, result.record
    if path.suffix == ".onnx":
        _load_check(path)
    inputs = _feeds(route)
    budget = options.proof_seconds
    judgement = judge(route.graph, outcome.graph, route.original(), route.result(path), inputs, budget=budget)
    record.comparisons += judgement.comparisons
    for label, reason in judgement.left_out.items():
        record.note(f"not compared on {label} inputs: {reason}")
    for note in judgement.notes:
        record.note(note)
    if judgement.verdict == "different":
        worst = judgement.failed[0]
        undone(record.findings, REFUSALS["undone"])
        raise ResultDiffers(
            f"the result differs from the original: gate {worst.gate} on {worst.subject} ({worst.family} inputs), error "
            f"{worst.error:.3g} where {worst.allowed:.3g} is allowed; nothing was written. "
            "This is a defect of normfold: please report it"
        )
    if judgement.verdict == "cannot tell":
        failed = [item for item in judgement.comparisons if not item.passed]
        detail = f" ({failed[0].subject}: {failed[0].where})" if failed else ""
        raise CannotTell(f"the result could not be judged{detail}; nothing was written. --no-verify writes it without proof")


def _feeds(route: Route) -> list[Feed]:
    """What to compare on: the caller's own data first, then the input families."""
    from normfold.verify import feeds

    examples = route.examples()[-1:]
    return feeds(route.graph, data=examples) if route.loaded.own_inputs else feeds(route.graph, examples=examples)


def _load_check(path: Path) -> None:
    from normfold.export.to_onnx import check

    found = check(path)
    if not found.passed:
        raise ResultDiffers(f"the written ONNX file is not accepted: {found.checker or found.runtime}; nothing was written")


def _simplified(result: Result, path: Path, folder: Path, options: Options) -> bytes | None:
    """The file after onnxsim, when that is smaller and says the same; None otherwise."""
    import onnx

    from normfold.export.to_onnx import simplify

    route, record = result.route, result.record
    data = simplify(path, record=record)
    if data is None:
        return None
    before, after = onnx.load_from_string(path.read_bytes()), onnx.load_from_string(data)
    if len(after.graph.node) >= len(before.graph.node):
        record.note("the onnxsim step found nothing to remove and was left out")
        return None
    target = folder / "simplified.onnx"
    target.write_bytes(data)
    if options.verify:
        from normfold.verify import judge

        try:
            inputs = _feeds(route)
            judged = judge(route.graph, None, route.original(), route.result(target), inputs, budget=options.proof_seconds / 4)
        except NormfoldError as error:
            record.warn(f"the onnxsim step was left out: {error}")
            return None
        if judged.verdict != "same":
            record.warn("the onnxsim step was left out: its result does not pass the gates")
            return None
    return data


def _time(route: Route, folder: Path, options: Options, record: Record) -> None:
    """Latency before and after on ONNX Runtime's default level, one thread."""
    from normfold.profile.sessions import compare_onnx, onnx_session

    examples = route.examples()
    if not examples:
        record.note("not timed: no example inputs; give --input or --data")
        return
    pair = route.onnx_pair(folder)
    if pair is None:
        return
    try:
        feeds = feeds_by_name([item.name for item in onnx_session(pair[0]).get_inputs()], examples[-1])
        record.timings.append(compare_onnx(*pair, feeds, seconds=options.seconds, confidence=CONFIDENCE))
    except NormfoldError as error:
        record.note(f"not timed: {error}")


def _slower(record: Record, options: Options) -> bool:
    return options.objective == "latency" and any(timing.verdict == "slower" for timing in record.timings)


def _unchanged(loaded: Loaded, options: Options, record: Record) -> Result:
    """The default result is never slower than what came: keep every layer, and say why."""
    slower = Refusal(
        "slower", "the rewritten model was measured slower here than the original", "use --objective norms to fold all the same"
    )
    record.warn(
        "the rewritten model was measured slower than the original: nothing was folded; --objective norms folds all the same"
    )
    route = open_route(loaded, options, Record())
    route.finish(route.graph)
    undone(record.findings, slower)
    record.applied, record.inserted, record.after = [], {}, record.before
    result = Result(record, route.graph, route)
    _write(result, _outputs(loaded, options), {}, options)
    return result


def _write(result: Result, outputs: tuple[Path, ...], tidied: dict[str, bytes], options: Options) -> None:
    """Write every output atomically, with its manifest beside it."""
    from normfold.export.atomic import write_files

    if options.dry_run:
        return
    force = options.force or options.in_place
    for path in outputs:
        data = tidied.get(path.suffix)
        if data is None:
            files = result.route.write(path, force=force)
        else:
            write_files({path: lambda file, data=data: file.write(data)}, force=force)
            files = [path]
        for file in files:
            with open(file, "rb") as stream:
                result.record.outputs[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
    for path in outputs:
        write_manifest(path, result.record)
