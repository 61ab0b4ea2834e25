"""Run the affine rewrite on a hand-built view and judge it: the certificate over every value, and the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from build import Builder
from normfold.graph import Array, Graph, Value
from normfold.rewrites import Fate, Rewritten, affine, constant_channels
from normfold.rewrites.rewrite import Policy
from normfold.verify.certificate import certificate
from normfold.verify.evaluate import run

IMAGE = ("N", 4, 6, 6)
POOL = {"kernel_shape": (2, 2), "strides": (2, 2), "dilations": (1, 1), "ceil_mode": 0}


def outcome(b: Builder, y: Value, objective: str = "norms") -> str:
    """What becomes of the layer "bn" when `y` is the graph's output."""
    b.output(y)
    return judged(b.graph, objective)["bn"].outcome


def conv_bn(b: Builder, x: Value | None = None, channels: int = 8, **bn: Any) -> Value:
    """Conv-BN whose gauge is free to move: the producer of most cases."""
    return b.bn(b.conv(x if x is not None else b.input("x", IMAGE), channels), name="bn", **bn)


def feeds_for(graph: Graph, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Normal inputs; symbols are bound to `sizes` (default 2)."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes.get(str(dim), 2) for dim in value.shape or ()]
        feeds[value.name] = rng.standard_normal(shape)
    return feeds


def judged(graph: Graph, objective: str = "norms", *, constants_first: bool = False, **sizes: int) -> dict[str, Fate]:
    """Rewrite, prove, and return the fate of every affine layer by the name of its output."""
    return {fate.output: fate for fate in rewritten(graph, objective, constants_first=constants_first, **sizes).fates}


def rewritten(graph: Graph, objective: str = "norms", *, constants_first: bool = False, **sizes: int) -> Rewritten:
    """Rewrite and prove: no value of the result may break its promise, in float64 before and float32 after rounding."""
    policy = Policy(objective)
    start = constant_channels.run(graph, policy).graph if constants_first else graph
    result = affine.run(start, policy)
    for seed in range(2):
        feeds = feeds_for(graph, seed, **sizes)
        failed = [item for item in certificate(graph, result.graph, feeds) if not item.passed]
        assert not failed, failed[:3]
    reference, outputs = run(graph, feeds), run(result.graph, feeds)
    assert list(reference) == list(outputs), "names of outputs are part of the contract"
    for name, value in reference.items():
        assert np.allclose(outputs[name], value, rtol=1e-9, atol=1e-9 * np.nanmax(np.abs(value), initial=0.0), equal_nan=True)
    return result


def proved(before: Graph, after: Graph, feeds: dict[str, Array] | None = None, **sizes: int) -> None:
    """Hold `after` to the certificate and its outputs to those of `before`, on `feeds` or on two draws of normal inputs."""
    for given in [feeds] if feeds is not None else [feeds_for(before, seed, **sizes) for seed in range(2)]:
        failed = [item for item in certificate(before, after, given) if not item.passed]
        assert not failed, failed[:3]
        reference, outputs = run(before, given), run(after, given)
        assert list(reference) == list(outputs), "names of outputs are part of the contract"
        for name, value in reference.items():
            assert np.allclose(outputs[name], value, rtol=1e-9, atol=1e-9 * np.abs(value).max())
