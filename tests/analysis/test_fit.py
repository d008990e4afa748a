"""Fitted orders: exact on power laws, honest about noise, and blind to what lies below the floor."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import linregress

from pdejax.analysis import fit_order
from pdejax.analysis.numerics import error_floor

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
    assert sorted(H[shuffled][list(other.used)]) == sorted(H[list(fit.used)])


def test_the_smallest_steps_count():
    """e = h + 10 h³ is of order 3 at first and of order 1 in the end."""
    errors = H + 10 * H**3
    assert fit_order(H, errors).order == pytest.approx(1, abs=0.1)
    assert fit_order(H, errors, last=8).order > 1.3
    assert fit_order(H, errors, last=2).used == (6, 7)


def test_errors_below_the_floor_are_left_out():
    errors = H**4 + 1e-6 * np.array([0, 0, 0, 0, 0, 1, -1, 1])
    assert abs(fit_order(H, errors).order - 4) > 0.2
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


def test_the_interval_is_that_of_linear_regression():
    errors = H**2 * np.exp(0.1 * np.random.default_rng(1).standard_normal(8))
    fit = fit_order(H, errors, last=6)
    slope = linregress(np.log(H[2:]), np.log(errors[2:]))
    assert fit.order == pytest.approx(slope.slope, rel=1e-12)
    assert fit.ci == pytest.approx(slope.stderr * stdtrit(4, 0.975), rel=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    trials = 2000
    hits = 0
    for _ in range(trials):
        fit = fit_order(H, 0.3 * H**2 * np.exp(0.2 * rng.standard_normal(8)))
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
    with pytest.raises(ValueError, match=words):
        fit_order(*arguments)


def test_bad_last():
    with pytest.raises(ValueError, match="last"):
        fit_order(H, H, last=1)


def test_error_floor():
    assert error_floor(0.0) == 1e-12
    assert error_floor(1e-10) == pytest.approx(20e-10)
