"""The pages: text is escaped, nothing comes from a network, and in a real browser everything is drawn, sorts and filters."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser import look
from normfold.errors import UsageError
from normfold.profile.budget import judge, parse_budgets
from normfold.profile.result import ProfileReport
from normfold.report import html_charts
from normfold.report.html_index import index_page
from normfold.report.html_page import page, write_page
from profiled import a_profile, a_timing


def report() -> ProfileReport:
    after = a_profile(source="new <b>net</b>.onnx", norm=False)
    return ProfileReport(after, a_profile(), a_timing(0.8, 0.82, "faster"), judge(after, parse_budgets(["p99=1ms,size=2MB"])))


@pytest.fixture(scope="module")
def text() -> str:
    return page(report())


class Outside(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("data:")]


def test_nothing_is_fetched(text: str) -> None:
    parser = Outside()
    parser.feed(text)
    assert parser.found == []
    assert "@import" not in text and len(text) < 2**20


def test_names_of_the_model_are_text(text: str) -> None:
    assert "<b>net</b>" not in text and "new &lt;b&gt;net&lt;/b&gt;.onnx" in text
    assert "branch.&lt;conv&gt;" in text
    [data] = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    hostile = a_profile()
    hostile.deployed.kernels[0].layer = "</script><script>alert(1)</script><!--"
    assert "</script><script>alert" not in page(ProfileReport(hostile))
    assert json.loads(data)["timeline"]["data"]["values"]


def test_every_chart_has_its_place(text: str) -> None:
    [data] = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    names = set(json.loads(data))
    assert names == {"timeline", "graph", "levels", "latency", "changes"}
    assert names == set(re.findall(r'id="chart-(\w+)"', text))


def test_kernels_do_not_overlap_and_the_critical_path_has_a_row_for_itself() -> None:
    kernels = a_profile().deployed.kernels
    kernels.append(replace(kernels[1], name="c3", start=5e-5))
    lanes = html_charts._lanes(kernels)
    assert lanes == [0, 1, 0, 0, 2]


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "altair", None)
    with pytest.raises(UsageError, match=r"normfold\[html\]"):
        page(report())


SORT = """
const rows = (id) => Array.from(document.getElementById(id).tBodies[0].rows).filter((row) => !row.hidden);
const firsts = () => rows("layers").map((row) => row.cells[0].textContent);
const sort = (column) => document.getElementById("layers").tHead.rows[0].cells[column].querySelector("button").click();
function filter(text) {
  const field = document.querySelector("input[data-table=layers]");
  field.value = text;
  field.dispatchEvent(new Event("input"));
}
function size(place) {
  const svg = place.querySelector("svg");
  return svg ? [place.id, svg.clientWidth, svg.clientHeight, svg.querySelectorAll("path").length] : [place.id, 0, 0, 0];
}
function probe() {
  if (!document.body.classList.contains("drawn")) { setTimeout(probe, 50); return; }
  const said = { start: firsts() };
  sort(1); said.slowest = firsts();
  sort(1); said.fastest = firsts();
  sort(0); said.named = firsts();
  filter("conv compute"); said.filtered = firsts();
  filter(""); said.all = firsts().length;
  said.sizes = Array.from(document.querySelectorAll("[id^=chart-]")).map(size);
  said.wide = document.documentElement.scrollWidth <= window.innerWidth;
  said.cut = Array.from(document.querySelectorAll("section")).filter((box) => box.scrollWidth > box.clientWidth + 1).length;
  const out = document.createElement("pre");
  out.id = "said"; out.textContent = JSON.stringify(said); document.body.append(out);
}
probe();
"""


def test_in_a_browser_everything_is_drawn_sorts_and_filters(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(report(), path)
    seen = look(path, folder=tmp_path, probe=SORT)
    assert seen.complaints == []
    [told] = re.findall(r'<pre id="said">(.*?)</pre>', seen.dom, re.DOTALL)
    said = json.loads(told.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert said["start"] == said["slowest"] == ["stem.conv", "add", "branch.<conv>"]
    assert said["fastest"] == ["branch.<conv>", "add", "stem.conv"]
    assert said["named"] == ["add", "branch.<conv>", "stem.conv"]
    assert said["filtered"] == ["stem.conv"] and said["all"] == 3
    assert len(said["sizes"]) == 5
    assert all(width > 300 and height > 30 and paths >= 3 for _, width, height, paths in said["sizes"]), said["sizes"]
    assert said["wide"] and said["cut"] == 0, "nothing sticks out of its box"


def test_the_index_lists_models_and_reasons(tmp_path: Path) -> None:
    reports = {"a/net.onnx": report(), "b/<old>.onnx": ProfileReport(a_profile(size=10**7))}
    path = tmp_path / "index.html"
    files = {"a/net.onnx": "net-1.json", "b/<old>.onnx": "old-2.json"}
    (tmp_path / "old-2.html").write_text("")
    path.write_text(index_page(reports, {"c.pt": "holds weights <without> their network"}, files, tmp_path), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    assert 'href="net-1.json"' in text and 'href="old-2.html"' in text
    assert "&lt;without&gt;" in text and "1 file not measured" in text
    probe = """document.getElementById("models").tHead.rows[0].cells[3].querySelector("button").click();
    const pre = document.createElement("pre"); pre.id = "said";
    pre.textContent = Array.from(document.getElementById("models").tBodies[0].rows).map((r) => r.cells[0].textContent).join("|");
    document.body.append(pre);"""
    seen = look(path, folder=tmp_path, probe=probe)
    assert seen.complaints == []
    assert '<pre id="said">b/&lt;old&gt;.onnx|a/net.onnx</pre>' in seen.dom, "the largest first"
