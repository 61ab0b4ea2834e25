"""Two routes to the view and back: an ONNX file, or a torch model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from normfold.errors import CannotTell, NormfoldError, UsageError
from normfold.graph import Array, Graph
from normfold.load import Loaded
from normfold.pipeline.options import Options
from normfold.record import Record

if TYPE_CHECKING:
    from normfold.verify import Runner


class Route(Protocol):
    """One kind of input: how it is captured, run, and written.

    graph: the view as captured.  default: the suffix of the result when no output is named.
    """

    graph: Graph
    default: str
    loaded: Loaded

    def examples(self) -> list[dict[str, Array]]:
        """Example inputs by the view's names; the last is the caller's own."""
        ...

    def original(self) -> Runner:
        """The model as it came, in its runtime."""
        ...

    def peer(self, path: Path) -> Runner | None:
        """The model as it came, in the runtime of a written result; None where that is its own, or cannot run it."""
        ...

    def finish(self, graph: Graph) -> None:
        """Take the rewritten view; what is written from now on says the same."""
        ...

    def write(self, path: Path, *, force: bool = False) -> list[Path]:
        """Write the result in the format that the suffix names; returns the files."""
        ...

    def result(self, path: Path) -> Runner:
        """A written result in its runtime."""
        ...

    def stored(self, path: Path) -> Graph | None:
        """The view of a written result: its weights as they are stored; None when it cannot be captured."""
        ...

    def onnx_pair(self, folder: Path) -> tuple[Path, Path] | None:
        """ONNX files of the model before and after, to time; None when there is no ONNX form."""
        ...


class OnnxRoute:
    """An ONNX file or ModelProto."""

    default = ".onnx"

    def __init__(self, loaded: Loaded, options: Options, record: Record) -> None:
        from normfold.capture.onnx import from_onnx

        if options.opset is not None:
            raise UsageError(
                "an ONNX input keeps its own opset; --opset is for torch inputs: convert the file first (onnx.version_converter)"
            )
        self.source = loaded.onnx if loaded.onnx is not None else loaded.proto
        self.loaded = loaded
        self.graph = from_onnx(self.source, keep_overridable=options.keep_overridable, record=record)
        self.model: Any = None

    def examples(self) -> list[dict[str, Array]]:
        return list(self.loaded.feeds)

    def _source(self) -> Path | bytes:
        return self.loaded.onnx if self.loaded.onnx is not None else self.loaded.proto.SerializeToString()

    def original(self) -> Runner:
        from normfold.verify import OnnxRunner

        return OnnxRunner(self._source())

    def peer(self, path: Path) -> Runner | None:
        return None

    def finish(self, graph: Graph) -> None:
        from normfold.capture.onnx_write import to_model

        self.model = to_model(graph)

    def write(self, path: Path, *, force: bool = False) -> list[Path]:
        from normfold.export.to_onnx import save_onnx

        return save_onnx(self.model, path, force=force)

    def result(self, path: Path) -> Runner:
        from normfold.verify import OnnxRunner

        return OnnxRunner(path)

    def stored(self, path: Path) -> Graph | None:
        return captured(path)

    def onnx_pair(self, folder: Path) -> tuple[Path, Path] | None:
        source, after = self._source(), folder / "after.onnx"
        if isinstance(source, bytes):
            (folder / "before.onnx").write_bytes(source)
            source = folder / "before.onnx"
        self.write(after, force=True)
        return source, after


class TorchRoute:
    """An nn.Module or ExportedProgram."""

    default = ".pt2"

    def __init__(self, loaded: Loaded, options: Options, record: Record) -> None:
        from normfold.capture.aten import from_aten
        from normfold.capture.program import export_module, functional

        self.options, self.record = options, record
        if loaded.kind == "module":
            if not loaded.calls:
                raise UsageError("a torch model needs example inputs to be captured: give --input, --data or --inputs")
            args, kwargs = loaded.calls[0]
            program = export_module(loaded.module, args, kwargs, dynamic_shapes=loaded.dynamic, record=record)
        else:
            program = functional(loaded.program)
        self.before = program
        self.loaded = loaded
        self.graph = from_aten(program, record)
        self.program: Any = None
        self._peer: Runner | None = None
        self._peerless = False  # it was tried in vain
        self._onnx: Any = None  # the rewritten program as ONNX: exported once, checked, timed and written from there

    def examples(self) -> list[dict[str, Array]]:
        from normfold.capture.aten_inputs import flatten_inputs

        calls = list(self.loaded.calls)
        if not calls and self.before.example_inputs is not None:
            calls = [self.before.example_inputs]
        return [flatten_inputs(self.before, args, kwargs) for args, kwargs in calls]

    def original(self) -> Runner:
        from normfold.verify import TorchRunner

        return TorchRunner(self.before)

    def peer(self, path: Path) -> Runner | None:
        from normfold.export.to_onnx import proto_bytes
        from normfold.export.to_torch import to_onnx_model
        from normfold.verify import OnnxRunner

        if path.suffix == ".onnx" and self._peer is None and not self._peerless:
            try:
                self._peer = OnnxRunner(proto_bytes(to_onnx_model(self.before, opset=self.options.opset)))
            except NormfoldError:
                self._peerless = True
        return self._peer if path.suffix == ".onnx" else None

    def finish(self, graph: Graph) -> None:
        from normfold.capture.aten_write import to_program

        self.program, self._onnx = to_program(graph), None

    def as_onnx(self) -> Any:
        """The rewritten program as an onnx_ir.Model, or what has taken its place."""
        from normfold.export.to_torch import to_onnx_model

        if self._onnx is None:
            self._onnx = to_onnx_model(self.program, opset=self.options.opset)
        return self._onnx

    def take_onnx(self, model: Any) -> None:
        """Another form of the rewritten program as ONNX: it is written and timed from now on."""
        self._onnx = model

    def write(self, path: Path, *, force: bool = False) -> list[Path]:
        if path.suffix.lower() == ".pt2":
            from normfold.export.to_torch import save_program

            save_program(self.program, path, force=force)
            return [path]
        from normfold.export.to_onnx import save_onnx

        return save_onnx(self.as_onnx(), path, force=force)

    def result(self, path: Path) -> Runner:
        from normfold.verify import OnnxRunner, TorchRunner

        if path.suffix == ".onnx":
            return OnnxRunner(path)
        import torch

        return TorchRunner(torch.export.load(path))

    def stored(self, path: Path) -> Graph | None:
        return captured(path)

    def onnx_pair(self, folder: Path) -> tuple[Path, Path] | None:
        from normfold.export.to_onnx import save_onnx
        from normfold.export.to_torch import to_onnx_model

        before, after = folder / "before.onnx", folder / "after.onnx"
        try:
            save_onnx(to_onnx_model(self.before, opset=self.options.opset), before, force=True)
            save_onnx(self.as_onnx(), after, force=True)
        except NormfoldError as error:
            self.record.note(f"not timed on ONNX Runtime: {error}")
            return None
        return before, after


def captured(path: Path) -> Graph | None:
    """The view of an artefact of ours; None when it cannot be captured (the gates then judge the view that was written)."""
    try:
        if path.suffix == ".onnx":
            from normfold.capture.onnx import from_onnx

            return from_onnx(path)
        import torch

        from normfold.capture.aten import from_aten

        return from_aten(torch.export.load(path))
    except NormfoldError:
        return None


def open_route(loaded: Loaded, options: Options, record: Record) -> Route:
    """The route that fits what was loaded."""
    make: Callable[[Loaded, Options, Record], Route] = OnnxRoute if loaded.kind == "onnx" else TorchRoute
    return make(loaded, options, record)


def feeds_by_name(names: list[str], example: dict[str, Array]) -> dict[str, Array]:
    """The arrays of `example` under the names of a runtime's inputs.  Raises CannotTell when their number differs."""
    if set(names) <= set(example):
        return {name: example[name] for name in names}
    if len(names) != len(example):
        raise CannotTell(f"the model takes {', '.join(names)}, the examples give {', '.join(example)}")
    return dict(zip(names, example.values(), strict=True))
