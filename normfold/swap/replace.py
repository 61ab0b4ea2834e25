"""Exchange norm modules in a copy of a network: every reference to one, under whatever name, leads to the same new norm."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.capture.program import copied
from normfold.errors import UsageError
from normfold.load.factory import call, resolve
from normfold.record import Refusal
from normfold.swap.find import Site
from normfold.swap.norms import Kind, NewNorm, usual_groups
from normfold.swap.result import Left

_SAME = {"layernorm": "layer", "rmsnorm": "rms", "groupnorm": "group", "instancenorm": "instance"}
_SHOWN = 6


def chosen(sites: Sequence[Site], source: str, only: Sequence[str], skip: Sequence[str]) -> list[Site]:
    """The sites of the kind `source` that a pattern of `only` names (all without one) and none of `skip`.

    Raises UsageError for a pattern that names no norm, and where nothing is left to do.
    """
    for pattern in (*only, *skip):
        if not any(_named(site, [pattern]) for site in sites):
            raise UsageError(f"no norm that could be swapped is called {pattern!r}; there is {_listed(sites)}")
    found = [
        site for site in sites if site.kind == source and (not only or _named(site, only)) and not (skip and _named(site, skip))
    ]
    if not found:
        others = sorted({site.kind for site in sites} - {source})
        hint = f"; it has {', '.join(others)} norms, which --from names" if others and not only else ""
        raise UsageError(f"there is no {source} norm to swap{hint}: `normfold swap --advise` lists the norms")
    return found


def planned(site: Site, to: Kind, groups: int | None) -> NewNorm | Left:
    """What `site` becomes, or why it stays."""
    if _SAME.get(to) == site.kind and to != "groupnorm":
        return Left(site.name, Refusal("same", f"is a {to} already", "leave it"))
    if to == "instancenorm" and site.positions < 2:
        reason = "normalises one value per channel and sample: an InstanceNorm of one value is zero"
        return Left(site.name, Refusal("no-positions", reason, "swap it to layernorm or groupnorm"))
    if to in ("layernorm", "rmsnorm") and site.channels == 1:
        reason = "has one channel: a norm over the channels of one value is a constant"
        return Left(site.name, Refusal("one-channel", reason, "leave it, or swap it to none"))
    if to != "groupnorm":
        return NewNorm(to, site.channels, site.axis)
    parts = groups or usual_groups(site.channels)
    if site.channels % parts:
        raise UsageError(f"{site.name}: {site.channels} channels cannot be cut in {parts} equal groups; give --groups a divisor")
    if site.channels // parts * site.positions < 2:
        reason = f"would have one value in each of {parts} groups: its GroupNorm is zero"
        return Left(site.name, Refusal("no-positions", reason, "give fewer --groups"))
    return NewNorm(to, site.channels, site.axis, groups=parts)


def exchanged(module: nn.Module, plan: Mapping[str, NewNorm]) -> nn.Module:
    """A copy of `module` in which what these names lead to is a new norm, in eval mode; the copy shares no tensor with it.

    One module under two names, called at every step or kept in a plain list becomes one new norm everywhere.  Raises
    UsageError for a name that leads nowhere.
    """
    instead: dict[int, nn.Module] = {}
    for name, norm in plan.items():
        try:
            old = module.get_submodule(name)
        except AttributeError:
            raise UsageError(f"the network has no module {name!r}: it is not the one that the swap was made of") from None
        new: nn.Module = norm.make()
        like = next((tensor for tensor in (*old.buffers(), *module.parameters()) if tensor.is_floating_point()), None)
        instead[id(old)] = new if like is None else new.to(like.device, like.dtype)
    return copied(module, instead).eval()


def rebuild(factory: str, swaps: Mapping[str, Mapping[str, Any]], base: Path | None = None) -> nn.Module:
    """The network of a swapped checkpoint, without its weights: what `factory` builds, its norms exchanged.

    factory: ``file.py:function``, relative to `base`, or ``package.module:function``.  swaps: by module path, `NewNorm` as dict.
    Raises UsageError where the factory is gone or builds another network.
    """
    made, path = resolve(factory, option="--model", base=base)
    network = made if isinstance(made, nn.Module) else call(made, what=f"--model {factory}", path=path)
    if not isinstance(network, nn.Module):
        raise UsageError(f"--model {factory} made a {type(network).__name__}; expected an nn.Module")
    with torch.no_grad():
        return exchanged(network, {name: NewNorm(**norm) for name, norm in swaps.items()})


def _named(site: Site, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in site.names)


def _listed(sites: Sequence[Site]) -> str:
    names = [site.name for site in sites]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"
