"""The verification's cases of noise that tokens share, and of many tokens on the circle."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.optimize import brentq

from pdejax import exact
from pdejax._discretization import Discretization
from pdejax._equation import MasterEquation
from pdejax._simulate import simulate
from pdejax.solvers import Euler
from pdejax.studies.numerics._verify_cases import (
    REACHED,
    ROUNDING,
    TIGHT,
    TOLERANCE,
    Check,
    TangentAttention,
    attention,
    normal,
    relative,
)
from pdejax.terms import SphereProjection

WIDTH = 5  # features
CIRCLE = 96  # tokens in place of infinitely many: the sum over them is a spectral rule


def noise() -> Iterator[Check]:
    """Two tokens under random value matrices: what a function f of a layer's output does per unit depth is ½ΔW f and |∇W f|²
    at W = 0, the entries of W being independent."""
    cosine = _generator(lambda u: u[0] @ u[1])
    pairs = [(-0.8, 0.4), (0.1, 1.3), (0.9, 2.7)]
    found = [cosine(_pair(math.acos(g)), b) for g, b in pairs]
    expected = [exact.two_token_rates(g, b, WIDTH) for g, b in pairs]
    yield Check("two tokens under noise, drift and variance", "layer", relative(found, expected), ROUNDING)
    meeting, parting = _exponent(1), _exponent(-1)
    strengths = (0.0, 0.7, 2.0)
    found = [(meeting(b), parting(b)) for b in strengths]
    expected = [exact.two_token_exponents(b, WIDTH) for b in strengths]
    yield Check("two tokens under noise, exponents", "layer", relative(found, expected), REACHED)
    found, expected = brentq(parting, 0.2, 3.0, xtol=1e-13), exact.two_token_critical_beta(WIDTH)
    yield Check("two tokens under noise, critical β", "layer", relative(found, expected), REACHED)
    starts = (-0.5, 0.3)
    found = _antipodal_probability(starts, 1.6)
    expected = exact.antipodal_probability(jnp.asarray(starts), 1.6, WIDTH)
    yield Check("two tokens under noise, antipodal share", TIGHT, relative(found, expected), 1e-9)

    start, now = SphereProjection()(normal(40, 2, WIDTH))
    rate = _generator(lambda u: u[0] @ start)(now[None], 1.0)[0] / (now @ start)
    found = _linear(1.3 * rate, 0.8)
    expected = exact.sphere_noise_cosine(WIDTH, 0.8, variance=1.3)
    yield Check("one token under noise, cosine", TIGHT, relative(found, expected), REACHED)


def _generator(f: Callable[[Array], Array], project: bool = True) -> Callable[[Array, float], tuple[Array, Array]]:
    """½ΔW f and |∇W f|² of f(layer(u; W)) at W = 0, as a function of u and β."""

    @jax.jit
    def both(u, beta):
        def value(w):
            moved = u + attention(beta, w.reshape(u.shape[1], -1))(jnp.zeros(()), u, None)
            return f(SphereProjection()(moved) if project else moved)

        none = jnp.zeros(u.shape[1] ** 2)
        return 0.5 * jnp.trace(jax.hessian(value)(none)), jnp.sum(jax.grad(value)(none) ** 2)

    return both


def _pair(angle: float) -> Array:
    u = np.zeros((2, WIDTH))
    u[0, 0], u[1, 0], u[1, 1] = 1, math.cos(angle), math.sin(angle)
    return jnp.asarray(u)


def _exponent(end: int) -> Callable[[float], float]:
    """Drift of the logarithm of one token's distance from `end`, 1 or −1, times the other, extrapolated to no distance, by β."""
    small = 2e-3
    angles = [a if end > 0 else math.pi - a for a in (small, 2 * small)]
    drift = _generator(lambda u: 0.5 * jnp.log(jnp.sum((u[0] - end * u[1]) ** 2)))

    def at(beta):
        near, far = (float(drift(_pair(a), beta)[0]) for a in angles)
        return (4 * near - far) / 3

    return at


