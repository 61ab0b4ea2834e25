"""A live module becomes a functional ExportedProgram of its own.

The user's module is never touched: a copy is switched to eval (torch.export writes a module that is left in training mode as
inference BatchNorm without a word, wrong by as much as its batch statistics differ), its parametrizations are baked, and the
copy is what gets exported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from normfold.capture.aten_cells import CELLS
from normfold.capture.program_refusals import cloned, line, refusal
from normfold.errors import InputRefused
from normfold.load.quiet import quiet
from normfold.load.widest import widest
from normfold.record import Record

TRAINING_WARNING = "the model was in training mode; captured in eval mode"
_DIMS = "normfold.dims"
_CHATTY = (
    "torch.fx.experimental.symbolic_shapes",
    "torch._export",
    "torch.export",
    "torch._dynamo",
    "torch._functorch",
    "torch._subclasses",
)


def export_module(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    record: Record | None = None,
) -> ExportedProgram:
    """Export a copy of `module` in eval mode as a functional program.

    args, kwargs: example inputs, any pytree.  dynamic_shapes: as torch.export takes it; the names of its Dims name the sizes of
    the view.  Raises InputRefused when torch.export cannot capture the module.
    """
    record = record or Record()
    kwargs = dict(kwargs or {})
    twin = copied(module)
    if any(part.training for part in module.modules()):
        record.warn(TRAINING_WARNING)
    twin.eval()
    for name in bake(twin):
        record.warn(f"{name} is parametrized; its present value was baked in")
    with quiet(*_CHATTY, warned=False, streams=True), torch.no_grad():
        try:
            exported, limits = widest(
                lambda shapes: torch.export.export(twin, tuple(args), kwargs or None, dynamic_shapes=shapes, strict=False),
                dynamic_shapes,
            )
            program = functional(exported)
        except Exception as error:
            raise refusal(error, twin, args, kwargs) from error
        for limit in limits:
            record.warn(f"an open size has a limit: {limit}")
        if _has_hooks(twin):
            _check_hooks(program, twin, args, kwargs)
    _name_dims(program, args, kwargs, dynamic_shapes)
    return program


def functional(ep: ExportedProgram) -> ExportedProgram:
    """`ep` without mutation and without training-only ops; itself when it is so already."""
    if ep.dialect != "TRAINING":
        return ep
    with quiet(*_CHATTY, warned=False, streams=True), torch.no_grad():
        return ep.run_decompositions(dict(_DECOMPOSED))


def _stack(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


def _unbind(tensor: torch.Tensor, dim: int = 0) -> list[torch.Tensor]:
    return [tensor.select(dim, place) for place in range(tensor.shape[dim])]


# Layout ops that would be several nodes of the view: taken apart, so that a call and a node stay one to one.
_DECOMPOSED: dict[Any, Callable[..., Any]] = {torch.ops.aten.stack.default: _stack, torch.ops.aten.unbind.int: _unbind, **CELLS}


# ---- the copy ----------------------------------------------------------------------------------------------------------------


def copied(module: nn.Module, instead: Mapping[int, nn.Module] | None = None) -> nn.Module:
    """A copy that shares no tensor with `module`: training it on later must not change the result.

    instead: what stands in the copy for the parts with these ids, wherever `module` refers to them (a plain list too).
    Raises InputRefused for a module that cannot be copied.
    """
    memo: dict[int, Any] = dict(instead or {})
    for part in module.modules():
        for attribute in vars(part).values():  # old-style weight_norm leaves a computed tensor, which cannot be deep-copied
            if isinstance(attribute, torch.Tensor) and not attribute.is_leaf:
                memo[id(attribute)] = attribute.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise InputRefused(
            f"a module that can be copied was expected, but copying {type(module).__name__} failed ({line(error)}); "
            "remove attributes that cannot be copied (locks, open files, generators), or export it yourself "
            "with torch.export.export and pass the program"
        ) from error


def bake(module: nn.Module) -> list[str]:
    """Bake every parametrization of `module` (weight_norm and spectral_norm, old and new style, and any other) in place.

    Returns the names of the baked parameters.
    """
    baked: list[str] = []
    with torch.no_grad():
        for path, part in list(module.named_modules()):
            prefix = f"{path}." if path else ""
            if parametrize.is_parametrized(part):
                shared = type(part)  # removing deletes a property of the class, which a deep copy shares with the original
                own = {key: item for key, item in vars(shared).items() if key not in ("__dict__", "__weakref__")}
                private: Any = type(shared.__name__, shared.__bases__, own)
                part.__class__ = private
                lists: Any = part.parametrizations
                for name in list(lists):
                    parametrize.remove_parametrizations(part, name, leave_parametrized=True)
                    baked.append(prefix + name)
            hooks: dict[int, Any] = vars(part)["_forward_pre_hooks"]
            for key, hook in list(hooks.items()):
                if type(hook).__module__.startswith("torch.nn.utils.") and type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
                    hook.remove(part)
                    del hooks[key]
                    baked.append(prefix + str(hook.name))
    return baked


def _has_hooks(module: nn.Module) -> bool:
    return any(vars(part)["_forward_hooks"] or vars(part)["_forward_pre_hooks"] for part in module.modules())


def _check_hooks(program: ExportedProgram, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hooks are traced like any code; what they do outside torch is not, so run both once and compare."""
    expected = pytree.tree_leaves(module(*cloned(args), **cloned(kwargs)))
    came = pytree.tree_leaves(program.module()(*cloned(args), **cloned(kwargs)))
    for before, after in zip(expected, came, strict=True):
        if isinstance(before, torch.Tensor) and not torch.allclose(before, after, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise InputRefused(
                "the module has forward hooks that torch.export does not capture (the exported program gives another "
                "result than the module); remove the hooks, or write what they do into forward"
            )


# ---- names of dynamic sizes ----------------------------------------------------------------------------------------------------


def dim_names(ep: ExportedProgram) -> dict[str, str]:
    """What the user calls the symbols of a program: {"s77": "batch"}."""
    return dict(ep.graph_module.meta.get(_DIMS, {}))


def set_dim_names(ep: ExportedProgram, names: Mapping[str, str]) -> None:
    """Remember the user's names of the symbols of `ep` (not stored in files)."""
    ep.graph_module.meta[_DIMS] = dict(names)


def _name_dims(ep: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> None:
    names: dict[str, str] = {}
    nodes = [node for node in ep.graph.nodes if node.op == "placeholder"]
    specs = zip(nodes, ep.graph_signature.input_specs, strict=True)
    traced = [node.meta.get("val") for node, spec in specs if spec.kind == InputKind.USER_INPUT]
    shapes = [meta.shape for meta in traced if isinstance(meta, torch.Tensor)]
    for shape, dims in zip(shapes, _dims_of_inputs(ep, args, kwargs, dynamic_shapes), strict=False):
        for axis, dim in dims.items():
            name, symbol = getattr(dim, "__name__", ""), str(shape[axis])
            if symbol.isidentifier() and name.isidentifier() and name not in names.values():
                names.setdefault(symbol, name)
    if names:
        set_dim_names(ep, names)


def _dims_of_inputs(ep: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> list[dict[int, Any]]:
    """For each tensor among the inputs, in order, its {axis: Dim}; torch.export has checked that the structure fits."""
    found: list[dict[int, Any]] = []

    def walk(value: Any, spec: Any) -> None:
        if isinstance(value, torch.Tensor):
            if isinstance(spec, Mapping):
                found.append({int(axis): dim for axis, dim in spec.items()})
            elif isinstance(spec, (list, tuple)):
                found.append(dict(enumerate(spec)))
            else:
                found.append({})
        elif isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, spec.get(key) if isinstance(spec, Mapping) else None)
        elif isinstance(value, (list, tuple)):
            for place, item in enumerate(value):
                walk(item, spec[place] if isinstance(spec, (list, tuple)) else None)

    signature = ep.module_call_graph[0].signature
    assert signature is not None
    keywords = list(signature.in_spec.child(1).context)  # in the order of the program's inputs
    if isinstance(shapes, Mapping):
        for name, value in zip(signature.forward_arg_names or [], args, strict=False):
            walk(value, shapes.get(name))
        for name in keywords:
            walk(kwargs[name], shapes.get(name))
    elif isinstance(shapes, (list, tuple)):
        for place, value in enumerate((*args, *(kwargs[name] for name in keywords))):
            walk(value, shapes[place] if place < len(shapes) else None)
    return found


# ---- quiet -----------------------------------------------------------------------------------------------------------------
