"""The heat equation on a line of tokens, mode by mode, and the information of two samples it leaves in noise."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from pdejax._types import Depth, Field
from pdejax.exact._arguments import (
    Boundary,
    Values,
    as_float,
    closed_form,
    count,
    depth,
    known_boundary,
    nonnegative,
    positive,
    require,
)
from pdejax.exact._numerics import matrix_exponential, product


@closed_form
def heat_eigenvalues(
    n: int, boundary: Boundary, diffusivity: Values = 1.0, spacing: Values = 1.0, *, k: int | None = None
) -> Float[Array, "..."]:
    r"""Eigenvalues $\lambda_k \le 0$ of $D\,\nabla_h^2$, shape (n,) in the order of k, with
    $(\nabla_h^2u)_i = (u_{i-1} - 2u_i + u_{i+1})/\Delta x^2$:

    | boundary | k | $\lambda_k\,\Delta x^2/D$ |
    |---|---|---|
    | `"neumann"` (cell-centred) | 0 … n−1 | $-4\sin^2(\pi k/2n)$ |
    | `"periodic"` | 0 … n−1 | $-4\sin^2(\pi k/n)$ |
    | `"dirichlet"` (n interior points) | 1 … n | $-4\sin^2(\pi k/2(n+1))$ |

    The mode evolves as $e^{\lambda_k t}$; an explicit Euler step h multiplies it by $1 + h\lambda_k$. `diffusivity` D in length²
    per unit depth, `spacing` Δx: scalars. With `k` that eigenvalue alone, and both broadcast. Note that k counts half waves for
    Neumann and Dirichlet, from 1 for the latter, and n−k repeats k if periodic.

    Raises `ValueError` for n < 1, k outside its range, D < 0, Δx ≤ 0, an unknown boundary.
    Source: v1 (7), (8), discretized; the eigenvectors are those of the DCT-II, DFT and DST-I.
    """
    count("n", n)
    known_boundary(boundary)
    if k is not None:
        _check_mode(n, boundary, k)
    nonnegative("diffusivity", diffusivity)
    positive("spacing", spacing)
    d, dx = as_float(diffusivity, spacing)
    if k is not None:
        return float(_wave_numbers(n, boundary)[k - (boundary == "dirichlet")]) * d / dx**2
    return jnp.asarray(_wave_numbers(n, boundary), d.dtype) * (d / dx**2)


@closed_form
def heat_mode(n: int, boundary: Boundary, k: int) -> Float[Array, " n"]:
    """Mode k sampled on the grid with amplitude 1, shape (n,), in the default float type: cos(πk(i+½)/n)
    for Neumann, sin(πk(i+1)/(n+1)) for Dirichlet, and for periodic cos(2πki/n) if k ≤ n/2, else
    sin(2π(n−k)i/n). The n modes are orthogonal. Range of k and errors as for
    [`heat_eigenvalues`][pdejax.exact.heat_eigenvalues].
    """
    _check_mode(n, boundary, k)
    return jnp.asarray(_modes(n, boundary)[:, k - (boundary == "dirichlet")], jnp.result_type(float))


@closed_form
def heat_solution(u0: Field, diffusivity: Values, t: Depth, boundary: Boundary, length: Values = 1.0) -> Field:
    r"""Exact solution of the semi-discrete heat equation $u' = D\,\nabla_h^2u$ from `u0` (n, d) at depth t,
    shape (n, d):

    $$u(t) = \sum_k q_k\,\big(e^{t\lambda_kD}\,(q_k^\top u_0)^\top\big)^\top,$$

    $q_k$ the orthonormal modes and $\lambda_k$ the eigenvalues for D = 1. `diffusivity` D: a scalar, (d,)
    one per feature, or (d, d) acting on a token as a column, `(∇²u) @ D.T`. `length` of the domain: Δx =
    length/n, for Dirichlet length/(n+1). A dense sum of O(n²d).

    Raises `ValueError` for t < 0, D < 0 (entries, if no matrix), length ≤ 0, an unknown boundary, a wrong
    shape of D.
    """
    known_boundary(boundary)
    depth(t)
    positive("length", length)
    n, d = u0.shape
    u, rate, time, size = as_float(u0, diffusivity, t, length)
    if rate.shape not in ((), (d,), (d, d)):
        raise ValueError(f"diffusivity must be a scalar, {(d,)} or {(d, d)}; got shape {rate.shape}.")
    if rate.ndim < 2:
        nonnegative("diffusivity", diffusivity)
    spacing = size / (n + 1 if boundary == "dirichlet" else n)
    exponents = heat_eigenvalues(n, boundary, jnp.ones_like(time), spacing) * time
    amplitudes = mode_amplitudes(u, boundary)
    if rate.ndim == 2:
        decayed = jax.vmap(lambda z, a: product(matrix_exponential(z * rate), a))(exponents, amplitudes)
    else:
        decayed = jnp.exp(exponents[:, None] * jnp.broadcast_to(rate, (1, d))) * amplitudes
    return mode_sum(decayed, boundary)


@closed_form
def mode_amplitudes(u: Field, boundary: Boundary) -> Field:
    """Amplitudes of a field (n, d) in the orthonormal modes, in the order of k, shape (n, d). Orthonormal:
    white noise on tokens has the same variance in every mode, so these are the channels of
    [`diffusion_channel_information`][pdejax.exact.diffusion_channel_information].
    """
    known_boundary(boundary)
    basis = jnp.asarray(_orthonormal_modes(u.shape[0], boundary), u.dtype)
    return product(basis.T, u)


@closed_form
def mode_sum(amplitudes: Field, boundary: Boundary) -> Field:
    """Field (n, d) with given amplitudes in the orthonormal modes: the inverse of
    [`mode_amplitudes`][pdejax.exact.mode_amplitudes].
    """
    known_boundary(boundary)
    basis = jnp.asarray(_orthonormal_modes(amplitudes.shape[0], boundary), amplitudes.dtype)
    return product(basis, amplitudes)


def largest_wave_number(n: int | None, boundary: Boundary) -> float:
    """Largest $-\\lambda_k\\Delta x^2/D$: 4 on an infinitely large grid (`n=None`), a little less on a
    finite one.
    """
    return 4.0 if n is None else float(-np.min(_wave_numbers(n, boundary)))


def _check_mode(n: Any, boundary: Any, k: Any) -> None:
    count("n", n)
    known_boundary(boundary)
    first = 1 if boundary == "dirichlet" else 0
    count("k", k, first)
    require("k", k, lambda v: v < n + first, f"at most {n + first - 1} for a {boundary} grid of n={n}")


@functools.cache
def _wave_numbers(n: int, boundary: Boundary) -> np.ndarray:
    k = np.arange(n)
    if boundary == "neumann":
        angle = math.pi * k / (2 * n)
    elif boundary == "periodic":
        angle = math.pi * np.minimum(k, n - k) / n
    else:
        angle = math.pi * (k + 1) / (2 * (n + 1))
    return -4 * np.sin(angle) ** 2


@functools.cache
def _modes(n: int, boundary: Boundary) -> np.ndarray:
    """Columns are the modes. Integer angles are reduced modulo a turn first, which keeps high modes exact."""
    i, k = np.arange(n)[:, None], np.arange(n)[None, :]
    if boundary == "neumann":
        return np.cos(math.pi / (2 * n) * (k * (2 * i + 1) % (4 * n)))
    if boundary == "dirichlet":
        return np.sin(math.pi / (n + 1) * ((k + 1) * (i + 1) % (2 * (n + 1))))
    angle = 2 * math.pi / n * (np.minimum(k, n - k) * i % n)
    return np.where(2 * k <= n, np.cos(angle), np.sin(angle))


def _orthonormal_modes(n: int, boundary: Boundary) -> np.ndarray:
    modes = _modes(n, boundary)
    return modes / np.linalg.norm(modes, axis=0)


@closed_form
def bivariate_normal_information(correlation: Values) -> Float[Array, "..."]:
    r"""$I(X;Y) = -\tfrac12\ln(1-\rho^2)$ nats of two jointly Gaussian scalars with correlation ρ; inf for
    |ρ| = 1.
    Raises `ValueError` for ρ outside [−1, 1]. Source: Cover and Thomas, *Elements of Information Theory*,
    §8.5.
    """
    require("correlation", correlation, lambda r: (r >= -1) & (r <= 1), "in [−1, 1]")
    (r,) = as_float(correlation)
    return -0.5 * (jnp.log1p(r) + jnp.log1p(-r))


@closed_form
def diffusion_channel_information(
    prior_variances: Real[ArrayLike, " _"], eigenvalues: Real[ArrayLike, " _"], t: Depth, noise: Depth
) -> Float[Array, ""]:
    r"""Information about the initial field left after diffusion, $I(u_0;\,u(t) + \sigma\xi)$ in nats, for
    independent Gaussian modes and white noise ξ of unit variance on every token:

    $$I = \tfrac12\sum_k\ln\big(1 + s_k\,e^{2\lambda_kt}/\sigma^2\big).$$

    `prior_variances` s_k ≥ 0 (k,) of the amplitudes in the *orthonormal* modes
    ([`mode_amplitudes`][pdejax.exact.mode_amplitudes]), so that the noise has variance σ² there too;
    `eigenvalues` λ_k ≤ 0 (k,), 1 per unit depth, D included
    ([`heat_eigenvalues`][pdejax.exact.heat_eigenvalues]); `noise` σ > 0. Several independent features add
    up. Falls with t and with σ; grows without bound as σ → 0: without noise nothing is lost (claim C10).
    Raises `ValueError` for s_k < 0, λ_k > 0, t < 0, σ ≤ 0 or shapes that differ.
    Source: parallel Gaussian channels, Cover and Thomas, *Elements of Information Theory*, §9.4.
    """
    nonnegative("prior_variances", prior_variances)
    require("eigenvalues", eigenvalues, lambda v: v <= 0, "at most 0, diffusion does not grow")
    depth(t)
    positive("noise", noise)
    s, rates, time, sigma = as_float(prior_variances, eigenvalues, t, noise)
    if s.shape != rates.shape:
        raise ValueError(f"prior_variances has shape {s.shape}, eigenvalues {rates.shape}; they must be equal.")
    return 0.5 * jnp.sum(jnp.log1p(s * jnp.exp(2 * rates * time) / sigma**2))
