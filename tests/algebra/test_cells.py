"""Polynomials of a step say what it computes, and the equations of the three cells are found in them and in nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from normfold.algebra.cell_match import Cell, NotStandard, match, same
from normfold.algebra.cells import Atoms, Poly, concat
from normfold.algebra.ratios import Floats

N, INPUTS = 3, 4
FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "Tanh": np.tanh,
    "Relu": lambda v: np.maximum(v, 0),
}


class Numbers:
    """Values of polynomials, when the unknowns have values."""

    def __init__(self, atoms: Atoms, given: dict[str, Floats]) -> None:
        self.atoms, self.given = atoms, given

    def block(self, place: int) -> Floats:
        item = self.atoms.blocks[place]
        if item.kind in ("input", "state"):
            return self.given[item.name]
        assert item.argument is not None
        value = self.of(item.argument)
        return FUNCTIONS[item.kind](value) if item.kind in FUNCTIONS else value

    def of(self, p: Poly) -> Floats:
        value = p.const.copy()
        for block, matrix in p.dense.items():
            value += matrix @ self.block(block)
        for row, ids, coeff in zip(p.terms.rows, p.terms.ids, p.terms.coeff, strict=True):
            product = coeff
            for atom in ids[ids >= 0]:
                place = int(self.atoms.block_of(np.array([atom]))[0])
                product *= self.block(place)[atom - self.atoms.blocks[place].start]
            value[row] += product
        return value


class Bench:
    """x, h, c with values, and arithmetic on polynomials that is done on numbers beside."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.atoms = np.random.default_rng(seed), Atoms()
        self.x = self.atoms.unknown("input", "x", INPUTS)
        self.h, self.c = self.atoms.unknown("state", "h", N), self.atoms.unknown("state", "c", N)
        self.given = {name: self.rng.standard_normal(size) for name, size in (("x", INPUTS), ("h", N), ("c", N))}

    def numbers(self, p: Poly) -> Floats:
        return Numbers(self.atoms, self.given).of(p)

    def layer(self, p: Poly, size: int) -> Poly:
        weight, bias = self.rng.standard_normal((p.size, size)), self.rng.standard_normal(size)
        return self.atoms.linear(p, weight).affine(self.rng.uniform(0.5, 2, size), bias)

    def gates(self, count: int) -> list[Poly]:
        both = self.layer(self.x, count * N).plus(self.layer(self.h, count * N))
        return [both.select(np.arange(place * N, place * N + N)) for place in range(count)]

    def sigmoid(self, p: Poly) -> Poly:
        return self.atoms.apply("Sigmoid", p)

    def tanh(self, p: Poly) -> Poly:
        return self.atoms.apply("Tanh", p)

    def times(self, p: Poly, q: Poly) -> Poly:
        return self.atoms.times(p, q)


def turned(p: Poly) -> Poly:
    """1 - p."""
    return p.affine(-np.ones(p.size), np.ones(p.size))


def close(a: Floats, b: Floats) -> bool:
    return bool(np.allclose(a, b, rtol=1e-12, atol=1e-12))


def test_arithmetic_says_what_numbers_say() -> None:
    b = Bench()
    p, q = b.layer(b.x, N).plus(b.h), b.sigmoid(b.layer(b.h, N)).affine(np.array([2.0, -1, 3]), np.array([1.0, 0, -1]))
    a, d = b.numbers(p), b.numbers(q)
    assert close(b.numbers(b.times(p, q)), a * d)
    assert close(b.numbers(b.times(q, b.times(q, q))), d**3)
    assert close(b.numbers(p.plus(q)), a + d)
    assert close(b.numbers(concat([q, p, q])), np.concatenate([d, a, d]))
    rows = np.array([2, 0, 0, 1])
    assert close(b.numbers(b.times(p, q).select(rows)), (a * d)[rows])
    weight = b.rng.standard_normal((N, 5))
    mixed = b.times(q, b.h).plus(q).plus(p)
    assert close(b.numbers(b.atoms.linear(mixed, weight)), (d * b.given["h"] + d + a) @ weight)
    assert close(b.numbers(b.atoms.linear(b.h.select(np.array([1, 1, 0])), weight)), b.given["h"][[1, 1, 0]] @ weight)


def test_spellings_vanish() -> None:
    b = Bench()
    z, n = (b.sigmoid(b.layer(b.x, N)), b.tanh(b.layer(b.x, N)))
    one = b.times(turned(z), n).plus(b.times(z, b.h))
    two = n.plus(b.times(b.h.plus(n.affine(-np.ones(N), np.zeros(N))), z))
    assert same(one, two)
    assert not same(one, two.affine(np.ones(N), np.full(N, 1e-9)))
    assert b.times(z, n).plus(b.times(n, z.affine(-np.ones(N), np.zeros(N)))).is_const


