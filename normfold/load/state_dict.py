"""Checkpoints: read tensors without executing anything, find the state_dict inside, and load it strictly.

A checkpoint is read with ``torch.load(weights_only=True)``, always.  The state_dict may lie under a key of a larger dict
("state_dict", "model", "net", ...) and its names may carry a prefix ("module.", "_orig_mod.", any), or lack one; both
are found by comparing with the names that the model expects, and told.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import InputRefused
from normfold.load.sniff import refuse

_USUAL = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
_DEPTH, _SHOWN = 4, 5
_GLOBAL = re.compile(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)|Trying to instantiate (?:unsupported )?(?:class )?([\w.]+)")


def read_checkpoint(path: Path) -> Any:
    """What torch.save wrote, tensors on the CPU.  Raises InputRefused when reading it would execute code."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        found = _GLOBAL.search(str(error))
        if found:
            name = found.group(1) or found.group(2)
            raise refuse(
                path,
                f"holds a pickled {name}, and unpickling it would run code: save model.state_dict(), give the class with --model",
            ) from None
        if isinstance(error, pickle.UnpicklingError) and "eights only load failed" in str(error):
            line = (str(error).split("WeightsUnpickler error:")[-1].strip().splitlines() or ["unknown content"])[0]
            raise refuse(path, f"is refused by torch's weights-only reader ({line}): save model.state_dict() instead") from None
        line = str(error).strip().splitlines()
        reason = f"{type(error).__name__}{': ' + line[0] if line else ''}"
        raise refuse(path, f"is not a readable torch checkpoint ({reason}): fetch it or save it again") from None


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file.  Raises InputRefused for a header that is too large, overlaps or repeats names."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, 100 << 20):
            raise refuse(
                path,
                f"has a safetensors header of {length} bytes in a file of {size}: it is truncated or hostile, fetch it again",
            )
        header = file.read(length)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise refuse(path, f"has a malformed safetensors header ({error}): fetch or save it again") from None
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise refuse(path, "is a safetensors file: install its reader with `pip install safetensors`") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise refuse(path, f"is a malformed safetensors file ({error}): fetch or save it again") from None


@dataclass(frozen=True)
class Match:
    """A state_dict found in a checkpoint: under which keys, which prefix its names have or lack, and how it fits."""

    keys: tuple[str, ...]
    strip: str
    add: str
    tensors: dict[str, Any]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def where(self) -> str:
        return f"under {'.'.join(self.keys)!r}" if self.keys else "at the top"


def load_into(module: Any, checkpoint: Any, path: Path, *, key: str | None = None, prefix: str | None = None) -> list[str]:
    """Load `checkpoint` strictly into `module`; returns notes on what was found.

    key: dotted path to the state_dict inside the checkpoint; prefix: what its names carry, names without it are left out.
    Both are found when None.  Raises InputRefused naming missing, unexpected and misshapen tensors.
    """
    expected: dict[str, Any] = module.state_dict()
    candidates = list(_candidates(checkpoint))
    if key is not None:
        candidates = [(keys, tensors) for keys, tensors in candidates if ".".join(keys) == key]
        if not candidates:
            raise refuse(path, f"has no dict of tensors under the key {key!r}; it has {_listed(_top(checkpoint))}")
    if not candidates:
        raise refuse(path, f"holds no dict of tensors ({_listed(_top(checkpoint))}): save model.state_dict()")
    matches = [match for keys, tensors in candidates for match in _matches(keys, tensors, expected, prefix)]
    if not matches:
        raise refuse(path, f"has no tensor whose name starts with {prefix!r}")
    best = min(matches, key=_rank)
    if not best.fits:
        raise _misfit(path, best, len(expected))
    try:
        module.load_state_dict(best.tensors, strict=True)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise refuse(path, f"does not fit the model: {line[:300]}; check --model") from None
    return list(_notes(best, matches, expected))


