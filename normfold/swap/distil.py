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
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normfold.errors import CannotTell
from normfold.load.loaded import Call
from normfold.swap.data import BATCH, Order
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
    """How far a run has come: the stage's number and the steps done in it, Adam's state, what the stage began with.

    losses: on all data, at the start and at the end of every stage that is done.  before: loss and weights at the start of the
    present one.
    """

    stage: int = 0
    step: int = 0
    losses: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    optimizer: dict[str, Any] | None = None
    before: tuple[float, dict[str, Tensor]] | None = None


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
    """Train `student` in place; returns the loss on all data before and after every stage.

    A stage that does not lower its own loss is undone: then the second number is not below the first, and the weights are those
    from before it.  names: of the new norms.  place: where to go on; `student` holds the weights of that moment.
    Raises CannotTell when the loss is no number any more, and when teacher and student do not run the same way.
    """
    place = place or Place()
    for number in range(place.stage, len(stages)):
        stage = stages[number]
        if number > place.stage:
            place.stage, place.step, place.optimizer, place.before = number, 0, None, None
        if not stage.steps or (place.step and place.before is None):
            continue  # left out, or done and judged

        def loss_of(one: Call, apart: bool = stage.name == "layers") -> Tensor:
            return (_apart if apart else _together)(teacher, student, names, one, scales)

        if place.before is None:
            state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
            place.before = (_mean(loss_of, order), state)
        _train(student, order, stage, place, loss_of, progress, save)
        first, state = place.before
        last = _mean(loss_of, order)
        if not last < first:
            student.load_state_dict(state)
        place.losses[stage.name] = (first, last)
        place.before = place.optimizer = None
    return place.losses


def _train(
    student: nn.Module,
    order: Order,
    stage: Stage,
    place: Place,
    loss_of: Callable[[Call], Tensor],
    progress: Progress | None,
    save: Save | None,
) -> None:
    """The steps of a stage from `place` on."""
    optimizer = torch.optim.Adam([item for item in student.parameters() if item.requires_grad], stage.rate)
    if place.optimizer is not None:
        optimizer.load_state_dict(place.optimizer)
    whole = True  # False while an update is half done: that state is never saved
    try:
        for step in range(place.step, stage.steps):
            loss = loss_of(order.batch(step))
            value = loss.item()
            if not math.isfinite(value):
                raise CannotTell(f"the loss of stage {stage.name!r} is {value} at step {step}: give a smaller --rate")
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.5 * stage.rate * (1.0 + math.cos(math.pi * step / stage.steps))
            whole = False
            optimizer.step()
            place.step, place.optimizer = step + 1, optimizer.state_dict()
            whole = True
            if progress is not None:
                progress(stage, step + 1, value)
            if save is not None:
                save(place, False)
    except BaseException:
        if save is not None and whole:
            save(place, True)
        raise


def _mean(loss_of: Callable[[Call], Tensor], order: Order) -> float:
    """The mean loss over all data; every batch counts alike."""
    with torch.no_grad():
        found = [loss_of(one).item() for one in order.data.batches(BATCH)]
    return sum(found) / len(found)


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
