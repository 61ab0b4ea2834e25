"""The ordered pipeline, the choice by cost, undo: the only place that decides."""

from normfold.optimize.options import Objective, Options
from normfold.optimize.pipeline import Result, inspect, run

__all__ = ["Objective", "Options", "Result", "inspect", "run"]
