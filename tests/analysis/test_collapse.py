"""Rates of collapse: the three laws recovered, from closed forms and from solves; intervals that cover; the law favoured."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import Discretization, MasterEquation, SphereProjection, exact, simulate
from pdejax.analysis.tokens._clustering import token_clustering
from pdejax.analysis.tokens._collapse import LAWS, collapse_rate
from pdejax.studies.numerics._verify_cases import TangentAttention, attention, with_weights
from pdejax.terms import RMSNorm

KEY = jax.random.key(0)
K = 121
UNIT = np.linspace(0, 1, K)


def favoured(found):
    return next(law for law in LAWS if f"favour the {law} law" in found.statement())


def test_pure_laws():
    """Without transient and noise every law returns its own numbers to rounding, and is the one favoured."""
    t = 4 * UNIT
    for law, gap, rate, power, origin in (
        ("exponential", 3 * np.exp(-2 * t), 2, math.inf, -math.inf),
        ("exponential", np.exp(0.5 * t), -0.5, math.inf, -math.inf),
        ("algebraic", 5 * (t + 0.7) ** -2.0, 2, 2, -0.7),
        ("blowup", 1 / (4.5 - t), 4.5, 1, 4.5),
        ("blowup", (5 - t) ** 2, 5, -2, 5),
    ):
        found = collapse_rate(t, gap, law=law, window=(0.0, 4.0), exact=rate)
        assert float(found.rate.value) == pytest.approx(rate, rel=1e-9)
        assert float(found.power[0]) == pytest.approx(power, rel=1e-8)
        assert float(found.origin[0]) == pytest.approx(origin, rel=1e-7)
        assert favoured(found) == law, found.statement()
        np.testing.assert_allclose(found.fitted[0], gap, rtol=1e-9)
        assert int(np.argmax(found.weights)) == LAWS.index(law) and float(found.weights.sum()) == pytest.approx(1)


def test_exact_collapse_of_equiangular_tokens():
    """The library's exact gaps: post-LN closes at rate 2, pre-LN with the power 2, variance blows up at t*."""
    t = 12 * UNIT
    gap = exact.equiangular_cosine(0.0, 1.0, 4, t, gap=True)
    found = collapse_rate(t, gap, floor=0.0)
    assert float(found.rate.value) == pytest.approx(2, abs=1e-5) and favoured(found) == "exponential"
    early = collapse_rate(t, gap, window=(0.0, 6.0))
    assert float(early.rate.value) < 1.95  # the transient: no interval covers that
    t = 200 * UNIT
    gap = exact.preln_equiangular(0.0, 1.0, 1.0, 4, t).gap
    found = collapse_rate(t, gap, law="algebraic")
    assert float(found.rate.value) == pytest.approx(2, abs=2e-3) and favoured(found) == "algebraic"
    assert favoured(collapse_rate(t, gap)) == "algebraic"  # whichever law was asked for
    end = float(exact.gaussian_blowup_time(0.9, 0.4))
    t = 0.95 * end * UNIT
    found = collapse_rate(t, exact.gaussian_token_variance(0.9, 0.4, t), law="blowup")
    assert float(found.rate.value) == pytest.approx(end, rel=1e-9) and float(found.power[0]) == pytest.approx(
        1, rel=1e-7
    )
    assert favoured(found) == "blowup"


def test_least_squares_by_numpy():
    """Slope, standard error and interval of the exponential law against the textbook, autocorrelation included."""
    rng = np.random.default_rng(1)
    t = 3 * UNIT
    noise = np.convolve(rng.standard_normal(K + 4), np.ones(5) / 5, "valid") * 0.1
    found = collapse_rate(t, np.exp(1 - 1.5 * t + noise), window=(0.0, 3.0))
    slope, offset = np.polyfit(t, 1 - 1.5 * t + noise, 1)
    residual = 1 - 1.5 * t + noise - slope * t - offset
    rho = (residual[1:] * residual[:-1]).sum() / (residual**2).sum()
    assert float(found.rate.value) == pytest.approx(-slope, rel=1e-12)
    assert float(found.autocorrelation[0]) == pytest.approx(rho, rel=1e-9)
    from scipy.stats import t as student

    error = math.sqrt((residual**2).sum() / (K - 2) / ((t - t.mean()) ** 2).sum() * (1 + rho) / (1 - rho))
    free = K * (1 - rho) / (1 + rho) - 2
    reach = student.ppf(0.975, free) * error
    assert float(found.rate.high - found.rate.value) == pytest.approx(reach, rel=1e-3)
    assert float(found.rate.value - found.rate.low) == pytest.approx(reach, rel=1e-3)
    assert float(found.rms[0]) == pytest.approx(math.sqrt((residual**2).mean()), rel=1e-9)


