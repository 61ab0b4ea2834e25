"""All op rules by kind: normfold's own, and those that installed packages offer under the entry point `normfold.ops`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from normfold.ops import (
    activations,
    affine,
    attention,
    layout,
    layout_torch,
    linear,
    norm_cores,
    pads,
    pooling,
    recurrent,
    tables,
)
from normfold.ops.rule import OpRule

_FAMILIES = (activations, affine, attention, layout, layout_torch, linear, norm_cores, pads, pooling, recurrent, tables)


@cache
def op_rules() -> Mapping[str, OpRule]:
    """Op kind -> rule.  A foreign entry point names a tuple of OpRule; it may add kinds, not replace normfold's."""
    rules = {rule.kind: rule for module in _FAMILIES for rule in module.RULES}
    for entry in entry_points(group="normfold.ops"):
        for rule in entry.load():
            rules.setdefault(rule.kind, rule)
    return rules
