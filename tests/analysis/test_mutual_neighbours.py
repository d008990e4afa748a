"""KSG, Ross, mixed and Kozachenko–Leonenko estimates against scikit-learn, slow twins with k-d trees, and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from pdejax.analysis.information._measures import entropy, mutual_information
from pdejax.analysis.information._neighbours import ksg_information

N = 300


def correlated(seed, rho, dims=1, count=N):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, dims))
    return x, rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((count, dims))


def counts(values, radius, strict):
    """Others within the radius, maximum norm."""
    off = np.max(np.abs(values[:, None] - values[None]), axis=-1)
    return np.sum(off < radius[:, None] if strict else off <= radius[:, None], axis=1) - 1


def twin(x, y, k, variant):
    """Kraskov et al. (8) and (9), Gao et al. Algorithm 1, as they stand."""
    n = len(x)
    distance, index = cKDTree(np.hstack([x, y])).query(np.hstack([x, y]), k=k + 1, p=np.inf)
    radius = distance[:, -1]
    if variant == 1:
        return (
            digamma(k)
            + digamma(n)
            - np.mean(digamma(counts(x, radius, True) + 1) + digamma(counts(y, radius, True) + 1))
        )
    if variant == 2:
        widths = [np.max(np.abs(v[index[:, 1:]] - v[:, None]), axis=(1, 2)) for v in (x, y)]
        pairs = [digamma(counts(v, w, False)) for v, w in zip((x, y), widths, strict=True)]
        return digamma(k) - 1 / k + digamma(n) - np.mean(pairs[0] + pairs[1])
    tied = 1 + counts(np.hstack([x, y]), np.zeros(n), False)
    own = np.where(radius == 0, tied, k)
    n_x, n_y = (np.where(radius == 0, counts(v, np.zeros(n), False), counts(v, radius, True)) + 1 for v in (x, y))
    return np.mean(digamma(own) + np.log(n) - digamma(n_x) - digamma(n_y))


@pytest.mark.parametrize("k", [1, 3])
def test_ksg_is_scikit_learns(k):
    x, y = correlated(0, 0.7)
    found = ksg_information(x, y, k=k)
    # It adds noise of 1e-10, which does not change a count.
    reference = mutual_info_regression(x, y[:, 0], n_neighbors=k)[0]
    assert float(found.value) == pytest.approx(reference, abs=1e-12)
    assert found.kind == "neither" and found.samples == N and found.noise is None
    assert float(found.limit) == pytest.approx(digamma(N) - digamma(k)) and not bool(found.saturated)


@pytest.mark.parametrize("variant", [1, 2, "mixed"])
def test_ksg_is_the_slow_twin_in_several_dimensions(variant):
    x, y = correlated(1, 0.6, 2)
    y = np.hstack([y, x[:, :1] ** 2])  # three features, and not Gaussian
    found = ksg_information(x, y, k=3, variant=variant, standardize=False)
    assert float(found.value) == pytest.approx(twin(x, y, 3, variant), abs=1e-12)


def test_many_features():
    x, y = correlated(2, 0.6, 9)
    found = ksg_information(x, y, standardize=False)
    assert float(found.value) == pytest.approx(twin(x, y, 3, 1), abs=1e-12)


def test_mixed_variant_on_ties():
    """Half of the y are 0: the twin, and near the truth, where plain KSG is refused."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, 3, (N, 1)).astype(float)
    y = np.where(rng.random((N, 1)) < 0.5, 0.0, x + 2 * rng.random((N, 1)))
    found = ksg_information(x, y, variant="mixed", standardize=False)
    assert float(found.value) == pytest.approx(twin(x, y, 3, "mixed"), abs=1e-12)
    exact = 0.5 * (math.log(3) - 2 / 3 * math.log(2))  # told half of the time
    assert float(found.value) == pytest.approx(exact, abs=0.12)
    with pytest.raises(ValueError, match=r"occur more than once.*mixed"):
        ksg_information(x, y)


