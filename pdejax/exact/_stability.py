r"""Stability of explicit schemes on the negative real axis, THEORY §5.10, from their stability polynomials.

On y' = λy a step h multiplies y by $R(h\lambda)$, $R(z) = 1 + \sum_kc_kz^k$ with
$c_k = b^\top A^{k-1}\mathbf 1$ for the tableau (A, b); order p fixes $c_k = 1/k!$ up to k = p.
"""

import difflib
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax.exact._arguments import (
    Boundary,
    Values,
    as_float,
    closed_form,
    count,
    known_boundary,
    nonnegative,
    positive,
)
from pdejax.exact._heat import largest_wave_number

_TAYLOR = [1 / math.factorial(k) for k in range(9)]

# Coefficients beyond the order: from the tableaus of Dormand and Prince (1980), Tsitouras (2011), Prince and
# Dormand (1981).
_POLYNOMIALS: dict[str, tuple[float, ...]] = {
    "euler": (*_TAYLOR[:2],),
    "heun": (*_TAYLOR[:3],),
    "midpoint": (*_TAYLOR[:3],),
    "bosh3": (*_TAYLOR[:4],),
    "rk4": (*_TAYLOR[:5],),
    "dopri5": (*_TAYLOR[:6], 1 / 600),
    "tsit5": (*_TAYLOR[:6], 1.432211324807348e-3),
    "dopri8": (
        *_TAYLOR[:9],
        2.7521279901047085e-06,
        2.4231996586958726e-07,
        2.4389718205443187e-08,
        -2.0346152896857736e-10,
    ),
}


@closed_form
def stability_polynomial(solver: str) -> np.ndarray:
    """Coefficients of R(z), constant first, shape (degree + 1,), of an explicit scheme by name: euler,
    heun, midpoint, bosh3, rk4, dopri5, tsit5, dopri8. Raises `ValueError` for another name.
    Source: Hairer and Wanner, *Solving Ordinary Differential Equations II*, §IV.2.
    """
    if solver not in _POLYNOMIALS:
        close = difflib.get_close_matches(str(solver).lower(), _POLYNOMIALS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown explicit scheme {solver!r}.{hint} Known: {', '.join(_POLYNOMIALS)}.")
    return np.array(_POLYNOMIALS[solver])


@closed_form
def real_axis_limit(solver: str | Sequence[float] | np.ndarray) -> float:
    r"""Largest x with |R(z)| ≤ 1 on all of [−x, 0], for a scheme's name or the coefficients of R, constant
    first.

    Found from the real roots of R(z) = ±1 where |R| crosses 1. Euler, Heun, midpoint 2; Bosh3 2.5127; RK4
    2.7853; Dopri5 3.3066; Tsit5 3.5068; Dopri8 5.1666. 0 if R already exceeds 1 next to the origin.
    Raises `ValueError` for an unknown name, or coefficients that are not finite or do not start with 1.
    """
    c = stability_polynomial(solver) if isinstance(solver, str) else np.asarray(solver, float)
    if c.ndim != 1 or len(c) < 2 or not np.all(np.isfinite(c)) or c[0] != 1 or not np.any(c[1:]):
        raise ValueError(f"a stability polynomial starts with 1 and is not constant (coefficients c_0 … c_s); got {c}.")
    poly = np.polynomial.Polynomial(c)(np.polynomial.Polynomial([0.0, -1.0]))
    roots = [np.polynomial.Polynomial((poly - 1).coef[1:]).roots(), (poly + 1).roots()]
    candidates = np.concatenate(roots)
    real = np.unique(candidates[np.abs(candidates.imag) < 1e-6 * np.abs(candidates)].real)
    edges = np.concatenate([[0.0], real[real > 1e-9]])
    middles = np.append(0.5 * (edges[1:] + edges[:-1]), 2 * edges[-1] + 1)
    outside = np.flatnonzero(np.abs(poly(middles)) > 1 + 1e-12)
    return float(edges[outside[0]])


@closed_form
def diffusive_step_limit(
    solver: str | Sequence[float] | np.ndarray,
    diffusivity: Values,
    spacing: Values,
    n: int | None = None,
    boundary: Boundary = "neumann",
) -> Float[Array, "..."]:
    r"""Largest stable step of an explicit scheme for pure diffusion, $h \le x_R/\max_k|\lambda_k|$: with
    $x_R$ the scheme's [`real_axis_limit`][pdejax.exact.real_axis_limit], $h \le x_R\,\Delta x^2/4D$ on any
    grid (`n=None`), and on n tokens a little more, $\max|\lambda_k|$ being that of
    [`heat_eigenvalues`][pdejax.exact.heat_eigenvalues]. inf for D = 0 or n = 1 without walls. `diffusivity`
    D (largest eigenvalue of a symmetric matrix) and `spacing` Δx broadcast.

    For Euler this is the diffusive part of v1 (21), 2Dh/Δx² ≤ 1. Raises `ValueError` for an unknown scheme
    or boundary, D < 0, Δx ≤ 0, n < 1.
    """
    known_boundary(boundary)
    if n is not None:
        count("n", n)
    nonnegative("diffusivity", diffusivity)
    positive("spacing", spacing)
    d, dx = as_float(diffusivity, spacing)
    largest = d * (largest_wave_number(n, boundary) / dx**2)
    return jnp.where(largest > 0, real_axis_limit(solver) / jnp.where(largest > 0, largest, 1), jnp.inf)
