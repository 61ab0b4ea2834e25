"""What loading hands to the rest: one model with the calls that exercise it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from normfold.graph import Array

Kind = Literal["onnx", "program", "module"]
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of one call of a torch model: positional and by name, any pytree of tensors."""
Feed = dict[str, Array]
"""Inputs of one run of an ONNX model by name."""


@dataclass
class Loaded:
    """A model that was read, or a live object that was accepted.

    kind: "onnx" (`onnx` is the file, to be read lazily, or `proto` is the caller's ModelProto), "program" (`program`, an
      ExportedProgram) or "module" (`module`, an nn.Module).
    owned: nobody else holds `proto`, `program` or `module`; when False it is the caller's and must not be touched.
    calls: example calls of a torch model.  The first serves to export it (its dynamic sizes are at least 2, as torch.export
      wants); the last is the caller's own, to measure with.
    feeds: example inputs of an ONNX model; empty when its sizes are not known.
    enlarged: the first of the calls was made for the export, from the one behind it; it is none of the caller's.
    own_inputs: the example inputs are the caller's own data, not made up from shapes.
    dynamic: `dynamic_shapes` for torch.export.export, None when all sizes are fixed.
    sha256: of the file, "" for a live object.
    """

    kind: Kind
    name: str
    path: Path | None = None
    sha256: str = ""
    onnx: Path | None = None
    proto: Any = None
    program: Any = None
    module: Any = None
    owned: bool = True
    calls: list[Call] = field(default_factory=list[Call])
    enlarged: bool = False
    feeds: list[Feed] = field(default_factory=list[Feed])
    dynamic: Any = None
    own_inputs: bool = False
