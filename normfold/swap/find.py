"""The norms of an nn.Module: which can be exchanged, under which names, and how one run calls them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from normfold.errors import UsageError
from normfold.load.loaded import Call
from normfold.record import Refusal
from normfold.swap.result import Left

SOURCES = ("batch", "layer", "group", "instance", "rms")
_BASES: Mapping[str, type[nn.Module]] = {
    "batch": batchnorm._BatchNorm,  # pyright: ignore[reportPrivateUsage]
    "instance": instancenorm._InstanceNorm,  # pyright: ignore[reportPrivateUsage]
    "layer": nn.LayerNorm,
    "group": nn.GroupNorm,
    "rms": nn.RMSNorm,
}
_OWN: dict[Any, str] = {base.forward: kind for kind, base in _BASES.items()} | {nn.SyncBatchNorm.forward: "batch"}
_FUNCTIONS: dict[Any, str] = {
    F.batch_norm: "torch.nn.functional.batch_norm",
    torch.batch_norm: "torch.batch_norm",
    F.instance_norm: "torch.nn.functional.instance_norm",
    torch.instance_norm: "torch.instance_norm",
}


@dataclass
class Site:
    """One norm module.

    names: all its paths, sorted as named_modules gives them.  kind: one of `SOURCES`.  axis: of the channels, 1 or -1.
    calls, ranks, positions: of one run: how often, the ranks of its inputs, the fewest values that a channel of one sample has.
    """

    names: tuple[str, ...]
    module: nn.Module
    kind: str
    channels: int
    axis: int
    calls: int = 0
    ranks: set[int] = field(default_factory=set[int])
    positions: int = 0

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


def find_sites(module: nn.Module, call: Call) -> tuple[list[Site], list[Left]]:
    """Every norm that can be exchanged, and what cannot, with the reason; `call` is run once, in the mode that `module` is in."""
    sites: dict[int, Site] = {}
    left: dict[int, Left] = {}
    names: dict[int, list[str]] = {}
    parts = {id(part): part for part in module.modules()}
    for name, part in module.named_modules(remove_duplicate=False):
        names.setdefault(id(part), []).append(name)
    for key, part in parts.items():
        kind = next((kind for kind, base in _BASES.items() if isinstance(part, base)), None)
        if kind is None:
            continue
        paths = tuple(names[key])
        refusal = _refusal(part, kind, paths[0])
        if refusal is not None:
            left[key] = Left(paths[0], refusal)
        else:
            sites[key] = Site(paths, part, kind, _channels(part, kind), -1 if kind in ("layer", "rms") else 1)
    own = _watch(module, call, sites, left, names)
    for key, site in list(sites.items()):
        refusal = _uncommon(site)
        if refusal is not None:
            del sites[key]
            left[key] = Left(site.name, refusal)
    return list(sites.values()), [*left.values(), *own]


def _refusal(part: nn.Module, kind: str, name: str) -> Refusal | None:
    if not name:
        return Refusal("whole-model", "is the whole model: there is no module that holds it", "wrap it in an nn.Sequential")
    if type(part).forward not in _OWN:
        cls = type(part).__name__
        return Refusal(
            "own-forward",
            f"{cls} is a norm with a forward of its own, which may do more than normalise (an activation, dropout)",
            "split it into a plain norm and the rest",
        )
    if vars(part)["_forward_hooks"] or vars(part)["_forward_pre_hooks"]:
        return Refusal("hooks", "carries forward hooks, which a new module would lose", "remove the hooks first")
    shape = getattr(part, "normalized_shape", (1,))
    if kind in ("layer", "rms") and len(shape) != 1:
        return Refusal("several-axes", f"normalises {len(shape)} axes at once: there is no one channel axis", "leave it")
    return None


def _uncommon(site: Site) -> Refusal | None:
    """Why one run shows that a site cannot be exchanged."""
    if site.calls == 0:
        reason = "is not reached by the example inputs, so nothing is known to fit its successor to"
        return Refusal("not-called", reason, "give inputs that use it, or leave it as it is")
    if site.kind == "instance" and _alone(site):
        return Refusal("no-samples", "normalises one sample without an axis for samples", "give it a batch")
    return None


def _alone(site: Site) -> bool:
    """InstanceNorm takes a sample without its axis 0 too: [C, L], [C, H, W], [C, D, H, W]."""
    ranks = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}
    return any(isinstance(site.module, cls) and rank in site.ranks for cls, rank in ranks.items())


def _channels(part: Any, kind: str) -> int:
    if kind in ("layer", "rms"):
        return int(part.normalized_shape[0])
    return int(part.num_channels if kind == "group" else part.num_features)


# ---- one run -------------------------------------------------------------------------------------------------------------


def _watch(
    module: nn.Module, call: Call, sites: Mapping[int, Site], left: Mapping[int, Left], names: Mapping[int, list[str]]
) -> list[Left]:
    """Count the calls of the sites; returns norms that are no module but a function somebody's forward calls."""
    stack: list[nn.Module] = []
    functional: dict[tuple[str, str], Left] = {}

    def enter(part: nn.Module, args: tuple[Any, ...]) -> None:
        stack.append(part)
        site = sites.get(id(part))
        if site is None:
            return
        if not args or not isinstance(args[0], Tensor):
            raise UsageError(f"{site.name} is called without a tensor as its first argument; a norm takes one")
        x: Tensor = args[0]
        positions = x.numel() // max(x.shape[0] * site.channels, 1)
        site.positions = positions if site.calls == 0 else min(site.positions, positions)
        site.calls += 1
        site.ranks.add(x.ndim)

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    def seen(function: str) -> None:
        owner = stack[-1] if stack else module
        if id(owner) in sites or id(owner) in left:
            return
        name = names.get(id(owner), ["?"])[0] or type(owner).__name__
        reason = f"calls {function} itself: there is no module to exchange"
        fix = "write it as an nn.BatchNorm or nn.InstanceNorm module, with the same state"
        functional[name, function] = Left(name, Refusal("functional", reason, fix))

    args, kwargs = call
    handles = (
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        with torch.no_grad(), _Calls(seen):
            module(*args, **kwargs)
    except UsageError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise UsageError(
            f"{type(module).__name__} does not run on the given inputs: {type(error).__name__}: {text[0] if text else ''}; "
            "check their number, shapes and types"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return list(functional.values())


class _Calls(TorchFunctionMode):
    """Tells `seen` of every call of a norm as a function; calls made inside of it are not told."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FUNCTIONS:
            self.seen(_FUNCTIONS[func])
        return func(*args, **(kwargs or {}))


@contextmanager
def tapped(module: nn.Module, hooked: Mapping[str, Callable[[nn.Module, Any, Any], Any]]) -> Generator[None]:
    """Forward hooks on the modules of these names, for a while."""
    handles = [module.get_submodule(name).register_forward_hook(hook) for name, hook in hooked.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
