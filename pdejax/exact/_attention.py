"""Tokens under attention alone: equiangular tokens, Gaussian tokens without normalization, tokens on the sphere."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from pdejax._types import Depth, Field
from pdejax.exact._arguments import Values, as_float, closed_form, count, depth, finite, nonnegative, positive, require
from pdejax.exact._numerics import increasing_root, product

_PANELS, _NODES = 128, 16


class PreLNState(NamedTuple):
    """Pre-LN equiangular tokens: cosine γ of any pair, the gap 1 − γ to full relative accuracy, radius r."""

    cosine: Float[Array, "..."]
    gap: Float[Array, "..."]
    radius: Float[Array, "..."]


@closed_form
def equiangular_tokens(n: int, d: int, gamma: Values, key: PRNGKeyArray | None = None) -> Float[Array, "n d"]:
    r"""n unit vectors in d ≥ n dimensions with pairwise cosine γ, shape (n, d): the rows of the symmetric
    square root

    $$\sqrt{1-\gamma}\,I + \frac{\sqrt{1+(n-1)\gamma} - \sqrt{1-\gamma}}{n}\,\mathbf 1\mathbf 1^\top$$

    of their Gram matrix, padded with zeros; with a `key` turned by a random rotation of R^d.
    Raises `ValueError` for n < 1, d < n, γ outside (−1/(n−1), 1].
    """
    count("n", n)
    count("d", d)
    if d < n:
        raise ValueError(f"d must be at least n={n} to hold {n} equiangular tokens; got {d}.")
    _check_cosine(n, gamma)
    (g,) = as_float(gamma)
    far, near = jnp.sqrt(1 + (n - 1) * g), jnp.sqrt(1 - g)
    tokens = jnp.pad(near * jnp.eye(n, dtype=g.dtype) + (far - near) / n, ((0, 0), (0, d - n)))
    if key is None:
        return tokens
    rotation, _ = jnp.linalg.qr(jax.random.normal(key, (d, d), g.dtype))
    return product(tokens, rotation)


@closed_form
def equiangular_rate(gamma: Values, beta: Values, n: int) -> Float[Array, "..."]:
    r"""Rate of the pairwise cosine of n equiangular tokens on the unit sphere under
    [`sphere_attention`][pdejax.exact.sphere_attention],

    $$\gamma' = \frac{2e^{\beta\gamma}(1-\gamma)(1+(n-1)\gamma)}{e^\beta + (n-1)e^{\beta\gamma}},$$

    the sum and the softmax running over all n tokens, j = i included. Any finite β. Near γ = 1 the gap 1−γ
    closes at rate 2. Raises `ValueError` for n < 2, γ outside (−1/(n−1), 1]. Source: arXiv 2312.10794, §6
    (Theorem 6.9).
    """
    count("n", n, 2)
    _check_cosine(n, gamma)
    require("beta", beta, np.isfinite, "finite")
    g, b = as_float(gamma, beta)
    return 2 * (1 - g) * (1 + (n - 1) * g) / (jnp.exp(b * (1 - g)) + (n - 1))


@closed_form
def equiangular_cosine(gamma0: Values, beta: Values, n: int, t: Values, *, gap: bool = False) -> Float[Array, "..."]:
    r"""Pairwise cosine γ(t) of the flow of [`equiangular_rate`][pdejax.exact.equiangular_rate] from
    `gamma0`. For β = 0, with $w = e^{2t}(1+(n-1)\gamma_0)/(1-\gamma_0)$,

    $$\gamma(t) = (w-1)/(w+n-1)\quad\Big(= \frac{1-e^{-2t}}{1+(n-1)e^{-2t}}\ \text{for}\ \gamma_0 = 0\Big),$$

    for β > 0 the inverse of the depth as an integral over y (see the module), by composite Gauss–Legendre
    quadrature and Newton's method, to about 1e-14. Tokens stay apart for a depth of about
    $e^{\beta(1-\gamma_0)}/2n$.

    `gamma0` in (−1/(n−1), 1], 0 ≤ `beta` ≤ 100 (30 in float32), `t` ≥ 0 broadcast; n ≥ 2. Differentiable in
    all three. Raises `ValueError` outside these ranges. Source: arXiv 2312.10794, §6 (Theorem 6.9), whose
    initial tokens are orthogonal, γ0 = 0. With `gap` 1 − γ(t) instead, to full relative accuracy: it closes
    like $e^{-2t}$, below the rounding of γ itself from t ≈ 18 on.
    """
    return _from_coordinate(gamma0, beta, n, t)[int(gap)]


@closed_form
def preln_equiangular_rates(
    gamma: Values, radius: Values, beta: Values, n: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Rates (γ', r') of n equiangular tokens of length r under pre-LN attention without projection, θ =
    x/‖x‖, $x_i' = \sum_j\mathrm{softmax}_j(\beta\langle\theta_i,\theta_j\rangle)\,\theta_j$:

    $$\gamma' = \frac1r\cdot\frac{2e^{\beta\gamma}(1-\gamma)(1+(n-1)\gamma)}
        {e^\beta+(n-1)e^{\beta\gamma}},\qquad
      r' = \frac{e^\beta + (n-1)\gamma e^{\beta\gamma}}{e^\beta+(n-1)e^{\beta\gamma}}.$$

    Raises `ValueError` as [`equiangular_rate`][pdejax.exact.equiangular_rate] and for r ≤ 0.
    Source: arXiv 2510.22026 (pre-LN as a speed 1/r on the sphere).
    """
    positive("radius", radius)
    angular = equiangular_rate(gamma, beta, n)
    g, b, r = as_float(gamma, beta, radius)
    e = jnp.exp(b * (1 - g))
    return angular / r, (e + (n - 1) * g) / (e + (n - 1))


