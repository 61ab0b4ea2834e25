"""Does a loop start from zeros?  Told by numbers, where an exporter has computed what step 0 makes of its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Value, is_float
from normfold.ops import evaluate
from normfold.rewrites.recurrent_build import is_zero
from normfold.rewrites.recurrent_states import Recurrence

DRAWS = 2
_ROUNDING = 1e-14
BATCH = 2


def starts_from_zero(item: Recurrence) -> bool:
    """True when step 0 makes of every x what the reference step makes of it and zeros, to the rounding of float64."""
    steps = item.steps
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        drawn = [rng.standard_normal(_sizes(next(iter(source.taken)))) for source in steps.sources]
        given = {value: drawn[number] for value, (number, _) in steps.element.items()}
        zeros = {leaf: np.zeros(_sizes(leaf)) for leaf in item.leaves}
        try:
            wanted = _values(steps.graph, item.news, {**given, **zeros})
            came = _values(steps.graph, [values[0] for values in item.states], given)
        except (CannotTell, ValueError, KeyError):
            return False
        for one, two in zip(wanted, came, strict=True):
            if one.shape != two.shape or np.abs(one - two).max(initial=0.0) > _ROUNDING * max(1.0, np.abs(one).max(initial=0.0)):
                return False
    return True


def _sizes(value: Value) -> list[int]:
    return [size if isinstance(size, int) else BATCH for size in value.shape or ()]


def _values(graph: Graph, wanted: Sequence[Value], given: Mapping[Value, Array]) -> list[Array]:
    """Evaluate in float64.  Raises CannotTell, KeyError where something is not given."""
    known: dict[Value, Array] = dict(given)
    stack = list(wanted)
    while stack:
        value = stack[-1]
        if value in known:
            stack.pop()
            continue
        if value in graph.pinned:
            raise KeyError(value.name)
        if value.const is not None:
            known[value] = value.const.float64()
            continue
        if is_zero(graph, value):
            known[value] = np.zeros(_sizes(value))
            continue
        node = value.producer
        if node is None:
            raise KeyError(value.name)
        waiting = [item for item in node.inputs if item is not None and item not in known]
        if waiting:
            stack += waiting
            continue
        results = evaluate(node, [None if item is None else known[item] for item in node.inputs])
        known.update((v, a.astype(np.float64) if is_float(a.dtype) else a) for v, a in zip(node.outputs, results, strict=False))
    return [known[value] for value in wanted]