def stepped(cell: Cell, x: Floats, h: Floats, c: Floats) -> tuple[Floats, ...]:
    """One step by the equations of ONNX."""
    sig, pre, rec = FUNCTIONS["Sigmoid"], cell.w @ x + cell.wb, cell.r @ h + cell.rb
    if cell.kind == "LSTM":
        i, o, f, g = pre + rec
        c = sig(f) * c + sig(i) * np.tanh(g)
        return sig(o) * np.tanh(c), c
    if cell.kind == "RNN":
        return (FUNCTIONS[cell.activation](pre[0] + rec[0]),)
    z, r = sig(pre[0] + rec[0]), sig(pre[1] + rec[1])
    inner = r * rec[2] if cell.before_reset else cell.r[2] @ (r * h) + cell.rb[2]
    return ((1 - z) * np.tanh(pre[2] + inner) + z * h,)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_lstm(order: tuple[int, ...]) -> None:
    b = Bench(sum(order))
    gates = b.gates(4)
    i, f, g, o = (gates[place] for place in order)
    c = b.times(b.tanh(g), b.sigmoid(i)).plus(b.times(b.c, b.sigmoid(f)))
    h = b.times(b.tanh(c), b.sigmoid(o))
    cell = match(b.atoms, {"c": c, "h": h})
    assert cell.kind == "LSTM" and cell.states == ("h", "c")
    for one, two in zip(stepped(cell, *b.given.values()), (b.numbers(h), b.numbers(c)), strict=True):
        assert close(one, two)


@pytest.mark.parametrize("before_reset", [True, False])
@pytest.mark.parametrize("other_way", [True, False])
def test_gru(before_reset: bool, other_way: bool) -> None:
    b = Bench(5)
    z, r = (b.sigmoid(gate) for gate in b.gates(2))
    own = b.layer(b.x, N)
    inner = b.times(r, b.layer(b.h, N)) if before_reset else b.layer(b.times(r, b.h), N)
    n = b.tanh(own.plus(inner.affine(np.array([1.0, -2, 0.5]), np.ones(N))))
    h = b.times(turned(z), b.h).plus(b.times(z, n)) if other_way else b.times(turned(z), n).plus(b.times(z, b.h))
    cell = match(b.atoms, {"h": h})
    assert cell.kind == "GRU" and cell.before_reset == before_reset
    assert close(stepped(cell, *b.given.values())[0], b.numbers(h))


@pytest.mark.parametrize("activation", ["Tanh", "Relu"])
def test_rnn(activation: str) -> None:
    b = Bench(6)
    h = b.atoms.apply(activation, b.gates(1)[0])
    cell = match(b.atoms, {"h": h})
    assert cell.kind == "RNN" and cell.activation == activation
    assert close(stepped(cell, *b.given.values())[0], b.numbers(h))


def _lstm(b: Bench, **changed: Callable[[Poly], Poly]) -> tuple[Poly, Poly]:
    """(h, c) of an LSTM with something done to one of its parts."""
    parts = {"kept": b.c, "squashed": None, "h": None, "c": None, **changed}

    def done(name: str, p: Poly) -> Poly:
        change = parts.get(name)
        return change(p) if callable(change) else p

    i, f, g, o = b.gates(4)
    f = done("forget", f)
    c = done("c", b.times(b.sigmoid(f), done("carried", b.c)).plus(b.times(b.sigmoid(i), b.tanh(done("new", g)))))
    return done("h", b.times(b.sigmoid(o), b.tanh(done("read", c)))), c


SCALE = np.array([1.0, 1.0, 1.0 + 1e-12])
WRONG: dict[str, tuple[str, str, Callable[[Bench], Callable[[Poly], Poly]]]] = {
    "c scaled by next to nothing": ("carried", "cell-state-affine", lambda b: lambda p: p.affine(SCALE, np.zeros(N))),
    "c shifted on its way to h": ("read", "cell-state-affine", lambda b: lambda p: p.affine(np.ones(N), np.full(N, 1e-12))),
    "peephole": ("forget", "peephole", lambda b: lambda p: p.plus(b.c.affine(np.full(N, 0.1), np.zeros(N)))),
    "h shifted": ("h", "not-a-cell", lambda b: lambda p: p.affine(np.ones(N), np.full(N, 0.1))),
    "h scaled": ("h", "not-a-cell", lambda b: lambda p: p.affine(SCALE, np.zeros(N))),
    "residual": ("h", "not-a-cell", lambda b: lambda p: p.plus(b.h)),
    "channels of c permuted": ("carried", "cell-state-affine", lambda b: lambda p: p.select(np.array([1, 0, 2]))),
    "channels permuted on the way to h": ("read", "cell-state-affine", lambda b: lambda p: p.select(np.array([1, 0, 2]))),
    "a gate reads a gate": ("new", "not-a-cell", lambda b: lambda p: p.plus(b.sigmoid(b.h))),
    "a product of states": ("new", "not-a-cell", lambda b: lambda p: p.plus(b.times(b.h, b.h))),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_lstm(name: str) -> None:
    part, code, change = WRONG[name]
    b = Bench(7)
    h, c = _lstm(b, **{part: change(b)})
    with pytest.raises(NotStandard) as caught:
        match(b.atoms, {"h": h, "c": c})
    assert caught.value.code == code


def test_no_gru() -> None:
    for change in ("plus", "twice", "gates", "no reset", "reset shifted"):
        b = Bench(8)
        z, r, other = (b.sigmoid(gate) for gate in b.gates(3))
        inner = b.times(r, b.layer(b.h, N))
        if change == "no reset":
            inner = b.layer(b.h, N)
        elif change == "gates":
            inner = inner.plus(b.times(other, b.layer(b.h, N)))
        elif change == "reset shifted":
            inner = b.layer(b.times(r, b.h.affine(np.ones(N), np.ones(N))), N)
        elif change == "plus":
            inner = inner.plus(b.layer(b.h, N))
        n = b.tanh(b.layer(b.x, N).plus(inner))
        h = b.times(turned(z), n).plus(b.times(other if change == "twice" else z, b.h))
        with pytest.raises(NotStandard):
            match(b.atoms, {"h": h})
