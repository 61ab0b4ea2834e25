"""The charts of a profile as Vega-Lite specifications, and the one JavaScript bundle that draws them without a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from normfold.errors import UsageError
from normfold.profile.origin import HEAVY
from normfold.profile.result import Kernel, Level, ModelProfile

WIDTH = 1040
KINDS = {
    "convolutions and products": "#4c78a8",
    "normalization": "#e45756",
    "arithmetic and activations": "#72b7b2",
    "layout and copies": "#bab0ac",
}
_LAYOUT = frozenset(
    "Transpose Reshape Concat Split Slice Gather Cast Pad ReorderInput ReorderOutput Squeeze Unsqueeze Expand".split()
)
_EDGES = 3000  # more would be a black field


def altair() -> Any:
    """The library.  Raises UsageError where it is not installed."""
    try:
        import altair as library
    except ImportError:
        raise UsageError("an HTML report needs altair and vl-convert-python: pip install normfold[html]") from None
    return library


@cache
def script() -> str:
    """JavaScript that defines window.vegaEmbed, everything included (about 0.9 MB)."""
    library = altair()
    try:
        import vl_convert
    except ImportError:
        raise UsageError("an HTML report needs altair and vl-convert-python: pip install normfold[html]") from None
    bundle: Any = vl_convert.javascript_bundle
    version = ".".join(library.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return str(bundle("window.vegaEmbed = vegaEmbed;", vl_version=version))


def kind_of(kernel: Kernel) -> str:
    """One of KINDS."""
    if kernel.norm:
        return "normalization"
    if kernel.inserted or kernel.op in _LAYOUT:
        return "layout and copies"
    heavy = any(kernel.op.endswith(op) for op in HEAVY)
    return "convolutions and products" if heavy else "arithmetic and activations"


def charts(profile: ModelProfile) -> dict[str, Any]:
    """Name -> specification of every chart of one model; the page has a place for each."""
    level = profile.deployed
    return {
        "timeline": _timeline(level),
        "graph": _graph(level),
        "levels": _levels(profile.levels),
        "latency": _latency(profile),
    }


def changes_chart(rows: Sequence[tuple[str, float, float]]) -> Any:
    """Before and after of the layers that changed most: (layer, seconds before, seconds after)."""
    alt = altair()
    values = [
        {"layer": name, "side": side, "us": value * 1e6}
        for name, before, after in rows
        for side, value in (("before", before), ("after", after))
    ]
    chart = alt.Chart(alt.Data(values=values)).mark_bar()
    chart = chart.encode(
        y=alt.Y("layer:N", sort=[name for name, _, _ in rows], title=None, axis=alt.Axis(labelLimit=320)),
        yOffset=alt.YOffset("side:N", sort=["before", "after"]),
        x=alt.X("us:Q", title="microseconds"),
        color=alt.Color("side:N", scale=alt.Scale(domain=["before", "after"], range=["#bab0ac", "#4c78a8"]), title=None),
        tooltip=["layer:N", "side:N", alt.Tooltip("us:Q", format=".3~g")],
    )
    return chart.properties(width=WIDTH - 340, height=24 * len(rows)).to_dict()


def _color(alt: Any, *, narrow: bool = False) -> Any:
    scale = alt.Scale(domain=list(KINDS), range=list(KINDS.values()))
    return alt.Color("kind:N", scale=scale, title=None, legend=alt.Legend(orient="top", columns=2 if narrow else 4))


def _tooltip(alt: Any) -> list[Any]:
    return ["layer:N", "kernel:N", "op:N", alt.Tooltip("us:Q", title="microseconds", format=".3~g"), "bound:N", "members:N"]


def _row(kernel: Kernel, begin: float) -> dict[str, Any]:
    return {
        "layer": kernel.layer,
        "kernel": kernel.name,
        "op": kernel.op,
        "us": kernel.seconds * 1e6,
        "begin": begin * 1e6,
        "end": (begin + kernel.seconds) * 1e6,
        "kind": kind_of(kernel),
        "bound": kernel.bound,
        "members": ", ".join(kernel.members[:6]),
    }


def _timeline(level: Level) -> Any:
    """One bar a kernel, in the order in which the sequential executor runs them."""
    alt, values, begin = altair(), list[dict[str, Any]](), 0.0
    for kernel in level.kernels:
        values.append(_row(kernel, begin))
        begin += kernel.seconds
    chart = alt.Chart(alt.Data(values=values)).mark_bar(stroke="white", strokeWidth=0.5)
    chart = chart.encode(
        x=alt.X("begin:Q", title="microseconds since the start of a run"), x2="end:Q", color=_color(alt), tooltip=_tooltip(alt)
    )
    return chart.properties(width=WIDTH - 60, height=70).interactive(bind_y=False).to_dict()


def _lanes(kernels: Sequence[Kernel]) -> list[int]:
    """A row for every kernel so that none overlap: the critical path has row 0 for itself."""
    ends: list[float] = [float("inf")]
    lanes = [0] * len(kernels)
    for index in sorted(range(len(kernels)), key=lambda i: kernels[i].start):
        kernel = kernels[index]
        if kernel.critical:
            continue
        lane = next((lane for lane, end in enumerate(ends) if end <= kernel.start), len(ends))
        ends[lane : lane + 1] = [kernel.start + kernel.seconds]
        lanes[index] = lane
    return lanes


def _graph(level: Level) -> Any:
    """Every kernel at its earliest start, the critical path in the first row, lines for what is read."""
    alt, kernels = altair(), level.kernels
    lanes = _lanes(kernels)
    nodes = [
        {
            **_row(kernel, kernel.start),
            "lane": lane,
            "path": "critical" if kernel.critical else "has slack",
            "slack": kernel.slack * 1e6,
        }
        for kernel, lane in zip(kernels, lanes, strict=True)
    ]
    ends = [(kernel.start + kernel.seconds) * 1e6 for kernel in kernels]
    lines = [
        {"x": ends[j], "x2": kernel.start * 1e6, "lane": lanes[j], "lane2": lanes[i]}
        for i, kernel in enumerate(kernels)
        for j in kernel.reads
        if lanes[i] != lanes[j] or kernel.start * 1e6 - ends[j] > 1e-3
    ][:_EDGES]
    height = 26 * (max(lanes, default=0) + 1) + 10
    y: dict[str, Any] = {"title": None, "axis": None, "sort": "ascending"}
    edges = alt.Chart(alt.Data(values=lines)).mark_rule(color="#999", strokeWidth=0.8, opacity=0.7)
    edges = edges.encode(
        x=alt.X("x:Q"),
        x2="x2:Q",
        y=alt.Y("lane:Q", scale=alt.Scale(reverse=True, domain=[-0.6, max(lanes, default=0) + 0.6]), **y),
        y2="lane2:Q",
    )
    boxes = alt.Chart(alt.Data(values=nodes)).mark_bar(size=15, strokeWidth=1.5)
    boxes = boxes.encode(
        x=alt.X("begin:Q", title="microseconds, if every kernel began as soon as its inputs are there"),
        x2="end:Q",
        y=alt.Y("lane:Q", **y),
        color=_color(alt),
        stroke=alt.Stroke("path:N", scale=alt.Scale(domain=["critical", "has slack"], range=["#111111", "#ffffff"]), legend=None),
        tooltip=[*_tooltip(alt), "path:N", alt.Tooltip("slack:Q", title="slack, microseconds", format=".3~g")],
    )
    chart = alt.layer(edges, boxes).properties(width=WIDTH - 60, height=min(height, 640))
    return chart.interactive(bind_y=False).to_dict()


def _levels(levels: Sequence[Level]) -> Any:
    """Kernel time at every level that was profiled, by kind."""
    alt = altair()
    values: list[dict[str, Any]] = []
    for level in levels:
        sums = dict.fromkeys(KINDS, 0.0)
        for kernel in level.kernels:
            sums[kind_of(kernel)] += kernel.seconds * 1e6
        values += [{"level": level.name, "kind": kind, "us": value} for kind, value in sums.items()]
    chart = alt.Chart(alt.Data(values=values)).mark_bar()
    chart = chart.encode(
        y=alt.Y("level:N", sort=[level.name for level in levels], title=None),
        x=alt.X("us:Q", title="microseconds in kernels"),
        color=_color(alt, narrow=True),
        tooltip=["level:N", "kind:N", alt.Tooltip("us:Q", format=".3~g")],
    )
    return chart.properties(width=WIDTH // 2 - 140, height=34 * len(levels)).to_dict()


def _latency(profile: ModelProfile) -> Any:
    """How long a run takes: percent of runs that took at most so long."""
    alt = altair()
    values = [{"percent": index, "ms": value * 1e3} for index, value in enumerate(profile.latency.quantiles)]
    chart = alt.Chart(alt.Data(values=values)).mark_line(color="#4c78a8")
    chart = chart.encode(
        x=alt.X("percent:Q", title="percent of the runs"),
        y=alt.Y("ms:Q", title="at most, ms", scale=alt.Scale(type="log", nice=False)),
        tooltip=["percent:Q", alt.Tooltip("ms:Q", format=".4~g")],
    )
    return chart.properties(width=WIDTH // 2 - 120, height=140).to_dict()
