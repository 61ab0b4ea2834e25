"""Write a swapped network: a checkpoint with the factory that fits it, a program, an ONNX file; a manifest beside each.

out.pt        the state_dict                       out.pt2, out.onnx   the exported network, in need of nothing else
out.py        build(): the original's factory, norms exchanged, without weights
out.toml      the sidecar: `normfold optimize out.pt` needs no option
out.pt.json   the manifest: what was done, what it cost, on which samples; no times, so same run, same bytes
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import os
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from normfold.errors import ResultDiffers, UsageError
from normfold.export.atomic import Writer, check_target, write_files
from normfold.export.manifest import VOLATILE, manifest_path
from normfold.load.loaded import Call, Loaded
from normfold.record import Record
from normfold.swap.data import Data
from normfold.swap.fit import floats
from normfold.swap.replace import rebuild
from normfold.swap.result import Swapped

_MARK = "Written by normfold beside its checkpoint."
_FACTORY = '''"""Builds the network of {name}, without its weights.  {mark}"""

from pathlib import Path

from normfold.swap.replace import rebuild

SWAPS = {swaps}


def build():
    """The nn.Module in eval mode; `load_state_dict(torch.load("{name}", weights_only=True))` gives it its weights."""
    return rebuild({factory!r}, SWAPS, Path(__file__).parent)
'''


@dataclass(frozen=True)
class Origin:
    """What built the network, as on the command line: its factory, the folder that a path in it is relative to, input specs."""

    factory: str
    base: Path | None = None
    inputs: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()

    def seen_from(self, folder: Path) -> str:
        """The factory for a file in `folder`: a path in it relative to that folder."""
        place, _, name = self.factory.rpartition(":")
        if not place.endswith(".py") and "/" not in place:
            return self.factory
        path = os.path.relpath(((self.base or Path()) / place).resolve(), folder.resolve())
        return f"{Path(path).as_posix()}:{name}"


def write(
    module: nn.Module,
    loaded: Loaded,
    data: Data,
    outputs: Sequence[Path],
    result: Swapped,
    *,
    origin: Origin | None,
    force: bool,
) -> None:
    """Write every output with its manifest, and say so in `result`.

    Raises ResultDiffers when what the factory builds does not give the same outputs with the written weights.
    """
    record, made = result.record, dict[Path, Writer]()
    for path in outputs:
        if path.suffix == ".pt":
            swaps = {item.name: item.now for item in result.replaced}
            made |= checkpoint(path, module, origin, swaps, record)
            if origin is not None:
                _loads_again(module, origin, swaps, data)
    for path in outputs:
        if path.suffix != ".pt":
            _export(path, module, loaded, data, force=force)
            record.outputs[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    result.written = bool(outputs)
    content = _content(result.as_dict(), record)
    for path in outputs:
        made[manifest_path(path)] = lambda file: file.write(content)
    if made:
        write_files(made, force=True)  # what may not be replaced was refused before


def check_outputs(outputs: Sequence[Path], source: Path | None, *, force: bool) -> None:
    """Raise UsageError where an output may not be written, before any work is done.

    The source is never written over, and neither are a .py and a .toml beside a .pt that somebody else wrote, not by `force`.
    """
    for path in outputs:
        check_target(path, force=force)
        if source is not None and path.resolve() == source.resolve():
            raise UsageError(f"{path} is the input, and another function would take its place; name another output")
        for other in (path.with_suffix(".py"), path.with_suffix(".toml")) if path.suffix == ".pt" else ():
            if not other.exists():
                continue
            if _MARK not in other.read_text(encoding="utf-8", errors="replace"):
                raise UsageError(f"{other} exists and is not one that normfold wrote for {path.name}; name another output")
            check_target(other, force=force)


def checkpoint(
    path: Path, module: nn.Module, origin: Origin | None, swaps: Mapping[str, Any], record: Record
) -> dict[Path, Writer]:
    """What to write for a state_dict at `path`: itself, its sidecar, and a factory where norms were exchanged."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    texts: dict[Path, str] = {}
    if origin is None:
        record.note(f"{path.name} holds the weights alone: what builds the network is not known")
    else:
        model = origin.seen_from(path.parent)
        if swaps:
            factory = path.with_suffix(".py")
            listed = pprint.pformat({name: dict(norm) for name, norm in swaps.items()}, width=120, sort_dicts=False)
            texts[factory] = _FACTORY.format(mark=_MARK, name=path.name, factory=model, swaps=listed)
            model = f"{factory.name}:build"
        texts[path.with_suffix(".toml")] = _sidecar(path, model, origin)
    record.outputs[str(path)] = hashlib.sha256(buffer.getbuffer()).hexdigest()
    files: dict[Path, Writer] = {path: lambda file: file.write(buffer.getbuffer())}
    for other, text in texts.items():
        files[other] = lambda file, text=text: file.write(text.encode())
        record.outputs[str(other)] = hashlib.sha256(text.encode()).hexdigest()
    return files


