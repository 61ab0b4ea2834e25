"""Nodes of the view in the spelling of a given opset: which parameter is an attribute, which an input, and of what type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from normfold.capture.onnx_attrs import DEFAULTS, attribute_types, schema
from normfold.capture.onnx_shapes import onnx_type
from normfold.capture.static import STATIC
from normfold.errors import InputRefused
from normfold.graph import Array, Node

_OLD_NAMES = {("Pad", "constant_value"): "value"}
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div"))
_CHANGED_MEANING = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "GroupNormalization": 21, "Resize": 11, "Tile": 6}
_NO_EFFECT: dict[str, Any] = {"training_mode": 0, "ceil_mode": 0, "count_include_pad": 0, "layout": 0, "allowzero": 0}


class Spelling:
    """What one node becomes: ONNX attributes, and inputs that the view holds as attributes (slot -> array)."""

    def __init__(self) -> None:
        self.attributes: list[ir.Attr] = []
        self.inputs: dict[int, Array] = {}
        self.dropped: set[int] = set()  # slots of the view that this opset spells as attributes


def split_kind(kind: str) -> tuple[str, str]:
    """(domain, op type) of an op kind."""
    domain, _, name = kind.rpartition("::")
    return domain, name


def spell_node(node: Node, opset: int) -> Spelling:
    """All of a new node.  Raises InputRefused where the opset has no such op."""
    domain, name = split_kind(node.kind)
    spelling = Spelling()
    if domain:
        spelling.attributes = [_guess(key, value) for key, value in node.attrs.items()]
        return spelling
    found = schema(name, opset)
    if found is None or opset < _first(node):
        raise InputRefused(f"opset {opset} cannot spell {node.kind} ({node.label}): convert the model to a newer opset first")
    spell_attributes(node, node.attrs, opset, spelling)
    if opset < 7 and name in _BROADCAST:
        _old_broadcast(node, spelling)
    if opset < 7 and name == "BatchNormalization":
        spelling.attributes.append(ir.AttrInt64("is_test", 1))
    keys = {slot: key for slot, (key, _) in STATIC.get(name, {}).items()}
    for slot, value in enumerate(node.inputs):
        if value is not None and slot >= found.max_input:
            if keys.get(slot) not in node.attrs:
                raise InputRefused(f"opset {opset} knows no input {slot} of {node.kind} ({node.label})")
            spelling.dropped.add(slot)
    return spelling


def _first(node: Node) -> int:
    """The first opset in which the op means what the view means."""
    x = node.input(0)
    if "Softmax" in node.kind and x is not None and x.rank is not None and node.attrs.get("axis") == x.rank - 1:
        return 1
    return _CHANGED_MEANING.get(node.kind, 1)


def spell_attributes(node: Node, keys: Iterable[str], opset: int, spelling: Spelling) -> None:
    """Attributes of `node` named in `keys`, each as an attribute or as an input, whichever the opset has."""
    _, name = split_kind(node.kind)
    found, known = schema(name, opset), attribute_types(name, opset)
    slots = {key: slot for slot, (key, _) in STATIC.get(name, {}).items()}
    for key in keys:
        value = node.attrs[key]
        old = _OLD_NAMES.get((name, key), key)
        if key in known or old in known:
            actual = key if key in known else old
            spelling.attributes.append(_attribute(actual, value, known[actual]))
        elif found is None:
            spelling.attributes.append(_guess(key, value))
        elif key in slots and slots[key] < found.max_input:
            if not _held(node, slots[key], value):
                spelling.inputs[slots[key]] = _array(node, key, value)
        elif not _harmless(node, key, value):
            raise InputRefused(
                f"opset {opset} cannot spell {key}={value!r} of {node.kind} ({node.label}): convert the model to a newer opset"
            )


def _harmless(node: Node, key: str, value: Any) -> bool:
    """True for what older opsets mean without saying it."""
    if key == "dilations":
        return all(item == 1 for item in value)
    if key == "axes" and node.kind == "Pad":
        x = node.input(0)
        rank = None if x is None else x.rank
        return rank is not None and value == tuple(range(rank))
    if key == "steps" and node.kind == "Slice":
        return all(item == 1 for item in value)
    default = DEFAULTS.get(node.kind, {}).get(key, _NO_EFFECT.get(key))
    return default is not None and value == default


def _held(node: Node, slot: int, value: Any) -> bool:
    """True when the view's own input at `slot` already says `value`, or says it at run time."""
    given = node.input(slot)
    if given is None:
        return False
    if given.const is None:
        return True
    array = given.const.rounded().read().reshape(-1)
    wanted = np.asarray(value).reshape(-1)
    return array.shape == wanted.shape and bool(np.all(array == wanted))


