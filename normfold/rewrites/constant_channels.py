"""constant-channels: channels that hold one number whatever the input are moved into the bias of their readers.

    x -> BatchNorm (gamma[i] = 0) -> ReLU -> Conv W, b
    becomes the same with gamma[i] != 0 again, W[:, i] = 0, b += sum W[:, i] relu(c_i)

A batch norm whose gamma is zero at channel i puts out the constant c_i = beta_i there.  The constant is carried through
elementwise operations and pools; a convolution or linear layer takes it into its bias and stops reading the channel (where it is
zero-padded only if the constant is zero).  When nobody reads the channel any more, gamma is free and becomes neutral
(a = 1, c = 0), so that the affine solver is not stopped by a zero.  In the same way a convolution whose output channel is
read by such layers alone is emptied: W[i] = 0, b[i] = 0, and the norm adds c_i to that zero.

Only exact constants count, never small ones.  Nothing is removed here: no channel count changes.
"""

from __future__ import annotations

import numpy as np

from normfold.algebra.ratios import Bools, Floats
from normfold.graph import Gauge, Graph, Node, Value
from normfold.ops import evaluate
from normfold.ops.affine import batch_norm_constants
from normfold.ops.linear import zero_padded
from normfold.ops.wiring import is_foldable
from normfold.record import Applied
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten

