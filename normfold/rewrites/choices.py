"""Choices that only a measurement settles: asked in one place, answered from a recorded table, or by whoever measured.

A rewrite that is exact need not be a gain: an addition behind a MatMul, a border map, the form of what is left of a norm.  The
rewrite puts a `Question`; a `Chooser` answers with one word.  `recorded(target, objective)` answers from targets.toml, where each
line says what was measured; a tuner that measures on this machine is another `Chooser`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from normfold.errors import UsageError

Target = Literal["onnxruntime", "openvino", "tensorrt", "generic"]
About = Literal["bias-add", "border-map", "leftover-shift", "slope-per-channel", "reroll", "rnn-layer"]
ANSWERS: dict[About, tuple[str, ...]] = {
    "bias-add": ("yes", "when it saves", "no"),
    "border-map": ("yes", "when it saves", "no"),
    "leftover-shift": ("add", "depthwise", "norm", "keep"),
    "slope-per-channel": ("yes", "no"),
    "reroll": ("yes", "when long", "no"),
    "rnn-layer": ("yes", "batch of one"),
}
"""What may be answered.  bias-add: an Add behind a MatMul.  border-map: an Add of a map behind a padded convolution.
leftover-shift: a norm whose scale could go and whose shift could not, written as an Add, a depthwise 1x1 convolution or a norm
with a = 1, or kept.  slope-per-channel: a LeakyReLU becomes a PReLU with a slope for each channel.  reroll: an unrolled loop
becomes a Scan, "when long" from the number of steps on that `rewrites.reroll` states.  rnn-layer: an unrolled
loop becomes an RNN, "batch of one" where no batch has more rows."""


@dataclass(frozen=True)
class Question:
    """about: the kind of choice.  where: label of the node behind which something comes.  elements: size of that tensor.

    saves: elements of the norms that go because of it, less the elements of everything that comes with them.
    steps: how often an unrolled loop does what a Scan would do once.
    """

    about: About
    where: str = ""
    elements: int = 0
    saves: int = 0
    steps: int = 0


Chooser = Callable[[Question], str]


def recorded(target: str, objective: str) -> Chooser:
    """Answers from the recorded table; a target without records is answered as "generic".

    Raises UsageError for an unknown target.
    """
    if target not in get_args(Target):
        raise UsageError(f"the target is one of {', '.join(get_args(Target))}; got {target!r}")
    answers = _table().get(target, _table()["generic"])[objective]

    def answer(question: Question) -> str:
        return str(answers[question.about])

    return answer


def has_records(target: str) -> bool:
    """True when something was measured on `target`."""
    return target in _table()


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("normfold.rewrites").joinpath("targets.toml").read_text())
