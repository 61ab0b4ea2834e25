"""What a swap costs is counted decision by decision, on whatever is known: labels, class scores, or numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normfold.errors import CannotTell, UsageError
from normfold.swap.data import Data, Held
from normfold.swap.measure import drift, metric, outputs
from swapping import conv_net, images


def scores(*classes: int, count: int = 4) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).double()


def held(labels: Tensor | None = None, count: int = 4) -> Held:
    return Held(Data([((torch.zeros(count, 1),), {})]), labels, "here")


def test_accuracy_counts_what_became_wrong_and_right() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    found = metric([scores(0, 1, 2, 0)], [scores(0, 0, 0, 3)], held(labels))
    assert (found.measure, found.before, found.after, found.lost) == ("accuracy", 75.0, 50.0, 25.0)
    assert (found.broken, found.fixed, found.samples, found.held_out) == (2, 1, 4, "here")
    assert found.margin == pytest.approx(196 * math.sqrt(2 + 1 + 1 - 1 / 6) / 6)  # Agresti & Min 2005


def test_a_gain_is_a_negative_loss() -> None:
    found = metric([scores(1, 1)], [scores(0, 1)], held(torch.tensor([0, 1])))
    assert (found.lost, found.fixed) == (-50.0, 1)


def test_labels_of_positions_are_compared_at_positions() -> None:
    one = torch.stack([scores(0, 1, 2), scores(3, 3, 3)]).movedim(-1, 1)  # [2, classes, 3]
    found = metric([one], [one], held(torch.tensor([[0, 1, 0], [3, 3, 3]])))
    assert (found.samples, found.before) == (6, pytest.approx(500 / 6))


def test_without_labels_decisions_are_compared_with_the_originals() -> None:
    found = metric([scores(0, 1, 2, 3)], [scores(0, 1, 2, 0)], held())
    assert (found.measure, found.before, found.after, found.lost, found.broken) == ("agreement", 100.0, 75.0, 25.0, 1)


def test_numbers_are_compared_by_their_drift() -> None:
    one = torch.tensor([0.0, 2.0, 0.0, 2.0], dtype=torch.float64)
    found = metric([one], [one + 0.5], held())
    assert (found.measure, found.lost, found.margin) == ("drift", 50.0, None)


def test_a_result_that_is_no_number_is_no_decision() -> None:
    spoilt = scores(0, 1, 2, 3)
    spoilt[0, 0] = math.nan  # argmax would call it the largest
    assert metric([scores(0, 1, 2, 3)], [spoilt], held()).broken == 1
    assert metric([scores(0, 1, 2, 3)], [spoilt], held(torch.arange(4))).lost == 25.0
    assert math.isnan(metric([torch.tensor([0.0, 1.0])], [torch.tensor([math.nan, 1.0])], held()).lost)


@pytest.mark.parametrize("labels, reason", [([0, 1], r"labels have the shape \[2\]"), ([0, 1, 2, 4], "labels reach from 0 to 4")])
def test_labels_that_do_not_fit(labels: list[int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        metric([scores(0, 1, 2, 3)], [scores(0, 1, 2, 3)], held(torch.tensor(labels)))


def test_drift_is_a_part_of_the_standard_deviation_of_the_worst_output() -> None:
    one, two = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 20.0])
    assert drift([one, two], [one, two + 1]) == pytest.approx(0.1)
    assert drift([one, two], [one + 0.5, two + 1]) == pytest.approx(0.5)
    assert drift([torch.zeros(2)], [torch.zeros(2)]) == 0.0
    assert drift([torch.zeros(2)], [torch.ones(2)]) == math.inf
    with pytest.raises(CannotTell, match=r"an output has the shape \[2\] before and \[3\] after"):
        drift([one], [torch.zeros(3)])


def test_outputs_do_not_depend_on_how_they_are_batched() -> None:
    module, x = conv_net(), images(7)
    whole = outputs(module, Data([((x,), {})]))
    apart = outputs(module, Data([((part,), {}) for part in x.split(3)]))
    assert len(whole) == 1 and whole[0].shape == (7, 3)
    torch.testing.assert_close(whole[0], apart[0])
    with pytest.raises(CannotTell, match="no tensor of real numbers"):
        outputs(torch.nn.Flatten(), Data([((torch.zeros(2, 3, dtype=torch.long),), {})]))
