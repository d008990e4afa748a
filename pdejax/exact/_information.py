"""Exact mutual information of Gaussian channels, in nats, THEORY §5.11."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from pdejax._types import Depth
from pdejax.exact._arguments import Values, as_float, depth, nonnegative, positive, require


def bivariate_normal_information(correlation: Values) -> Float[Array, "..."]:
    r"""$I(X;Y) = -\tfrac12\ln(1-\rho^2)$ nats of two jointly Gaussian scalars with correlation ρ; inf for
    |ρ| = 1.
    Raises `ValueError` for ρ outside [−1, 1]. Source: Cover and Thomas, *Elements of Information Theory*,
    §8.5.
    """
    require("correlation", correlation, lambda r: (r >= -1) & (r <= 1), "in [−1, 1]")
    (r,) = as_float(correlation)
    return -0.5 * (jnp.log1p(r) + jnp.log1p(-r))


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
