"""Rewrites that keep the function: one structural change, one file; see `normfold.rewrites.rewrite`."""

from normfold.rewrites.registry import rewrites
from normfold.rewrites.rewrite import Fate, Fates, Policy, Rewrite, Rewritten

__all__ = ["Fate", "Fates", "Policy", "Rewrite", "Rewritten", "rewrites"]
