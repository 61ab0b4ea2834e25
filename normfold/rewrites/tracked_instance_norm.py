"""tracked-instance-norm: InstanceNorm with running statistics in eval is a BatchNorm, and is written as one.

    x [N, C, *S] -> Reshape [1, N C, *S] -> BatchNorm (gamma, beta, mean, var tiled N times) -> Reshape [N, C, *S] -> y
    becomes
    x [N, C, *S] -> BatchNorm (gamma, beta, mean, var [C]) -> y

With stored statistics the layer is y = a_c x + b_c for channel c of every sample alike: no mean is taken.  Exporters to ONNX lay
the batch beside the channels and repeat the parameters, as constants for a fixed batch and by Tile for an open one; the affine
step then folds C parameters as it folds any BatchNorm.  (torch's own form is read as a BatchNorm when the model is captured.)

Source: Ulyanov et al. 2016 (arXiv 1607.08022) with the running statistics of torch.nn.InstanceNorm2d (track_running_stats).
It does not touch InstanceNorm that takes the statistics of each sample, nor parameters that differ between samples.
"""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Graph, Node, Shape, Value, is_float
from normfold.record import Applied
from normfold.rewrites.following import is_private
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Write every such layer as a BatchNorm over axis 1; `graph` itself is not changed."""
    if not any(_find(node, graph) is not None for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    result = Rewritten(twin)
    for norm in list(twin.nodes):
        parameters = _find(norm, twin)
        if parameters is None:
            continue
        into, back = norm.inputs[0], norm.output.uses[0].node
        assert into is not None and into.producer is not None
        x = into.producer.inputs[0]
        assert x is not None
        result.renamed[norm.output.name] = back.output.name
        twin.set_input(norm, 0, x)
        for slot, share in enumerate(parameters, 1):
            old = norm.inputs[slot]
            assert old is not None
            twin.set_input(norm, slot, share if isinstance(share, Value) else twin.derived(old, share, suffix="once"))
        name, gauges = back.output.name, back.output.gauges
        made = twin.bypass(back)
        made.shape, made.gauges = x.shape, gauges
        twin.rename(made, name)
        result.applied.append(Applied("tracked-instance-norm", norm.label, "a BatchNorm"))
    twin.prune()
    twin.validate()
    return result


def _find(norm: Node, graph: Graph) -> list[Value | Array] | None:
    """gamma, beta, mean, var [C] of a BatchNorm that runs over samples and channels laid side by side; None otherwise."""
    if norm.kind != "BatchNormalization" or norm.attrs.get("training_mode", 0) or len(norm.outputs) != 1:
        return None
    folded = norm.inputs[0]
    before = folded.producer if folded is not None else None
    if folded is None or before is None or before.kind != "Reshape" or not is_private(norm.output, graph):
        return None
    back = norm.output.uses[0].node
    x = before.inputs[0]
    if x is None or x.shape is None or back.kind != "Reshape" or back.output.captured or norm.output.uses[0].slot != 0:
        return None
    if not _side_by_side(x.shape, folded.shape) or back.output.shape != x.shape:
        return None
    channels = x.shape[1]
    if not isinstance(channels, int):
        return None
    shares = [_share(value, channels, graph) for value in norm.inputs[1:5]]
    known = [share for share in shares if share is not None]
    return known if len(known) == 4 else None


def _side_by_side(x: Shape, folded: Shape | None) -> bool:
    """True for [N, C, *S] laid out as [1, N C, *S], with S surely the same."""
    if folded is None or len(x) < 3 or len(folded) != len(x) or folded[0] != 1:
        return False
    return None not in x and x[2:] == folded[2:] and 0 not in x[2:]


def _share(value: Value | None, channels: int, graph: Graph) -> Value | Array | None:
    """The [C] constant that `value` repeats."""
    if value is None or value in graph.pinned or not is_float(value.dtype):
        return None
    if value.const is not None:
        array = value.const.float64()
        if array.ndim != 1 or channels == 0 or array.size % channels or array.size == 0:
            return None
        if array.size == channels:
            return value
        rows = array.reshape(-1, channels)
        return rows[0] if np.array_equal(rows, np.broadcast_to(rows[:1], rows.shape), equal_nan=True) else None
    node = value.producer
    source = node.inputs[0] if node is not None and node.kind == "Tile" else None
    if source is None or source.const is None or source in graph.pinned or source.const.shape != (channels,):
        return None
    return source


REWRITE = Rewrite("tracked-instance-norm", "Write InstanceNorm with running statistics as the BatchNorm it is.", run)
