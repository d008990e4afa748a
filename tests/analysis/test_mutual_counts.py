"""Binned, Gaussian and kernel estimates against NumPy, SciPy and scikit-learn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp
from sklearn.metrics import mutual_info_score

from pdejax.analysis.information import _samples
from pdejax.analysis.information._counting import (
    binned_information,
    gaussian_entropy,
    gaussian_information,
    kde_information,
)
from pdejax.analysis.information._measures import entropy, mutual_information
from pdejax.analysis.information.channels._channels import discrete_channel

N = 300
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 2))
Y = 0.7 * X + 0.5 * RNG.standard_normal((N, 2))


def cells(values, bins):
    """Joint quantile cell of every row."""
    columns = [np.searchsorted(np.quantile(v, np.arange(1, bins) / bins), v, side="right") for v in values.T]
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].ravel()


def test_binned_is_scikit_learns_score():
    for columns, bins in ((1, 5), (2, 3)):
        a, b = cells(X[:, :columns], bins), cells(Y[:, :columns], bins)
        plain = binned_information(X[:, :columns], Y[:, :columns], bins=bins, correction=False)
        assert float(plain.value) == pytest.approx(mutual_info_score(a, b), abs=1e-12)
        kx, ky, kxy = len(np.unique(a)), len(np.unique(b)), len(np.unique(a * 1000 + b))
        corrected = binned_information(X[:, :columns], Y[:, :columns], bins=bins)
        assert float(corrected.value - plain.value) == pytest.approx((kx + ky - kxy - 1) / (2 * N), abs=1e-12)
        assert float(plain.limit) == pytest.approx(min(math.log(kx), math.log(ky)))
        assert not bool(plain.saturated)


def test_labels_are_taken_as_they_are():
    channel = discrete_channel([[0.3, 0.1, 0.0], [0.05, 0.15, 0.4]])
    p = np.array([[0.3, 0.1, 0.0], [0.05, 0.15, 0.4]])
    outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    assert channel.information == pytest.approx(np.sum(p[p > 0] * np.log(p[p > 0] / outer[p > 0])), abs=1e-12)
    pairs = channel.draw(jax.random.key(0), 4000)
    found = mutual_information(pairs.x - 3, 100 * pairs.y, "binned", correction=False)  # names do not matter
    assert float(found.value) == pytest.approx(mutual_info_score(pairs.x, pairs.y), abs=1e-12)
    assert float(found.value) == pytest.approx(channel.information, abs=0.03)
    with_floats = binned_information(X, np.asarray(pairs.y[:N]), bins=2, correction=False)
    assert float(with_floats.value) == pytest.approx(mutual_info_score(cells(X, 2), pairs.y[:N]), abs=1e-12)


def test_many_bins_saturate_at_the_samples():
    """Independent pairs, everyone alone in a cell: ln N, and flagged; two bins: about 0."""
    other = np.random.default_rng(9).standard_normal((N, 1))
    full = binned_information(X[:, :1], other, bins=N, correction=False)
    assert float(full.value) == pytest.approx(math.log(N), abs=1e-9) and bool(full.saturated)
    assert float(full.value) <= float(full.limit) <= math.log(N) + 1e-12
    assert abs(float(binned_information(X[:, :1], other, bins=2).value)) < 0.02
    constant = binned_information(np.ones((N, 1)), other, bins=4)
    assert float(constant.value) == 0 and float(constant.limit) == 0 and not bool(constant.saturated)


def test_miller_madow_takes_off_the_bias():
    """Independent pairs, 8 × 8 cells: plug-in about (K−1)²/2N too high, corrected nearly nothing."""
    rng = np.random.default_rng(1)
    pairs = [rng.standard_normal((2, N, 1)) for _ in range(40)]
    plain = np.mean([float(binned_information(*p, bins=8, correction=False).value) for p in pairs])
    better = np.mean([float(binned_information(*p, bins=8).value) for p in pairs])
    assert plain == pytest.approx(49 / (2 * N), rel=0.15)
    assert abs(better) < 0.15 * plain


def test_gaussian_is_the_determinants_and_unbiased():
    joint = np.hstack([X, Y])
    s = np.cov(joint.T)
    plug_in = 0.5 * np.log(np.linalg.det(s[:2, :2]) * np.linalg.det(s[2:, 2:]) / np.linalg.det(s))
    found = gaussian_information(X, Y)
    ours = jax.jit(lambda x, y, joint: gaussian_entropy(x) + gaussian_entropy(y) - gaussian_entropy(joint))
    assert float(found.value) == pytest.approx(float(ours(X, Y, joint)), abs=1e-12)
    assert plug_in - float(found.value) == pytest.approx(4 / (2 * N), rel=0.05)  # dx dy / 2N
    # Any invertible map of either side leaves it.
    moved = gaussian_information(X @ np.array([[2.0, 1.0], [0.0, 1e-4]]) + 5, Y)
    assert float(moved.value) == pytest.approx(float(found.value), abs=1e-9)
    # Ten samples in four features: the plug-in mean is off by a third of a nat, this one is not.
    rng = np.random.default_rng(2)
    draws = rng.standard_normal((2000, 10, 4))
    values = np.asarray(jax.jit(jax.vmap(lambda z: gaussian_information(z[:, :2], z[:, 2:]).value))(draws))
    assert abs(np.mean(values)) < 4 * np.std(values) / 2000**0.5
    assert np.std(values) < 0.5


def test_gaussian_degenerate():
    twice = np.hstack([X[:, :1], 2 * X[:, :1]])
    for bad in (twice, np.hstack([X[:, :1], np.ones((N, 1))])):
        with pytest.raises(ValueError, match="constant or linearly dependent"):
            gaussian_information(bad, Y)
    assert bool(jnp.isnan(jax.jit(lambda x: gaussian_information(x, Y).value)(jnp.asarray(twice))))
    sharp = gaussian_information(X, X @ np.array([[1.0, 2.0], [0.5, -1.0]]))
    assert bool(sharp.saturated) and float(sharp.value) > 20
    with pytest.raises(ValueError, match="too few"):
        gaussian_information(X[:4], Y[:4])


def mixture_sum(f, sigma, divisor, group=None):
    square = np.sum((f[:, None] - f[None]) ** 2, axis=-1) / (divisor * sigma**2)
    if group is not None:
        square = np.where(group[:, None] == group[None], square, np.inf)
    return logsumexp(-square, axis=1)


@pytest.mark.parametrize("bound", ["upper", "lower", "neither"])
def test_kde_is_the_slow_twin(bound):
    labels = (X[:, 0] + 0.3 * Y[:, 1] > 0).astype(int)
    first = {"upper": 2, "lower": 8, "neither": 2}[bound]
    second = {"upper": 8, "lower": 2, "neither": 2}[bound]
    found = kde_information(X, Y, noise=0.4, bound=bound)
    assert float(found.value) == pytest.approx(math.log(N) - np.mean(mixture_sum(Y, 0.4, first)), abs=1e-12)
    assert found.kind == ("lower" if bound == "lower" else "upper") and float(found.noise) == 0.4
    sizes = np.bincount(labels)[labels]
    within = np.mean(np.log(sizes) - mixture_sum(Y, 0.4, second, labels))
    limit = -np.sum(np.bincount(labels) / N * np.log(np.bincount(labels) / N))
    raw = math.log(N) - np.mean(mixture_sum(Y, 0.4, first)) - within
    given = kde_information(Y, labels, noise=0.4, bound=bound)
    assert float(given.value) == pytest.approx(np.clip(raw, 0, limit), abs=1e-12) and given.kind == bound
    assert float(given.limit) == pytest.approx(limit, abs=1e-12) and bool(given.saturated) == (raw >= limit)
    assert float(kde_information(labels, Y, noise=0.4, bound=bound).value) == float(given.value)


def test_kde_blocks_and_many_features(monkeypatch):
    """Blocks of 7 rows, the last one cut; more than 8 features take another path."""
    monkeypatch.setattr(_samples, "_ENTRIES", 7 * N)
    f = np.hstack([X, Y, X**2, Y**2, X * Y])
    found = kde_information(X, f, noise=1.5)
    assert float(found.value) == pytest.approx(math.log(N) - np.mean(mixture_sum(f, 1.5, 2)), abs=1e-12)


def test_kde_bounds_hold_the_mixtures_information():
    """Two points ±1 and noise 1: I by quadrature lies between, and the nearer estimate nearer."""
    f, y = np.tile([[1.0], [-1.0]], (50, 1)), np.tile([0, 1], 50)
    t = np.linspace(-12, 12, 200_001)
    p = [scipy.stats.norm.pdf(t, c) for c in (1, -1)]
    both = (p[0] + p[1]) / 2
    exact = -np.trapezoid(both * np.log(both), t) - 0.5 * math.log(2 * math.pi * math.e)
    for pair in ((f, f), (f, y)):  # which of the two points, and which label, is the same here
        low, high = (float(kde_information(*pair, noise=1.0, bound=b).value) for b in ("lower", "upper"))
        assert low < exact < high
    assert float(kde_information(f, y, noise=1.0, bound="neither").value) == pytest.approx(exact, abs=0.25)


def test_kde_without_noise_says_ln_n_whatever_the_map():
    """Claim C10: as σ → 0 every one-to-one map of the samples has information ln N."""
    for f in (X, X * 1e-3, np.tanh(X)):
        found = kde_information(X, f, noise=1e-9)
        assert float(found.value) == pytest.approx(math.log(N), abs=1e-12) and bool(found.saturated)
    assert not bool(kde_information(X, X, noise=1.0).saturated)
    with pytest.raises(ValueError, match="noise is missing"):
        mutual_information(X, Y, "kde")


def test_kde_in_float32_far_from_the_origin():
    """Distances are not expanded: an offset of 1000 costs the rounding of the samples alone."""
    near = float(kde_information(X, Y, noise=0.4).value)
    far = kde_information(X, jnp.asarray(Y + 1000, jnp.float32), noise=0.4)
    assert far.value.dtype == jnp.float32 and float(far.value) == pytest.approx(near, abs=1e-3)


def test_entropies():
    normal = math.log(2 * math.pi * math.e)
    assert float(entropy(X, "gaussian").value) == pytest.approx(float(gaussian_entropy(jnp.asarray(X))), abs=1e-12)
    for name in ("gaussian", "kde", "binned"):
        assert float(entropy(X, name).value) == pytest.approx(normal, abs=0.35), name
    # Leave-one-out Gaussian kernels, Scott's bandwidth.
    width = X.std(axis=0, ddof=1) * N ** (-1 / 6)
    logs = -0.5 * np.sum(((X[:, None] - X[None]) / width) ** 2, axis=-1)
    np.fill_diagonal(logs, -np.inf)
    twin = math.log(N - 1) - np.mean(logsumexp(logs, axis=1)) + np.sum(np.log(width)) + math.log(2 * math.pi)
    assert float(entropy(X, "kde").value) == pytest.approx(twin, abs=1e-12)
    own = normal + 2 * math.log(0.3)
    for bound, divisor in (("upper", 2), ("lower", 8)):
        found = entropy(X, "kde", noise=0.3, bound=bound)
        twin = own + math.log(N) - np.mean(mixture_sum(X, 0.3, divisor))
        assert float(found.value) == pytest.approx(twin, abs=1e-12) and float(found.noise) == 0.3
        assert float(found.limit) == pytest.approx(own + math.log(N)) and found.kind == bound


def test_binned_entropies():
    x = X[:, 0]
    counts, edges = np.histogram(x, bins=10)
    p = counts[counts > 0] / N
    shannon = entropy(x, "binned", bins=10, edges="equal", correction=False, differential=False)
    assert float(shannon.value) == pytest.approx(scipy.stats.entropy(p), abs=1e-12)
    assert float(shannon.limit) == pytest.approx(math.log(10))
    density = entropy(x, "binned", bins=10, edges="equal", correction=False)
    histogram = scipy.stats.rv_histogram((counts, edges), density=False)
    assert float(density.value) == pytest.approx(float(histogram.entropy()), abs=1e-9)
    labels = np.array([0, 0, 1, 5] * 10)
    found = entropy(labels, "binned")
    assert float(found.value) == pytest.approx(1.5 * math.log(2) + 2 / 80, abs=1e-12)


def test_entropy_without_density():
    flat = np.hstack([X, np.ones((N, 1))])
    for name in ("gaussian", "knn", "kde", "binned"):
        bad = np.repeat(X[:60], 5, axis=0) if name == "knn" else flat
        with pytest.raises(ValueError, match="no density"):
            entropy(bad, name)
        assert float(jax.jit(lambda x, n=name: entropy(x, n).value)(jnp.asarray(bad))) == -math.inf
    noisy = entropy(flat, "gaussian", noise=0.1, key=jax.random.key(0))
    assert math.isfinite(float(noisy.value)) and float(noisy.noise) == pytest.approx(0.1)
    assert bool(jnp.isnan(jax.jit(lambda x: entropy(x, "knn").value)(jnp.asarray(X).at[0, 0].set(jnp.nan))))


def test_jit_and_vmap():
    xs = jnp.asarray(np.stack([X, Y]))
    for name, options in (("binned", {"bins": 4}), ("gaussian", {}), ("kde", {"noise": 0.5})):
        batch = jax.jit(jax.vmap(lambda x, n=name, o=options: mutual_information(x, jnp.asarray(Y**3), n, **o).value))(
            xs
        )
        each = [float(mutual_information(x, Y**3, name, **options).value) for x in (X, Y)]
        np.testing.assert_allclose(batch, each, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: mutual_information(X, Y, "mine"), ValueError, "estimator='mine'.*ksg"),
        (lambda: mutual_information(X, Y, "ksg", bins=3), TypeError, "no option bins; it has k, variant"),
        (lambda: mutual_information(X[:5], Y), ValueError, "x has 5 samples and y 300"),
        (lambda: mutual_information(X[:3], Y[:3]), ValueError, "3 samples have no k=3 neighbours"),
        (lambda: mutual_information(X, Y, k=0), ValueError, "k=0"),
        (lambda: mutual_information(X, Y, variant=3), ValueError, "variant=3"),
        (lambda: mutual_information(np.arange(9), np.arange(9)), TypeError, "discrete.*binned"),
        (lambda: mutual_information(X, np.arange(N)), ValueError, "every label occurs once"),
        (lambda: mutual_information(X.round(), Y), ValueError, "x occur more than once"),
        (lambda: mutual_information(np.where(X > 2, np.nan, X), Y), ValueError, "not finite, first in sample"),
        (lambda: mutual_information(X[None], Y), ValueError, r"shape \(1, 300, 2\)"),
        (lambda: mutual_information(X + 0j, Y), TypeError, "complex"),
        (lambda: mutual_information(X[:1], Y[:1]), ValueError, "one sample"),
        (lambda: mutual_information(X, Y, noise=0.1), ValueError, "give key="),
        (lambda: mutual_information(X, Y, noise=-1.0, key=jax.random.key(0)), ValueError, "noise=-1.0"),
        (lambda: mutual_information(X, Y, "binned", bins=1), ValueError, "bins=1"),
        (lambda: mutual_information(X, Y, "binned", edges="log"), ValueError, "edges='log'"),
        (lambda: mutual_information(X, np.zeros(N, int), "gaussian"), TypeError, "floating-point"),
        (lambda: mutual_information(X, Y, "infonce"), ValueError, "give key="),
        (lambda: mutual_information(X, Y, "kde", noise=1.0, bound="best"), ValueError, "bound='best'"),
        (lambda: entropy(X, "ksg"), ValueError, "estimator='ksg'"),
        (lambda: entropy(X, "knn", bins=3), TypeError, "no such option"),
        (lambda: entropy(np.arange(5), "knn"), TypeError, "integers"),
        (lambda: entropy(np.arange(5), "binned", bins=3), TypeError, "bins cannot serve"),
    ],
)
def test_bad_input(call, kind, words):
    with pytest.raises((kind, TypeError), match=words):
        call()
