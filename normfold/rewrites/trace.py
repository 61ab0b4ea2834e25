"""What an explanation of one norm holds: where its scale and shift went, or exactly what stopped them.  Plain types only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Side = Literal["input", "output"]


class Range(NamedTuple):
    """Smallest and largest of some numbers."""

    low: float
    high: float


@dataclass(frozen=True)
class Hop:
    """One step of a path of values: through the op `op` called `name` (its module path) to the value `tensor`."""

    op: str
    name: str
    tensor: str


@dataclass(frozen=True)
class Region:
    """Tensors that share their scale, because the operations between them only pass it on.

    side: whether the first of them is the norm's input or its output.  beyond: the deleted layer behind which they lie, if any.
    scale, shift: ranges of s and t over all their channels (they are stored as s v + t).
    """

    side: Side
    beyond: str
    tensors: list[str]
    ops: list[str]
    scale: Range
    shift: Range


@dataclass(frozen=True)
class Absorbed:
    """One constant that took part up.

    role: "writes" (its op makes the region's tensors), "reads" (it reads them and takes the gauge back), "passes" (both).
    factor: new over old elements.  offset: what was added beside that.  path: from the norm to the op.
    """

    parameter: str
    op: str
    name: str
    role: Literal["writes", "reads", "passes"]
    side: Side
    factor: Range | None
    offset: Range | None
    path: list[Hop]


@dataclass(frozen=True)
class Stop:
    """One of those who together keep a layer from going.

    side: where its path starts, at the norm's input or output.  code: as in refusals.  op, name: the operation, "" where it is
    none; then `subject` says who.
    """

    side: Side
    code: str
    op: str
    name: str
    subject: str
    path: list[Hop]


@dataclass
class Trace:
    """One affine layer y = a x + c and what the solver made of it.

    negative, zero: channels with such an a.  stage: what could not be met ("magnitude", "sign", "shift"; "" for anything else).
    conflicts, of: how many elements contradict; first: the first of them (channels where a varies along one axis).
    partners: other deleted layers on the same tensors.  lost: shift over size of the input where precision forbids it.
    """

    layer: str
    channels: int
    a: Range
    c: Range
    negative: int = 0
    zero: int = 0
    stage: str = ""
    conflicts: int = 0
    of: int = 0
    first: list[int] = field(default_factory=list[int])
    regions: list[Region] = field(default_factory=list[Region])
    absorbed: list[Absorbed] = field(default_factory=list[Absorbed])
    partners: list[str] = field(default_factory=list[str])
    stops: list[Stop] = field(default_factory=list[Stop])
    lost: Range | None = None
