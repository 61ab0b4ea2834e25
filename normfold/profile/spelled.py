"""Normalization spelled as arithmetic, found by its shape in the graph: the cost of a norm is that of all its nodes.

    m = ReduceMean(x); d = x - m; v = ReduceMean(d * d or d ^ 2); y = d / Sqrt(v + epsilon)      LayerNorm, InstanceNorm
    v = ReduceMean(x ^ 2); y = x / Sqrt(v + epsilon), or x * Reciprocal(Sqrt(.))                  RMSNorm

then at most one Mul and one Add by constants (gamma, beta).  Only the time is counted so: nothing is rewritten on this evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

_MEANS = frozenset(("ReduceMean", "GlobalAveragePool", "ReduceSumSquare"))


class Step(Protocol):
    """What is asked of a node."""

    index: int
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constant: bool


S = TypeVar("S", bound=Step)


def spelled_norms(nodes: Sequence[S], producer: Mapping[str, S], readers: Mapping[str, Sequence[S]]) -> list[list[S]]:
    """The nodes of every norm that is spelled as arithmetic, in order."""
    found: list[list[S]] = []
    for root in nodes:
        if root.op == "Sqrt" and not root.constant:
            members = _around(root, producer, readers)
            if members:
                found.append(members)
    return found


def _around(root: S, producer: Mapping[str, S], readers: Mapping[str, Sequence[S]]) -> list[S]:
    """From the square root back to the input that is normalised, and forward over the division, gamma and beta."""
    divided = _only(root, readers)
    if divided is not None and divided.op == "Reciprocal":
        reciprocal, divided = divided, _only(divided, readers)
        inner = {root.index: root, reciprocal.index: reciprocal}
    else:
        inner = {root.index: root}
    if divided is None or divided.op not in ("Div", "Mul"):
        return []
    variance = _back(root, producer, "Add")
    if variance is None:
        return []
    mean = _back(variance, producer, *_MEANS)
    square = None if mean is None else (mean if mean.op == "ReduceSumSquare" else _back(mean, producer, "Mul", "Pow"))
    if mean is None or square is None:
        return []
    inner |= {node.index: node for node in (divided, variance, mean, square)}
    last = divided
    for name in (*square.inputs[:1], *divided.inputs):  # x - mean, written once or twice
        centred = producer.get(name)
        if centred is None or centred.op != "Sub":
            continue
        first = next((node for item in centred.inputs if (node := producer.get(item)) is not None and node.op in _MEANS), None)
        if first is not None:
            inner |= {node.index: node for node in (centred, first)}
    for op in ("Mul", "Add"):  # gamma, beta
        after = _only(last, readers)
        if after is None or after.op != op or not _by_constant(after, last, producer):
            continue
        inner[after.index] = last = after
    return [inner[index] for index in sorted(inner)]


def _only(node: S, readers: Mapping[str, Sequence[S]]) -> S | None:
    """The one reader of the node's result."""
    found: Sequence[S] = readers.get(node.outputs[0], []) if node.outputs else []
    return found[0] if len({item.index for item in found}) == 1 else None


def _back(node: S, producer: Mapping[str, S], *ops: str) -> S | None:
    """The producer of an input of `node`, when it is one of `ops` and depends on the model's inputs."""
    return next(
        (made for name in node.inputs if (made := producer.get(name)) is not None and made.op in ops and not made.constant), None
    )


def _by_constant(node: S, last: S, producer: Mapping[str, S]) -> bool:
    """The other operand does not depend on the model's inputs."""
    others = [name for name in node.inputs if name not in last.outputs]
    return len(others) == 1 and (producer.get(others[0]) is None or producer[others[0]].constant)
