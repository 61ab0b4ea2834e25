"""An unfinished swap on disk: weights, Adam's state, the place; written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.errors import UsageError
from normfold.export.atomic import write_files
from normfold.load.state_dict import read_checkpoint
from normfold.swap.distil import Place

SECONDS = 20.0  # between two checkpoints
_FORMAT = 1


def fingerprint(facts: Mapping[str, Any]) -> str:
    """One digest of everything that decides what a run computes."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class Checkpoint:
    """The checkpoint of one run at `path`; `key` is its fingerprint.  Without a path nothing is written."""

    def __init__(self, path: Path | None, key: str, student: nn.Module) -> None:
        self.path, self.key, self.student = path, key, student
        self._last = time.perf_counter()

    def resume(self) -> Place | None:
        """Load what an earlier run of the same swap left into the student; None when there is nothing.

        Raises UsageError for an unfinished run of another swap: hours of it may be in there.
        """
        if self.path is None or not self.path.exists():
            return None
        found = read_checkpoint(self.path)
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise UsageError(f"{self.path} is no checkpoint of `normfold swap`; delete it, or name another output")
        if found["key"] != self.key:
            if found["finished"]:
                return None
            raise UsageError(
                f"{self.path} holds an unfinished swap with other options, data or versions: "
                "repeat those to go on with it, or delete it to start anew"
            )
        self.student.load_state_dict(found["student"], strict=True)
        losses = {name: (first, last) for name, (first, last) in found["losses"].items()}
        before = None if found["before"] is None else (found["before"]["loss"], found["before"]["student"])
        return Place(found["stage"], found["step"], losses, found["optimizer"], before)

    def save(self, place: Place, leaving: bool) -> None:
        """Write when it is time to, or on the way out."""
        if leaving or time.perf_counter() - self._last >= SECONDS:
            self.write(place, finished=False)

    def write(self, place: Place, *, finished: bool) -> None:
        """Write the checkpoint now."""
        if self.path is None:
            return
        content = {
            "format": _FORMAT,
            "key": self.key,
            "finished": finished,
            "stage": place.stage,
            "step": place.step,
            "losses": {name: list(pair) for name, pair in place.losses.items()},
            "before": None if place.before is None else {"loss": place.before[0], "student": place.before[1]},
            "optimizer": place.optimizer,
            "student": self.student.state_dict(),
        }
        write_files({self.path: lambda file: torch.save(content, file)}, force=True)
        self._last = time.perf_counter()

    def remove(self) -> None:
        """The result is written: nothing is unfinished any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
