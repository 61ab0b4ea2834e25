"""Samples: how they are cut, ordered, held out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.swap.common import samples
from normfold.swap.data import Data, Order, read_held
from swapping import conv_net, images, live


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def numbered(count: int) -> Data:
    column = torch.arange(count, dtype=torch.float32)[:, None]
    return Data([((column,), {"scale": column * 10, "flag": True})])


def test_one_call_is_cut_along_its_first_axis() -> None:
    data = numbered(10)
    assert (data.samples, data.whole) == (10, False)
    [(args, kwargs)] = data.take([7, 2])
    assert args[0].tolist() == [[7.0], [2.0]] and kwargs["scale"].tolist() == [[70.0], [20.0]] and kwargs["flag"] is True
    assert [len(args[0]) for args, _ in data.batches(4)] == [4, 4, 2]


def test_several_calls_are_batches_as_they_are() -> None:
    calls: list[Any] = [((torch.full((size, 2), float(size)),), {}) for size in (3, 1, 4)]
    data = Data(calls)
    assert (data.samples, data.whole) == (3, True)
    assert [len(args[0]) for args, _ in data.batches(64)] == [3, 1, 4]
    order = Order(data, 64, seed=0)
    assert sorted(len(order.batch(step)[0][0]) for step in range(3)) == [1, 3, 4]


def test_a_network_that_writes_into_its_input_does_not_change_the_data() -> None:
    for data in (numbered(4), Data([((torch.zeros(2, 1),), {}), ((torch.ones(2, 1),), {})])):
        before = data.hashes()
        for args, _ in data.batches(4):
            args[0].add_(1.0)
        assert data.hashes() == before


def test_the_call_that_was_made_for_the_export_is_no_sample() -> None:
    loaded = live(conv_net(), images(1), dynamic=["image=Nx2x6x6"])
    assert [len(args[0]) for args, _ in loaded.calls] == [2, 1]
    assert samples(loaded).samples == 1


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own() -> None:
    order = Order(numbered(10), 4, seed=0)
    epochs = [[int(x) for step in range(3) for x in order.batch(3 * e + step)[0][0]] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = Order(numbered(10), 4, seed=0)
    assert [int(x) for x in again.batch(7)[0][0]] == [int(x) for x in order.batch(7)[0][0]]  # straight into the third epoch
    assert [int(x) for x in Order(numbered(10), 4, seed=1).batch(0)[0][0]] != epochs[0][:4]


def test_every_fifth_sample_is_held_out_where_nothing_else_is() -> None:
    rest, held = numbered(11).apart()
    assert [int(x) for x in held.calls[0][0][0]] == [4, 9]
    assert [int(x) for x in rest.calls[0][0][0]] == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    rest, held = numbered(3).apart()
    assert (rest.samples, held.samples) == (2, 1)
    with pytest.raises(UsageError, match="one sample is not enough"):
        numbered(1).apart()


@pytest.mark.parametrize("shapes", [[(4, 2), (5, 2)], [(4,), ()], []])
def test_inputs_that_disagree_on_the_samples_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(UsageError, match="the samples lie on axis 0 of every input"):
        Data([(tuple(torch.zeros(shape) for shape in shapes), {})])


def test_a_sample_is_known_again_by_its_values() -> None:
    data = numbered(5)
    assert len(set(data.hashes())) == 5
    assert data.kept([3]).hashes() == [data.hashes()[3]]


# ---- held-out samples with labels ----------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, Any]:
    found = {"x": np.ones((6, 2), np.float32), "y": np.zeros((6, 2), np.float32), "labels": np.arange(6, dtype=np.int32)}
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


def test_labels_come_with_the_inputs_from_a_file_or_a_function(tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", **arrays())
    (tmp_path / "held.py").write_text(
        "import numpy as np, torch\n"
        "def both():\n    return {'x': torch.ones(6, 2), 'y': np.zeros((6, 2), np.float32), 'labels': torch.arange(6)}\n"
        "def odd():\n    return 3\n"
    )
    for given in (f"{tmp_path}/xy.npz", f"{tmp_path}/held.py:both"):
        held = read_held(given, Two())
        assert held.where == given and held.data.samples == 6
        assert held.labels is not None and held.labels.tolist() == [0, 1, 2, 3, 4, 5]
        args, kwargs = held.data.take([0])[0]
        assert torch.equal(Two()(*args, **kwargs), torch.ones(1, 2))
    with pytest.raises(UsageError, match="returned a int; expected a dict"):
        read_held(f"{tmp_path}/held.py:odd", Two())


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"labels": None}, "has no array 'labels'"),
        ({"labels": np.zeros(6)}, "labels are float64; expected class numbers"),
        ({"labels": np.zeros(5, int)}, "has 5 labels for 6 samples"),
        ({"y": None}, "the inputs do not fit Two.forward"),
    ],
)
def test_what_is_wrong_with_held_out_samples_is_said(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", **arrays(**changes))
    with pytest.raises(UsageError, match=reason):
        read_held(f"{tmp_path}/xy.npz", Two())
