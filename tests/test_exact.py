"""Closed forms of pdejax.exact against independent numerics: plain NumPy token systems integrated by SciPy
near rounding, dense matrix exponentials, complex-step derivatives; nothing of pdejax's terms or solvers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from pdejax import exact

BOUNDARIES = ("neumann", "periodic", "dirichlet")


def laplacian(n, boundary, dx):
    """Dense second-difference matrix from the ghost values of each boundary."""
    a = np.zeros((n, n))
    for i in range(n):
        for j in (i - 1, i + 1):
            a[i, i] -= 1
            if 0 <= j < n:
                a[i, j] += 1
            elif boundary == "periodic":
                a[i, j % n] += 1
            elif boundary == "neumann":
                a[i, i] += 1  # the ghost cell mirrors its neighbour
    return a / dx**2


def integrate(field, u0, t, **tolerances):
    """State at depth t of u' = field(u), by an 8th-order Runge–Kutta method near rounding."""
    options = {"rtol": 1e-13, "atol": 1e-14, "method": "DOP853", **tolerances}
    shape = np.shape(u0)
    solution = solve_ivp(lambda _, y: field(y.reshape(shape)).ravel(), (0.0, t), np.ravel(u0), **options)
    assert solution.success
    return solution.y[:, -1].reshape(shape)


def softmax_attention(x, beta, log_weights=0.0):
    logits = beta * x @ x.T + log_weights
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) @ x


def sphere_field(x, beta):
    mixed = softmax_attention(x, beta)
    return mixed - np.sum(mixed * x, axis=1, keepdims=True) * x


def complex_step_jacobian(f, x):
    """Jacobian of an analytic vector function, to rounding."""
    return np.stack([np.imag(f(x + 1e-30j * e)) / 1e-30 for e in np.eye(len(x))], axis=1)


# 1. Heat


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_heat_modes_are_eigenvectors(boundary, n):
    a = laplacian(n, boundary, 0.25)
    first = 1 if boundary == "dirichlet" else 0
    values = np.asarray(exact.heat_eigenvalues(n, boundary, 3.0, 0.25))
    modes = []
    for k in range(first, n + first):
        mode = np.asarray(exact.heat_mode(n, boundary, k))
        value = float(exact.heat_eigenvalues(n, boundary, 3.0, 0.25, k=k))
        np.testing.assert_allclose(3.0 * a @ mode, value * mode, atol=1e-12)
        assert values[k - first] == value
        assert abs(mode).max() <= 1 + 1e-15
        modes.append(mode)
    gram = np.array(modes) @ np.array(modes).T
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-13)
    assert np.all(np.diag(gram) > 0)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kind", ["scalar", "features", "matrix"])
def test_heat_solution(boundary, kind, relative):
    rng = np.random.default_rng(0)
    n, d, length, t = 7, 3, 2.0, 0.3
    u0 = rng.standard_normal((n, d))
    root = rng.standard_normal((d, d))
    diffusivity = {"scalar": np.array(0.7), "features": np.array([0.1, 0.0, 2.0]), "matrix": root @ root.T}[kind]
    matrix = diffusivity if kind == "matrix" else np.diag(np.broadcast_to(diffusivity, (d,)))
    if kind == "matrix":
        matrix = diffusivity = matrix + np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 0]])  # not symmetric: tells D from D.T
    dx = length / (n + 1 if boundary == "dirichlet" else n)
    expected = scipy.linalg.expm(t * np.kron(laplacian(n, boundary, dx), matrix)) @ u0.ravel()
    got = exact.heat_solution(jnp.asarray(u0), jnp.asarray(diffusivity), t, boundary, length)
    assert relative(got, expected.reshape(n, d)) < 1e-13
    np.testing.assert_allclose(exact.mode_sum(exact.mode_amplitudes(got, boundary), boundary), got, atol=1e-14)


# 2 and 3. Linear terms


