"""Loop, Scan and If in float64, by the views of their bodies.

ONNX's operators in their own words: https://onnx.ai/onnx/operators/onnx__Loop.html, onnx__Scan.html (opset 9 and newer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array, Graph, Node, Value, is_float
from normfold.ops.kernels import evaluate


def runner(node: Node) -> Callable[[list[Array | None]], list[Array]]:
    """What evaluates `node` by the views of its bodies, in float64: a function of its inputs, followed by its captures."""
    names, slots, bodies, attrs, kind = (
        [value.name for value in node.captures],
        len(node.inputs),
        node.bodies,
        node.attrs,
        node.kind,
    )

    def run(arrays: list[Array | None]) -> list[Array]:
        outer = {name: array for name, array in zip(names, arrays[slots:], strict=True) if array is not None}
        return _RUN[kind](bodies, attrs, arrays[:slots], outer)

    return run


def _step(body: Graph, given: Sequence[Array | None], outer: Mapping[str, Array]) -> list[Array]:
    """The outputs of a body for the inputs that it declares, and what it reads of the enclosing graph by name."""
    held: dict[Value, Array] = {}
    for slot, value in enumerate(body.inputs):
        array = given[slot] if slot < len(given) else outer[value.name]
        assert array is not None
        held[value] = _exact(array)

    def read(value: Value) -> Array:
        return held[value] if value.const is None else _exact(value.const.float64())

    for node in body.nodes:
        arrays = [None if value is None else read(value) for value in (*node.inputs, *node.captures)]
        target = np.dtype(node.attrs["to"]) if node.kind == "Cast" and "to" in node.attrs else None
        first = arrays[0] if arrays else None
        results = [first] if target is not None and is_float(target) and first is not None else evaluate(node, arrays)
        held.update((value, _exact(result)) for value, result in zip(node.outputs, results, strict=False))
    return [read(value) for value in body.outputs]


def _exact(array: Array) -> Array:
    return array.astype(np.float64) if is_float(array.dtype) else array


def _stack(parts: list[Array], axis: int = 0) -> Array:
    if not parts:
        raise CannotTell("a loop made no step, so the shape of what it collects is not known; use longer inputs")
    return np.stack(parts, axis)


_Bodies = Mapping[str, Graph]
_Attrs = Mapping[str, Any]
_Given = list["Array | None"]


def _run_if(bodies: _Bodies, _: _Attrs, given: _Given, outer: Mapping[str, Array]) -> list[Array]:
    assert given[0] is not None
    return _step(bodies["then_branch" if bool(given[0].reshape(-1)[0]) else "else_branch"], (), outer)


def _run_loop(bodies: _Bodies, _: _Attrs, given: _Given, outer: Mapping[str, Array]) -> list[Array]:
    limit, going, *state = given
    body, collected = bodies["body"], len(bodies["body"].outputs) - 1 - (len(given) - 2)
    rows: list[list[Array]] = [[] for _ in range(collected)]
    steps = None if limit is None else int(limit.reshape(-1)[0])
    condition, step = going is None or bool(going.reshape(-1)[0]), 0
    while condition and (steps is None or step < steps):
        found = _step(body, [np.asarray(step, np.int64), np.asarray(condition), *state], outer)
        condition, state = bool(found[0].reshape(-1)[0]), [*found[1 : 1 + len(state)]]
        for row, item in zip(rows, found[1 + len(state) :], strict=True):
            row.append(item)
        step += 1
    return [*(item for item in state if item is not None), *map(_stack, rows)]


def each(attrs: _Attrs, name: str, count: int) -> list[int]:
    """An attribute of a Scan that says something of each of `count` inputs or outputs; 0 for all where it is absent."""
    return [int(item) for item in attrs.get(name) or (0,) * count]


def _run_scan(bodies: _Bodies, attrs: _Attrs, given: _Given, outer: Mapping[str, Array]) -> list[Array]:
    body, count = bodies["body"], int(attrs["num_scan_inputs"])
    state, sequences = given[: len(given) - count], [item for item in given[len(given) - count :] if item is not None]
    collected = len(body.outputs) - len(state)

    axes, backward = each(attrs, "scan_input_axes", count), each(attrs, "scan_input_directions", count)
    rows: list[list[Array]] = [[] for _ in range(collected)]
    length = sequences[0].shape[axes[0]]
    for step in range(length):
        slices = [
            np.take(x, length - 1 - step if back else step, axis) for x, axis, back in zip(sequences, axes, backward, strict=True)
        ]
        found = _step(body, [*state, *slices], outer)
        state = [*found[: len(state)]]
        for row, item in zip(rows, found[len(state) :], strict=True):
            row.append(item)
    made = zip(rows, each(attrs, "scan_output_axes", collected), each(attrs, "scan_output_directions", collected), strict=True)
    return [
        *(item for item in state if item is not None),
        *(_stack(row[::-1] if back else row, axis) for row, axis, back in made),
    ]


_RUN = {"If": _run_if, "Loop": _run_loop, "Scan": _run_scan}
