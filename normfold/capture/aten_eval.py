"""Evaluates a captured ATen call on arrays, in whatever float type the arrays have.

The float64 evaluator runs a float32 model on float64 arrays: the types written into calls (``dtype=torch.float32`` of a
factory, a cast to half) must then not round anything, so every float type in a call's arguments is read as the arrays' type.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from normfold.capture.aten_arguments import with_biases
from normfold.capture.aten_values import Call, Slot, map_slots, to_array, to_tensor, torch_dtype
from normfold.graph import Array, is_float

Fallback = Callable[[list[Array | None]], list[Array]]


def fallback_of(call: Call, captured: tuple[np.dtype[Any] | None, ...]) -> Fallback:
    """Evaluates `call` on arrays for the inputs of its node; `captured` are the types that they had when it was captured."""

    def evaluate(arrays: list[Array | None]) -> list[Array]:
        target = _float_type(arrays, captured)
        tensors: list[torch.Tensor | None] = []
        for array in arrays:
            tensor = None if array is None else to_tensor(np.asarray(array))
            if tensor is not None and target is not None and tensor.is_floating_point():
                tensor = tensor.to(target)  # a factory's zeros are stored in float32 whatever meets them
            tensors.append(tensor)

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                tensor = tensors[leaf.index] if leaf.index < len(tensors) else None
                if tensor is None:
                    return None
                if leaf.integer or leaf.number:
                    return tensor.item()
                return tensor.reshape(-1) if leaf.flat else tensor
            if isinstance(leaf, Node) and leaf.op == "get_attr":
                owner = leaf.graph.owning_module
                assert owner is not None and isinstance(leaf.target, str)
                return owner.get_submodule(leaf.target)
            return leaf

        with torch.no_grad():
            args = map_slots(with_biases(call, len(arrays)).args, fill)
            kwargs = map_slots(call.kwargs, fill)
            result = run(call.target, args, kwargs, target)
        picked = [result if pick is None else result[pick] for pick in call.picks]
        return [to_array(item) if isinstance(item, torch.Tensor) else np.asarray(item) for item in picked]

    return evaluate


def run(target: Any, args: Any, kwargs: Any, float_type: torch.dtype | None) -> Any:
    """Call `target` with every float type among its arguments read as `float_type` (None: as they are)."""

    def retyped(leaf: Any) -> Any:
        floats = isinstance(leaf, torch.dtype) and leaf.is_floating_point
        return float_type if floats and float_type is not None else leaf

    args, kwargs = map_slots(tuple(args), retyped), map_slots(dict(kwargs), retyped)
    if target is torch.ops.higher_order.cond:
        condition, if_true, if_false, operands = args
        return _nested(if_true if bool(condition) else if_false, operands, float_type)
    if target is torch.ops.higher_order.while_loop:
        test, body, carried, extra = args
        while bool(_only(_nested(test, (*carried, *extra), float_type))):
            carried = _nested(body, (*carried, *extra), float_type)
        return carried
    if target is torch.ops.aten.fake_quantize_per_channel_affine.default:  # of a double x it wants float scales all the same
        args = (args[0], args[1].float(), *args[2:])
    with _default(float_type):
        return target(*args, **kwargs)


def _float_type(arrays: list[Array | None], captured: tuple[np.dtype[Any] | None, ...]) -> torch.dtype | None:
    """The float type to compute in: None when the arrays have the types that were captured."""
    floats = [array.dtype for array in arrays if array is not None and is_float(array.dtype)]
    if not floats or any(dtype == np.float64 for dtype in floats):
        return torch.float64  # what is made from nothing (zeros, a cast of integers) is made exact
    now = [None if array is None else array.dtype for array in arrays]
    if all(before is None or after is None or before == after for before, after in zip(captured, now, strict=False)):
        return None
    return torch_dtype(max(floats, key=lambda dtype: dtype.itemsize))


@contextmanager
def _default(float_type: torch.dtype | None) -> Generator[None]:
    """The type that torch gives to floats which it makes of integers or of nothing."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(float_type or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _only(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _nested(module: Any, operands: Any, float_type: torch.dtype | None) -> Any:
    if isinstance(module, GraphModule):
        return _Nested(module, float_type).run(*operands)
    return module(*operands)


class _Nested(Interpreter):
    """Runs the body of a `cond` or `while_loop` by the same rules."""

    def __init__(self, module: GraphModule, float_type: torch.dtype | None) -> None:
        super().__init__(module)
        self.float_type = float_type

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        attribute = super().get_attr(target, args, kwargs)
        floats = isinstance(attribute, torch.Tensor) and attribute.is_floating_point() and self.float_type is not None
        return attribute.to(self.float_type) if floats else attribute

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is operator.getitem:
            return args[0][args[1]]
        return run(target, args, kwargs, self.float_type)
