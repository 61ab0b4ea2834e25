"""Which norm of an nn.Module fits which remedy: the six drawbacks of normalization, looked for in one run and in the weights.

    1  stored statistics do not fit the caller's data (data only)     recalibrate, or a norm that stores none
    2  it costs time                                                  fold it exactly; RMSNorm where it cannot go
    3  BatchNorm in or around a recurrence                            collapse it exactly, else LayerNorm
    4  a norm in a network from image to image                        none, or InstanceNorm for style
    5  BatchNorm in a discriminator                                   spectral norm (advice only: there is no such swap here yet)
    6  gamma and beta are one and zero                                a norm without them

What depends on what is read from autograd's graph of one run: a norm lies on a recurrent path when some layer is among both its
ancestors and its descendants, be it one module called at every step or one module a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normfold.load.loaded import Call, Loaded
from normfold.record import Record
from normfold.swap.common import live, samples, versions
from normfold.swap.data import BATCH, Data
from normfold.swap.find import Site, find_sites, tapped
from normfold.swap.fit import Moments
from normfold.swap.norms import as_channels_last
from normfold.swap.recalibrate import compared
from normfold.swap.result import Advice, Left

DRIFT = 0.1  # Kullback-Leibler divergence, mean over the channels, from which statistics are said not to fit
_FEWEST = 30  # values a channel below which statistics of the data say nothing
_NEAR = 1e-3
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_OPTIMIZE = "normfold optimize (exact)"


@dataclass
class _Seen:
    """What one run shows: per module name the names that its inputs depend on."""

    behind: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    inputs: list[Tensor] = field(default_factory=list[Tensor])
    outputs: list[Tensor] = field(default_factory=list[Tensor])


def advise(loaded: Loaded, record: Record) -> tuple[list[Advice], list[Left]]:
    """Remedies for the norms of a loaded module, and what cannot be exchanged; nothing is changed.

    Without real data nothing is said about statistics.  Raises InputRefused and UsageError as `swap` does.
    """
    record.versions = versions()
    module = live(loaded, "the advice", data=False)
    everything = samples(loaded)
    one = everything.take(range(min(everything.samples, 2)))[0]
    sites, left = find_sites(module, one)
    seen = _run(module, one)
    found: list[Advice] = []
    moments = _statistics(module, sites, everything) if loaded.own_inputs else {}
    if not loaded.own_inputs:
        record.note("the inputs are made up: nothing is said about stored statistics; give samples with --data")
    for site in sites:
        found += _recurrent(site, seen, module)
        found += _statistics_fit(site, moments)
        found += _image(site, seen)
        found += _discriminator(site, seen, module)
        found += _cost(site)
        found += _affine(site)
    return sorted(found, key=lambda item: item.drawback), left


# ---- one drawback after the other ----------------------------------------------------------------------------------------


def _statistics_fit(site: Site, moments: dict[str, list[Moments]]) -> Iterable[Advice]:
    found = [compared(site, item) for item in moments.get(site.name, []) if item.count >= _FEWEST]
    apart = [item.divergence for item in found]
    if not found or max(apart) <= DRIFT:
        return
    if len(found) == 1:
        why = f"its input's statistics on the data differ from the stored ones (KL {apart[0]:.2g}, worst {found[0].worst:.2g})"
        remedy = "normfold recalibrate; where batches are small in training, normfold swap --to groupnorm or layernorm"
        yield Advice(site.name, site.kind, 1, remedy, why)
    elif max(apart) > 2 * min(apart):
        why = f"statistics differ from step to step, and one pair is stored (KL {min(apart):.2g} to {max(apart):.2g})"
        yield Advice(site.name, site.kind, 3, "normfold swap --to layernorm", why)


def _cost(site: Site) -> Iterable[Advice]:
    if site.kind == "batch":
        yield Advice(site.name, site.kind, 2, _OPTIMIZE, "a BatchNorm with stored statistics usually folds into its neighbours")
    elif site.kind in ("layer", "group", "instance"):
        kind = {"layer": "rmsnorm", "group": "layernorm", "instance": "none"}[site.kind]
        why = "it takes its statistics at run time, so it cannot fold"
        yield Advice(
            site.name, site.kind, 2, f"normfold swap --from {site.kind} --to {kind}, where the measured loss is small", why
        )


def _recurrent(site: Site, seen: _Seen, module: nn.Module) -> Iterable[Advice]:
    if site.kind not in ("batch", "instance"):
        return
    remedy = f"{_OPTIMIZE}, which collapses cells with shared statistics; else normfold swap --to layernorm"
    own = seen.behind.get(site.name, set())
    ahead = {name for name, behind in seen.behind.items() if site.name in behind}
    loops = own & ahead
    if site.name in own or loops:
        where = f"at every one of {site.calls} steps" if site.calls > 1 else "with statistics of its own for one step"
        yield Advice(site.name, site.kind, 3, remedy, f"it lies on a recurrent path, {where}")
        return
    turning = {name for name, behind in seen.behind.items() if name in behind}
    if site.calls > 1 and ahead & turning:
        yield Advice(
            site.name, site.kind, 3, remedy, f"it normalises the input of a recurrent cell, at every one of {site.calls} steps"
        )
        return
    cells = {name for name, part in module.named_modules() if isinstance(part, _RECURRENT)}
    front = {cell for cell in ahead & cells if not _between(site.name, cell, seen)}
    back = {cell for cell in own & cells if not _between(cell, site.name, seen)}
    if front or back:
        words = [f"{word} {', '.join(sorted(names))}" for word, names in (("behind", back), ("in front of", front)) if names]
        folds = (
            f"{_OPTIMIZE}: it folds into the weights of a recurrent layer or of what reads it; else normfold swap --to layernorm"
        )
        yield Advice(site.name, site.kind, 3, folds, f"it stands straight {' and '.join(words)}")


def _between(first: str, last: str, seen: _Seen) -> bool:
    """Another layer lies on the way."""
    return any(first in behind and name in seen.behind[last] for name, behind in seen.behind.items() if name not in (first, last))


def _image(site: Site, seen: _Seen) -> Iterable[Advice]:
    sizes = [x.shape[-2:] for x in seen.inputs if x.ndim == 4]
    like = [y for y in seen.outputs if y.ndim == 4 and y.shape[1] <= 4 and any(_as_large(y.shape[-2:], size) for size in sizes)]
    if like and site.kind in ("batch", "instance"):
        remedy = "normfold swap --to none (super-resolution: Lim et al. 2017); --to instancenorm for style"
        yield Advice(
            site.name, site.kind, 4, remedy, "the network goes from image to image, and a norm shifts contrast and colour"
        )


def _as_large(size: Sequence[int], other: Sequence[int]) -> bool:
    return all(one >= two for one, two in zip(size, other, strict=True)) and min(size) > 1


def _discriminator(site: Site, seen: _Seen, module: nn.Module) -> Iterable[Advice]:
    parts = list(module.modules())
    convs = [part for part in parts if isinstance(part, nn.Conv2d) and max(part.stride) > 1]
    leaky = any(isinstance(part, nn.LeakyReLU) for part in parts)
    single = bool(seen.outputs) and all(
        y.numel() == y.shape[0] or (y.ndim == 4 and y.shape[1] == 1) for y in seen.outputs if y.ndim
    )
    if site.kind == "batch" and len(convs) > 1 and leaky and single:
        remedy = (
            "spectral norm on the convolutions, in training (Miyato et al. 2018, arXiv:1802.05957): normfold has no swap for it"
        )
        yield Advice(
            site.name, site.kind, 5, remedy, "strided convolutions, LeakyReLU and one score: it looks like a discriminator"
        )


def _affine(site: Site) -> Iterable[Advice]:
    gamma, beta = (getattr(site.module, name, None) for name in ("weight", "bias"))
    if gamma is None or site.kind == "batch":
        return
    flat = bool((gamma - 1).abs().max() < _NEAR) and (beta is None or bool(beta.abs().max() < _NEAR))
    if flat:
        yield Advice(
            site.name, site.kind, 6, "build it without gamma and beta (elementwise_affine=False)", "they are one and zero"
        )


# ---- one run -------------------------------------------------------------------------------------------------------------


def _run(module: nn.Module, one: Call) -> _Seen:
    """What depends on what, from autograd's graph of one run."""
    seen = _Seen()
    layers = {name: part for name, part in module.named_modules() if name and (_own(part) or isinstance(part, _RECURRENT))}
    made: dict[Any, str] = {}  # autograd node -> the module that made it
    read: list[tuple[str, list[Any]]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            read.append((name, _nodes(args)))
            for node in _nodes(output):
                made[node] = name

        return hook

    module = module.requires_grad_(True)
    args, kwargs = one
    with torch.enable_grad(), tapped(module, {name: watch(name) for name in layers}):
        result = module(*args, **kwargs)
    seen.inputs = [leaf for leaf in pytree.tree_leaves(one) if isinstance(leaf, Tensor)]
    seen.outputs = [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    masks = _ancestors([node for _, nodes in read for node in nodes], made)
    for name, nodes in read:
        seen.behind.setdefault(name, set()).update(*(masks[node] for node in nodes))
    return seen


def _own(part: nn.Module) -> bool:
    return any(True for _ in part.parameters(recurse=False)) and not any(True for _ in part.children())


def _nodes(tree: Any) -> list[Any]:
    leaves = pytree.tree_leaves(tree)
    return [leaf.grad_fn for leaf in leaves if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def _ancestors(starts: Sequence[Any], made: dict[Any, str]) -> dict[Any, frozenset[str]]:
    """For every node reached from `starts`: the modules that made it or what it was computed from."""
    masks: dict[Any, frozenset[str]] = {}
    stack = [(node, False) for node in starts]
    while stack:
        node, done = stack.pop()
        if node in masks:
            continue
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if done:
            own = frozenset((made[node],)) if node in made else frozenset[str]()
            masks[node] = own.union(*(masks[parent] for parent in parents))
        else:
            stack.append((node, True))
            stack += [(parent, False) for parent in parents if parent not in masks]
    return masks


def _statistics(module: nn.Module, sites: Sequence[Site], data: Data) -> dict[str, list[Moments]]:
    """Moments of the input of every BatchNorm that stores statistics, call by call."""
    seen: dict[str, list[Moments]] = {}
    place: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
            x = as_channels_last(args[0], 1).double()
            number = place[name] = place.get(name, -1) + 1
            found, known = Moments.of(x, x), seen.setdefault(name, [])
            if number < len(known):
                known[number] = known[number].merged(found)
            else:
                known.append(found)

        return hook

    tracked = [site.name for site in sites if getattr(site.module, "running_mean", None) is not None and site.kind == "batch"]
    with torch.no_grad(), tapped(module, {name: watch(name) for name in tracked}):
        for args, kwargs in data.batches(BATCH):
            place.clear()
            module(*args, **kwargs)
    return seen
