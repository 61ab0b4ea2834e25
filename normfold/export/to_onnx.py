"""ONNX artefacts: written whole or not at all, tidied by onnxsim where that works, checked as files."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from normfold.capture.onnx_wire import FileTensor
from normfold.errors import UsageError, WorkerCrashed
from normfold.export.atomic import check_target, write_files
from normfold.export.onnx_stream import LIMIT, Plan
from normfold.export.worker import run_task
from normfold.record import Record

_TASKS = "normfold.export.onnx_tasks"
_MIB = 1 << 20


def proto_bytes(model: ir.Model) -> bytes:
    """The model as one serialized protobuf, for sessions and checks without a file.

    Raises UsageError beyond 2 GiB: such a model exists as files only.
    """
    plan = Plan(model)
    if plan.size > LIMIT:
        raise UsageError(
            f"the model has {plan.size // _MIB} MiB, and a protobuf ends at 2 GiB: save it to a file, with external data"
        )
    memory = io.BytesIO()
    plan.write(memory)
    return memory.getvalue()


def save_onnx(model: ir.Model, path: str | Path, *, force: bool = False, external: bool | None = None) -> list[Path]:
    """Write `model` to `path`; returns the files written, the model first.

    external: put large tensors into ``<name>.data`` beside the model; None does so beyond 2 GiB and where the source did.
    force: replace what exists.  Same model, same bytes.
    Raises UsageError where the place is not right; an existing file is then as it was.
    """
    path = Path(path)
    check_target(path, force=force)
    plan = None if external is True or (external is None and uses_external_data(model)) else Plan(model)
    if plan is not None and plan.size > LIMIT:
        if external is False:
            raise UsageError(
                f"{path} would have {plan.size // _MIB} MiB, and a protobuf ends at 2 GiB: save it with external data"
            )
        plan = None
    if plan is not None:
        write_files({path: plan.write}, force=force)
        return [path]
    data = path.with_name(f"{path.name}.data")
    plan = Plan(model, external=data.name)
    if plan.has_external:
        write_files({data: plan.write_external, path: plan.write}, force=force)
        return [path, data]
    write_files({path: plan.write}, force=force)
    return [path]


def uses_external_data(model: ir.Model) -> bool:
    """True when weights of `model` lie in files beside the model file that it was read from."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return any((isinstance(item, FileTensor) and not item.inline) or isinstance(item, ir.ExternalTensor) for item in tensors)


def simplify(
    model: str | Path | bytes, *, record: Record | None = None, seconds: float = 120.0, memory: int | None = None
) -> bytes | None:
    """The model after onnxsim (constants folded, dead nodes gone, BatchNormalization not touched), as serialized protobuf.

    model: a file, or serialized bytes.  memory: bytes of address space that the worker may use.
    Returns None, and says so in `record`, where the simplifier crashes, fails, or runs out of time or memory.
    """
    record = Record() if record is None else record
    with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "simplified.onnx")
        if isinstance(model, bytes):
            source.write_bytes(model)
        else:
            source = Path(model)
        try:
            arguments = {"source": str(source), "target": str(target)}
            run_task(f"{_TASKS}:simplify", arguments, subject="onnxsim", seconds=seconds, memory=memory)
            return target.read_bytes()
        except (WorkerCrashed, OSError) as error:
            record.warn(f"the onnxsim step was left out: {error}")
            return None


@dataclass(frozen=True)
class FileCheck:
    """What a written file is worth: complaints of ONNX's checker and of ONNX Runtime, "" where there are none."""

    checker: str
    runtime: str

    @property
    def passed(self) -> bool:
        """True when neither complained."""
        return not self.checker and not self.runtime


def check(path: str | Path, *, runtime: bool = True, seconds: float = 300.0, memory: int | None = None) -> FileCheck:
    """onnx.checker with full shape inference on the file at `path`, then a session of ONNX Runtime on it, in a worker.

    Raises WorkerCrashed when one of them dies.
    """
    arguments = {"path": str(Path(path).resolve())}
    checker = run_task(f"{_TASKS}:check", arguments, subject="the ONNX checker", seconds=seconds, memory=memory)
    loaded = ""
    if runtime:
        loaded = run_task(f"{_TASKS}:load", arguments, subject="loading in ONNX Runtime", seconds=seconds, memory=memory)
    return FileCheck(checker, loaded)
