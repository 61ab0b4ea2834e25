"""Example inputs of an ONNX model: from its own input list, from what the caller says, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normfold.errors import UsageError
from normfold.graph import Array, Dim, Shape
from normfold.load.inputs import SEED, InputSpec, random_array
from normfold.load.loaded import Call, Feed
from normfold.record import Record


@dataclass(frozen=True)
class OnnxInput:
    """One input that a caller has to give: name, dtype (None when it is not a tensor of numbers), shape (None: unknown rank)."""

    name: str
    dtype: np.dtype[Any] | None
    shape: Shape | None


def inputs_of(model: Any) -> list[OnnxInput]:
    """The inputs of a ModelProto without those that an initializer gives a default."""
    import onnx

    given = {tensor.name for tensor in model.graph.initializer}
    found: list[OnnxInput] = []
    for value in model.graph.input:
        if value.name in given:
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type in (0, onnx.TensorProto.STRING):
            found.append(OnnxInput(value.name, None, None))
            continue
        shape: Shape | None = None
        if tensor.HasField("shape"):
            shape = tuple(_dim(dim) for dim in tensor.shape.dim)
        found.append(OnnxInput(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape))
    return found


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None


def build_feeds(
    model: Any,
    *,
    specs: Sequence[InputSpec] = (),
    data: tuple[dict[str, Array], list[Array]] | None = None,
    calls: Sequence[Call] = (),
    record: Record,
) -> list[Feed]:
    """Feeds for `model`: of `calls`, else of `data`, else of `specs` filled up with random arrays of the declared shapes.

    A size that the model leaves open is 1 on the first axis; another one must be given, otherwise there are no feeds and the
    record says so.  Raises UsageError for unknown names, wrong types and shapes.
    """
    inputs = inputs_of(model)
    defaults = {tensor.name for tensor in model.graph.initializer}
    known = {item.name: item for item in inputs}
    known |= {v.name: OnnxInput(v.name, None, None) for v in model.graph.input if v.name in defaults}  # may be overridden
    if calls:
        return [_checked(_positional(args, inputs) | kwargs, inputs, known) for args, kwargs in calls]
    if data is not None:
        return [_checked(_positional(data[1], inputs) | data[0], inputs, known)]
    return _random(inputs, known, specs, record)


def _random(inputs: list[OnnxInput], known: dict[str, OnnxInput], specs: Sequence[InputSpec], record: Record) -> list[Feed]:
    rng = np.random.default_rng(SEED)
    unnamed = [spec for spec in specs if not spec.name]
    by_name = {spec.name: spec for spec in specs if spec.name}
    by_name |= dict(_positional(unnamed, [item for item in inputs if item.name not in by_name]))
    if len(by_name) < len(specs):
        raise UsageError("--input names the same input twice; name each once")
    feed: Feed = {}
    sizes: dict[str, int] = {}
    for name, spec in by_name.items():
        _known(name, known)
        declared = known[name].shape
        if declared is not None and len(declared) == len(spec.shape):
            sizes |= {dim: size for dim, size in zip(declared, spec.shape, strict=True) if isinstance(dim, str)}
    for item in inputs:
        if item.name in by_name:
            spec = by_name[item.name]
            if spec.dtype is not None and item.dtype is not None and spec.dtype != item.dtype:
                raise UsageError(f"--input {item.name} is {spec.dtype}, the model declares {item.dtype}; leave the type out")
            feed[item.name] = spec.array(rng, item.dtype or np.dtype(np.float32))
            continue
        if item.dtype is None:
            record.warn(f"input {item.name!r} is not a tensor of numbers: give example inputs with --inputs")
            return []
        shape = _filled(item, sizes, record)
        if shape is None:
            return []
        feed[item.name] = random_array(shape, item.dtype, rng)
    for name in by_name.keys() - {item.name for item in inputs}:
        feed[name] = by_name[name].array(rng, np.dtype(np.float32))
    return [_checked(feed, inputs, known)]


def _filled(item: OnnxInput, sizes: dict[str, int], record: Record) -> tuple[int, ...] | None:
    """The declared shape with a size for each open dimension, None (and a warning) when one cannot be chosen."""
    if item.shape is None:
        record.warn(f"the rank of input {item.name!r} is not known: no example inputs were made; give --input {item.name}=SHAPE")
        return None
    filled: list[int] = []
    for axis, dim in enumerate(item.shape):
        if isinstance(dim, int):
            filled.append(dim)
        elif isinstance(dim, str) and dim in sizes:
            filled.append(sizes[dim])
        elif axis == 0:
            filled.append(1)
            if isinstance(dim, str):
                sizes[dim] = 1
        else:
            shape = "x".join("1" if a == 0 else str(d) if isinstance(d, int) else "SIZE" for a, d in enumerate(item.shape))
            what = f"size {dim!r}" if dim else f"axis {axis}"
            record.warn(f"{what} of input {item.name!r} is open: no example inputs were made; give --input {item.name}={shape}")
            return None
    return tuple(filled)


def _positional(values: Sequence[Any], inputs: Sequence[OnnxInput]) -> dict[str, Any]:
    if len(values) > len(inputs):
        raise UsageError(f"{len(values)} inputs were given by position, the model takes {len(inputs)} ({_names(inputs)})")
    return {item.name: value for item, value in zip(inputs, values, strict=False)}


def _names(inputs: Sequence[OnnxInput]) -> str:
    return ", ".join(item.name for item in inputs) or "none"


def _known(name: str, known: dict[str, OnnxInput]) -> None:
    if name not in known:
        raise UsageError(f"the model has no input {name!r}; it has {', '.join(known) or 'none'}")


def _checked(values: dict[str, Any], inputs: list[OnnxInput], known: dict[str, OnnxInput]) -> Feed:
    """The feed as arrays of the declared types.  Raises UsageError for what the model cannot take."""
    missing = [item for item in inputs if item.name not in values]
    if missing:
        raise UsageError(f"no value was given for {_names(missing)}; the model takes {_names(inputs)}")
    feed: Feed = {}
    for name, value in values.items():
        _known(name, known)
        item = known[name]
        if item.dtype is None:
            feed[name] = as_array(value) if hasattr(value, "shape") else value
            continue
        array = as_array(value)
        if array.dtype != item.dtype:
            if not np.can_cast(array.dtype, item.dtype, "same_kind") or array.dtype.kind == "b":
                raise UsageError(f"input {name!r} is {array.dtype}, the model declares {item.dtype}; convert it")
            array = array.astype(item.dtype)
        shape = item.shape
        if shape is not None and (
            len(shape) != array.ndim or any(isinstance(d, int) and d != s for d, s in zip(shape, array.shape, strict=True))
        ):
            declared = "x".join("?" if d is None else str(d) for d in shape)
            raise UsageError(
                f"input {name!r} has the shape {'x'.join(map(str, array.shape)) or 'of a scalar'}, the model declares {declared}"
            )
        feed[name] = array
    return feed


def as_array(value: Any) -> Array:
    """`value` as a NumPy array; torch tensors are taken as they are, without importing torch here."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return np.asarray(value.float().numpy()) if str(value.dtype) == "torch.bfloat16" else np.asarray(value.numpy())
    return np.asarray(value)
