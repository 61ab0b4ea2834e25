"""The whole way of a swap: find, replace, start, distil, measure on other samples, write or refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normfold.errors import ResultDiffers, UsageError
from normfold.load.loaded import Loaded
from normfold.record import Record
from normfold.swap.artefact import Origin, check_outputs, described, write
from normfold.swap.checkpoint import Checkpoint, fingerprint
from normfold.swap.common import live, samples, stage, versions
from normfold.swap.data import BATCH, Data, Held, Order, digest, read_held
from normfold.swap.distil import Place, Progress, Stage, distil, layer_errors
from normfold.swap.find import SOURCES, Site, find_sites
from normfold.swap.fit import fit
from normfold.swap.measure import drift, latency, metric, outputs
from normfold.swap.norms import KINDS, Kind, NewNorm
from normfold.swap.replace import chosen, exchanged, planned
from normfold.swap.result import Left, Replaced, Swapped

SUFFIXES = (".pt", ".pt2", ".onnx")


@dataclass(frozen=True)
class SwapOptions:
    """What a swap does.

    to: what the norms become.  source: which kind is exchanged.  only, skip: shell patterns of module paths.  groups: of a
    groupnorm, None for up to 32 of 8 or more channels.
    layer_steps, steps: of the layer-wise and of the end-to-end distillation; 0 leaves one out.  batch: samples a step.  rate:
    Adam's at the start.  seed: of the order of samples.
    held: samples that are not fitted, with labels (``xy.npz`` or ``file.py:function``); None sets every fifth sample apart.
    max_drop: points of accuracy (agreement, drift) that may be lost; force: write all the same, and over existing files.
    outputs: files to write (.pt, .pt2, .onnx).  dry_run: write nothing.  timing, seconds: measure latency, for how long.
    """

    to: Kind
    source: str = "batch"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    groups: int | None = None
    layer_steps: int = 200
    steps: int = 300
    batch: int = 64
    rate: float = 2e-3
    seed: int = 0
    held: str | None = None
    max_drop: float = 0.5
    force: bool = False
    outputs: tuple[Path, ...] = ()
    dry_run: bool = False
    timing: bool = True
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.to not in KINDS:
            raise UsageError(f"a norm can become {', '.join(KINDS)}; got {self.to!r}")
        if self.source not in SOURCES:
            raise UsageError(f"norms to exchange are {', '.join(SOURCES)}; got {self.source!r}")
        for name, low in (("layer_steps", 0), ("steps", 0), ("batch", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {low} or more; got {getattr(self, name)}")
        if not self.rate > 0 or not self.seconds > 0:
            raise UsageError("rate and seconds are above 0")
        if not self.max_drop >= 0:
            raise UsageError(f"max_drop is in points, 0 or more; got {self.max_drop}")
        for path in self.outputs:
            if path.suffix not in SUFFIXES:
                raise UsageError(f"{path}: a swapped model is written as {', '.join(SUFFIXES)}; name the output so")

    def fitting(self) -> dict[str, Any]:
        """The options that decide the weights, in plain types."""
        names = ("to", "source", "only", "skip", "groups", "layer_steps", "steps", "batch", "rate", "seed", "held")
        return {name: getattr(self, name) for name in names}


@dataclass
class Outcome:
    """What `swap` returns: what was learnt, and the network with its new norms (an nn.Module in eval mode)."""

    swapped: Swapped
    module: nn.Module


def swap(
    loaded: Loaded,
    options: SwapOptions,
    record: Record,
    *,
    origin: Origin | None = None,
    progress: Progress | None = None,
    result: Swapped | None = None,
) -> Outcome:
    """Exchange norms of a loaded module as `options` say.  Another function comes out; what that costs is in the result.

    origin: what built the network, for the factory written beside a .pt.  progress: told after every step.  result: filled on the
    way, so that it can be shown after an error too.
    Raises ResultDiffers when more than `max_drop` points are lost and `force` is not set (nothing is written), UsageError and
    InputRefused for what does not fit, CannotTell when the distillation diverges.
    """
    result = result or Swapped(options.to)
    result.record, result.max_drop, result.options = record, options.max_drop, options.fitting()
    record.versions = versions()
    check_outputs(options.outputs, loaded.path, force=options.force)
    teacher = live(loaded, "a swap")
    everything = samples(loaded)
    fitted, held = _parts(everything, options.held, teacher, record)
    result.fitted_on = fitted.samples
    with stage(record, "start"):
        student, sites = _replace(teacher, fitted, options, result)
        names = [site.name for site in sites]
        scales = fit(teacher, student, sites, fitted.batches(BATCH))
        errors = layer_errors(teacher, student, names, fitted.batches(BATCH), scales)
        reference = outputs(teacher, held.data)
        result.start = metric(reference, outputs(student, held.data), held)
    keep = Checkpoint(_part(options), _key(loaded, options, fitted), student)
    with stage(record, "distil"):
        stages = [Stage("layers", options.layer_steps, options.rate), Stage("whole", options.steps, options.rate)]
        place = keep.resume()
        if place is not None:
            record.note(f"went on where {keep.path} had stopped: stage {stages[place.stage].name!r}, step {place.step}")
        place = place or Place()
        order = Order(fitted, options.batch, options.seed)
        try:
            result.losses = distil(teacher, student, names, order, scales, stages, place=place, progress=progress, save=keep.save)
        except KeyboardInterrupt:
            if keep.path is not None:
                record.warn(f"{keep.path} holds what was reached: the same command goes on with it")
            raise
        keep.write(place, finished=True)
        for name in (name for name, (first, last) in result.losses.items() if not last < first):
            record.note(f"the distillation of stage {name!r} made its own loss no smaller and was undone")
    with stage(record, "measure"):
        ends = layer_errors(teacher, student, names, fitted.batches(BATCH), scales)
        for item in result.replaced:
            item.start, item.fitted = errors[item.name], ends[item.name]
        came = outputs(student, held.data)
        result.metric, result.drift = metric(reference, came, held), drift(reference, came)
    if options.timing:
        with stage(record, "timing"):
            latency(teacher, student, everything.take([0])[0], options.seconds, record)
    if not result.allowed and not options.force:
        raise ResultDiffers(_refused(result))
    if not result.allowed:
        record.warn(f"more was lost than --max-drop {options.max_drop:g} allows; it was accepted because of --force")
    if not options.dry_run:
        if origin is not None and not origin.inputs and not everything.whole:
            origin = replace(origin, inputs=described(student, everything.take([0])[0]))
        write(student, loaded, everything, options.outputs, result, origin=origin, force=options.force)
        keep.remove()
    return Outcome(result, student)


def _replace(teacher: nn.Module, fitted: Data, options: SwapOptions, result: Swapped) -> tuple[nn.Module, list[Site]]:
    """The student with untrained new norms, and the sites of the teacher that they stand for."""
    sites, result.left = find_sites(teacher, fitted.take(range(min(fitted.samples, 2)))[0])
    if not sites and result.left:
        raise UsageError(f"no norm can be swapped: {_reasons(result.left)}")
    plan: dict[str, NewNorm] = {}
    for site in chosen(sites, options.source, options.only, options.skip):
        found = planned(site, options.to, options.groups)
        if isinstance(found, Left):
            result.left.append(found)
            continue
        plan[site.name] = found
        result.replaced.append(Replaced(site.names, type(site.module).__name__, found.as_dict(), site.calls))
    if not plan:
        raise UsageError(f"no norm can be swapped to {options.to}: {_reasons(result.left)}")
    return exchanged(teacher, plan), [site for site in sites if site.name in plan]


def _reasons(left: Sequence[Left]) -> str:
    first = left[0]
    more = f"; and {len(left) - 1} more" if len(left) > 1 else ""
    return f"{first.name} {first.refusal.reason}; {first.refusal.fix}{more}"


def _parts(everything: Data, given: str | None, teacher: nn.Module, record: Record) -> tuple[Data, Held]:
    """(samples to fit, samples to measure on), which share none."""
    if given is None:
        fitted, apart = everything.apart()
        unit = "call" if everything.whole else "sample"
        return fitted, Held(apart, None, f"every fifth {unit} of the data, set apart")
    held = read_held(given, teacher)
    if not everything.whole:
        both = len(set(everything.hashes()) & set(held.data.hashes()))
        if both:
            record.warn(f"{both} of the samples in --eval are in the data that is fitted too: the measure flatters the result")
    return everything, held


def _refused(result: Swapped) -> str:
    assert result.metric is not None
    one = result.metric
    return (
        f"{one.lost:.2f} points of {one.measure} lost on {one.samples} held-out samples, --max-drop allows {result.max_drop:g}: "
        "nothing was written. More --steps or more data may help; --max-drop or --force accepts it"
    )


def _part(options: SwapOptions) -> Path | None:
    """Where the unfinished run is kept: beside the first output."""
    if options.dry_run or not options.outputs:
        return None
    first = options.outputs[0]
    return first.with_name(f"{first.name}.part")


def _key(loaded: Loaded, options: SwapOptions, fitted: Data) -> str:
    """What decides the weights: the model, the options, the samples, the versions, the number of threads."""
    weights = loaded.sha256 or digest(list(loaded.module.state_dict().values()))
    facts = {"model": weights, "options": options.fitting(), "data": digest(fitted.calls), "threads": torch.get_num_threads()}
    return fingerprint({**facts, "versions": versions()})
