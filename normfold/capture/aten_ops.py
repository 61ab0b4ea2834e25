"""Every spelling of ATen that has a twin in the view, in one table (importing the themes fills it)."""

from normfold.capture import aten_ops_layout, aten_ops_linear, aten_ops_norm, aten_ops_pointwise, aten_ops_spatial
from normfold.capture.aten_spell import SPELLINGS, spell

THEMES = (aten_ops_layout, aten_ops_linear, aten_ops_norm, aten_ops_pointwise, aten_ops_spatial)

__all__ = ["SPELLINGS", "THEMES", "spell"]
