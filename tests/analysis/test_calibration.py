"""Channels with known information, transforms that keep it, and how near the estimators come."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import dblquad

from pdejax.analysis.information._measures import mutual_information
from pdejax.analysis.information.channels._channels import (
    Calibration,
    Channel,
    Pairs,
    binary_symmetric_channel,
    calibration,
    class_channel,
    diffusion_channel,
    discrete_channel,
    gaussian_channel,
    standard_channels,
    transformed,
)
from pdejax.exact import diffusion_channel_information, heat_eigenvalues


def information_of(covariance, dims):
    """Gaussian information from a covariance of (x, y)."""
    blocks = covariance[:dims, :dims], covariance[dims:, dims:], covariance
    first, second, both = (np.linalg.slogdet(block)[1] for block in blocks)
    return 0.5 * (first + second - both)


@pytest.mark.parametrize(
    "channel",
    [
        gaussian_channel(0.8),
        gaussian_channel([0.2, 0.9, -0.5]),
        gaussian_channel(0.6, 3, mixed=True),
        diffusion_channel(3, 0.7),
    ],
    ids=lambda c: c.name,
)
def test_gaussian_channels_have_their_information(channel):
    """From the sample covariance of 200,000 pairs."""
    pairs = channel.draw(jax.random.key(0), 200_000)
    joint = np.cov(np.hstack([pairs.x, pairs.y]).T)
    assert information_of(joint, pairs.x.shape[1]) == pytest.approx(channel.information, rel=0.01)
    if pairs.signal is not None:
        left = np.asarray(pairs.y - pairs.signal)
        np.testing.assert_allclose(np.cov(left.T), pairs.noise**2 * np.eye(left.shape[1]), atol=0.01)


def test_diffusion_channel_is_the_closed_form():
    rates = heat_eigenvalues(4, "dirichlet", 0.5)
    exact = diffusion_channel_information(jnp.asarray([1.0, 2.0, 0.5, 0.1]), rates, 0.3, 0.2)
    channel = diffusion_channel(
        4, 0.3, 0.2, prior_variances=[1.0, 2.0, 0.5, 0.1], boundary="dirichlet", diffusivity=0.5
    )
    assert channel.information == pytest.approx(float(exact), rel=1e-12)


def test_discrete_channels():
    assert binary_symmetric_channel(0.0).information == pytest.approx(math.log(2))
    assert binary_symmetric_channel(0.5).information == pytest.approx(0, abs=1e-15)
    h = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    assert binary_symmetric_channel(0.1).information == pytest.approx(math.log(2) - h)
    pairs = binary_symmetric_channel(0.1).draw(jax.random.key(0), 40_000)
    assert float(jnp.mean((pairs.x != pairs.y).astype(float))) == pytest.approx(0.1, abs=0.006)
    assert float(jnp.mean(pairs.x.astype(float))) == pytest.approx(0.5, abs=0.01)


def test_class_channel_by_quadrature():
    """H(Y) minus the mean entropy of the class given x, x uniform on [c, c + 2]: steps of 1/2m or 1/m."""
    m = 4

    def density(x):
        return sum(0.5 / m * (c <= x <= c + 2) for c in range(m))

    grid = np.arange(0.5, m + 1)  # the density is constant on unit intervals
    marginal = -sum(density(x) * math.log(density(x)) for x in grid)
    assert class_channel(m).information == pytest.approx(marginal - math.log(2), abs=1e-12)


@pytest.mark.parametrize("by", ["half-cube", "asinh", "cube", "spiral"])
def test_transforms_are_bijections_that_keep_information(by):
    """The local information ln p(x,y)/p(x)p(y) is the channel's own as long as the map has an inverse: volume by autodiff."""
    channel = gaussian_channel(0.7, 2)
    moved = transformed(channel, by)
    assert moved.information == channel.information
    key = jax.random.key(1)
    before, after = channel.draw(key, 64), moved.draw(key, 64)
    one_sided = transformed(channel, by, both=False).draw(key, 64)
    assert np.array_equal(one_sided.x, before.x) and np.array_equal(one_sided.y, after.y)

    def bend(row):
        fixed = Channel("", lambda key, n: Pairs(row[None], row[None]), 0.0)
        return transformed(fixed, by).draw(key, 1).x[0]

    rows = before.x
    bent, slopes = jax.jit(jax.vmap(lambda row: (bend(row), jax.jacfwd(bend)(row))))(rows)
    np.testing.assert_allclose(bent, after.x, atol=1e-12)
    volume, rows = np.linalg.det(np.asarray(slopes)), np.asarray(rows)
    expected = {
        "half-cube": np.prod(1.5 * np.sqrt(np.abs(rows)), axis=1),
        "cube": np.prod(3 * rows**2, axis=1),
        "asinh": np.prod(1 / np.sqrt(1 + rows**2), axis=1),
        "spiral": np.ones(64),  # turns every circle
    }[by]
    np.testing.assert_allclose(volume, expected, rtol=1e-9)
    if by == "spiral":
        np.testing.assert_allclose(jnp.sum(after.x**2, axis=1), jnp.sum(rows**2, axis=1), rtol=1e-12)


def test_gaussian_information_by_quadrature():
    """−½ln(1−ρ²) is the mean of the local information."""
    rho = 0.6

    def integrand(y, x):
        joint = math.exp(-(x * x - 2 * rho * x * y + y * y) / (2 * (1 - rho**2))) / (
            2 * math.pi * math.sqrt(1 - rho**2)
        )
        apart = math.exp(-(x * x + y * y) / 2) / (2 * math.pi)
        return joint * math.log(joint / apart)

    found, _ = dblquad(integrand, -7, 7, -7, 7, epsabs=1e-6)
    assert gaussian_channel(rho).information == pytest.approx(found, abs=1e-5)


