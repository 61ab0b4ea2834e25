"""pad-into-conv: an explicit zero pad becomes padding of the convolutions that read it.

    x -> Pad (zeros, spatial axes) -> Conv (pads p)      becomes      x -> Conv (pads p + pad)

The same zeros are read at the same places, so not even the rounding changes.  It saves a copy of the tensor where the runtime
does not do the same, and lets the affine step see the border as that of a convolution.

Source: ONNX operator specification, Pad-13 and Conv-11 (attribute pads).  It does not touch pads of batch or channels, negative
pads (crops), pads of another value or mode, and pads that anything but a convolution reads.
"""

from __future__ import annotations

from normfold.graph import Graph, Node
from normfold.record import Applied
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Move every zero pad that only convolutions read into their `pads`; `graph` itself is not changed."""
    if not any(_spatial_zeros(node, graph) for node in graph.nodes):
        return Rewritten(graph)
    twin = graph.clone()
    applied: list[Applied] = []
    for node in list(twin.nodes):
        pads = _spatial_zeros(node, twin)
        if pads is None:
            continue
        readers = [use.node for use in node.output.uses]
        for reader in readers:
            own = reader.attrs.get("pads") or (0,) * len(pads)
            reader.attrs["pads"] = tuple(int(old) + new for old, new in zip(own, pads, strict=True))
            reader.attrs.pop("auto_pad", None)
        twin.bypass(node)
        applied.append(Applied("pad-into-conv", node.label, f"into {', '.join(reader.label for reader in readers)}"))
    return Rewritten(twin.validate(), applied)


def _spatial_zeros(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """(begins, ends) over the spatial axes of a zero pad that may go; None for every other node."""
    if node.kind != "Pad" or node.attrs.get("mode", "constant") != "constant" or graph.is_fixed(node.output):
        return None
    x, pads = node.inputs[0], node.attrs.get("pads")
    computed = any(node.input(slot) is not None and name not in node.attrs for slot, name in ((2, "constant_value"), (3, "axes")))
    if x is None or x.const is not None or x.rank is None or x.rank < 3 or pads is None or computed:
        return None
    if float(node.attrs.get("constant_value", 0.0) or 0.0) != 0.0:
        return None
    amounts = [(0, 0)] * x.rank
    axes = [int(axis) % x.rank for axis in node.attrs.get("axes") or range(x.rank)]
    for place, axis in enumerate(axes):
        amounts[axis] = int(pads[place]), int(pads[place + len(axes)])
    if any(pair != (0, 0) for pair in amounts[:2]) or any(size < 0 for pair in amounts for size in pair):
        return None
    uses = node.output.uses
    convs = all(
        use.node.kind == "Conv" and use.slot == 0 and use.node.attrs.get("auto_pad", "NOTSET") == "NOTSET" for use in uses
    )
    return (*(begin for begin, _ in amounts[2:]), *(end for _, end in amounts[2:])) if uses and convs else None


REWRITE = Rewrite("pad-into-conv", "Make an explicit zero pad part of the convolutions that read it.", run)
