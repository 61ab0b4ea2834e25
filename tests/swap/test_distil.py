"""Distillation: pieces learn by themselves, the whole learns the outputs, a run that was cut off goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import CannotTell, UsageError
from normfold.load.loaded import Call
from normfold.swap import checkpoint as checkpoints
from normfold.swap.checkpoint import Checkpoint
from normfold.swap.data import Data, Order
from normfold.swap.distil import Place, Stage, distil, forced, layer_errors
from normfold.swap.find import find_sites
from normfold.swap.fit import Scales, fit
from normfold.swap.norms import NewNorm
from normfold.swap.replace import exchanged
from swapping import bn_lstm, conv_net, images, rows

STAGES = (Stage("layers", 6, 2e-3), Stage("whole", 6, 2e-3))


class Ready:
    """A teacher, a student after the start, and what `distil` takes."""

    def __init__(self, net: Any = bn_lstm, x: Tensor | None = None) -> None:
        self.teacher: nn.Module = net()
        self.data = Data([((rows() if x is None else x,), {})])
        sites, _ = find_sites(self.teacher, self.data.take([0, 1])[0])
        self.names = [site.name for site in sites]
        self.student = exchanged(self.teacher, {site.name: NewNorm("layernorm", site.channels) for site in sites})
        self.scales: Scales = fit(self.teacher, self.student, sites, self.data.batches(16))
        self.order = Order(self.data, 16, seed=0)

    def run(self, stages: Any = STAGES, **options: Any) -> dict[str, tuple[float, float]]:
        return distil(self.teacher, self.student, self.names, self.order, self.scales, stages, **options)

    def one(self) -> Call:
        return self.data.take(range(8))[0]

    def outputs_apart(self) -> float:
        args, _ = self.data.calls[0]
        with torch.no_grad():
            return float((self.student(*args) - self.teacher(*args)).square().mean())


def test_the_student_goes_on_with_the_teachers_values() -> None:
    """Whatever the norms before it do, a norm is judged on the teacher's activations, in every call."""
    ready = Ready(conv_net, images())
    right = forced(ready.teacher, ready.student, ready.names, ready.one())
    with torch.no_grad():
        ready.student.get_submodule(ready.names[0]).bias.add_(100.0)
    spoilt = forced(ready.teacher, ready.student, ready.names, ready.one())
    assert spoilt[ready.names[0]][0] > 1e3
    assert torch.equal(spoilt[ready.names[1]][0], right[ready.names[1]][0])
    cell = Ready()
    assert [len(found) for found in forced(cell.teacher, cell.student, cell.names, cell.one()).values()] == [4, 4]


def test_no_gradient_crosses_from_one_piece_to_the_one_before() -> None:
    ready = Ready(conv_net, images())
    errors = forced(ready.teacher, ready.student, ready.names, ready.one())
    errors[ready.names[1]][0].backward()
    got = {name for name, parameter in ready.student.named_parameters() if parameter.grad is not None}
    assert got == {"body.3.weight", "body.4.weight", "body.4.bias"}


def test_an_activation_in_place_behind_a_norm_changes_nothing() -> None:
    ready, other = Ready(conv_net, images()), Ready(conv_net, images())
    for module in (other.teacher, other.student):
        for part in module.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = True
    pairs = [forced(item.teacher, item.student, item.names, item.one()) for item in (ready, other)]
    assert all(torch.equal(pairs[0][name][0], pairs[1][name][0]) for name in ready.names)


@pytest.mark.parametrize("net, x", [(bn_lstm, None), (conv_net, images())], ids=["cell", "conv"])
def test_layers_learn_the_layers_and_the_whole_the_outputs(net: Any, x: Tensor | None) -> None:
    ready = Ready(net, x)
    errors = lambda: layer_errors(ready.teacher, ready.student, ready.names, ready.data.batches(16), ready.scales)  # noqa: E731
    first, apart = errors(), ready.outputs_apart()
    losses = ready.run([Stage("layers", 60, 5e-3)])
    after = errors()
    assert all(after[name] < 0.97 * first[name] for name in ready.names)
    losses |= ready.run([Stage("whole", 80, 5e-3)])
    assert ready.outputs_apart() < 0.5 * apart
    assert all(last < start for start, last in losses.values())


def test_the_teacher_is_not_trained() -> None:
    ready = Ready()
    state = {name: tensor.clone() for name, tensor in ready.teacher.state_dict().items()}
    ready.run()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ready.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in ready.teacher.parameters())


def weights(ready: Ready) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ready.student.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_start_gives_the_same_weights_and_another_seed_others() -> None:
    one, two, three = Ready(), Ready(), Ready()
    three.order = Order(three.data, 16, seed=1)
    for item in (one, two, three):
        item.run()
    assert same(weights(one), weights(two))
    assert not same(weights(one), weights(three))


@pytest.mark.parametrize("stop", [("layers", 4), ("layers", 6), ("whole", 3), ("whole", 6)], ids=str)
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(stop: tuple[str, int], tmp_path: Path) -> None:
    whole = Ready()
    losses = whole.run()

    def interrupt(stage: Stage, done: int, _: float) -> None:
        if (stage.name, done) == stop:
            raise KeyboardInterrupt

    first = Ready()
    kept = Checkpoint(tmp_path / "net.part", "key", first.student)
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=interrupt, save=kept.save)
    second = Ready()
    place = Checkpoint(tmp_path / "net.part", "key", second.student).resume()
    assert place is not None and (STAGES[place.stage].name, place.step) == stop
    assert second.run(place=place) == losses
    assert same(weights(second), weights(whole))


def test_checkpoints_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, path = Ready(), tmp_path / "net.part"
    kept = Checkpoint(path, "key", ready.student)
    ready.run(save=kept.save)
    assert not path.exists()  # nothing is due in the first seconds
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    kept.save(Place(1, 5), False)
    assert path.exists()
    kept.remove()
    assert not path.exists()


def test_a_checkpoint_of_something_else_is_not_taken_up(tmp_path: Path) -> None:
    ready, path = Ready(), tmp_path / "net.part"
    kept = Checkpoint(path, "one", ready.student)
    kept.write(Place(0, 3), finished=False)
    with pytest.raises(UsageError, match="unfinished swap with other options, data or versions"):
        Checkpoint(path, "two", ready.student).resume()
    kept.write(Place(1, 6), finished=True)
    assert Checkpoint(path, "two", ready.student).resume() is None
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="is no checkpoint of `normfold swap`"):
        kept.resume()
    assert Checkpoint(None, "one", ready.student).resume() is None


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    ready = Ready()
    with torch.no_grad():
        ready.student.get_submodule("fc").bias.fill_(float("nan"))
    with pytest.raises(CannotTell, match=r"the loss of stage 'whole' is nan at step \d+: give a smaller --rate"):
        ready.run([Stage("whole", 3, 1e-3)])


def test_a_network_whose_values_decide_how_it_runs_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.norm(y) if type(self.norm) is nn.BatchNorm1d else y

    x = torch.randn(4, 3)
    teacher = Odd().eval()
    student = exchanged(teacher, {"norm": NewNorm("layernorm", 3)})
    with pytest.raises(CannotTell, match="norm is called 2 times in the original, its successor 1 times"):
        forced(teacher, student, ["norm"], ((x,), {}))
