"""Information along depth: exact Gaussian chains, what the data-processing inequality excludes, the plane, entropy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import t as student

import pdejax as pj
from pdejax.analysis.information import layer_spread, unit_spread
from pdejax.analysis.information._depth import data_processing, information_plane, layer_entropy
from pdejax.analysis.information._layers import around, beside_draws, pooled
from pdejax.analysis.information._measures import mutual_information
from pdejax.exact import diffusion_channel_information, heat_eigenvalues, mode_sum

B, LAYERS = 400, 5
KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def diffused(noise):
    """Fields of 3 tokens at 5 depths of diffusion, (layers, b, 3, 1), and the exact information in noise of this size."""
    variances = np.asarray([1.0, 2.0, 4.0])
    rates = heat_eigenvalues(3, "neumann", 0.3)
    depths = np.arange(float(LAYERS))
    modes = np.exp(np.asarray(rates) * depths[:, None])[:, :, None] * np.sqrt(variances)[:, None] * normal(1, 3, B)

    @jax.jit
    def at(modes, t):
        return mode_sum(modes, "neumann").T[:, :, None], diffusion_channel_information(
            jnp.asarray(variances), rates, t, noise
        )

    us, exact = zip(*map(at, modes, depths), strict=True)
    return np.stack(us), np.asarray(exact)


def chain(gain, sigma, count=B, seed=3):
    """x, and a Markov chain from it with noise in every step, `(layers, count, 1)`; the exact information."""
    x = [normal(seed, count, 1)]
    draws = normal(seed + 1, LAYERS, count, 1)
    for layer in range(LAYERS):
        x.append(gain * x[-1] + sigma * draws[layer])
    signal, spread, exact = 1.0, 0.0, []
    for _ in range(LAYERS):
        signal, spread = gain**2 * signal, gain**2 * spread + sigma**2
        exact.append(0.5 * math.log(1 + signal / spread))
    return x[0], np.stack(x[1:]), np.asarray(exact)


def test_diffusion_is_the_closed_form():
    """THEORY §5.11 at every depth, with noise at read-out: within the interval, falling, and nothing excluded."""
    us, exact = diffused(0.5)
    found = data_processing(us[0], us, noise=0.5, pool="flatten", estimator="gaussian", key=KEY)
    low, high = np.asarray(found.information.low), np.asarray(found.information.high)
    middle, half = (low + high) / 2, (high - low) / 2
    assert np.all(np.abs(middle - exact) < 2 * half) and np.all(half < 0.25)
    steps = np.diff(exact)
    assert np.all(np.abs(np.asarray(found.change.value) - steps) < 0.1)
    assert np.all(found.falls) and not np.any(found.rises) and not np.any(found.violations)
    assert found.where == "at read-out" and float(found.noise) == 0.5 and found.samples == B
    assert "nothing excluded" in found.verdict
    null = found.information.nulls["x permuted"]
    assert np.all(np.abs(np.asarray(null)) < 0.03) and np.all(np.asarray(null.high) < exact)


def test_noise_at_read_out_does_not_order_information():
    """T → 2T: I(X; T + σξ) rises, exactly as it should, and is no violation; in units of each layer's spread it is constant."""
    x = normal(5, B, 1)
    us = np.stack([x * 2.0**k for k in range(LAYERS)])
    exact = 0.5 * np.log1p(4.0 ** np.arange(LAYERS) / 0.25)
    options = {"pool": None, "estimator": "gaussian", "key": KEY, "resamples": 20, "permutations": 0}
    found = data_processing(x, us, noise=0.5, **options)
    np.testing.assert_allclose(found.information.value, exact, atol=0.2)
    assert np.all(found.rises) and not np.any(found.violations) and "nothing excluded: 4 rises" in found.verdict
    assert not found.information.nulls
    same = data_processing(x, us, noise=0.5, relative=True, **options)
    np.testing.assert_allclose(same.change.value, 0, atol=1e-9)


