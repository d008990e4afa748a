"""Stabilized explicit methods: their polynomials and steps against textbook twins, orders, stability, stage choice,
tolerances, gradients, failures.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev

from pdejax.solvers._grid import Grid
from pdejax.solvers._laplacian import Laplacian
from pdejax.solvers._rkc import RKC2
from pdejax.solvers._rock2 import ROCK2
from pdejax.solvers._rock2_polynomials import rock2_polynomial

SCHEMES = [RKC2, ROCK2]
EPSILON = 2.0 / 13.0
DIVERGED = diffrax.RESULTS.nonlinear_divergence  # pyright: ignore[reportAttributeAccessIssue]


def _chebyshev(s, x):
    """T_s, T_s', T_s'' at x, from the coefficients of the series."""
    series = chebyshev.Chebyshev.basis(s)
    return series(x), series.deriv()(x), series.deriv(2)(x)


def _rkc_coefficients(s):
    """(w0, w1, a_j, b_j for j = 0 … s)."""
    w0 = 1.0 + EPSILON / s**2
    _, first, second = _chebyshev(s, w0)
    values = [_chebyshev(j, w0) for j in range(s + 1)]
    b = [second / first**2 if j >= 2 else None for j, (_, first, second) in enumerate(values)]
    b[0] = b[1] = b[2]
    a = [1.0 - bj * t for bj, (t, _, _) in zip(b, values, strict=True)]
    return w0, first / second, a, b


def _rkc_step(f, t, h, y, s):
    """One step as in Sommeijer, Shampine, Verwer (1998), NumPy."""
    w0, w1, a, b = _rkc_coefficients(s)
    nodes = [0.0, b[1] * w1] + [w1 * _chebyshev(j, w0)[2] / _chebyshev(j, w0)[1] for j in range(2, s + 1)]
    f0 = f(t, y)
    stages = [y, y + b[1] * w1 * h * f0]
    for j in range(2, s + 1):
        mu, nu = 2.0 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        mu_tilde = 2.0 * b[j] * w1 / b[j - 1]
        new = (1.0 - mu - nu) * y + mu * stages[-1] + nu * stages[-2]
        stages.append(new + mu_tilde * h * (f(t + nodes[j - 1] * h, stages[-1]) - a[j - 1] * f0))
    return stages[-1]


def _rock2_step(f, t, h, y, s):
    """One step as in Abdulle, Medovikov (2001), from the polynomial's coefficients; also the error estimate."""
    m = rock2_polynomial(s)
    stages, nodes = [y, y + m.mu[0] * h * f(t, y)], [0.0, m.mu[0]]
    for mu, kappa in zip(m.mu[1:], m.kappa[1:], strict=True):
        stages.append(mu * h * f(t + nodes[-1] * h, stages[-1]) + (1.0 + kappa) * stages[-1] - kappa * stages[-2])
        nodes.append(mu + (1.0 + kappa) * nodes[-1] - kappa * nodes[-2])
    last = stages[-1]
    f1 = f(t + nodes[-1] * h, last)
    first = last + h * m.sigma * f1
    f2 = f(t + (nodes[-1] + m.sigma) * h, first)
    return first + h * m.sigma * f2 - h * m.sigma * (1.0 - m.tau / m.sigma**2) * (f2 - f1)


def one_step(solver, f, t, h, y):
    """(y1, error estimate, state, result) of a first step."""
    term = diffrax.ODETerm(lambda t, y, args: f(t, y))
    t, t1 = jnp.asarray(t), jnp.asarray(t + h)
    state = solver.init(term, t, t1, y, None)
    y1, error, _, state, result = solver.step(term, t, t1, y, None, state, False)
    return y1, error, state, result


# Polynomials and single steps.


def _stability(solver, z):
    """R(z) at real z, by a step of length 1 on y' = z y."""
    step = jax.jit(lambda y, z: one_step(solver, lambda t, y: z * y, 0.0, 1.0, y)[0])
    return np.asarray(step(np.ones(len(z)), z))


