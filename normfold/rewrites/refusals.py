"""Why a norm stays: stable codes, plain words, and what the user could change."""

from __future__ import annotations

import numpy as np

from normfold.algebra.labels import raise_rank
from normfold.algebra.ratios import Bools, Ints
from normfold.algebra.solve import Answer
from normfold.algebra.system import Demand
from normfold.graph import NormSpec
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
            "branch-of-sum",
            "it is a branch of a sum: the runtime runs it as a convolution that carries the sum; without it the sum costs more",
            "use --objective norms to delete it all the same",
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

_PINS = {  # code -> (what stands there, what to do); the first one that applies gives a refusal its code
    "shared-weight": (
        "{subject}, which is also read by something that cannot fold it",
        "untie the weight (a copy costs its bytes)",
    ),
    "captured": ("{subject}, which reads by name", "export the model without control flow"),
    "graph-output": ("{subject}, which must keep its values", "let a linear layer stand between the norm and that output"),
    "kept": ("{subject}, which was kept", "let that layer be folded too"),
    "no-rule": (
        "{subject}, through which a scale per channel does not pass",
        "put the norm directly behind or in front of a linear layer",
    ),
}

_ZEROS = {
    "zero-padding": (
        "what is left of its shift would reach {subject}, whose zero padding is not shifted with it",
        "pad with the shifted value in training, or place the norm behind the convolution",
    ),
    "transposed-conv": (
        "its shift would reach {subject}, which spreads a constant unevenly",
        "place the norm behind the transposed convolution",
    ),
    "activation": (
        "its shift would reach {subject}, which does not commute with a shift",
        "a norm in front of an activation needs a linear layer of its own before it",
    ),
    "needs-bias": (
        "its shift would need a new addition at {subject}, which has no bias",
        "use --objective norms, or give that layer a bias",
    ),
    "gate": ("its shift would be multiplied by a gate at {subject}", "place the norm behind the gate"),
    "sum": ("its shift would be summed at {subject}", "use a mean instead of a sum"),
    "pool-indices": ("its shift would reach {subject}, whose indices are used", "do not return indices from the pool"),
    "resize-extrapolation": ("its shift would reach {subject}, which extrapolates with a constant", "crop without extrapolation"),
    "graph-output": (
        "its shift would reach {subject}, which must keep its values",
        "let a linear layer be the last before that output",
    ),
    "no-rule": (
        "its shift would reach {subject}, through which a shift per channel does not pass",
        "put the norm directly behind or in front of a linear layer with a bias",
    ),
    "captured": ("its shift would reach {subject}", "export the model without control flow"),
    "kept": ("its shift would reach {subject}, which was kept", "let that layer be folded too"),
}


def explain(layer: AffineLayer, answer: Answer, wiring: Wiring) -> Refusal:
    """The reason behind a refused wish, naming who asked for what stopped it."""
    if answer.conflict is None:
        return REFUSALS["precision"]
    x, y = wiring.of(layer.x), wiring.of(layer.y)
    system = wiring.system
    if answer.stage == "shift":
        labels = _in_conflict(answer.conflict, y.shift, x.shift)
        found = _zero(system.zeros_at(labels))
        if found is not None:
            return found
        return Refusal(
            "conflicting-shift",
            "another layer that reads or writes the same tensors needs them unshifted, or shifted differently",
            "give the norm a linear layer of its own before or behind it",
        )
    labels = _in_conflict(answer.conflict, y.scale, x.scale)
    if answer.stage == "sign":
        negative = int((layer.a < 0).sum())
        asking = system.positives_near(labels)
        who = asking[-1].subject if asking else "an activation or pool"
        return Refusal(
            "sign",
            f"gamma is negative in {negative} of {layer.a.size} channels, and {who} needs a positive scale",
            "place the norm directly behind a linear layer, or retrain with positive gammas",
        )
    sides = (("in front of it stands", x.scale), ("behind it stands", y.scale))
    pins = [(side, _pin(system.pins_near(_in_conflict(answer.conflict, scale)))) for side, scale in sides]
    found = [(side, pin) for side, pin in pins if pin is not None]
    if found:
        first = min((pin for _, pin in found), key=lambda pin: list(_PINS).index(pin.code))
        where = ", and ".join(f"{side} {_PINS[pin.code][0].format(subject=pin.subject)}" for side, pin in found)
        return Refusal(first.code, where, _PINS[first.code][1])
    return Refusal(
        "conflicting-scale",
        "another layer on the same tensors needs a different scale, or a tensor beyond a deleted layer is fixed",
        "give the norm a linear layer of its own before or behind it",
    )


def _pin(demands: list[Demand]) -> Demand | None:
    known = [demand for demand in demands if demand.code in _PINS]
    return min(known, key=lambda demand: list(_PINS).index(demand.code)) if known else None


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
    finite = all(np.isfinite(array).all() for array in (spec.gamma, spec.beta, spec.mean, spec.var))
    with np.errstate(all="ignore"):
        finite = finite and bool(np.isfinite(spec.gamma / np.sqrt(spec.var + spec.epsilon)).all())
    return REFUSALS["non-finite"] if not finite or bool((spec.var < 0).any()) else REFUSALS["unknown-shape"]


def _in_conflict(conflict: Bools, *labels: Ints) -> Ints:
    """Labels of the elements that contradicted each other."""
    rank = conflict.ndim
    spread = [np.broadcast_to(raise_rank(item, rank), conflict.shape)[conflict] for item in labels]
    return np.unique(np.concatenate(spread))


def _zero(demands: list[Demand]) -> Refusal | None:
    for demand in demands:
        if demand.code in _ZEROS:
            reason, fix = _ZEROS[demand.code]
            return Refusal(demand.code, reason.format(subject=demand.subject), fix)
    return None
