"""The Python API: the same pipeline as the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normfold.load import Call, load
from normfold.pipeline import Objective, Options, Result, run
from normfold.pipeline import inspect as inspect_loaded
from normfold.pipeline.verifying import Level, Plan, Verification
from normfold.pipeline.verifying import verify as compare
from normfold.record import Record


def optimize(
    model: Any,
    inputs: Any = None,
    *,
    objective: Objective = "latency",
    outputs: Sequence[str | Path] = (),
    dynamic: Sequence[str] = (),
    factory: str | None = None,
    target: str = "onnxruntime",
    verify: bool = True,
    simplify: bool = False,
    timing: bool = False,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    keep: Sequence[str] = (),
    clone_budget: str | int = 0,
    keep_overridable: bool = False,
    opset: int | None = None,
    force: bool = False,
    proof_seconds: float = 30.0,
) -> Result:
    """Remove the normalization layers of `model` that can exactly go, and prove that the function is the same.

    model: a path (.onnx, .pt2, or a checkpoint with `factory`), an nn.Module (never changed), an ExportedProgram or an
      onnx.ModelProto.
    inputs: example arguments of a torch model: a tuple of positional arguments, a tensor, a (args, kwargs) pair, or input specs
      as on the command line (``["image=1x3x224x224"]``).
    objective: "latency" never makes the result slower; "norms" removes all that can exactly go.
    target: the runtime whose records say what is faster: "onnxruntime", "openvino", "tensorrt" or "generic".
    outputs: files to write (.onnx, .pt2).  dynamic: open sizes of a torch input (``["image=Nx3xHxW"]``).
    factory: ``path.py:function`` that builds the network of a checkpoint.
    verify: judge the result in float64 and in its runtime.  simplify: tidy an ONNX result with onnxsim.  timing: measure latency.
    only, skip: rewrite ids.  keep: shell patterns of module paths that stay.  force: replace existing outputs.
    clone_budget: how much copies of shared weights may add so that more norms go: bytes, "2MB", or "5%" of the model.
    proof_seconds: the time that judging one artefact may take (one kind of input is always judged).

    Raises normfold.errors.NormfoldError: InputRefused, UsageError, ResultDiffers (nothing is written), CannotTell.
    """
    options = Options(
        objective=objective,
        target=target,
        verify=verify,
        simplify=simplify,
        timing=timing,
        only=tuple(only),
        skip=tuple(skip),
        keep=tuple(keep),
        clone_budget=clone_budget,
        keep_overridable=keep_overridable,
        opset=opset,
        outputs=tuple(Path(path) for path in outputs),
        force=force,
        proof_seconds=proof_seconds,
    )
    record = Record()
    return run(_load(model, inputs, dynamic, factory, record), options, record)


def inspect(model: Any, inputs: Any = None, *, dynamic: Sequence[str] = (), factory: str | None = None) -> Record:
    """Every normalization layer of `model`, how healthy it is, and what `optimize` would do with it; nothing is written.

    Arguments and errors as for `optimize`.
    """
    record = Record()
    return inspect_loaded(_load(model, inputs, dynamic, factory, record), record)


def verify(
    a: Any,
    b: Any,
    inputs: Any = None,
    *,
    level: Level = "standard",
    seed: int = 0,
    data: str | Path | None = None,
    dynamic: Sequence[str] = (),
    factory: str | None = None,
    factory_b: str | None = None,
    runtime: bool = True,
) -> Verification:
    """Do two models compute one function?  `normfold.verify(a, b)` calls this.

    a, b: paths (.onnx, .pt2, checkpoints with `factory`), nn.Modules, ExportedPrograms or ModelProtos.
    inputs: example arguments as for `optimize`; compared on as they are.  data: an .npz with inputs to compare on besides.
    level: "quick", "standard" or "thorough".  seed: of the inputs and of the noise.  runtime: run both, not float64 alone.

    Returns a Verification: verdict ("same", "different", "cannot tell"), compared.judgement, compared.parting.
    Raises InputRefused and UsageError; a difference is a result.
    """
    specs, calls = _inputs(inputs)
    plan = Plan(
        level=level,
        seed=seed,
        data=None if data is None else Path(data),
        inputs=tuple(specs or ()),
        dynamic=tuple(dynamic),
        model=factory,
        model_b=factory_b,
        runtime=runtime,
    )
    return compare(a, b, plan, calls=calls or ())


def _load(model: Any, inputs: Any, dynamic: Sequence[str], factory: str | None, record: Record) -> Any:
    specs, calls = _inputs(inputs)
    return load(model, model=factory, inputs=specs, calls=calls, dynamic=list(dynamic) or None, record=record)


def _inputs(inputs: Any) -> tuple[list[str] | None, list[Call] | None]:
    """Input specs, or calls, of what people write."""
    specs: list[str] | None = None
    calls: list[Call] | None = None
    if inputs is not None:
        if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(item, str) for item in inputs):
            specs = [str(item) for item in inputs]
        else:
            calls = [_call(inputs)]
    return specs, calls


def _call(inputs: Any) -> Call:
    """(args, kwargs) of one call, from what people write."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs
    if isinstance(inputs, dict):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}
