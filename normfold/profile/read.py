"""A profile read back from its JSON, so that what was measured once can be judged and shown again."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from normfold.errors import InputRefused
from normfold.profile.result import ModelProfile, Percentile


def profile_from(data: Mapping[str, Any]) -> ModelProfile:
    """The ModelProfile whose plain form is `data`.  Raises InputRefused for anything else."""
    try:
        made = _made(ModelProfile, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRefused(f"this is no profile ({type(error).__name__}: {error}); measure the model again") from error
    assert isinstance(made, ModelProfile)
    return made


def _made(kind: Any, data: Any) -> Any:
    """`data` as the type `kind` asks for."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind, vars(sys.modules[kind.__module__]))
        return kind(**{item.name: _field(kind, item.name, hints[item.name], data[item.name]) for item in fields(kind)})
    if origin in (list, tuple):
        return origin(_made(arguments[0], item) for item in data)
    if origin is dict:
        return {key: _made(arguments[1], value) for key, value in data.items()}
    if origin in (Union, UnionType):
        return None if data is None else _made(next(item for item in arguments if item is not type(None)), data)
    return float(data) if kind is float else data


def _field(kind: type, name: str, hint: Any, data: Any) -> Any:
    if kind is Percentile and name == "high" and data is None:
        return math.inf
    return _made(hint, data)
