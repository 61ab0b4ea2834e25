"""Programs to files: a .pt2 archive, and an ONNX model through torch's own exporter."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument

from normfold.capture.program import dim_names
from normfold.errors import InputRefused, UsageError
from normfold.load.quiet import quiet

_CHATTY = ("onnxscript", "torch.onnx", "onnx_ir", "torch.export", "torch._export", "torch.fx.experimental.symbolic_shapes")


def save_program(ep: ExportedProgram, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write `ep` as a .pt2 archive: wholly or not at all, and the same bytes for the same program.

    Raises UsageError when `path` exists and `force` is not set, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not force:
        raise UsageError(f"{target} exists; choose another name or pass force to replace it")
    buffer = io.BytesIO()
    with quiet(*_CHATTY, warned=False, streams=True):
        torch.export.save(ep, buffer)
    try:
        _write(target, buffer.getbuffer())
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}; choose another folder") from error


def _write(target: Path, data: memoryview) -> None:
    """A temporary file beside the target, flushed to the disk, takes its name."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_onnx_model(ep: ExportedProgram, *, opset: int | None = None, optimize: bool = True) -> ir.Model:
    """`ep` as an ONNX model, by torch.onnx.export; names of inputs, outputs and dynamic sizes are kept.

    opset: the exporter's own default when None.  optimize: the exporter's own optimiser, which folds Conv-BN.
    Raises InputRefused for a program that ONNX cannot hold: its .pt2 works.
    """
    if any(_projects(node) for node in ep.graph.nodes):
        raise InputRefused(
            "this program cannot become ONNX: its LSTM has a projection (proj_size), which ONNX's LSTM has not, and "
            "torch.onnx.export writes a model that does not run; write the .pt2 artefact, or use an LSTM without proj_size"
        )
    options: dict[str, Any] = {} if opset is None else {"opset_version": opset}
    with quiet(*_CHATTY, warned=False, streams=True):
        try:
            program = torch.onnx.export(ep, dynamo=True, optimize=optimize, verbose=False, **options)
        except Exception as error:
            raise InputRefused(
                f"this program cannot become ONNX{_reason(error)}; the .pt2 artefact does not depend on ONNX: write that one"
            ) from error
    assert program is not None
    model: ir.Model = program.model
    _name_outputs(model, ep)
    _name_dims(model, dim_names(ep))
    return model


def _projects(node: torch.fx.Node) -> bool:
    """True for an LSTM with projections: each layer and direction has one weight more."""
    if node.target is not torch.ops.aten.lstm.input:
        return False
    parameters, biased, layers, _, _, both = node.args[2:8]
    assert isinstance(parameters, (list, tuple)) and isinstance(layers, int)
    return len(parameters) > layers * (2 if both else 1) * (4 if biased else 2)


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f": {type(error).__name__}: {line[:200]}" if line else f": {type(error).__name__}"


def _name_outputs(model: ir.Model, ep: ExportedProgram) -> None:
    """Give the outputs the program's names: the exporter traces again and numbers them anew."""
    specs = [spec for spec in ep.graph_signature.output_specs if not isinstance(spec.arg, ConstantArgument)]
    outputs = model.graph.outputs
    names = [str(spec.arg.name) for spec in specs]
    if len(names) != len(outputs) or len(set(names)) != len(names):
        return
    taken = {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    if any(name in taken for name in names):
        return
    others = [value for node in model.graph.all_nodes() for value in node.outputs if value not in outputs]
    used = {value.name for value in others} | set(taken) | set(names)
    for value in others:
        if value.name in names:
            value.name = next(name for count in itertools.count(1) if (name := f"{value.name}_{count}") not in used)
            used.add(value.name)
    for value, name in zip(outputs, names, strict=True):
        value.name = name


def _name_dims(model: ir.Model, names: dict[str, str]) -> None:
    """Give symbolic sizes the user's names, in every value of the graph."""
    if not names:
        return
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, names) for dim in value.shape])


def _renamed(dim: Any, names: dict[str, str]) -> Any:
    text = dim.value if isinstance(dim, ir.SymbolicDim) else None
    if text is None:
        return dim
    return re.sub(r"[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), text)
