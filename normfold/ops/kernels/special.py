"""The error function in float64, and what is built on it."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import kernel, need, text, unsupported

# W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969), as in his CALERF:
# numerator and denominator coefficients on |x| <= 0.46875, 0.46875 < |x| <= 4, |x| > 4; relative error below 1e-16.
_A = (3.16112374387056560e00, 1.13864154151050156e02, 3.77485237685302021e02, 3.20937758913846947e03, 1.85777706184603153e-1)
_B = (2.36012909523441209e01, 2.44024637934444173e02, 1.28261652607737228e03, 2.84423683343917062e03)
_C = (
    5.64188496988670089e-1, 8.88314979438837594e00, 6.61191906371416295e01, 2.98635138197400131e02, 8.81952221241769090e02,
    1.71204761263407058e03, 2.05107837782607147e03, 1.23033935479799725e03, 2.15311535474403846e-8,
)  # fmt: skip
_D = (
    1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02, 1.62138957456669019e03, 3.29079923573345963e03,
    4.36261909014324716e03, 3.43936767414372164e03, 1.23033935480374942e03,
)  # fmt: skip
_P = (
    3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4,
    1.63153871373020978e-2,
)  # fmt: skip
_Q = (2.56852019228982242e00, 1.87295284992346725e00, 5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3)


def _ratio(y: Array, top: tuple[float, ...], bottom: tuple[float, ...]) -> Array:
    """Cody's nesting: the last coefficient of `top` leads, the leading one of `bottom` is 1."""
    numerator, denominator = top[-1] * y, y
    for a, b in zip(top[:-2], bottom[:-1], strict=True):
        numerator, denominator = (numerator + a) * y, (denominator + b) * y
    return (numerator + top[-2]) / (denominator + bottom[-1])


def erf(x: Array) -> Array:
    """The error function, in x's type, accurate to a few ulp of float64."""
    wide = x.astype(np.float64)
    y = np.abs(wide)
    result = np.empty_like(y)
    small, large = y <= 0.46875, y > 4
    middle = ~small & ~large & ~np.isnan(y)
    result[small] = y[small] * _ratio(np.square(y[small]), _A, _B)
    m = y[middle]
    result[middle] = 1 - np.exp(-np.square(m)) * _ratio(m, _C, _D)
    with np.errstate(all="ignore"):
        t = y[large]
        inverse = 1 / np.square(t)
        tail = (1 / np.sqrt(np.pi) - inverse * _ratio(inverse, _P, _Q)) / t
        result[large] = 1 - np.exp(-np.square(t)) * tail
    result[np.isnan(y)] = np.nan
    return np.copysign(result, wide).astype(x.dtype, copy=False)


@kernel("Erf")
def erf_kernel(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The error function."""
    return [erf(need(node, arrays, 0))]


@kernel("Gelu", attrs="approximate")
def gelu(node: Node, arrays: list[Array | None]) -> list[Array]:
    """x Phi(x), by erf ("none") or by tanh ("tanh")."""
    x, approximate = need(node, arrays, 0), text(node, "approximate", "none")
    if approximate == "none":
        return [x * 0.5 * (1 + erf(x * np.sqrt(0.5).item()))]
    if approximate == "tanh":
        return [0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).item() * (x + 0.044715 * x**3)))]
    raise unsupported(node, f"approximate {approximate!r}")
