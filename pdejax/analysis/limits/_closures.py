"""Closures: equations for what many tokens have in common, beside which the tokens themselves are run."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pdejax import _check
from pdejax._arguments import checked
from pdejax._check import on_numbers
from pdejax._discretization import Discretization
from pdejax._figure import AbstractRecord, Figure
from pdejax._simulate import simulate
from pdejax._types import Field
from pdejax.analysis.limits._exponents import exponent_over_draws

TOLERANCE = 1e-9


class GaussianTokens(NamedTuple):
    """Mean `(d,)` and covariance `(d, d)` of tokens."""

    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]


@checked
def gaussian_closure(
    mean: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    *,
    logits: Float[Array, "d d"],
    values: Float[Array, "d d"],
    t1: float | int,
) -> GaussianTokens:
    r"""Integrate mean μ and covariance Σ of Gaussian tokens under softmax attention without normalization to depth t1:

    $$x' = V(\mu + \Sigma Bx),\qquad \mu' = V(\mu + \Sigma B\mu),\qquad \Sigma' = V\Sigma B\Sigma + (V\Sigma B\Sigma)^\top$$

    for `logits` $\langle y, Bx\rangle$ of the query x and the key y, and `values` V. It is exact for infinitely many tokens: the
    softmax of a Gaussian is a Gaussian shifted by ΣBx, so that tokens stay Gaussian. Tsit5 at 1e-9.

    Raises `ValueError` for matrices that do not fit. Blow-up in finite depth gives values that are not finite
    ([`gaussian_blowup_time`][pdejax.exact.gaussian_blowup_time]). Source: arXiv 2501.18322; the mean derived here.
    """
    d = mean.shape[0]
    for name, matrix in (("covariance", covariance), ("logits", logits), ("values", values)):
        if matrix.shape != (d, d):
            raise ValueError(
                f"gaussian_closure: {name} has shape {matrix.shape}; it must be {(d, d)}, that of the mean."
            )

        _check.real_array("gaussian_closure", name, matrix)
        _check.finite("gaussian_closure", name, matrix)
    _check.finite("gaussian_closure", "mean", _check.real_array("gaussian_closure", "mean", mean))

    def field(t, u, args):
        del t, args
        mu, sigma = u[0], u[1:]
        turned = values @ sigma @ logits
        return jnp.concatenate([(values @ mu + turned @ mu)[None], turned @ sigma + (turned @ sigma).T])

    start = jnp.concatenate([mean[None], covariance])
    end = simulate(Discretization(field, "tsit5", t1=float(t1), rtol=TOLERANCE, atol=TOLERANCE), start, save="end").us[
        -1
    ]
    return GaussianTokens(end[0], end[1:])


@checked
def gaussian_attention(u: Field, logits: Float[Array, "d d"], values: Float[Array, "d d"]) -> Field:
    r"""Field of the tokens that [`gaussian_closure`][pdejax.analysis.limits.gaussian_closure] is of,
    $x_i' = V\sum_j\mathrm{softmax}_j(\langle x_j, Bx_i\rangle)\,x_j$, for tokens `u (n, d)`; all are keys."""
    return jax.nn.softmax(u @ logits.T @ u.T, axis=1) @ u @ values.T


