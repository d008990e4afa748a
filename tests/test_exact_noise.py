"""Closed forms of noise that tokens share and of the circle: against simulation, quadrature and other libraries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import iv

from pdejax import exact


def layer(u, w, beta, h):
    """One normalized layer with random values, written out in NumPy: u (b, 2, d), w (b, d, d)."""
    logits = beta * u @ np.swapaxes(u, 1, 2)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    moved = u + math.sqrt(h) * (p @ u) @ w
    return moved / np.linalg.norm(moved, axis=-1, keepdims=True)


def pair(gamma, d):
    u = np.zeros((2, d))
    u[0, 0], u[1, 0], u[1, 1] = 1, gamma, math.sqrt(1 - gamma**2)
    return u


@pytest.mark.parametrize(("gamma", "beta", "d"), [(0.3, 1.2, 3), (-0.7, 2.0, 6), (0.9, 0.5, 4)])
def test_rates_are_those_of_one_layer(gamma, beta, d):
    """Mean and variance of the cosine's change in a layer, over W and −W, by h."""
    rng, h, draws = np.random.default_rng(0), 1e-4, 100_000
    w = rng.standard_normal((draws, d, d))
    u = np.broadcast_to(pair(gamma, d), (draws, 2, d))
    changes = [np.sum(np.prod(layer(u, s * w, beta, h), axis=1), axis=1) - gamma for s in (1, -1)]
    drift, variance = exact.two_token_rates(gamma, beta, d)
    both = (changes[0] + changes[1]) / 2 / h
    assert abs(both.mean() - float(drift)) < 4 * both.std() / math.sqrt(draws) + 0.02
    assert np.var(changes[0]) / h == pytest.approx(float(variance), rel=0.03)


@pytest.mark.parametrize("d", [2, 3, 5, 9])
def test_exponents_are_the_rates_near_both_ends(d):
    """ln ε moves at drift/ε − variance/2ε²; half of that is the rate of the angle."""
    beta = 1.1
    for end, expected in zip((1.0, -1.0), exact.two_token_exponents(beta, d), strict=True):
        eps = 1e-6
        drift, variance = (float(x) for x in exact.two_token_rates(end * (1 - eps), beta, d))
        assert 0.5 * (-end * drift / eps - variance / eps**2 / 2) == pytest.approx(float(expected), abs=1e-4)


def test_the_critical_line():
    for d in (4, 5, 8, 20):
        beta = exact.two_token_critical_beta(d)
        assert float(exact.two_token_exponents(beta, d)[1]) == pytest.approx(0, abs=1e-12)
        assert math.cosh(beta) ** 2 == pytest.approx((d - 1) / 2)
    assert exact.two_token_critical_beta(3) == exact.two_token_critical_beta(2) == 0
    # β that overflows a hyperbolic cosine.
    assert float(exact.two_token_exponents(2000.0, 5)[1]) == -1


@pytest.mark.parametrize(("gamma", "beta", "d"), [(0.0, 2.0, 4), (-0.4, 0.7, 3), (0.6, 3.0, 8)])
def test_antipodal_probability_by_quadrature(gamma, beta, d):
    """The scale function from the rates themselves, by SciPy: its derivative is exp(−∫ 2 drift/variance)."""

    def ratio(x):
        g = np.tanh(x)
        drift, variance = (np.asarray(v) for v in exact.two_token_rates(jnp.asarray(g), beta, d))
        # Itô: x = artanh γ drifts by drift/(1 − γ²) + γ variance/(1 − γ²)², with variance/(1 − γ²)².
        return 2 * (drift / (1 - g * g) + g * variance / (1 - g * g) ** 2) / (variance / (1 - g * g) ** 2)

    x = np.linspace(-16, 16, 2001)
    rates = ratio(x)
    inner = np.concatenate([[0], np.cumsum((rates[1:] + rates[:-1]) / 2) * (x[1] - x[0])])
    density = np.exp(-(inner - inner[1000]))
    share = np.trapezoid(np.where(x >= math.atanh(gamma), density, 0), x) / np.trapezoid(density, x)
    assert float(exact.antipodal_probability(gamma, beta, d)) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("factor", "stays"), [(0.4, False), (2.0, True)])