@pytest.mark.slow
def test_intervals_cover():
    """White and correlated scatter about each law, 60 times: 95 % intervals hold the truth in nearly all."""
    rng = np.random.default_rng(2)
    t = 4 * UNIT
    laws = {
        "exponential": (np.exp(-2 * t), 2.0),
        "algebraic": ((t + 1) ** -2.0, 2.0),
        "blowup": (1 / (4.4 - t), 4.4),
    }
    for smooth in (1, 6):
        noise = np.stack(
            [np.convolve(rng.standard_normal(K + smooth - 1), np.ones(smooth), "valid") for _ in range(60)]
        )
        noise *= 0.02 / math.sqrt(smooth)
        for law, (gap, rate) in laws.items():
            many = jax.vmap(lambda g, law=law: collapse_rate(t, g, law=law, window=(0.0, 4.0)).rate)(
                gap * np.exp(noise)
            )
            held = np.mean((np.asarray(many.low) <= rate) & (rate <= np.asarray(many.high)))
            assert held >= 0.85, (law, smooth, held)
            assert np.median(np.asarray(many.high - many.low)) < 0.5 * rate


def test_several_trajectories():
    """Rates that differ between trajectories: the mean, and a bootstrap interval over them."""
    rates = np.array([1.6, 1.8, 2.0, 2.2, 2.4])
    t = 4 * UNIT
    gap = np.exp(-rates[:, None] * t)
    found = collapse_rate(t, gap, key=KEY, window=(0.0, 4.0))
    np.testing.assert_allclose(found.rates, rates, rtol=1e-11)
    assert float(found.rate.value) == pytest.approx(2, rel=1e-11)
    # Of five the interval is the range of resamples, here 500 of all 3,125: ends lie within a few steps of 0.04 of the extremes.
    assert 1.6 - 1e-9 <= float(found.rate.low) <= 1.7 and 2.3 <= float(found.rate.high) <= 2.4 + 1e-9
    assert found.rate.level == 1 - 2.0**-4
    assert found.gap.shape == (5, K) and found.effective.shape == (5,)


def test_floor_window_and_what_is_left_out():
    t = 20 * UNIT
    gap = np.exp(-2 * t) + 1e-16  # flat from t = 18 on
    found = collapse_rate(t, gap, window=(0.0, 20.0))
    assert float(found.rate.value) == pytest.approx(2, abs=1e-2)
    assert not bool(found.used[0, -1]) and np.all(np.isnan(np.asarray(found.fitted)[~np.asarray(found.used)]))
    assert float(collapse_rate(t, gap, window=(0.0, 20.0), floor=0.0).rate.value) < 1.99
    broken = np.where(t > 19, np.nan, np.exp(-t))
    assert float(collapse_rate(t, broken).rate.value) == pytest.approx(1, rel=1e-9)
    few = jax.jit(lambda g: collapse_rate(t, g, window=(0.0, 20.0)))(jnp.where(t < 0.5, gap, jnp.nan))
    assert np.isnan(float(few.rate.value)) and np.isnan(float(few.rms[0]))


@pytest.mark.slow
def test_float32():
    t = (20 * UNIT).astype(np.float32)
    found = collapse_rate(t, np.exp(-0.3 * t), window=(0.0, 20.0))
    assert found.rate.value.dtype == jnp.float32 and float(found.rate.value) == pytest.approx(0.3, rel=1e-5)
    assert float(found.rate.low) <= 0.3 <= float(found.rate.high)


