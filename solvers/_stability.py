"""Stability functions of Runge–Kutta methods and their limit on the negative real axis, from the tableau."""

import math

import diffrax
import numpy as np
from numpy.polynomial import polynomial

from pdejax._arguments import checked
from pdejax.solvers._tableau import tableau


@checked
def stability_function(solver: diffrax.AbstractSolver) -> tuple[np.ndarray, np.ndarray] | None:
    """Coefficients (P, Q), constant term first, of R(z) = P(z)/Q(z): one step on y' = λy multiplies y by R(hλ).

    R(z) = 1 + z bᵀ(I − zA)⁻¹1 for the tableau (A, b) of s stages, A lower triangular: Q(z) = Π(1 − z a_ii),
    which is 1 for explicit methods, and P the terms up to degree s of Q(z)(1 + Σ_k z^k bᵀA^{k−1}1). None
    without a tableau.

    Source: Hairer and Wanner, *Solving Ordinary Differential Equations II*, (IV.3.2), (IV.3.3).
    """
    method = tableau(solver)
    if method is None:
        return None
    weights = np.array(method.weights)
    matrix = np.diag(method.diagonal)
    for i, row in enumerate(method.rows):
        matrix[i, :i] = row
    series, column = [1.0], np.ones(len(weights))
    for _ in weights:
        series.append(float(weights @ column))
        column = matrix @ column
    denominator = np.ones(1)
    for a in method.diagonal:
        denominator = polynomial.polymul(denominator, [1.0, -a])
    numerator = polynomial.polymul(denominator, series)[: len(weights) + 1]
    return numerator, denominator


@checked
def real_stability_limit(solver: diffrax.AbstractSolver) -> float | None:
    """Largest β with |R(z)| ≤ 1 on [−β, 0]: the step on u' = λu, λ < 0, is stable for h|λ| ≤ β.

    For diffusion D on a grid of spacing dx this means h ≤ β dx² / 4D (a little more on a short grid). inf for
    A-stable methods (as far as |z| = 10⁶), None for solvers without a tableau, such as splittings, whose
    limit is their sub-solvers'.
    """
    function = stability_function(solver)
    if function is None:
        return None
    numerator, denominator = function

    def unstable(beta, slack=0.0):
        ratio = polynomial.polyval(-beta, numerator) / polynomial.polyval(-beta, denominator)
        return np.abs(ratio) > 1.0 + slack

    grid = np.geomspace(1e-2, 1e6, 20_000)
    beyond = np.flatnonzero(unstable(grid, slack=1e-12))
    if len(beyond) == 0:
        return math.inf
    low, high = grid[beyond[0] - 1], grid[beyond[0]]
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (low, middle) if unstable(middle) else (middle, high)
    return float(low)