@checked
def circle_closure(density: Float[Array, " m"], beta: float | int, *, t1: float | int) -> Float[Array, " m"]:
    r"""Integrate the density ρ of infinitely many tokens on the circle, at m equally spaced angles from 0, to depth t1:

    $$\partial_t\rho + \partial_\theta(\rho\chi) = 0,\qquad
      \chi(\theta) = \frac{\int e^{\beta\cos\psi}\sin\psi\;\rho(\theta+\psi)\,d\psi}
        {\int e^{\beta\cos\psi}\rho(\theta+\psi)\,d\psi},$$

    [`sphere_attention`][pdejax.exact.sphere_attention] in d = 2. Fourier's method in θ, Tsit5 at 1e-9 in depth: accurate to
    rounding while the density is smooth on the grid, which clusters are not. The integral of ρ is kept.

    Raises `ValueError` for fewer than 8 points, an odd number of them, values that are not finite, an integral that is not
    positive, or β < 0. Source: arXiv 2312.10794, (3.1).
    """
    m = density.shape[0]
    if m < 8 or m % 2:
        raise ValueError(f"circle_closure: density has {m} points; give an even number of at least 8, such as 256.")
    _check.finite("circle_closure", "density", _check.real_array("circle_closure", "density", density))
    if _check.known(density) and not float(np.sum(np.asarray(density))) > 0:
        raise ValueError("circle_closure: density must have a positive integral.")
    beta = _check.number("circle_closure", "beta", beta, least=0)
    psi = 2 * np.pi * np.arange(m) / m
    weight = np.exp(beta * (np.cos(psi) - 1))
    # Correlation with a kernel is multiplication by the conjugate of its transform.
    pull, total = (
        jnp.asarray(np.conj(np.fft.rfft(kernel)), complex_of(density)) for kernel in (weight * np.sin(psi), weight)
    )
    wave = np.arange(m // 2 + 1).astype(float)
    wave[-1] = 0  # the highest mode has no derivative
    slope = jnp.asarray(1j * wave, complex_of(density))

    def field(t, u, args):
        del t, args
        rho = u[:, 0]
        spectrum = jnp.fft.rfft(rho)
        chi = jnp.fft.irfft(pull * spectrum, m) / jnp.fft.irfft(total * spectrum, m)
        return -jnp.fft.irfft(slope * jnp.fft.rfft(rho * chi), m)[:, None]

    d = Discretization(field, "tsit5", t1=float(t1), rtol=TOLERANCE, atol=TOLERANCE)
    return simulate(d, density[:, None], save="end").us[-1][:, 0]


def complex_of(x: Array):
    """The complex type of the same precision."""
    return jnp.complex128 if x.dtype == jnp.float64 else jnp.complex64


class ClosureGap(AbstractRecord):
    """How far tokens are from their closure: root mean square `gaps (k,)` over seeds at `tokens` N, and the `exponent` of N with
    its interval over seeds: −½ where tokens are independent at the start and the closure is exact for N → ∞."""

    tokens: tuple[int, ...]
    gaps: Float[np.ndarray, " k"]
    exponent: Figure


@checked
@on_numbers
def closure_gap(
    measure: Callable[[int, int], ArrayLike], closure: ArrayLike, *, tokens: Sequence[int], seeds: int = 24
) -> ClosureGap:
    r"""Measure how the gap between N tokens and a closure falls with N: the root mean square of $\|q_N - q\|$ over seeds
    $\propto N^e$.

    `measure(n, seed)` runs n tokens that are drawn with this seed and returns the quantity that `closure` is of, an array of its
    shape. The exponent is fitted over `tokens` by least squares, its interval by the jackknife over seeds.

    Raises `ValueError` for fewer than three numbers of tokens or fewer than 3 seeds.
    """
    counts = tuple(_check.integer("closure_gap", "tokens", n) for n in tokens)
    _check.integer("closure_gap", "seeds", seeds, 3)
    if len(set(counts)) < 3 or len(set(counts)) < len(counts):
        raise ValueError(f"closure_gap: tokens={counts} must hold at least three numbers, each once.")
    expected = np.asarray(closure, float)
    squares = np.array(
        [[np.sum((np.asarray(measure(n, seed), float) - expected) ** 2) for seed in range(seeds)] for n in counts]
    )
    value, ci = exponent_over_draws(counts, lambda x: np.sqrt(x.mean(axis=1)), squares)
    finite = math.isfinite(value) and bool(np.all(np.isfinite(squares)))
    exponent = Figure(value, value - ci, value + ci) if finite else Figure(math.nan, math.nan, math.nan)
    return ClosureGap(counts, np.sqrt(squares.mean(axis=1)), exponent)
