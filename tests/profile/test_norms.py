"""What becomes of every norm, what is said of it, and the sentence on all of them."""

from __future__ import annotations

from typing import Any

import pytest

from normfold.profile.norms import norm_costs, sentence
from normfold.profile.origin import Original, SourceNode
from normfold.profile.result import Kernel, Level, Parallel, Reconciled
from normfold.record import Finding, Refusal


def original(**norms: str) -> Original:
    """A convolution and one node for each norm: name -> kind."""
    nodes = [SourceNode(0, "conv", "Conv", ("x",), ("c",), "stem", True)]
    for index, name in enumerate(norms, 1):
        nodes.append(SourceNode(index, f"n_{name}", "BatchNormalization", ("c",), (f"{name}_y",), name, True, norm=name))
    found = Original(None, nodes)  # type: ignore[arg-type]
    found.kinds = dict(norms)
    return found


def level(name: str, *kernels: Kernel) -> Level:
    total = sum(kernel.seconds for kernel in kernels)
    share = sum(kernel.seconds for kernel in kernels if kernel.norm) / total
    parts = Reconciled(total, total, 0.0, 0.0, 0.0, total, 0.0)
    return Level(name, 10, list(kernels), parts, 1.0, 0.0, share, share, share, Parallel(total, {}, []))


def kernel(name: str, seconds: float, norm: str = "", op: str = "Conv", members: tuple[str, ...] = ()) -> Kernel:
    return Kernel(name, op, seconds, layer=name, members=list(members or (name,)), norm=norm)


def finding(name: str, outcome: str = "kept", **refused: str) -> Finding:
    refusal = Refusal(refused.get("code", "sign"), "because", refused.get("fix", "do this")) if outcome == "kept" else None
    return Finding(name, "batch", "BatchNormalization", f"n_{name}", outcome=outcome, refusal=refusal)  # type: ignore[arg-type]


OFF = level("disabled", kernel("conv", 8e-3), kernel("n_bn", 2e-3, "bn", "BatchNormalization"))


def rows(
    now: Level, latency: list[Finding], norms: list[Finding] | None = None, deployed: Original | None = None, kind: str = "batch"
) -> Any:
    before = original(bn=kind)
    return norm_costs(before, OFF, deployed or before, now, latency, latency if norms is None else norms)


def test_the_runtime_folds_it() -> None:
    now = level("all", kernel("stem", 8e-3, members=("conv", "n_bn")))
    [row] = found = rows(now, [finding("bn", "deleted")])
    assert (row.fate, row.now, row.off) == ("folded by the runtime", 0.0, 2e-3)
    assert row.action == "nothing to gain here: the runtime folds it into stem"
    said = sentence(found, OFF, now)
    assert (
        said.startswith("Your runtime already does this: at level all")
        and "20.0 %" in said
        and said.endswith("gains nothing here.")
    )


def test_the_exporter_folds_it() -> None:
    now = level("all", kernel("stem", 8e-3, members=("conv",)))
    [row] = found = rows(now, [finding("bn", "deleted")], deployed=original())
    assert (row.fate, row.now) == ("folded by the exporter", 0.0)
    assert "exporter already does this" in sentence(found, OFF, now)


def test_it_is_gone_without_a_trace() -> None:
    [row] = rows(level("all", kernel("stem", 8e-3, members=("conv",))), [finding("bn", "deleted")])
    assert row.fate == "not run"


@pytest.mark.parametrize(
    ("latency", "norms", "said"),
    [
        ("deleted", "deleted", "`normfold optimize` removes it"),
        ("kept", "deleted", "`normfold optimize --objective norms` removes it"),
        ("shift", "shift", "leaves an addition"),
        ("kept", "kept", "do this"),
    ],
)
def test_what_removes_it(latency: str, norms: str, said: str) -> None:
    now = level("all", kernel("stem", 6e-3), kernel("n_bn", 2e-3, "bn", "Mystery"))
    [row] = found = rows(now, [finding("bn", latency)], [finding("bn", norms)])
    assert (row.fate, row.share) == ("own kernel", pytest.approx(0.25))
    assert said in row.action
    assert "25.0 %" in sentence(found, OFF, now)
    assert ("which gains at most 25.0 %" in sentence(found, OFF, now)) == (latency == "deleted")


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("SkipLayerNormalization", "as Sum"),
        ("LpNormalization", "ReduceL2"),
        ("Reciprocal", "Sqrt"),
        ("GroupNormalization", "opset 21"),
    ],
)
def test_a_slow_spelling_is_said(op: str, said: str) -> None:
    [row] = rows(level("all", kernel("n_bn", 2e-3, "bn", op)), [finding("bn", fix="retrain")])
    assert row.action.startswith("retrain; ") and said in row.action


def test_a_norm_in_many_nodes_that_optimise_does_not_see() -> None:
    now = level("all", *(kernel(f"k{i}", 1e-3, "bn", op) for i, op in enumerate(("Sub", "Mul", "ReduceMean", "Sqrt", "Div"))))
    [row] = rows(now, [], kind="layer")
    assert "spelled as arithmetic" in row.action and row.outcome == "kept"
    [row] = rows(now, [], kind="group")
    assert row.action == "nothing exact is known that removes it"


def test_no_norm_at_all() -> None:
    assert sentence([], OFF, OFF) == "The model has no normalization layer."
