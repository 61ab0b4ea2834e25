"""What the float64 evaluator has to know: every op of the models beside the checkout, and of transformers' common networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normfold
from build import Builder
from normfold.capture.onnx import from_onnx
from normfold.capture.program import export_module
from normfold.errors import InputRefused
from normfold.graph import Graph
from normfold.ops.kernels import can_evaluate
from normfold.verify.noise import perturbed
from routes import exported

MALFORMED = {"super_resolution.onnx"}


def lacking(graph: Graph) -> set[str]:
    return {node.kind for node in graph.nodes if not can_evaluate(node)}


@pytest.mark.slow
def test_every_op_of_zoo_and_families_has_an_evaluation(shared: Path) -> None:
    files = sorted((*(shared / "zoo").rglob("*.onnx"), *(shared / "families").glob("*.onnx")))
    assert len(files) > 20
    for path in files:
        try:
            assert lacking(from_onnx(path)) == set(), path.name
        except InputRefused:
            assert path.name in MALFORMED or path.parent.name == "families"  # those come without weights


class Wrapped(nn.Module):
    """A transformers model with tensors in and out."""

    def __init__(self, model: Any, *names: str, out: str = "last_hidden_state", **options: Any) -> None:
        super().__init__()
        self.model, self.names, self.out, self.options = model, names, out, options

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(**dict(zip(self.names, inputs, strict=True)), **self.options), self.out)


SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def bert(library: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = library.BertModel(library.BertConfig(**SIZE, vocab_size=50, max_position_embeddings=16))
    return Wrapped(model, "input_ids", "attention_mask"), (torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64))


def vit(library: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = library.ViTModel(library.ViTConfig(**SIZE, image_size=16, patch_size=8))
    return Wrapped(model, "pixel_values"), (torch.randn(1, 3, 16, 16),)


def llama(library: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = library.LlamaForCausalLM(
        library.LlamaConfig(**SIZE, num_key_value_heads=2, vocab_size=50, max_position_embeddings=16)
    )
    return Wrapped(model, "input_ids", out="logits", use_cache=False), (torch.randint(0, 50, (1, 9)),)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [bert, vit, llama])
def test_transformers_are_evaluated_in_both_forms(make: Any) -> None:
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    module, inputs = make(library)
    program, model = export_module(module.eval(), inputs), exported(module, *inputs)
    for a, b in ((program, model), (model, model)):
        found = normfold.verify(a, b, level="quick")  # type: ignore[operator]
        assert found.verdict == "same", found.notes
        assert {"G2", "G3", "reference"} <= {item.gate for item in found.compared.judgement.comparisons}


def test_whole_numbers_that_shape_a_tensor_are_not_perturbed() -> None:
    """A step of 1, stored as a float and cast to an integer, would become 0."""
    b = Builder()
    scales, weights = b.const(np.array([1.0, 1.0, 2.0, 2.0])), b.const(np.arange(1.0, 33.0))
    gamma = b.const(np.array([1.5, 2.0]))
    assert np.array_equal(perturbed(0)(scales), [1, 1, 2, 2])
    assert not np.array_equal(perturbed(0)(weights), np.arange(1.0, 33.0))
    assert not np.array_equal(perturbed(0)(gamma), [1.5, 2.0])
