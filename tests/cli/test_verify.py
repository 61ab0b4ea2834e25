"""`normfold verify` as users run it: one screen, exit codes, reports that run again."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from folding import net
from normfold.api import optimize
from normfold.cli import _run
from normfold.cli.common import State

FIELDS = (
    "schema verdict exit_code a b settings data_sha256 versions noise inputs left_out gates comparisons parting common "
    "responsible rewrites likeness notes seconds"
).split()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and what `optimize` makes of it, with the manifest beside."""
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(net(), a)
    optimize(a, outputs=[b], proof_seconds=1)
    return a, b


def spoil(path: Path, channel: int = 3, by: float = 0.1) -> None:
    """One channel of the second convolution's bias; the manifest then speaks of another file."""
    model = onnx.load(path)
    bias = next(item for item in model.graph.initializer if list(item.dims) == [6])
    array = onnx.numpy_helper.to_array(bias).copy()
    array[channel] += by
    bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
    onnx.save(model, path)


def normfold(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command, in this process."""
    code = _run([str(item) for item in arguments], State())
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_same_function_in_one_screen(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = normfold(capsys, "verify", *files)
    assert (code, err) == (0, "")
    assert "SAME" in out and "G2" in out and "G3" in out and "shown, not judged" in out
    assert len(out.splitlines()) < 40
    assert "0 of" in out  # of the values that both hold by name


def test_a_difference_is_exit_code_1_with_its_place(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    spoil(files[1])
    code, out, _ = normfold(capsys, "verify", *files, "--level", "quick")
    assert code == 1
    assert "DIFFERENT" in out and "n2, made by BatchNormalization (bn2), channel 3" in " ".join(out.split())
    assert len(out.splitlines()) < 40


def test_two_unrelated_models_take_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    names = [f"a_rather_long_name_of_an_output_{i}" for i in range(40)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["q"], [name]) for name in names], "g", [info("q", kind, [1, 4])],
        [info(name, kind, [1, 4]) for name in names],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "b.onnx")
    onnx.save(net(), tmp_path / "a.onnx")
    code, out, _ = normfold(capsys, "verify", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert code == 1
    assert "What callers see differs" in out and "float32 Nx3x9x9 against float32 1x4" in out
    assert len(out.splitlines()) < 40 and max(map(len, out.splitlines())) <= 120


def test_an_unknown_op_is_exit_code_4_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Twist", ["x"], ["y"], domain="acme")], "g", [info("x", kind, [1, 3])], [info("y", kind, [1, 3])]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("acme", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "a.onnx")
    code, out, _ = normfold(capsys, "verify", tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert code == 4
    assert "CANNOT TELL" in out and "acme::Twist" in out


def test_a_report_has_the_documented_fields_and_runs_again(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    assert normfold(capsys, "verify", *files, "-o", report, "-q")[:2] == (0, "")
    found = json.loads(report.read_text())
    assert list(found) == FIELDS
    from normfold.report import verification_json

    lines = (verification_json.__doc__ or "").splitlines()
    documented = {word.strip(",") for line in lines if line[:4] == "    " and line[4:5].strip() for word in line.split()[:2]}
    assert documented | {"exit_code"} >= set(FIELDS)
    assert found["schema"] == "normfold.verification/1" and found["verdict"] == "same"
    assert found["settings"]["seed"] == 0 and len(found["a"]["sha256"]) == 64
    assert {item["rule"] for item in found["rewrites"]} == {"affine"}
    assert found["gates"]["G2"]["failed"] == 0 and 0 <= found["gates"]["G2"]["needed"] < 8
    code, out, _ = normfold(capsys, "verify", "--report", report, "--json")
    again = json.loads(out)
    assert code == 0
    same = set(FIELDS) - {"seconds", "notes"}
    assert {name: again[name] for name in same} == {name: found[name] for name in same}
    assert again["notes"][0].startswith("as in ")


def test_a_report_of_other_files_is_refused(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    normfold(capsys, "verify", *files, "-o", report, "--level", "quick")
    spoil(files[1])
    code, _, err = normfold(capsys, "verify", "--report", report)
    assert code == 2 and "has changed since" in err
    files[1].unlink()
    assert "is not there" in normfold(capsys, "verify", "--report", report)[2]
    for text in ("{}", "no json", json.dumps({**json.loads(report.read_text()), "schema": "other/9"})):
        report.write_text(text)
        code, _, err = normfold(capsys, "verify", "--report", report)
        assert code == 2 and err.count("\n") == 1


def test_the_manifest_beside_b_makes_names_promises_and_names_the_rewrite(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(files[1], by=1e-3)
    manifest = files[1].with_name("b.onnx.json")
    content = json.loads(manifest.read_text())
    import hashlib

    content["outputs"] = {"b.onnx": hashlib.sha256(files[1].read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(content))
    code, out, _ = normfold(capsys, "verify", *files, "--level", "quick")
    assert code == 1 and "the rewrite there: affine on bn2" in out


def test_own_data_is_compared_on(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((4, 3, 9, 9)).astype(np.float32))
    code, out, _ = normfold(capsys, "verify", *files, "--data", data, "--level", "quick", "--json")
    found = json.loads(out)
    assert code == 0
    assert [item["label"] for item in found["inputs"]] == ["data", "normal", "spread"]
    assert len(found["data_sha256"]) == 64


@pytest.mark.parametrize(
    "arguments", ["one.onnx", "", "a b --report r.json", "a b --level some", "a b --seconds 0", "no-file.onnx other.onnx"]
)
def test_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = normfold(capsys, "verify", *arguments.split())
    assert code == 2 and err.count("\n") == 1


def test_progress_goes_to_stderr_of_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    verify: Any = import_module("normfold.cli.verify")
    seen: list[bool] = []
    with verify._progress(State()) as tell:
        seen.append(tell is None)
    monkeypatch.setattr(verify.sys.stderr, "isatty", lambda: True, raising=False)
    with verify._progress(State()) as tell:
        assert tell is not None
        tell("normal", 0, 8)
    with verify._progress(State(verbosity=-1)) as tell:
        seen.append(tell is None)
    assert seen == [True, True]