def test_nearly_opposite_tokens_stay_opposite_beyond_the_critical_line_only(factor, stays):
    """Networks in NumPy, 1 + γ = 0.02 at the start: how many pairs are still opposite at depth 2."""
    d, rng = 8, np.random.default_rng(3)
    u = np.broadcast_to(pair(-0.98, d), (400, 2, d))
    for _ in range(128):
        u = layer(u, rng.standard_normal((400, d, d)), factor * exact.two_token_critical_beta(d), 1 / 64)
    opposite = float(np.mean(np.sum(u[:, 0] * u[:, 1], axis=-1) < -0.9))
    assert opposite > 0.8 if stays else opposite < 0.1
    assert (float(exact.two_token_exponents(factor * exact.two_token_critical_beta(d), d)[1]) < 0) == stays
    words = " ".join((exact.two_token_critical_beta.__doc__ or "").split())
    assert "nearly opposite tokens stay opposite; below it they leave and meet" in words


def test_opposite_tokens_never_stay_below_the_critical_line():
    *below, above = jax.jit(lambda beta: exact.antipodal_probability(0.0, beta, 5))(np.asarray([0.5, 0.8, 1.2]))
    np.testing.assert_array_equal(below, 0)  # the critical β is 0.881
    assert 0 < float(above) < 0.5


@pytest.mark.parametrize(("d", "order"), [(3, 1), (4, 2), (6, 1)])
def test_a_token_on_the_sphere_forgets_where_it_was(d, order):
    """One layer's mean cosine c(h) by quadrature, c(h)^{1/h} → e^{−(d−1)/2} at first order: c(h) differs from e^{−(d−1)h/2} by
    (d − 1)(d − 4)h²/4, so that in d = 4 it is the second."""
    errors = []
    for count in (32, 64, 128):
        s = 1 / math.sqrt(count)

        def density(r, z, s=s):
            # z along the token, r = |rest|, chi of d − 1 degrees
            weight = math.exp(-(z * z + r * r) / 2) / math.sqrt(2 * math.pi) * r ** (d - 2)
            return weight * (1 + s * z) / math.hypot(1 + s * z, s * r)

        norm = 2 ** ((d - 3) / 2) * math.gamma((d - 1) / 2)
        mean = quad(lambda z: quad(density, 0, 10, args=(z,), epsrel=1e-7)[0], -9, 9, epsrel=1e-7)[0] / norm
        errors.append(mean**count - float(exact.sphere_noise_cosine(d, 1.0)))
    orders = np.log2(np.abs(errors[:-1]) / np.abs(errors[1:]))
    np.testing.assert_allclose(orders, order, atol=0.12)


def test_moments_of_random_linear_layers():
    """By expectation over a whole layer's signs and normals, and their limits at order 1."""
    rng = np.random.default_rng(1)
    d, layers, s2 = 3, 4, 0.5
    x = np.zeros((400_000, d))
    x[:, 0] = 1
    for _ in range(layers):
        x = x + math.sqrt(s2 / layers) * np.einsum("bij,bj->bi", rng.standard_normal((len(x), d, d)), x)
    square = np.sum(x**2, axis=1)
    second, fourth = (float(m) for m in exact.random_linear_moments(d, layers, variance=s2))
    assert square.mean() == pytest.approx(second, rel=0.01) and np.mean(square**2) == pytest.approx(fourth, rel=0.05)
    limits = exact.random_linear_moments(d, variance=s2)
    for index in (0, 1):
        errors = [float(exact.random_linear_moments(d, n, variance=s2)[index] - limits[index]) for n in (512, 1024)]
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)


def test_modes_on_the_circle_grow_as_bessel_functions_say():
    for beta in (0.5, 3.0, 20.0):
        for k in (1, 2, 5):
            expected = k * k / beta * iv(k, beta) / iv(0, beta)
            assert float(exact.circle_mode_rate(beta, k)) == pytest.approx(expected, rel=1e-10)
    # Uniform attention pulls the first mode alone, at rate ½.
    assert (
        float(exact.circle_mode_rate(0.0, 1)) == pytest.approx(0.5)
        and abs(float(exact.circle_mode_rate(0.0, 2))) < 1e-12
    )


def test_values_out_of_range():
    for call, words in (
        (lambda: exact.two_token_rates(1.5, 1.0, 3), r"gamma must be in \[−1, 1\]"),
        (lambda: exact.two_token_rates(0.5, -1.0, 3), "beta must be finite and not negative"),
        (lambda: exact.two_token_critical_beta(1), "d must be at least 2"),
        (lambda: exact.antipodal_probability(1.0, 1.0, 3), r"gamma0 must be in \(−1, 1\)"),
        (lambda: exact.circle_mode_rate(1.0, 0), "mode must be at least 1"),
        (lambda: exact.random_linear_moments(3, 0), "layers must be at least 1"),
        (lambda: exact.sphere_noise_cosine(1, 1.0), "d must be at least 2"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert jax.jit(lambda g: exact.two_token_rates(g, 1.0, 3))(0.5)[0].shape == ()
