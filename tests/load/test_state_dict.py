"""Checkpoints: found wherever they are wrapped, loaded strictly, and never executed."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from normfold.errors import InputRefused
from normfold.load.state_dict import load_into, read_checkpoint, read_safetensors


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), head=nn.Linear(4, 2)))


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


WEIGHTS = net(1).state_dict()
WRAPPINGS = {
    "bare": (WEIGHTS, []),
    "state_dict": ({"state_dict": WEIGHTS, "epoch": 3}, ["found under 'state_dict'"]),
    "model": ({"model": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}}}, ["found under 'model'"]),
    "own key": ({"my_net": WEIGHTS}, ["found under 'my_net'"]),
    "deep": ({"checkpoint": {"generator": {"params": WEIGHTS}}}, ["found under 'checkpoint.generator.params'"]),
    "DataParallel": (prefixed("module.", WEIGHTS), ["prefix 'module.' taken off"]),
    "compiled": (prefixed("_orig_mod.", WEIGHTS), ["prefix '_orig_mod.' taken off"]),
    "both": ({"net": prefixed("module._orig_mod.", WEIGHTS)}, ["found under 'net', prefix 'module._orig_mod.' taken off"]),
    "any prefix": (prefixed("trainer.backbone_2.", WEIGHTS), ["prefix 'trainer.backbone_2.' taken off"]),
    "ema beside": (
        {"ema": net(2).state_dict(), "model": WEIGHTS},
        ["found under 'model'", "the weights under 'ema' fit as well"],
    ),
    "no counters": ({k: v for k, v in WEIGHTS.items() if "num_batches" not in k}, []),
}


@pytest.mark.parametrize("case", WRAPPINGS)
def test_the_state_dict_is_found_and_told(case: str, tmp_path: Path) -> None:
    checkpoint, told = WRAPPINGS[case]
    module, path = net(), tmp_path / "net.pt"
    torch.save(checkpoint, path)
    notes = load_into(module, read_checkpoint(path), path)
    assert len(notes) == len(told)
    for note, text in zip(notes, told, strict=True):
        assert text in note
    for name, value in module.state_dict().items():
        assert torch.equal(value, WEIGHTS[name]), name


def test_a_model_that_wraps_the_network_gets_the_prefix_added() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

    module = Wrapper()
    notes = load_into(module, WEIGHTS, Path("net.pt"))
    assert "prefix 'net.' added" in notes[0]
    assert torch.equal(module.net.state_dict()["conv.weight"], WEIGHTS["conv.weight"])


def test_key_and_prefix_choose() -> None:
    ema, both = net(2).state_dict(), net()
    load_into(both, {"ema": ema, "model": WEIGHTS}, Path("net.pt"), key="ema")
    assert torch.equal(both.state_dict()["head.bias"], ema["head.bias"])
    student = {**prefixed("student.", ema), **prefixed("teacher.", WEIGHTS)}
    with pytest.raises(InputRefused, match="unexpected"):
        load_into(both, student, Path("net.pt"))
    load_into(both, student, Path("net.pt"), prefix="teacher.")
    assert torch.equal(both.state_dict()["head.bias"], WEIGHTS["head.bias"])
    with pytest.raises(InputRefused, match=r"under the key 'x'; it has ema, model"):
        load_into(both, {"ema": ema, "model": WEIGHTS}, Path("net.pt"), key="x")
    with pytest.raises(InputRefused, match=r"starts with 'x\.'"):
        load_into(both, WEIGHTS, Path("net.pt"), prefix="x.")


def test_what_does_not_fit_is_listed() -> None:
    extra = {f"extra{i}": torch.zeros(1) for i in range(8)}
    state = {**WEIGHTS, "head.weight": torch.zeros(3, 4), **extra}
    del state["conv.bias"]
    with pytest.raises(InputRefused) as caught:
        load_into(net(), state, Path("net.pt"))
    message = str(caught.value)
    assert "1 missing (conv.bias)" in message
    assert "8 unexpected (extra0, extra1, extra2, extra3, extra4, and 3 more)" in message
    assert "1 misshapen (head.weight [3, 4] instead of [2, 4])" in message


def test_the_module_is_not_half_loaded_when_refused() -> None:
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(InputRefused):
        load_into(module, {**WEIGHTS, "head.bias": torch.zeros(5)}, Path("net.pt"))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_another_stored_type_is_told() -> None:
    module = net()
    half = {name: value.half() if value.is_floating_point() else value for name, value in WEIGHTS.items()}
    assert any("torch.float16 were loaded into torch.float32" in note for note in load_into(module, half, Path("net.pt")))


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2), 7])
def test_a_checkpoint_without_named_tensors_is_refused(checkpoint: Any) -> None:
    with pytest.raises(InputRefused, match="no dict of tensors"):
        load_into(net(), checkpoint, Path("net.pt"))


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("inside", ["alone", "among weights"])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path, new_format: bool, inside: str) -> None:
    path, marker = tmp_path / "net.pt", tmp_path / "ran"
    bomb = Bomb(marker)
    torch.save(bomb if inside == "alone" else {**WEIGHTS, "z": bomb}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputRefused, match="would run code") as caught:
        read_checkpoint(path)
    assert not marker.exists()
    assert "\n" not in str(caught.value)


def test_a_raw_hostile_pickle_is_refused(tmp_path: Path) -> None:
    path, marker = tmp_path / "net.pt", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(InputRefused):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_pickled_module_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(net(), path)
    with pytest.raises(InputRefused, match=r"pickled torch\.nn\.modules\.container\.Sequential.*state_dict"):
        read_checkpoint(path)


def test_a_tar_named_like_a_checkpoint_is_refused(tmp_path: Path) -> None:
    from normfold.load.sniff import sniff

    path = tmp_path / "net.pth.tar"
    (tmp_path / "storages").write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    with pytest.raises(InputRefused, match="tar archive"):
        sniff(path)


def write_safetensors(path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(WEIGHTS, path)
    module = net()
    assert load_into(module, read_safetensors(path), path) == []
    assert torch.equal(module.state_dict()["conv.weight"], WEIGHTS["conv.weight"])


def test_hostile_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    cases = {
        "header of": write_safetensors(tmp_path / "huge", b"{}" + bytes(8), length=1 << 40),
        "twice": write_safetensors(
            tmp_path / "duplicate",
            b'{"a":' + json.dumps(entry(0, 4)).encode() + b',"a":' + json.dumps(entry(0, 4)).encode() + b"}",
            bytes(4),
        ),
        "malformed safetensors": write_safetensors(tmp_path / "overlap", {"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "malformed safetensors header": write_safetensors(path, b"{not json...}"),
    }
    for reason, file in cases.items():
        with pytest.raises(InputRefused, match=reason):
            read_safetensors(file)
    with pytest.raises(InputRefused, match="malformed safetensors"):
        read_safetensors(write_safetensors(path, {"a": entry(0, 4000)}, bytes(4)))
