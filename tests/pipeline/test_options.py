"""Options, the name of the default output, and outputs that cannot be written as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from normfold.errors import UsageError
from normfold.pipeline.options import Options, check_outputs, default_output


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"objective": "speed"}, "latency, norms; got 'speed'"),
        ({"only": ("a", "b"), "skip": ("b", "c")}, "^b is asked for"),
        ({"seconds": 0.0}, "above 0; got 0"),
        ({"clone_budget": "two"}, "a size .* got 'two'"),
        ({"clone_budget": "-1"}, "a size .* got '-1'"),
        ({"clone_budget": "5 %%"}, "a size .* got '5 %%'"),
    ],
)
def test_options_that_contradict(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Options(**fields)


@pytest.mark.parametrize(
    "budget, expected",
    [
        (0, 0),
        ("0", 0),
        (4096, 4096),
        ("4096 B", 4096),
        ("2MB", 2_000_000),
        ("1.5kib", 1536),
        ("5%", 50),
        ("0.1 %", 1),
        ("150%", 1500),
    ],
)
def test_the_clone_budget_is_a_size_or_a_part_of_the_model(budget: str | int, expected: int) -> None:
    assert Options(clone_budget=budget).clone_bytes(1000) == expected


def test_rules_and_patterns() -> None:
    assert Options().uses("affine")
    assert Options(only=("affine",)).uses("affine")
    assert not Options(only=("affine",)).uses("branches")
    assert not Options(skip=("affine",)).uses("affine")
    keep = Options(keep=("layer4.*", "head"))
    assert keep.keeps("layer4.0.bn1")
    assert keep.keeps("", "head")
    assert not keep.keeps("layer3.0.bn1", "")
    assert not keep.keeps("Head")
    assert not Options(keep=("*",)).keeps("")


@pytest.mark.parametrize(
    "source, kind, expected",
    [
        ("m/net.onnx", "onnx", "m/net.normfold.onnx"),
        ("net.pt", "module", "net.normfold.pt2"),
        ("net.pth.tar", "module", "net.normfold.pt2"),
        ("net.v2.pt2", "program", "net.v2.normfold.pt2"),
        ("net", "onnx", "net.normfold.onnx"),
        ("resnet.18.safetensors", "module", "resnet.18.normfold.pt2"),
    ],
)
def test_the_default_output_stands_beside_the_input(source: str, kind: str, expected: str) -> None:
    assert default_output(Path(source), kind) == Path(expected)


def check(
    folder: Path, *outputs: str, kind: str = "onnx", source: str = "net.onnx", force: bool = False, in_place: bool = False
) -> None:
    check_outputs(tuple(folder / name for name in outputs), kind=kind, source=folder / source, force=force, in_place=in_place)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("net.onnx", "there.onnx"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "link.onnx").symlink_to("net.onnx")
    return tmp_path


def test_outputs_that_can_be_written(folder: Path) -> None:
    check(folder, "new.onnx", "NEW.ONNX")
    check(folder, "there.onnx", force=True)
    check(folder, "net.onnx", in_place=True)
    check(folder, "new.pt2", "new.onnx", kind="module")
    check(folder)


@pytest.mark.parametrize(
    "outputs, options, reason",
    [
        (["there.onnx"], {}, "exists; pass --force"),
        (["new.pt2"], {}, r"written as \.onnx;"),
        (["new.pt"], {"kind": "module"}, r"written as \.pt2 or \.onnx"),
        (["new"], {}, "written as"),
        (["net.onnx"], {}, "is the input; pass --in-place"),
        (["net.onnx"], {"force": True}, "is the input; pass --in-place"),
        (["link.onnx"], {"force": True}, "is the input; pass --in-place"),
        (["none/new.onnx"], {}, "does not exist; make it first"),
        (["folder.onnx"], {"force": True}, "is a folder"),
        (["a.onnx", "./a.onnx"], {}, "named as output twice"),
        (["net.onnx", "link.onnx"], {"in_place": True}, "named as output twice"),
    ],
)
def test_outputs_that_cannot(folder: Path, outputs: list[str], options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check(folder, *outputs, **options)
