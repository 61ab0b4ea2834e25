"""Norms on recurrent paths: found in graphs of both adapters, whatever the modules are called; told in the report."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from normfold.capture.aten import from_aten
from normfold.capture.onnx import from_onnx
from normfold.capture.program import export_module
from normfold.capture.tidy import tidy
from normfold.detect import find_norms, recurrences
from normfold.graph import Graph
from normfold.record import Finding, Record, Recurrence
from normfold.report.recurrent import DRAWBACK, UNROLLED, groups
from normfold.report.terminal import render
from routes import exported, randomised

STEPS = 3
Place = tuple[str, str]  # where, statistics


class Net(nn.Module):
    """Modules by name, and what is done with them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _per_step(m: Any, x: Tensor) -> Tensor:
    """Cooijmans et al. 2017 as they wrote it: statistics for every step; BN on c, too."""
    x = m.before(x.transpose(1, 2)).transpose(1, 2)
    h = c = torch.zeros(x.shape[0], 4)
    for t in range(STEPS):
        i, f, g, o = (m.nx[t](m.w(x[:, t])) + m.nh[t](m.u(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(m.nc[t](c))
    return m.head(h)


def _twice(m: Any, x: Tensor) -> Tensor:
    """One cell forwards and backwards, a norm behind both."""
    ends = []
    for times in (range(STEPS), reversed(range(STEPS))):
        h = torch.zeros(x.shape[0], 4)
        for t in times:
            h = torch.tanh(m.nx(m.w(x[:, t])) + m.nh(m.u(h)))
        ends.append(h)
    return m.end(m.after(torch.cat(ends, 1)))


def _layer_norm(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 4)
    for t in range(STEPS):
        (xz, xn), (hz, hn) = m.nx(m.w(x[:, t])).chunk(2, 1), m.nh(m.u(h)).chunk(2, 1)
        z = torch.sigmoid(xz + hz)
        h = z * h + (1 - z) * torch.tanh(xn + hn)
    return m.end(h)


def _norms(size: int) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm1d(size) for _ in range(STEPS))


def _head() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def _frames(m: Any, x: Tensor) -> Tensor:
    """An encoder applied to every frame is no recurrence: no step reads another."""
    return m.end(torch.stack([torch.relu(m.norm(m.w(x[:, t]))) for t in range(STEPS)], 1).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, Place]]] = {
    "statistics for every step": (
        lambda: Net(_per_step, before=nn.BatchNorm1d(5), w=nn.Linear(5, 16), u=nn.Linear(4, 16, bias=False), nx=_norms(16),
                    nh=_norms(16), nc=_norms(4), head=_head()),
        {"before": ("front", "shared"), "head.1": ("", ""),
         **{f"{name}.{t}": ("inside", "own") for name in ("nx", "nh", "nc") for t in range(STEPS)}},
    ),
    "both directions": (
        lambda: Net(_twice, w=nn.Linear(5, 4), u=nn.Linear(4, 4, bias=False), nx=nn.BatchNorm1d(4), nh=nn.BatchNorm1d(4),
                    after=nn.BatchNorm1d(8), end=nn.Linear(8, 2)),
        {"nx": ("inside", "shared"), "nh": ("inside", "shared"), "after": ("behind", "shared")},
    ),
    "layer normalization": (
        lambda: Net(_layer_norm, w=nn.Linear(5, 8, bias=False), u=nn.Linear(4, 8, bias=False), nx=nn.LayerNorm(8),
                    nh=nn.LayerNorm(8), end=nn.Linear(4, 2)),
        {"nx": ("inside", "run time"), "nh": ("inside", "run time")},
    ),
    "recurrent layers": (
        lambda: Net(
            lambda m, x: m.end(torch.relu(m.c(m.q(m.b(m.a(x.transpose(1, 2)).transpose(1, 2))[0].transpose(1, 2))
                                              .transpose(1, 2))[0][:, -1])),
            a=nn.BatchNorm1d(5), b=nn.LSTM(5, 4, batch_first=True), q=nn.BatchNorm1d(4), c=nn.GRU(4, 3, batch_first=True),
            end=nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))),
        {"a": ("front", "shared"), "q": ("between", "shared"), "end.0": ("behind", "shared"), "end.2": ("", "")},
    ),
    "an encoder of frames": (
        lambda: Net(_frames, norm=nn.BatchNorm1d(4), w=nn.Linear(5, 4), end=nn.Linear(4, 2)), {"norm": ("", "")}
    ),
}  # fmt: skip