@pytest.mark.parametrize("leak", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_uniform_attention(leak, weighted, relative):
    rng = np.random.default_rng(1)
    n, d, t = 6, 3, 1.7
    u0, v = rng.standard_normal((n, d)), rng.standard_normal((d, d))
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    keys = rng.standard_normal((n, d))
    log_weights = 0.0 if weights is None else np.log(weights)[None]

    def field(u):
        logits = np.zeros_like(u) @ keys.T + log_weights
        return np.exp(logits - logsumexp(logits, axis=1, keepdims=True)) @ u @ v - leak * u

    got = exact.uniform_attention(jnp.asarray(u0), v, t, leak, weights)
    assert relative(got, integrate(field, u0, t)) < 1e-12


@pytest.mark.parametrize("leak", [True, False])
def test_linear_reaction(leak, relative):
    rng = np.random.default_rng(2)
    u0, w1, w2 = rng.standard_normal((4, 3)), rng.standard_normal((3, 2)), rng.standard_normal((2, 3))
    b1, b2 = rng.standard_normal(2), rng.standard_normal(3)
    got = exact.linear_reaction(jnp.asarray(u0), w1 @ w2, 0.8, leak, b1 @ w2 + b2)
    assert relative(got, integrate(lambda u: (u @ w1 + b1) @ w2 + b2 - leak * u, u0, 0.8)) < 1e-12
    homogeneous = exact.linear_reaction(jnp.asarray(u0), w1 @ w2, 0.8, leak)
    expected = u0 @ scipy.linalg.expm(0.8 * (w1 @ w2 - leak * np.eye(3)))
    assert relative(homogeneous, expected) < 1e-13


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("leak", [True, False])
def test_linear_master_equation(boundary, weighted, leak, relative):
    rng = np.random.default_rng(3)
    n, d, t, diffusivity, length = 6, 3, 0.9, 0.05, 1.5
    u0, m = rng.standard_normal((n, d)), rng.standard_normal((d, d))
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    share = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    dx = length / (n + 1 if boundary == "dirichlet" else n)
    spatial = np.outer(np.ones(n), share) - leak * np.eye(n) + diffusivity * laplacian(n, boundary, dx)
    generator = np.kron(spatial, np.eye(d)) + np.kron(np.eye(n), m.T)
    expected = (scipy.linalg.expm(t * generator) @ u0.ravel()).reshape(n, d)
    got = exact.linear_master_equation(jnp.asarray(u0), m, t, diffusivity, boundary, length, leak, weights)
    assert relative(got, expected) < 1e-12


def test_linear_master_equation_over_a_long_depth():
    """‖tA‖ ≈ 5e6: beyond the default of jax's matrix exponential, which returns NaN there."""
    u0 = jnp.sin(jnp.arange(18.0).reshape(6, 3))
    got = exact.linear_master_equation(u0, -np.eye(3), 1000.0, 20.0, "dirichlet", leak=True)
    assert np.all(np.abs(got) < 1e-300)


# 4. Spatial normalization


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("eps", "t"), [(1.0, 2.0), (0.04, 3.0), (1e-4, 0.7)])
def test_spatial_norm_solution(weighted, eps, t, relative):
    rng = np.random.default_rng(4)
    u0, gamma = 1 + rng.standard_normal((5, 3)), 0.6
    weights = rng.uniform(0.5, 2.0, 5) if weighted else None
    share = np.full(5, 0.2) if weights is None else weights / weights.sum()

    def field(u):
        deviation = u - share @ u
        return -gamma * deviation / np.sqrt(share @ np.sum(deviation**2, axis=1) + eps)

    got = exact.spatial_norm_solution(jnp.asarray(u0), gamma, eps, t, weights)
    assert relative(got, integrate(field, u0, t)) < 1e-12
    constant = jnp.ones((5, 3))
    np.testing.assert_array_equal(exact.spatial_norm_solution(constant, gamma, eps, t), constant)


def test_spatial_norm_radius_satisfies_its_equation():
    """F(s0) − F(s) = γt and ds/dt = −γs/√(s²+ε), from 1e-3 √ε to 1e5 √ε, decades apart in one call."""
    s0, eps, gamma = jnp.logspace(-6, 2, 9), 1e-6, 2.0
    for t in (1e-5, 1e-3, 0.3):
        s = exact.spatial_norm_radius(s0, gamma, eps, t)
        assert np.all(s > 0) and np.all(s < s0)
        error = np.abs(exact.spatial_norm_time(s0, s, gamma, eps) - t)
        assert np.all(error <= 1e-15 * np.maximum(1, np.asarray(s0)))
        rate = jax.vmap(jax.grad(exact.spatial_norm_radius, 3), (0, None, None, None))(s0, gamma, eps, t)
        np.testing.assert_allclose(rate, -gamma * s / jnp.sqrt(s**2 + eps), rtol=1e-12)


