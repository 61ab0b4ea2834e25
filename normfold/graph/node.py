"""One operation of the view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normfold.graph.values import Array, Value

if TYPE_CHECKING:
    from normfold.graph.graph import Graph


@dataclass(eq=False)
class Node:
    """One operation, in the vocabulary of ONNX's newest opset whatever the source said.

    kind: the ONNX op name ("Conv"); "domain::Op" for a custom domain, "aten::op" for an ATen op without ONNX twin.
      One relaxation: `Gemm` may have an A of any rank >= 2 (torch's linear), acting on its last axis.
    inputs: None stands for an absent optional input.
    attrs: attributes by their newest ONNX name, plus every *static* parameter that newer opsets take as an input
      (Reshape "shape", Slice "starts"/"ends"/"axes"/"steps", Clip "min"/"max", Pad "pads"/"constant_value"/"axes",
      Reduce*/Squeeze/Unsqueeze "axes", Expand "shape", Tile "repeats", Split "split", Resize "scales"/"sizes").  Such a key is
      absent when the parameter is computed at run time.  Plain ints, floats, strings, tuples, numpy arrays.  Defaults are
      filled in by the adapter for the attributes that the ops of normfold.ops read.
    captures: values of the enclosing graph that sub-graphs of this node read.
    module: the user's module path ("layer1.0.bn1"), "" when unknown.
    fallback: evaluates the node with the source framework's own arithmetic; used where normfold.ops has no evaluation.
    origin: the adapter's handle; None for nodes that a rewrite made.
    bodies: views of the sub-graphs by attribute name, where the adapter could view them all; exchanged, never edited in place.
    """

    kind: str
    inputs: list[Value | None]
    outputs: list[Value]
    attrs: dict[str, Any] = field(default_factory=dict[str, Any])
    name: str = ""
    module: str = ""
    captures: tuple[Value, ...] = ()
    fallback: Callable[[list[Array | None]], list[Array]] | None = None
    origin: Any = None
    bodies: dict[str, Graph] = field(default_factory=dict[str, "Graph"])

    def input(self, slot: int) -> Value | None:
        """The input at `slot`, None when it is absent or beyond the end."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def label(self) -> str:
        """How reports name this node: the module path, else the node's name, else its output."""
        return self.module or self.name or self.output.name

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name or self.output.name}>"