@pytest.mark.slow
def test_calibration_of_the_cheap_estimators():
    """Known accuracies at 400 pairs; what is too hard for an estimator is seen to fail in the known direction."""
    wide = gaussian_channel(0.8, 2)
    channels = [
        gaussian_channel(0.0),
        gaussian_channel(0.9),
        transformed(gaussian_channel(0.9), "half-cube"),
        wide,
        transformed(wide, "spiral"),
        binary_symmetric_channel(0.1),
        class_channel(5),
    ]
    names = ["ksg", "binned", "gaussian", "kde upper", "kde lower"]
    found = calibration(names, channels, samples=400, seeds=5)
    none, high, heavy, two, spiral, bits, classes = range(7)
    ksg, binned, gaussian, upper, lower = found.median
    assert np.all(np.abs(ksg[[none, high, heavy, classes]]) < 0.06) and abs(ksg[two]) < 0.15
    assert np.all(np.abs(gaussian[[none, high, two]]) < 0.08)
    assert gaussian[spiral] < -0.9 and ksg[spiral] < -0.3  # no longer Gaussian; neighbourhoods no longer small
    assert np.all(np.abs(binned[[none, bits, classes]]) < 0.05) and binned[high] < 0
    assert np.all(upper[[high, two]] > 0) and np.all(lower[[high, two]] < 0)
    for e, c in ((0, bits), (2, bits), (2, classes), (3, heavy), (3, bits)):
        assert np.all(np.isnan(found.error[e, c]))
    assert not found.mostly_saturated.any()
    assert float(found.spread[0, high]) < 0.1


def fake(pairs, key):
    if pairs.x.ndim == 1:
        raise TypeError("no labels")
    return mutual_information(pairs.x, pairs.y, "gaussian")


def test_calibration_record(tmp_path):
    channels = [gaussian_channel(0.5), binary_symmetric_channel(0.2)]
    found = calibration(
        {"g": fake, "none": lambda pairs, key: None}, channels, samples=50, seeds=3, key=jax.random.key(4)
    )
    assert isinstance(found, Calibration) and found.estimate.shape == (2, 2, 3)
    assert np.isnan(found.estimate[1]).all() and np.isnan(found.estimate[0, 1]).all()
    np.testing.assert_allclose(found.error[0, 0], found.estimate[0, 0] - channels[0].information)
    assert found.median[0, 0] == np.median(found.error[0, 0])
    lines = found.table().splitlines()
    assert lines[0] == "| channel | exact | g | none |" and len(lines) == 4
    assert f"{found.median[0, 0]:+.3f} ± {found.spread[0, 0]:.3f}" in lines[2] and lines[3].endswith("| – | – |")
    data = found.to_xarray()
    assert data.estimate.dims == ("estimator", "channel", "seed") and data.attrs["samples"] == 50
    assert float(data.exact[1]) == pytest.approx(channels[1].information)
    found.save(tmp_path / "c.json")
    read = json.loads((tmp_path / "c.json").read_text())
    assert read["errors"]["none"][channels[0].name] is None and read["seeds"] == 3
    assert read["errors"]["g"][channels[0].name]["median_error"] == pytest.approx(found.median[0, 0], abs=1e-5)


def test_the_same_draws_for_every_estimator():
    seen = []
    calibration(
        {"a": lambda p, k: seen.append(p.x), "b": lambda p, k: seen.append(p.x)},
        [gaussian_channel(0.5)],
        samples=20,
        seeds=2,
    )
    assert (
        np.array_equal(seen[0], seen[1]) and np.array_equal(seen[2], seen[3]) and not np.array_equal(seen[0], seen[2])
    )


def test_standard_channels_have_names_and_positive_information():
    channels = standard_channels()
    assert len({c.name for c in channels}) == len(channels) >= 12
    assert channels[0].information == 0 and all(c.information > 0.2 for c in channels[1:])


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: gaussian_channel(1.0), ValueError, "strictly between"),
        (lambda: gaussian_channel([0.1, 0.2], 3), ValueError, "2 correlations for dims=3"),
        (lambda: diffusion_channel(noise=0.0), ValueError, "noise"),
        (lambda: diffusion_channel(3, prior_variances=[1.0]), ValueError, "give 3 positive"),
        (lambda: discrete_channel([[0.5, 0.2]]), ValueError, "sum to 1"),
        (lambda: binary_symmetric_channel(1.5), ValueError, "probability"),
        (lambda: class_channel(1), ValueError, "at least 2"),
        (lambda: transformed(gaussian_channel(0.5), "log"), ValueError, "by='log'"),
        (lambda: transformed(gaussian_channel(0.5), "spiral").draw(jax.random.key(0), 5), ValueError, "two features"),
        (lambda: transformed(class_channel(), "asinh").draw(jax.random.key(0), 5), ValueError, "labels cannot"),
        (lambda: calibration(["mine"]), ValueError, "'mine'; choose from"),
        (lambda: calibration(["ksg"], []), ValueError, "needs an estimator and channels"),
        (lambda: calibration(["ksg"], [gaussian_channel(0.1)] * 2), ValueError, "different names"),
        (lambda: calibration(samples=3), ValueError, "samples=3"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises((kind, TypeError), match=words):
        call()
