"""After the gauges are absorbed: what every value of the new graph says of the captured one, and which names are still true."""

from __future__ import annotations

import numpy as np

from normfold.graph import Gauge, Graph, Value
from normfold.ops.regauge import Regauge


def promises_of(value: Value, regauge: Regauge) -> tuple[Gauge, ...]:
    """What the regauged value is, in terms of the values of the captured graph."""
    s, t = regauge.scale(value), regauge.shift(value)
    before = value.gauges or (Gauge(value.name, np.ones(()), np.zeros(())),)
    return tuple(Gauge(gauge.original, s * gauge.scale, s * gauge.shift + t) for gauge in before)


def settle_names(
    graph: Graph, promises: dict[Value, tuple[Gauge, ...]], merged: dict[Value, list[Value]], regauge: Regauge
) -> None:
    """Record gauges; a value keeps a name exactly where it still holds what that name meant."""
    for value in list(graph.values()):
        meant = regauge.stands_for.get(value, value)
        gauges = promises.get(meant)
        if gauges is None:
            continue
        if value in regauge.moved:  # the raw product in front of an inserted bias
            _, offset = regauge.moved[value]
            lacking = np.full((), np.nan) if offset is None else offset  # NaN: no promise
            value.gauges = tuple(Gauge(gauge.original, gauge.scale, gauge.shift - lacking) for gauge in gauges)
            graph.rename(value, f"{value.name}_unbiased", unique=True)
            continue
        gauges += tuple(gauge for other in merged.get(value, []) for gauge in promises[other])
        true_names = [gauge.original for gauge in gauges if gauge.identity]
        inserted_output = value in regauge.stands_for and graph.is_output(value)
        movable = inserted_output or not (graph.is_fixed(value) or value in graph.inputs)
        promised = any(gauge.original for gauge in gauges)  # the name of a new value says nothing that could be wrong now
        if movable and promised and value.name not in true_names:
            free = next((name for name in reversed(true_names) if graph.is_free(name)), None)
            graph.rename(value, free or f"{gauges[-1].original or value.name}_regauged", unique=free is None)
        alone = len(gauges) == 1 and gauges[0].identity and gauges[0].original == value.name
        value.gauges = () if alone else gauges
