"""Why a norm stays: stable codes, plain words, and what the user could change."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from normfold.algebra.labels import raise_rank
from normfold.algebra.ratios import Bools, Ints
from normfold.algebra.solve import Answer
from normfold.algebra.system import Demand
from normfold.graph import NormSpec, Value
from normfold.ops.wiring import AffineLayer, Wiring
from normfold.record import Refusal


def _refusal(code: str, reason: str, fix: str) -> tuple[str, Refusal]:
    return code, Refusal(code, reason, fix)


REFUSALS: dict[str, Refusal] = dict(
    (
        _refusal(
            "asked-to-keep",
            "it matches a --keep pattern",
            "drop the pattern to let it be folded",
        ),
        _refusal(
            "captured",
            "a sub-graph (If, Loop or Scan) reads its output by name",
            "move the norm into the sub-graph, or export the model without control flow",
        ),
        _refusal(
            "output-is-input",
            "no layer stands between the graph input (or another graph output) that it reads and the graph output that it makes",
            "put a linear layer before or behind it, or fold it into the code around the model",
        ),
        _refusal(
            "zero-gamma",
            "gamma is exactly zero in some channels and the layers around it cannot take a constant there",
            "prune the dead channels, or retrain without the weight decay that zeroed them",
        ),
        _refusal(
            "precision",
            "folding would shift a tensor with other readers by more than 64 times its own size, and they would lose bits",
            "give the norm a linear layer of its own, or prune the channels with a vanishing gamma",
        ),
        _refusal(
            "range",
            "the folded weights leave the range of their stored type (overflow, or a whole row becomes subnormal)",
            "store the model in float32 (or bfloat16) before optimising",
        ),
        _refusal(
            "training",
            "it is in training mode: it normalises by the batch it sees, which is not a constant",
            "export the model in eval mode (model.eval())",
        ),
        _refusal(
            "batch-statistics",
            "it keeps no running statistics: mean and variance are computed from each batch",
            "train with track_running_stats=True, or recalibrate statistics from data",
        ),
        _refusal(
            "run-time-statistics",
            "it computes mean and variance from each input, so it is not an affine layer",
            "nothing exact removes it; a swap to BatchNorm with retraining would",
        ),
        _refusal(
            "non-finite",
            "its parameters give NaN, infinity or a negative variance",
            "repair the checkpoint: look for a variance of zero with epsilon zero, or NaN in the running statistics",
        ),
        _refusal(
            "overridable",
            "its parameters are graph inputs that a caller may override at run time",
            "export with constants (drop the parameters from the graph's inputs)",
        ),
        _refusal(
            "computed-parameters",
            "its parameters are computed at run time",
            "bake them into constants before exporting",
        ),
        _refusal(
            "ambiguous-body",
            "it stands in a body (If, Loop or Scan) of which another body uses the same names",
            "give every value of the model a name of its own, as ONNX asks for",
        ),
        _refusal(
            "skipped",
            "the rewrite that could fold it was switched off with --only or --skip",
            "drop the option",
        ),
        _refusal(
            "unknown-shape",
            "the rank or channel count of its input is not known",
            "export with shapes (onnx shape inference could not find them)",
        ),
        _refusal(
            "undone",
            "folding was undone because the result did not pass the checks",
            "report this with the model: it is a defect of normfold",
        ),
    )
)

_STORE_THE_WEIGHT = "fold before quantising; a weight that is standardised or rounded in forward: compute it once and store it"

_PINS = {  # code -> (what stands there, what to do); the first one that applies gives a refusal its code
    "shared-weight": (
        "{subject}, which is also read by something that cannot fold it",
        "untie the weight (a copy costs its bytes)",
    ),
    "computed-weight": ("{subject}, whose weight is computed when the model runs", _STORE_THE_WEIGHT),
    "captured": ("{subject}, which reads by name", "export the model without control flow"),
    "graph-output": ("{subject}, which must keep its values", "let a linear layer stand between the norm and that output"),
    "kept": ("{subject}, which was kept", "let that layer be folded too"),
    "no-rule": (
        "{subject}, through which a scale per channel does not pass",
        "put the norm directly behind or in front of a linear layer",
    ),
}

_ZEROS = {  # code -> (why no shift can be there, what to do); the first one that applies gives a refusal its code
    "needs-bias": (
        "its shift would need a new addition at {subject}, which has no bias",
        "use --objective norms, or give that layer a bias",
    ),
    "computed-weight": ("its shift would reach {subject}, whose weight is computed when the model runs", _STORE_THE_WEIGHT),
    "zero-padding": (
        "what is left of its shift would reach {subject}, whose zero padding is not shifted with it",
        "pad with the shifted value in training, or place the norm behind the convolution",
    ),
    "transposed-conv": (
        "its shift would reach {subject}, which spreads a constant unevenly",
        "place the norm behind the transposed convolution",
    ),
    "gate": ("its shift would be multiplied by a gate at {subject}", "place the norm behind the gate"),
    "sum": ("its shift would be summed at {subject}", "use a mean instead of a sum"),
    "pool-indices": ("its shift would reach {subject}, whose indices are used", "do not return indices from the pool"),
    "resize-extrapolation": ("its shift would reach {subject}, which extrapolates with a constant", "crop without extrapolation"),
    "kept": ("its shift would reach {subject}, which was kept", "let that layer be folded too"),
    "captured": ("its shift would reach {subject}, which reads by name", "export the model without control flow"),
    "graph-output": (
        "its shift would reach {subject}, which must keep its values",
        "let a linear layer stand between the norm and that output",
    ),
    "activation": (
        "its shift would reach {subject}, which does not commute with a shift",
        "a norm in front of an activation needs a linear layer of its own before it",
    ),
    "no-rule": (
        "its shift would reach {subject}, through which a shift per channel does not pass",
        "put the norm directly behind or in front of a linear layer with a bias",
    ),
}


def over_budget(subject: str, needed: int, budget: int) -> Refusal:
    """The reason for not copying `subject`, which takes `needed` bytes where `budget` are left."""
    return Refusal(
        "clone-budget",
        f"{subject} would have to be copied, which takes {needed:,} bytes; the budget for copies is {budget:,}",
        f"raise --clone-budget to {needed} or more",
    )


def explain(layer: AffineLayer, answer: Answer, wiring: Wiring) -> Refusal:
    """The reason behind a refused wish, naming who asked for what stopped it."""
    if answer.conflict is None:
        return REFUSALS["precision"]
    x, y = wiring.of(layer.x), wiring.of(layer.y)
    system = wiring.system
    if answer.stage == "sign":
        asking = system.positives_near(_in_conflict(answer.conflict, y.scale, x.scale))
        who = asking[-1].subject if asking else "an activation or pool"
        return Refusal(
            "sign",
            f"gamma is negative in {int((layer.a < 0).sum())} of {layer.a.size} channels, and {who} needs a positive scale",
            "place the norm directly behind a linear layer, or retrain with positive gammas",
        )
    if answer.stage == "shift":
        ends = [_End(labels, system.zeros_at(labels)) for labels in (_in_conflict(answer.conflict, v.shift) for v in (x, y))]
        first = _both_fixed(ends, _ZEROS)
        if first is not None:
            reason, fix = _ZEROS[first.code]
            return Refusal(first.code, reason.format(subject=first.subject), fix)
        return Refusal(
            "conflicting-shift",
            "another layer on the same tensors needs them unshifted, or shifted differently",
            "give the norm a linear layer of its own before or behind it",
        )
    ends = [_End(labels, system.pins_near(labels)) for labels in (_in_conflict(answer.conflict, v.scale) for v in (x, y))]
    born = _weight_in_front(layer.x, wiring)
    if born is not None and not ends[0].demands:
        ends[0] = ends[0]._replace(demands=[born])
    first = _both_fixed(ends, _PINS)
    if first is not None:
        sides = zip(("in front of it stands", "behind it stands"), (_strongest(end.demands, _PINS) for end in ends), strict=True)
        where = [f"{side} {_PINS[pin.code][0].format(subject=pin.subject)}" for side, pin in sides if pin is not None]
        return Refusal(first.code, ", and ".join(where), _PINS[first.code][1])
    return Refusal(
        "conflicting-scale",
        "another layer on the same tensors needs a different scale, or a tensor beyond a deleted layer is fixed",
        "give the norm a linear layer of its own before or behind it",
    )


def _weight_in_front(value: Value, wiring: Wiring) -> Demand | None:
    """The demand of the layer with a computed weight that made `value`, through operations that keep what it is."""
    asking = {demand.asker: demand for demand in wiring.system.scale_pins if demand.code == "computed-weight"}
    numbers = {node: number for number, node in enumerate(wiring.graph.nodes)} if asking else {}
    while asking and value.producer is not None and wiring.of(value).pinned:
        if numbers[value.producer] in asking:
            return asking[numbers[value.producer]]
        before = [x for x in value.producer.inputs if x is not None and x.const is None]
        if len(before) != 1:
            break
        value = before[0]
    return None


class _End(NamedTuple):
    """One side of a layer: its labels where the wish failed, and who restricts them."""

    labels: Ints
    demands: list[Demand]

    @property
    def fixed(self) -> bool:
        return bool(self.demands) or not self.labels.all()  # label 0 is the pinned one


def _both_fixed(ends: list[_End], texts: dict[str, tuple[str, str]]) -> Demand | None:
    """The strongest restriction where both sides cannot move.  With one free side something else must be in the way."""
    if not all(end.fixed for end in ends):
        return None
    return _strongest([demand for end in ends for demand in end.demands], texts)


def _strongest(demands: list[Demand], texts: dict[str, tuple[str, str]]) -> Demand | None:
    order = list(texts)
    return min((demand for demand in demands if demand.code in texts), key=lambda demand: order.index(demand.code), default=None)


def explain_unwired(spec: NormSpec, wiring_pinned: bool) -> Refusal:
    """The reason for a norm that is not an affine layer with constants at all."""
    if spec.training:
        return REFUSALS["training"]
    if spec.kind != "batch":
        return REFUSALS["run-time-statistics"]
    if wiring_pinned:
        return REFUSALS["overridable"]
    if spec.mean is None or spec.var is None:
        return REFUSALS["batch-statistics"]
    if spec.gamma is None or spec.beta is None:
        return REFUSALS["computed-parameters"]
    odd = _not_finite(spec)
    if odd is None:
        return REFUSALS["unknown-shape"]
    plain = REFUSALS["non-finite"]
    return Refusal(plain.code, f"{plain.reason}: {odd}", plain.fix)


def _not_finite(spec: NormSpec) -> str | None:
    """Which number of a norm with stored statistics is broken, and in how many channels; None where none is."""
    arrays = {"gamma": spec.gamma, "beta": spec.beta, "running_mean": spec.mean, "running_var": spec.var}
    for name, array in arrays.items():
        for word, odd in (("NaN", np.isnan), ("infinite", np.isinf)):
            if array is not None and odd(array).any():
                return f"{name} is {word} in {int(odd(array).sum())} of {array.size} channels"
    assert spec.gamma is not None and spec.var is not None
    if (spec.var < 0).any():
        return f"running_var is negative in {int((spec.var < 0).sum())} of {spec.var.size} channels"
    with np.errstate(all="ignore"):
        scale = np.broadcast_to(spec.gamma / np.sqrt(spec.var + spec.epsilon), spec.var.shape)
    count = int((~np.isfinite(scale)).sum())
    return f"gamma / sqrt(running_var + epsilon) is not finite in {count} of {scale.size} channels" if count else None


def _in_conflict(conflict: Bools, *labels: Ints) -> Ints:
    """Labels of the elements that contradicted each other."""
    rank = conflict.ndim
    spread = [np.broadcast_to(raise_rank(item, rank), conflict.shape)[conflict] for item in labels]
    return np.unique(np.concatenate(spread))
