"""The statistics-matching start of new norms: least squares per channel against what the old norms give on calibration data.

Per channel c, over all samples, positions and calls, with n = n(x) of the new norm on the input that the ORIGINAL network gives
it and t the old norm's output:

    minimise sum (gamma_c n_c + beta_c - t_c)^2:   gamma_c = cov(n_c, t_c) / var(n_c),   beta_c = mean(t_c) - gamma_c mean(n_c)

Sums are taken in float64, batches merged as Chan, Golub & LeVeque 1979 do, so that no square of a mean is subtracted.  A channel
whose n is constant gets gamma 0 and the mean.  A BatchNorm that becomes `none` needs no data: its own affine map is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.load.loaded import Call
from normfold.swap.find import Site, tapped
from normfold.swap.norms import ChannelAffine, SwappedNorm, as_channels_last

_CONSTANT = 1e-12  # var(n) at or below this part of mean(n^2) is rounding


@dataclass
class Moments:
    """Count, means and summed products of deviations of pairs (n, t), each [channels], in float64."""

    count: int
    mean_n: Tensor
    mean_t: Tensor
    nn: Tensor
    nt: Tensor
    tt: Tensor

    @staticmethod
    def of(n: Tensor, t: Tensor) -> Moments:
        """Of [positions, channels] each."""
        mean_n, mean_t = n.mean(0), t.mean(0)
        dn, dt = n - mean_n, t - mean_t
        return Moments(len(n), mean_n, mean_t, (dn * dn).sum(0), (dn * dt).sum(0), (dt * dt).sum(0))

    def merged(self, other: Moments) -> Moments:
        """Of both sets of pairs."""
        count = self.count + other.count
        weight = self.count * other.count / count
        dn, dt = other.mean_n - self.mean_n, other.mean_t - self.mean_t
        return Moments(
            count,
            self.mean_n + dn * (other.count / count),
            self.mean_t + dt * (other.count / count),
            self.nn + other.nn + weight * dn * dn,
            self.nt + other.nt + weight * dn * dt,
            self.tt + other.tt + weight * dt * dt,
        )

    def solved(self) -> tuple[Tensor, Tensor]:
        """(gamma, beta) of the least squares."""
        constant = self.nn <= _CONSTANT * (self.nn + self.count * self.mean_n**2)
        gamma = torch.where(constant, 0.0, self.nt / torch.where(constant, 1.0, self.nn))
        return gamma, self.mean_t - gamma * self.mean_n


@dataclass
class Scales:
    """Variances of the original on the calibration data: of every norm's output by name, of every output in order.

    They make losses of different layers comparable.  A constant output has the scale 1.
    """

    norms: dict[str, float]
    outputs: list[float]


def fit(teacher: nn.Module, student: nn.Module, sites: Sequence[Site], batches: Iterable[Call]) -> Scales:
    """Set gamma and beta of the new norms in `student`, where the sites were; returns the scales of what was seen.

    Neither network changes otherwise.  `teacher` holds the old norms and is run over all batches once.
    """
    seen: dict[str, Moments] = {}
    outputs: list[Moments] = []

    def watch(name: str, new: SwappedNorm) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            n = as_channels_last(new.core(args[0]), new.axis).double()
            found = Moments.of(n, as_channels_last(output, new.axis).double())
            seen[name] = seen[name].merged(found) if name in seen else found

        return hook

    news = {site.name: _norm(student, site.name) for site in sites}
    with torch.no_grad(), tapped(teacher, {name: watch(name, new) for name, new in news.items()}):
        for args, kwargs in batches:
            for place, leaf in enumerate(floats(teacher(*args, **kwargs))):
                flat = leaf.reshape(-1, 1).double()
                found = Moments.of(flat, flat)
                outputs[place:] = [outputs[place].merged(found) if place < len(outputs) else found, *outputs[place + 1 :]]
    for site in sites:
        start(news[site.name], site, seen[site.name])
    norms = {name: _scale(float(found.tt.sum()), found.count * len(found.tt)) for name, found in seen.items()}
    return Scales(norms, [_scale(float(found.tt.sum()), found.count) for found in outputs])


def start(new: SwappedNorm, site: Site, seen: Moments) -> None:
    """Give `new` its first gamma and beta."""
    gamma, beta = _affine(site.module) if isinstance(new, ChannelAffine) and _stored(site) else seen.solved()
    with torch.no_grad():
        new.weight.copy_(gamma)
        new.bias.copy_(beta)


def floats(tree: Any) -> list[Tensor]:
    """The tensors of real numbers among the outputs of a network, in order."""
    leaves = pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]


def _norm(student: nn.Module, name: str) -> SwappedNorm:
    found = student.get_submodule(name)
    assert isinstance(found, SwappedNorm), name
    return found


def _stored(site: Site) -> bool:
    return site.kind == "batch" and getattr(site.module, "running_mean", None) is not None


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm in eval mode, float64: a = gamma / sqrt(var + eps), c = beta - a mean."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    scale = gamma / torch.sqrt(var + norm.eps)
    return scale, beta - scale * mean


def _scale(total: float, count: int) -> float:
    variance = total / max(count, 1)
    return variance if variance > 0 and variance < float("inf") else 1.0