def test_spatial_norm_without_eps_ends():
    assert float(exact.spatial_norm_time(1.5, 0.0, 0.5, 0.0)) == 3.0
    assert math.isinf(float(exact.spatial_norm_time(1.5, 0.0, 0.5, 1e-8)))
    assert math.isinf(float(exact.spatial_norm_time(1.5, 0.0, 0.0, 0.0)))
    assert float(exact.spatial_norm_time(0.0, 0.0, 0.0, 0.0)) == 0.0
    s = [float(exact.spatial_norm_radius(1.5, 0.5, 0.0, t)) for t in (0.0, 2.0, 3.0, 4.0)]
    assert s == [1.5, 0.5, 0.0, 0.0]
    near = exact.spatial_norm_radius(1.5, 0.5, 1e-20, 2.0)
    assert float(near) == pytest.approx(0.5, abs=1e-15)
    assert float(exact.spatial_norm_radius(0.0, 0.5, 0.1, 2.0)) == 0.0


def test_spatial_norm_against_growth():
    gamma, growth, eps = 3.0, 0.8, 0.5
    radius = float(exact.spatial_norm_basin_radius(gamma, growth, eps))

    def rate(s):
        return growth * s - gamma * s / np.sqrt(s**2 + eps)

    assert abs(rate(radius)) < 1e-14
    assert integrate(rate, np.array(0.99 * radius), 8.0) < 0.2 * radius
    assert integrate(rate, np.array(1.01 * radius), 8.0) > 2 * radius
    assert float(exact.spatial_norm_basin_radius(1.0, 2.0, 0.3)) == 0.0
    assert rate(1e-3) < 0 and 2.0 * 1e-3 - 1e-3 / np.sqrt(1e-6 + 0.25) >= -1e-8
    # ε = 0, above, at and below γ/λ, and without growth.
    for s0, t in ((5.0, 1.3), (3.75, 2.0), (2.0, 0.9)):
        expected = integrate(lambda s: growth * s - gamma, np.array(s0), t)
        assert float(exact.spatial_norm_growth_radius(s0, gamma, growth, t)) == pytest.approx(expected, abs=1e-12)
    assert float(exact.spatial_norm_growth_radius(2.0, gamma, growth, 2.0)) == 0.0
    assert float(exact.spatial_norm_growth_radius(2.0, 0.5, 0.0, 1.0)) == 1.5


# 5 and 6. Equiangular tokens


@pytest.mark.parametrize(("n", "d", "gamma"), [(1, 7, 0.4), (3, 3, -0.4), (5, 7, 0.0), (6, 7, 1.0)])
def test_equiangular_tokens(n, d, gamma, getkey):
    expected = gamma * np.ones((n, n)) + (1 - gamma) * np.eye(n)
    for key in (None, getkey()):
        x = exact.equiangular_tokens(n, d, gamma, key)
        assert x.shape == (n, d)
        np.testing.assert_allclose(x @ x.T, expected, atol=3e-15)


@pytest.mark.parametrize("beta", [0.0, 3.0])
@pytest.mark.parametrize(("n", "d", "gamma0"), [(2, 7, -0.8), (5, 7, 0.0), (5, 7, -0.2), (7, 7, 0.6)])
def test_equiangular_cosine_is_the_token_system(beta, n, d, gamma0):
    x = np.asarray(exact.equiangular_tokens(n, d, gamma0, jax.random.key(1)))
    t = 0.0
    for step in (0.3, 2.2):
        x = integrate(lambda y: sphere_field(y, beta), x, step)
        t += step
        gram = x @ x.T
        cosine = float(exact.equiangular_cosine(gamma0, beta, n, t))
        np.testing.assert_allclose(gram[~np.eye(n, dtype=bool)], cosine, atol=1e-12)
        rate = sphere_field(x, beta) @ x.T
        expected = float(exact.equiangular_rate(cosine, beta, n))
        np.testing.assert_allclose((rate + rate.T)[0, 1], expected, atol=1e-12)
        np.testing.assert_allclose(exact.sphere_attention(jnp.asarray(x), beta), sphere_field(x, beta), atol=1e-14)


