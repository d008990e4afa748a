"""Orders: exact on power laws, extrapolated beyond the bias of large steps, blind below the floor; exponents of noisy values."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import linregress

from pdejax._bootstrap import over_seeds
from pdejax._figure import Figure
from pdejax.analysis import fit_order
from pdejax.analysis.numerics import error_floor, fit_power
from pdejax.analysis.numerics._fit import OrderFit, order_over_seeds

H = 2.0 ** -np.arange(8)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0, 8.0, 0.5, -0.5])
def test_power_laws_are_fitted_exactly(p):
    fit = fit_order(H, 3.7 * H**p)
    assert fit.order == pytest.approx(p, abs=1e-12)
    assert fit.ci == pytest.approx(0, abs=1e-12)
    assert fit.used == (4, 5, 6, 7)


def test_order_of_the_points_does_not_matter():
    errors = 2 * H**2 + 5 * H**3
    shuffled = np.random.default_rng(0).permutation(len(H))
    fit, other = fit_order(H, errors), fit_order(H[shuffled], errors[shuffled])
    assert other.order == pytest.approx(fit.order, abs=1e-13) and other.ci == pytest.approx(fit.ci, rel=1e-9)
    assert fit.order == pytest.approx(2, abs=fit.ci) and fit.ci < 0.4
    assert sorted(H[shuffled][list(other.used)]) == sorted(H[list(fit.used)])


def test_the_smallest_steps_count():
    """e = h + 10 h³ is of order 3 at first and of order 1 in the end."""
    errors = H + 10 * H**3
    assert fit_order(H, errors).order == pytest.approx(1, abs=0.1)
    assert fit_power(H, errors).order > 1.3 > fit_power(H, errors, last=4).order
    assert fit_order(H, errors, last=2).used == fit_power(H, errors, last=2).used == (6, 7)


def test_errors_below_the_floor_are_left_out():
    errors = H**4 + 1e-6 * np.array([0, 0, 0, 0, 0, 1, -1, 1])
    assert abs(fit_power(H, errors, last=4).order - 4) > 0.2
    fit = fit_order(H, errors, floor=1e-4)
    assert fit.order == pytest.approx(4, abs=1e-12) and fit.used == (0, 1, 2, 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_useless_errors_are_left_out(bad):
    errors = H**2
    errors[5] = bad
    fit = fit_order(H, errors)
    assert fit.used == (3, 4, 6, 7) and fit.order == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("usable", [0, 1])
def test_too_few_points_give_no_order(usable):
    errors = np.where(np.arange(8) < usable, 1.0, 1e-20)
    fit = fit_order(H, errors, floor=1e-12)
    assert math.isnan(fit.order) and math.isnan(fit.ci) and len(fit.used) == usable


def test_two_points_give_an_order_without_an_interval():
    fit = fit_order([0.5, 0.25], [1.0, 0.25])
    assert fit.order == pytest.approx(2) and math.isnan(fit.ci)


def test_the_bias_of_large_steps_is_extrapolated_away():
    """By hand: e = h²(1 + h) at h = 1, 1/2, 1/4 has the orders log₂(16/3) and log₂(24/5), so 2 log₂(24/5) − log₂(16/3)."""
    h = H[:3]
    fit = fit_order(h, h**2 * (1 + h))
    first, second = math.log2(2 / 0.375), math.log2(0.375 / (1.25 / 16))
    assert fit.order == pytest.approx(2 * second - first, abs=1e-13)
    assert fit.ci == pytest.approx(4 * (first - second), abs=1e-13)
    # A regression's interval at four steps leaves the order out, the extrapolation's holds it, and is narrower.
    errors = 0.3 * H**2 * (1 + 0.3 * H)
    fit, line = fit_order(H, errors), fit_power(H, errors, last=4)
    assert abs(line.order - 2) > line.ci and abs(fit.order - 2) < fit.ci < abs(line.order - 2)


@pytest.mark.parametrize(("count", "least", "ratio"), [(3, 0.92, 2.0), (4, 0.95, 1.5), (6, 0.95, 2.0)])
def test_the_interval_holds_the_order_of_biased_errors(count, least, ratio):
    """Both coefficients drawn at random, and errors that are known to a twentieth of the floor."""
    rng = np.random.default_rng(3)
    h = ratio ** -np.arange(count)
    hits, trials = 0, 2000
    for _ in range(trials):
        p, (a, b) = rng.integers(1, 6), rng.uniform(-1, 1, 2)
        errors = h**p * (1 + a * h / 2 + b * h**2 / 4)
        floor = errors.min() / 2
        fit = fit_order(h, errors + floor / 20 * rng.uniform(-1, 1, count), floor=floor * 0.9, last=count)
        hits += abs(fit.order - p) <= fit.ci
    assert hits / trials >= least - 2 * math.sqrt(least * (1 - least) / trials)


@pytest.mark.parametrize(("seeds", "shared"), [(12, 1.0), (5, 0.5), (5, 0.0)])
def test_the_interval_over_seeds_holds_the_order_of_biased_errors(seeds, shared):
    """Errors h^p (1 + a h + b h²) of several seeds, whose a and b are in part the same: then Student's t does not hold p."""
    rng = np.random.default_rng(seeds)
    h = H[:4]
    hits, plain, trials = 0, 0, 300
    for _ in range(trials):
        p, common = rng.integers(1, 6), rng.uniform(-1, 1, 2)
        own = shared * common + (1 - shared) * rng.uniform(-1, 1, (seeds if shared < 1 else 1, 2))
        fits = [fit_order(h, h**p * (1 + a * h / 2 + b * h**2 / 4)) for a, b in own]
        fits *= seeds // len(fits)
        found, alone = order_over_seeds(fits), over_seeds([fit.order for fit in fits])
        hits += bool(found.low <= p <= found.high)
        plain += bool(alone.low <= p <= alone.high)
    assert hits / trials >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / trials)
    assert not shared or plain / trials < 0.9