def test_noise_in_the_chain_does():
    """A Markov chain whose states grow: information falls as it must; the same states backwards are a violation, and seen."""
    x, us, exact = chain(1.5, 1.0)
    options = {"pool": None, "estimator": "gaussian", "key": KEY, "permutations": 0}
    found = data_processing(x, us, injected=True, **options)
    np.testing.assert_allclose(found.information.value, exact, atol=0.12)
    assert not np.any(found.rises) and found.verdict.startswith("consistent") and np.any(found.falls)
    backwards = data_processing(x, us[::-1], injected=True, **options)
    assert np.any(backwards.violations) and backwards.verdict.startswith("violated")
    np.testing.assert_allclose(backwards.information.value, found.information.value[::-1], atol=1e-9)
    silent = data_processing(x, us, injected=True, resamples=0, **options)
    assert silent.verdict.startswith("no verdict") and not np.any(silent.violations)


def test_no_violation_by_chance():
    """A chain that keeps its information (no noise after the first layer): at level 0.95 hardly ever a rise in 12 draws."""
    seen = 0
    for seed in range(12):
        x, us, _ = chain(1.0, 1.0, count=200, seed=10 * seed)
        still = np.broadcast_to(us[:1], us.shape) + 0.2 * normal(seed + 500, *us.shape)
        found = data_processing(
            x, still, injected=True, pool=None, estimator="gaussian", key=jax.random.key(seed), permutations=0
        )
        seen += bool(jnp.any(found.violations))
    assert seen <= 3


def test_without_noise_a_change_is_the_estimators():
    """A smooth flow is one to one (claim C10): what bins see fall is told as their artefact."""
    x = normal(6, B, 2)
    us = np.stack([x + 0.6 * t * np.sin(2 * x[:, ::-1]) for t in np.linspace(0, 1.5, LAYERS)])
    found = data_processing(x, us, pool=None, estimator="binned", bins=4, key=KEY, permutations=0)
    assert found.where == "none" and bool(found.falls[0]) and found.verdict.startswith("estimator artefact")
    turned = np.stack(
        [x @ np.asarray([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in np.arange(5.0)]
    )
    still = data_processing(
        x, turned, pool=None, estimator="kde", noise=0.3, key=KEY, permutations=0
    )  # distances do not change
    np.testing.assert_allclose(still.change.value, 0, atol=1e-9)


def test_half_samples_give_the_scatter():
    """Intervals of −½ln(1−ρ²) against the delta method: its standard deviation is ρ/√N."""
    rho, spread = 0.8, []
    for seed in range(6):
        x = normal(seed, B, 1)
        y = rho * x + 0.6 * normal(seed + 50, B, 1)
        found = data_processing(x, np.stack([y, y]), pool=None, estimator="gaussian", key=KEY, permutations=0)
        spread.append(float(found.information.high[0] - found.information.value[0]))
    assert np.mean(spread) == pytest.approx(2.09 * rho / B**0.5, rel=0.3)  # 2.09: Student's t, 20 halves


def test_the_range_of_a_null_is_the_middle_of_its_draws():
    """Draws 0 … 100 in any order, in two layers: the middle 90 % reach from 5 to 95."""
    draws = jnp.asarray(np.random.default_rng(0).permutation(101).astype(float))[:, None] + jnp.asarray([[0.0, 1000.0]])
    found = beside_draws(pj.Figure(jnp.zeros(2), jnp.zeros(2), jnp.ones(2), level=0.9), "null", draws).nulls["null"]
    for part, wanted in ((found.value, 50), (found.low, 5), (found.high, 95)):
        np.testing.assert_allclose(part, [wanted, 1000 + wanted], rtol=1e-12)


def test_intervals_of_changes_hold_together():
    """Bonferroni: with 2 changes each interval is at level 1 − 0.05/2, so wider by Student's quantiles; the information's own,
    and the level that is stated, stay."""
    x = normal(0, 40, 1)
    us = np.stack([x + 0.5 * normal(s, 40, 1) for s in (1, 2, 3)])
    options = {"pool": None, "estimator": "gaussian", "key": KEY, "resamples": 8, "permutations": 0}
    one, two = data_processing(x, us[:2], **options), data_processing(x, us, **options)
    half = [float(f.change.high[0] - f.change.value[0]) for f in (one, two)]
    assert half[1] / half[0] == pytest.approx(student.ppf(1 - 0.05 / 4, 7) / student.ppf(1 - 0.05 / 2, 7), rel=1e-9)
    np.testing.assert_allclose(two.information.high[:2], one.information.high, rtol=1e-12)
    assert two.change.level == one.change.level == two.information.level == 0.95


def test_pooling_and_masks():
    us = normal(7, 2, 3, 4, 2)
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 0]], bool)
    dirty = jnp.asarray(np.where(mask[None, :, :, None], us, np.nan))
    us = jnp.asarray(us)
    mean, _ = pooled("f", dirty, mask, "mean")
    np.testing.assert_allclose(mean[:, 1], (us[:, 1, 0] + us[:, 1, 2]) / 2)
    np.testing.assert_allclose(mean[:, 2], us[:, 2, 1])
    last, _ = pooled("f", dirty, mask, "last")
    np.testing.assert_allclose(last, np.stack([us[:, 0, 3], us[:, 1, 2], us[:, 2, 1]], 1))
    flat, _ = pooled("f", dirty, mask, "flatten")
    assert flat.shape == (2, 3, 8) and np.all(np.asarray(flat[:, 2]).reshape(2, 4, 2)[:, [0, 2, 3]] == 0)
    assert np.isfinite(flat).all()
    whole, _ = pooled("f", us, None, "mean")
    np.testing.assert_allclose(whole, jnp.mean(us, axis=2))