@closed_form
def preln_equiangular(gamma0: Values, radius0: Values, beta: Values, n: int, t: Values) -> PreLNState:
    r"""Cosine, gap and radius at depth t of the flow of
    [`preln_equiangular_rates`][pdejax.exact.preln_equiangular_rates] from (`gamma0`, `radius0`).

    Pre-LN is the sphere's flow on a slower clock, dτ = dt/r: γ(t) = γ_sphere(τ(t)), and from d ln r/dτ = r'

    $$r = r_0\,e^{\tau}\sqrt{\frac{1+(n-1)\gamma_0}{1+(n-1)\gamma}},\qquad t = \int_0^\tau r\,d\tau,$$

    a quadrature in y that is inverted. So r ~ t and the gap closes like $t^{-2}$, not $e^{-2t}$. For β = 0,
    r²(1−γ) is constant (uniform attention moves all tokens alike).

    `radius0` must be positive; ranges, accuracy and errors otherwise as for
    [`equiangular_cosine`][pdejax.exact.equiangular_cosine].
    Source: equations arXiv 2510.22026; the closed form of r and the quadrature are derived here.
    """
    count("n", n, 2)
    g, r, b, time = as_float(gamma0, radius0, beta, t)
    _check(n, g, b, time)
    positive("radius0", r)
    return PreLNState(*_preln_values(jnp.asarray(n, g.dtype), g, r, b, time))


def _check_cosine(n: int, gamma: Values) -> None:
    if n > 1:
        low = -1.0 / (n - 1)
        require("gamma", gamma, lambda g: (g > low) & (g <= 1), f"in (−1/(n−1), 1] = ({low:.6g}, 1] for n={n}")
    else:
        require("gamma", gamma, lambda g: g <= 1, "at most 1")


def _check(n: int, gamma0: Array, beta: Array, t: Array) -> None:
    _check_cosine(n, gamma0)
    nonnegative("beta", beta)
    most = 100 if beta.dtype == jnp.float64 else 30
    require("beta", beta, lambda b: b <= most, f"at most {most} in {beta.dtype}, where tokens hardly move")
    depth(t)


def _from_coordinate(gamma0: Values, beta: Values, n: int, t: Values) -> tuple[Array, Array]:
    count("n", n, 2)
    start = as_float(gamma0, beta, t)
    _check(n, *start)
    return _sphere_values(jnp.asarray(n, start[0].dtype), *start)


@jax.jit
def _sphere_values(n: Array, gamma0: Array, beta: Array, t: Array) -> tuple[Array, Array]:
    return jnp.vectorize(_sphere)(n, gamma0, beta, t)


