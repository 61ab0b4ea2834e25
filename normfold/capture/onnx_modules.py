"""The user's module path of an ONNX node, from what the exporter left behind."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import onnx_ir as ir

from normfold.graph import Node

_SCOPES, _NAMESPACE = "pkg.torch.onnx.name_scopes", "namespace"
_PARAMETERS = frozenset(
    (
        "weight",
        "bias",
        "gamma",
        "beta",
        "running_mean",
        "running_var",
        "moving_mean",
        "moving_variance",
        "weight_g",
        "weight_v",
        "kernel",
    )
)
_GENERATED = re.compile(r"(onnx::|val_|_val_|const_|_)?[A-Za-z]*_?\d+$")


def parameter_name(name: str) -> str:
    """The user's name of a parameter; "" for names that exporters make up ("onnx::Conv_33", "val_7", "12")."""
    return "" if _GENERATED.fullmatch(name) else name


def module_path(origin: ir.Node, node: Node) -> str:
    """Module path of a node, "" when unknown.

    Sources, best first: metadata of PyTorch's exporter; the parameters that the node reads ("layer1.0.bn1.weight"); node names
    of PyTorch's TorchScript exporter ("/layer1/layer1.0/conv1/Conv").
    """
    return _from_metadata(origin) or _from_parameters(node) or _from_name(origin.name or "", origin.op_type)


def name_scopes(metadata: Mapping[str, str]) -> list[str]:
    """['', 'layer1', 'layer1.0', 'layer1.0.bn1', '<name of the fx node>'] of a node's metadata; [] when PyTorch wrote none."""
    scopes = metadata.get(_SCOPES)
    if scopes is not None and len(scopes) < 1 << 16:
        try:
            names = ast.literal_eval(scopes)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return []
        if isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names):
            return [str(name) for name in names]
    return []


def _from_metadata(origin: ir.Node) -> str:
    scopes = name_scopes(origin.metadata_props)
    if scopes:
        return scopes[-2]
    # ": __main__.Net/layer1: torch.nn...Sequential/layer1.0: __main__.Block/relu: aten.relu.default"
    entries = [item.split(": ", 1) for item in origin.metadata_props.get(_NAMESPACE, "").split("/")]
    if len(entries) > 1 and all(len(entry) == 2 for entry in entries):
        return entries[-2][0]
    return ""


def _from_parameters(node: Node) -> str:
    for value in node.inputs:
        if value is not None and value.const is not None and value.param:
            path, _, last = value.param.rpartition(".")
            if path and last in _PARAMETERS:
                return path
    return ""


def _from_name(name: str, op_type: str) -> str:
    parts = name.split("/")
    if len(parts) < 3 or parts[0] or not parts[-1].startswith(op_type):
        return ""
    path = ""
    for part in parts[1:-1]:  # children of a Sequential repeat their parent: /layer1/layer1.0
        path = part if not path or ("." not in path and part.startswith(f"{path}.")) else f"{path}.{part}"
    return path
