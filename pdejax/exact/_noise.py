"""Limits with noise that all tokens share, and with many tokens on the circle: closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pdejax.exact._arguments import Values, as_float, closed_form, count, nonnegative, positive, require

_REACH, _POINTS = 60.0, 12001  # of the quadrature of the scale function, in artanh of the cosine
_CIRCLE = 512


@closed_form
def two_token_rates(gamma: Values, beta: Values, d: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Drift and variance, per unit depth, of the cosine γ of two tokens on the unit sphere of R^d under attention with random
    value matrices,

    $$d\gamma = \tfrac12(1-\gamma^2)\big[(d-1)(1-\tau) - (1+\gamma) + \tau(1-\gamma)\big]\,dt + (1-\gamma^2)\sqrt{1+\tau}\,dB,
      \qquad \tau = \tanh^2\tfrac{\beta(1-\gamma)}2\qquad\text{(Itô)}.$$

    *Hypotheses.* Layers $x_i \leftarrow N\big(x_i + L^{-1/2}W_l\sum_j\mathrm{softmax}_j(\beta\langle x_i, x_j\rangle)x_j\big)$, N
    the projection on the sphere, entries of W_l independent of mean 0 and variance 1, L → ∞ at depth t = l/L. A variance σ² makes
    depth σ²t. *Derivation.* With $m_i$ the attention means, $a = |m_i|^2$ and $b = \langle m_1, m_2\rangle$, the normalized layer
    is $dx_i = P_i\,dW\,m_i - \tfrac12(d-1)a\,x_i\,dt$ in Itô's sense, so that γ drifts by $(d-2+\gamma^2)b - (d-1)a\gamma$ and
    has the variance $2(1-\gamma^2)(a - b\gamma)$; and $2a = (1+\gamma) + \tau(1-\gamma)$, $2b = (1+\gamma) - \tau(1-\gamma)$.

    Raises `ValueError` for γ outside [−1, 1], β < 0, d < 2. The system is that of arXiv 2601.21942; derived here.
    """
    count("d", d, 2)
    require("gamma", gamma, lambda g: (g >= -1) & (g <= 1), "in [−1, 1]")
    nonnegative("beta", beta)
    g, b = as_float(gamma, beta)
    tau = jnp.tanh(b * (1 - g) / 2) ** 2
    drift = 0.5 * (1 - g**2) * ((d - 1) * (1 - tau) - (1 + g) + tau * (1 - g))
    return drift, (1 - g**2) ** 2 * (1 + tau)


