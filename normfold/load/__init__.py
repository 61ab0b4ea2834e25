"""From a file or a live object to a model with the calls that exercise it.

`load` judges a file by its content, refuses what is malformed or unsafe in one line, and executes nothing that the file holds:
pickles are read weights-only, programs are audited first.  Python that the caller names (--model, --inputs, a sidecar) is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.load import inputs as given
from normfold.load.dynamic import parse_dynamic
from normfold.load.factory import call, resolve
from normfold.load.loaded import Call, Feed, Kind, Loaded
from normfold.load.sidecar import Sidecar, find_sidecar, read_sidecar
from normfold.load.sniff import Format, refuse, sniff
from normfold.record import Record

__all__ = ["Call", "Feed", "Format", "Kind", "Loaded", "load", "refuse", "sniff"]


@dataclass(frozen=True)
class _Asked:
    """What the caller and the sidecar say, each option with the folder that its paths are relative to."""

    model: str | None
    model_base: Path | None
    key: str | None
    prefix: str | None
    specs: list[given.InputSpec]
    data: Path | None
    inputs_from: str | None
    inputs_base: Path | None
    dynamic: list[str]
    calls: list[Call]

    def user_calls(self) -> list[Call]:
        return self.calls or (given.calls_from(self.inputs_from, self.inputs_base) if self.inputs_from else [])

    def arrays(self) -> Any:
        return given.read_data(self.data) if self.data is not None else None


def load(
    source: Any,
    *,
    model: str | None = None,
    inputs: Sequence[str] | None = None,
    data: Path | None = None,
    inputs_from: str | None = None,
    dynamic: Sequence[str] | None = None,
    calls: Sequence[Call] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    sidecar: bool = True,
    record: Record,
) -> Loaded:
    """Load a model.

    source: path of an ``.onnx``, ``.pt2``, checkpoint or ``.safetensors`` file (known by its content), or a live nn.Module,
      ExportedProgram or onnx.ModelProto, which is never changed.
    model: ``path.py:factory`` or ``package.module:factory`` that builds the network of a checkpoint.
    inputs, data, inputs_from: example inputs, see normfold.load.inputs; calls: the same as (args, kwargs) pairs.
    dynamic: open sizes of a torch model, see normfold.load.dynamic.
    key, prefix: where the state_dict lies in a checkpoint, found when None.
    sidecar: read ``<stem>.toml`` beside the file, see normfold.load.sidecar.
    record: gets the source, its sha256, notes and warnings.

    Raises InputRefused for files that are not accepted and UsageError for options that do not fit.
    """
    if sum(item is not None for item in (inputs or None, data, inputs_from, calls)) > 1:
        raise UsageError("example inputs come from one of --input, --data and --inputs; give one of them")
    path = Path(source) if isinstance(source, (str, Path)) else None
    form = sniff(path) if path is not None else None
    beside = find_sidecar(path) if path is not None and sidecar else None
    if beside is not None:
        record.note(f"options read from {beside}")
    said = read_sidecar(beside) if beside is not None else Sidecar(Path())
    asked = _merge(said, model, inputs, data, inputs_from, dynamic, calls, key, prefix)
    loaded = _live(source) if path is None or form is None else _file(path, form, asked, record)
    record.source = str(path) if path is not None else loaded.name
    if path is not None:
        with open(path, "rb") as file:
            loaded.sha256 = record.source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    _inputs(loaded, asked, record)
    loaded.own_inputs = bool(asked.data or asked.inputs_from or asked.calls)
    return loaded


def _merge(
    beside: Sidecar,
    model: str | None,
    inputs: Sequence[str] | None,
    data: Path | None,
    inputs_from: str | None,
    dynamic: Sequence[str] | None,
    calls: Sequence[Call] | None,
    key: str | None,
    prefix: str | None,
) -> _Asked:
    explicit = bool(inputs or data or inputs_from or calls)
    beside_data = beside.folder / beside.data if beside.data is not None else None
    return _Asked(
        model=model if model is not None else beside.model,
        model_base=None if model is not None else beside.folder,
        key=key if key is not None else beside.key,
        prefix=prefix if prefix is not None else beside.prefix,
        specs=[given.parse_input(text) for text in (inputs or () if explicit else beside.inputs)],
        data=data if explicit else beside_data,
        inputs_from=inputs_from if explicit else beside.inputs_from,
        inputs_base=None if explicit else beside.folder,
        dynamic=list(dynamic if dynamic else beside.dynamic),
        calls=list(calls or ()),
    )


def _file(path: Path, form: Format, asked: _Asked, record: Record) -> Loaded:
    """The model in a file of a known format, without its inputs."""
    if form in ("onnx", "pt2") and asked.model is not None:
        raise UsageError(f"--model builds the network of a checkpoint; {path} holds a whole network, leave it out")
    if form == "onnx":
        return Loaded("onnx", path.stem, path, onnx=path)
    if form == "torchscript":
        raise refuse(
            path, "is TorchScript, which normfold does not read: give a state_dict with --model, or export it to .onnx or .pt2"
        )
    if form == "pt2":
        from normfold.load.pt2 import read_pt2

        return Loaded("program", path.stem, path, program=read_pt2(path))
    from normfold.load.state_dict import load_into, read_checkpoint, read_safetensors

    checkpoint = read_safetensors(path) if form == "safetensors" else read_checkpoint(path)
    if asked.model is None:
        raise refuse(path, "holds weights without their network: say what builds it with --model file.py:factory")
    module = _build(asked.model, asked.model_base)
    for note in load_into(module, checkpoint, path, key=asked.key, prefix=asked.prefix):
        record.note(note)
    return Loaded("module", path.stem, path, module=module.eval())


def _build(reference: str, base: Path | None) -> Any:
    """The nn.Module that the user's factory makes."""
    from torch import nn

    factory, path = resolve(reference, option="--model", base=base)
    module = factory if isinstance(factory, nn.Module) else None
    if module is None and callable(factory):
        module = call(factory, what=f"--model {reference}", path=path)
    if not isinstance(module, nn.Module):
        got = f"made a {type(module).__name__}" if callable(factory) else f"is a {type(factory).__name__}"
        raise UsageError(f"--model {reference} {got}; expected a function without arguments that returns an nn.Module")
    return module


