"""Intervals: the bootstrap against SciPy and against all resamples, and how often both kinds hold the truth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import pdejax as pj
from pdejax._bootstrap import FEW, check_bootstrap, compare, interval, smallest_p


def test_the_bootstrap_of_a_mean_is_that_of_scipy():
    x = np.random.default_rng(0).gamma(2.0, size=40)
    found = pj.bootstrap(lambda w: jnp.sum(w * x) / 40, 40, key=jax.random.key(0), resamples=4000)
    # Percentiles at the shares of Student's t: Φ(−t √(40/38)) with 39 degrees.
    share = scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 39) * np.sqrt(40 / 38))
    theirs = scipy.stats.bootstrap(
        (x,), np.mean, method="percentile", n_resamples=4000, random_state=0, confidence_level=1 - 2 * share
    )
    assert float(found) == pytest.approx(x.mean())
    spread = theirs.confidence_interval.high - theirs.confidence_interval.low
    # Each end of 4,000 draws is uncertain by about 0.03 of the interval.
    assert abs(float(found.low) - theirs.confidence_interval.low) < 0.1 * spread
    assert abs(float(found.high) - theirs.confidence_interval.high) < 0.1 * spread


@pytest.mark.parametrize("median", [False, True])
def test_the_bootstrap_of_six_samples_is_all_their_resamples(median):
    x = np.asarray([0.0, 1.0, 3.0, 10.0, 2.0, 5.0])
    every = np.asarray([np.exp(np.mean(drawn) / 4) for drawn in itertools.product(x, repeat=6)])
    found = pj.bootstrap(
        lambda w: jnp.exp(jnp.sum(w * x) / 24), 6, key=jax.random.key(1), level=0.6, resamples=20_000, median=median
    )
    share = scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.8, 5) * np.sqrt(6 / 4))
    moved = np.exp(x.mean() / 4) - np.median(every) if median else 0
    assert float(found) == pytest.approx(np.exp(x.mean() / 4))
    # The resamples are few and discrete: shares below and up to each end, not the end itself.
    for end, below in ((found.low, share), (found.high, 1 - share)):
        end = float(end) - moved
        assert np.mean(every < end - 1e-6) - 0.01 < below < np.mean(every < end + 1e-6) + 0.01


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_few_samples_give_a_range(samples):
    """Whichever are drawn: the samples themselves are among what it is the range of, where the statistic is defined of one."""
    x = np.asarray([3.0, -1.0, 2.0, 8.0, 5.0])[:samples]

    def mean(w):
        return jnp.sum(w * x) / samples

    @jax.jit
    def ranges(key):
        one_alone = lambda w: jnp.where(jnp.max(w) == samples, jnp.nan, mean(w))  # noqa: E731
        options = {"key": key, "resamples": 20}
        undefined = pj.bootstrap(one_alone, samples, **options) if samples == 5 else None
        return [pj.bootstrap(mean, samples, median=median, **options) for median in (False, True)], undefined

    both, undefined = ranges(jax.random.key(0))
    for found in both:
        assert (float(found.low), float(found.high)) == pytest.approx((x.min(), x.max()))
        assert found.level == 1 - 2.0 ** (1 - samples)
    if undefined is not None:
        assert x.min() <= float(undefined.low) < float(undefined.high) <= x.max()


def test_a_range_of_two_covers_a_median_half_the_time():
    """Five draws of a lognormal law: the range has its level, 0.9375, for the median, 1."""
    draws = jnp.exp(jax.random.normal(jax.random.key(0), (1000, 5)))

    def covers(x, key):
        found = pj.bootstrap(lambda w: jnp.sum(w * x) / 5, 5, key=key, resamples=20)
        return (found.low <= 1) & (found.high >= 1)

    share = np.mean(np.asarray(jax.jit(jax.vmap(covers))(draws, jax.random.split(jax.random.key(1), 1000))))
    assert abs(share - 0.9375) < 4 * np.sqrt(0.9375 * 0.0625 / 1000)


@pytest.mark.parametrize(
    "samples", [6, pytest.param(8, marks=pytest.mark.slow), 16, pytest.param(32, marks=pytest.mark.slow)]
)
def test_intervals_by_resampling_cover_what_they_say(samples):
    """At least 92 of 100 from 6 samples on, where plain percentiles cover 86 (two binomial spreads of 5,000: 0.8)."""

    rng, shape = np.random.default_rng(samples), (5000, samples)
    laws = {"normal": rng.normal(size=shape), "uniform": rng.uniform(-0.5, 0.5, shape)}

    @jax.jit
    @jax.vmap
    def intervals(laws, key):
        # Both laws by the same resamples, which are what takes the time.
        mean = lambda w: {law: jnp.sum(w * x) / samples for law, x in laws.items()}  # noqa: E731
        return pj.bootstrap(mean, samples, key=key, resamples=200)

    for law, found in intervals(laws, jax.random.split(jax.random.key(1), 5000)).items():
        share = np.mean((np.asarray(found.low) <= 0) & (np.asarray(found.high) >= 0))
        assert 0.92 - 0.008 <= share <= 0.98, law


def test_a_tree_of_figures_shares_its_draws():
    x = np.random.default_rng(0).normal(size=(12, 3))

    @jax.jit
    def run(key):
        options = {"key": key, "level": 0.9, "resamples": 50}
        both = pj.bootstrap(lambda w: {"mean": w @ x / 12, "first": (w @ x / 12)[0]}, 12, **options)
        return both, pj.bootstrap(lambda w: w @ x / 12, 12, **options)

    found, alone = run(jax.random.key(1))
    for part in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(found["mean"], part), getattr(alone, part), rtol=1e-12)
        np.testing.assert_allclose(getattr(found["first"], part), getattr(alone, part)[0], rtol=1e-12)
    assert found["first"].level == 0.9


def test_a_paired_difference_is_narrower_than_its_parts():
    base = 10 * np.random.default_rng(0).normal(size=(60, 2))
    found = compare(
        jnp.asarray(base + 1), {"base": jnp.asarray(base), "zero": jnp.zeros((60, 2))}, key=jax.random.key(1)
    )
    np.testing.assert_allclose(found.minus("base"), 1.0)
    np.testing.assert_allclose(found.minus("base").low, 1.0)
    np.testing.assert_allclose(found.nulls["base"], np.mean(base, axis=0))
    np.testing.assert_allclose(found.minus("zero").high, found.high)
    assert np.all(np.asarray(found.high) - np.asarray(found.low) > 1)


def test_one_sequence_has_no_interval():
    found = compare(jnp.ones((1, 2)), {"zero": jnp.zeros((1, 2))}, key=jax.random.key(0))
    assert bool(jnp.all(jnp.isnan(found.minus("zero").low))) and bool(jnp.all(found.minus("zero") == 1))


def test_bootstrap_intervals_cover_what_they_say():
    draws = jax.random.exponential(jax.random.key(0), (200, 50))

    def covers(x, key):
        found = pj.bootstrap(lambda w: jnp.sum(w * x) / 50, 50, key=key, level=0.9, resamples=200)
        return (found.low <= 1) & (found.high >= 1)

    share = np.mean(np.asarray(jax.jit(jax.vmap(covers))(draws, jax.random.split(jax.random.key(1), 200))))
    # Intervals of skewed means fall short by a few points; binomial spread is 0.02.
    assert 0.84 < share < 0.96


@pytest.mark.parametrize("samples", [2, 4, 6, FEW - 1])
def test_intervals_of_few_samples_cover_what_they_say(samples):
    """Of a normal mean exactly; percentiles of its resamples are too narrow."""
    draws = np.random.default_rng(samples).normal(1, 1, (2000, samples))

    @jax.jit
    def run(draws, key):
        both = [
            jax.vmap(lambda x, of=of: of(lambda w: w @ x / samples, samples, key=key, resamples=100))(draws)
            for of in (interval, pj.bootstrap)
        ]
        several = compare(draws[0][:, None], {"half": 0.5 * draws[0][:, None]}, key=key)
        return both, several, several.minus("half"), pj.over_seeds(draws[0]), pj.over_seeds(0.5 * draws[0])

    both, several, difference, own, apart = run(draws, jax.random.key(0))
    exact, drawn = (np.mean((np.asarray(found.low) <= 1) & (np.asarray(found.high) >= 1)) for found in both)
    spread = 4 * (0.95 * 0.05 / 2000) ** 0.5
    assert abs(exact - 0.95) < spread and drawn < 0.95 - spread / 2
    np.testing.assert_allclose([several.low[0], several.high[0]], [own.low, own.high], rtol=1e-9)
    np.testing.assert_allclose(difference.high[0], apart.high, rtol=1e-9)


@pytest.mark.parametrize("samples", [5, 12])
def test_intervals_of_ratios_of_few_samples_cover_what_they_say(samples):
    x, y = 1 + 0.2 * np.random.default_rng(0).normal(size=(2, 2000, samples))
    pairs = np.stack([2 * (x + y), y], axis=1)

    def ratio(pair):
        return interval(lambda w: (w @ pair[0]) / (w @ pair[1]), samples, key=jax.random.key(0))

    found = jax.jit(jax.vmap(ratio))(pairs)
    assert 0.93 < np.mean((np.asarray(found.low) <= 4) & (np.asarray(found.high) >= 4)) < 0.97


def test_intervals_of_ranks_of_few_samples_hold_the_truth():
    """Rank correlation over six layers of means over five sequences: the least and the largest of the resamples."""
    layers, samples = np.arange(6.0), 5
    noise = np.random.default_rng(0).normal(size=(300, 6, samples))

    def order(x):
        return jnp.argsort(jnp.argsort(x)).astype(float)

    def found(noise):
        x = layers[:, None] + noise
        return interval(lambda w: jnp.corrcoef(order(x @ w), layers)[0, 1], samples, key=jax.random.key(1), ranks=True)

    each = jax.device_get(jax.jit(jax.vmap(found))(noise))
    assert np.all((each.low <= each.value) & (each.value <= each.high))
    assert np.mean(each.high >= 1 - 1e-9) > 0.95 and np.mean(each.low < each.high) > 0.9


def test_from_so_many_samples_on_intervals_are_the_bootstraps():
    x = jax.random.normal(jax.random.key(0), (FEW,))
    both = [of(lambda w: w @ x / FEW, FEW, key=jax.random.key(1)) for of in (interval, pj.bootstrap)]
    assert both[0].low == both[1].low and both[0].high == both[1].high
    assert np.isnan(interval(lambda w: w @ x[:1], 1, key=jax.random.key(0)).low)


def test_a_range_of_ranks_says_its_level():
    x = jnp.asarray([0.1, 0.9])
    found = interval(lambda w: jnp.sum(w * x) / 2, 2, key=jax.random.key(0), ranks=True)
    assert found.level == 0.5


def test_the_smallest_p_is_that_of_the_test():
    for pairs in (2, 5, 6, 13, 14):
        assert float(pj.permutation_test(np.full(pairs, 1.0))) == pytest.approx(smallest_p(pairs), abs=1.5e-4)
    assert smallest_p(5) > 0.05 >= smallest_p(6)


def test_what_is_not_finite_is_not_tested():
    with pytest.raises(ValueError, match="1 of 3 numbers that are not finite"):
        pj.permutation_test([0.1, np.nan, 0.2])


@pytest.mark.parametrize(("seeds", "level"), [(3, 0.95), (5, 0.8)])
def test_intervals_over_seeds_cover_what_they_say(seeds, level):
    draws = np.random.default_rng(seeds).normal(1.0, 2.0, (seeds, 20_000))
    found = pj.over_seeds(draws, level=level)
    share = float(np.mean((found.low <= 1) & (found.high >= 1)))
    assert share == pytest.approx(level, abs=0.01)  # three standard deviations of 20,000 draws
    assert found.level == level and found.shape == (20_000,)


def test_over_seeds_is_students_interval():
    x = [1.0, 2.0, 4.0]
    found = pj.over_seeds(x)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(x), scipy.stats.sem(x))
    assert (
        float(found) == np.mean(x)
        and float(found.low) == pytest.approx(low)
        and float(found.high) == pytest.approx(high)
    )
    alone = pj.over_seeds([4.0])
    assert float(alone) == 4 and np.isnan(alone.low) and np.isnan(alone.high)
    traced = jax.jit(pj.over_seeds)(jnp.asarray(x))
    assert float(traced.low) == pytest.approx(low)
    several = jax.vmap(pj.over_seeds)(jnp.asarray([x, x]))
    np.testing.assert_allclose(several.high, [high, high])


def test_intervals_of_bounded_figures_stay_inside():
    """Fisher's z by SciPy; the logit of a share is the same map; a value at an end has Student's interval, cut."""
    x = np.asarray([0.99, 0.2, 0.95, 0.6])
    found = pj.over_seeds(x, within=(-1, 1))
    z = np.arctanh(x)
    low, high = scipy.stats.t.interval(0.95, 3, z.mean(), scipy.stats.sem(z))
    assert (float(found.low), float(found.high)) == pytest.approx((np.tanh(low), np.tanh(high)), rel=1e-12)
    assert float(pj.over_seeds(x).high) > 1 > float(found.high) > float(found) == x.mean()
    share = pj.over_seeds((1 + x) / 2, within=(0, 1))
    np.testing.assert_allclose([share.low, share.high], [(1 + found.low) / 2, (1 + found.high) / 2], rtol=1e-12)
    cut = pj.over_seeds([1.0, 0.2, 0.95], within=(-1, 1))
    plain = pj.over_seeds([1.0, 0.2, 0.95])
    assert float(cut.low) == float(plain.low) and float(cut.high) == 1 < float(plain.high)
    both = jax.jit(lambda v: pj.over_seeds(v, within=(-1, 1)))(jnp.asarray([[0.99, 1.0], [0.2, 0.2], [0.95, 0.95]]))
    np.testing.assert_allclose(both.high[1], 1.0)
    # One step of rounding from an end is inside.
    for near in ([np.nextafter(1.0, 0), 0.95, 0.97], [0.9, 0.95, np.nextafter(-1.0, 0)]):
        found = pj.over_seeds(near, within=(-1, 1))
        assert -1 <= float(found.low) <= np.mean(near) <= float(found.high) <= 1
    alike = pj.over_seeds([0.3, 0.3, 0.3], within=(0, 1))
    np.testing.assert_allclose([alike.low, alike.high], 0.3, rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(8, 2), (30, 1.5), (2, 2)])
def test_intervals_of_shares_cover_their_mean(a, b):
    """Five seeds of a beta law: as often as Student's own, and never outside."""
    draws = np.random.default_rng(0).beta(a, b, (5, 4000))
    found = pj.over_seeds(draws, within=(0, 1))
    covered = float(np.mean((found.low <= a / (a + b)) & (found.high >= a / (a + b))))
    assert covered >= 0.92 and np.all((found.low >= 0) & (found.high <= 1))