@jax.jit
def _preln_values(n: Array, gamma0: Array, radius0: Array, beta: Array, t: Array) -> tuple[Array, Array, Array]:
    return jnp.vectorize(_preln)(n, gamma0, radius0, beta, t)


def _sphere(n: Array, gamma0: Array, beta: Array, t: Array) -> tuple[Array, Array]:
    y0, apart = _coordinate(n, gamma0)
    # The speed y' only grows along the path, and it ends at 2: both give a bound of the way.
    least = 2 * n * t / (jnp.exp(beta * _gap(n, y0)) + (n - 1))
    moved = increasing_root(lambda x: _clock(n, beta, y0, x) - t, least, 2 * t, least)
    return jnp.where(apart, _cosine(n, y0 + moved), 1.0), jnp.where(apart, _gap(n, y0 + moved), 0.0)


def _preln(n: Array, gamma0: Array, radius0: Array, beta: Array, t: Array) -> tuple[Array, Array, Array]:
    y0, apart = _coordinate(n, gamma0)
    ratio = t / radius0
    # For β = 0 the depth is at least r0(√((e^y+n−1)/(e^y0+n−1)) − 1), and β > 0 only delays.
    most = jnp.log1p((1 + (n - 1) * jnp.exp(-y0)) * ratio * (2 + ratio))
    # The depth grows like an exponential of the way: on the scale log(1 + t/r0) Newton's method is quick.
    moved = increasing_root(
        lambda x: jnp.log1p(_preln_clock(n, beta, y0, x)[0]) - jnp.log1p(ratio),
        jnp.zeros_like(most),
        most,
        most,
    )
    radius = radius0 * _preln_clock(n, beta, y0, moved)[1]
    return (
        jnp.where(apart, _cosine(n, y0 + moved), 1.0),
        jnp.where(apart, _gap(n, y0 + moved), 0.0),
        jnp.where(apart, radius, radius0 + t),
    )


def _coordinate(n: Array, gamma: Array) -> tuple[Array, Array]:
    """y of γ and whether γ < 1; tokens that coincide (y = ∞) get any y, their result is replaced."""
    apart = gamma < 1
    g = jnp.where(apart, gamma, 0)
    return jnp.log1p((n - 1) * g) - jnp.log1p(-g), apart


def _log_sum(n: Array, y: Array) -> Array:
    return jnp.logaddexp(y, jnp.broadcast_to(jnp.log(n - 1), y.shape))


def _gap(n: Array, y: Array) -> Array:
    return n * jnp.exp(-_log_sum(n, y))


def _cosine(n: Array, y: Array) -> Array:
    above, below = jnp.where(y > 0, y, 0), jnp.where(y > 0, 0, y)
    decayed = jnp.exp(-above)
    return jnp.where(y > 0, (1 - decayed) / (1 + (n - 1) * decayed), jnp.expm1(below) / (jnp.exp(below) + (n - 1)))


def _clock(n: Array, beta: Array, y0: Array, moved: Array) -> Array:
    """Depth on the sphere from y0 to y0 + moved, ∫ (e^{β(1−γ)} + n − 1)/2n dy."""
    nodes, weights, _ = _rule()
    # β(1−γ) < βn e^{−y}: beyond this y the integrand is ½ to below rounding.
    end = 40 + jnp.log1p(beta) + jnp.log(n)
    span = jnp.where(y0 + moved < end, moved, jnp.maximum(end - y0, 0))
    excess = jnp.expm1(beta * _gap(n, y0 + span * jnp.asarray(nodes, y0.dtype)))
    return 0.5 * moved + span * jnp.sum(jnp.asarray(weights, y0.dtype) * excess) / (2 * n)


