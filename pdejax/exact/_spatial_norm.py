r"""Spatial normalization, v2 (9), alone and against linear growth, THEORY §5.4 and claim C4.

$u' = \lambda u - \gamma\,(u-\mu)/\sqrt{s^2+\varepsilon}$ with μ the weighted mean over tokens and s the
root-mean-square distance from it, $s^2 = \sum_iw_i\|u_i-\mu\|^2$, Σw = 1. The deviations keep their
direction and the mean feels only λ, so all is in $s' = \lambda s - \gamma s/\sqrt{s^2+\varepsilon}$.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from pdejax._types import Depth, Field
from pdejax.exact._arguments import Values, as_float, closed_form, depth, finite, nonnegative, positive, shares
from pdejax.exact._numerics import increasing_root, product


@closed_form
def spatial_norm_radius(s0: Values, gamma: Values, eps: Values, t: Values) -> Float[Array, "..."]:
    r"""Radius s(t) of $s' = -\gamma s/\sqrt{s^2+\varepsilon}$, s(0) = `s0`. Separation of variables gives

    $$F(s(t)) = F(s_0) - \gamma t,\qquad
      F(s) = \sqrt{s^2+\varepsilon} - \sqrt\varepsilon\,\operatorname{arsinh}(\sqrt\varepsilon/s).$$

    With $s = \sqrt\varepsilon/\sinh z$ this is $\coth z - z = F/\sqrt\varepsilon$, solved for z to
    round-off between the roots of $1/z - z = F/\sqrt\varepsilon$ and $1/z - z + 1 = F/\sqrt\varepsilon$.
    For ε = 0, $s = \max(s_0 - \gamma t, 0)$. For ε > 0 the radius never reaches 0; it ends like
    $e^{-\gamma t/\sqrt\varepsilon}$.

    All arguments ≥ 0, broadcast against each other; derivatives by the implicit function theorem (ε > 0).
    Raises `ValueError` for a negative or non-finite argument. Source: derived here from v2 (9).
    """
    nonnegative("s0", s0)
    nonnegative("gamma", gamma)
    nonnegative("eps", eps)
    depth(t)
    return _radii(*as_float(s0, gamma, eps, t))


@closed_form
def spatial_norm_time(s0: Values, s: Values, gamma: Values, eps: Values) -> Float[Array, "..."]:
    r"""Depth $(F(s_0) - F(s))/\gamma$ at which the radius has come from `s0` to `s`, the inverse of
    [`spatial_norm_radius`][pdejax.exact.spatial_norm_radius]; negative for s > s0. For s = 0 the depth of
    extinction: s0/γ for ε = 0, inf for ε > 0 or γ = 0; 0 for s = s0.
    Raises `ValueError` for a negative or non-finite argument. Source: v2 (9).
    """
    nonnegative("s0", s0)
    nonnegative("s", s)
    nonnegative("gamma", gamma)
    nonnegative("eps", eps)
    a, b, g, e = as_float(s0, s, gamma, eps)
    root = jnp.sqrt(e)

    def primitive(r):
        inverse = jnp.where(root > 0, root / jnp.where(root > 0, r, 1), 0)
        return jnp.sqrt(r**2 + e) - jnp.where(root > 0, root * jnp.arcsinh(inverse), 0)

    return jnp.where(a == b, 0.0, (primitive(a) - primitive(b)) / g)


@closed_form
def spatial_norm_solution(
    u0: Field, gamma: Depth, eps: Depth, t: Depth, weights: Real[ArrayLike, " _"] | None = None
) -> Field:
    r"""Field of spatial normalization alone, $u(t) = \mu_0 + (u_0 - \mu_0)\,s(t)/s_0$, with s from
    [`spatial_norm_radius`][pdejax.exact.spatial_norm_radius]: the mean stays, the deviations shrink in
    place.

    `u0` (n, d); `weights` w (n,), divided by their sum, equal for None. Returns (n, d); a constant field
    stays.
    Raises `ValueError` as there, and for weights of the wrong shape or ≤ 0. Source: v2 (9).
    """
    u, *_ = as_float(u0)
    w = shares(weights, u.shape[0], u.dtype)
    mean = product(w, u)
    deviation = u - mean[None]
    squared = jnp.sum(w * jnp.sum(deviation**2, axis=1))
    s0 = jnp.sqrt(jnp.where(squared > 0, squared, 1))
    return mean[None] + deviation * (spatial_norm_radius(s0, gamma, eps, t) / s0)


@closed_form
def spatial_norm_basin_radius(gamma: Values, growth: Values, eps: Values = 0.0) -> Float[Array, "..."]:
    r"""Radius $\sqrt{\gamma^2/\lambda^2 - \varepsilon}$ of the basin of s = 0 under
    $s' = \lambda s - \gamma s/\sqrt{s^2+\varepsilon}$, `growth` λ > 0: below it the field shrinks, above it
    grows, at it the radius stands still (unstably). 0 if γ ≤ λ√ε: no basin. So spatial normalization does
    not tame linear growth (claim C4). Raises `ValueError` for λ ≤ 0, γ < 0, ε < 0.
    Source: derived here from v2 (9).
    """
    nonnegative("gamma", gamma)
    positive("growth", growth)
    nonnegative("eps", eps)
    g, rate, e = as_float(gamma, growth, eps)
    squared = (g / rate) ** 2 - e
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0.0)


@closed_form
def spatial_norm_growth_radius(s0: Values, gamma: Values, growth: Values, t: Values) -> Float[Array, "..."]:
    r"""Radius under spatial normalization and linear growth for ε = 0, $s' = \lambda s - \gamma$ until s =
    0, which is final:

    $$s(t) = \max\big(0,\ s_0e^{\lambda t} - \gamma(e^{\lambda t}-1)/\lambda\big).$$

    For λ > 0 and s0 > γ/λ it grows as $\gamma/\lambda + (s_0-\gamma/\lambda)e^{\lambda t}$. `growth` λ of
    any sign.
    Raises `ValueError` for negative s0, γ, t or a λ that is not finite. Source: derived here from v2 (9).
    """
    nonnegative("s0", s0)
    nonnegative("gamma", gamma)
    finite("growth", growth)
    depth(t)
    s, g, rate, time = as_float(s0, gamma, growth, t)
    nonzero = jnp.where(rate == 0, 1, rate)
    added = jnp.where(rate == 0, time, jnp.expm1(nonzero * time) / nonzero)
    return jnp.maximum(s * jnp.exp(rate * time) - g * added, 0.0)


@jax.jit
def _radii(s0: Array, gamma: Array, eps: Array, t: Array) -> Array:
    return jnp.vectorize(_radius)(s0, gamma, eps, t)


def _radius(s0: Array, gamma: Array, eps: Array, t: Array) -> Array:
    implicit = (eps > 0) & (s0 > 0)
    root, s = jnp.sqrt(jnp.where(implicit, eps, 1)), jnp.where(implicit, s0, 1)
    level = (jnp.sqrt(s**2 + root**2) - gamma * t) / root - jnp.arcsinh(root / s)
    low, high = _hyperbola(level), _hyperbola(level - 1)
    z = increasing_root(lambda z: level - (1 / jnp.tanh(z) - z), low, high, low)
    inner = 2 * root * jnp.exp(-z) / -jnp.expm1(-2 * z)
    return jnp.where(implicit, inner, jnp.maximum(s0 - gamma * t, 0))


def _hyperbola(c: Array) -> Array:
    """Positive root of 1/z − z = c without cancellation."""
    root = jnp.sqrt(c**2 + 4)
    return jnp.where(c > 0, 2 / (jnp.abs(c) + root), 0.5 * (jnp.abs(c) + root))