ELEMENTWISE = frozenset(
    "Relu LeakyRelu Sigmoid Tanh HardSigmoid HardSwish Softplus Elu Selu Gelu Mish Abs Neg Exp Clip Identity Dropout".split()
)
POOLS = frozenset(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Free the zero gammas that can be freed; `graph` itself is not changed."""
    twin = graph.clone()
    norms = [node for node in twin.nodes if node.kind == "BatchNormalization" and _zero_gammas(node, twin) is not None]
    norms = [node for node in norms if not policy.keep(node.label)]
    if not norms:
        return Rewritten(graph)
    _take_into_biases(twin)
    unread = _unread(twin)
    applied = [item for node in norms if (item := _revive(node, twin, unread)) is not None]
    if not applied:
        return Rewritten(graph)
    _record_changes(twin, unread)
    return Rewritten(twin.validate(), applied)


def _channels(value: Value | None) -> int | None:
    """Size of axis 1; None when there is no such axis or it is not a number."""
    if value is None or value.shape is None or len(value.shape) < 2 or not isinstance(value.shape[1], int):
        return None
    return value.shape[1]


def _zero_gammas(node: Node, graph: Graph) -> Bools | None:
    """Mask [C] of zero gammas of a foldable eval-mode batch norm with known channels; None when there are none."""
    constants = batch_norm_constants(node, graph)
    if constants is None or _channels(node.inputs[0]) is None or not (constants[0] == 0).any():
        return None
    return constants[0] == 0


def _linear(node: Node, graph: Graph) -> tuple[Floats, int] | None:
    """(weight as [O, I/groups, taps], groups) of a Conv or a 2-D Gemm that reads channels along axis 1."""
    if not is_foldable(node.input(1), graph) or (node.input(2) is not None and not is_foldable(node.input(2), graph)):
        return None
    source = node.inputs[1]
    assert source is not None and source.const is not None
    weight = source.const.float64()
    if node.kind == "Conv":
        return weight.reshape(*weight.shape[:2], -1), int(node.attrs.get("group", 1))
    plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA", 0)
    if node.kind == "Gemm" and plain and (node.inputs[0] is not None and node.inputs[0].rank == 2):
        return (weight if node.attrs.get("transB", 0) else weight.T)[:, :, None], 1
    return None


def _columns_read(weight: Floats, groups: int) -> Bools:
    """Mask over input channels: some weight of the channel is not zero."""
    out, per_group = weight.shape[:2]
    return (weight.reshape(groups, out // groups, per_group, -1) != 0).any(axis=(1, 3)).ravel()


def _take_into_biases(graph: Graph) -> None:
    """Carry constants forward; convolutions and linear layers take them into their bias and stop reading the channel."""
    known: dict[Value, Floats] = {}
    for node in graph.nodes:
        x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
        count = _channels(y)
        if x is None or count is None:
            continue
        if node.kind == "BatchNormalization":
            constants = batch_norm_constants(node, graph)
            if constants is not None and (constants[0] == 0).any():
                known[y] = np.where(constants[0] == 0, constants[1], np.nan)
        elif node.kind in ELEMENTWISE and x in known and len(node.inputs) == 1:
            known[y] = evaluate(node, [known[x]])[0]
        elif node.kind in POOLS and x in known and not zero_padded(node):
            known[y] = known[x]
        elif node.kind == "Concat" and node.attrs.get("axis") == 1:
            parts = [(v, _channels(v)) for v in node.inputs if v is not None]
            if any(v in known for v, _ in parts) and all(size is not None for _, size in parts):
                known[y] = np.concatenate([known.get(v, np.full(size or 0, np.nan)) for v, size in parts])
        elif x in known and (linear := _linear(node, graph)) is not None:
            _absorb_known(node, graph, known[x], *linear)


def _absorb_known(node: Node, graph: Graph, known: Floats, weight: Floats, groups: int) -> None:
    usable = np.isfinite(known) & _columns_read(weight, groups)
    if node.kind == "Conv" and zero_padded(node):
        usable &= known == 0
    if not usable.any():
        return
    out, per_group = weight.shape[:2]
    grouped = weight.reshape(groups, out // groups, per_group, -1)
    chosen = usable.reshape(groups, 1, per_group)
    moved = np.where(chosen, grouped.sum(axis=3) * np.where(usable, known, 0.0).reshape(groups, 1, per_group), 0.0)
    cleared = np.where(chosen[..., None], 0.0, grouped).reshape(weight.shape)
    _set_linear(node, graph, cleared, moved.sum(axis=2).reshape(out))


def _set_linear(node: Node, graph: Graph, weight: Floats, more_bias: Floats) -> None:
    """Store a weight [O, I/groups, taps] back and add to the bias."""
    old, bias = node.inputs[1], node.input(2)
    assert old is not None and old.const is not None
    shaped = weight.reshape(old.const.shape) if node.kind == "Conv" else weight[:, :, 0]
    if node.kind == "Gemm" and not node.attrs.get("transB", 0):
        shaped = shaped.T
    graph.set_input(node, 1, graph.derived(old, np.asarray(shaped, order="C")))
    if bias is not None and bias.const is not None:
        graph.set_input(node, 2, graph.derived(bias, bias.const.float64() + more_bias))
    elif more_bias.any():
        graph.set_input(node, 2, graph.derived(old, more_bias, suffix="bias"))


def _unread(graph: Graph) -> dict[Value, Bools]:
    """For every value with channels: mask of channels that no reader needs."""
    unread: dict[Value, Bools] = {}

    def needs(reader: Node, value: Value) -> Bools:
        count = _channels(value) or 0
        everything = np.ones(count, dtype=np.bool_)
        if reader.kind in ELEMENTWISE or reader.kind in POOLS:
            found = unread.get(reader.output)
            return everything if found is None or len(reader.outputs) > 1 else ~found
        if reader.kind == "BatchNormalization":
            zeros, found = _zero_gammas(reader, graph), unread.get(reader.output)
            needed = everything if found is None else ~found
            return needed if zeros is None or reader.inputs[0] is not value else needed & ~zeros
        if reader.kind == "Concat" and reader.attrs.get("axis") == 1 and reader.output in unread:
            start = 0
            needed = np.zeros(count, dtype=np.bool_)
            for part in reader.inputs:
                size = _channels(part) or 0
                if part is value:
                    needed |= ~unread[reader.output][start : start + size]
                start += size
            return needed
        if reader.inputs[0] is value and (linear := _linear(reader, graph)) is not None:
            return _columns_read(*linear)
        return everything

    for node in reversed(graph.nodes):
        for value in node.outputs:
            count = _channels(value)
            if count is not None and not graph.is_fixed(value):
                masks = [needs(use.node, value) for use in value.uses]
                unread[value] = ~np.logical_or.reduce(masks) if masks else np.ones(count, dtype=np.bool_)
    return unread


def _revive(node: Node, graph: Graph, unread: dict[Value, Bools]) -> Applied | None:
    """Give zero gammas a neutral value where their channel is unread, or where the layer before can be emptied."""
    zeros, constants, x = _zero_gammas(node, graph), batch_norm_constants(node, graph), node.inputs[0]
    if zeros is None or constants is None or x is None:
        return None
    gamma, beta, mean, var = constants
    nothing = np.zeros(zeros.size, dtype=np.bool_)
    free = zeros & unread.get(node.output, nothing)
    emptied = _empty_rows(x, graph, zeros & ~free & unread.get(x, nothing))
    if not (free | emptied).any():
        return None
    neutral = np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))  # a = 1
    new_gamma = np.where(free | emptied, neutral, gamma)
    new_beta = np.where(free, mean, np.where(emptied, beta + mean, beta))  # c = 0, or c as before
    for slot, array in ((1, new_gamma), (2, new_beta)):
        old = node.inputs[slot]
        assert old is not None
        graph.set_input(node, slot, graph.derived(old, array))
    _disclaim(node.output, free)
    _disclaim(x, emptied)
    return Applied("constant-channels", node.label, f"{int((free | emptied).sum())} channels with gamma zero freed")


def _empty_rows(x: Value, graph: Graph, wanted: Bools) -> Bools:
    """Zero the rows of the layer that makes x; returns the channels for which that was done."""
    node = x.producer
    linear = _linear(node, graph) if node is not None and node.output is x else None
    if node is None or linear is None or not wanted.any():
        return np.zeros_like(wanted)
    weight, _ = linear
    old = node.input(2)
    bias = old.const.float64() if old is not None and old.const is not None else np.zeros(wanted.size)
    if bias.shape != wanted.shape:
        return np.zeros_like(wanted)
    _set_linear(node, graph, np.where(wanted[:, None, None], 0.0, weight), np.where(wanted, -bias, 0.0))
    return wanted


def _disclaim(value: Value, changed: Bools) -> None:
    """Record that `value` no longer holds what it held at the changed channels: NaN stands for "no promise"."""
    if not changed.any():
        return
    shape = (1, -1) + (1,) * (len(value.shape or ()) - 2)
    s = np.where(changed, np.nan, 1.0).reshape(shape)
    before = value.gauges or (Gauge(value.name, np.ones(()), np.zeros(())),)
    value.gauges = tuple(Gauge(gauge.original, gauge.scale * s, gauge.shift) for gauge in before)


def _record_changes(graph: Graph, unread: dict[Value, Bools]) -> None:
    """Carry "no promise" forward through the operations that pass a channel on."""
    lost: dict[Value, Bools] = {}

    def mask(value: Value | None) -> Bools | None:
        if value is None:
            return None
        own = [np.isnan(gauge.scale).ravel() for gauge in value.gauges if np.isnan(gauge.scale).any()]
        return own[0] if own else lost.get(value)

    for node in graph.nodes:
        if node.kind == "Concat" and node.attrs.get("axis") == 1:
            parts = [(mask(v), _channels(v) or 0) for v in node.inputs if v is not None]
            if any(part is not None for part, _ in parts):
                joined = np.concatenate([np.zeros(size, dtype=np.bool_) if part is None else part for part, size in parts])
                lost[node.output] = joined
                _disclaim(node.output, joined)
        elif node.kind in ELEMENTWISE | POOLS and (carried := mask(node.inputs[0])) is not None:
            lost[node.output] = carried
            _disclaim(node.output, carried)
        elif node.kind == "BatchNormalization" and (carried := mask(node.inputs[0])) is not None:
            through = carried & unread.get(node.output, np.zeros_like(carried))
            if through.any() and mask(node.output) is None:
                lost[node.output] = through
                _disclaim(node.output, through)


REWRITE = Rewrite("constant-channels", "Move channels that are constant (gamma zero) into the bias of their readers.", run)