def test_equiangular_without_temperature_has_the_closed_form():
    t, n = jnp.array([0.0, 1.0, 15.0]), 6
    decayed = np.exp(-2 * np.asarray(t))
    np.testing.assert_allclose(
        exact.equiangular_cosine(0.0, 0.0, n, t), (1 - decayed) / (1 + (n - 1) * decayed), atol=1e-15
    )
    np.testing.assert_allclose(
        exact.equiangular_cosine(0.0, 0.0, n, t, gap=True), n * decayed / (1 + (n - 1) * decayed), rtol=1e-13
    )
    tiny = exact.equiangular_cosine(0.3, 1e-13, n, t)
    np.testing.assert_allclose(tiny, exact.equiangular_cosine(0.3, 0.0, n, t), atol=1e-12)


@pytest.mark.parametrize(("n", "beta", "gamma0"), [(2, 40.0, 0.0), (8, 15.0, -0.14), (100, 8.0, 0.0), (3, 100.0, 0.7)])
def test_equiangular_through_a_metastable_phase(n, beta, gamma0):
    """At large β tokens rest near γ0 for a depth like e^{β(1−γ0)}/2nβ. Compared in y = ln w, where the
    equation is mild; the token system itself would hold no digit of so slow a motion."""
    unit = math.exp(beta * (1 - gamma0)) / (2 * n * beta)
    y0 = math.log1p((n - 1) * gamma0) - math.log1p(-gamma0)

    def gap_at(y):
        return n * np.exp(-np.logaddexp(y, math.log(n - 1)))

    for t in (0.01 * unit, 0.5 * unit, 2 * unit):
        y = integrate(lambda y: 2 * n / (np.exp(beta * gap_at(y)) + n - 1), np.array(y0), t, rtol=1e-13)
        gap = float(exact.equiangular_cosine(gamma0, beta, n, t, gap=True))
        assert gap == pytest.approx(float(gap_at(y)), rel=1e-9)


def test_equiangular_gap_closes_at_rate_two():
    t = jnp.array([10.0, 40.0, 200.0])
    gap = exact.equiangular_cosine(0.1, 3.0, 5, t, gap=True)
    np.testing.assert_allclose(np.diff(np.log(gap)), -2 * np.diff(t), rtol=1e-8)
    np.testing.assert_array_equal(exact.equiangular_cosine(1.0, 3.0, 5, t), 1.0)
    assert float(exact.equiangular_cosine(0.25, 3.0, 5, 0.0)) == 0.25


@pytest.mark.parametrize("beta", [0.0, 4.0])
@pytest.mark.parametrize(("n", "gamma0", "r0"), [(2, -0.8, 1.0), (5, 0.0, 0.3), (6, 0.5, 4.0)])
def test_preln_equiangular_is_the_token_system(beta, n, gamma0, r0):
    def field(x):
        return softmax_attention(x / np.linalg.norm(x, axis=1, keepdims=True), beta)

    x = r0 * np.asarray(exact.equiangular_tokens(n, 7, gamma0, jax.random.key(2)))
    t = 0.0
    for step in (0.4, 6.6):
        x = integrate(field, x, step)
        t += step
        state = exact.preln_equiangular(gamma0, r0, beta, n, t)
        radius = np.linalg.norm(x, axis=1)
        np.testing.assert_allclose(radius, state.radius, rtol=1e-12)
        gram = (x @ x.T) / np.outer(radius, radius)
        np.testing.assert_allclose(gram[~np.eye(n, dtype=bool)], state.cosine, atol=1e-12)
        assert float(state.gap + state.cosine) == pytest.approx(1.0, abs=1e-15)
        # Rates: θ' and r' from the token field itself.
        v = field(x)
        theta = x / radius[:, None]
        radial = np.sum(v * theta, axis=1)
        turn = (v - radial[:, None] * theta) / radius[:, None]
        angular, outward = exact.preln_equiangular_rates(state.cosine, state.radius, beta, n)
        assert (turn @ theta.T + theta @ turn.T)[0, 1] == pytest.approx(float(angular), abs=1e-12)
        np.testing.assert_allclose(radial, outward, atol=1e-12)


