"""What a caller may choose; the command line and the Python API both fill this."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from normfold.errors import UsageError
from normfold.rewrites.choices import recorded

Objective = Literal["latency", "norms"]
SUFFIXES = {"onnx": (".onnx",), "program": (".pt2", ".onnx"), "module": (".pt2", ".onnx")}
"""Formats that each kind of input can be written as, the default first."""
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|(?:[kmg]i?)?b|)\s*", re.IGNORECASE)
_MODEL_SUFFIXES = frozenset(".onnx .pt2 .pt .pth .tar .th .params .jit .safetensors .ckpt .bin".split())


@dataclass(frozen=True)
class Options:
    """Choices of one run of `optimize`.

    objective: "latency" (default) never makes the result slower; "norms" removes every norm that can exactly go.
    target: the runtime whose records answer what is faster: onnxruntime, openvino, tensorrt, generic (choices.py).
    verify: judge the result in float64 and in its runtime, and write nothing that fails.
    simplify: tidy an ONNX result with onnxsim in a worker process, dropped when it is worse or wrong.
    timing, seconds: measure the latency before and after, for about `seconds`.
    proof_seconds: the time that judging one artefact may take; the most telling inputs come first, and one is always judged.
    only, skip: rule ids; `only` empty means all.
    keep: shell patterns (``layer4.*``) of module paths or node names whose norms stay.
    clone_budget: how much copies of shared weights may add so that more norms go: bytes ("2MB", 4096) or a part of the model
      ("5%"); 0 copies nothing.
    keep_overridable: ONNX initializers that are also graph inputs stay overridable by the caller.
    opset: opset of an ONNX result, None for the input's own or the exporter's default.
    outputs: files to write, none for a result in memory.  force: replace existing ones.
    in_place: the input itself may stand among the outputs.  dry_run: do everything but write.
    """

    objective: Objective = "latency"
    target: str = "onnxruntime"
    verify: bool = True
    simplify: bool = True
    timing: bool = True
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    clone_budget: str | int = 0
    keep_overridable: bool = False
    opset: int | None = None
    outputs: tuple[Path, ...] = ()
    force: bool = False
    in_place: bool = False
    dry_run: bool = False
    seconds: float = 5.0
    proof_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise UsageError(f"objective is one of {', '.join(get_args(Objective))}; got {self.objective!r}")
        recorded(self.target, self.objective)
        both = sorted(set(self.only) & set(self.skip))
        if both:
            raise UsageError(f"{', '.join(both)} is asked for by `only` and by `skip`; name it in one of them")
        if self.seconds <= 0:
            raise UsageError(f"seconds is the time for measuring, above 0; got {self.seconds}")
        self.clone_bytes(0)

    def keeps(self, *names: str) -> bool:
        """True when one of `names` (module path, node name) matches a `keep` pattern."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep for name in names if name)

    def clone_bytes(self, model: int) -> int:
        """`clone_budget` in bytes for a model of `model` bytes.  Raises UsageError for what is no size."""
        found = _SIZE.fullmatch(str(self.clone_budget))
        if found is None:
            raise UsageError(f"clone_budget is a size (4096, 500KB, 2MiB) or a part of the model (5%); got {self.clone_budget!r}")
        number, unit = float(found[1]), found[2].lower()
        return int(number * (model / 100 if unit == "%" else _UNITS[unit]))

    def uses(self, rule: str) -> bool:
        """True when the rewrite with the id `rule` may run."""
        return (not self.only or rule in self.only) and rule not in self.skip


def default_output(source: Path, kind: str) -> Path:
    """The file beside `source` that holds the result when none is named: ``net.pth.tar`` -> ``net.normfold.pt2``."""
    stem = source.name
    while (cut := Path(stem)).suffix.lower() in _MODEL_SUFFIXES:
        stem = cut.stem
    return source.with_name(f"{stem}.normfold{SUFFIXES[kind][0]}")


def check_outputs(outputs: tuple[Path, ...], *, kind: str, source: Path | None, force: bool, in_place: bool) -> None:
    """Refuse outputs that cannot be written as asked, before any work is done.

    Raises UsageError for a suffix the input cannot become, an existing file without `force`, the input itself without
    `in_place`, a missing folder, and a file named twice.
    """
    seen: set[Path] = set()
    for path in outputs:
        if path.suffix.lower() not in SUFFIXES[kind]:
            known = " or ".join(SUFFIXES[kind])
            raise UsageError(f"{path}: an input of this kind is written as {known}; name the output so")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")
        if path.is_dir():
            raise UsageError(f"{path} is a folder; name a file in it")
        real = path.resolve()
        if real in seen:
            raise UsageError(f"{path} is named as output twice; name it once")
        seen.add(real)
        if source is not None and real == source.resolve():
            if not in_place:
                raise UsageError(f"{path} is the input; pass --in-place to write over it, or name another output")
        elif path.exists() and not force:
            raise UsageError(f"{path} exists; pass --force to replace it, or name another output with -o")
