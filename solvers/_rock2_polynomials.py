"""The stability polynomials of ROCK2, computed from their definition in double precision."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RIPPLE = 0.95
"""Largest |R_s| in the interval of stability, away from 0."""

_FIRST_ZERO = 2.0
# The other two parameters to about 1e-5, as polynomials in 1/s², and the Jacobian of their equations for s → ∞: where the
# search for them starts.
_GUESS = ((3.373, 10.29, 23.7), (5.2994, 8.797, 24.6))
_JACOBIAN = ((0.15937, -0.17007), (-0.29337, -0.40342))


class Rock2(NamedTuple):
    """R_s(z) = w(z) P_{s−2}(z), with P_0 = 1, P_1 = 1 + μ_1 z and

        P_j = (μ_j z + 1 + κ_j) P_{j−1} − κ_j P_{j−2},   w(z) = 1 + 2σz + τz².

    `mu` and `kappa` hold j = 1 … s − 2, `nodes` the c_j of P_0 … P_{s−2}; |R_s| ≤ 1 on [−limit, 0].
    """

    mu: np.ndarray
    kappa: np.ndarray
    nodes: np.ndarray
    sigma: float
    tau: float
    limit: float


def _recurrence(stages: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """(a_j, b_j) of the monic P_{j+1} = (x − a_j) P_j − b_j P_{j−1}, orthogonal on [−1, 1] with the weight
    w²/√(1 − x²), w = (x − α)² + β²: Stieltjes' procedure on Gauss–Chebyshev points, exact for these degrees.
    """
    count = stages + 4
    x = np.cos((np.arange(count) + 0.5) * (math.pi / count))
    weight = ((x - alpha) ** 2 + beta**2) ** 2
    a, b = np.zeros(stages - 2), np.zeros(stages - 2)
    before, p, size = np.zeros(count), np.ones(count), 1.0
    for j in range(stages - 2):
        mass = weight * p * p
        total = float(np.sum(mass))
        a[j] = float(np.sum(x * mass)) / total
        b[j] = total / size if j else 0.0
        before, p, size = p, (x - a[j]) * p - b[j] * before, total
    return a, b


def _values(a: np.ndarray, b: np.ndarray, alpha: float, beta: float, x: np.ndarray) -> np.ndarray:
    """w P_{s−2} at x, each factor x − a_j doubled so that the size stays near 1."""
    before, p = np.zeros_like(x), np.ones_like(x)
    for aj, bj in zip(a, b, strict=True):
        before, p = p, 2.0 * (x - aj) * p - 4.0 * bj * before
    return ((x - alpha) ** 2 + beta**2) * p


def _derivatives(a: np.ndarray, b: np.ndarray, alpha: float, beta: float, x: float) -> tuple[float, float, float]:
    """w P_{s−2}, its first and its second derivative at one x, scaled as in `_values`."""
    p, p1, p2, q, q1, q2 = 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for aj, bj in zip(a.tolist(), b.tolist(), strict=True):
        c, e = 2.0 * (x - aj), 4.0 * bj
        p, p1, p2, q, q1, q2 = c * p - e * q, c * p1 + 2.0 * p - e * q1, c * p2 + 4.0 * p1 - e * q2, p, p1, p2
    w, w1 = (x - alpha) ** 2 + beta**2, 2.0 * (x - alpha)
    return w * p, w1 * p + w * p1, 2.0 * p + 2.0 * w1 * p1 + w * p2


@functools.cache
def rock2_polynomial(stages: int) -> Rock2:
    """The coefficients for s ≥ 3 stages.

    In a variable x, z = δ (x − x0), the weight's zeros are α ± iβ with α = 1 + 2/s², which is within 0.1 % of the choice
    with the longest interval for s ≥ 6 (0.4 % for s = 3). β and x0 then follow from two equations: R'' R = R'² at x0,
    which with δ = R'/R is order two, and max |R| = 0.95 R(x0) left of α. The interval reaches to x = −1; its length
    tends to 0.807 s².
    """
    square = float(stages * stages)
    alpha = 1.0 + _FIRST_ZERO / square
    inside = np.cos(np.linspace(0.0, math.pi, 8 * stages + 1))
    points = np.concatenate([inside, np.linspace(1.0, alpha, 20)])

    def residual(unknown):
        beta, x0 = unknown[0] / square, 1.0 + unknown[1] / square
        a, b = _recurrence(stages, alpha, beta)
        r, r1, r2 = _derivatives(a, b, alpha, beta, x0)
        ripple = np.max(np.abs(_values(a, b, alpha, beta, points))) / r
        return np.array([r * r2 / r1**2 - 1.0, math.log(ripple / RIPPLE)])

    solution, found = _root(residual, np.array([np.polyval(row[::-1], 1.0 / square) for row in _GUESS]))
    if not found < 1e-10:
        raise RuntimeError(f"the stability polynomial of {stages} stages was not found: residual {found:.1e}.")
    beta, x0 = solution[0] / square, 1.0 + solution[1] / square
    a, b = _recurrence(stages, alpha, beta)
    r, r1, _ = _derivatives(a, b, alpha, beta, x0)
    return _normalized(a, b, alpha, beta, x0, r1 / r)


def _root(residual: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
    """A root by Broyden's method to round-off, and the residual there: half as many evaluations as with differences."""
    inverse, r = np.linalg.inv(np.array(_JACOBIAN)), residual(x)
    for _ in range(30):
        step = -inverse @ r
        new = residual(x + step)
        if np.max(np.abs(r)) < 1e-11 and np.max(np.abs(new)) >= np.max(np.abs(r)):
            break
        update = step @ inverse
        inverse = inverse + np.outer(step - inverse @ (new - r), update) / (update @ (new - r))
        x, r = x + step, new
        if np.max(np.abs(r)) < 1e-13:
            break
    return x, float(np.max(np.abs(r)))


