"""All rewrites in the order in which they run; those that installed packages offer (entry point `normfold.rewrites`) first."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from normfold.rewrites import affine, constant_channels
from normfold.rewrites.rewrite import Rewrite


@cache
def rewrites() -> tuple[Rewrite, ...]:
    """Foreign rewrites, then constant channels (one zero gamma would stop a whole layer), then the affine moves."""
    foreign = tuple(entry.load() for entry in entry_points(group="normfold.rewrites"))
    return (*foreign, constant_channels.REWRITE, affine.REWRITE)