def ross(x, y, k):
    """Ross (4): classes of one left out, smaller classes with all their neighbours."""
    _, code, sizes = np.unique(y, return_inverse=True, return_counts=True)
    kept = sizes[code] > 1
    x, code, own = x[kept], code[kept], np.minimum(k, sizes[code[kept]] - 1)
    off = np.max(np.abs(x[:, None] - x[None]), axis=-1)
    same = np.sort(np.where(code[:, None] == code[None], off, np.inf), axis=1)  # the sample itself first
    radius = same[np.arange(len(x)), own]
    near = np.sum(off < radius[:, None], axis=1)
    return digamma(len(x)) + np.mean(digamma(own) - digamma(sizes[code]) - digamma(near))


def test_labels_are_scikit_learns():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 4, N)
    x = y[:, None] % 3 + rng.standard_normal((N, 1))
    reference = mutual_info_classif(x, y, n_neighbors=3, random_state=0)[0]
    assert ross(x, y, 3) == pytest.approx(reference, abs=1e-12)
    for pair in ((x, y), (y, x)):
        assert float(ksg_information(*pair).value) == pytest.approx(reference, abs=1e-12)
    y[:2] = [77, 78]  # alone in their classes
    y[2:4] = 79  # fewer than k + 1
    wide = np.hstack([x, rng.standard_normal((N, 1))])
    found = ksg_information(wide, y, standardize=False)
    assert float(found.value) == pytest.approx(ross(wide, y, 3), abs=1e-12)
    assert float(found.limit) > float(found.value) and not bool(found.saturated)


def test_saturation_and_invariance():
    x, y = correlated(6, 1 - 1e-13)
    sharp = ksg_information(x, y)
    assert bool(sharp.saturated) and float(sharp.value) < float(sharp.limit) + 1e-12
    x, y = correlated(6, 0.8)
    plain = float(ksg_information(x, y).value)
    assert float(ksg_information(3 * x + 1, -0.01 * y).value) == pytest.approx(plain, abs=1e-12)
    assert float(ksg_information(y, x).value) == pytest.approx(plain, abs=1e-12)


def test_jit_vmap_float32_and_nan():
    xs, ys = (jnp.asarray(np.stack(a)) for a in zip(*(correlated(s, 0.7) for s in range(3)), strict=True))
    each = [float(ksg_information(x, y).value) for x, y in zip(xs, ys, strict=True)]
    batch = jax.jit(jax.vmap(lambda x, y: mutual_information(x, y, "ksg").value))
    np.testing.assert_allclose(batch(xs, ys), each, atol=1e-13)
    assert bool(jnp.isnan(batch(xs.at[1, 0, 0].set(jnp.nan), ys)[1]))
    small = ksg_information(xs[0].astype(jnp.float32), ys[0].astype(jnp.float32)).value
    assert small.dtype == jnp.float32 and float(small) == pytest.approx(each[0], abs=1e-4)


def test_kozachenko_leonenko():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((N, 2))
    radius = cKDTree(x).query(x, k=4, p=np.inf)[0][:, -1]
    reference = digamma(N) - digamma(3) + 2 * math.log(2) + 2 * np.mean(np.log(radius))
    found = entropy(x, "knn")
    assert float(found.value) == pytest.approx(reference, abs=1e-12)
    # One draw scatters by 0.07; 300 samples leave a bias of −0.03.
    many = jax.lax.map(lambda x: entropy(x, "knn").value, jnp.asarray(rng.standard_normal((40, N, 2))))
    assert float(jnp.mean(many)) == pytest.approx(math.log(2 * math.pi * math.e), abs=0.07)
    assert float(jnp.std(many)) < 0.1


def test_ksg_finds_gaussian_information():
    """THEORY §5.11, −½ln(1−ρ²): within four standard errors of 20 draws."""
    found = [float(ksg_information(*correlated(s, 0.9)).value) for s in range(20)]
    exact = -0.5 * math.log(1 - 0.81)
    assert abs(np.mean(found) - exact) < 4 * np.std(found, ddof=1) / 20**0.5 + 0.01
    none = [float(ksg_information(*correlated(s, 0.0)).value) for s in range(20)]
    assert abs(np.mean(none)) < 4 * np.std(none, ddof=1) / 20**0.5
    assert min(none) < 0  # not clipped
