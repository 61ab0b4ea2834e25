"""Is the program in a ``.pt2`` archive only data?

An exported program is JSON, and torch turns parts of it into Python: operators are looked up by dotted path from ``torch``,
size expressions are evaluated by sympy, guards and argument names become source code.  `judge` lets through only what
an exporter writes: real operators, plain arithmetic over sizes, identifiers.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, cast

_TARGET = re.compile(r"torch\.ops\.[a-zA-Z]\w*\.[a-zA-Z_]\w*(\.\w+)?|torch\.sym_\w+|math\.[a-z]\w*")
_OPERATORS = frozenset(
    """add sub mul truediv floordiv mod neg pos pow abs getitem eq ne lt le gt ge and_ or_ xor not_ lshift rshift inv invert
    matmul""".split()
)
_FORBIDDEN = re.compile(r"__|\.(load_library|loaded_libraries|import_module|from_file|save|load)\b")
_IDENTIFIER = re.compile(r"[\w.]*")
_FUNCTIONS = frozenset(
    """Symbol Integer Float Rational Add Mul Pow Max Min Abs Eq Ne Lt Le Gt Ge Equality Unequality LessThan GreaterThan
    StrictLessThan StrictGreaterThan And Or Not Piecewise floor ceiling FloorDiv ModularIndexing Where PythonMod Mod CleanDiv
    CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator
    TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity""".split()
)
_GUARD_CALLS = frozenset("size stride storage_offset dim numel max min abs int float bool".split())
_ATOMS = (
    ast.Expression,
    ast.Load,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.BoolOp,
    ast.Compare,
    ast.Tuple,
    ast.IfExp,
)
_QUOTED = ("Symbol", "Float", "Integer", "Rational")  # functions whose arguments sympy prints as strings
_LONG, _EXPONENT = 5000, 8


def judge(content: Any) -> str | None:
    """What in the JSON of a program is more than data, None when nothing is."""
    for key, text in _strings(content):
        if key in ("target", "as_operator"):
            looked_up = text.startswith(("torch", "_operator", "math", "#"))
            if looked_up and (
                _FORBIDDEN.search(text) or not (_TARGET.fullmatch(text) or text.removeprefix("_operator.") in _OPERATORS)
            ):
                return f"calls {text[:80]!r}, which is not an operator of a model"
        elif key == "expr_str":
            if not plain_expression(text):
                return f"has the size expression {text[:80]!r}, which is not plain arithmetic"
        elif key == "guards_code":
            if not plain_guard(text):
                return f"has the guard {text[:80]!r}, which is not a comparison of sizes"
        elif key in ("name", "as_name", "arg", "forward_arg_names"):
            if not _IDENTIFIER.fullmatch(text):
                return f"has the name {text[:80]!r}, which is not an identifier"
        elif key == "in_spec" and not _keywords_plain(text):
            return "has a keyword argument that is not an identifier"
    return None


def plain_expression(text: str) -> bool:
    """True for what sympy prints of a size: ``Mul(Integer(2), Symbol('s0', integer=True))``, ``s0//2 + 1``."""
    tree = _parsed(text)
    if tree is None:
        return False
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    quoted = {id(item) for node in calls if isinstance(node.func, ast.Name) and node.func.id in _QUOTED for item in node.args}
    return all(_plain_size(node, id(node) in quoted) for node in ast.walk(tree))


def _plain_size(node: ast.AST, quoted: bool) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and _small_power(node.func.id, node.args)
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, (ast.Pow, ast.LShift)) or _small_power("Pow", [node.left, node.right])
    if isinstance(node, ast.Name):
        return not node.id.startswith("_") and "__" not in node.id
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) or (quoted and bool(re.fullmatch(r"[\w.+-]{1,40}", str(node.value))))
    return isinstance(node, (*_ATOMS, ast.UnaryOp, ast.keyword))


def _small_power(function: str, args: list[ast.expr]) -> bool:
    """Powers of unknown or large exponents are ways to exhaust memory."""
    if function not in ("Pow", "PowByNatural", "FloatPow", "LShift"):
        return True
    numbers = (
        [n.value for n in ast.walk(args[-1]) if isinstance(n, ast.Constant) and isinstance(n.value, (int, float))] if args else []
    )
    return len(numbers) == 1 and abs(numbers[0]) <= _EXPONENT


def plain_guard(text: str) -> bool:
    """True for a comparison over ``L['x'].size()[0]`` and numbers."""
    tree = _parsed(text)
    return tree is not None and all(_plain_guard(node) for node in ast.walk(tree))


def _plain_guard(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if node.keywords:
            return False
        if isinstance(node.func, ast.Attribute):
            return node.func.attr in _GUARD_CALLS or (
                isinstance(node.func.value, ast.Name) and node.func.value.id in ("math", "torch")
            )
        return isinstance(node.func, ast.Name) and node.func.id in _GUARD_CALLS
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == "torch":
            return node.attr.startswith("sym_")
        return not node.attr.startswith("_")
    if isinstance(node, ast.Name):
        return node.id in ("L", "math", "torch") or node.id in _GUARD_CALLS
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, (ast.Pow, ast.LShift)) or _small_power("Pow", [node.left, node.right])
    return isinstance(node, (*_ATOMS, ast.UnaryOp, ast.Subscript, ast.Constant))


def _parsed(text: str) -> ast.Expression | None:
    if len(text) > _LONG:
        return None
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _keywords_plain(text: str) -> bool:
    """The keyword names of the call in a serialized pytree spec ``[version, {children_spec: [args, kwargs]}]``."""
    try:
        spec = json.loads(text)
        kwargs = spec[1]["children_spec"][1]
        names = json.loads(kwargs["context"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return text == ""
    return isinstance(names, list) and all(isinstance(n, str) and n.isidentifier() for n in cast("list[Any]", names))


def _strings(content: Any) -> Iterator[tuple[str, str]]:
    """(key, text) of every string under a key anywhere in a JSON document."""
    stack: list[tuple[str, Any]] = [("", content)]
    while stack:
        key, item = stack.pop()
        if isinstance(item, dict):
            stack.extend((str(name), value) for name, value in cast("dict[Any, Any]", item).items())
        elif isinstance(item, list):
            stack.extend((key, value) for value in cast("list[Any]", item))
        elif isinstance(item, str):
            yield key, item
