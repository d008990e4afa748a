"""Closures beside tokens, slow clustering, and noise common to all tokens: closed forms, twins, planted cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax import exact
from pdejax.analysis import limits
from pdejax.analysis.limits._closures import gaussian_attention
from pdejax.analysis.limits._noise import antipodal_exponent, coupled_ends


def on_circle(*angles):
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1))


# Closures


def test_gaussian_tokens_stay_gaussian():
    """In one dimension the closed form; quadrature nodes of a Gaussian go with the closure."""
    one = limits.gaussian_closure(jnp.zeros(1), jnp.eye(1), logits=0.5 * jnp.eye(1), values=jnp.eye(1), t1=0.5)
    assert float(one.covariance[0, 0]) == pytest.approx(float(exact.gaussian_token_variance(1.0, 0.5, 0.5)), rel=1e-8)
    # A mean and one dimension: tokens at Gauss–Hermite nodes, with their weights in the softmax.
    nodes, weights = exact.gaussian_quadrature_tokens(40, 0.7)

    def field(t, u, args):
        logits = 0.6 * u @ u.T + jnp.log(weights)[None]
        return -0.8 * jax.nn.softmax(logits, axis=1) @ u

    end = pj.simulate(pj.Discretization(field, "rk4", t1=0.5, steps=64), nodes + 0.3, save="end").us[-1][:, 0]
    closure = limits.gaussian_closure(
        jnp.asarray([0.3]), jnp.asarray([[0.7]]), logits=0.6 * jnp.eye(1), values=-0.8 * jnp.eye(1), t1=0.5
    )
    mean = float(weights @ end)
    assert mean == pytest.approx(float(closure.mean[0]), rel=1e-6)
    assert float(weights @ (end - mean) ** 2) == pytest.approx(float(closure.covariance[0, 0]), rel=1e-6)


def test_gaussian_attention_tilts_a_gaussian():
    """A query x sees the mean Vμ + VΣBx, for matrices that are not symmetric: a million keys."""
    rng = np.random.default_rng(0)
    mean, root = np.array([0.4, -0.2]), np.linalg.cholesky([[0.5, 0.1], [0.1, 0.3]])
    keys = mean + rng.standard_normal((200_000, 2)) @ root.T
    logits, values = np.array([[0.5, 0.3], [-0.2, 0.4]]), np.array([[0.6, -0.4], [0.3, 0.5]])
    x = np.array([0.7, -0.5])
    weight = np.exp(keys @ (logits @ x))
    seen = values @ (weight @ keys / weight.sum())
    expected = values @ (mean + root @ root.T @ logits @ x)
    np.testing.assert_allclose(seen, expected, atol=0.01)
    small = jnp.asarray(np.concatenate([x[None], keys[:5]]))
    weight = np.exp(np.asarray(small) @ (logits @ x))
    found = gaussian_attention(small, jnp.asarray(logits), jnp.asarray(values))[0]
    np.testing.assert_allclose(found, values @ (weight @ np.asarray(small) / weight.sum()), rtol=1e-10)


def test_modes_of_a_density_grow_at_their_rate():
    """Around the uniform density, and a density of two points' worth of mass moves with the tokens."""
    theta = 2 * np.pi * np.arange(64) / 64
    for k in (1, 2):
        start = (1 + 1e-5 * np.cos(k * theta)) / (2 * np.pi)
        end = limits.circle_closure(jnp.asarray(start), 2.0, t1=0.5)
        grown = np.log(np.fft.rfft(end)[k].real / np.fft.rfft(start)[k].real) / 0.5
        assert grown == pytest.approx(float(exact.circle_mode_rate(2.0, k)), abs=1e-6)
        assert float(jnp.sum(end)) == pytest.approx(float(np.sum(start)), rel=1e-12)