def classified():
    """States of 2 tokens whose class gets clearer with depth; inputs, labels."""
    y = np.arange(B) % 2
    base = normal(8, B, 2, 2)
    push = np.asarray([2.0, 0.0]) * (2.0 * y - 1)[:, None, None]
    us = np.stack([base + s * push for s in (0.0, 0.2, 0.8)])
    return us, base, y


def test_information_plane():
    us, x, y = classified()
    found = information_plane(us, x, y, noise=0.5, key=KEY, resamples=8, permutations=8)
    pool = us.mean(axis=2)
    for layer in range(3):
        given = mutual_information(np.asarray(x.mean(axis=1)), pool[layer], "kde", noise=0.5)
        told = mutual_information(pool[layer], y, "kde", noise=0.5, bound="neither")
        assert float(found.input.value[layer]) == pytest.approx(float(given.value), abs=1e-12)
        assert float(found.target.value[layer]) == pytest.approx(float(told.value), abs=1e-12)
    assert list(np.asarray(found.above_null)) == [False, True, True]
    assert np.all(np.diff(found.target.value) > 0) and not found.input.nulls
    assert np.all(found.target.low < found.target.value) and float(found.target.value[2]) < math.log(2)
    mask = np.array([True, False])
    dirty, x_dirty = us.copy(), x.copy()
    dirty[:, :, 1] = x_dirty[:, 1] = np.nan
    clean = information_plane(us[:, :, :1], x[:, :1], y, noise=0.5, key=KEY, resamples=0, permutations=0)
    masked = information_plane(dirty, x_dirty, y, mask=mask, noise=0.5, key=KEY, resamples=0, permutations=0)
    np.testing.assert_allclose(masked.input.value, clean.input.value, rtol=1e-12)
    np.testing.assert_allclose(masked.target.value, clean.target.value, rtol=1e-12)
    assert np.isnan(masked.target.low).all() and not masked.target.nulls and not np.any(masked.above_null)


@pytest.mark.slow
def test_plane_over_checkpoints_with_neighbours():
    us, x, y = (a[..., :120, :, :] if a.ndim > 1 else a[:120] for a in classified())
    options = {"noise": 0.5, "estimator": "ksg", "key": KEY, "resamples": 8, "permutations": 8}
    several = information_plane([us, us * 2], x, y, **options)
    one = information_plane(us, x, y, **options)
    assert several.input.value.shape == (2, 3) and several.target.nulls["y permuted"].high.shape == (2, 3)
    np.testing.assert_allclose(several.input.value[0], one.input.value, atol=1e-9)
    np.testing.assert_allclose(several.target.value[0], one.target.value, atol=1e-9)
    assert np.all(several.input.value[1] > several.input.value[0])  # the same noise on twice the state
    null = one.input.nulls["x permuted"]
    assert np.all(one.input.value > null.high) and np.all(np.abs(null.value) < 0.1)
    floats = information_plane(us, x, np.asarray(x[:, 0]), **options)
    assert np.all(floats.target.value > floats.target.nulls["y permuted"].high)