def _antipodal_probability(starts: Sequence[float], beta: float) -> list[float]:
    """The scale function of x = artanh γ solved from the rates, (ln S)' = −2 drift/variance, between exponential tails."""
    reach = 14.0

    def field(x, y, args):
        g = jnp.tanh(x)
        drift, variance = exact.two_token_rates(g, beta, WIDTH)
        # Itô: x drifts by drift/(1 − γ²) + γ variance/(1 − γ²)², and has the variance of γ by (1 − γ²)².
        return jnp.stack([-2 * (drift * (1 - g**2) / variance + g), jnp.exp(y[0])])

    first, last = (field(jnp.asarray(x), jnp.zeros(2), None)[0] for x in (-reach, reach))
    d = Discretization(field, "dopri8", t0=-reach, t1=reach, rtol=TOLERANCE, atol=1e-2 * TOLERANCE)
    depths = [*np.arctanh(starts).tolist(), reach]
    us = np.asarray(simulate(d, jnp.stack([jnp.zeros(()), 1 / first]), save=depths).us)
    whole = us[-1, 1] - np.exp(us[-1, 0]) / float(last)
    return (1 - us[:-1, 1] / whole).tolist()


def _linear(rate: Array, t1: float) -> Array:
    """The solve of m' = rate · m from 1."""
    d = Discretization(lambda t, m, args: rate * m, "dopri8", t1=t1, rtol=TOLERANCE, atol=1e-2 * TOLERANCE)
    return simulate(d, jnp.ones_like(rate)).us[-1]


def random_layers() -> Iterator[Check]:
    """Moments of a token under linear layers of random values: one Euler step of attention for each node of a rule that is exact
    for polynomials of degree 5, to the power of the layers; and the generator of the limit."""
    d, layers, variance = 3, 6, 0.7
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    draws = jnp.asarray(list(itertools.product(nodes, repeat=d)))
    shares = np.prod(list(itertools.product(weights, repeat=d)), axis=1)
    token = jnp.eye(1, d)

    def after(row):
        # Of the token (1, 0, 0) only the first row of W matters.
        equation = MasterEquation(interaction=attention(0.0, jnp.zeros((d, d)).at[0].set(row)))
        step = Discretization(equation, Euler(), t1=math.sqrt(variance / layers), steps=1)
        return jnp.sum(simulate(step, token).us[-1] ** 2)

    sizes = np.asarray(jax.vmap(after)(draws))
    found = [(shares @ sizes**k) ** layers for k in (1, 2)]
    expected = exact.random_linear_moments(d, layers, variance=variance)
    yield Check("random linear layers, moments", "euler, 1 step", relative(found, expected), ROUNDING)
    rates = [_generator(lambda u, k=k: jnp.sum(u**2) ** k, project=False)(token, 0.0)[0] for k in (1, 2)]
    found = _linear(variance * jnp.stack(rates), 1.0)
    expected = exact.random_linear_moments(d, variance=variance)
    yield Check("random linear layers, moments of the limit", TIGHT, relative(found, expected), REACHED)


def circle() -> Iterator[Check]:
    """Growth of a mode of many tokens: the field linearized about tokens at equal angles."""
    angles = 2 * np.pi * np.arange(CIRCLE) / CIRCLE
    uniform = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    tangent = jnp.asarray(np.stack([-np.sin(angles), np.cos(angles)], axis=1))

    @jax.jit
    def rate(beta, mode):
        term = TangentAttention(attention(beta, jnp.eye(2)), SphereProjection())
        moved = jnp.sin(mode * angles)
        velocity = jax.jvp(lambda u: term(jnp.zeros(()), u, None), (uniform,), (moved[:, None] * tangent,))[1]
        return jnp.sum(jnp.sum(velocity * tangent, axis=1) * moved) / jnp.sum(moved**2)

    cases = [(beta, mode) for beta in (0.5, 4.0, 15.0) for mode in (1, 2, 5)]
    found = [float(rate(beta, float(mode))) for beta, mode in cases]
    expected = [exact.circle_mode_rate(beta, mode) for beta, mode in cases]
    yield Check("tokens on the circle, rates of modes", "Jacobian", relative(found, expected), ROUNDING)