def test_a_smooth_density_moves_as_its_tokens_do():
    """Quantiles of the density as tokens, 400 of them: first modes at depth 0.4."""
    theta = 2 * np.pi * np.arange(128) / 128
    angle = np.linspace(0, 2 * np.pi, 4001)
    total = np.cumsum((1 + 0.5 * np.cos(angle))[:-1]) / 4000
    tokens = np.interp((np.arange(400) + 0.5) / 400, total, angle[1:])

    def field(t, u, args):
        return exact.sphere_attention(u, 3.0)

    run = pj.Discretization(field, "rk4", t1=0.4, steps=16)
    u = np.asarray(pj.simulate(run, on_circle(*tokens), save="end").us[-1])
    end = limits.circle_closure(jnp.asarray((1 + 0.5 * np.cos(theta)) / (2 * np.pi)), 3.0, t1=0.4)
    mode = np.sum(np.exp(1j * theta) * np.asarray(end)) * 2 * np.pi / 128
    assert abs(np.mean(u[:, 0] + 1j * u[:, 1]) - mode) < 2e-3


def test_the_gap_of_independent_tokens_falls_as_the_root_of_their_number():
    """Means of N normals, whose gap is N^{−½}; and a bias that does not fall, which the exponent shows."""

    def measure(n, seed):
        return np.random.default_rng([n, seed]).standard_normal((n, 2)).mean(axis=0)

    found = limits.closure_gap(measure, np.zeros(2), tokens=(8, 16, 32, 64, 128), seeds=40)
    assert float(found.exponent.low) < -0.5 < float(found.exponent.high)
    assert float(found.exponent.high - found.exponent.low) < 0.3
    biased = limits.closure_gap(lambda n, s: measure(n, s) + 0.3, np.zeros(2), tokens=(32, 128, 512), seeds=12)
    assert float(biased.exponent.low) > -0.4
    with pytest.raises(ValueError, match="at least three numbers"):
        limits.closure_gap(measure, np.zeros(2), tokens=(8, 16))


# Slow clustering


@pytest.fixture(scope="module")
def waits():
    """Waiting times of two tokens at 1.2 for β up to 28."""
    runs = {
        beta: limits.metastability(on_circle(0.0, 1.2), beta, t1=1e7, saves=5) for beta in (6.0, 10.0, 16.0, 22.0, 28.0)
    }
    return {beta: (float(run.merged[0]), run.steps) for beta, run in runs.items()}


def test_two_tokens_merge_when_their_closed_form_says(waits):
    for beta, (time, steps) in waits.items():
        gamma = float(exact.equiangular_cosine(math.cos(1.2), beta, 2, time))
        assert gamma == pytest.approx(math.cos(0.05), abs=1e-4 if beta > 20 else 1e-6)
        assert steps < 400  # however long the wait, from 8 to a million


def test_the_waiting_exponent(waits):
    """d ln T/dβ → 1 − cos ω₀; and of exact Laplace times."""
    found = limits.waiting_exponent(list(waits), [time for time, _ in waits.values()])
    assert float(found.low) < 1 - math.cos(1.2) < float(found.high)
    assert float(found) == pytest.approx(1 - math.cos(1.2), abs=0.005)
    betas = np.array([6.0, 9.0, 12.0, 18.0])
    planted = limits.waiting_exponent(betas, np.exp(0.4 * betas) / betas * (1 + 2 / betas))
    assert float(planted.low) < 0.4 < float(planted.high) and float(planted) == pytest.approx(0.4, abs=0.005)
    for betas in ([4.0, 3.0, 5.0, 6.0], [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, math.inf]):
        with pytest.raises(ValueError, match="must be positive, finite, and rise"):
            limits.waiting_exponent(betas, [1.0, 2.0, 3.0, 4.0])
    for time in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"times=.* must be positive and finite"):
            limits.waiting_exponent([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, time])


