"""The ordered pipeline, the choice by cost, undo: the only place that decides."""

from normfold.pipeline.options import Objective, Options
from normfold.pipeline.stages import Result, inspect, run

__all__ = ["Objective", "Options", "Result", "inspect", "run"]