@closed_form
def two_token_exponents(beta: Values, d: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Lyapunov exponents of two tokens under [`two_token_rates`][pdejax.exact.two_token_rates]: the rates of the logarithm of
    the angle between them where they nearly coincide, $-\tfrac12(d-1)$, and of the angle to the antipode where they are nearly
    opposite,

    $$\lambda = \tfrac12\big((d-1)\,\mathrm{sech}^2\beta - 2\big).$$

    Coincidence attracts always, and the antipode where λ < 0, beyond
    [`two_token_critical_beta`][pdejax.exact.two_token_critical_beta]: there nearly opposite tokens stay opposite; below it they
    leave and meet. Raises `ValueError` for β < 0 or d < 2. Derived here.
    """
    count("d", d, 2)
    nonnegative("beta", beta)
    (b,) = as_float(beta)
    # The hyperbolic secant by e^{−β}, which does not overflow.
    secant = 2 * jnp.exp(-b) / (1 + jnp.exp(-2 * b))
    return jnp.full_like(b, -0.5 * (d - 1)), 0.5 * ((d - 1) * secant**2 - 2)


@closed_form
def two_token_critical_beta(d: int) -> float:
    r"""The β from which the antipode attracts under [`two_token_rates`][pdejax.exact.two_token_rates]: nearly opposite tokens
    stay opposite; below it they leave and meet:
    $\beta_c = \tfrac12\,\mathrm{arcosh}(d - 2)$, the zero of $(d-1)\,\mathrm{sech}^2\beta = 2$; 0 for d ≤ 3.

    Raises `ValueError` for d < 2. Derived here.
    """
    count("d", d, 2)
    return 0.5 * math.acosh(d - 2) if d > 3 else 0.0


@closed_form
def antipodal_probability(gamma0: Values, beta: Values, d: int) -> Float[Array, "..."]:
    r"""Probability that two tokens of cosine γ₀ end opposite to one another, and not at one point, under
    [`two_token_rates`][pdejax.exact.two_token_rates]:

    $$P = \frac{\int_{x_0}^\infty S}{\int_{-\infty}^\infty S},\qquad
      S(x) = \mathrm{sech}(x)\,\exp\Big(-(d-2)\int_0^x\mathrm{sech}\big(\beta(1-\tanh\xi)\big)\,d\xi\Big),$$

    x = artanh γ, in which $dx = \tfrac12[(d-2)(1-\tau) + \gamma(1+\tau)]dt + \sqrt{1+\tau}\,dB$ and S is the derivative of the
    scale function. 0 up to the critical β, where S cannot be integrated at −∞. By the corrected trapezoidal rule on |x| ≤ 60 and
    the exponential tails beyond, in float64 to about 1e-9.

    Raises `ValueError` for γ₀ outside (−1, 1), β < 0, d < 2. Derived here.
    """
    count("d", d, 2)
    require("gamma0", gamma0, lambda g: (g > -1) & (g < 1), "in (−1, 1)")
    nonnegative("beta", beta)
    return jnp.vectorize(lambda g, b: _probability(g, b, d))(*as_float(gamma0, beta))


def _probability(gamma0: Array, beta: Array, d: int) -> Array:
    x = jnp.linspace(-_REACH, _REACH, _POINTS, dtype=gamma0.dtype)
    step = 2 * _REACH / (_POINTS - 1)

    def secant(y):
        return 2 * jnp.exp(-jnp.abs(y)) / (1 + jnp.exp(-2 * jnp.abs(y)))

    def summed(f, slope):
        """∫f from the first point to each, by the trapezoidal rule with the first of Euler and Maclaurin's corrections."""
        plain = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum((f[1:] + f[:-1]) / 2)]) * step
        return plain - step**2 / 12 * (slope - slope[0])

    y = beta * (1 - jnp.tanh(x))
    rate = secant(y)
    inner = summed(rate, rate * jnp.tanh(y) * beta * secant(x) ** 2)
    log_density = jnp.log(secant(x)) - (d - 2) * (inner - inner[(_POINTS - 1) // 2])
    density = jnp.exp(log_density - jnp.max(log_density))
    slope = -density * (jnp.tanh(x) + (d - 2) * rate)
    excess = (d - 2) * secant(2 * beta)
    # Beyond the ends S is an exponential.
    below = density[0] / jnp.where(excess < 1, 1 - excess, 1.0)
    upto = below + summed(density, slope)
    whole = upto[-1] + density[-1] / (d - 1)
    # Cubic Hermite interpolation between two points.
    start = jnp.clip(jnp.arctanh(gamma0), -_REACH, _REACH)
    i = jnp.clip(((start + _REACH) / step).astype(int), 0, _POINTS - 2)
    s = (start - x[i]) / step
    value = upto[i] + s**2 * (3 - 2 * s) * (upto[i + 1] - upto[i])
    value += step * s * (1 - s) * ((1 - s) * density[i] - s * density[i + 1])
    return jnp.where(excess < 1, 1 - value / whole, 0.0)


@closed_form
def sphere_noise_cosine(d: int, t: Values, *, variance: Values = 1.0) -> Float[Array, "..."]:
    r"""Mean cosine $E\langle x(t), x(0)\rangle = e^{-(d-1)\sigma^2t/2}$ of one token on the unit sphere under normalized layers
    of random value matrices: Brownian motion on the sphere, $dx = P_x\circ dW$, $\sigma^2$ = `variance`.

    Raises `ValueError` for d < 2, t < 0 or a variance that is not positive. Source: the sphere's Laplacian has the eigenvalue
    −(d − 1) on linear functions.
    """
    count("d", d, 2)
    nonnegative("t (depth since the initial state)", t)
    positive("variance", variance)
    time, s2 = as_float(t, variance)
    return jnp.exp(-0.5 * (d - 1) * s2 * time)


@closed_form
def random_linear_moments(
    d: int, layers: int | None = None, *, variance: Values = 1.0
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Moments $E\|x\|^2/\|x_0\|^2$ and $E\|x\|^4/\|x_0\|^4$ of a token after `layers` linear layers $x \leftarrow x +
    L^{-1/2}W_lx$, entries of W_l normal of mean 0 and `variance` σ², or (None) of their limit, the matrix SDE dx = dW x (Itô) at
    t = 1. With s = σ²/L

    $$(1 + ds)^L \to e^{d\sigma^2},\qquad \big(1 + (2d+4)s + d(d+2)s^2\big)^L \to e^{(2d+4)\sigma^2},$$

    so that the law of networks tends to the SDE's at order 1. The second moments of a network are those for any law of the
    entries. Raises `ValueError` for counts below 1 or a variance that is not positive. Derived here.
    """
    count("d", d)
    positive("variance", variance)
    (s2,) = as_float(variance)
    if layers is None:
        return jnp.exp(d * s2), jnp.exp((2 * d + 4) * s2)
    many = count("layers", layers)
    s = s2 / many
    return jnp.exp(many * jnp.log1p(d * s)), jnp.exp(many * jnp.log1p((2 * d + 4) * s + d * (d + 2) * s**2))


@closed_form
def circle_mode_rate(beta: Values, mode: int) -> Float[Array, "..."]:
    r"""Growth rate of the mode cos kθ of a nearly uniform density of tokens on the circle under
    [`sphere_attention`][pdejax.exact.sphere_attention] with infinitely many tokens,

    $$\lambda_k = \frac{k\int e^{\beta\cos\psi}\sin\psi\,\sin k\psi\,d\psi}{\int e^{\beta\cos\psi}d\psi}
      = \frac{k^2}{\beta}\,\frac{I_k(\beta)}{I_0(\beta)},$$

    from $\partial_t\rho + \partial_\theta(\rho\chi[\rho]) = 0$ around 1/2π. Which k grows fastest says into how many clusters
    tokens part first. By the trapezoidal rule, to rounding for β ≤ 100 and k ≤ 100. Raises `ValueError` for k < 1 or β < 0.
    Source: the continuity equation of arXiv 2312.10794; derived here.
    """
    k = count("mode", mode)
    nonnegative("beta", beta)
    (b,) = as_float(beta)
    psi = jnp.asarray(2 * np.pi * np.arange(_CIRCLE) / _CIRCLE, b.dtype)
    weight = jax.nn.softmax(b[..., None] * jnp.cos(psi), axis=-1)
    return k * jnp.sum(weight * jnp.sin(psi) * jnp.sin(k * psi), axis=-1)
