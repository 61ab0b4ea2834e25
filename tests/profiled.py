"""Profiles made up for tests of what is said of them; nothing here was measured."""

from __future__ import annotations

from normfold.profile.kernels import layers
from normfold.profile.result import (
    Cold,
    Kernel,
    Latency,
    Level,
    Machine,
    ModelProfile,
    NormCost,
    Parallel,
    Percentile,
    Reconciled,
    Setting,
)
from normfold.record import Timing

QUIET = [Percentile(50.0, 1e-3, 0.99e-3, 1.01e-3, 0.99, 7), Percentile(99.0, 2e-3, 1.8e-3, 2.2e-3, 0.99, 459)]
MACHINE = Machine("A processor", (0, 1), 2**34, "Linux 6", "performance", False, 0.1, {"onnxruntime": "1.32"}, 1e11, 2e10, 5e10)


def a_timing(low: float = 0.99, high: float = 1.01, verdict: str = "") -> Timing:
    word = verdict or ("no difference" if high - low < 0.04 else "too noisy to tell")
    return Timing("ONNX Runtime", "all", 1, 1e-3, 1e-3, (low + high) / 2, low, high, 0.99, 20, word, low, high)


def kernels(norm: bool) -> list[Kernel]:
    """A branch beside a convolution, an addition, and a norm where there is one."""
    found = [
        Kernel("c1", "Conv", 4e-4, layer="stem.conv", members=["c1", "r1"], module=True, flops=1e6, bytes=1e4, bound="compute"),
        Kernel("c2", "Conv", 1e-4, layer="branch.<conv>", members=["c2"], module=True, flops=1e5, bytes=1e5, bound="memory"),
        Kernel("add", "Add", 2e-4, layer="add", members=["add"], bound="memory", attained=0.5, reads=[0, 1]),
    ]
    if norm:
        found.append(Kernel("ln", "LayerNormalization", 1e-4, layer="norm", members=["ln"], module=True, norm="norm", reads=[2]))
    for index, kernel in enumerate(found):
        kernel.start, kernel.critical, kernel.slack = (0.0, 0.0, 4e-4, 6e-4)[index], index != 1, 3e-4 if index == 1 else 0.0
    return found


def a_level(name: str, shares: tuple[float, float] = (0.1, 0.15), norm: bool = True) -> Level:
    made = kernels(norm)
    total = sum(kernel.seconds for kernel in made)
    spans = {"2": 7e-4, "4": 7e-4}
    path = [kernel.name for kernel in made if kernel.critical]
    reconciled = Reconciled(total + 5e-5, total, 3e-5, 1e-5, 1e-5, total + 1e-4, 2e-5)
    parallel = Parallel(7e-4, spans, path)
    return Level(name, 100, made, reconciled, 0.75, 0.0, sum(shares) / 2, *shares, parallel, layers(made))


def a_profile(
    percentiles: list[Percentile] | None = None,
    noise: Timing | None = None,
    size: int = 10**6,
    peak: int | None = 10**8,
    shares: tuple[float, float] = (0.1, 0.15),
    source: str = "net.onnx",
    norm: bool = True,
) -> ModelProfile:
    latency = Latency(1000, 12, True, 1e-3, percentiles or QUIET, [1e-3 + i * 1e-5 for i in range(101)])
    rows = [
        NormCost("norm", "layer", 1e-4, 1e-4, 0.125, "own kernel", "kept", "run-time-statistics", "nothing exact removes it"),
        NormCost("stem.bn", "batch", 2e-5, 0.0, 0.0, "folded by the runtime", "deleted", "", "nothing to gain here"),
    ]
    return ModelProfile(
        source=source,
        sha256="0" * 64,
        bytes=size,
        nodes=5,
        inputs={"x": [1, 3, 8, 8]},
        setting=Setting(),
        machine=MACHINE,
        cold=Cold(0.03, 0.01, 2e-3, 1.1e-3, None if peak is None else 5 * 10**7, peak),
        latency=latency,
        noise=noise or a_timing(),
        levels=[a_level("disabled", shares), a_level("all", shares, norm)],
        norms=rows if norm else rows[1:],
        sentence="One norm still runs.",
        notes=["a note"],
    )
