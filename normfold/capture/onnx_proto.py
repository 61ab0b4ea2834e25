"""An onnx-ir model as a protobuf message that holds none of its (large) weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir


def message_without(model: ir.Model, cut: Callable[[ir.TensorProtocol], bool]) -> onnx.ModelProto:
    """The message of `model` without the main graph's initializers for which `cut` holds.  The model is not changed.

    value_info of initializers is left out: type and dims stand in the tensor already.
    """
    saved: dict[str, ir.TensorProtocol] = {}
    empty = ir.Tensor(np.zeros(0, dtype=np.uint8))
    initializers = model.graph.initializers
    try:
        for name, value in initializers.items():
            tensor = value.const_value
            if tensor is not None and cut(tensor):
                saved[name] = tensor
                value.const_value = empty
        proto = ir.serde.serialize_model(model)
    finally:
        for name, tensor in saved.items():
            initializers[name].const_value = tensor
    _keep(proto.graph.initializer, lambda tensor: tensor.name not in saved)
    _keep(
        proto.graph.value_info,
        lambda info: info.name not in initializers or bool(info.doc_string) or bool(info.metadata_props),
    )
    return proto


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    """Drop from a repeated field what is not wanted."""
    kept = [item for item in items if wanted(item)]
    if len(kept) < len(items):
        del items[:]
        items.extend(kept)