def _places(graph: Graph) -> dict[str, Place]:
    tidy(graph)
    specs = find_norms(graph)
    found = recurrences(graph, specs)
    places = {(spec.name, *((at.place, at.statistics) if (at := found.get(spec.node)) else ("", ""))) for spec in specs}
    assert max(Counter(name for name, _, _ in places).values()) == 1, "one layer has one place"
    return {name: (place, statistics) for name, place, statistics in places}


@pytest.mark.parametrize(
    ("name", "adapter"), [*((name, "aten") for name in NETS), ("both directions", "onnx"), ("recurrent layers", "onnx")]
)
def test_places(name: str, adapter: str) -> None:
    make, expected = NETS[name]
    module, x = randomised(make()), torch.randn(2, STEPS, 5)
    graph = from_aten(export_module(module, (x,))) if adapter == "aten" else from_onnx(exported(module, x))
    places = _places(graph)
    places.setdefault("nh.0", ("inside", "own"))  # its input is a constant, and so is it where the capture says so
    assert places == {"nh.0": ("inside", "own")} | expected


def test_how_often_a_norm_is_applied() -> None:
    graph = from_aten(export_module(randomised(NETS["both directions"][0]()), (torch.randn(2, STEPS, 5),)))
    tidy(graph)
    specs = find_norms(graph)
    found = recurrences(graph, specs)
    steps = {spec.name: found[spec.node].steps for spec in specs}
    assert steps["nx"] == 2 * STEPS and steps["nh"] in (2 * STEPS, 2 * (STEPS - 1)) and steps["after"] == 0


def _finding(name: str, place: Any, statistics: Any, outcome: Any, kind: str = "batch") -> Finding:
    at = Recurrence(place, 8 if place == "inside" else 0, statistics)
    return Finding(name, kind, "BatchNormalization", name, outcome=outcome, recurrence=at)


FINDINGS = [
    *(_finding("cell.bn", "inside", "shared", "deleted") for _ in range(8)),
    _finding("own.0", "inside", "own", "deleted"),
    _finding("kept", "between", "shared", "kept"),
    _finding("ln", "inside", "run time", "kept", "layer"),
    _finding("body", "body", "shared", "kept"),
]


def test_the_report_says_where_why_and_what_to_do() -> None:
    found = groups([*FINDINGS, Finding("elsewhere", "batch", "BatchNormalization", "elsewhere")])
    assert {where for where, _ in found} == {
        "inside a recurrence of 8 steps, one set of statistics for all of them",
        "inside a recurrence of 8 steps, statistics of its own at every step",
        "inside a recurrence of 8 steps, statistics taken at every step",
        "between recurrent layers",
        "in the body of a loop, one set of statistics for all of them",
    }
    remedies = {name: what for (_, what), names in found.items() for name in names}
    assert "elsewhere" not in remedies
    assert remedies["ln"] == ""
    assert "folded exactly" in remedies["cell.bn"] and "folded exactly" in remedies["own.0"]
    assert "weights of its own" in remedies["own.0"]
    assert all("normfold swap --to layernorm" in remedies[name] for name in ("cell.bn", "kept", "body"))


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_shows_it_once_for_all_steps(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    render(Record(findings=list(FINDINGS)), console)
    text = " ".join(console.export_text().split())
    assert text.count("cell.bn, 8 times") == 1
    assert "Recurrent paths" in text and DRAWBACK in text and UNROLLED in text


def test_layer_norms_have_no_such_drawback() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    render(Record(findings=[_finding("ln", "inside", "run time", "kept", "layer")]), console)
    assert "drawback" not in console.export_text()


def test_only_unrolled_loops_are_called_unrolled() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    render(Record(findings=[_finding("body", "body", "shared", "kept"), _finding("kept", "between", "shared", "kept")]), console)
    assert UNROLLED not in " ".join(console.export_text().split())
