"""The constants of a program that is being written: which are kept, which are new, and what everything is called."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph as FxGraph
from torch.fx import Node as FxNode

from normfold.capture.aten_arguments import RECURRENT
from normfold.capture.aten_reader import State, stored_tensor
from normfold.capture.aten_values import Call, Stored, to_tensor
from normfold.graph import Graph, Node, Value, is_float

_PREFIX = {InputKind.PARAMETER: "p", InputKind.BUFFER: "b", InputKind.CONSTANT_TENSOR: "c"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}
_RECURRENT = {"LSTM", "GRU", "RNN"}


def legal(name: str) -> str:
    """`name` as a name that generated code can hold."""
    name = re.sub(r"\W", "_", name)
    return f"_{name}" if not name or name[0].isdigit() else name


class Constants:
    """Placeholders, input specs and tensors for the constants of the view."""

    def __init__(self, ep: ExportedProgram, view: Graph, fx: FxGraph) -> None:
        self.ep, self.view, self.fx = ep, view, fx
        self.fake_mode = self._fake_mode()
        self.device = next(iter([*ep.state_dict.values()]), torch.empty(0)).device
        nodes = [node for node in ep.graph.nodes if node.op == "placeholder"]
        self.captured = {node.name: (node, spec) for node, spec in zip(nodes, ep.graph_signature.input_specs, strict=True)}
        self.spec_of = {str(spec.target): spec for _, spec in self.captured.values() if spec.target is not None}
        self.place = {name: place for place, name in enumerate((*ep.state_dict, *ep.constants))}
        self.written: dict[tuple[int, bool], FxNode] = {}
        self.entries: dict[str, tuple[FxNode, InputSpec, torch.Tensor]] = {}
        self.targets = self._kept()
        self.taken = {node.name for node in ep.graph.nodes} | {value.name for value in view.values()}
        self.last: dict[str, int] = {}  # module path -> place of its last entry
        for name, place in self.place.items():
            self.last[name.rpartition(".")[0]] = place

    def _fake_mode(self) -> Any:
        for node in self.ep.graph.nodes:
            mode = getattr(node.meta.get("val"), "fake_mode", None)
            if mode is not None:
                return mode
        from torch._subclasses.fake_tensor import FakeTensorMode

        return FakeTensorMode()

    def _kept(self) -> set[str]:
        """Names of parameters and buffers that stay what they are."""
        kept = {
            str(self.captured[node.origin.placeholder][1].target) for node in self.view.nodes if isinstance(node.origin, State)
        }
        for value in self.view.constants():
            if isinstance(value.origin, Stored) and value.origin.const is value.const:
                kept.add(value.origin.names[0])
        return kept

    # ---- placeholders --------------------------------------------------------------------------------------------------------

    def placeholder(self, name: str, meta: dict[str, Any], *, front: bool = True) -> FxNode:
        """A placeholder, before everything else or behind the other placeholders; it is called exactly `name`."""
        if front and len(self.fx.nodes):
            with self.fx.inserting_before(next(iter(self.fx.nodes))):
                node = self.fx.create_node("placeholder", name, (), {}, name)
        else:
            node = self.fx.create_node("placeholder", name, (), {}, name)
        node.name = node.target = name  # create_node evades builtins ("input"); users know the name
        node.meta.update({key: item for key, item in meta.items() if key != "from_node"})
        return node

    def state(self, placeholder: str) -> FxNode:
        """The placeholder of a buffer that the program writes to."""
        captured, spec = self.captured[placeholder]
        tensor = stored_tensor(self.ep, str(spec.target))
        copy = tensor.detach().clone()  # running the new program must not write into the captured one
        return self._enter(captured.name, captured.meta, spec, nn.Parameter(copy) if isinstance(tensor, nn.Parameter) else copy)

    def node(self, value: Value, *, as_stored: bool = False, flat: bool = False) -> FxNode:
        """The placeholder of a constant.

        as_stored: the captured tensor will do even where the view sees it in another shape.  flat: with one axis.
        """
        if (id(value), flat) in self.written:
            return self.written[id(value), flat]
        assert value.const is not None
        origin = value.origin
        node: FxNode | None = None
        if isinstance(origin, Stored) and origin.const is value.const:
            captured, spec = self.captured[origin.placeholder]
            tensor = stored_tensor(self.ep, origin.names[0])
            if as_stored or tuple(tensor.shape) == value.const.shape:
                node = self._enter(captured.name, captured.meta, spec, tensor)
        if node is None:
            node = self._new(value, flat)
        self.written[id(value), flat] = node
        return node

    def _enter(self, name: str, meta: dict[str, Any], spec: InputSpec, tensor: torch.Tensor) -> FxNode:
        target = str(spec.target)
        if target not in self.entries:
            self.entries[target] = (self.placeholder(name, meta), spec, tensor)
        return self.entries[target][0]

    def _new(self, value: Value, flat: bool) -> FxNode:
        assert value.const is not None
        array = value.const.rounded().read()
        tensor = to_tensor(array.reshape(-1) if flat else array).to(self.device)
        target = self._target(value)
        self.targets.add(target)
        before = self.spec_of.get(target)
        kind, persistent = InputKind.BUFFER, True
        if before is not None:
            kind, persistent = before.kind, before.persistent
        elif _is_weight(value):
            kind, persistent = InputKind.PARAMETER, None
        if kind == InputKind.PARAMETER:
            twin = stored_tensor(self.ep, target) if before is not None else None
            trains = twin is not None and twin.requires_grad and tensor.is_floating_point()
            tensor = nn.Parameter(tensor, requires_grad=trains)
        name = legal(f"{_PREFIX[kind]}_{target}")
        name = next(trial for trial in (name, *(f"{name}_{n}" for n in range(1, len(self.taken) + 2))) if trial not in self.taken)
        self.taken.add(name)
        fake = self.fake_mode.from_tensor(tensor, static_shapes=True)
        spec = InputSpec(kind, TensorArgument(name), target, persistent)
        return self._enter(name, {"val": fake}, spec, tensor)

    def _target(self, value: Value) -> str:
        """A name in the state_dict: the parameter's own, the bias beside its weight, or one beside the module that reads it."""
        trials = [value.param]
        reader = value.uses[0] if value.uses else None
        if reader is not None and reader.node.kind in _WEIGHTED and reader.slot == 2:
            weight = reader.node.input(1)
            if weight is not None and weight.param.endswith("weight"):
                trials.insert(0, weight.param.removesuffix("weight") + "bias")
        elif reader is not None and not value.param and _is_recurrent(reader.node):
            weight = reader.node.input(reader.slot - 2)  # weight_ih, weight_hh, bias_ih, bias_hh
            owner, _, name = weight.param.rpartition("weight_") if weight is not None else ("", "", "")
            if name:
                trials.insert(0, f"{owner}bias_{name}")
        for trial in trials:
            if trial and self._free(trial):
                return trial
        base = next((trial for trial in trials if trial), "")
        if not base:
            tail = legal(value.name.rsplit(".", 1)[-1])
            base = f"{reader.node.module}.{tail}" if reader is not None and reader.node.module else tail
        count = 0
        while not self._free(base if not count else f"{base}_{count}"):
            count += 1
        return base if not count else f"{base}_{count}"

    def _free(self, target: str) -> bool:
        """True when a new constant may be called so: nobody is, no module is, and no tensor is on the way."""
        if target in self.targets or any(name.startswith(f"{target}.") for name in (*self.spec_of, *self.targets)):
            return False
        parts = target.split(".")
        return not any(".".join(parts[:count]) in self.targets | set(self.spec_of) for count in range(1, len(parts)))

    # ---- the result ----------------------------------------------------------------------------------------------------------

    def _rank(self, target: str) -> tuple[int, int, str]:
        """Where an entry stands: at its own place, or behind those of its module."""
        if target in self.place:
            return self.place[target], 0, target
        return self.last.get(target.rpartition(".")[0], len(self.place)), 1, target

    def specs(self) -> list[InputSpec]:
        """Input specs in order (parameters, buffers, lifted tensors); puts the placeholders into the same order."""
        kinds = list(_PREFIX)
        rows = sorted(self.entries.values(), key=lambda row: (kinds.index(row[1].kind), self._rank(str(row[1].target))))
        own = {row[0] for row in rows}
        rest = [node for node in self.fx.nodes if node not in own]
        tokens = {node.name for node, spec in self.captured.values() if spec.kind == InputKind.TOKEN}
        anchor = next(node for node in rest if node.name not in tokens)
        for node, _, _ in rows:
            anchor.prepend(node)
        return [spec for _, spec, _ in rows]

    def tensors(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """state_dict and constants of the new program."""
        state: dict[str, Any] = {}
        constants: dict[str, Any] = {name: item for name, item in self.ep.constants.items() if not isinstance(item, torch.Tensor)}
        for target in sorted(self.entries, key=self._rank):
            _, spec, tensor = self.entries[target]
            lifted = spec.kind == InputKind.CONSTANT_TENSOR or spec.persistent is False or target in self.ep.constants
            (constants if lifted else state)[target] = tensor
        return state, constants


def _is_weight(value: Value) -> bool:
    """True for a constant that convolutions and linears read as weight or bias."""

    def fits(node: Node, slot: int) -> bool:
        written = (node.kind in _WEIGHTED and slot in (1, 2)) or (node.kind in _RECURRENT and slot in (1, 2, 3))
        return written or (_is_recurrent(node) and slot > len(node.outputs) - 1)  # behind x and the states

    return bool(value.uses) and all(fits(use.node, use.slot) for use in value.uses) and is_float(value.dtype)


def _is_recurrent(node: Node) -> bool:
    """True for torch's own recurrent layers."""
    return isinstance(node.origin, Call) and node.origin.target in RECURRENT