@pytest.mark.slow
def test_trained_estimators_go_along_depth():
    us, exact = diffused(0.5)
    found = data_processing(
        us[0], us[:2], noise=0.5, pool="flatten", estimator="infonce", key=KEY, resamples=0, permutations=0, steps=300
    )
    assert np.all(np.asarray(found.information.value) < exact[:2] + 0.2)
    assert np.all(np.asarray(found.information.value) > 0.4 * exact[:2])
    y = (np.asarray(us[0, :, 0, 0]) > 0).astype(int)
    told = data_processing(
        y, us[:2], noise=0.5, pool="flatten", estimator="infonce", key=KEY, resamples=0, permutations=0, steps=300
    )
    assert np.all(np.asarray(told.information.value) > 0.2) and np.all(np.asarray(told.information.value) < math.log(2))


def test_layer_spread():
    """tr Cov by NumPy, of two layers of one set of rows; of tokens, those of padding do not count."""
    t = normal(2, 40, 3) * np.array([1.0, 2.0, 0.5])
    found = layer_spread(np.stack([t, 3 * t]), pool=None)
    exact = np.sqrt(np.trace(np.cov(t.T, bias=True)))
    np.testing.assert_allclose(found, [exact, 3 * exact], rtol=1e-12)
    tokens = np.repeat(t[None, :, None], 4, axis=2)
    tokens[:, :, 2:] = np.nan
    mask = np.tile([True, True, False, False], (40, 1))
    np.testing.assert_allclose(layer_spread(tokens, mask=mask), [exact], rtol=1e-12)


def test_unit_spread():
    """Spread 1 in every layer; a collapsed one is not blown up; one of zeros stays as it is."""
    t = normal(2, 40, 5, 3)
    mask = np.arange(5) < np.arange(40)[:, None] % 5 + 1
    collapsed = 7.0 + 1e-9 * t
    scaled = unit_spread(np.stack([t, 30 * t + 1, collapsed, 0 * t]), mask=mask)
    spread = layer_spread(scaled, mask=mask)
    np.testing.assert_allclose(spread[:2], 1, rtol=1e-12)
    assert spread[2] < 1e-6 and spread[3] == 0 and np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled[1], scaled[0] + 1 / (30 * layer_spread(t[None], mask=mask)[0]), rtol=1e-10)


@pytest.mark.parametrize("least", [-0.1, float("nan"), 2.0, True, "small"])
def test_unit_spread_refuses_a_least_that_is_no_share(least):
    with pytest.raises((ValueError, TypeError), match="least="):
        unit_spread(np.zeros((1, 4, 2)), pool=None, least=least)


def test_unit_spread_of_a_trajectory_is_that_of_its_states():
    field = pj.MasterEquation(stabilization=pj.LinearDamping(0.5))
    d = pj.Discretization(field, "euler", t1=2.0, steps=2)
    u0 = normal(21, 5, 3, 2)
    solved = jax.vmap(lambda u: pj.simulate(d, u, save=jnp.arange(3.0)))(u0)
    np.testing.assert_array_equal(unit_spread(solved), unit_spread(jnp.moveaxis(solved.us, 0, 1)))


