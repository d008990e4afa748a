"""The three stages of information: against isotonic regression of scikit-learn, and how often they are seen."""

import re

import jax
import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

from pdejax.analysis.information import curve_noise, information_stages
from pdejax.analysis.information._stages import _crossing, _monotone

DEPTH = np.arange(16.0)


def step(centre, width):
    return 1 / (1 + np.exp(-(DEPTH - centre) / width))


THREE = {
    "smooth": (1 - 0.8 * step(12, 0.8), step(3, 0.8)),
    "pieces": (np.where(DEPTH > 10, 1 - 0.15 * (DEPTH - 10), 1.0), np.minimum(DEPTH / 5, 1)),
    "near": (1 - step(11.5, 1.0), step(3.5, 1.0)),
}
NONE = {
    "straight": (1 - DEPTH / 15, DEPTH / 15),
    "exponential": (np.exp(-DEPTH / 5), 1 - np.exp(-DEPTH / 5)),
    "together": (1 - step(7.5, 1.5), step(7.5, 1.5)),
    "in the other order": (1 - step(5, 1), step(11, 1)),
    # The fall begins where the rise ends: ln 9 widths on either side.
    "at the edge": (1 - step(9, 0.68), step(9 - 2 * np.log(9) * 0.68, 0.68)),
    "kept": (np.ones(16), step(3, 1)),
    "rises first": (step(3, 1) - 0.8 * step(12, 0.8), step(3, 0.8)),
    "lost again": (1 - 0.8 * step(12, 0.8), step(3, 0.8) - 0.5 * step(13, 0.5)),
}


def share(x, y, noise, runs=30):
    seen = []
    for seed in range(runs):
        drawn = np.stack([x, y], axis=1) + noise * np.random.default_rng(seed).standard_normal((16, 2))
        seen.append(information_stages(drawn, key=jax.random.key(seed), resamples=100).seen)
    return np.mean(seen)


def test_fits_are_those_of_isotonic_regression():
    rows = np.random.default_rng(0).standard_normal((3, 2, 16))
    theirs = np.stack([[isotonic_regression(x) for x in pair] for pair in rows])
    np.testing.assert_allclose(_monotone(rows), theirs, atol=1e-12)


def test_crossings_are_interpolated():
    fit = np.array([0.0, 0.0, 1.0, 4.0, 4.0])
    t = np.array([0.0, 1.0, 2.0, 4.0, 5.0])
    np.testing.assert_allclose(_crossing(t, fit, 0.125), 1.5)
    np.testing.assert_allclose(_crossing(t, fit, 0.625), 3.0)
    assert np.isnan(_crossing(t, np.ones(5), 0.5))


@pytest.mark.parametrize("name", THREE)
def test_stages_that_are_there_are_seen(name):
    assert share(*THREE[name], noise=0.01) >= 0.8


@pytest.mark.parametrize("name", NONE)
def test_curves_that_change_together_have_none(name):
    """At most 2 of 30 at level 0.05 (binomial: 0.81 at the edge, where the level is met, and none elsewhere)."""
    assert share(*NONE[name], noise=0.01) <= 2 / 30


def test_what_is_missing_is_said():
    key = jax.random.key(0)
    for name, said in (("kept", "does not fall"), ("straight", "does not begin after"), ("lost again", "falls again"),
                       ("rises first", r"I\(X; T\) rises first")):  # fmt: skip
        found = information_stages(np.stack(NONE[name], axis=1), key=key)
        assert not found.seen and re.search(said, found.why), name
    found = information_stages(np.stack(THREE["pieces"], axis=1), key=key)
    # By hand: 0.9 of the rise to 5 at 4.5; a tenth of the fall of 0.75 at 10.5.
    assert found.seen and found.why == ""
    np.testing.assert_allclose([found.rise_ends, found.fall_begins, found.gap.value], [4.5, 10.5, 6.0])
    scaled = information_stages(np.stack(THREE["pieces"], axis=1), depths=DEPTH / 15, key=key)
    np.testing.assert_allclose(scaled.gap.value, 6 / 15)


def test_bad_curves_are_refused():
    good = np.stack(THREE["smooth"], axis=1)
    for change, said in (
        ({"curves": good[:, 0]}, "must be .T, 2."),
        ({"curves": good[:4]}, "five depths"),
        ({"curves": np.where(good > 0.9, np.nan, good)}, "not finite"),
        ({"depths": DEPTH[::-1].copy()}, "ascending"),
        ({"share": 0.6}, "share=0.6"),
        ({"resamples": 3}, "resamples=3"),
    ):
        with pytest.raises(ValueError, match=said):
            information_stages(**{"curves": good, "key": jax.random.key(0)} | change)
    for curves in (np.ones(4), np.array([0.0, 1.0, np.nan, 2.0, 3.0])):
        with pytest.raises(ValueError, match="curve_noise: curves has shape"):
            curve_noise(curves)


def test_noise_is_that_of_the_draws_whatever_the_curve():
    """Normal noise of standard deviation 0.3 on 20,001 points of a smooth curve with one jump; an outlier changes nothing."""
    t = np.linspace(0, 1, 20_001)
    smooth = np.stack([np.sin(7 * t), np.exp(t) + (t > 0.4)], axis=1)
    drawn = smooth + 0.3 * np.random.default_rng(0).standard_normal(smooth.shape)
    np.testing.assert_allclose(curve_noise(drawn), 0.3, rtol=0.02)  # standard error 0.8 %
    assert np.all(curve_noise(smooth) < 1e-7)
    drawn[77] = 1e9
    np.testing.assert_allclose(curve_noise(drawn), 0.3, rtol=0.02)