def _sidecar(path: Path, model: str, origin: Origin) -> str:
    lines = [f"# How {path.name} is loaded; what was done to it stands in {manifest_path(path).name}.  {_MARK}"]
    lines.append(f"model = {json.dumps(model)}")
    lines += [
        f"{key} = {json.dumps(list(value))}" for key, value in (("inputs", origin.inputs), ("dynamic", origin.dynamic)) if value
    ]
    return "\n".join(lines) + "\n"


def manifest(path: Path, content: Mapping[str, Any], record: Record) -> dict[Path, Writer]:
    """What to write as the manifest of `path`."""
    text = _content(content, record)
    return {manifest_path(path): lambda file: file.write(text)}


def _content(content: Mapping[str, Any], record: Record) -> bytes:
    said = {key: value for key, value in record.as_dict().items() if key not in VOLATILE and value not in ({}, [], None, "")}
    said["outputs"] = {Path(name).name: digest for name, digest in record.outputs.items()}
    said["source"] = Path(record.source).name
    text = json.dumps(_plain({**content, "record": said}), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _plain(value: Any) -> Any:
    """JSON knows no nan and no infinity: they become strings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def described(module: nn.Module, one: Call) -> tuple[str, ...]:
    """Input specs (``image=1x3x32x32``) of a call of plain tensors, for one sample; none for any other call."""
    args, kwargs = one
    names = list(inspect.signature(module.forward).parameters)
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    if len(args) > len(names) or not all(isinstance(item, torch.Tensor) and item.ndim for item in given.values()):
        return ()
    kinds = {
        name: "" if item.dtype == torch.float32 else f":{str(item.dtype).removeprefix('torch.')}" for name, item in given.items()
    }
    return tuple(f"{name}={'x'.join(map(str, (1, *item.shape[1:])))}{kinds[name]}" for name, item in given.items())


def _loads_again(module: nn.Module, origin: Origin, swaps: Mapping[str, Any], data: Data) -> None:
    """Build the network as its reader will, and compare."""
    again = rebuild(origin.factory, swaps, origin.base)
    try:
        again.load_state_dict(module.state_dict(), strict=True)
    except RuntimeError as error:
        raise ResultDiffers(
            f"the weights do not fit what {origin.factory} builds: {' '.join(str(error).split())[:300]}"
        ) from None
    args, kwargs = data.take([0])[0]
    with torch.no_grad():
        pairs = zip(floats(module(*args, **kwargs)), floats(again(*args, **kwargs)), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            raise ResultDiffers(
                f"what {origin.factory} builds gives other outputs with the same weights: it holds state that is not in its "
                "state_dict (buffers with persistent=False, plain tensors); nothing was written. Write a .pt2 or .onnx"
            )


def _export(path: Path, module: nn.Module, loaded: Loaded, data: Data, *, force: bool) -> None:
    from normfold.capture.program import export_module
    from normfold.export.to_onnx import save_onnx
    from normfold.export.to_torch import save_program, to_onnx_model

    args, kwargs = _example(loaded, data)
    program = export_module(module, args, kwargs, dynamic_shapes=loaded.dynamic)
    if path.suffix == ".pt2":
        save_program(program, path, force=force)
    elif path.suffix == ".onnx":
        save_onnx(to_onnx_model(program), path, force=force)
    else:
        raise UsageError(f"{path}: a network is written as .pt, .pt2 or .onnx; name the output so")


def _example(loaded: Loaded, data: Data) -> Call:
    """One sample to export with; two where sizes are open, torch.export fixes sizes of one."""
    if data.whole or loaded.dynamic is None:
        return data.take([0])[0]
    first = Data(loaded.calls[:1])
    return first.take(range(min(first.samples, 2)))[0]
