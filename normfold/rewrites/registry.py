"""All rewrites in the order in which they run; those that installed packages offer (entry point `normfold.rewrites`) first."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from normfold.rewrites import (
    affine,
    branches,
    chains,
    collapse_loop,
    collapse_recurrent,
    constant_channels,
    dead_shift,
    empty_channels,
    hoist_projection,
    hoist_unrolled,
    loop_bodies,
    lstm_step,
    mirrored_slope,
    norm_affine,
    pad_into_conv,
    preprocess,
    reroll,
    shared_conv,
    table_norm,
    tracked_instance_norm,
)
from normfold.rewrites.rewrite import Rewrite


@cache
def rewrites() -> tuple[Rewrite, ...]:
    """Foreign rewrites, then what recognises and what makes ready, then the affine moves.

    Layers that the affine step should see come first; copies are made when nothing merges weights any more; empty and constant
    channels stand right before it (one zero gamma would stop a whole layer).  What the steps of a loop do alike is
    put together when nothing looks for layers step by step any more.
    """
    foreign = tuple(entry.load() for entry in entry_points(group="normfold.rewrites"))
    modules = (
        collapse_loop,
        loop_bodies,
        hoist_projection,
        collapse_recurrent,
        lstm_step,
        tracked_instance_norm,
        table_norm,
        pad_into_conv,
        branches,
        chains,
        shared_conv,
        dead_shift,
        preprocess,
        empty_channels,
        constant_channels,
        mirrored_slope,
        affine,
        norm_affine,
        reroll,
        hoist_unrolled,
    )
    return (*foreign, *(module.REWRITE for module in modules))
