"""How a kernel is declared, and how it reads its parameters.

A kernel is a function ``(node, arrays) -> arrays`` that computes one op kind on numpy arrays.  It is dtype-generic: floats
come in as float64 when a model is judged, in their stored type when a constant is folded, and leave in the type in which
they came; integers and bools stay what they are.  A kernel never writes into its inputs; its outputs may be views of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import Array, Node

Kernel = Callable[[Node, list[Array | None]], list[Array]]

KERNELS: dict[str, Kernel] = {}
ATTRIBUTES: dict[str, frozenset[str]] = {}
LIGHT_KINDS: set[str] = set()


def kernel(*kinds: str, attrs: str = "", light: bool = True) -> Callable[[Kernel], Kernel]:
    """Register a kernel for `kinds`.

    attrs: names of all attributes and static parameters that the kernel understands, separated by blanks; a node that
      carries any other is not evaluated.  light: pure numpy, never imports torch, so that constants may be folded with it.
    """

    def register(function: Kernel) -> Kernel:
        for kind in kinds:
            KERNELS[kind] = function
            ATTRIBUTES[kind] = frozenset(attrs.split())
            if light:
                LIGHT_KINDS.add(kind)
        return function

    return register


def unsupported(node: Node, form: str) -> CannotTell:
    """The error for a form of an op that its kernel does not compute."""
    return CannotTell(
        f"no float64 evaluation of {node.kind} {node.label!r} with {form}; compare the models with the runtime alone, "
        f"or add the form to normfold.ops.kernels"
    )


def need(node: Node, arrays: list[Array | None], slot: int) -> Array:
    """The array at `slot`; raises CannotTell where it is absent."""
    array = optional(arrays, slot)
    if array is None:
        raise unsupported(node, f"input {slot} absent")
    return array


def optional(arrays: list[Array | None], slot: int) -> Array | None:
    """The array at `slot`, None where it is absent."""
    return arrays[slot] if slot < len(arrays) else None


def present(arrays: list[Array | None]) -> list[Array]:
    """All arrays of a variadic op."""
    return [array for array in arrays if array is not None]


def static(node: Node, arrays: list[Array | None], name: str, slot: int) -> Any:
    """A parameter that lives in `node.attrs[name]` or, computed at run time, in the input at `slot`; None when absent."""
    value = node.attrs.get(name)
    return optional(arrays, slot) if value is None else value


def ints(node: Node, arrays: list[Array | None], name: str, slot: int) -> tuple[int, ...] | None:
    """`static` as a tuple of ints."""
    value = static(node, arrays, name, slot)
    return None if value is None else tuple(int(item) for item in np.asarray(value).reshape(-1))


def attr_ints(node: Node, name: str) -> tuple[int, ...] | None:
    """An attribute as a tuple of ints, None when absent."""
    value = node.attrs.get(name)
    return None if value is None else tuple(int(item) for item in np.asarray(value).reshape(-1))


def number(node: Node, arrays: list[Array | None], name: str, slot: int) -> Any:
    """`static` as one Python number (so that it does not widen the arrays it meets), None when absent."""
    value = static(node, arrays, name, slot)
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1:
        raise unsupported(node, f"{name} of {array.size} elements")
    return array.reshape(()).astype(np.float64 if array.dtype.kind not in "biu" else array.dtype).item()


def real(node: Node, name: str, default: float) -> float:
    """A float attribute."""
    value = node.attrs.get(name)
    return default if value is None else float(value)


def integer(node: Node, name: str, default: int) -> int:
    """An int attribute."""
    value = node.attrs.get(name)
    return default if value is None else int(value)


def text(node: Node, name: str, default: str) -> str:
    """A string attribute."""
    value = node.attrs.get(name)
    if value is None:
        return default
    return value.decode() if isinstance(value, bytes) else str(value)


def axis_of(node: Node, rank: int, default: int, name: str = "axis") -> int:
    """An axis attribute, made >= 0 and checked."""
    axis = integer(node, name, default)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis < max(rank, 1):
        raise unsupported(node, f"{name} {axis} of a tensor of rank {rank}")
    return axis
