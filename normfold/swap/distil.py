"""Distillation on samples without labels: first every layer by itself, then the whole network; the teacher is the original.

Layer by layer.  The student runs with the teacher's activations: what a new norm gives is compared with what the old norm gave in
the same call, and then the old norm's output goes on in its place.  So the student is cut at its norms into pieces; each piece (a
new norm and what lies in front of it, up to the norms before) learns to map what the teacher has there to what the teacher has
next, no error piles up from piece to piece, and a cell is trained at every step on the teacher's own states.

    loss = mean over the norms of  mean_calls |y - t|^2 / var(t)

End to end.  Both run freely; for class scores this is the regression of logits of Ba & Caruana 2014 (arXiv:1312.6184).

    loss = mean over the outputs of  |y - t|^2 / var(t)

Both run in eval mode (stored statistics, no dropout), with Adam and a rate that falls as a cosine.  Same start, same batches,
same versions, same number of threads: same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normfold.errors import CannotTell
from normfold.load.loaded import Call
from normfold.swap.data import Order
from normfold.swap.find import tapped
from normfold.swap.fit import Scales, floats

Name = Literal["layers", "whole"]


@dataclass(frozen=True)
class Stage:
    """One part of the distillation: "layers" or "whole", its number of steps, its learning rate at the start."""

    name: Name
    steps: int
    rate: float


@dataclass
class Place:
    """How far a run has come: the stage's number, steps done in it, losses (first and last) by stage name, Adam's state."""

    stage: int = 0
    step: int = 0
    losses: dict[str, tuple[float, float]] | None = None
    optimizer: dict[str, Any] | None = None


Progress = Callable[[Stage, int, float], None]
"""Called after every step with the stage, the steps done in it and the loss."""
Save = Callable[[Place, bool], None]
"""Called after every step with the place, True on the way out; it decides whether to write."""


def distil(
    teacher: nn.Module,
    student: nn.Module,
    names: Sequence[str],
    order: Order,
    scales: Scales,
    stages: Sequence[Stage],
    *,
    place: Place | None = None,
    progress: Progress | None = None,
    save: Save | None = None,
) -> dict[str, tuple[float, float]]:
    """Train `student` in place; returns the first and the last loss of every stage.

    names: of the new norms.  place: where to go on; `student` holds the weights of that moment.
    Raises CannotTell when the loss is no number any more, and when teacher and student do not run the same way.
    """
    place = place or Place()
    losses = place.losses = dict(place.losses or {})
    parameters = [item for item in student.parameters() if item.requires_grad]
    for number in range(place.stage, len(stages)):
        stage = stages[number]
        optimizer = torch.optim.Adam(parameters, stage.rate)
        if number == place.stage and place.optimizer is not None:
            optimizer.load_state_dict(place.optimizer)
        first = place.step if number == place.stage else 0
        place.stage, place.step = number, first
        whole = True  # False while an update is half done: that state is never saved
        try:
            for step in range(first, stage.steps):
                args = order.batch(step)
                loss = (_apart if stage.name == "layers" else _together)(teacher, student, names, args, scales)
                value = loss.item()
                if not math.isfinite(value):
                    raise CannotTell(f"the loss of stage {stage.name!r} is {value} at step {step}: give a smaller --rate")
                optimizer.zero_grad()
                if loss.requires_grad:
                    loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = 0.5 * stage.rate * (1.0 + math.cos(math.pi * step / stage.steps))
                whole = False
                optimizer.step()
                place.step, place.optimizer = step + 1, optimizer.state_dict()
                losses[stage.name] = (losses.get(stage.name, (value, value))[0], value)
                whole = True
                if progress is not None:
                    progress(stage, step + 1, value)
                if save is not None:
                    save(place, False)
        except BaseException:
            if save is not None and whole:
                save(place, True)
            raise
        place.optimizer = None
    return losses


def _apart(teacher: nn.Module, student: nn.Module, names: Sequence[str], one: Call, scales: Scales) -> Tensor:
    """The loss of every piece of the student between two norms, on the teacher's activations."""
    errors = forced(teacher, student, names, one)
    parts = [torch.stack(errors[name]).mean() / scales.norms[name] for name in names]
    return torch.stack(parts).mean()


def _together(teacher: nn.Module, student: nn.Module, names: Sequence[str], one: Call, scales: Scales) -> Tensor:
    """The loss of the student's outputs."""
    args, kwargs = one
    with torch.no_grad():
        wanted = floats(teacher(*args, **kwargs))
    came = floats(student(*args, **kwargs))
    pairs = zip(came, wanted, scales.outputs, strict=True)
    return torch.stack([(y - t).square().mean() / scale for y, t, scale in pairs]).mean()


def forced(teacher: nn.Module, student: nn.Module, names: Sequence[str], one: Call) -> dict[str, list[Tensor]]:
    """Mean square error of every call of every norm in `student`, which goes on with the teacher's value each time."""
    args, kwargs = one
    wanted: dict[str, list[Tensor]] = {name: [] for name in names}
    errors: dict[str, list[Tensor]] = {name: [] for name in names}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            wanted[name].append(output.clone())  # an activation in place may follow

        return hook

    def exchange(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            place = len(errors[name])
            if place >= len(wanted[name]) or wanted[name][place].shape != output.shape:
                raise CannotTell(f"{name} is called differently in the copy with new norms: its values decide how the model runs")
            errors[name].append((output - wanted[name][place]).square().mean())
            return wanted[name][place].clone()

        return hook

    with torch.no_grad(), tapped(teacher, {name: listen(name) for name in names}):
        teacher(*args, **kwargs)
    with tapped(student, {name: exchange(name) for name in names}):
        student(*args, **kwargs)
    for name in names:
        if len(errors[name]) != len(wanted[name]):
            raise CannotTell(
                f"{name} is called {len(wanted[name])} times in the original, its successor {len(errors[name])} times: it is "
                "reached in a way that cannot be exchanged (a closure), or its values decide how the model runs"
            )
    return errors


def layer_errors(
    teacher: nn.Module, student: nn.Module, names: Sequence[str], batches: Iterable[Call], scales: Scales
) -> dict[str, float]:
    """Root mean square error of each new norm on the teacher's activations, as a part of its output's standard deviation."""
    total: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for one in batches:
            for name, errors in forced(teacher, student, names, one).items():
                total[name] += [float(item) for item in errors]
    return {name: (sum(found) / max(len(found), 1) / scales.norms[name]) ** 0.5 for name, found in total.items()}
