"""How a spelling function reads an ATen call and says what it is in the vocabulary of the view.

A spelling is a function from a `Read` (the call, arguments bound by name) to a `Spelled` (kind, inputs, attributes), or to
None: "this form has no twin", upon which the call stays opaque.  `@spelling("conv2d")` puts it into the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from normfold.capture.aten_values import numpy_dtype, shape_of
from normfold.graph import Array, Dim, Shape

END = 2**63 - 1  # "to the end" of a slice


@dataclass(frozen=True)
class Arg:
    """The argument `name`; `item` picks one of a list; `number` for a Python number that must have the result's type.

    absent: what stands for None (ones for gamma).  flat: see `aten_values.Slot`.  shape: the constant is seen in this shape.
    """

    name: str
    item: int | None = None
    absent: Array | None = None
    shape: tuple[int, ...] | None = None

    @property
    def flat(self) -> bool:
        return self.shape is not None


@dataclass(frozen=True)
class Fixed:
    """An input of the view's node that is no argument of the call: a constant made at capture."""

    array: Array


@dataclass
class Spelled:
    """What a call is: kind, inputs in the view's order, attributes.

    inputs: an argument's name, an `Arg`, or a `Fixed`; an argument that is None and not `absent` is an absent input.
    sizes: take the sizes among the other arguments, which are computed at run time, as further inputs (the attribute "computed"
    then says that inputs behind the first are torch's, not ONNX's).
    outputs: places in the call's tuple; None where the call returns one tensor.
    literal_dtype: type of the Python numbers among the inputs (default: the type of the first output).
    replaced: arguments to be written out (a default that depends on the type).
    """

    kind: str
    inputs: list[str | Arg | Fixed]
    attrs: dict[str, Any] = field(default_factory=dict[str, Any])
    sizes: bool = False
    outputs: tuple[int | None, ...] = (None,)
    literal_dtype: np.dtype[Any] | None = None
    replaced: dict[str, Any] = field(default_factory=dict[str, Any])


class Read:
    """One call with its arguments bound by name, and what is known of its tensors."""

    def __init__(self, node: Node, picked: set[int], names: dict[str, str]) -> None:
        self.node = node
        self.picked = picked
        self._names = names
        self.schema: Any = getattr(node.target, "_schema", None)
        self.args: dict[str, Any] = {}
        if self.schema is not None:
            for place, argument in enumerate(self.schema.arguments):
                if place < len(node.args):
                    self.args[argument.name] = node.args[place]
                elif argument.name in node.kwargs:
                    self.args[argument.name] = node.kwargs[argument.name]
                else:
                    self.args[argument.name] = argument.default_value

    @property
    def op(self) -> str:
        """The name without namespace: "conv2d"."""
        return self.schema.name.split("::")[1]

    @property
    def overload(self) -> str:
        return self.schema.overload_name or "default"

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.args.get(name, default)

    def meta(self, name: str) -> Any:
        """The traced value of an argument: a FakeTensor, a SymInt, or the Python object itself."""
        argument = self.args[name]
        return argument.meta.get("val") if isinstance(argument, Node) else argument

    def is_tensor(self, name: str) -> bool:
        return isinstance(self.args.get(name), Node) and isinstance(self.meta(name), torch.Tensor)

    def shape(self, name: str) -> Shape:
        return shape_of(self.meta(name).shape, self._names)

    def rank(self, name: str) -> int:
        return len(self.meta(name).shape)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """Array type of a tensor argument; None when it is not a dense tensor."""
        return numpy_dtype(self.meta(name).dtype) if self.is_tensor(name) else None

    @property
    def result(self) -> Any:
        """The traced result (of a tuple the first)."""
        value = self.node.meta.get("val")
        return value[0] if isinstance(value, (tuple, list)) else value

    @property
    def out_shape(self) -> Shape:
        return shape_of(self.result.shape, self._names)

    @property
    def out_dtype(self) -> np.dtype[Any] | None:
        return numpy_dtype(self.result.dtype) if isinstance(self.result, torch.Tensor) else None

    def axis(self, name: str, rank: int) -> int:
        """An axis argument counted from the front."""
        axis = int(self.args[name])
        return axis + rank if axis < 0 else axis

    def ints(self, name: str, count: int | None = None) -> tuple[int, ...] | None:
        """A list of sizes, one number repeated `count` times; None when one is computed at run time."""
        values = self.args[name]
        values = list(values) if isinstance(values, (list, tuple)) else [values]
        if not all(isinstance(value, int) for value in values):
            return None
        if count is not None and len(values) == 1:
            values = values * count
        return tuple(values)

    def same_type(self, *names: str) -> bool:
        """True when these arguments, so far as they are tensors, have the result's type: no promotion takes place.

        Numbers count as fitting unless a float meets an integer result.
        """
        out = self.out_dtype
        for name in names:
            argument = self.args[name]
            if isinstance(argument, Node) and self.dtype(name) != out:
                return False  # also a size: it has no array type
            if isinstance(argument, float) and (out is None or out.kind in "iub"):
                return False
        return out is not None


Speller = Callable[[Read], Spelled | None]
SPELLINGS: dict[str, Speller] = {}


def spelling(*names: str) -> Callable[[Speller], Speller]:
    """Register a spelling for ops ("conv2d") or single overloads ("conv2d.padding")."""

    def register(speller: Speller) -> Speller:
        for name in names:
            assert name not in SPELLINGS, name
            SPELLINGS[name] = speller
        return speller

    return register


def spell(read: Read) -> Spelled | None:
    """What the call is, or None when it stays opaque."""
    if read.schema is None or not read.schema.name.startswith("aten::"):
        return None
    speller = SPELLINGS.get(f"{read.op}.{read.overload}") or SPELLINGS.get(read.op)
    return speller(read) if speller else None


def filled(dims: Shape) -> tuple[int, ...] | None:
    """The shape as numbers; None when a size is symbolic."""
    return tuple(dim for dim in dims if isinstance(dim, int)) if all(isinstance(dim, int) for dim in dims) else None


def template_shape(source: Shape, target: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """`target` as the "shape" of a Reshape: 0 copies the source's size at that place, one -1 is computed.

    None when that cannot say it (two sizes that are not in place).
    """
    shape: list[int] = []
    unknown = 0
    for place, dim in enumerate(target):
        if isinstance(dim, int) and dim != 0:
            shape.append(dim)
        elif place < len(source) and source[place] == dim:
            shape.append(0)
        elif isinstance(dim, int):
            return None  # an empty dimension that is not in place
        else:
            shape.append(-1)
            unknown += 1
    return tuple(shape) if unknown <= 1 else None
