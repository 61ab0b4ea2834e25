"""Models in their runtimes: names, order, state, silence, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

from folding import net
from normfold.errors import CannotTell
from normfold.graph import BFLOAT16
from normfold.verify import OnnxRunner, TorchRunner
from normfold.verify.runtimes import in_order


def test_onnx_outputs_come_by_name_in_order(tmp_path: Any) -> None:
    model = net()
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 9)).astype(np.float32)
    runner = OnnxRunner(model.SerializeToString())
    assert (runner.inputs, runner.outputs) == (["x"], ["y"])
    result = runner.run({"x": x})
    assert list(result) == ["y"]
    assert result["y"].shape == (2, 6)
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    np.testing.assert_array_equal(OnnxRunner(path, threads=0).run({"x": x})["y"], result["y"])


def test_arrays_go_by_name_else_by_order() -> None:
    a, b = np.ones(1), np.zeros(1)
    assert in_order(["b", "a"], {"a": a, "b": b}) == [b, a]
    assert in_order(["p", "q"], {"a": a, "b": b}) == [a, b]
    with pytest.raises(CannotTell, match="takes p, but a, b was given"):
        in_order(["p"], {"a": a, "b": b})


def test_graph_optimisation_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the runtime would fold the original too."""
    import onnxruntime

    seen: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(source: Any, options: Any, **rest: Any) -> Any:
        seen.append(options)
        return real(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OnnxRunner(net().SerializeToString())
    assert seen[0].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert seen[0].intra_op_num_threads == 1


def test_a_model_that_the_runtime_does_not_take_is_named_silently(capfd: pytest.CaptureFixture[str]) -> None:
    node = onnx.helper.make_node("Twist", ["x"], ["y"], domain="acme")
    info = onnx.helper.make_tensor_value_info("x", 1, [2])
    graph = onnx.helper.make_graph([node], "g", [info], [onnx.helper.make_tensor_value_info("y", 1, [2])])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("acme", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(CannotTell, match="ONNX Runtime does not take the model"):
        OnnxRunner(model.SerializeToString())
    runner = OnnxRunner(net(size=9).SerializeToString())
    with pytest.raises(CannotTell, match="ONNX Runtime failed on these inputs"):
        runner.run({"x": np.zeros((1, 3, 2, 2), np.float32)})
    assert capfd.readouterr().err == ""


class Pytree:
    """Built when first used, so that torch is imported by the tests that need it only."""

    @staticmethod
    def module() -> Any:
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 3)
                self.count: torch.Tensor
                self.register_buffer("count", torch.zeros(()))

            def forward(self, x: Any, nothing: Any, *, more: dict[str, Any]) -> dict[str, Any]:
                self.count.add_(1)
                y = self.linear(x) + more["shift"]
                return {"y": y * self.count, "nothing": None, "sum": y.sum()}

        torch.manual_seed(0)
        return Net()


def test_a_program_takes_flat_arrays_and_keeps_its_state() -> None:
    import torch

    from normfold.capture.aten import from_aten
    from normfold.capture.program import export_module

    module, x, shift = Pytree.module(), torch.randn(2, 4), torch.randn(3)
    program = export_module(module, (x, None), {"more": {"shift": shift}})
    runner = TorchRunner(program)
    feeds = dict(zip(runner.inputs, (x.numpy(), shift.numpy()), strict=True))
    assert runner.inputs == [value.name for value in from_aten(program).inputs]
    first, second = runner.run(feeds), runner.run(feeds)
    assert list(first) == runner.outputs
    assert len(first) == 2
    with torch.no_grad():
        expected = module(x, None, more={"shift": shift})
    for mine, again, name in zip(first.values(), second.values(), ("y", "sum"), strict=True):
        np.testing.assert_array_equal(mine, expected[name].numpy())
        np.testing.assert_array_equal(mine, again)


def test_a_module_is_called_in_order_and_may_write_to_its_inputs() -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a.mul_(2) - b, b > 0

    runner = TorchRunner(Net(), inputs=["a", "b"], outputs=["difference", "positive"])
    a = np.ones(3, np.float32)
    result = runner.run({"b": np.zeros(3, np.float32), "a": a})
    assert list(result) == ["difference", "positive"]
    np.testing.assert_array_equal(result["difference"], [2, 2, 2])
    np.testing.assert_array_equal(a, [1, 1, 1])
    assert result["positive"].dtype == np.bool_
    assert torch.is_grad_enabled()
    with pytest.raises(CannotTell, match="torch failed on these inputs"):
        runner.run({"a": a, "b": np.zeros((2, 2), np.float32)})
    with pytest.raises(CannotTell, match="gave 2 outputs, expected one"):
        TorchRunner(Net(), inputs=["a", "b"], outputs=["one"]).run({"a": a, "b": a})


def test_bfloat16_goes_in_and_out() -> None:
    from torch import nn

    x = np.array([1.0, 2.5, -3.0]).astype(BFLOAT16)
    result = TorchRunner(nn.ReLU(), inputs=["x"], outputs=["y"]).run({"x": x})["y"]
    assert result.dtype == BFLOAT16
    np.testing.assert_array_equal(result, np.array([1.0, 2.5, 0.0]).astype(BFLOAT16))