def _notes(best: Match, matches: list[Match], expected: Mapping[str, Any]) -> Iterator[str]:
    if best.keys or best.strip or best.add:
        change = f", prefix {best.strip!r} taken off" if best.strip else ""
        change += f", prefix {best.add!r} added" if best.add else ""
        yield f"state_dict found {best.where}{change}"
    others = sorted({match.where for match in matches if match.fits and match.keys != best.keys})
    if others:
        yield f"the weights {', '.join(others)} fit as well; choose with key"
    cast = {
        (str(t.dtype), str(expected[n].dtype)) for n, t in best.tensors.items() if n in expected and t.dtype != expected[n].dtype
    }
    for stored, held in sorted(cast):
        yield f"weights stored as {stored} were loaded into {held} parameters"


def _top(checkpoint: Any) -> list[str]:
    return [str(key) for key in checkpoint] if isinstance(checkpoint, Mapping) else [f"a {type(checkpoint).__name__}"]


def _candidates(checkpoint: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every nested dict that holds tensors by name."""
    import torch

    if not isinstance(checkpoint, Mapping) or len(keys) > _DEPTH:
        return
    tensors = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield keys, tensors
    for name, value in checkpoint.items():
        if isinstance(value, Mapping):
            yield from _candidates(value, (*keys, str(name)))


def _matches(keys: tuple[str, ...], tensors: dict[str, Any], expected: dict[str, Any], prefix: str | None) -> Iterator[Match]:
    if prefix is not None:
        kept = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if kept:
            yield _match(keys, prefix, "", kept, expected)
        return
    for strip, add in sorted(_prefixes(tensors, expected)):
        if strip and all(name.startswith(strip) for name in tensors):
            yield _match(keys, strip, "", {name.removeprefix(strip): value for name, value in tensors.items()}, expected)
        elif not strip:
            yield _match(keys, "", add, {add + name: value for name, value in tensors.items()}, expected)


def _prefixes(tensors: Iterable[str], expected: Iterable[str]) -> set[tuple[str, str]]:
    """(to strip, to add) pairs under which some name of the checkpoint is one that the model expects."""
    pairs = {("", "")}
    probes = list(expected)
    for probe in {*probes[:2], *probes[-2:]}:
        for name in tensors:
            if name.endswith("." + probe):
                pairs.add((name[: -len(probe)], ""))
            elif probe.endswith("." + name):
                pairs.add(("", probe[: -len(name)]))
    return pairs


def _match(keys: tuple[str, ...], strip: str, add: str, tensors: dict[str, Any], expected: dict[str, Any]) -> Match:
    missing = tuple(n for n in expected if n not in tensors and not n.endswith("num_batches_tracked"))  # torch fills these
    unexpected = tuple(name for name in tensors if name not in expected)
    misshapen = tuple(
        f"{name} {list(value.shape)} instead of {list(expected[name].shape)}"
        for name, value in tensors.items()
        if name in expected and hasattr(expected[name], "shape") and value.shape != expected[name].shape
    )
    return Match(keys, strip, add, tensors, missing, unexpected, misshapen)


def _rank(match: Match) -> tuple[Any, ...]:
    wrong = len(match.missing) + len(match.unexpected) + len(match.misshapen)
    usual = min((_USUAL.index(key) for key in match.keys if key in _USUAL), default=len(_USUAL))
    fitting = len(match.tensors) - len(match.unexpected) - len(match.misshapen)
    return (not match.fits, -fitting, usual, len(match.keys), wrong, match.keys, match.strip, match.add)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _misfit(path: Path, match: Match, total: int) -> InputRefused:
    parts = [
        f"{len(names)} {word} ({_listed(names)})"
        for word, names in (("missing", match.missing), ("unexpected", match.unexpected), ("misshapen", match.misshapen))
        if names
    ]
    found = f" {match.where}" if match.keys else ""
    return refuse(
        path,
        f"does not fit the model of {total} tensors: the state_dict{found} has {'; '.join(parts)}. "
        "Check that --model builds this network",
    )