def test_layer_entropy():
    """Two features with correlation ρ: H = ln 2πe + ½ln(1−ρ²) + layer·ln scale; shuffled apart without ρ."""
    z = normal(9, B, 2)
    y = np.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)
    found = layer_entropy(np.stack([y, 3 * y]), pool=None, estimator="gaussian", key=KEY)
    exact = math.log(2 * math.pi * math.e) + 0.5 * math.log(0.36)
    np.testing.assert_allclose(found.entropy.value, [exact, exact + 2 * math.log(3)], atol=0.12)
    np.testing.assert_allclose(
        found.entropy.nulls["features shuffled"] - found.entropy, -0.5 * math.log(0.36), atol=0.12
    )
    assert np.all(found.entropy.low < found.entropy.value) and found.noise is None
    noisy = layer_entropy(
        np.stack([y, np.ones_like(y)]), pool=None, estimator="gaussian", noise=0.5, key=KEY, resamples=0, shuffles=0
    )
    assert float(noisy.entropy.value[1]) == pytest.approx(math.log(2 * math.pi * math.e * 0.25), abs=0.12)
    with pytest.raises(ValueError, match="layer 1 has no density"):
        layer_entropy(np.stack([y, np.ones_like(y)]), pool=None, estimator="gaussian", key=KEY, resamples=0, shuffles=0)


def test_scatter_of_two_halves_and_of_none():
    two = around(jnp.zeros(1), jnp.asarray([[1.0], [-1.0]]), 0.95)
    np.testing.assert_allclose(two.high, student.ppf(0.975, 1) * math.sqrt(2), rtol=1e-9)
    found = around(jnp.ones(3), jnp.zeros((0, 3)), 0.95)
    assert np.isnan(found.low).all() and np.isnan(found.high).all()


US, X, Y = classified()


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: data_processing(X, US[:1], key=KEY), ValueError, "one layer"),
        (lambda: data_processing(X, US, noise=0.1, injected=True, key=KEY), ValueError, "undo the order"),
        (lambda: data_processing(X, US, relative=True, key=KEY), ValueError, "give noise="),
        (lambda: data_processing(X[:5], US, key=KEY), ValueError, "tokens must be"),
        (lambda: data_processing(np.ones(5), US, key=KEY), ValueError, "x has 5 samples, states 400"),
        (lambda: data_processing(X, US[:, 0], key=KEY), ValueError, "one sequence"),
        (lambda: data_processing(X, US, pool="max", key=KEY), ValueError, "pool='max'"),
        (lambda: data_processing(X, US, key=KEY, resamples=3), ValueError, "resamples=3"),
        (lambda: data_processing(X, US, key=KEY, level=2.0), ValueError, "level=2.0"),
        (lambda: data_processing(X, US, key=None), ValueError, "key=None must be a PRNG key"),
        (lambda: data_processing(X, US, key=KEY, estimator="kde"), ValueError, "noise is missing"),
        (lambda: data_processing(X, US * 0, key=KEY), ValueError, "layer 0 occur more than once"),
        (lambda: data_processing(Y, US, key=KEY, estimator="gaussian"), TypeError, "no use for labels"),
        (lambda: data_processing(X, US, key=KEY, noise=-1), ValueError, "noise=-1"),
        (lambda: data_processing(X, US, key=KEY, bins=3), TypeError, "no option bins"),
        (
            lambda: data_processing(X[:, 0], US[:, :, 0], pool=None, mask=np.ones(2, bool), key=KEY),
            ValueError,
            "leave it out",
        ),
        (lambda: data_processing(X, US, pool=None, key=KEY), ValueError, "one row per sample"),
        (lambda: data_processing(X.round() * 0, US, key=KEY), ValueError, "samples of x occur more than once"),
        (lambda: information_plane([], X, Y, key=KEY), ValueError, "empty"),
        (lambda: information_plane([US, US[:2]], X, Y, key=KEY), ValueError, "must be equal"),
        (lambda: information_plane(US, X, X, noise=1.0, key=KEY), TypeError, "needs labels"),
        (lambda: information_plane(US, X, Y, key=KEY), ValueError, "noise is missing"),
        (lambda: layer_entropy(US, key=None), ValueError, "key=None must be a PRNG key"),
        (lambda: layer_entropy(US, key=KEY, estimator="ksg"), ValueError, "estimator='ksg'"),
        (
            lambda: data_processing(
                X[:, 0], US[:, :, 0] * np.asarray([1.0, 0.0]), pool=None, estimator="gaussian", key=KEY
            ),
            ValueError,
            "no value for layer 0",
        ),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises((kind, TypeError), match=words), jax.numpy_rank_promotion("allow"):
        call()