def test_preln_gap_closes_like_the_inverse_square():
    t = jnp.array([1e3, 1e5, 1e7])
    state = exact.preln_equiangular(0.1, 1.0, 1.0, 5, t)
    np.testing.assert_allclose(np.diff(np.log(state.gap)) / np.diff(np.log(t)), -2, atol=5e-3)
    np.testing.assert_allclose(state.radius / t, 1, atol=3e-3)
    uniform = exact.preln_equiangular(0.1, 1.0, 0.0, 5, t)
    np.testing.assert_allclose(uniform.radius**2 * uniform.gap, 0.9, rtol=1e-12)
    together = exact.preln_equiangular(1.0, 2.0, 3.0, 5, 7.0)
    assert tuple(map(float, together)) == (1.0, 0.0, 9.0)
    frozen = exact.preln_equiangular(-1 + 1e-9, 0.7, 15.0, 2, 1000.0)
    # z' = z/r with z = 1 + γ ≪ 1 and r' = 1 to 1e-12, since e^{−30} ≈ 1e-13.
    assert float(frozen.radius) == pytest.approx(1000.7, rel=1e-11)


# 7, 8 and 12. On the sphere


@pytest.mark.parametrize(("n", "d", "beta"), [(4, 3, 2.0), (3, 5, 0.0), (1, 4, 1.0)])
def test_consensus_exponents(n, d, beta):
    direction = np.ones(d) / math.sqrt(d)
    x = np.tile(direction, (n, 1))

    def field(y):
        y = y.reshape(n, d)
        weight = np.exp(beta * y @ y.T)
        mixed = weight / np.sum(weight, axis=1, keepdims=True) @ y
        return (mixed - np.sum(mixed * y, axis=1, keepdims=True) * y).ravel()

    jacobian = complex_step_jacobian(field, x.ravel())
    tangent = np.kron(np.eye(n), scipy.linalg.null_space(direction[None]))
    values = np.sort(np.linalg.eigvals(tangent.T @ jacobian @ tangent).real)[::-1]
    np.testing.assert_allclose(values, exact.consensus_exponents(n, d), atol=1e-12)
    ambient = np.sort(np.linalg.eigvals(jacobian).real)
    np.testing.assert_allclose(ambient[:n], -2, atol=1e-12)


def test_single_token(relative):
    rng = np.random.default_rng(5)
    v, x0 = rng.standard_normal((3, 3)), rng.standard_normal((2, 3))
    start = x0 / np.linalg.norm(x0, axis=1, keepdims=True)

    def field(x):
        y = x @ v
        return y - np.sum(y * x, axis=1, keepdims=True) * x

    got = exact.sphere_retraction_single_token(jnp.asarray(x0), v, 2.3)
    assert relative(got, integrate(field, start, 2.3)) < 1e-12
    assert relative(exact.sphere_retraction_single_token(jnp.asarray(x0[1]), v, 2.3), got[1]) < 1e-14
    # e^{2000} overflows, the direction does not.
    far = exact.sphere_retraction_single_token(jnp.ones(3), np.diag([2000.0, 1999.0, 0.0]), 1.0)
    np.testing.assert_allclose(far, np.array([1, math.exp(-1), 0]) / math.hypot(1, math.exp(-1)), rtol=1e-12)