def test_the_staircase_of_planted_clusters():
    """Five tokens in three clusters that are planted: mergers in the order of their angles, energy up by steps, and an explicit
    solve over the first two mergers."""
    u0 = on_circle(0.0, 0.06, 0.9, 0.96, 2.3)
    run = limits.metastability(u0, 12.0, t1=1e8, angle=0.02)
    assert run.clusters == (4, 3, 2, 1) and np.all(np.diff(run.merged) > 0)
    assert np.all(np.diff(run.energies) >= -1e-9 * run.energies[-1])
    assert run.energies[-1] == pytest.approx(math.exp(12.0) / 24, rel=1e-6)
    np.testing.assert_allclose(np.linalg.norm(run.states, axis=2), 1, atol=1e-12)

    def field(t, u, args):
        return exact.sphere_attention(u, 12.0)

    check = pj.simulate(pj.Discretization(field, "rk4", t1=float(run.merged[2]), steps=2000), u0, save="end").us[-1]
    angles = np.arctan2(check[:, 1], check[:, 0])
    nearest = np.min(np.abs(angles[:2, None] - angles[None, 2:4]))
    assert nearest == pytest.approx(0.02, abs=2e-3)
    with pytest.raises(ValueError, match="rows of length 1"):
        limits.metastability(2 * u0, 12.0, t1=1.0)
    with pytest.raises(ValueError, match="t1"):
        limits.metastability(u0, 12.0, t1=1e12)


# Noise common to all tokens


def test_gaussian_layers_are_euler_maruyama_steps():
    """Without normalization a layer is the noise of the SDE; with it, to second order, noise and drift in Itô's sense."""
    rng = np.random.default_rng(1)
    u, w = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    plain = limits.CommonNoise(limits.attention_means(0.7), variance=2.0)
    run = jax.jit(lambda u, w: (plain.layer(u, w, 0.1), u + 0.1 * plain.noise(u, w), plain.drift(u)))
    layer, step, drift = run(u, w)
    np.testing.assert_allclose(layer, step, rtol=1e-12)
    assert not np.any(drift)
    sphere = limits.CommonNoise(limits.attention_means(0.7), variance=2.0, sphere=True)
    u = jnp.asarray(u / np.linalg.norm(u, axis=1, keepdims=True))
    draws, h = rng.standard_normal((20_000, 4, 4)), 1e-4
    moved = jax.jit(jax.vmap(lambda w: sphere.layer(u, w, h**0.5) + sphere.layer(u, -w, h**0.5)))(draws)
    mean = (np.mean(moved, axis=0) / 2 - u) / h
    drift = np.asarray(jax.jit(lambda u: sphere.drift(u))(u))
    assert np.max(np.abs(mean - drift)) < 0.1
    assert np.max(np.abs(drift)) > 0.5


def test_the_two_senses_differ_by_the_correction():
    """Itô minus Stratonovich is half the derivative of each column of the noise along itself, by finite differences; none for
    one token on the sphere beyond the curvature's own drift."""
    system = limits.CommonNoise(limits.attention_means(0.7), sphere=True)
    u = jax.random.normal(jax.random.key(2), (2, 3))
    u = u / jnp.linalg.norm(u, axis=1, keepdims=True)
    correction, eps, noise = np.zeros((2, 3)), 1e-5, jax.jit(lambda u, w: system.noise(u, w))
    for k in range(9):
        w = np.zeros(9)
        w[k] = 1
        w = jnp.asarray(w.reshape(3, 3))
        column = noise(u, w)
        correction += np.asarray(noise(u + eps * column, w) - noise(u - eps * column, w)) / (4 * eps)
    np.testing.assert_allclose(
        jax.jit(lambda u: system.drift(u) - system.drift(u, "stratonovich"))(u), correction, atol=1e-8
    )
    one = limits.CommonNoise(lambda x: x, sphere=True)
    np.testing.assert_allclose(jax.jit(lambda u: one.drift(u, "stratonovich"))(u[:1]), 0, atol=1e-12)
    # The correction is +½(d − 1)σ²u there, not nothing: the whole drift is what vanishes.
    np.testing.assert_allclose(-jax.jit(one.drift)(u[:1]), (3 - 1) / 2 * one.variance * u[:1], atol=1e-12)


def test_networks_have_the_moments_of_their_closed_form():
    """Linear layers, of three laws: second moments are exact, fourth ones those of normal entries."""
    system, u0 = limits.CommonNoise(lambda u: u, variance=0.5), jnp.asarray([[1.0, 0.0, 0.0]])
    for law in ("normal", "signs"):
        ends = limits.network_ends(system, u0, layers=4, draws=20_000, key=jax.random.key(3), law=law)
        square = np.sum(np.asarray(ends) ** 2, axis=(1, 2))
        second, fourth = (float(m) for m in exact.random_linear_moments(3, 4, variance=0.5))
        assert square.mean() == pytest.approx(second, abs=4 * square.std() / math.sqrt(20_000))
        if law == "normal":
            assert np.mean(square**2) == pytest.approx(fourth, rel=0.15)


