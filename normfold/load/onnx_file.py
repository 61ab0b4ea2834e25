"""The head of an ONNX file: its inputs and the names of its initializers, without reading a single weight."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from normfold.load.sniff import refuse
from normfold.load.wire import Damaged, fields

_LIMIT = 1 << 31  # protobuf cannot hold more in one message
_MODEL_GRAPH, _GRAPH_INITIALIZER, _GRAPH_INPUT, _TENSOR_NAME = 7, 5, 11, 8


def read_head(path: Path) -> Any:
    """A ModelProto that holds the graph's inputs and its initializers' names and nothing else.  Raises InputRefused."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto, ValueInfoProto

    if path.stat().st_size >= _LIMIT:
        raise refuse(path, "is over 2 GiB, more than one protobuf file can hold: export it with external data")
    head = ModelProto()
    graph = head.graph
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for outer in fields(data, 0, len(data)):
                if outer.number != _MODEL_GRAPH or outer.wire != 2:
                    continue
                for field in fields(data, outer.value, outer.end):
                    if field.end > outer.end:
                        raise Damaged(field.start, "a field beyond its graph")
                    if field.number == _GRAPH_INPUT and field.wire == 2:
                        graph.input.append(ValueInfoProto.FromString(data[field.value : field.end]))
                    elif field.number == _GRAPH_INITIALIZER and field.wire == 2:
                        for part in fields(data, field.value, field.end):
                            if part.number == _TENSOR_NAME and part.wire == 2:
                                graph.initializer.add(name=data[part.value : part.end].decode("utf-8"))
    except (Damaged, DecodeError, UnicodeDecodeError) as error:
        raise refuse(path, f"is a damaged ONNX file ({str(error) or 'cannot be decoded'}): fetch or export it again") from None
    return head
