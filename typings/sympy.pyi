# What normfold calls of sympy, which ships no types: the sizes of torch.export are its expressions.
from collections.abc import Mapping
from typing import Any, Self

class Basic:
    @property
    def free_symbols(self) -> set[Any]: ...
    def xreplace(self, rule: Mapping[Any, Any]) -> Self: ...

class Expr(Basic): ...

class Symbol(Expr):
    name: str
    def __init__(self, name: str, **assumptions: bool) -> None: ...
