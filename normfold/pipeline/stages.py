"""The whole way of one model: capture, tidy, rewrite, judge, write, measure.  The only place that decides."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normfold.capture.tidy import tidy
from normfold.errors import NormfoldError
from normfold.export.manifest import write_manifest
from normfold.graph import Graph
from normfold.load import Loaded
from normfold.pipeline.options import Options, check_outputs
from normfold.pipeline.proving import Write, objection, prove, prove_also
from normfold.pipeline.rewriting import rewrite, size_of, undone
from normfold.pipeline.rolling import roll_up
from normfold.pipeline.routes import Route, TorchRoute, feeds_by_name, open_route
from normfold.pipeline.versions import versions
from normfold.record import Record, Refusal
from normfold.rewrites.choices import has_records

CONFIDENCE = 0.99  # a verdict "slower" undoes the fold, so it must not be drawn from noise


@dataclass
class Result:
    """What `optimize` returns.

    record: everything that was learnt.  graph: the rewritten view.  options: as asked.  judged: suffixes of the formats that
    were judged.
    """

    record: Record
    graph: Graph
    route: Route
    options: Options = field(default_factory=Options)
    judged: set[str] = field(default_factory=set[str])

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
        """The rewritten model as a callable nn.Module; None for an ONNX input.

        What a model with a state of its own (a buffer that forward writes to) does to it stays in that module.
        """
        if self.program is None:
            return None
        module = self.program.module()
        for name in self.program.graph_signature.buffers_to_mutate.values():
            owner, _, leaf = name.rpartition(".")
            held = module.get_submodule(owner)
            setattr(held, leaf, getattr(held, leaf).clone())
        return module

    def save(self, path: str | Path, *, force: bool = False) -> list[Path]:
        """Write the result in the format that the suffix names (.onnx, .pt2); returns the files.

        A format that `optimize` did not judge is judged now (unless it was told to judge nothing): the exporter may err.
        Raises UsageError where the place or the suffix is not right, ResultDiffers when the file does not pass, CannotTell when
        it cannot be judged; nothing is written then.
        """
        path = Path(path)
        check_outputs((path,), kind=self.route.loaded.kind, source=None, force=force, in_place=False)
        suffix = path.suffix.lower()
        if self.options.verify and suffix not in self.judged:
            with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
                copy = Path(folder) / f"result{suffix}"
                self.route.write(copy, force=True)
                prove_also(self.route, self.graph, copy, self.options, self.record)
            self.judged.add(suffix)
        return self.route.write(path, force=force)


def run(loaded: Loaded, options: Options, record: Record) -> Result:
    """Optimise a loaded model as `options` say and fill `record` on the way.

    Raises ResultDiffers when the result does not pass the gates (nothing is written then), CannotTell when it cannot be
    judged, and what loading, capture and writing raise.
    """
    outputs = _outputs(loaded, options)
    record.objective = options.objective
    record.versions = versions()
    if not has_records(options.target):
        record.note(f"nothing was measured on {options.target}: what is faster is answered as for target generic")
    with _stage(record, "capture"):
        route = open_route(loaded, options, record)
        record.before = size_of(route.graph)
        route.graph.keep_exact = options.verify  # without proof constants are rounded at once: half the memory
        tidy(route.graph, record)
    earlier = list(record.applied)
    with _stage(record, "rewrite"):
        outcome = rewrite(route.graph, options)
        record.findings, record.inserted = outcome.findings, outcome.inserted
    with _stage(record, "build"):
        route.finish(outcome.graph)
        record.applied, record.after = earlier + outcome.applied, size_of(outcome.graph)
    with tempfile.TemporaryDirectory(prefix="normfold-") as name:
        folder = Path(name)
        suffixes = list(dict.fromkeys([path.suffix.lower() for path in outputs] or [route.default]))
        written: dict[str, list[Path]] = {}

        def write(suffix: str) -> Path:
            with _stage(record, "write"):
                written[suffix] = route.write(folder / f"result{suffix}", force=True)
            return folder / f"result{suffix}"

        if options.verify:
            with _stage(record, "verify", but="write"):
                outcome = prove(route, outcome, suffixes, write, options, record)
            record.applied, record.after = earlier + outcome.applied, size_of(outcome.graph)
        result = Result(record, outcome.graph, route, options, set(suffixes) if options.verify else set())
        if ".onnx" in suffixes and isinstance(route, TorchRoute):
            with _stage(record, "reroll", but="write"):
                roll_up(route, outcome.graph, write, folder, options, record)
        tidied = _tidied(result, suffixes, written, write, folder, options)
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
    record.objective, record.versions = options.objective, versions()
    route = open_route(loaded, options, record)
    record.before = size_of(route.graph)
    tidy(route.graph)
    outcome = rewrite(route.graph, options)
    record.findings, record.inserted, record.after = outcome.findings, outcome.inserted, size_of(outcome.graph)
    record.applied = outcome.applied
    return record


def _outputs(loaded: Loaded, options: Options) -> tuple[Path, ...]:
    outputs = (loaded.path,) if options.in_place and loaded.path is not None else options.outputs
    check_outputs(outputs, kind=loaded.kind, source=loaded.path, force=options.force, in_place=options.in_place)
    return outputs


@contextmanager
def _stage(record: Record, name: str, *, but: str = "") -> Generator[None]:
    """Count the time of the body to the stage `name`; without what the stage `but` took in between."""
    began, counted = time.perf_counter(), record.seconds.get(but, 0.0)
    try:
        yield
    finally:
        spent = time.perf_counter() - began - (record.seconds.get(but, 0.0) - counted)
        record.seconds[name] = round(record.seconds.get(name, 0.0) + spent, 3)


def _tidied(
    result: Result, suffixes: list[str], written: dict[str, list[Path]], write: Write, folder: Path, options: Options
) -> dict[str, bytes]:
    """The onnxsim form of the ONNX artefact, by suffix, where that is wanted and better."""
    if ".onnx" not in suffixes or not options.simplify:
        return {}
    path = folder / "result.onnx" if ".onnx" in written else write(".onnx")
    if len(written[".onnx"]) != 1:
        return {}
    with _stage(result.record, "simplify"):
        simplified = _simplified(result, path, folder, options)
    return {} if simplified is None else {".onnx": simplified}


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
    why = objection(route, target, options) if options.verify else ""
    if why:
        record.warn(f"the onnxsim step was left out: {why}")
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
    result = Result(record, route.graph, route, options)
    _write(result, _outputs(loaded, options), {}, options)
    return result


def _write(result: Result, outputs: tuple[Path, ...], tidied: dict[str, bytes], options: Options) -> None:
    """Write every output atomically, with its manifest beside it."""
    from normfold.export.atomic import write_files

    if options.dry_run:
        return
    force = options.force or options.in_place
    for path in outputs:
        data = tidied.get(path.suffix.lower())
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
