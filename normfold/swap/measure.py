"""What a swap costs, on samples that were not fitted: decisions lost, drift of the outputs, latency before and after."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from normfold.errors import CannotTell, NormfoldError, UsageError
from normfold.load.loaded import Call
from normfold.record import Record
from normfold.swap.data import BATCH, Data, Held
from normfold.swap.fit import floats
from normfold.swap.result import Metric


def outputs(module: nn.Module, data: Data) -> list[Tensor]:
    """The outputs of a network over all samples, each joined along axis 0; float64."""
    parts: list[list[Tensor]] = []
    with torch.no_grad():
        for args, kwargs in data.batches(BATCH):
            for place, leaf in enumerate(floats(module(*args, **kwargs))):
                if place == len(parts):
                    parts.append([])
                parts[place].append(leaf.double())
    if not parts:
        raise CannotTell("the network returns no tensor of real numbers: there is nothing to compare")
    return [torch.cat(found) if found[0].ndim and not data.whole else _flat(found) for found in parts]


def _flat(found: list[Tensor]) -> Tensor:
    """Calls that are batches may have any sizes: matrices of class scores are joined, everything else is a list of numbers."""
    if all(item.ndim == 2 and item.shape[1:] == found[0].shape[1:] for item in found):
        return torch.cat(found)
    return torch.cat([item.reshape(-1) for item in found])


def drift(before: list[Tensor], after: list[Tensor]) -> float:
    """Root mean square difference as a part of the standard deviation of `before`; the worst of the outputs."""
    found: list[float] = []
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            raise CannotTell(f"an output has the shape {list(one.shape)} before and {list(other.shape)} after")
        spread = float((one - one.mean()).square().mean())
        square = float((one - other).square().mean())
        found.append(math.sqrt(square / spread) if spread > 0 else (0.0 if square == 0 else math.inf))
    return max(found, key=lambda item: math.inf if item != item else item)


def metric(before: list[Tensor], after: list[Tensor], held: Held) -> Metric:
    """Accuracy where there are labels, agreement of the decisions where the first output is [N, classes], else the drift.

    Decisions are the largest score along axis 1 of the first output.  Raises UsageError for labels that do not fit it.
    """
    one, other = before[0], after[0]
    if held.labels is None:
        if one.ndim != 2 or one.shape[1] < 2:
            lost = 100.0 * drift(before, after)
            return Metric("drift", 0.0, lost, lost, held.data.samples, held.where)
        right, kept = torch.ones(len(one), dtype=torch.bool), one.argmax(1) == other.argmax(1)
        measure = "agreement"
    else:
        expected = (one.shape[0], *one.shape[2:])
        if one.ndim < 2 or tuple(held.labels.shape) != expected:
            raise UsageError(
                f"--eval {held.where}: labels have the shape {list(held.labels.shape)}, the decisions of the first output "
                f"{list(one.shape)} have {list(expected) if one.ndim > 1 else 'no classes on axis 1'}; labels are class numbers"
            )
        low, high = int(held.labels.min()), int(held.labels.max())
        if low < 0 or high >= one.shape[1]:
            raise UsageError(f"--eval {held.where}: labels reach from {low} to {high}, the network knows {one.shape[1]} classes")
        right, kept = one.argmax(1) == held.labels, other.argmax(1) == held.labels
        measure = "accuracy"
    kept = kept & torch.isfinite(other).all(1)  # the largest of nan is no decision
    count = right.numel()
    broken, fixed = int((right & ~kept).sum()), int((~right & kept).sum())
    lost = 100.0 * (broken - fixed) / count
    margin = 196.0 * math.sqrt(max(broken + fixed + 1 - (broken - fixed) ** 2 / (count + 2), 0.0)) / (count + 2)
    return Metric(
        measure,
        100.0 * int(right.sum()) / count,
        100.0 * int(kept.sum()) / count,
        lost,
        count,
        held.where,
        broken,
        fixed,
        margin,
    )


def latency(teacher: nn.Module, student: nn.Module, one: Call, seconds: float, record: Record) -> None:
    """Time both as ONNX files, as exported, on the call `one`, on one thread; a note where that is not possible."""
    from normfold.capture.aten_inputs import flatten_inputs
    from normfold.capture.program import export_module
    from normfold.export.to_onnx import save_onnx
    from normfold.export.to_torch import to_onnx_model
    from normfold.profile.sessions import compare_onnx, onnx_session

    args, kwargs = one
    try:
        with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
            paths = [Path(folder, name) for name in ("before.onnx", "after.onnx")]
            feeds = {}
            for module, path in zip((teacher, student), paths, strict=True):
                program = export_module(module, args, kwargs)
                save_onnx(to_onnx_model(program), path, force=True)
                feeds = flatten_inputs(program, args, kwargs)
            names = [item.name for item in onnx_session(paths[1]).get_inputs()]
            feed = dict(zip(names, feeds.values(), strict=True)) if set(names) != set(feeds) else feeds
            record.timings.append(compare_onnx(paths[0], paths[1], feed, seconds=seconds, confidence=0.99))
    except NormfoldError as error:
        record.note(f"not timed: {error}")
