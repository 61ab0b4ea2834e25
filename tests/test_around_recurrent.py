"""Norms around recurrent layers, as people write them: folded into the layers beside them, with signed and with zero gammas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.errors import InputRefused
from normfold.export.to_torch import to_onnx_model
from normfold.load import load
from normfold.pipeline import Options
from normfold.pipeline.rewriting import rewrite
from normfold.record import Record
from routes import Taken, aten, by_onnx, randomised

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


class Net(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _t(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def lstm(inputs: int = 5, hidden: int = 4, **options: Any) -> nn.LSTM:
    return nn.LSTM(inputs, hidden, **{"batch_first": True} | options)


def _ends(m: Any, x: Tensor) -> Tensor:
    """The last states of both directions, side by side."""
    h = m.a(x)[1][0]
    return m.end(m.n(torch.cat([h[-2], h[-1]], 1)))


def _merged(m: Any, x: Tensor) -> Tensor:
    """States of all layers and directions, moved and reshaped into features."""
    return m.end(m.n(m.a(x)[1].permute(1, 0, 2).reshape(x.shape[0], -1)))


def _outer_steps(m: Any, x: Tensor) -> Tensor:
    """The last step of the forward direction, the first of the backward one."""
    y = m.a(x)[0]
    return m.end(m.n(torch.cat([y[:, -1, :4], y[:, 0, 4:]], 1)))


def _summed_directions(m: Any, x: Tensor) -> Tensor:
    """DeepSpeech 2: both directions added, a norm over the sequence, the next layer."""
    y = m.a(x)[0].view(2, 6, 2, 4).sum(2)
    return m.b(_t(m.n(_t(y))))[0]


def _attended(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)[0]
    return m.end(m.n((torch.softmax(m.score(y), 1) * y).sum(1)))


def _by_hand(m: Any, x: Tensor) -> Tensor:
    """Two layers, one of them over the flipped sequence."""
    y = torch.cat([m.a(x)[0], m.b(x.flip(1))[0].flip(1)], 2)
    return m.end(_t(m.n(_t(y))))


def _rows_of_an_image(m: Any, x: Tensor) -> Tensor:
    """CRNN: feature maps become a sequence of columns."""
    y = F.avg_pool2d(m.n(F.relu(m.conv(x[:, None]))), (2, 1))
    return m.a(y.permute(0, 3, 1, 2).flatten(2))[0]


def bn(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels)


CASES: dict[str, Callable[[], nn.Module]] = {
    "in front, time first": lambda: Net(lambda m, x: m.a(m.n(_t(x)).permute(2, 0, 1))[0], n=bn(5), a=nn.GRU(5, 4, 2)),
    "steps as a batch": lambda: Net(lambda m, x: m.a(m.n(x.reshape(-1, 5)).view(2, 6, 5))[0], n=bn(5), a=lstm(proj_size=2)),
    "between, both directions": lambda: Net(
        lambda m, x: m.b(_t(m.n(_t(m.a(x)[0]))))[0], a=lstm(bidirectional=True), n=bn(8), b=nn.GRU(8, 3, bidirectional=True)
    ),
    "summed directions": lambda: Net(_summed_directions, a=lstm(bidirectional=True), n=bn(4), b=lstm(4, 3)),
    "last states": lambda: Net(_ends, a=lstm(num_layers=2, bidirectional=True), n=bn(8), end=nn.Linear(8, 2)),
    "merged states": lambda: Net(_merged, a=nn.GRU(5, 4, 2, batch_first=True), n=bn(8), end=nn.Linear(8, 2)),
    "outer steps": lambda: Net(_outer_steps, a=lstm(bidirectional=True), n=bn(8), end=nn.Linear(8, 2)),
    "mean over time": lambda: Net(lambda m, x: m.end(m.n(m.a(x)[0].mean(1))), a=lstm(proj_size=3), n=bn(3), end=nn.Linear(3, 2)),
    "maximum over time": lambda: Net(lambda m, x: m.end(m.n(m.a(x)[0].amax(1))), a=lstm(), n=bn(4), end=nn.Linear(4, 2)),
    "attention over time": lambda: Net(_attended, a=lstm(), score=nn.Linear(4, 1), n=bn(4), end=nn.Linear(4, 2)),
    "directions by hand": lambda: Net(_by_hand, a=lstm(), b=lstm(), n=bn(8), end=nn.Linear(8, 2)),
    "flattened sequence": lambda: Net(
        lambda m, x: m.end(m.n(_t(m.a(x)[0])).flatten(1)), a=nn.RNN(5, 4, batch_first=True), n=bn(4), end=nn.Linear(24, 2)
    ),
    "residual": lambda: Net(lambda m, x: m.end(_t(m.n(_t(m.a(x)[0] + x)))), a=lstm(5, 5), n=bn(5), end=nn.Linear(5, 2)),
    "rows of an image": lambda: Net(
        _rows_of_an_image, conv=nn.Conv2d(1, 3, 3, padding=1), n=nn.BatchNorm2d(3), a=lstm(9, 4, bidirectional=True)
    ),
}  # fmt: skip


def network(name: str) -> nn.Module:
    """Gammas of both signs, and every third one zero."""
    torch.manual_seed(0)
    module = randomised(CASES[name]())
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                norm.weight[::3] = 0
    return module


def _gone(taken: Taken) -> None:
    assert taken.outcomes == ["deleted"] and taken.norms_left() == 0
    assert taken.outcome.inserted == {}
    assert taken.error <= 2e-5


@pytest.mark.parametrize("name", CASES)
def test_through_export(name: str) -> None:
    _gone(aten(network(name), torch.randn(2, 6, 5)))


@pytest.mark.parametrize(
    "name", ["last states", *(pytest.param(n, marks=pytest.mark.slow) for n in ("merged states", "outer steps"))]
)
def test_through_onnx(name: str) -> None:
    _gone(by_onnx(network(name), torch.randn(2, 6, 5)))


def test_a_state_takes_no_gauge() -> None:
    """What a norm makes the first state of a layer enters its recurrence: no constant of the layer takes that up."""
    module = Net(
        lambda m, x: m.b(x, m.n(m.a(x)[1][0])[None])[0],
        a=nn.GRU(5, 4, batch_first=True), n=bn(4), b=nn.GRU(5, 4, batch_first=True),
    )  # fmt: skip
    taken = aten(randomised(module), torch.randn(2, 6, 5))
    assert taken.outcomes == ["kept"] and taken.codes == ["no-rule"]


def test_a_norm_over_the_steps_is_left_with_its_reason() -> None:
    """[N, T, F] straight into BatchNorm1d(T): every step has statistics of its own, and one weight serves all steps."""
    module = Net(lambda m, x: m.b(m.n(m.a(x)[0]))[0], a=lstm(), n=bn(6), b=lstm(4, 3))
    taken = aten(randomised(module), torch.randn(2, 6, 5))
    assert taken.outcomes == ["kept"] and taken.codes == ["conflicting-scale"]


def test_a_new_bias_is_stored_once_for_all_steps() -> None:
    """Its weight is read at every step, too."""
    module = Net(
        lambda m, x: m.end(torch.stack([torch.relu(m.n(m.w(x[:, t]))) for t in range(6)], 1).mean(1)),
        w=nn.Linear(5, 4, bias=False), n=bn(4), end=nn.Linear(4, 2),
    )  # fmt: skip
    taken = aten(randomised(module, signed=False), torch.randn(2, 6, 5))
    assert taken.outcomes == ["deleted"] * 6 and taken.error <= 2e-5
    without = rewrite(taken.before, Options(objective="norms", skip=("hoist-unrolled",)))  # which reads it once for all steps
    readers = [node for node in without.graph.nodes if node.kind == "Gemm" and node.module == "w"]
    assert len(readers) == 6 and len({node.inputs[1] for node in readers}) == len({node.inputs[2] for node in readers}) == 1


def test_the_trained_crnn_loses_all_its_norms(models_dir: Path) -> None:
    """It has zero gammas behind the LSTM, whose channels nobody can empty."""
    module = load(models_dir / "digits_crnn.pt", record=Record()).module
    taken = aten(module, torch.rand(2, 1, 8, 8), objective="latency")
    assert taken.outcomes == ["deleted"] * 3 and taken.norms_left() == 0 and taken.error <= 2e-5


def test_projections_are_refused_where_onnx_has_none() -> None:
    """torch.onnx.export writes an LSTM that does not run."""
    for options in ({}, {"bias": False}, {"num_layers": 2, "bidirectional": True}):
        for projection in (0, 2):
            program = torch.export.export(lstm(proj_size=projection, **options).eval(), (torch.randn(2, 6, 5),))
            if projection:
                with pytest.raises(InputRefused, match="proj_size"):
                    to_onnx_model(program)
            else:
                assert not any("proj" in name for name in program.state_dict)
