"""constant-channels: channels that hold one number whatever the input are moved into the bias of their readers.

    x -> BatchNorm (gamma[i] = 0) -> Tanh -> Flatten -> Gemm W, b
    becomes the same with gamma[i] != 0 again, W[:, j] = 0, b += sum_j W[:, j] tanh(c_i)     (j: where channel i came to lie)

A batch norm whose gamma is zero at channel i puts out the constant c_i = beta_i there.  In the terms of the affine algebra, the
channel is stored as x' = s x - s c with s without bound: a linear layer (convolution, matrix product, the input side of LSTM, GRU
and RNN) takes the shift into its bias and divides by s, so that it stops reading the channel.  It gets there through everything
that moves elements or averages them, and through elementwise operations, which make another constant of it.  Once nobody
reads the channel any more, gamma is free and becomes neutral (a = 1, c = 0): the affine solver is not stopped by a zero.

Where a shift does not pass (zero padding, a product without bias) only a constant of zero can go.  What the freed channel holds
from then on is multiplied by zero, so no operation may stand on the way that could make infinity of it (Exp, Div).
Only exact constants count, never small ones.  Nothing is removed here: no channel count changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from normfold.algebra import absorb
from normfold.algebra.labels import varying
from normfold.algebra.ratios import Bools, Floats, Ints
from normfold.graph import Array, Gauge, Graph, Node
from normfold.ops import evaluate, layout, layout_torch, linear, op_rules, pooling, recurrent, tables
from normfold.ops.affine import batch_norm_constants
from normfold.ops.regauge import Regauge
from normfold.ops.wiring import Inserts, Wiring, is_foldable, spread
from normfold.record import Applied
from normfold.rewrites.choices import Question
from normfold.rewrites.rewrite import Policy, Rewrite, Rewritten
from normfold.rewrites.settling import promises_of, settle_names

_TAME = frozenset(  # finite, and of about the size of their input
    """Relu LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Softplus Elu Selu Gelu Mish Abs Neg Clip Add Sub Mul Div""".split()
)
_MOVING = frozenset(rule.kind for family in (layout, layout_torch, pooling, tables) for rule in family.RULES) - {"ReduceSum"}
_READERS = frozenset(rule.kind for family in (linear, recurrent) for rule in family.RULES)


def run(graph: Graph, policy: Policy) -> Rewritten:
    """Free the zero gammas that can be freed; `graph` itself is not changed."""
    if not any(_has_zeros(node, graph) for node in graph.nodes):
        return Rewritten(graph)
    for bias in (policy.answer(Question("bias-add")) != "no", False):
        twin = graph.clone()
        constants = _Constants(twin, policy.keep, Inserts(bias=bias))
        freed = constants.free()
        if not freed:
            continue
        inserted = constants.take_in()
        if inserted and not _pays(freed, inserted, policy):
            continue
        applied: list[Applied] = []
        for node, mask in freed.items():
            _revive(node, mask, twin)
            applied.append(Applied("constant-channels", node.label, f"{int(mask.sum())} channels with gamma zero freed"))
        return Rewritten(twin.validate(), applied, inserted={"bias Add": len(inserted)} if inserted else {})
    return Rewritten(graph)


def _has_zeros(node: Node, graph: Graph) -> bool:
    constants = batch_norm_constants(node, graph) if node.kind == "BatchNormalization" else None
    return constants is not None and not constants[0].all()


def _pays(freed: dict[Node, Bools], inserted: list[Node], policy: Policy) -> bool:
    """True where the additions put in are asked for, or the norms that can go because of them are larger."""
    elements = [_elements(node) for node in inserted]
    saves = sum(_elements(node) for node in freed) - sum(elements)
    answer = policy.answer(Question("bias-add", inserted[0].output.name, sum(elements), saves))
    return answer == "yes" or (answer != "no" and saves > 0)


def _elements(node: Node) -> int:
    return int(np.prod([dim for dim in node.output.shape or () if isinstance(dim, int)], dtype=np.int64))


class _Constants:
    """Every tensor labelled as in the affine step, with the constant that each label stands for (NaN: not one constant)."""

    def __init__(self, graph: Graph, keep: Callable[[str], bool], inserts: Inserts) -> None:
        self.graph = graph
        self._keep = keep
        self._known = np.full(1, np.nan)
        self._origins: list[tuple[Node, Ints, Bools]] = []  # labels of a norm's output, flat; where gamma is zero
        self._made_of: list[tuple[Ints, Ints]] = []  # pairs: who reads the first label in order to make the second
        rules = {kind: rule.wire for kind, rule in op_rules().items() if kind in _MOVING | _READERS}
        rules |= dict.fromkeys(_TAME, self._wire_elementwise)
        self.wiring = Wiring(graph, rules | {"BatchNormalization": self._wire_norm}, inserts)
        self.system = self.wiring.system
        self.system.build()
        self._roots, _ = self.system.magnitude.find(np.arange(self.system.scale_count))
        self._constant_of(np.arange(self.system.scale_count))
        self._taken = np.zeros(self.system.scale_count, dtype=np.bool_)

    # ---- labels -----------------------------------------------------------------------------------------------------

    def _constant_of(self, labels: Ints) -> Floats:
        """The constants of `labels`, as far as the walk has come."""
        count = int(labels.max(initial=0)) + 1
        if len(self._known) < count:
            self._known = np.concatenate([self._known, np.full(2 * count - len(self._known), np.nan)])
        return self._known[labels]

    def _set(self, labels: Ints, constants: Floats) -> None:
        self._constant_of(labels)
        self._known[labels] = np.where(np.isfinite(constants), constants, np.nan)

    def _wire_norm(self, node: Node, w: Wiring) -> None:
        """A new constant where gamma is zero, or where x is constant; x is needed where gamma is not zero."""
        x, y, constants = node.inputs[0], node.output, batch_norm_constants(node, w.graph)
        if x is None or x.const is not None or constants is None or (x.rank or 0) < 2 or not w.set_fresh(y, {1}):
            return w.pin_node(node)
        a, c = absorb.batch_norm(*constants, float(node.attrs.get("epsilon", 1e-5)))
        labels, made = np.swapaxes(w.of(x).scale, 0, 1), w.of(y).scale.ravel()
        labels = np.broadcast_to(labels.reshape(labels.shape[0], -1), (a.size, labels.size // labels.shape[0]))
        held = self._constant_of(labels)
        one = np.where((held == held[:, :1]).all(axis=1), held[:, 0], np.nan)
        self._set(made, np.where(a == 0, c, a * one + c))
        read = np.broadcast_to((a != 0)[:, None], labels.shape)
        self._made_of.append((labels[read], np.broadcast_to(made[:, None], labels.shape)[read]))
        if not a.all() and not self._keep(node.label):
            self._origins.append((node, made, a == 0))
        return None

    def _wire_elementwise(self, node: Node, w: Wiring) -> None:
        """One computed input among constants; every element has a label of its own, made of that of the input."""
        y, given = node.output, [value for value in node.inputs if value is not None and value.const is None]
        others = [value for value in node.inputs if value is not None and value.const is not None]
        fixed = not all(is_foldable(value, w.graph) for value in others)
        if (
            len(given) != 1
            or len(node.outputs) != 1
            or fixed
            or y.rank is None
            or (node.kind == "Div" and node.inputs[1] in given)
        ):
            return w.pin_node(node)
        labels = w.of(given[0]).scale
        held = self._constant_of(labels)
        arrays: list[Array | None] = [
            held if v is given[0] else v.const.float64() if v is not None and v.const is not None else None for v in node.inputs
        ]
        with np.errstate(all="ignore"):
            made = np.asarray(evaluate(node, arrays)[0]) if np.isfinite(held).any() else np.full((), np.nan)
        shape = np.broadcast_shapes(*(array.shape for array in arrays if array is not None), made.shape)
        made, labels = np.broadcast_to(spread(made, y.rank), shape), np.broadcast_to(spread(labels, y.rank), shape)
        if len(shape) != y.rank or not w.set_fresh(y, varying(labels)):
            return w.pin_node(node)
        self._set(w.of(y).scale, made)
        self._made_of.append((labels.ravel(), w.of(y).scale.ravel()))
        return None

    # ---- what can go ------------------------------------------------------------------------------------------------

    def free(self) -> dict[Node, Bools]:
        """For every norm the mask [C] of zero gammas whose constant all readers can take in (norms without any left out)."""
        able = self._takeable()
        freed: dict[Node, Bools] = {}
        for node, made, zero in self._origins:
            mask = zero & able[made]
            if mask.any():
                freed[node] = mask
                self._taken[made[mask]] = True
        while True:  # and what is made of it
            before = int(self._taken.sum())
            self._taken = self._taken | np.isin(self._roots, self._roots[self._taken])
            for source, made in self._made_of:
                self._taken[made[self._taken[source]]] = True
            if int(self._taken.sum()) == before:
                return freed

    def _takeable(self) -> Bools:
        """Mask over labels: one constant in the whole class, that may be shifted away, and so with all that is made of it."""
        roots, known, count = self._roots, self._known[: self.system.scale_count], self.system.scale_count
        low, high = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(
            low, roots, np.where(np.isnan(known), -np.inf, known)
        )  # the pinned class, and what meets a tensor that varies
        np.maximum.at(high, roots, np.where(np.isnan(known), np.inf, known))
        bad = low != high
        still = np.zeros(self.system.shift_count, dtype=np.bool_)  # shifts that must be zero
        for demand in self.system.shift_zeros:
            still[demand.labels] = True
        still[0] = True
        for scale, shift in self._pairs():
            bad[roots[scale[still[shift] & (known[scale] != 0.0)]]] = True
        while True:
            before = int(bad.sum())
            for source, made in reversed(self._made_of):
                bad[roots[source[bad[roots[made]]]]] = True
            if int(bad.sum()) == before:
                return ~bad[roots]

    def _pairs(self) -> list[tuple[Ints, Ints]]:
        """Which shift label goes with which scale label, over all tensors; flat."""
        found: list[tuple[Ints, Ints]] = []
        for value in self.graph.values():
            if value.rank is not None and not self.wiring.of(value).pinned:
                scale, shift = np.broadcast_arrays(*self.wiring.of(value))
                found.append((scale.ravel(), shift.ravel()))
        return found

    # ---- edits ------------------------------------------------------------------------------------------------------

    def take_in(self) -> list[Node]:
        """Let the readers take the constants into their biases and stop reading the channels; the Adds that this put in."""
        shifts = np.zeros(self.system.shift_count)
        for scale, shift in self._pairs():
            chosen = self._taken[scale]
            shifts[shift[chosen]] = -self._known[scale[chosen]]
        ones = np.ones(self.system.scale_count)
        before = set(self.graph.nodes)
        shifted = Regauge(self.wiring, ones, shifts)
        self._absorb(shifted)
        self._absorb(Regauge(self.wiring, np.where(self._taken, np.inf, ones), np.zeros_like(shifts)))
        masks = {value: self._taken[self.wiring.of(value).scale] for value in self.graph.values() if value.rank is not None}
        products = {value: promises_of(value, Regauge(self.wiring, ones, np.zeros_like(shifts))) for value in shifted.moved}
        settle_names(self.graph, products, {}, shifted)
        for value, lost in masks.items():
            if lost.any():  # NaN stands for "no promise"
                gauges = value.gauges or (Gauge(value.name, np.ones(()), np.zeros(())),)
                value.gauges = tuple(Gauge(g.original, g.scale * np.where(lost, np.nan, 1.0), g.shift) for g in gauges)
        return [node for node in self.graph.nodes if node not in before]

    def _absorb(self, regauge: Regauge) -> None:
        for node in list(self.graph.nodes):
            rule = op_rules().get(node.kind)
            if node.kind in _READERS and rule is not None and rule.absorb is not None and regauge.touches(node):
                rule.absorb(node, regauge)


def _revive(node: Node, free: Bools, graph: Graph) -> None:
    """a = 1 and c = 0 at channels that nobody reads."""
    constants = batch_norm_constants(node, graph)
    assert constants is not None
    gamma, beta, mean, var = constants
    neutral = np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
    for slot, array in ((1, np.where(free, neutral, gamma)), (2, np.where(free, mean, beta))):
        old = node.inputs[slot]
        assert old is not None
        graph.set_input(node, slot, graph.derived(old, array))


REWRITE = Rewrite("constant-channels", "Move channels that are constant (gamma zero) into the bias of their readers.", run)