def test_bad_input():
    t = 4 * UNIT
    gap = np.exp(-t)
    for arguments, options, words in (
        ((t[::-1], gap), {}, "increase"),
        ((t, gap[:-1]), {}, "shape"),
        ((t, -gap), {}, "negative"),
        ((t, gap), {"law": "power"}, "law='power'"),
        ((t, gap), {"window": (3.0, 1.0)}, "window"),
        ((t, gap), {"window": (3.9, 4.0)}, "only 4 depths"),
        ((t, 1e-30 * gap), {}, "only 0 depths"),
        ((t, np.stack([gap, gap])), {}, "need a key"),
    ):
        with pytest.raises(ValueError, match=words):
            collapse_rate(*arguments, **options)
    with pytest.raises(TypeError, match="ts has type"):
        collapse_rate(np.arange(9), gap[:9])


@pytest.mark.slow
def test_measured_collapse_of_simulated_tokens():
    """Solves of the actual equations: equiangular and random tokens on the sphere, pre-LN, and no normalization."""
    n = 4

    def gaps(us):
        return token_clustering(us, key=KEY, resamples=20).gap

    # Post-LN: the retraction's flow. Equiangular tokens against the exact gap, random ones for the spread of the rate.
    equation = MasterEquation(interaction=TangentAttention(attention(1.0, jnp.eye(n)), SphereProjection()))
    depths = jnp.linspace(0.0, 10.0, 101)
    # Random tokens in a half-space, where they gather in one point.
    random = jnp.abs(jax.random.normal(jax.random.key(1), (5, n, n)))
    starts = jnp.concatenate([exact.equiangular_tokens(n, n, 0.0, KEY)[None], jax.vmap(SphereProjection())(random)])
    us = jax.vmap(lambda u0: simulate(Discretization(equation, "rk4", t1=10.0, steps=400), u0, save=depths).us)(starts)
    measured = jnp.stack([gaps(u) for u in us])
    np.testing.assert_allclose(measured[0], exact.equiangular_cosine(0.0, 1.0, n, depths, gap=True), rtol=1e-5)
    found = collapse_rate(depths, measured[0], floor=0.0, exact=2.0)
    assert float(found.rate.value) == pytest.approx(2, abs=1e-4) and favoured(found) == "exponential"
    found = collapse_rate(depths, measured[1:], floor=0.0, key=KEY)
    assert float(found.rate.low) <= float(found.rate.value) <= float(found.rate.high)
    np.testing.assert_allclose(found.rates, 2, atol=5e-3)

    # Pre-LN: the same attention of normalized tokens, without projection.
    norm = with_weights(RMSNorm(n, eps=1e-24), scale=jnp.full(n, n**-0.5))
    equation = MasterEquation(interaction=attention(1.0, jnp.eye(n), norm=norm))
    depths = jnp.linspace(0.0, 100.0, 101)
    us = simulate(Discretization(equation, "rk4", t1=100.0, steps=800), starts[0], save=depths).us
    measured = gaps(us)
    np.testing.assert_allclose(measured, exact.preln_equiangular(0.0, 1.0, 1.0, n, depths).gap, rtol=1e-5)
    found = collapse_rate(depths, measured, law="algebraic", exact=2.0)
    assert float(found.rate.value) == pytest.approx(2, abs=3e-3) and favoured(found) == "algebraic"
    assert favoured(collapse_rate(depths, measured, law="exponential")) == "algebraic"

    # None: Gaussian tokens of variance 0.9, blow-up at 1/(2·v·a·s²).
    tokens, weights = exact.gaussian_quadrature_tokens(120, 0.9)
    end = float(exact.gaussian_blowup_time(0.9, 0.4))
    equation = MasterEquation(interaction=attention(0.05, jnp.full((1, 1), 8.0), weights=weights))
    depths = jnp.linspace(0.0, 0.85 * end, 61)
    us = simulate(Discretization(equation, "rk4", t1=0.85 * end, steps=600), tokens, save=depths).us
    found = collapse_rate(depths, us[..., 0] ** 2 @ weights, law="blowup", exact=end)
    assert float(found.rate.value) == pytest.approx(end, rel=1e-5)
    assert float(found.power[0]) == pytest.approx(1, abs=1e-4) and favoured(found) == "blowup"
