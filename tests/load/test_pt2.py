"""Exported programs: read when they are data, refused when they are more; nothing runs either way."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from normfold.errors import InputRefused
from normfold.load.pt2 import read_pt2
from normfold.load.pt2_audit import judge, plain_expression, plain_guard


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.register_buffer("scale", torch.full((4, 1, 1), 2.0))
        self.plain = torch.ones(4, 1, 1)

    def forward(self, image: torch.Tensor, other: torch.Tensor, flag: bool = True) -> Any:
        x = self.conv(image) * self.scale + self.plain
        if other.shape[1] % 2 == 0:
            x = x + other.sum()
        return {"y": nn.functional.interpolate(x, scale_factor=1.5), "z": x.flatten(1)[:, : other.shape[1] // 2]}


@cache
def exported() -> Any:
    n, h, k = Dim("n"), Dim("h", min=8), Dim("k", min=4)
    shapes = {"image": {0: n, 2: h}, "other": {0: n, 1: 2 * k}, "flag": None}
    return torch.export.export(
        Net().eval(), (torch.randn(2, 3, 16, 16), torch.randn(2, 8)), {"flag": True}, dynamic_shapes=shapes
    )


@cache
def archive() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(exported(), buffer)
    return buffer.getvalue()


def saved(path: Path) -> Path:
    path.write_bytes(archive())
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> Path:
    """The archive with every entry passed through `change`; names below the archive's root."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name.split("/", 1)[1], content))
        for name, content in (extra or {}).items():
            archive.writestr(f"{root}/{name}", content)
    return path


def with_program(path: Path, change: Callable[[str], str]) -> Path:
    return rewritten(path, lambda name, content: change(content.decode()).encode() if name == "models/model.json" else content)


def test_a_program_with_symbols_guards_and_constants_is_read(tmp_path: Path) -> None:
    original, loaded = exported(), read_pt2(saved(tmp_path / "net.pt2"))
    inputs = (torch.randn(3, 3, 20, 16), torch.randn(3, 10))
    expected, got = original.module()(*inputs, flag=True), loaded.module()(*inputs, flag=True)
    assert torch.equal(expected["y"], got["y"])
    assert torch.equal(expected["z"], got["z"])


def test_operators_with_arguments_of_every_kind_are_read(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def forward(self, x: torch.Tensor, more: list[torch.Tensor]) -> torch.Tensor:
            x = torch.cat([x, *more], 1).to(torch.float64).clamp(-1.0, 2.0)
            with torch.no_grad():
                x = torch.einsum("nc,nd->ncd", x, x).mean((1, 2), keepdim=True)
            return torch.where(x > 0, x, torch.zeros((), dtype=torch.float64)).reshape(x.shape[0], -1)

    program = torch.export.export(Wide(), (torch.randn(2, 3), [torch.randn(2, 1), torch.randn(2, 2)]))
    torch.export.save(program, tmp_path / "wide.pt2")
    assert read_pt2(tmp_path / "wide.pt2").graph_signature.user_inputs == program.graph_signature.user_inputs


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def bomb_archive(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Bomb(marker),), buffer)
    return buffer.getvalue()


def test_hostile_example_inputs_do_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", saved(tmp_path / "net.pt2")
    rewritten(path, lambda name, content: bomb_archive(marker) if name == "data/sample_inputs/model.pt" else content)
    with pytest.raises(InputRefused, match="cannot be loaded"):
        read_pt2(path)
    assert not marker.exists()


def test_a_hostile_pickled_weight_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", saved(tmp_path / "net.pt2")

    def change(name: str, content: bytes) -> bytes:
        if name == "data/weights/model_weights_config.json":
            config = json.loads(content)
            for item in config["config"].values():
                item["use_pickle"] = True
            return json.dumps(config).encode()
        return bomb_archive(marker) if name.startswith("data/weights/weight_") else content

    with pytest.raises(InputRefused, match="cannot be loaded"):
        read_pt2(rewritten(path, change))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0", "../../x", ""])
def test_pickled_constants_are_refused(tmp_path: Path, name: str) -> None:
    marker, path = tmp_path / "ran", saved(tmp_path / "net.pt2")

    def change(entry: str, content: bytes) -> bytes:
        if entry == "data/constants/model_constants_config.json":
            item = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"thing": item}}).encode()
        return content

    rewritten(path, change, {f"data/constants/{name or 'x'}": pickle.dumps(Bomb(marker))} if ".." not in name else None)
    with pytest.raises(InputRefused, match="'thing' as a pickled object"):
        read_pt2(path)
    assert not marker.exists()


