"""What a loop over time consists of, and a Scan read so: states that it carries, sequences that it reads, what it collects."""

from __future__ import annotations

from dataclasses import dataclass

from normfold.algebra.cell_match import NotStandard
from normfold.graph import Dim, Graph, Node, Value
from normfold.ops.bodies import each
from normfold.rewrites.recurrent_sources import Source


@dataclass(frozen=True, eq=False)
class Loop:
    """What a Scan or Loop does.

    starts, leaves, news, lasts: its states, before the first step, before and after a step (in the body), after the last step.
    sequences: what it reads step by step, with the slice in the body; all of `count` elements from the first on.  reverse: the
      last one first.
    collected: (value in the body, output, axis) of what it stacks; turned: in the order opposite to that of the sequences.
    is_open: it may make no step at all, and then gives its starts back.  is_listed: what it collects is joined from a list, which
      fails of itself where there is nothing to join.
    """

    body: Graph
    starts: list[Value]
    leaves: list[Value]
    news: list[Value]
    lasts: list[Value]
    sequences: list[Source]
    count: Dim
    reverse: bool
    collected: list[tuple[Value, Value, int, bool]]
    is_open: bool = False
    is_listed: bool = False


def read_scan(node: Node) -> Loop:
    """A Scan: a step for each element of its sequences.  Raises NotStandard.

    Without elements ONNX Runtime refuses it, so what becomes of that is free.
    """
    body, count = node.bodies["body"], int(node.attrs["num_scan_inputs"])
    given = [value for value in node.inputs if value is not None]
    states = len(node.inputs) - count
    if len(given) != len(node.inputs) or any(value.rank is None for value in given):
        raise NotStandard("not-a-cell", "the rank of an input is not known")
    collected = len(node.outputs) - states

    backward = each(node.attrs, "scan_input_directions", count)
    if not count or len(set(backward)) != 1:
        raise NotStandard("not-a-cell", "its sequences are read in different directions")
    axes = [
        axis % (value.rank or 1) for axis, value in zip(each(node.attrs, "scan_input_axes", count), given[states:], strict=True)
    ]
    slices = body.inputs[states : states + count]
    sequences = [Source(x, axis, {part: 0}) for x, axis, part in zip(given[states:], axes, slices, strict=True)]
    ends = zip(body.outputs[states:], node.outputs[states:], each(node.attrs, "scan_output_axes", collected), strict=True)
    turned = [bool(item) != bool(backward[0]) for item in each(node.attrs, "scan_output_directions", collected)]
    return Loop(
        body,
        given[:states],
        body.inputs[:states],
        body.outputs[:states],
        node.outputs[:states],
        sequences,
        _length(sequences),
        bool(backward[0]),
        [(*end, flip) for end, flip in zip(ends, turned, strict=True)],
    )


def size_along(source: Source) -> Dim:
    """How many elements there are."""
    return None if source.value.shape is None else source.value.shape[source.axis]


def _length(sequences: list[Source]) -> Dim:
    """The number of steps of a Scan: all its sequences have it."""
    return next((size for item in sequences if isinstance(size := size_along(item), int)), size_along(sequences[0]))
