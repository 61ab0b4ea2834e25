"""Take a torch module down both routes (ATen, and ONNX as the exporter writes it unoptimised), rewrite, prove, run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from normfold.capture.aten import from_aten
from normfold.capture.aten_inputs import flatten_inputs
from normfold.capture.aten_write import to_program
from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.program import export_module
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array, Graph
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.verify.certificate import certificate


@dataclass
class Taken:
    """One route's result: what became of each norm, the graphs, the largest error of the outputs against eager torch."""

    outcome: Outcome
    before: Graph
    error: float

    @property
    def outcomes(self) -> list[str]:
        return [finding.outcome for finding in self.outcome.findings]

    @property
    def codes(self) -> list[str]:
        return [finding.refusal.code for finding in self.outcome.findings if finding.refusal is not None]

    def norms_left(self) -> int:
        return sum(node.kind == "BatchNormalization" for node in self.outcome.graph.nodes)


def _rewritten(graph: Graph, feeds: dict[str, Array], objective: str) -> Outcome:
    tidy(graph)
    outcome = rewrite(graph, Options(objective=objective))  # type: ignore[arg-type]
    failed = [item for item in certificate(graph, outcome.graph, feeds) if not item.passed]
    assert not failed, failed[:3]
    return outcome


def _error(expected: tuple[Any, ...], came: list[Any]) -> float:
    worst = 0.0
    for a, b in zip(expected, came, strict=True):
        reference = a.detach().numpy().astype(np.float64)
        scale = np.abs(reference[np.isfinite(reference)]).max(initial=1e-30)
        assert np.array_equal(np.isnan(reference), np.isnan(b)), "the pattern of NaN is part of the function"
        worst = max(worst, float(np.nanmax(np.abs(np.asarray(b, np.float64) - reference), initial=0.0) / scale))
    return worst


def flat(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def aten(module: torch.nn.Module, *args: Any, objective: str = "norms", dynamic: Any = None, program: Any = None) -> Taken:
    """module -> ExportedProgram (or `program`, which holds its parameters) -> view -> rewritten ExportedProgram, run by torch."""
    with torch.no_grad():
        expected = flat(module(*[item.clone() for item in args]))
    program = program or export_module(module, args, dynamic_shapes=dynamic)
    graph = from_aten(program)
    outcome = _rewritten(graph, flatten_inputs(program, args), objective)
    with torch.no_grad():
        came = flat(to_program(outcome.graph).module()(*args))
    return Taken(outcome, graph, _error(expected, [item.numpy() for item in came]))


def exported(module: torch.nn.Module, *args: Any, dynamic: Any = None) -> onnx.ModelProto:
    """What torch.onnx.export(optimize=False) writes."""
    program = torch.onnx.export(module, args, dynamo=True, optimize=False, dynamic_shapes=dynamic, verbose=False)
    assert program is not None
    return program.model_proto


def through_onnx(model: onnx.ModelProto, feeds: dict[str, Array], objective: str = "norms") -> tuple[Outcome, Graph, list[Array]]:
    """ModelProto -> view -> rewritten model, checked and run by ONNX Runtime without its own optimisations."""
    graph = from_onnx(model)
    outcome = _rewritten(graph, feeds, objective)
    data = proto_bytes(to_model(outcome.graph))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    return outcome, graph, run_onnx(data, feeds)


def run_onnx(data: bytes, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def by_onnx(
    module: torch.nn.Module, *args: Any, objective: str = "norms", dynamic: Any = None, model: onnx.ModelProto | None = None
) -> Taken:
    """module -> ONNX (unoptimised; or `model`, which holds its parameters) -> view -> rewritten ONNX, run by ONNX Runtime."""
    with torch.no_grad():
        expected = flat(module(*[item.clone() for item in args]))
    model = model or exported(module, *args, dynamic=dynamic)
    feeds = {item.name: array.numpy() for item, array in zip(model.graph.input, args, strict=True)}
    outcome, graph, came = through_onnx(model, feeds, objective)
    return Taken(outcome, graph, _error(expected, came))


def randomised(module: torch.nn.Module, *, signed: bool = True, seed: int = 0) -> torch.nn.Module:
    """Eval mode, with statistics and affine parameters that look trained: signed gammas, spread variances."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(tensor.shape, generator=generator) * (high - low) + low

    for part in module.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean = torch.randn(part.running_mean.shape, generator=generator) * 0.3
            part.running_var = uniform(part.running_var, 0.3, 2.0)
        if isinstance(part, torch.nn.modules.batchnorm._NormBase) and part.affine:
            gamma = uniform(part.weight, 0.5, 1.5)
            if signed:
                gamma = gamma * (1 - 2 * (torch.rand(gamma.shape, generator=generator) < 0.3).float())
            part.weight = torch.nn.Parameter(gamma)
            part.bias = torch.nn.Parameter(torch.randn(part.bias.shape, generator=generator) * 0.3)
    return module.eval()
