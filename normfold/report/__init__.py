"""The record of a run, for people and for programs.  Nothing is decided or computed here."""

from normfold.report.json import to_json
from normfold.report.terminal import render

__all__ = ["render", "to_json"]
