"""Does the result compute the original's function?  Float64 evaluation, inputs to compare on, and the gates.

`judge` applies all gates to one result; `certificate` judges one rewrite; `run` evaluates a view in float64.
"""

from normfold.verify.certificate import certificate
from normfold.verify.evaluate import Walk, run
from normfold.verify.inputs import FAMILIES, Feed, bindings, feeds, make, read_data
from normfold.verify.judgement import Judgement, contract, judge
from normfold.verify.runtimes import OnnxRunner, Runner, TorchRunner

__all__ = [
    "FAMILIES",
    "Feed",
    "Judgement",
    "OnnxRunner",
    "Runner",
    "TorchRunner",
    "Walk",
    "bindings",
    "certificate",
    "contract",
    "feeds",
    "judge",
    "make",
    "read_data",
    "run",
]
