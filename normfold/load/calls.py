"""Example calls of a torch model: a live module, or an ExportedProgram."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normfold.errors import UsageError
from normfold.graph import BFLOAT16, Array
from normfold.load.dynamic import DynamicSpec, dynamic_shapes, enlarged
from normfold.load.inputs import SEED, InputSpec, dtype_named, random_array
from normfold.load.loaded import Call

Data = tuple[dict[str, Array], list[Array]]


def tensor(array: Array) -> Any:
    """The array as a torch tensor of its own memory."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def module_calls(module: Any, specs: Sequence[InputSpec], data: Data | None, calls: Sequence[Call]) -> list[Call]:
    """Calls for an nn.Module: `calls` as they are, else of `data`, else of `specs`.

    Named inputs are parameters of ``forward``.  Raises UsageError when nothing was given, naming those parameters.
    """
    parameters = _parameters(module)
    if calls:
        for args, kwargs in calls:
            _bind(module, args, kwargs, parameters)
        return list(calls)
    if data is not None:
        named, positional = ({name: tensor(array) for name, array in data[0].items()}, [tensor(array) for array in data[1]])
        return [_call(module, named, positional, parameters)]
    if not specs:
        names = list(parameters) or ["image"]
        shapes = " ".join(f"--input {name}=1x3x224x224" for name in names[:1])
        raise UsageError(
            f"the inputs of {type(module).__name__}.forward({', '.join(parameters)}) are not known: "
            f"give their shapes ({shapes}), arrays (--data x.npz) or a function (--inputs file.py:fn)"
        )
    rng = np.random.default_rng(SEED)
    own = _own_dtype(module)
    made = [(spec.name, tensor(spec.array(rng, own))) for spec in specs]
    named = {name: value for name, value in made if name}
    if len(named) < sum(1 for name, _ in made if name):
        raise UsageError("--input names the same input twice; name each once")
    return [_call(module, named, [value for name, value in made if not name], parameters)]


def module_dynamic(module: Any, calls: list[Call], specs: Sequence[DynamicSpec]) -> tuple[Any, list[Call]]:
    """(`dynamic_shapes`, calls with one in front that torch.export can generalise) for an nn.Module."""
    args, kwargs = calls[0]
    bound = _bind(module, args, kwargs, _parameters(module))
    shapes, small = dynamic_shapes(specs, bound.arguments)
    if not small:
        return shapes, calls
    bound.arguments.update(enlarged(bound.arguments, small))
    return shapes, [(bound.args, dict(bound.kwargs)), *calls]


def program_calls(program: Any, specs: Sequence[InputSpec], data: Data | None, calls: Sequence[Call]) -> list[Call]:
    """Calls for an ExportedProgram: `calls`, else its own example inputs with what `data` or `specs` give put in their place."""
    from torch.utils import _pytree as pytree

    if calls:
        return list(calls)
    given: list[tuple[str, Any]] = []
    rng = np.random.default_rng(SEED)
    metas = _placeholders(program)
    names = list(program.graph_signature.user_inputs)
    if data is not None:
        given = [*(("", tensor(array)) for array in data[1]), *((name, tensor(array)) for name, array in data[0].items())]
    elif specs:
        given = [(spec.name, spec) for spec in specs]
    elif program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return [(tuple(args), dict(kwargs))]
    values: dict[str, Any] = {}
    position = 0
    for name, value in given:
        if not name:
            if position >= len(names):
                raise UsageError(
                    f"{position + 1} inputs were given by position, the program takes {len(names)} ({', '.join(names)})"
                )
            name, position = names[position], position + 1
        if name not in names:
            raise UsageError(f"the program has no input {name!r}; it has {', '.join(map(str, names))}")
        meta = metas.get(name)
        made = tensor(value.array(rng, _dtype(meta))) if isinstance(value, InputSpec) else value
        _fits(name, made, meta)
        values[name] = made
    flat = [
        values[name] if name in values else _default(program, index, name, metas.get(name), rng)
        for index, name in enumerate(names)
    ]
    args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return [(tuple(args), dict(kwargs))]


def _placeholders(program: Any) -> dict[str, Any]:
    """Metadata (a fake tensor) of each user input."""
    return {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}


def _default(program: Any, index: int, name: Any, meta: Any, rng: np.random.Generator) -> Any:
    from torch.utils import _pytree as pytree

    if program.example_inputs is not None:
        return pytree.tree_flatten(program.example_inputs)[0][index]
    if not hasattr(meta, "shape"):
        return meta if meta is not None else name  # a constant that was passed at export
    sizes = [int(size) if isinstance(size, int) else int(size.node.hint or 2) for size in meta.shape]
    return tensor(random_array(sizes, _dtype(meta), rng))


def _dtype(meta: Any) -> np.dtype[Any]:
    return dtype_named(str(meta.dtype).removeprefix("torch."), "input") if hasattr(meta, "dtype") else np.dtype(np.float32)


def _fits(name: str, value: Any, meta: Any) -> None:
    if not hasattr(meta, "shape"):
        raise UsageError(f"an input of the program is no tensor, it was fixed at {name!r} when exporting; leave it out")
    fixed = [size if isinstance(size, int) else None for size in meta.shape]
    if len(fixed) != value.ndim or any(size is not None and size != got for size, got in zip(fixed, value.shape, strict=True)):
        declared = "x".join("?" if size is None else str(size) for size in fixed)
        raise UsageError(
            f"input {name!r} has the shape {'x'.join(map(str, value.shape)) or 'of a scalar'}, the program takes {declared}"
        )
    if value.dtype != meta.dtype:
        raise UsageError(f"input {name!r} is {value.dtype}, the program takes {meta.dtype}; convert it")


def _parameters(module: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters


def _own_dtype(module: Any) -> np.dtype[Any]:
    """The float type of the model's parameters, float32 when it has none."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return dtype_named(str(parameter.dtype).removeprefix("torch."), "the model's parameters")
    return np.dtype(np.float32)


def _call(module: Any, named: dict[str, Any], positional: list[Any], parameters: Mapping[str, inspect.Parameter]) -> Call:
    """Arguments by position as long as there is no gap, the rest by name."""
    rest, args, kwargs, gap = dict(named), list[Any](), dict[str, Any](), False
    by_position = iter(positional)
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            args.extend(by_position)
            gap = True
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= rest
            rest = {}
        elif name in rest:
            if gap or parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[name] = rest.pop(name)
            else:
                args.append(rest.pop(name))
        elif parameter.kind is parameter.KEYWORD_ONLY or gap:
            gap = True
        elif (value := next(by_position, None)) is not None:
            args.append(value)
        else:
            gap = True
    surplus = list(by_position)
    if rest or surplus:
        what = f"no input {next(iter(rest))!r}" if rest else f"no place for {len(surplus)} more input{'s' * (len(surplus) > 1)}"
        raise UsageError(f"{type(module).__name__}.forward({', '.join(parameters)}) has {what}")
    _bind(module, tuple(args), kwargs, parameters)
    return tuple(args), kwargs


def _bind(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> Any:
    try:
        return inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"the inputs do not fit {type(module).__name__}.forward({', '.join(parameters)}): {error}; give --input name=SHAPE"
        ) from None
