"""Ops of other packages: the example in the documentation of `normfold.ops`, word for word."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from build import Builder
from judge import IMAGE, judged
from normfold import ops
from normfold.graph import Array
from normfold.ops import kernels, op_rules


class _Entry:
    def __init__(self, rules: Any) -> None:
        self.load = lambda: rules


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code in the documentation, as if a package offered it."""
    text = ops.__doc__ or ""
    code = text[text.index("    import numpy") : text.index("and in its pyproject.toml")]
    held: dict[str, Any] = {}
    exec(textwrap.dedent(code), held)
    monkeypatch.setattr(
        "normfold.ops.registry.entry_points", lambda group: [_Entry(held["RULES"])] if group == "normfold.ops" else []
    )
    op_rules.cache_clear()
    yield
    op_rules.cache_clear()
    kernels.KERNELS.pop("acme::ChannelBias")


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("behind", [True, False])
def test_the_documented_example(behind: bool) -> None:
    b = Builder()
    x = b.conv(b.input("x", IMAGE), 8) if behind else b.op("Sigmoid", b.input("x", ("N", 8, 6, 6)), shape=("N", 8, 6, 6))
    bias = b.const(b.rng.standard_normal(8))
    if behind:
        y = b.bn(b.op("acme::ChannelBias", x, bias, shape=x.shape), signed=True, name="bn")
        b.output(b.op("Sigmoid", y, shape=y.shape))
    else:
        b.output(b.conv(b.relu(b.op("acme::ChannelBias", b.bn(x, name="bn"), bias, shape=x.shape)), 3))
    assert judged(b.graph)["bn"].outcome == "deleted"


def test_without_the_rule_the_op_is_pinned() -> None:
    def add(node: Any, arrays: list[Array | None]) -> list[Array]:
        x, bias = arrays
        assert x is not None and bias is not None
        return [x + bias.reshape(-1, 1, 1)]

    kernels.kernel("acme::Other")(add)
    b = Builder()
    y = b.op("acme::Other", b.conv(b.input("x", IMAGE), 8), b.const(np.ones(8)), shape=("N", 8, 6, 6))
    b.output(b.op("Sigmoid", b.bn(y, name="bn"), shape=y.shape))
    assert judged(b.graph)["bn"].outcome == "kept"
    kernels.KERNELS.pop("acme::Other")