def test_compiled_libraries_and_several_models_are_refused(tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path / "a.pt2"), lambda _, content: content, {"data/aotinductor/model/x.so": b"\x7fELF"})
    with pytest.raises(InputRefused, match="compiled library"):
        read_pt2(path)
    path = rewritten(saved(tmp_path / "b.pt2"), lambda _, content: content, {"models/other.json": b"{}"})
    with pytest.raises(InputRefused, match="other programs"):
        read_pt2(path)


PLANTED = {
    "operator": ('"torch.ops.aten.mul.Tensor"', '"torch.os.system"', "is not an operator"),
    "deep operator": ('"torch.ops.aten.mul.Tensor"', '"torch.ops.aten.__class__.x"', "is not an operator"),
    "library": ('"torch.ops.aten.mul.Tensor"', '"torch.ops.load_library.x"', "is not an operator"),
    "method caller": ('"_operator.floordiv"', '"_operator.methodcaller"', "is not an operator"),
    "call": ('"expr_str": "', "\"expr_str\": \"__import__('os').system('touch ran')+", "is not plain arithmetic"),
    "expression": ('"expr_str": "', '"expr_str": "().__class__.__bases__[0].__subclasses__()+', "is not plain arithmetic"),
    "huge power": ('"expr_str": "', '"expr_str": "9**9**9**9+', "is not plain arithmetic"),
    "guard": ('"guards_code": [', "\"guards_code\": [\"open('ran', 'w')\", ", "is not a comparison"),
    "argument": ('"as_tensor": {"name": "image"}', '"as_tensor": {"name": "image=print(1)"}', "is not an identifier"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_code_is_refused(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, reason = PLANTED[case]
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "net.pt2")
    seen: list[bool] = []

    def change(text: str) -> str:
        text = json.dumps(json.loads(text))
        seen.append(old in text)
        return text.replace(old, new)

    with_program(path, change)
    assert seen == [True]
    with pytest.raises(InputRefused, match=reason):
        read_pt2(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputRefused, match="not a readable"):
        read_pt2(path)
    path.write_bytes(content)
    with_program(path, lambda text: text[:-10])
    with pytest.raises(InputRefused, match="damaged models"):
        read_pt2(path)


def test_the_environment_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    read_pt2(saved(tmp_path / "net.pt2"))
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s0', positive=True, integer=True)",
        "Mul(Integer(-1), Max(Integer(1), TruncToInt(Mul(Float('1.5', precision=53), ToFloat(Symbol('s78', integer=True))))))",
        "2*s1 + s0//2 - Mod(s0, 4)",
        "(s0 - 1)**2",
        "Eq(s0, 3)",
    ],
)
def test_size_expressions_are_let_through(text: str) -> None:
    assert plain_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "print(1)",
        "s0.__class__",
        "s0.subs(1)",
        "[s0 for s0 in s1]",
        "lambda: 1",
        "s0[0]",
        "Symbol('__import__(\"os\")')",
        "2**64",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "s0**s1",
        "1 << 99999999",
        "(",
        "'x' * 99999",
        "f'{s0}'",
        "s0 + " * 2000 + "s0",
    ],
)
def test_other_expressions_are_not(text: str) -> None:
    assert not plain_expression(text)


def test_guards() -> None:
    for good in (
        "L['x'].size()[0] == L['y'].size()[0]",
        "(L['y'].size()[2] % 2) == 0",
        "3 <= L['x'].size()[2] and L['x'].size()[2] <= 9",
    ):
        assert plain_guard(good), good
    for bad in (
        "L.clear()",
        "exec('1')",
        "L['x'].__class__",
        "math.__loader__",
        "torch.load('x')",
        "torch.os",
        "L['x'].tofile('f')",
        "os",
    ):
        assert not plain_guard(bad), bad


def test_keyword_names_are_judged() -> None:
    def spec(names: str) -> dict[str, str]:
        return {"in_spec": json.dumps([1, {"children_spec": [{}, {"context": names}]}])}

    assert judge(spec('["flag", "x1"]')) is None
    assert "keyword argument" in str(judge(spec('["flag=print(1)"]')))
    assert "keyword argument" in str(judge({"in_spec": "[1, {}]"}))