def _live(source: Any) -> Loaded:
    """A live object, known by its class so that neither torch nor onnx is imported for the other."""
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(source).__mro__}
    if "torch.export.exported_program.ExportedProgram" in classes:
        return Loaded("program", "ExportedProgram", program=source, owned=False)
    if any(name.startswith("torch.jit.") for name in classes):
        raise UsageError("a ScriptModule is not accepted; give the nn.Module that it was made from, or an ExportedProgram")
    if "torch.nn.modules.module.Module" in classes:
        return Loaded("module", type(source).__name__, module=source, owned=False)
    if type(source).__name__ == "ModelProto" and hasattr(source, "graph"):
        return Loaded("onnx", source.graph.name or "ModelProto", proto=source, owned=False)
    raise UsageError(f"expected a path, an nn.Module, an ExportedProgram or an onnx.ModelProto; got {type(source).__name__}")


def _inputs(loaded: Loaded, asked: _Asked, record: Record) -> None:
    """Fill in `feeds`, or `calls` and `dynamic`."""
    if loaded.kind == "onnx":
        from normfold.load.feeds import build_feeds
        from normfold.load.onnx_file import read_head

        if asked.dynamic:
            raise UsageError("--dynamic is for torch models: an ONNX file says itself which sizes are open")
        head = read_head(loaded.onnx) if loaded.onnx is not None else loaded.proto
        loaded.feeds = build_feeds(head, specs=asked.specs, data=asked.arrays(), calls=asked.user_calls(), record=record)
        return
    from normfold.load.calls import module_calls, module_dynamic, program_calls

    if loaded.kind == "program":
        if asked.dynamic:
            raise UsageError("--dynamic is for modules: an exported program says itself which sizes are open")
        loaded.calls = program_calls(loaded.program, asked.specs, asked.arrays(), asked.user_calls())
        return
    loaded.calls = module_calls(loaded.module, asked.specs, asked.arrays(), asked.user_calls())
    if asked.dynamic:
        specs = [parse_dynamic(text) for text in asked.dynamic]
        count = len(loaded.calls)
        loaded.dynamic, loaded.calls = module_dynamic(loaded.module, loaded.calls, specs)
        loaded.enlarged = len(loaded.calls) > count
        if loaded.enlarged:
            record.note("an open size is 1 in the example: it is doubled there for the export, torch.export fixes sizes of 1")