def test_bad_intervals():
    for level, resamples in ((1.0, 100), (0.0, 100), (0.9, 5), (0.9, 10.0)):
        with pytest.raises((ValueError, TypeError), match=r"f: (level|resamples)="):
            check_bootstrap("f", level, resamples)
    with pytest.raises(ValueError, match="at least one"):
        pj.over_seeds([])
    with pytest.raises(ValueError, match="over_seeds: values has entries outside"):
        pj.over_seeds([0.2, 1.2], within=(0, 1))
    with pytest.raises(ValueError, match="over_seeds: within="):
        pj.over_seeds([0.2, 0.3], within=(1, 0))
    with pytest.raises(ValueError, match="over_seeds: level=2"):
        pj.over_seeds([1.0, 2.0], level=2)
    with pytest.raises(ValueError, match="bootstrap: samples=0"):
        pj.bootstrap(jnp.sum, 0, key=jax.random.key(0))


@pytest.mark.parametrize("shape", [(9,), (9, 2)])
def test_the_permutation_test_is_that_of_scipy(shape):
    x = np.random.default_rng(3).standard_normal(shape) + 0.4
    theirs = scipy.stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf, axis=0)
    np.testing.assert_allclose(pj.permutation_test(x), theirs.pvalue, rtol=1e-12)
    assert np.shape(pj.permutation_test(x)) == shape[1:]


def test_the_permutation_test_by_draws_is_near_all_signs():
    x = np.random.default_rng(4).standard_normal(14) + 0.3
    signs = np.asarray(list(itertools.product((1, -1), repeat=14)))
    every = np.mean(np.abs(signs @ x) >= abs(x.sum()) * (1 - 1e-12))
    # Four standard errors of 9,999 draws.
    assert pj.permutation_test(x) == pytest.approx(every, abs=4 * (every * (1 - every) / 9999) ** 0.5)


def test_the_permutation_test_keeps_its_level():
    """Symmetric differences of very different spread, which a t-test of their mean does not assume: 5 % of 2,000 at 5 %."""
    rng = np.random.default_rng(5)
    x = rng.standard_t(2, size=(10, 2000)) * np.geomspace(0.1, 10, 10)[:, None]
    rejected = np.mean(pj.permutation_test(x) <= 0.05)
    assert abs(rejected - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5
    assert np.mean(pj.permutation_test(x + 30.0) <= 0.05) > 0.9


@pytest.mark.parametrize("wrong", [np.zeros(0), [1.0, np.nan], 3.0])
def test_the_permutation_test_refuses(wrong):
    with pytest.raises((ValueError, TypeError), match="differences"):
        pj.permutation_test(wrong)
