"""Long loops of a torch model become Scans in its ONNX form: torch.export has no such operation that could be written.

The exported file is viewed, rewritten and judged by itself, behind the proof of the program that it was exported from.
"""

from __future__ import annotations

from pathlib import Path

from normfold.errors import NormfoldError
from normfold.graph import Graph
from normfold.pipeline.options import Options
from normfold.pipeline.proving import Write, objection
from normfold.pipeline.rewriting import policy_of
from normfold.pipeline.routes import TorchRoute
from normfold.record import Record
from normfold.rewrites import reroll


def roll_up(route: TorchRoute, graph: Graph, write: Write, folder: Path, options: Options, record: Record) -> None:
    """Exchange the ONNX form of the rewritten view `graph` for one with Scans, where that gains and says the same."""
    policy = policy_of(route.graph, options)
    if not options.uses(reroll.REWRITE.id) or not reroll.may_gain(graph, policy):
        return None
    import onnx

    from normfold.capture.onnx import from_onnx
    from normfold.capture.onnx_write import to_model
    from normfold.capture.tidy import tidy
    from normfold.export.to_onnx import check, proto_bytes, save_onnx

    target, left = folder / "rolled.onnx", "loops were left unrolled in the ONNX file"
    try:
        view = from_onnx(onnx.load_from_string(proto_bytes(route.as_onnx())))
        tidy(view)
        made = reroll.run(view, policy)
        if not made.applied:
            return None
        model = to_model(made.graph)
        save_onnx(model, target, force=True)
        found = check(target)
        why = found.checker or found.runtime or (objection(route, target, options) if options.verify else "")
    except NormfoldError as error:
        return record.warn(f"{left}: {error}")
    if why:
        return record.warn(f"{left}: {why}")
    route.take_onnx(model)
    write(".onnx")
    record.applied += made.applied
    return None