def test_the_interval_over_seeds_is_wider_by_the_mean_of_the_fits():
    fits = [OrderFit(2.0, 0.1, (0, 1, 2)), OrderFit(2.2, 0.3, (0, 1, 2)), OrderFit(2.1, 0.2, (0, 1, 2))]
    found, t = order_over_seeds(fits), stdtrit(2, 0.975) * 0.1 / math.sqrt(3)
    assert [float(x) for x in (found.value, found.low, found.high)] == pytest.approx([2.1, 1.9 - t, 2.3 + t])
    one = order_over_seeds(fits[:1])
    assert [float(x) for x in (one.value, one.low, one.high)] == pytest.approx([2.0, 1.9, 2.1])
    # Of two errors there is no interval: of seeds with such a fit neither.
    unknown = order_over_seeds([*fits, OrderFit(2.0, math.nan, (0, 1))])
    assert math.isfinite(float(unknown)) and math.isnan(unknown.low) and math.isnan(unknown.high)
    ranged = order_over_seeds(fits, average=lambda x: Figure(np.mean(x), np.min(x), np.max(x), level=0.75))
    assert [float(ranged.low), float(ranged.high), ranged.level] == pytest.approx([1.8, 2.4, 0.75])


def test_uncertain_errors_widen_the_interval():
    """An exact power law at ratio 2: what relative errors δ can do is (|δ₁| + 3|δ₂| + 2|δ₃|)/ln 2 at most."""
    h = H[:4]
    fit = fit_order(h, h**2, floor=1e-2)
    relative = 1e-2 / 20 / h[1:] ** 2
    most = (relative[0] + 3 * relative[1] + 2 * relative[2]) / math.log(2)
    assert fit.order == pytest.approx(2, abs=1e-12) and fit.ci == pytest.approx(most, rel=1e-12)


def test_exponents_of_noisy_values_are_those_of_linear_regression():
    errors = H**2 * np.exp(0.1 * np.random.default_rng(1).standard_normal(8))
    fit = fit_power(H, errors, last=6)
    slope = linregress(np.log(H[2:]), np.log(errors[2:]))
    assert fit.order == pytest.approx(slope.slope, rel=1e-12)
    assert fit.ci == pytest.approx(slope.stderr * stdtrit(4, 0.975), rel=1e-9)
    assert fit_power(H, H**-0.5).order == pytest.approx(-0.5, abs=1e-12)


def test_the_interval_of_an_exponent_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(2)
    trials = 2000
    hits = 0
    for _ in range(trials):
        fit = fit_power(H, 0.3 * H**2 * np.exp(0.2 * rng.standard_normal(8)))
        hits += abs(fit.order - 2) <= fit.ci
    # Four standard errors of a 95 % coin.
    assert abs(hits / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([1.0, 0.5], [1.0]), "one length"),
        ((np.ones((1, 2)), np.ones((1, 2))), "one length"),
        (([1.0, 0.0], [1.0, 0.5]), "positive"),
        (([1.0, -0.5], [1.0, 0.5]), "positive"),
    ],
)
def test_bad_sequences(arguments, words):
    for fit in (fit_order, fit_power):
        with pytest.raises(ValueError, match=f"{fit.__name__}: .*{words}"):
            fit(*arguments)


def test_bad_last():
    with pytest.raises(ValueError, match="last"):
        fit_order(H, H, last=1)
    for fit in (fit_order, fit_power):
        with pytest.raises(ValueError, match="differ"):
            fit([0.5, 0.5, 0.25], [1.0, 1.0, 0.5])
        assert math.isnan(fit([0.5], [1.0]).order) and math.isnan(fit([], []).order)


def test_error_floor():
    assert error_floor(0.0) == 1e-12
    assert error_floor(1e-10) == pytest.approx(20e-10)
