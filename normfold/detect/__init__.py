"""The view -> its normalization layers: in one op or spelled in many, where, and how healthy."""

from normfold.detect.find import channel_count, find_norms
from normfold.detect.recurrent import recurrences

__all__ = ["channel_count", "find_norms", "recurrences"]
