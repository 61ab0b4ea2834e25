"""The order of granting: one wish after the other, and another chance for those that were crowded out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from large import large
from normfold.algebra import solve as module
from normfold.algebra.ratios import Ratios
from normfold.algebra.solve import Answer, Wish, solve
from normfold.algebra.system import System
from normfold.ops import op_rules
from normfold.ops.wiring import Inserts, Wiring

NOTHING = np.zeros(1, dtype=np.int64)


def wish(x: np.ndarray, a: float, c: float, shift: np.ndarray = NOTHING, **more: object) -> Wish:
    """A layer y = a x + c in front of a pinned end."""
    return Wish(x, NOTHING, np.array([a]), shift, NOTHING, np.array([c]), **more)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1.0, 2.0, 3.0])), max_size=25))
def test_runs_grant_what_one_after_the_other_grants(relations: list[tuple[int, int, float]]) -> None:
    def ask(ratios: Ratios, indices: list[int]) -> str | None:
        a, b, ratio = (np.array(column) for column in zip(*(relations[i] for i in indices), strict=True))
        mark = ratios.mark()
        if ratios.join(a, b, ratio) is None:
            return None
        ratios.rollback(mark)
        return f"refused {indices}"

    runs, singly = Ratios(7), Ratios(7)
    refused = module._in_turn(range(len(relations)), lambda part: ask(runs, list(part)))
    expected = {i: reason for i in range(len(relations)) if (reason := ask(singly, [i])) is not None}
    assert refused == expected


def test_few_questions_are_asked_when_few_are_refused() -> None:
    asked: list[int] = []
    bad = {100, 777}

    def grant(part: range) -> str | None:
        asked.append(len(part))
        return "bad" if bad & set(part) else None

    assert module._in_turn(range(1000), grant) == {100: "bad", 777: "bad"}  # type: ignore[arg-type]
    assert len(asked) < 100
    assert module._in_turn([], grant) == {}  # type: ignore[arg-type]


def test_the_mask_of_a_refusal_has_the_shape_of_its_own_wish() -> None:
    system = System()
    scale, shift = system.new_scales((1, 3, 1)), system.new_shifts((1, 3, 1))
    nothing = np.zeros((1, 1, 1), dtype=np.int64)
    first = Wish(scale, nothing, np.full((1, 3, 1), 2.0), shift, nothing, np.zeros((1, 3, 1)))
    other_scale = Wish(scale, nothing, np.array([2.0, 5.0, 2.0]).reshape(1, 3, 1), shift, nothing, np.zeros((1, 3, 1)))
    other_sign = Wish(scale, nothing, np.array([2.0, 2.0, -2.0]).reshape(1, 3, 1), shift, nothing, np.zeros((1, 3, 1)))
    other_shift = Wish(scale, nothing, np.full((1, 3, 1), 2.0), shift, nothing, np.array([0.0, 0.0, 7.0]).reshape(1, 3, 1))
    answers = solve(system, [first, other_scale, other_sign, other_shift]).answers
    assert [(answer.verdict, answer.stage) for answer in answers] == [
        ("deleted", ""),
        ("kept", "magnitude"),
        ("kept", "sign"),
        ("kept", "shift"),
    ]
    masks = [answer.conflict.tolist() for answer in answers[1:] if answer.conflict is not None]
    assert masks == [[[[False], [True], [False]]], [[[False], [False], [True]]], [[[False], [False], [True]]]]


def test_layers_in_a_row_add_up() -> None:
    """x -> (2, 3) -> y -> (5, 7) -> a pinned end: s_y = 5, t_y = 7, s_x = 2 s_y, t_x = 3 s_y + t_y."""
    system = System()
    (s_x, s_y), (t_x, t_y) = ((new((1,)), new((1,))) for new in (system.new_scales, system.new_shifts))
    front = Wish(s_x, s_y, np.array([2.0]), t_x, t_y, np.array([3.0]))
    solution = solve(system, [front, wish(s_y, 5.0, 7.0, t_y)])
    assert [answer.verdict for answer in solution.answers] == ["deleted", "deleted"]
    assert [solution.scale[label].item() for label in (s_x, s_y)] == [10.0, 5.0]
    assert [solution.shift[label].item() for label in (t_x, t_y)] == [22.0, 7.0]


@pytest.mark.parametrize("restricts", [False, True])
def test_a_layer_crowded_out_gets_its_chance_when_the_other_is_given_up(restricts: bool) -> None:
    """The first asks for scale 2 and cannot have its shift; the second, which asks for 3, could go without it."""
    system = System()
    x, t = system.new_scales((1,)), system.new_shifts((1,))
    system.zero_shift(t, "activation", "relu")
    more = {"unless_shift": t} if restricts else {}
    answers = solve(system, [wish(x, 2.0, 1.0, t), wish(x, 3.0, 0.0, t, **more)]).answers
    assert [answer.verdict for answer in answers] == ["kept", "deleted"]


def test_a_layer_crowded_out_gets_its_chance_when_the_guard_refuses_the_other() -> None:
    system = System()
    x, t = system.new_scales((1,)), system.new_shifts((1,))
    wishes = [wish(x, 2.0, 1.0, t), wish(x, 3.0, 0.0, t, unless_shift=system.new_shifts((1,)))]

    def guard(scale: np.ndarray, shift: np.ndarray, answers: list[Answer]) -> list[int]:
        return [0] if answers[0].verdict == "deleted" else []

    solution = solve(system, wishes, guard)
    assert [answer.verdict for answer in solution.answers] == ["kept", "deleted"]
    assert solution.answers[0].stage == "" and solution.scale[x] == 3.0


def test_a_layer_with_a_shift_form_that_the_guard_refuses_keeps_its_scale_out() -> None:
    system = System()
    x, t = system.new_scales((1,)), system.new_shifts((1,))
    solution = solve(
        system, [wish(x, 2.0, 1.0, t, shift_form=True)], lambda _s, t, answers: [0] if answers[0].verdict == "deleted" else []
    )
    assert solution.answers[0].verdict == "shift" and solution.scale[x] == 2.0 and solution.shift[t] == 0.0


def test_zeros_are_relaxed_only_for_more_deletions() -> None:
    for c, relaxed in ((5.0, True), (0.0, False)):
        system = System()
        x, t = system.new_scales((1,)), system.new_shifts((1,))
        system.zero_shift(t, "zero-padding", "conv", relaxable=True)
        solution = solve(system, [wish(x, 2.0, c, t)])
        assert solution.answers[0].verdict == "deleted" and solution.shift[t] == c
        assert (solution.shift[t] != 0.0) == relaxed
    system = System()  # relaxing deletes no more here: a demand stands beside the wish
    x, t = system.new_scales((1,)), system.new_shifts((2,))
    system.zero_shift(t, "zero-padding", "conv", relaxable=True)
    system.zero_shift(t[:1], "activation", "relu")
    solution = solve(system, [wish(x, 2.0, 5.0, t[:1])])
    assert solution.answers[0].verdict == "kept" and not solution.shift.any()
    assert system.shift.add(t[1:, None], np.ones((1, 1)), np.ones(1)) is not None, "the system that is left is the strict one"


def test_a_generated_graph_is_solved_in_few_rounds_whatever_its_size() -> None:
    """The solvers work in rounds over whole arrays, so time goes with the number of nodes as long as rounds do not."""
    rounds: list[tuple[int, ...]] = []
    for nodes in (150, 600, 2400):
        graph = large(nodes)
        wiring = Wiring(graph, {kind: rule.wire for kind, rule in op_rules().items()}, Inserts(shift=True))
        wiring.system.build()
        rounds.append(wiring.system.mark())
        norms = sum(node.kind == "BatchNormalization" for node in graph.nodes)
        answers = solve(wiring.system, [wiring.wish(layer) for layer in wiring.layers]).answers
        behind_concat = sum(node.kind == "Concat" for node in graph.nodes)
        assert [answer.verdict for answer in answers].count("deleted") == norms - behind_concat
    assert max(max(counts) for counts in rounds) <= 8, rounds
