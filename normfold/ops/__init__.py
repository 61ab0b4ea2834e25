"""One entry an op kind: how it treats gauges, how it absorbs them, how it is evaluated in float64.

To add an op: an `OpRule(kind, wire, absorb)` in the module of its family, and its float64 arithmetic in `kernels/`.  An op
without a rule is pinned: left alone, with everything that it touches.

Another package adds ops of its own under the entry point `normfold.ops`, which names a tuple of `OpRule`.  For an op of a custom
domain, y = x + bias[channel] with a bias [C], the package `acme` would hold

    import numpy as np
    from normfold.ops import OpRule
    from normfold.ops.kernels import kernel

    @kernel("acme::ChannelBias")
    def channel_bias(node, arrays):
        x, bias = arrays
        return [x + bias.reshape(-1, *(1,) * (x.ndim - 2))]

    def wire(node, w):
        x, bias = node.inputs
        if x.const is not None or bias.const is None or bias in w.graph.pinned:
            return w.pin_node(node)
        w.even_out(x, {1})                                    # one gauge a channel
        w.set_fresh(node.output, {1})                         # any shift: the bias makes it
        w.system.join_scale(w.of(node.output).scale, w.of(x).scale)

    def absorb(node, g):
        bias = node.inputs[1].const.float64()
        s, t = g.channels(node.output, bias.size)
        g.replace(node, 1, s * bias + t - g.channels(node.inputs[0], bias.size)[1])

    RULES = (OpRule("acme::ChannelBias", wire, absorb),)

and in its pyproject.toml

    [project.entry-points."normfold.ops"]
    acme = "acme:RULES"
"""

from normfold.ops.kernels import can_evaluate, evaluate, is_light
from normfold.ops.registry import op_rules
from normfold.ops.rule import OpRule

__all__ = ["OpRule", "can_evaluate", "evaluate", "is_light", "op_rules"]
