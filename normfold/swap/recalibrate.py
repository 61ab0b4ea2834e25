"""New statistics for BatchNorm: those of all samples, not a moving average of training's last batches.

Wu & Johnson 2021 (arXiv:2105.07576), "precise BN": the network runs on batches with every BatchNorm normalising by the batch's
own statistics, as in training (dropout and the rest stay in eval mode), and each layer's input is averaged over all batches:

    mean = E[x],   var = E[(x - mean)^2]   per channel, over all samples, positions and calls

(the variance unbiased, as torch stores it).  A layer that is called at several steps is left, unless it is named: in training
every call was normalised by its own statistics, and one pair of all together fits none (models/digits_bnlstm.pt loses 2 points).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normfold.errors import ResultDiffers, UsageError
from normfold.export.atomic import write_files
from normfold.load.loaded import Loaded
from normfold.record import Record, Refusal
from normfold.swap.artefact import Origin, check_outputs, checkpoint, manifest
from normfold.swap.common import live, samples, versions
from normfold.swap.common import stage as timed
from normfold.swap.data import Data, read_held
from normfold.swap.find import Site, find_sites, tapped
from normfold.swap.fit import Moments
from normfold.swap.measure import metric, outputs
from normfold.swap.norms import as_channels_last
from normfold.swap.replace import chosen
from normfold.swap.result import Left, Recalibrated, Renewed


def recalibrate(
    loaded: Loaded,
    record: Record,
    *,
    output: Path | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    batch: int = 256,
    held: str | None = None,
    max_drop: float = 0.5,
    force: bool = False,
    origin: Origin | None = None,
    result: Recalibrated | None = None,
) -> nn.Module:
    """Give a copy of the loaded module the statistics of its data; returns it.  Another function comes out.

    output: the .pt to write, None for none.  only, skip: shell patterns of module paths.  batch: samples whose own statistics
    normalise them.  held: labelled samples to measure on (see normfold.swap.data.read_held).  result: filled on the way.
    Raises ResultDiffers when more than `max_drop` points of accuracy are lost on `held` and `force` is not set, UsageError and
    InputRefused for what does not fit.
    """
    result = result or Recalibrated()
    result.record, record.versions = record, versions()
    if output is not None:
        if output.suffix != ".pt":
            raise UsageError(f"{output}: recalibrated weights are written as .pt; name the output so")
        check_outputs([output], loaded.path, force=force)
    before = live(loaded, "a recalibration")
    module = live(loaded, "a recalibration")
    data = samples(loaded)
    if not data.whole and data.samples % batch == 1:
        data = data.kept(range(data.samples - 1))  # a batch of one sample has no variance
    if not data.samples:
        raise UsageError("one sample has no statistics: give more in --data")
    result.fitted_on = data.samples
    with timed(record, "statistics"):
        sites, result.left = find_sites(module, data.take(range(min(data.samples, 2)))[0])
        tracked = [site for site in chosen(sites, "batch", only, skip) if _tracked(site, bool(only), result)]
        if not tracked:
            last = result.left[-1]
            raise UsageError(f"there are no statistics to renew: {last.name} {last.refusal.reason}; {last.refusal.fix}")
        seen = statistics(module, tracked, data, batch)
        for site in tracked:
            result.layers.append(_renew(site, seen[site.name]))
    if held is not None:
        with timed(record, "measure"):
            apart = read_held(held, module)
            result.metric = metric(outputs(before, apart.data), outputs(module, apart.data), apart)
        if result.metric.lost > max_drop + 1e-9 and not force:
            raise ResultDiffers(
                f"{result.metric.lost:.2f} points of accuracy lost on {result.metric.samples} held-out samples, --max-drop "
                f"allows {max_drop:g}: nothing was written; --max-drop or --force accepts it"
            )
    if output is not None:
        files = checkpoint(output, module, origin, {}, record)
        write_files(files | manifest(output, result.as_dict(), record), force=True)
    return module


def statistics(module: nn.Module, sites: Sequence[Site], data: Data, batch: int) -> dict[str, Moments]:
    """Moments of every site's input, over all batches, each normalised by its own statistics; the module stays as it is."""
    seen: dict[str, Moments] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> None:
            x = as_channels_last(args[0], 1).double()
            found = Moments.of(x, x)
            seen[name] = seen[name].merged(found) if name in seen else found

        return hook

    norms: list[Any] = [site.module for site in sites]
    kept = [(norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0  # the stored statistics stay
        with torch.no_grad(), tapped(module, {site.name: watch(site.name) for site in sites}):
            for args, kwargs in data.batches(batch):
                module(*args, **kwargs)
    except ValueError as error:
        raise UsageError(f"{' '.join(str(error).split())}: give batches of more samples") from error
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.eval()
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)
    return seen


def compared(site: Site, seen: Moments) -> Renewed:
    """The statistics that were seen against the stored ones of a BatchNorm."""
    norm: Any = site.module
    mean, var = seen.mean_n, _variance(seen)
    stored = norm.running_var.double() + norm.eps
    ratio = (var + norm.eps) / stored
    moved = (mean - norm.running_mean.double()) / stored.sqrt()
    divergence = 0.5 * (ratio + moved**2 - 1 - ratio.log())  # KL(N(mean, var) | N(stored)), epsilon counted on both sides
    return Renewed(
        site.name,
        site.channels,
        site.calls,
        float(moved.abs().max()),
        float(ratio.min()),
        float(ratio.max()),
        float(divergence.mean()),
        float(divergence.max()),
    )


def _renew(site: Site, seen: Moments) -> Renewed:
    found = compared(site, seen)
    norm: Any = site.module
    norm.running_mean.copy_(seen.mean_n)
    norm.running_var.copy_(_variance(seen))
    return found


def _variance(seen: Moments) -> Tensor:
    return seen.nn / max(seen.count - 1, 1)


def _tracked(site: Site, asked: bool, result: Recalibrated) -> bool:
    """True for a layer whose statistics can be renewed."""
    if getattr(site.module, "running_mean", None) is None:
        reason = "stores no statistics: it takes those of every batch it sees"
        result.left.append(Left(site.name, Refusal("no-statistics", reason, "build it with track_running_stats=True")))
    elif site.calls > 1 and not asked:
        reason = f"is called {site.calls} times in a run, and training never saw the statistics of all calls together"
        fix = "swap it to layernorm; --only NAME renews it all the same"
        result.left.append(Left(site.name, Refusal("several-calls", reason, fix)))
    else:
        return True
    return False
