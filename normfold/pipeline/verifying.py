"""`verify A B`: load two models, compare them, say where a difference begins; run an earlier verification again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from normfold.errors import CannotTell, InputRefused, UsageError
from normfold.export.manifest import manifest_path
from normfold.load import Call, Loaded, load
from normfold.pipeline.options import Options
from normfold.pipeline.routes import Route, open_route
from normfold.pipeline.versions import versions
from normfold.record import Applied, Record

if TYPE_CHECKING:
    from normfold.graph import Array, Graph
    from normfold.verify import Compared, Party
    from normfold.verify.judgement import Tell

Level = Literal["quick", "standard", "thorough"]
DRAWS = {"quick": 1, "standard": 2, "thorough": 4}
SCHEMA = "normfold.verification/1"


@dataclass(frozen=True)
class Plan:
    """What to compare on, and how to load the two models; everything that a report needs to run again.

    level: "quick", "standard", "thorough".  seed: of inputs and of the noise.  runtime: run both models (G3), not float64 alone.
    data: an .npz with inputs that are compared on as they are.  inputs: shapes of example inputs.  dynamic: open sizes.
    inputs_from: ``file.py:function``.  model, model_b: what builds the networks of checkpoints.  key, prefix, sidecar: as for
    loading.  seconds: time after which the rest of the inputs is left out, None for no limit.
    """

    level: Level = "standard"
    seed: int = 0
    runtime: bool = True
    data: Path | None = None
    inputs: tuple[str, ...] = ()
    inputs_from: str | None = None
    dynamic: tuple[str, ...] = ()
    model: str | None = None
    model_b: str | None = None
    key: str | None = None
    prefix: str | None = None
    sidecar: bool = True
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise UsageError(f"level is one of {', '.join(get_args(Level))}; got {self.level!r}")
        if self.seconds is not None and self.seconds <= 0:
            raise UsageError(f"seconds is the time for comparing, above 0; got {self.seconds}")


@dataclass(frozen=True)
class Side:
    """One of the two models: where it lies ("" for a live object), its hash ("" likewise), its kind."""

    path: str
    sha256: str
    kind: str


@dataclass
class Verification:
    """Everything that one comparison learnt.

    feeds: label, family and sizes of each input that was compared on.  responsible: the rewrite that the first parting value goes
    back to, where a manifest beside B tells.  rewrites: those that made B of A, where it tells.
    """

    a: Side
    b: Side
    plan: Plan
    compared: Compared
    feeds: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rewrites: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    responsible: str = ""
    versions: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    @property
    def verdict(self) -> Literal["same", "different", "cannot tell"]:
        """What the gates say, all together."""
        return self.compared.verdict

    @property
    def exit_code(self) -> int:
        """0 same, 1 different, 4 cannot tell."""
        return {"same": 0, "different": 1, "cannot tell": 4}[self.verdict]


def verify(a: Any, b: Any, plan: Plan | None = None, *, calls: Sequence[Call] = (), tell: Tell | None = None) -> Verification:
    """Compare two models: paths, nn.Modules, ExportedPrograms or ModelProtos.

    calls: example calls of torch models, or feeds of ONNX models as keyword arguments.  tell: as for `judge`.
    A difference is a result, not an error.  Raises what loading and capture raise: InputRefused, UsageError.
    """
    from normfold.verify import compare, feeds

    began = time.perf_counter()
    plan = plan or Plan()
    record = Record()
    first = _open(a, plan, plan.model, calls, record)
    second = _open(b, plan, plan.model_b or plan.model, calls or _calls(first), record, second=True)
    examples = first.examples()[-1:]
    data = _data(plan, first, examples)
    inputs = feeds(first.graph, examples=examples, data=data, level=plan.level, seed=plan.seed)
    made = _manifest(first.loaded, second.loaded)
    compared = compare(
        _party(first, plan), _party(second, plan), inputs, named=bool(made), draws=DRAWS[plan.level], seed=plan.seed,
        budget=plan.seconds or float("inf"), tell=tell, peer=partial(first.peer, Path(f"b{second.default}")),
    )  # fmt: skip
    return Verification(
        _side(first.loaded, record.source),
        _side(second.loaded, str(b) if isinstance(b, (str, Path)) else ""),
        plan,
        compared,
        [{"label": feed.label, "family": feed.family, "sizes": feed.sizes} for feed in inputs],
        _rewrites(made),
        _responsible(made, compared, first.graph),
        versions(),
        [*record.warnings, *compared.judgement.notes, *_left_out(compared)],
        round(time.perf_counter() - began, 3),
    )


def again(path: Path, *, tell: Tell | None = None) -> tuple[Verification, str]:
    """Run the verification of a report again; returns it, and what the report says that the verdict was.

    Raises InputRefused for a file that is no such report, or when a model is not the one that the report speaks of.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["schema"] != SCHEMA:
            raise InputRefused(f"{path} follows the schema {report['schema']!r}, this normfold reads {SCHEMA!r}")
        fields: dict[str, Any] = dict(report["settings"])
        fields |= {name: tuple(fields[name]) for name in ("inputs", "dynamic")}
        fields["data"] = None if fields["data"] is None else Path(fields["data"])
        plan = Plan(**fields)
        sides = [Side(**report[name]) for name in ("a", "b")]
        verdict = str(report["verdict"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputRefused(f"{path} is no report of `normfold verify -o` ({what}); make one with -o r.json") from None
    for side in sides:
        if not side.path:
            raise InputRefused(f"{path} tells of a model that was never a file; give A and B instead")
        _same_file(path, Path(side.path), side.sha256)
    if plan.data is not None:
        _same_file(path, plan.data, str(report["data_sha256"]))
    return verify(sides[0].path, sides[1].path, plan, tell=tell), verdict


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _same_file(report: Path, path: Path, expected: str) -> None:
    if not path.is_file():
        raise InputRefused(f"{report} speaks of {path}, which is not there")
    if sha256_of(path) != expected:
        raise InputRefused(f"{path} has changed since {report} was written; verify it anew with A and B")


# ---- the two models -------------------------------------------------------------------------------------------------------


def _open(source: Any, plan: Plan, model: str | None, calls: Sequence[Call], record: Record, *, second: bool = False) -> Route:
    """Load and capture one model.  The second needs inputs of its own only to be exported."""
    from normfold.load import sniff

    own = Record() if second else record
    form = sniff(Path(source)) if isinstance(source, (str, Path)) else type(source).__name__
    graphs = form in ("onnx", "ModelProto")
    module = not graphs and form not in ("pt2", "ExportedProgram")
    told: dict[str, Any] = {}
    if module or not second:
        if calls:
            told["calls"] = list(calls)
        elif plan.data is not None and not graphs:
            told["data"] = plan.data
        elif plan.inputs or plan.inputs_from:
            told |= {"inputs": list(plan.inputs) or None, "inputs_from": plan.inputs_from}
    loaded = load(
        source, model=model if module and isinstance(source, (str, Path)) else None, key=plan.key if module else None,
        prefix=plan.prefix if module else None, dynamic=list(plan.dynamic) or None if module else None, sidecar=plan.sidecar,
        record=own, **told,
    )  # fmt: skip
    if second:
        record.notes += [note for note in own.notes if note not in record.notes]
    return open_route(loaded, Options(), own)


def _calls(first: Route) -> list[Call]:
    """Example calls for a second model that is a module: those of the first, or its example inputs in their order."""
    if first.loaded.calls:
        return list(first.loaded.calls)
    if not first.loaded.feeds:
        return []
    import torch

    return [(tuple(torch.from_numpy(array.copy()) for array in first.loaded.feeds[-1].values()), {})]


def _data(plan: Plan, first: Route, examples: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """The user's own inputs."""
    from normfold.verify import read_data

    if plan.data is not None:
        return read_data(plan.data, first.graph)
    return examples if first.loaded.own_inputs else []


def _party(route: Route, plan: Plan) -> Party:
    from normfold.verify import Party

    kind: Literal["onnx", "torch"] = "onnx" if route.loaded.kind == "onnx" else "torch"
    if not plan.runtime:
        return Party(route.graph, None, kind)
    try:
        return Party(route.graph, route.original(), kind)
    except CannotTell as error:
        return Party(route.graph, None, kind, f"G3 cannot tell: {error}; compare it with --no-runtime")


def _side(loaded: Loaded, path: str) -> Side:
    return Side(path if loaded.path is not None else "", loaded.sha256, loaded.kind)


def _left_out(compared: Compared) -> list[str]:
    return [f"not compared on {label} inputs: {reason}" for label, reason in compared.judgement.left_out.items()]


# ---- what a manifest tells ------------------------------------------------------------------------------------------------


def _manifest(first: Loaded, second: Loaded) -> dict[str, Any]:
    """The manifest beside the second model, where it says that the second was made of the first; else nothing."""
    if first.path is None or second.path is None:
        return {}
    path = manifest_path(second.path)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = found["source_sha256"] == first.sha256 and second.sha256 in found["outputs"].values()
        return found if same and second.kind == first.kind else {}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _applied(made: dict[str, Any]) -> list[Applied]:
    return [Applied(str(item["rule"]), str(item["target"]), str(item["detail"])) for item in made.get("applied", [])]


def _rewrites(made: dict[str, Any]) -> list[dict[str, Any]]:
    counts: dict[str, int] = {}
    for item in _applied(made):
        counts[item.rule] = counts.get(item.rule, 0) + 1
    return list(made.get("rewrites") or [{"rule": rule, "made": count} for rule, count in counts.items()])


def _responsible(made: dict[str, Any], compared: Compared, graph: Graph) -> str:
    """The rewrite around the first value that parts."""
    from normfold.verify.locate import suspects

    if compared.parting is None or not made:
        return ""
    applied = _applied(made)
    near = suspects(graph, graph, compared.parting.value, [item.target for item in applied])
    rules = list(dict.fromkeys(item.rule for item in applied if item.target in near))
    return f"{', '.join(rules)} on {', '.join(near)}" if near else ""
