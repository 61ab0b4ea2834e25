"""Polynomials of one step against the equations of LSTM, GRU and RNN (as ONNX defines them).

    LSTM   c' = f c + i g        h' = o tanh(c')          i, f, o = sigmoid(W x + R h + b), g = tanh(...)
    GRU    h' = (1 - z) n + z h                           z, r = sigmoid(...)
           n = tanh(W x + R (r h) + b)                    linear_before_reset 0
           n = tanh(W x + r (R h + b_r) + b)              linear_before_reset 1
    RNN    h' = f(W x + R h + b)                          f = tanh or relu

The gate order comes out of what each gate is multiplied by.  A GRU with h' = z n + (1 - z) h is one with 1 - z = sigmoid(-...).
Comparisons of coefficients are exact: 1 is 1.0, and nothing small is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from normfold.algebra.cells import Atoms, Poly, Terms
from normfold.algebra.ratios import Floats, Ints


class NotStandard(Exception):
    """The step is none of the three cells: a code of `rewrites.refusals` and what was met."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True, eq=False)
class Cell:
    """kind: "LSTM", "GRU", "RNN".  w [gates, H, inputs], r [gates, H, H], wb, rb [gates, H], gates in ONNX's order.

    states: names of h (and c).  before_reset: GRU's linear_before_reset.  activation: of the RNN.
    """

    kind: str
    states: tuple[str, ...]
    w: Floats
    r: Floats
    wb: Floats
    rb: Floats
    before_reset: bool = False
    activation: str = "Tanh"


def match(atoms: Atoms, states: dict[str, Poly]) -> Cell:
    """The cell that maps the atoms of kind "state" to `states` (new state by name of the old).  Raises NotStandard."""
    if len(states) == 1:
        ((name, new),) = states.items()
        return _Reader(atoms, name).single(new)
    if len(states) != 2:
        raise NotStandard("not-a-cell", f"{len(states)} tensors are carried from step to step")
    failures: list[NotStandard] = []
    for h, c in (tuple(states), tuple(states)[::-1]):
        try:
            return _Reader(atoms, h, c).lstm(states[h], states[c])
        except NotStandard as failure:
            failures.append(failure)
    raise min(failures, key=lambda failure: failure.code == "not-a-cell")