def test_coupled_networks_share_their_noise():
    """Linear layers, at first order in the noise the same end; and each has its own second moment."""
    system, u0 = limits.CommonNoise(lambda u: u, variance=0.3), jnp.asarray([[1.0, 0.0]])
    coarse, fine = coupled_ends(system, u0, jnp.asarray(8), jax.random.split(jax.random.key(4), 4000))
    correlation = np.corrcoef(np.asarray(coarse).reshape(4000, 2)[:, 0], np.asarray(fine).reshape(4000, 2)[:, 0])[0, 1]
    assert correlation > 0.95
    assert float(jnp.mean(jnp.sum(fine**2, axis=(1, 2)))) == pytest.approx(
        float(exact.random_linear_moments(2, 16, variance=0.3)[0]), rel=0.05
    )


@pytest.mark.parametrize("calculus", ["ito", pytest.param("stratonovich", marks=pytest.mark.slow)])
def test_diffrax_solves_the_limit_in_both_senses(calculus):
    """One token on the sphere: the mean cosine with its start is e^{−(d−1)σ²/2}. Heun's error, of first order, is 0.02 in 16
    steps."""
    steps = {"ito": 16, "stratonovich": 40}[calculus]
    system = limits.CommonNoise(lambda u: u, variance=0.4, sphere=True)
    u0 = jnp.asarray([[1.0, 0.0, 0.0]])
    ends = limits.sde_ends(system, u0, steps=steps, draws=2000, key=jax.random.key(5), calculus=calculus)
    cosine = np.asarray(ends[:, 0, 0] / jnp.linalg.norm(ends[:, 0], axis=-1))
    assert cosine.mean() == pytest.approx(
        float(exact.sphere_noise_cosine(3, 0.4)), abs=4 * cosine.std() / math.sqrt(2000)
    )


@pytest.mark.parametrize("d", [5, 8])
def test_the_critical_line_of_networks(d):
    """The sampled exponent changes sign within 1 % of ½ arcosh(d − 2)."""
    critical = exact.two_token_critical_beta(d)
    for factor in (0.99, 1.01):
        rates = antipodal_exponent(factor * critical, d, draws=4000, key=jax.random.key(6))
        mean, error = float(jnp.mean(rates)), float(jnp.std(rates)) / math.sqrt(4000)
        assert mean == pytest.approx(float(exact.two_token_exponents(factor * critical, d)[1]), abs=4 * error + 1e-3)
        assert (mean < -4 * error) if factor > 1 else (mean > 4 * error)


def test_refusals():
    system, u0, key = limits.CommonNoise(lambda u: u), jnp.ones((1, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="law='gauss' must be one of"):
        limits.network_ends(system, u0, layers=4, draws=4, key=key, law="gauss")
    with pytest.raises(ValueError, match=r"calculus='stratonowich' must be one of .* did you mean"):
        limits.sde_ends(system, u0, steps=4, draws=4, key=key, calculus="stratonowich")
    with pytest.raises(ValueError, match="no whole number of layers"):
        limits.network_ends(system, u0, layers=4, draws=4, key=key, t1=0.3)
    with pytest.raises(ValueError, match="variance"):
        limits.CommonNoise(lambda u: u, variance=-1.0)
    with pytest.raises(ValueError, match=r"it must be \(1, 1\)"):
        limits.gaussian_closure(jnp.zeros(1), jnp.eye(2), logits=jnp.eye(1), values=jnp.eye(1), t1=1.0)
    with pytest.raises(ValueError, match="even number of at least 8"):
        limits.circle_closure(jnp.ones(7), 1.0, t1=1.0)
    with pytest.raises(ValueError, match="positive integral"):
        limits.circle_closure(jnp.zeros(8), 1.0, t1=1.0)
    with pytest.raises(ValueError, match="density has 8 NaN"):
        limits.circle_closure(jnp.full(8, jnp.nan), 1.0, t1=1.0)