def test_energy_rises_at_the_stated_rate():
    rng = np.random.default_rng(6)
    x = rng.standard_normal((5, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)

    def energy(y, beta):
        return np.sum(np.exp(beta * y @ y.T)) / (2 * beta * len(y) ** 2)

    for beta in (0.1, 1.0, 6.0):
        assert float(exact.interaction_energy(jnp.asarray(x), beta)) == pytest.approx(energy(x, beta), rel=1e-14)
        slope = np.imag(energy(x + 1e-30j * sphere_field(x, beta), beta)) / 1e-30
        assert float(exact.interaction_energy_rate(jnp.asarray(x), beta)) == pytest.approx(slope, rel=1e-13)
        assert slope > 0
    equiangular = exact.equiangular_tokens(4, 4, 0.3)
    expected = (math.exp(2.0) + 3 * math.exp(0.6)) / (2 * 2.0 * 4)
    assert float(exact.interaction_energy(equiangular, 2.0)) == pytest.approx(expected, rel=1e-14)


# 9. Gaussian tokens


@pytest.mark.parametrize(("v", "a", "t"), [(1.0, 0.5, 0.6), (-0.8, 0.5, 3.0)])
def test_gaussian_tokens(v, a, t):
    """Gauss–Hermite tokens with quadrature weights stand for the Gaussian: every token must move by s(t)/s0."""
    tokens, weights = exact.gaussian_quadrature_tokens(80, 0.9)
    x0, log_weights = np.asarray(tokens), np.log(np.asarray(weights))[None]
    assert np.sum(weights) == pytest.approx(1.0, abs=1e-15)
    assert np.sum(weights * x0[:, 0] ** 2) == pytest.approx(0.9, rel=1e-13)
    x = integrate(lambda x: v * softmax_attention(x, a, log_weights), x0, t)
    variance = float(exact.gaussian_token_variance(0.9, v * a, t))
    # Some of the outermost tokens, of weight 1e-30 and less, feel that the quadrature is finite.
    core = np.abs(x0[:, 0]) < 8
    np.testing.assert_allclose(x[core] / x0[core], math.sqrt(variance / 0.9), rtol=1e-11)
    np.testing.assert_allclose(np.sum(np.asarray(weights) * x[:, 0] ** 2), variance, rtol=1e-11)


def test_gaussian_blowup():
    assert float(exact.gaussian_blowup_time(0.5, 2.0)) == 0.5
    assert math.isinf(float(exact.gaussian_blowup_time(0.5, -2.0)))
    times = jnp.array([0.0, 0.25, 0.5, 0.7])
    np.testing.assert_array_equal(exact.gaussian_token_variance(0.5, 2.0, times), [0.5, 1.0, math.inf, math.inf])
    np.testing.assert_allclose(exact.gaussian_token_variance(0.5, -2.0, times), 0.5 / (1 + 2 * times), rtol=1e-15)


# 10. Stability (the polynomials themselves: test_exact_stability.py)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", ["euler", "rk4", "dopri8"])
def test_diffusive_step_limit(boundary, name):
    n, diffusivity, dx = 9, 0.3, 0.1
    h = float(exact.diffusive_step_limit(name, diffusivity, dx, n, boundary))
    polynomial = np.polynomial.Polynomial(exact.stability_polynomial(name))
    values = np.linalg.eigvalsh(diffusivity * laplacian(n, boundary, dx))
    assert np.abs(polynomial(h * (1 - 1e-9) * values)).max() <= 1 + 1e-12
    assert np.abs(polynomial(h * (1 + 1e-6) * values)).max() > 1
    large = float(exact.diffusive_step_limit(name, diffusivity, dx))
    assert large == pytest.approx(exact.real_axis_limit(name) * dx**2 / (4 * diffusivity), rel=1e-15)
    assert large < h
    assert math.isinf(float(exact.diffusive_step_limit(name, 0.0, dx)))


# 11. Information


def test_bivariate_normal_information():
    for rho in (-0.99, 0.0, 1e-5, 0.6):
        joint = multivariate_normal(cov=[[1, rho], [rho, 1]]).entropy()
        marginal = multivariate_normal(cov=[[1]]).entropy()
        assert float(exact.bivariate_normal_information(rho)) == pytest.approx(2 * marginal - joint, abs=1e-14)
    assert float(exact.bivariate_normal_information(1e-9)) == pytest.approx(5e-19, rel=1e-6)
    assert math.isinf(float(exact.bivariate_normal_information(1.0)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_diffusion_channel_information(boundary):
    """Against I = ½ ln det(cov of input) det(cov of output)/det(joint cov) of the dense token vectors."""
    rng = np.random.default_rng(7)
    n, diffusivity, dx, t, noise = 6, 0.02, 0.2, 0.8, 0.3
    prior = rng.uniform(0.2, 2.0, n)
    modes = np.asarray(exact.mode_amplitudes(jnp.eye(n), boundary)).T
    np.testing.assert_allclose(modes.T @ modes, np.eye(n), atol=1e-14)
    source = modes @ np.diag(prior) @ modes.T
    gain = scipy.linalg.expm(t * diffusivity * laplacian(n, boundary, dx))
    output = gain @ source @ gain.T + noise**2 * np.eye(n)
    joint = np.block([[source, source @ gain.T], [gain @ source, output]])
    expected = 0.5 * sum(s * np.linalg.slogdet(c)[1] for s, c in ((1, source), (1, output), (-1, joint)))
    rates = exact.heat_eigenvalues(n, boundary, diffusivity, dx)
    got = exact.diffusion_channel_information(prior, rates, t, noise)
    assert float(got) == pytest.approx(expected, rel=1e-12)
    later = exact.diffusion_channel_information(prior, rates, 2 * t, noise)
    assert float(later) < float(got)
