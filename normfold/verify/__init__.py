"""Does the result compute the original's function?  Float64 evaluation, inputs to compare on, and the gates.

`judge` applies all gates to one result; `compare` two models of unknown kinship; `certificate` judges one rewrite; `run`
evaluates a view in float64.  The package itself can be called: `normfold.verify(a, b)` is `normfold.api.verify`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from normfold.verify.certificate import certificate
from normfold.verify.compare import Compared, Parting, Party, compare
from normfold.verify.evaluate import Walk, run
from normfold.verify.inputs import FAMILIES, Feed, feeds, make, read_data
from normfold.verify.judgement import Judgement, contract, judge
from normfold.verify.proof import Proof
from normfold.verify.runtimes import OnnxRunner, Runner, TorchRunner
from normfold.verify.sizes import bindings

__all__ = [
    "FAMILIES",
    "Compared",
    "Feed",
    "Judgement",
    "OnnxRunner",
    "Parting",
    "Party",
    "Proof",
    "Runner",
    "TorchRunner",
    "Walk",
    "bindings",
    "certificate",
    "compare",
    "contract",
    "feeds",
    "judge",
    "make",
    "read_data",
    "run",
]


class _Callable(ModuleType):
    """This package, as the function of the same name."""

    def __call__(self, a: Any, b: Any, **options: Any) -> Any:
        return import_module("normfold.api").verify(a, b, **options)  # a layer above this one: only when it is called


sys.modules[__name__].__class__ = _Callable