class _Reader:
    """Reads the equations of one hidden state `h` (and cell state `c`)."""

    def __init__(self, atoms: Atoms, h: str, c: str = "") -> None:
        self.atoms = atoms
        self.names = (h, c) if c else (h,)
        by_name = {(item.kind, item.name): place for place, item in enumerate(atoms.blocks) if item.name}
        self.h = by_name["state", h]
        self.c = by_name["state", c] if c else -1
        self.inputs = [place for place, item in enumerate(atoms.blocks) if item.kind == "input"]
        self.kinds = np.array([*(item.kind for item in atoms.blocks), ""])  # the last: of no atom

    def _start(self, block: int) -> int:
        return self.atoms.blocks[block].start

    def kind_of(self, ids: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.str_]]:
        return self.kinds[self.atoms.block_of(ids)]

    def rows(self, p: Poly, count: int) -> tuple[Ints, Floats] | None:
        """(ids [n, count, degree], coeff [n, count]) where every channel has exactly `count` terms and nothing else."""
        p = self.spread(p)
        if p.const.any() or p.dense or not np.array_equal(p.terms.rows, np.repeat(np.arange(p.size), count)):
            return None
        return p.terms.ids.reshape(p.size, count, -1), p.terms.coeff.reshape(p.size, count)

    def spread(self, p: Poly) -> Poly:
        """Matrices with one entry a row as terms."""
        if any((np.count_nonzero(matrix, axis=1) > 1).any() for matrix in p.dense.values()):
            return p
        return Poly(p.const, {}, self.atoms.as_terms(p))

    # ---- LSTM --------------------------------------------------------------------------------------------------------

    def lstm(self, h: Poly, c: Poly) -> Cell:
        found = self.rows(c, 2)
        own = self._start(self.c) + np.arange(c.size)
        if found is None or h.size != c.size:
            raise NotStandard(self._why_no_cell_state(c, own))
        ids, coeff = found
        carried = (ids == own[:, None, None]).any(axis=2)  # which of the two terms holds c
        if ids.shape[2] != 2 or not (carried.sum(axis=1) == 1).all() or not (ids >= 0).all():
            raise NotStandard(self._why_no_cell_state(c, own))
        if not (coeff == 1.0).all():
            raise NotStandard("cell-state-affine")
        rows = np.arange(c.size)
        kept, new = ids[rows, carried.argmax(axis=1)], ids[rows, 1 - carried.argmax(axis=1)]
        f = np.where(kept[:, 0] == own, kept[:, 1], kept[:, 0])
        i, g = self._pair(new, "Sigmoid", "Tanh")
        if not (self.kind_of(f) == "Sigmoid").all():
            raise NotStandard("not-a-cell", "the forget gate is no sigmoid")
        out = self.rows(h, 1)
        if out is None or out[0].shape[2] != 2 or not (out[1] == 1.0).all():
            raise NotStandard("not-a-cell", "the output is not o tanh(c)")
        o, squashed = self._pair(out[0][:, 0], "Sigmoid", "Tanh")
        if not self._holds(squashed, c):
            raise NotStandard("cell-state-affine")
        return self._made("LSTM", [i, o, f, g])

    def _why_no_cell_state(self, c: Poly, own: Ints) -> str:
        """f = 1 - i has the terms c, -i c, i g; an affine layer on c gives it another factor or an addition."""
        p = self.spread(c)
        alone = np.isin(p.terms.ids[p.terms.of_degree() == 1], own).any()
        if alone and (p.terms.coeff == -1.0).any():
            return "coupled-gates"
        touches = np.isin(p.terms.ids, own).any()
        return "cell-state-affine" if touches and not alone and not p.dense else "not-a-cell"

    def _pair(self, ids: Ints, first: str, second: str) -> tuple[Ints, Ints]:
        """Two atoms a channel [n, 2]: those of kind `first`, those of kind `second`."""
        kinds = self.kind_of(ids)
        swapped = kinds[:, 0] == second
        if not (np.where(swapped, kinds[:, 1], kinds[:, 0]) == first).all() or not (kinds[:, 1] == second)[~swapped].all():
            names = sorted({str(kind) for kind in kinds.ravel()})
            raise NotStandard("not-a-cell", f"a product of {' and '.join(names)} where {first} times {second} was expected")
        return np.where(swapped, ids[:, 1], ids[:, 0]), np.where(swapped, ids[:, 0], ids[:, 1])

    def _holds(self, ids: Ints, wanted: Poly) -> bool:
        """True when the function atoms `ids` [n] have exactly the channels of `wanted` as arguments."""
        blocks = np.unique(self.atoms.block_of(ids))
        item = self.atoms.blocks[int(blocks[0])]
        if len(blocks) != 1 or item.argument is None:
            return False
        return same(self.spread(item.argument.select(ids - item.start)), self.spread(wanted))

    # ---- GRU and RNN -------------------------------------------------------------------------------------------------

    def single(self, new: Poly) -> Cell:
        found = self.rows(new, 1)
        if found is not None:
            return self._rnn(*found)
        found = self.rows(new, 3)
        if found is None:
            raise NotStandard("not-a-cell", "the new state is neither a gate between the old and a candidate nor an activation")
        ids, coeff = found
        own = self._start(self.h) + np.arange(new.size)
        alone = (ids >= 0).sum(axis=2) == 1
        holds = (ids == own[:, None, None]).any(axis=2)
        first = alone.argmax(axis=1)
        rows = np.arange(new.size)
        old_alone = holds[rows, first]
        good = (alone.sum(axis=1) == 1).all() and ids.shape[2] == 2 and (holds.sum(axis=1) == 1 + old_alone).all()
        if not good or not (old_alone.all() or not old_alone.any()):
            raise NotStandard("not-a-cell", "the new state is no mixture of the old one and a candidate")
        turned = bool(old_alone.all())  # h - z h + z n
        # signs: the lone term +1, lone times gate -1, other times gate +1
        with_gate = [ids[rows, (first + k) % 3] for k in (1, 2)]
        weights = [coeff[rows, (first + k) % 3] for k in (1, 2)]
        lone = ids[rows, first, -1]
        minus = [(pair == lone[:, None]).any(axis=1) for pair in with_gate]
        if not (minus[0] ^ minus[1]).all():
            raise NotStandard("not-a-cell", "the new state is no mixture of the old one and a candidate")
        a = np.where(minus[0][:, None], with_gate[0], with_gate[1])
        b = np.where(minus[0][:, None], with_gate[1], with_gate[0])
        signs = np.where(minus[0], weights[0], weights[1]), np.where(minus[0], weights[1], weights[0])
        z = np.where(a[:, 0] == lone, a[:, 1], a[:, 0])
        other = np.where(b[:, 0] == z, b[:, 1], b[:, 0])
        n = other if turned else lone
        fits = (coeff[rows, first] == 1.0).all() and (signs[0] == -1.0).all() and (signs[1] == 1.0).all()
        right = ((b == z[:, None]).any(axis=1)).all() and (turned or (other == own).all())
        if not fits or not right or not (self.kind_of(z) == "Sigmoid").all() or not (self.kind_of(n) == "Tanh").all():
            raise NotStandard("not-a-cell", "the new state is no mixture z h + (1 - z) tanh(...)")
        return self._gru(z, n, turned)

    def _rnn(self, ids: Ints, coeff: Floats) -> Cell:
        kinds = {str(kind) for kind in self.kind_of(ids).ravel()}
        if ids.shape[2] != 1 or not (coeff == 1.0).all() or kinds not in ({"Tanh"}, {"Relu"}):
            raise NotStandard("not-a-cell", f"the new state is {' and '.join(sorted(kinds))}")
        return self._made("RNN", [ids[:, 0, 0]], activation=kinds.pop())

    def _gru(self, z: Ints, n: Ints, turned: bool) -> Cell:
        candidate = self._arguments(n)
        size = len(n)
        products = [block for block in candidate.dense if self.atoms.blocks[block].kind == "product"]
        gated, rest = self._gated(candidate)
        if products and not len(gated.rows) and len(products) == 1:
            r, scale = self._reset(products[0])
            recurrent, before_reset, bias = candidate.dense[products[0]] * scale, False, np.zeros(size)
            rest = Poly(rest.const, {b: m for b, m in rest.dense.items() if b != products[0]}, rest.terms)
        elif not products and len(gated.rows):
            r, recurrent, bias = self._before_reset(gated, size)
            before_reset = True
        else:
            raise NotStandard("not-a-cell", "the candidate of the gate does not read the old state through one reset gate")
        w, r_h, wb = self._linear(rest)
        if r_h.any():
            raise NotStandard("not-a-cell", "the candidate also reads the old state without the reset gate")
        gates = [self._linear(self._arguments(ids)) for ids in (z, r)]
        sign = -1.0 if turned else 1.0
        ws, rs, wbs = ([sign * gates[0][k], gates[1][k]] for k in range(3))
        rb = np.zeros((3, size))
        rb[2] = bias
        parts = np.stack([*ws, w]), np.stack([*rs, recurrent]), np.stack([*wbs, wb])
        return Cell("GRU", self.names, *parts, rb, before_reset)

    def _gated(self, p: Poly) -> tuple[Terms, Poly]:
        """(terms with a sigmoid, everything else)."""
        with_gate = (self.kind_of(p.terms.ids) == "Sigmoid").any(axis=1)
        gated, rest = (Terms(p.terms.rows[m], p.terms.ids[m], p.terms.coeff[m]) for m in (with_gate, ~with_gate))
        return gated, Poly(p.const, p.dense, rest)

    def _reset(self, product: int) -> tuple[Ints, Floats]:
        """(reset gate [H], factor [H]) of the channels r h that the recurrent weight reads."""
        argument = self.atoms.blocks[product].argument
        found = None if argument is None else self.rows(argument, 1)
        own = self._start(self.h) + np.arange(self.atoms.blocks[self.h].size)
        if found is None or found[0].shape[2] != 2 or len(found[0]) != len(own):
            raise NotStandard("not-a-cell", "the candidate reads something else than r h")
        ids, coeff = found[0][:, 0], found[1][:, 0]
        r = np.where(ids[:, 0] == own, ids[:, 1], ids[:, 0])
        if not ((ids == own[:, None]).any(axis=1)).all() or not (self.kind_of(r) == "Sigmoid").all():
            raise NotStandard("not-a-cell", "the candidate reads something else than r h")
        return r, coeff

    def _before_reset(self, gated: Terms, size: int) -> tuple[Ints, Floats, Floats]:
        """(reset gate [H], R [H, H], b_r [H]) of r (R h + b_r)."""
        sigmoid = self.kind_of(gated.ids) == "Sigmoid"
        if not (sigmoid.sum(axis=1) == 1).all() or gated.ids.shape[1] > 2:
            raise NotStandard("not-a-cell", "the candidate reads products of gates")
        gate = gated.ids[sigmoid]
        r = np.full(size, -1, np.int64)
        r[gated.rows] = gate
        if (r < 0).any() or not (r[gated.rows] == gate).all():
            raise NotStandard("not-a-cell", "the candidate reads more than one reset gate")
        recurrent, bias = np.zeros((size, self.atoms.blocks[self.h].size)), np.zeros(size)
        for row, ids, is_gate, coeff in zip(gated.rows, gated.ids, sigmoid, gated.coeff, strict=True):
            left = [int(item) for item in ids[~is_gate] if item >= 0]
            if not left:
                bias[row] += coeff
                continue
            item = self.atoms.blocks[int(self.atoms.block_of(np.array(left))[0])]
            place = left[0] - item.start
            if item.kind == "state" and item.name == self.names[0]:
                recurrent[row, place] += coeff
            elif item.kind == "linear" and item.argument is not None and set(item.argument.dense) == {self.h}:
                recurrent[row] += coeff * item.argument.dense[self.h][place]
            else:
                raise NotStandard("not-a-cell", f"the reset gate acts on {item.kind} {item.name}".rstrip())
        return r, recurrent, bias

    # ---- gates -------------------------------------------------------------------------------------------------------

    def _arguments(self, ids: Ints) -> Poly:
        """The arguments of function atoms [n], as one polynomial of n channels."""
        blocks = self.atoms.block_of(ids)
        result: Poly | None = None
        for block in np.unique(blocks):
            item = self.atoms.blocks[int(block)]
            assert item.argument is not None
            mine = blocks == block
            part = item.argument.select(np.where(mine, ids - item.start, 0)).affine(mine.astype(np.float64), np.zeros(len(ids)))
            result = part if result is None else result.plus(part)
        assert result is not None
        return result

    def _linear(self, p: Poly) -> tuple[Floats, Floats, Floats]:
        """(W [n, inputs], R [n, H], b [n]) of W x + R h + b.  Raises NotStandard."""
        sizes = {block: self.atoms.blocks[block].size for block in (*self.inputs, self.h)}
        found = {block: p.dense[block].copy() if block in p.dense else np.zeros((p.size, size)) for block, size in sizes.items()}
        blocks = self.atoms.block_of(p.terms.ids[:, -1])
        strange = {int(block) for block in (*p.dense, *blocks) if int(block) not in found}
        if self.c in strange or (self.c >= 0 and (self.atoms.block_of(p.terms.ids) == self.c).any()):
            raise NotStandard("peephole")
        if strange or (p.terms.of_degree() > 1).any():
            kinds = sorted({self.atoms.blocks[block].kind for block in strange}) or ["product"]
            raise NotStandard("not-a-cell", f"a gate reads {' and '.join(kinds)}")
        for block, matrix in found.items():
            mine = blocks == block
            np.add.at(matrix, (p.terms.rows[mine], p.terms.ids[mine, -1] - self._start(block)), p.terms.coeff[mine])
        return np.concatenate([found[block] for block in self.inputs], axis=1), found[self.h], p.const

    def _made(self, kind: str, gates: list[Ints], activation: str = "Tanh") -> Cell:
        parts = [self._linear(self._arguments(ids)) for ids in gates]
        w, r, wb = (np.stack([part[k] for part in parts]) for k in range(3))
        return Cell(kind, self.names, w, r, wb, np.zeros_like(wb), activation=activation)


def same(p: Poly, q: Poly) -> bool:
    """True when two polynomials are equal, coefficient by coefficient."""
    return (
        np.array_equal(p.const, q.const)
        and p.dense.keys() == q.dense.keys()
        and all(np.array_equal(p.dense[block], q.dense[block]) for block in p.dense)
        and np.array_equal(p.terms.rows, q.terms.rows)
        and np.array_equal(p.terms.ids, q.terms.ids)
        and np.array_equal(p.terms.coeff, q.terms.coeff)
    )