def _preln_clock(n: Array, beta: Array, y0: Array, moved: Array) -> tuple[Array, Array]:
    """(t/r0, r/r0) of pre-LN attention after the way from y0 to y0 + moved."""
    nodes, weights, partial = _rule()
    y = y0 + moved * jnp.asarray(nodes, y0.dtype)
    speed = moved * (jnp.expm1(beta * _gap(n, y)) + n) / (2 * n)
    parts = (jnp.asarray(weights, y0.dtype) * speed).sum(axis=1)
    before = jnp.cumsum(parts) - parts
    # Term by term: the equal matrix product is compiled wrongly on CPU by jaxlib 0.10.2, which then reads memory
    # that nobody has written (a product plus a product with a broadcast zero, as in the derivative).
    inside = sum(speed[:, j, None] * jnp.asarray(partial[:, j], y0.dtype)[None] for j in range(_NODES))
    tau = before[:, None] + inside

    def log_spread(y):  # ln((1 + (n−1)γ)/n)
        return y - _log_sum(n, y)

    def growth(tau, y):
        return jnp.exp(tau + 0.5 * (log_spread(y0) - log_spread(y)))

    return jnp.sum(jnp.asarray(weights, y0.dtype) * growth(tau, y) * speed), growth(jnp.sum(parts), y0 + moved)


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Composite Gauss–Legendre rule on [0, 1]: nodes and weights (panels, nodes), and the matrix (nodes,
    nodes) that integrates from the left end of a panel to each of its nodes.
    """
    x, w = np.polynomial.legendre.leggauss(_NODES)
    values = np.polynomial.legendre.legvander(x, _NODES)
    # The interpolant of f has Legendre coefficients (2k+1)/2 Σ_j w_j P_k(x_j) f_j, and
    # ∫_{−1}^x P_k = (P_{k+1} − P_{k−1})/(2k+1), with P_{−1} = −1 for k = 0.
    lower = np.concatenate([-np.ones((_NODES, 1)), values[:, : _NODES - 1]], axis=1)
    partial = 0.5 * (values[:, 1:] - lower) @ (values[:, :_NODES] * w[:, None]).T
    left = np.arange(_PANELS)[:, None] / _PANELS
    nodes = left + 0.5 * (x[None] + 1) / _PANELS
    return nodes, np.tile(0.5 * w / _PANELS, (_PANELS, 1)), 0.5 * partial / _PANELS


@closed_form
def gaussian_token_variance(variance0: Values, coupling: Values, t: Values) -> Float[Array, "..."]:
    r"""Variance $s^2(t) = s_0^2/(1 - 2c\,s_0^2t)$ of Gaussian tokens under attention without leak; inf from
    the blow-up on.

    `coupling` c = va of any sign: v the value matrix times I, a the logit's, `q·k/√dk = a⟨x, y⟩`. The same
    holds for every coordinate of isotropic tokens in R^d. Each token is $x(t) = x(0)\,s(t)/s_0$. c < 0
    contracts like 1/t. Arguments broadcast. Raises `ValueError` for s0² ≤ 0, t < 0 or c not finite.
    Source: Castin et al., arXiv 2501.18322 (Gaussian initial data), one-dimensional case; derived here.
    """
    positive("variance0", variance0)
    finite("coupling", coupling)
    depth(t)
    s, c, time = as_float(variance0, coupling, t)
    left = 1 - 2 * c * s * time
    return jnp.where(left > 0, s / jnp.where(left > 0, left, 1), jnp.inf)


@closed_form
def gaussian_blowup_time(variance0: Values, coupling: Values) -> Float[Array, "..."]:
    r"""Depth $1/(2c\,s_0^2)$ at which [`gaussian_token_variance`][pdejax.exact.gaussian_token_variance]
    becomes infinite; inf for c ≤ 0. Raises `ValueError` for s0² ≤ 0 or c not finite.
    """
    positive("variance0", variance0)
    finite("coupling", coupling)
    s, c = as_float(variance0, coupling)
    return jnp.where(c > 0, 1 / (2 * jnp.where(c > 0, c, 1) * s), jnp.inf)


@closed_form
def gaussian_quadrature_tokens(n: int, variance: Values = 1.0) -> tuple[Float[Array, "n 1"], Float[Array, " n"]]:
    r"""n tokens (n, 1) and weights (n,), Σ = 1, that stand for N(0, `variance`) in attention with these
    quadrature weights: Gauss–Hermite nodes. Random tokens would reach the Gaussian limit only like
    n^{−1/2}; these reach it to rounding, for every token x with |a s x| below about √n; further ones matter
    only where their weight does, once $a s^2$ passes 1 or so.

    Raises `ValueError` for n < 2, an n whose outermost weights underflow (above 360, in float32 above 50) or
    variance ≤ 0.
    Source: Golub and Welsch 1969, DOI 10.1090/S0025-5718-69-99647-1.
    """
    count("n", n, 2)
    positive("variance", variance)
    (s2,) = as_float(variance)
    most = 360 if s2.dtype == jnp.float64 else 50
    if n > most:
        raise ValueError(f"n must be at most {most} in {s2.dtype}, or the outermost weights underflow; got {n}.")
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return jnp.sqrt(s2) * jnp.asarray(nodes, s2.dtype)[:, None], jnp.asarray(weights / weights.sum(), s2.dtype)


@closed_form
def sphere_attention(x: Field, beta: Depth) -> Field:
    r"""Field of tokens on the unit sphere with identity queries, keys and values, written out plainly:

    $$x_i' = P_{x_i}\Big(\frac1{Z_i}\sum_je^{\beta\langle x_i,x_j\rangle}x_j\Big),\qquad
      P_x(y) = y - \langle x,y\rangle x,\qquad Z_i = \sum_je^{\beta\langle x_i,x_j\rangle}.$$

    `x` (n, d) of unit rows, any finite β; all n tokens are keys, j = i included. Returns (n, d).
    Source: arXiv 2312.10794, (2.2) (there called SA).
    """
    u, b = as_float(x, beta)
    mixed = product(jax.nn.softmax(b * product(u, u.T), axis=1), u)
    return mixed - jnp.sum(mixed * u, axis=1, keepdims=True) * u


@closed_form
def interaction_energy(x: Field, beta: Depth) -> Float[Array, ""]:
    r"""Interaction energy of tokens, $E = \frac1{2\beta n^2}\sum_{ij}e^{\beta\langle x_i,x_j\rangle}$,
    largest at consensus: $e^\beta/2\beta$. `x` (n, d) of unit rows. Raises `ValueError` for β ≤ 0.
    Source: arXiv 2312.10794, §3.
    """
    positive("beta", beta)
    u, b = as_float(x, beta)
    return jnp.mean(jnp.exp(b * product(u, u.T))) / (2 * b)


@closed_form
def interaction_energy_rate(x: Field, beta: Depth) -> Float[Array, ""]:
    r"""Rate of [`interaction_energy`][pdejax.exact.interaction_energy] along
    [`sphere_attention`][pdejax.exact.sphere_attention]:

    $$\frac{dE}{dt} = \frac1{n^2}\sum_iZ_i\,\|x_i'\|^2 \ge 0.$$

    It holds on the sphere only, where $x_i'$ is the projection of
    $\frac1{Z_i}\sum_je^{\beta\langle x_i,x_j\rangle}x_j$: then
    $\langle x_i', Z_i^{-1}\sum_j\dots\rangle = \|x_i'\|^2$. Raises `ValueError` for β ≤ 0. Source: arXiv
    2312.10794, §3.
    """
    positive("beta", beta)
    u, b = as_float(x, beta)
    partition = jnp.sum(jnp.exp(b * product(u, u.T)), axis=1)
    return jnp.sum(partition * jnp.sum(sphere_attention(u, b) ** 2, axis=1)) / u.shape[0] ** 2


@closed_form
def consensus_exponents(n: int, d: int) -> Float[Array, " k"]:
    r"""Lyapunov exponents of [`sphere_attention`][pdejax.exact.sphere_attention] at consensus
    $x_1 = \dots = x_n$, descending, shape (n(d−1),): 0 with multiplicity d−1 (the common direction turns
    freely) and −1 with multiplicity (n−1)(d−1).

    To first order the softmax weights do not matter (they multiply equal tokens), so
    $\xi_i' = \bar\xi - \xi_i$ for tangent ξ, at every β. The field extended to R^d as written there has n
    further exponents −2, radial ones.
    Raises `ValueError` for n < 1, d < 2. Source: linearization of arXiv 2312.10794, (2.2), derived here.
    """
    count("n", n)
    count("d", d, 2)
    return jnp.concatenate([jnp.zeros(d - 1), -jnp.ones((n - 1) * (d - 1))])