def _normalized(a: np.ndarray, b: np.ndarray, alpha: float, beta: float, x0: float, delta: float) -> Rock2:
    mu, kappa, nodes, ratio, before = [], [], [0.0], 1.0, 0.0
    for aj, bj in zip(a, b, strict=True):
        new = 1.0 / (x0 - aj - bj * ratio)  # P_j / P_{j+1} at x0
        mu.append(new / delta)
        kappa.append(bj * new * ratio)
        nodes.append(mu[-1] + (1.0 + kappa[-1]) * nodes[-1] - kappa[-1] * before)
        ratio, before = new, nodes[-2]
    w = (x0 - alpha) ** 2 + beta**2
    return Rock2(
        mu=np.array(mu),
        kappa=np.array(kappa),
        nodes=np.array(nodes),
        sigma=(x0 - alpha) / (delta * w),
        tau=1.0 / (delta**2 * w),
        limit=(1.0 + x0) * delta,
    )


class Rock2Table(NamedTuple):
    """The methods a step chooses from: arrays over the chosen stage numbers, rows padded with zeros."""

    stages: np.ndarray
    limits: np.ndarray
    mu: np.ndarray
    kappa: np.ndarray
    nodes: np.ndarray
    sigma: np.ndarray
    tau: np.ndarray


@functools.cache
def rock2_table(largest: int) -> Rock2Table:
    """All stage numbers up to 12, then in steps of at most 10 %, up to `largest`."""
    stages = [3]
    while stages[-1] < largest:
        stages.append(min(largest, max(stages[-1] + 1, int(1.1 * stages[-1]))))
    methods = [rock2_polynomial(s) for s in stages]

    def padded(rows, width):
        return np.array([np.pad(row, (0, width - len(row))) for row in rows])

    return Rock2Table(
        stages=np.array(stages),
        limits=np.array([m.limit for m in methods]),
        mu=padded([m.mu for m in methods], largest - 2),
        kappa=padded([m.kappa for m in methods], largest - 2),
        nodes=padded([m.nodes for m in methods], largest - 1),
        sigma=np.array([m.sigma for m in methods]),
        tau=np.array([m.tau for m in methods]),
    )
