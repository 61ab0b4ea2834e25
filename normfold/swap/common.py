"""What swaps and the recalibration share: the module to work on, its samples, versions, stages."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from normfold.capture.program import copied
from normfold.errors import InputRefused, UsageError
from normfold.load.loaded import Loaded
from normfold.record import Record
from normfold.swap.data import Data

PACKAGES = ("normfold", "torch", "numpy")


def live(loaded: Loaded, what: str, *, data: bool = True) -> nn.Module:
    """The nn.Module that was loaded, as a copy in eval mode.

    Raises InputRefused for a graph, UsageError for made-up inputs where `data` are needed.
    """
    if loaded.kind != "module":
        raise InputRefused(
            f"{loaded.path or loaded.name} holds a graph without modules, and {what} works on an nn.Module: "
            "give the checkpoint that it was exported from, with --model file.py:factory"
        )
    if data and not loaded.own_inputs:
        raise UsageError(
            f"{what} needs samples of the real inputs, without labels: give --data x.npz or --inputs file.py:function"
        )
    if any(item.is_floating_point() and item.itemsize < 4 for item in loaded.module.parameters()):
        raise UsageError(f"{what} trains and measures in float32: build the network in float32 and cast the result")
    return copied(loaded.module).eval()


def samples(loaded: Loaded) -> Data:
    """The caller's samples (not the call that was made for the export)."""
    return Data(loaded.calls[1:] if loaded.enlarged else loaded.calls)


def versions() -> dict[str, str]:
    """Of the packages that decide the result."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was not installed
            found[package] = "unknown"
    return found


@contextmanager
def stage(record: Record, name: str) -> Generator[None]:
    """Add the seconds that the body takes to the record."""
    began = time.perf_counter()
    try:
        yield
    finally:
        record.seconds[name] = round(record.seconds.get(name, 0.0) + time.perf_counter() - began, 3)
