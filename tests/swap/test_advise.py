"""Advice: each of the six drawbacks is found where it is, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normfold.load import load
from normfold.record import Record
from normfold.swap.advise import advise
from normfold.swap.recalibrate import recalibrate
from swapping import Cell, bn_lstm, conv_net, images, live, rows, trained


def found(module: nn.Module, x: Tensor) -> dict[str, dict[int, str]]:
    """Why, by norm and drawback; several reasons joined."""
    advice, _ = advise(live(module, x), Record())
    named: dict[str, dict[int, str]] = {}
    for item in advice:
        assert item.remedy
        why = named.setdefault(item.name, {})
        why[item.drawback] = f"{why[item.drawback]}; {item.why}" if item.drawback in why else item.why
    return named


def test_norms_of_a_cell_lie_on_its_recurrent_path_or_at_its_input() -> None:
    advice = found(bn_lstm(), rows(400))
    assert advice["cell.bn_recurrent"][3].startswith(
        "it lies on a recurrent path, at every one of 4 steps; statistics differ from"
    )
    assert advice["cell.bn_input"][3] == "it normalises the input of a recurrent cell, at every one of 4 steps"


def test_a_norm_a_step_lies_on_the_recurrent_path_too() -> None:
    class PerStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(3, 3)
            self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(3))
            self.last = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = torch.tanh(norm(self.step(x)))
            return self.last(x)

    advice = found(trained(PerStep, 3), torch.randn(40, 3) + 0.5)
    assert advice["norms.1"][3] == "it lies on a recurrent path, with statistics of its own for one step"
    assert 3 not in advice["last"]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear, self.front = nn.BatchNorm1d(3), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
        self.one, self.between = nn.LSTM(3, 4, batch_first=True), nn.BatchNorm1d(4)
        self.two, self.behind, self.far = nn.GRU(4, 5, batch_first=True), nn.BatchNorm1d(5), nn.BatchNorm1d(2)
        self.fc = nn.Conv1d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.one(self.front(self.linear(self.first(x))).transpose(1, 2))
        z, _ = self.two(self.between(y.transpose(1, 2)).transpose(1, 2))
        return self.far(self.fc(self.behind(z.transpose(1, 2))))


def test_norms_around_recurrent_layers_stand_straight_beside_them() -> None:
    advice = found(trained(Around, 3, 6), torch.randn(8, 3, 6) + 0.5)
    assert {name: why[3] for name, why in advice.items() if 3 in why} == {
        "front": "it stands straight in front of one",
        "between": "it stands straight behind one and in front of two",
        "behind": "it stands straight behind two",
    }


def test_a_layer_that_is_shared_but_not_recurrent_is_not_called_so() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
            self.out = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.head(x), self.head(-x)], 1))

    assert 3 not in found(trained(Heads, 3), torch.randn(20, 3))["head.1"]


def test_statistics_that_do_not_fit_the_data_are_found_and_those_that_do_are_not() -> None:
    module = recalibrate(live(conv_net(), images(400, seed=5)), Record())
    assert all(1 not in why for why in found(module, images(200)).values())
    assert found(module, 3 * images(200) + 2)["body.1"][1].startswith("its input's statistics on the data differ")
    advice = found(bn_lstm(), rows(400))
    assert all(1 not in why for why in advice.values())  # a step has none of its own: drawback 3


def test_nothing_is_said_of_statistics_on_inputs_that_were_made_up() -> None:
    record = Record()
    advice, _ = advise(load(conv_net(), inputs=["image=64x2x6x6"], record=record), record)
    assert {item.drawback for item in advice} == {2}
    assert any("the inputs are made up" in note for note in record.notes)


def test_a_network_from_image_to_image() -> None:
    generator = trained(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, 1, 1)), 3, 6, 6)
    assert 4 in found(generator, torch.randn(4, 3, 6, 6))["1"]
    assert all(4 not in why for why in found(conv_net(), images()).values())


def test_what_looks_like_a_discriminator() -> None:
    def build(activation: Any) -> nn.Module:
        parts = [nn.Conv2d(3, 4, 3, 2, 1), activation, nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), activation]
        return nn.Sequential(*parts, nn.Conv2d(4, 1, 2), nn.Flatten())

    x = torch.randn(4, 3, 8, 8)
    assert 5 in found(trained(lambda: build(nn.LeakyReLU(0.2)), 3, 8, 8), x)["3"]
    assert 5 not in found(trained(lambda: build(nn.ReLU()), 3, 8, 8), x)["3"]


def test_gamma_and_beta_that_do_nothing() -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    nn.init.normal_(module[1].weight)
    advice = found(module, torch.randn(6, 4))
    assert 6 in advice["0"] and 6 not in advice["1"]
    assert all(2 in why for why in advice.values())


def test_the_module_is_left_as_it_was() -> None:
    module = bn_lstm().requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    advise(live(module, rows()), Record())
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(module.get_submodule("cell"), Cell)
