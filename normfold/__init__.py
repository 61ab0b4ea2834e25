"""normfold: remove every normalization layer that can exactly go, and prove it.

    result = normfold.optimize("net.onnx")             # a path: .onnx, .pt2, or a checkpoint with model="net.py:factory"
    result = normfold.optimize(module, (images,))      # a live module and example arguments; the module is never touched
    result.module, result.record, result.save("net.folded.onnx")
    normfold.verify("net.onnx", "net.folded.onnx").verdict  # "same", "different" or "cannot tell"

Public names: optimize, inspect, verify, Options, Result, Record, and the exceptions in normfold.errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.api import inspect, optimize, verify
    from normfold.pipeline import Options, Result
    from normfold.record import Record

__all__ = ["Options", "Record", "Result", "inspect", "optimize", "verify"]

_HOMES = {
    "Options": "normfold.pipeline",
    "Record": "normfold.record",
    "Result": "normfold.pipeline",
    "inspect": "normfold.api",
    "optimize": "normfold.api",
    "verify": "normfold.verify",  # the package, which can be called
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import normfold` itself stays light."""
    if name in _HOMES:
        from importlib import import_module

        home = import_module(_HOMES[name])
        return getattr(home, name, home)
    raise AttributeError(f"module 'normfold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
