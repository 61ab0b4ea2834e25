"""chains: two linear layers with nothing between them become one where that is cheaper.

    x -> Conv 1x1 -> (BatchNorm) -> Conv 3x3 -> y     becomes     x -> Conv 3x3 (W, b) -> y

    W[o, i, j] = sum_m W_2[o, m, j] W_1[m, i],  b = b_2 + sum W_2 b_1      x [N, I, ...], W [O, I / groups, *kernel], b [O]

The same for k x k then 1 x 1, strides, groups, depthwise scales, and for matrix products on the last axis; norms and constants
per channel in between go along.  The merged layer must have fewer multiplications and no more bytes of weights (a weight that
somebody else reads counts as a copy).  Longer chains are merged pair by pair.

Source: Ding et al., Diverse Branch Block (CVPR 2021, arXiv 2103.13425), transform III; Guo et al., ExpandNets (NeurIPS 2020).
It does not merge where the second layer pads with zeros a tensor that is not zero outside (behind a bias or a kernel larger than
one), across tensors that somebody else reads, pools, and transposed convolutions.
"""

from __future__ import annotations

from normfold.graph import Graph, Node, Value
from normfold.record import Applied
from normfold.rewrites.linear_maps import WEIGHTED, Frame, LinearMap, frames, is_inner, linear_map, read_layer
from normfold.rewrites.merged import Merger, attributes, become, carrier, fates, names_of, unpromised, unread_bytes
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Merge chains of linear layers where that is cheaper; `graph` itself is not changed."""
    twin = graph.clone()
    result = Rewritten(twin)
    merger = Merger(twin)
    for node in list(twin.nodes):
        for frame in frames(node.output) if node.kind in WEIGHTED else ():
            end = _end(node, twin, frame, policy)
            found = linear_map(end, twin, frame, policy.keep, linears=2, inner=False, without=("AveragePool",))
            if found is not None and len(found.weighted) == 2 and _merge(found, merger, result):
                break
    return Rewritten(twin.validate(), result.applied, result.fates) if result.applied else Rewritten(graph)


def _end(node: Node, graph: Graph, frame: Frame, policy: Policy) -> Value:
    """Where the layer of `node` ends: behind its bias, which a MatMul has in an Add of its own."""
    value = node.output
    while node.kind == "MatMul" and is_inner(value, graph):
        reader = value.uses[0].node
        if reader.kind not in ("Add", "Sub") or read_layer(reader, graph, frame, policy.keep) is None:
            break
        value = reader.output
    return value


def _merge(found: LinearMap, merger: Merger, result: Rewritten) -> bool:
    """Put one layer in the place of the last node of a chain, if that is cheaper; True when it was done."""
    graph, form, root = merger.graph, found.form, found.layers[-1].node
    layer = carrier(found.layers)
    if layer is None or form.macs >= found.cost():
        return False
    if _bytes(layer.node, form.macs + form.outputs) > unread_bytes(found.layers):
        return False
    constants = merger.constants(layer, *found.arrays())
    if constants is None:
        return False
    weight, bias = constants
    names = [item.node.label for item in found.weighted]
    into = names_of(weight, bias, layer)
    result.fates += fates(found.layers, into)
    result.applied.append(Applied("chains", names[-1], f"{names[0]} merged into {', '.join(into)}"))
    kind, inputs, attrs = layer.node.kind, [found.source, weight], attributes(layer, form)
    name, module = found.weighted[-1].node.name, found.weighted[-1].node.module
    become(graph, root, kind, [], {})  # read nothing, so that what is read can go
    graph.remove([item.node for item in found.layers[:-1]])
    if bias is not None and kind == "MatMul":
        product = unpromised(graph, root.output, "unbiased")
        graph.insert_before(root, Node("MatMul", list(inputs), [product], attrs, name, module))
        become(graph, root, "Add", [product, bias], {})
        root.name = f"{name}_bias" if root.name == name else root.name
    else:
        root.name, root.module = name, module
        become(graph, root, kind, [*inputs, *([] if bias is None else [bias])], attrs)
    return True


def _bytes(node: Node, size: int) -> int:
    """Bytes of `size` elements in the type of the node's weight."""
    dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
    return size * (dtype.itemsize if dtype is not None else 8)


REWRITE = Rewrite("chains", "Merge two linear layers with nothing between them into one where that is cheaper.", run)