def _array(node: Node, key: str, value: Any) -> Array:
    x = node.input(0)
    if key in ("min", "max", "constant_value"):
        dtype = x.dtype if x is not None and x.dtype is not None else np.dtype(np.float32)
        return np.asarray(value, dtype=dtype).reshape(())
    if key == "scales":
        return np.asarray(value, dtype=np.float32)
    scalar = key == "depth" or (key == "k" and node.kind == "Trilu")
    return np.asarray(value, dtype=np.int64).reshape(() if scalar else (-1,))


def _attribute(name: str, value: Any, kind: ir.AttributeType) -> ir.Attr:
    if isinstance(value, np.dtype):
        value = onnx_type(value).value
    if kind == ir.AttributeType.INT:
        return ir.AttrInt64(name, int(value))
    if kind == ir.AttributeType.FLOAT:
        return ir.AttrFloat32(name, float(value))
    if kind == ir.AttributeType.STRING:
        return ir.AttrString(name, str(value))
    if kind == ir.AttributeType.INTS:
        return ir.AttrInt64s(name, [int(item) for item in np.asarray(value).reshape(-1)])
    if kind == ir.AttributeType.FLOATS:
        return ir.AttrFloat32s(name, [float(item) for item in np.asarray(value).reshape(-1)])
    if kind == ir.AttributeType.STRINGS:
        return ir.AttrStrings(name, [str(item) for item in value])
    if kind == ir.AttributeType.TENSOR:
        return ir.AttrTensor(name, ir.Tensor(np.asarray(value, order="C"), name=name))
    raise ValueError(f"the attribute {name!r} of type {kind} cannot be written from {value!r}")


def _guess(name: str, value: Any) -> ir.Attr:
    """An attribute of an op without schema, its type told by the value."""
    if isinstance(value, np.ndarray):
        return _attribute(name, value, ir.AttributeType.TENSOR)
    if isinstance(value, (tuple, list)):
        first: Any = value[0] if value else 0
        several = {str: ir.AttributeType.STRINGS, float: ir.AttributeType.FLOATS}
        return _attribute(name, value, several.get(type(first), ir.AttributeType.INTS))
    one = {str: ir.AttributeType.STRING, float: ir.AttributeType.FLOAT}
    return _attribute(name, value, one.get(type(value), ir.AttributeType.INT))


def _old_broadcast(node: Node, spelling: Spelling) -> None:
    """Before opset 7 the second operand is laid along a run of the first one's axes, and only when asked."""
    a, b = node.inputs[0], node.inputs[1]
    if a is not None and b is not None and a.shape is not None and a.shape == b.shape:
        return
    if b is None or b.const is None or a is None or a.rank is None or len(b.const.shape) > a.rank:
        raise InputRefused(f"an opset before 7 cannot spell {node.kind} ({node.label}): convert the model to a newer opset first")
    sizes = (1,) * (a.rank - len(b.const.shape)) + b.const.shape
    long = [axis for axis, size in enumerate(sizes) if size > 1]
    first, last = (long[0], long[-1]) if long else (0, -1)
    spelling.attributes += [ir.AttrInt64("broadcast", 1), ir.AttrInt64("axis", first)]
    spelling.inputs[1] = b.const.rounded().read().reshape(sizes[first : last + 1])
