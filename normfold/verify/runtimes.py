"""Models in their own runtimes, graph optimisation off, behind one method.

Optimised, a runtime would fold the "original" too, and the comparison would be of two rewrites.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normfold.errors import CannotTell
from normfold.graph import BFLOAT16, Array


class Runner(Protocol):
    """A model that runs.  inputs, outputs: names in order."""

    inputs: list[str]
    outputs: list[str]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run of arrays by input name (or in order, where the names are others); outputs by name, in order.

        Raises CannotTell when the runtime fails.
        """
        ...


def in_order(names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    """The arrays for `names`: by name where all are there, else in the order given."""
    if set(names) <= set(feeds):
        return [feeds[name] for name in names]
    arrays = list(feeds.values())
    if len(arrays) != len(names):
        raise CannotTell(f"the model takes {', '.join(names) or 'no inputs'}, but {', '.join(feeds) or 'nothing'} was given")
    return arrays


class OnnxRunner:
    """An ONNX model in ONNX Runtime on the CPU, silent, graph optimisation off.

    model: a path or the bytes of a ModelProto.  threads: 0 for as many as there are cores.
    Raises CannotTell when ONNX Runtime does not take the model.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise CannotTell(f"ONNX Runtime does not take the model: {_line(error)}") from error
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run; outputs by name, in order.  Raises CannotTell when ONNX Runtime fails."""
        arrays = in_order(self.inputs, feeds)
        try:
            results = self._session.run(None, dict(zip(self.inputs, arrays, strict=True)))
        except Exception as error:
            raise CannotTell(f"ONNX Runtime failed on these inputs: {_line(error)}") from error
        return {name: np.asarray(array) for name, array in zip(self.outputs, results, strict=True)}


class TorchRunner:
    """An ExportedProgram or an nn.Module in eager PyTorch, without gradients.

    inputs, outputs: names of the flat tensors, in order; an ExportedProgram knows its own, a module's are needed.
    The module runs as it is: the caller has put it in eval mode.  Buffers that it writes to are put back after each run, so that
    every run starts from the same state.
    """

    def __init__(self, model: Any, *, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None) -> None:
        self._leaves: list[_Leaf] = []
        self._kept: list[bool] = []
        self._spec: Any = None
        if hasattr(model, "graph_signature"):
            self._leaves, self._kept = _signature(model)
            self._spec = model.call_spec.in_spec
            self.inputs = list(inputs or [leaf.name for leaf in self._leaves if leaf.name])
            self.outputs = list(outputs or _output_names(model))
            self._module = model.module()
        else:
            self.inputs, self.outputs, self._module = list(inputs or ()), list(outputs or ()), model

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """One run; outputs by name, in order.  Raises CannotTell when torch fails."""
        import torch
        from torch.utils import _pytree as pytree

        arrays = in_order(self.inputs, feeds)
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._module.buffers()]
        try:
            with torch.no_grad():
                if self._spec is None:
                    result = self._module(*(_tensor(array) for array in arrays))
                else:
                    args, kwargs = pytree.tree_unflatten(_filled(self._leaves, arrays), self._spec)
                    result = self._module(*args, **kwargs)
                leaves = [_array(leaf) for leaf in pytree.tree_leaves(result) if leaf is not None]
        except Exception as error:  # whatever the user's forward, or torch, raises
            raise CannotTell(f"torch failed on these inputs: {_line(error)}") from error
        finally:
            with torch.no_grad():
                for buffer, old in buffers:
                    buffer.copy_(old)
        if self._kept:
            leaves = [leaf for leaf, kept in zip(leaves, self._kept, strict=False) if kept]
        names = self.outputs or [f"output_{i}" for i in range(len(leaves))]
        if len(names) != len(leaves):
            raise CannotTell(f"the model gave {len(leaves)} outputs, expected {', '.join(names)}")
        return dict(zip(names, leaves, strict=True))


@dataclass(frozen=True)
class _Leaf:
    """One leaf of a program's arguments: a tensor of that name, a number of that name, or a constant ("" as name)."""

    name: str
    number: bool = False
    constant: Any = None


def _signature(program: Any) -> tuple[list[_Leaf], list[bool]]:
    """The leaves of the arguments, and which leaves of the result are tensors."""
    from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

    leaves: list[_Leaf] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            leaves.append(_Leaf("", constant=spec.arg.value))
        else:
            leaves.append(_Leaf(spec.arg.name, number=not isinstance(spec.arg, TensorArgument)))
    results = [spec.arg for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    return leaves, [not isinstance(arg, ConstantArgument) for arg in results if getattr(arg, "value", arg) is not None]


def _output_names(program: Any) -> list[str]:
    from torch.export.graph_signature import ConstantArgument, OutputKind

    specs = program.graph_signature.output_specs
    return [spec.arg.name for spec in specs if spec.kind == OutputKind.USER_OUTPUT and not isinstance(spec.arg, ConstantArgument)]


def _filled(leaves: Sequence[_Leaf], arrays: Sequence[Array]) -> list[Any]:
    rest = iter(arrays)
    filled: list[Any] = []
    for leaf in leaves:
        if not leaf.name:
            filled.append(leaf.constant)
        else:
            array = next(rest)
            filled.append(array.item() if leaf.number else _tensor(array))
    return filled


def _tensor(array: Array) -> Any:
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))  # a copy: the model may write to it


def _array(leaf: Any) -> Array:
    import torch

    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    tensor = leaf.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.to(torch.float32).numpy().astype(BFLOAT16)
    return tensor.numpy().copy()


def _line(error: BaseException) -> str:
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0][:300]
    return type(error).__name__