@pytest.mark.parametrize("s", [2, 3, 7, 20])
def test_rkc_polynomial(s):
    """R_s(z) = a_s + b_s T_s(w0 + w1 z)."""
    w0, w1, a, b = _rkc_coefficients(s)
    solver = RKC2(stages=s)
    z = np.linspace(-1.05 * solver.stability_limit(s), 0.3, 200)
    expected = a[s] + b[s] * _chebyshev(s, w0 + w1 * z)[0]
    np.testing.assert_allclose(_stability(solver, z), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("s", [3, 8, 21])
def test_rock2_polynomial(s):
    """R has order two, R/w is orthogonal to all lower degrees with the weight w²/√(1 − x²), and |R| stays below 0.95
    except next to 0.
    """
    method, solver = rock2_polynomial(s), ROCK2(stages=s)
    # x = −1 is z = −limit, and x = 1 + 2/s² the real part of the zeros of w; these are Gauss–Chebyshev points of [−1, 1].
    zeros = np.roots([method.tau, 2.0 * method.sigma, 1.0])
    real = zeros[0].real
    right = (2.0 * real - 2.0 / s**2 * method.limit) / (2.0 + 2.0 / s**2)
    assert right < real < 0.0 and abs(zeros[0].imag) > 0.0
    x = np.cos((np.arange(4 * s) + 0.5) * np.pi / (4 * s))
    z = 0.5 * (right + method.limit) * (x - 1.0) + right
    w = 1.0 + 2.0 * method.sigma * z + method.tau * z**2
    p = _stability(solver, z) / w
    size = np.sqrt(np.sum((w * p) ** 2))
    for degree in range(s - 2):
        lower = w * np.cos(degree * np.arccos(x))
        assert abs(np.sum(w * p * lower)) < 1e-9 * size * np.linalg.norm(lower), degree
    assert abs(np.sum(w * p * w * np.cos((s - 2) * np.arccos(x)))) > 0.1 * size
    h = 1e-3
    near = _stability(solver, np.array([-h, 0.0, h]))
    assert abs(near[1] - 1.0) < 1e-13
    assert abs((near[2] - near[0]) / (2 * h) - 1.0) < 1e-6
    assert abs((near[2] - 2.0 * near[1] + near[0]) / h**2 - 1.0) < 1e-5
    inside = np.abs(_stability(solver, np.linspace(-method.limit, -1e-3, 100 * s)))
    assert np.max(inside) < 1.0
    assert np.max(np.abs(_stability(solver, np.linspace(-method.limit, 2.0 * right, 100 * s)))) <= 0.9501
    assert abs(_stability(solver, np.array([-1.05 * method.limit]))[0]) > 1.0


def _numpy_field(t, y):
    matrix = np.array([[-9.0, 4.0, 0.0], [3.0, -12.0, 5.0], [0.0, 4.0, -7.0]])
    return y @ matrix.T + np.sin(3.0 * t) * np.array([1.0, -2.0, 0.5]) - y**3


def _field(t, y):
    matrix = jnp.array([[-9.0, 4.0, 0.0], [3.0, -12.0, 5.0], [0.0, 4.0, -7.0]])
    return y @ matrix.T + jnp.sin(3.0 * t) * jnp.array([1.0, -2.0, 0.5]) - y**3


@pytest.mark.parametrize("s", [3, 4, 9])
@pytest.mark.parametrize("scheme, twin", [(RKC2, _rkc_step), (ROCK2, _rock2_step)], ids=["rkc2", "rock2"])
def test_textbook_twin(scheme, twin, s):
    """A nonlinear, non-autonomous step; and the same stage number chosen from the spectral radius."""
    y, t, h = np.array([0.4, -0.9, 1.1]), 0.3, 0.15
    expected = twin(_numpy_field, t, h, y, s)
    fixed, error, state, _ = jax.jit(lambda y: one_step(scheme(stages=s), _field, t, h, y))(y)
    np.testing.assert_allclose(fixed, expected, rtol=1e-13, atol=0)
    assert (int(state.stages), int(state.evaluations)) == (s, s + 1)
    radius = 0.97 * scheme().stability_limit(s) / h
    chosen, again, state, _ = jax.jit(lambda y: one_step(scheme(spectral_radius=radius), _field, t, h, y))(y)
    assert int(state.stages) == s
    np.testing.assert_allclose(chosen, expected, rtol=1e-12, atol=0)
    np.testing.assert_allclose(again, error, rtol=1e-8, atol=1e-14)


def test_error_estimates():
    """RKC2: the estimate e of the paper, O(h³), made O(h²); ROCK2: O(h²). Both for a start at rest too."""
    y = np.array([0.4, -0.9, 1.1])
    for scheme in SCHEMES:
        step = jax.jit(functools.partial(one_step, scheme(stages=5)), static_argnums=0)
        sizes = [float(np.linalg.norm(step(_field, 0.3, h, y)[1])) for h in (4e-3, 2e-3, 1e-3)]
        np.testing.assert_allclose(np.log2(np.array(sizes[:-1]) / sizes[1:]), 2.0, atol=0.1)
        same, nothing, *_ = step(lambda t, y: 0.0 * y, 0.0, 0.1, y)
        assert np.abs(nothing).max() < 1e-14 and np.all(same == y)
    h, f = 0.1, lambda y: _numpy_field(0.0, y)
    y1, error, _, _ = jax.jit(lambda y: one_step(RKC2(stages=4), lambda t, y: _field(0.0, y), 0.0, h, y))(y)
    y1 = np.asarray(y1)
    plain = (12.0 * (y - y1) + 6.0 * h * (f(y) + f(y1))) / 15.0
    factor = max(np.linalg.norm(y), np.linalg.norm(y1)) / np.linalg.norm(plain)
    np.testing.assert_allclose(error, plain * factor ** (1 / 3), rtol=1e-9)


# Stability and the choice of the stage number.


def test_limits_as_stated():
    for s in (5, 10, 50, 150):
        assert abs(RKC2().stability_limit(s) / (2 / 3 * (s**2 - 1) * (1 - 2 * EPSILON / 15)) - 1.0) < 0.01
    assert all(0.80 < ROCK2().stability_limit(s) / s**2 < 0.81 for s in (15, 50, 150))
    assert ROCK2().stability_limit(3) / 9 > 0.67


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("s", [4, 13])
def test_stability_from_noise(scheme, s):
    """60 steps of the heat equation: decay at 0.95 of the limit, growth at 1.10, and at both with stages chosen."""
    laplacian = Laplacian(Grid(32, boundary="periodic"))
    radius = 4.0 * 32.0**2
    noise = np.random.default_rng(0).normal(size=(32, 1))
    noise = noise - np.mean(noise)

    @jax.jit
    def grow(h, solver):
        def step(y, _):
            return one_step(solver, lambda t, y: laplacian(y), 0.0, h, y)[0], None

        return jnp.linalg.norm(jax.lax.scan(step, noise, None, length=60)[0])

    size = float(np.linalg.norm(noise))
    fixed = scheme(stages=s)
    limit = fixed.stability_limit(s) / radius
    assert float(grow(0.95 * limit, fixed)) < 0.05 * size
    assert float(grow(1.10 * limit, fixed)) > 1e3 * size
    chosen = scheme(spectral_radius=radius)
    assert all(float(grow(factor * limit, chosen)) < 0.05 * size for factor in (0.95, 1.10))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_chosen_stages_are_the_fewest(scheme):
    solver = scheme(max_stages=120)
    zs = np.concatenate([np.linspace(0.0, 40.0, 200), np.geomspace(40.0, solver.stability_limit(120), 100)])
    for z, s in zip(zs, map(int, jax.jit(jax.vmap(lambda z: solver.choose(z)))(zs)), strict=True):
        assert z <= solver.stability_limit(s), (z, s)
        fewer = int(0.9 * s) - 1
        assert fewer < solver.fewest or z > solver.stability_limit(fewer), (z, s)


@pytest.mark.parametrize("boundary, width", [("neumann", 200), ("periodic", 31)])
def test_power_iteration(boundary, width, getkey):
    """A heat equation: 1.2 times the spectral radius, a little less; the second step needs one evaluation for it."""
    laplacian = Laplacian(Grid(width, boundary=boundary))
    exact = float(jnp.max(-laplacian.eigenvalues()))
    solver = RKC2(max_stages=400)
    term = diffrax.ODETerm(lambda t, y, args: laplacian(y) + jnp.cos(y))
    y = jax.random.normal(getkey(), (width, 2))
    t, h = jnp.asarray(0.0), jnp.asarray(1e-3)
    state = solver.init(term, t, h, y, None)
    step = jax.jit(lambda t, y, state: solver.step(term, t, t + h, y, None, state, False))
    y, _, _, first, _ = step(t, y, state)
    _, _, _, second, _ = step(h, y, first)
    for found in (first, second):
        # 1.2 times a quotient that has settled to 1 %, which comes from below.
        assert 1.1 * exact <= float(found.spectral_radius) <= 1.21 * exact
        assert int(found.unconverged) == 0
    assert int(second.evaluations - first.evaluations) == int(second.stages) + 1


def test_power_iteration_that_does_not_settle():
    """A rotation seen in a skewed metric: quotients alternate for ever between 20 and 0.05; ρ = 1. The largest is used, the
    step is counted, and evaluations are capped.
    """
    solver = RKC2()
    step = jax.jit(lambda y: one_step(solver, lambda t, y: jnp.flip(y) * jnp.array([20.0, -0.05]), 0.0, 0.01, y))
    _, _, state, result = step(np.array([1.0, 0.5]))
    assert int(state.unconverged) == 1
    assert 1.0 <= float(state.spectral_radius) <= 1.2 * 20.0 + 1e-6
    assert int(state.evaluations) == 1 + 50 + int(state.stages)
    assert result == diffrax.RESULTS.successful


# Whole solves.
