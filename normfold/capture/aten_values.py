"""Between torch tensors and the arrays, types and shapes of the view; where a value of the view came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.export import ExportedProgram

from normfold.graph import BFLOAT16, Array, Constant, Dim, Shape

_TO_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: BFLOAT16,
    torch.float8_e4m3fn: np.dtype(ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: np.dtype(ml_dtypes.float8_e5m2),
    torch.int64: np.dtype(np.int64),
    torch.int32: np.dtype(np.int32),
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.uint16: np.dtype(np.uint16),
    torch.uint32: np.dtype(np.uint32),
    torch.uint64: np.dtype(np.uint64),
    torch.bool: np.dtype(np.bool_),
    torch.complex64: np.dtype(np.complex64),
    torch.complex128: np.dtype(np.complex128),
}
_TO_TORCH = {numpy_type: torch_type for torch_type, numpy_type in _TO_NUMPY.items()}
_CARRIER = {1: torch.uint8, 2: torch.int16}  # integer types that numpy can view as a type of ml_dtypes


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any] | None:
    """The array type of a torch type; None for what arrays cannot hold (quantized types)."""
    return _TO_NUMPY.get(dtype)


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """The torch type of an array type."""
    return _TO_TORCH[np.dtype(dtype)]


def _foreign(dtype: np.dtype[Any] | None) -> bool:
    """True for the types of ml_dtypes, which torch and numpy do not exchange."""
    return dtype is not None and dtype.kind not in "biufc"


def to_array(tensor: torch.Tensor) -> Array:
    """The tensor as an array that shares its memory where it lies on the CPU.  Do not write to it."""
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    dtype = numpy_dtype(tensor.dtype)
    if dtype is None or tensor.layout != torch.strided:
        raise TypeError(f"a dense tensor of numbers was expected, {tensor.dtype} in layout {tensor.layout} came")
    if _foreign(dtype):
        return tensor.contiguous().view(_CARRIER[dtype.itemsize]).numpy().view(dtype)
    return tensor.numpy()


def to_tensor(array: Array) -> torch.Tensor:
    """A new tensor that owns a copy of `array`."""
    array = np.array(array, order="C", copy=True)
    if _foreign(array.dtype):
        carrier = torch.from_numpy(array.view(np.uint8 if array.dtype.itemsize == 1 else np.int16))
        return carrier.view(torch_dtype(array.dtype))
    return torch.from_numpy(array)


def dim_of(dim: Any, names: dict[str, str]) -> Dim:
    """A size as the view holds it: an int, or the expression of a symbol with the user's names put in."""
    if isinstance(dim, int):
        return dim
    text = str(dim)
    if names:
        expression = dim.node.expr
        known = [symbol for symbol in expression.free_symbols if str(symbol) in names]
        text = str(expression.xreplace({symbol: type(symbol)(names[str(symbol)]) for symbol in known}))
    return int(text) if text.isdigit() else text


def shape_of(shape: Any, names: dict[str, str]) -> Shape:
    """A torch shape, symbolic sizes by name."""
    return tuple(dim_of(dim, names) for dim in shape)


def constant_of(tensor: torch.Tensor) -> Constant:
    """A constant that reads from the tensor's storage: no copy for what lies dense on the CPU."""
    dtype = numpy_dtype(tensor.dtype)
    assert dtype is not None
    return Constant(load=lambda: to_array(tensor), shape=tuple(tensor.shape), dtype=dtype)


def storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same numbers in the same memory: tied parameters."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        str(tensor.device),
    )


SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)
"""Types of a traced value that is a size (or computed from sizes), not a tensor."""


def outputs_of(ep: ExportedProgram) -> list[Any]:
    """What the program returns, flat: nodes, and numbers or None that it does not compute."""
    returned: Any = ep.graph.output_node().args[0]
    return list(returned)


def is_size(node: torch.fx.Node) -> bool:
    """True for a node that computes a size."""
    return isinstance(node.meta.get("val"), SIZES)


# ---- where a value came from ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A parameter, buffer or lifted tensor of the program.

    placeholder: its node's name in the program that was captured.  names: the user's qualified names; the first is the value's
    `param`, the others are tied to it.  const: the constant as captured: while the value still holds it, the tensor of the
    program is used again.
    """

    placeholder: str
    names: tuple[str, ...]
    const: Constant


@dataclass(frozen=True)
class Literal:
    """A Python number written in a call (``x * 2``)."""

    number: bool | int | float
    const: Constant


@dataclass(frozen=True)
class Absent:
    """Stands for None: the ones and zeros of a norm without gamma or beta."""

    const: Constant


@dataclass(frozen=True)
class Recipe:
    """A constant that the program makes (``torch.zeros(3)``): `node` is the call."""

    node: torch.fx.Node
    const: Constant


@dataclass(frozen=True)
class Slot:
    """Stands in a call's arguments for `Node.inputs[index]`.

    integer: the argument is a size: an array that comes is turned into an int.  number: only a Python number may stand there.
    flat: the argument has one axis whatever the shape in the view (the slope of prelu).
    """

    index: int
    integer: bool = False
    number: bool = False
    flat: bool = False


@dataclass(eq=False)
class Call:
    """How a node of the view was spelled: enough to write the call again with other inputs, and to evaluate it.

    target: the operator.  args, kwargs: its arguments in which a `Slot` stands for each input of the view's node; a node of the
    captured program may be left in them where a size is computed from the sizes of the program's inputs.
    main: the node of the captured program.  picks: for each output of the view's node its place in the call's tuple, or None
    where the call returns one tensor.  kind, attrs: as captured: where they differ now, the call must be spelled anew.
    fixed: inputs that are not arguments of the call (the index of a select): where one was replaced, likewise.
    twins: inputs that stand for the same argument as another input (square): where they differ, likewise.
    seen: shape and type of each input as captured.  order: position in the captured program.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    main: torch.fx.Node
    picks: tuple[int | None, ...]
    kind: str
    attrs: dict[str, Any]
    fixed: dict[int, Constant] = field(default_factory=dict[int, Constant])
    twins: dict[int, int] = field(default_factory=dict[int, int])
    seen: tuple[str, ...] = ()
    order: int = 0


def signature_of(meta: Any) -> str:
    """Shape and type of a traced value, comparable between two graphs (comparing symbols themselves would add guards)."""
    if isinstance(meta, torch.Tensor):
        return f"{meta.dtype}[{', '.join(str(dim) for dim in meta.shape)}]"
    return type(meta).__name__


def map_slots(argument: Any, change: Callable[[Any], Any]) -> Any:
    """`argument` with `change` applied to every leaf of its tuples, lists, dicts and slices."""
    if isinstance(argument, (list, tuple)):
        items = [map_slots(item, change) for item in argument]
        return items if isinstance(argument, list) else tuple(items)
    if isinstance(argument, dict):
        return {key: map_slots(item, change) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(*(map_slots(item, change) for item in (argument.start, argument.stop, argument.step)))
    return change(argument)
