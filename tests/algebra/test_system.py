"""What a system of demands becomes in the solvers, and who is named as having demanded it."""

from __future__ import annotations

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, judged
from normfold.algebra import offsets
from normfold.algebra.solve import Wish, solve
from normfold.algebra.system import System


def layer(system: System, x: np.ndarray, x_scale: np.ndarray, a: float, c: float) -> Wish:
    """A wish for y = a x + c in front of a pinned end."""
    nothing = np.zeros_like(x)
    return Wish(x_scale, nothing, np.full(x.shape, a), x, nothing, np.full(x.shape, c))


def test_a_sum_of_sixty_tensors_is_demanded_like_any_other() -> None:
    """Nothing about a wide sum may get lost: neither the sum itself nor what is demanded after it."""
    system = System()
    parts = [system.new_shifts((3,)) for _ in range(60)]
    total, other = system.new_shifts((3,)), system.new_shifts((3,))
    system.sum_shifts(total, [(1.0, part) for part in parts])
    system.sum_shifts(other, [(1.0, parts[0])])
    scale = system.new_scales((3,))
    system.zero_shift(total, "activation", "relu")
    solution = solve(system, [layer(system, parts[0], scale, 2.0, 5.0), layer(system, other, scale, 2.0, 5.0)])
    assert [answer.verdict for answer in solution.answers] == ["deleted", "deleted"]
    assert solution.shift[parts[0]].tolist() == [5.0] * 3
    assert sum(solution.shift[part] for part in parts) == pytest.approx(np.zeros(3))
    assert solution.shift[total].tolist() == [0.0] * 3


@pytest.mark.parametrize("width", [256, 8])
def test_a_stream_of_a_hundred_blocks_telescopes(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where equations are taken for too wide: then less goes, and what is demanded still holds."""
    monkeypatch.setattr(offsets, "WIDTH", width)
    system = System()
    scale = system.new_scales((2,))
    streams, branches = [system.new_shifts((2,))], [system.new_shifts((2,)) for _ in range(100)]
    for branch in branches:
        streams.append(system.new_shifts((2,)))
        system.sum_shifts(streams[-1], [(1.0, streams[-2]), (1.0, branch)])
    total = system.new_shifts((2,))  # of sixty tensors that come from everywhere on the stream
    system.sum_shifts(total, [(1.0, stream) for stream in streams[:60]])
    system.zero_shift(total, "activation", "relu")
    wishes = [layer(system, stream, scale, 2.0, float(i % 7 - 3)) for i, stream in enumerate(streams[40:])]
    solution = solve(system, wishes)
    verdicts = [answer.verdict for answer in solution.answers]
    assert verdicts == ["deleted"] * 61 if width == 256 else "deleted" in verdicts
    t = solution.shift
    for before, branch, after in zip(streams[:-1], branches, streams[1:], strict=True):
        assert t[after] == pytest.approx(t[before] + t[branch], abs=1e-9)
    assert sum(t[stream] for stream in streams[:60]) == pytest.approx(np.zeros(2), abs=1e-9)
    for wish, verdict in zip(wishes, verdicts, strict=True):
        assert verdict == "kept" or t[wish.x_shift].tolist() == wish.c.tolist()


def test_what_stays_is_demanded_even_where_equations_are_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that stays and restricts its surroundings does so whatever the width of what they are tied to."""
    monkeypatch.setattr(offsets, "WIDTH", 2)
    system = System()
    a, b, c, total = (system.new_shifts((1,)) for _ in range(4))
    system.sum_shifts(total, [(1.0, a), (1.0, b), (-1.0, c)])
    scale = system.new_scales((1,))
    system.pin_scale(scale, "no-rule", "op")
    stays = layer(system, a, scale, 3.0, 1.0)  # its scale is pinned on both sides
    stays.unless_shift = total
    goes = layer(system, c, scale, 1.0, 4.0)
    solution = solve(system, [stays, goes])
    assert solution.answers[0].verdict == "kept" and solution.shift[total].tolist() == [0.0]
    assert solution.shift[total] == pytest.approx(solution.shift[a] + solution.shift[b] - solution.shift[c])


def test_sixty_branches_and_a_hundred_blocks_of_a_real_graph() -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 2)
    stream = b.op("Sum", *(b.conv(x, 2) for _ in range(60)), shape=(*x.shape[:1], 2, *x.shape[2:]))
    for i in range(100):
        stream = b.add(stream, b.conv(b.relu(b.bn(stream, name=f"bn{i}")), 2))
    b.output(b.op("Sigmoid", b.bn(stream, name="last"), shape=stream.shape))
    fates = judged(b.graph)
    assert [fate.outcome for fate in fates.values()] == ["deleted"] * 101


# ---- who demands what ------------------------------------------------------------------------------------------------


def test_demands_are_found_through_joins_and_in_their_order() -> None:
    system = System()
    a, b, c = (system.new_scales((2,)) for _ in range(3))
    system.join_scale(a, b)
    system.pin_scale(c, "captured", "far away")
    system.pin_scale(b[:1], "no-rule", "second half free")
    system.demand_positive(a, "relu")
    system.demand_positive(b[1:], "pool")
    assert [demand.subject for demand in system.pins_near(a)] == ["second half free"]
    assert system.pins_near(a[1:]) == [] and [demand.code for demand in system.pins_near(c)] == ["captured"]
    assert [demand.subject for demand in system.positives_near(a[1:])] == ["relu", "pool"]
    system.pin_scale(a, "kept", "a late comer")  # asked once before: the index is made anew
    assert [demand.subject for demand in system.pins_near(b)] == ["second half free", "a late comer"]


def test_zeros_are_named_where_they_were_demanded_and_not_beyond() -> None:
    system = System()
    a, b = system.new_shifts((2,)), system.new_shifts((2,))
    system.sum_shifts(a, [(1.0, b)])
    system.zero_shift(a, "zero-padding", "conv", relaxable=True)
    system.zero_shift(a[:1], "activation", "relu")
    system.zero_shift(np.zeros(2, dtype=np.int64), "graph-output", "pinned")
    assert [demand.subject for demand in system.zeros_at(a)] == ["relu", "conv"]
    assert [demand.subject for demand in system.zeros_at(a[1:])] == ["conv"]
    assert system.zeros_at(b) == [] and system.zeros_at(np.zeros(1, dtype=np.int64)) == []
    system.zero_shift(b, "kept", "norm")
    assert [demand.subject for demand in system.zeros_at(b)] == ["norm"]
