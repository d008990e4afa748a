"""Similarities of samples against SciPy, scikit-learn, NumPy twins and averages over reorderings."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats
from sklearn.metrics.pairwise import cosine_similarity

from pdejax.analysis.similarity._measures import (
    linear_cka,
    mean_squared_error,
    pearson,
    procrustes_distance,
    relative_error,
    sequence_cosine,
    spearman,
    token_cosine,
)

RNG = np.random.default_rng(0)


def slow_hsic(k, l, debiased):
    """Song et al. (2012), (4), and Kornblith et al. (3), letter by letter on Gram matrices."""
    n = len(k)
    if not debiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ l @ h)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    parts = (
        np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return parts / (n * (n - 3))


def slow_cka(a, b, debiased=False):
    k, l = a @ a.T, b @ b.T
    return slow_hsic(k, l, debiased) / math.sqrt(slow_hsic(k, k, debiased) * slow_hsic(l, l, debiased))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("shape", [(40, 5, 3), (6, 30, 4), (6, 30, 20)])  # cross-covariances, mixed, Gram matrices
def test_cka_by_gram_matrices(shape, debiased):
    n, d1, d2 = shape
    a = RNG.normal(size=(n, d1)) + 100.0  # an offset that centring must remove
    b = 1e-3 * (a[:, :1] + RNG.normal(size=(n, d2)))
    found = linear_cka(jnp.asarray(a), jnp.asarray(b), debiased=debiased)
    expected = slow_cka(a - a.mean(0), b - b.mean(0), debiased)
    assert float(found.value) == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(found.nulls["reordered"])


def test_cka_null_is_the_mean_over_all_reorderings():
    a, b = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))
    orders = [list(order) for order in itertools.permutations(range(5))]
    plain = np.mean([slow_cka(a, b[order]) for order in orders])
    unbiased = np.mean([slow_cka(a, b[order], True) for order in orders])
    assert float(linear_cka(jnp.asarray(a), jnp.asarray(b)).nulls["reordered"]) == pytest.approx(plain, rel=1e-12)
    assert unbiased == pytest.approx(0, abs=1e-12)
    assert float(linear_cka(jnp.asarray(a), jnp.asarray(b), debiased=True).nulls["reordered"]) == 0


def test_cka_does_not_see_rotation_scale_or_offset_and_is_biased_for_wide_data():
    a = jnp.asarray(RNG.normal(size=(20, 6)))
    q, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    for debiased in (False, True):
        assert float(linear_cka(a, 3.0 * a @ jnp.asarray(q) + 7.0, debiased=debiased).value) == pytest.approx(
            1, abs=1e-12
        )
    wide, other = (jnp.asarray(RNG.normal(size=(20, 2000))) for _ in range(2))
    plain, unbiased = linear_cka(wide, other), linear_cka(wide, other, debiased=True)
    assert float(plain.value) > 0.95 and float(plain.minus("reordered")) == pytest.approx(0, abs=0.01)
    assert abs(float(unbiased.value)) < 0.2


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_cka_in_float32(scale):
    a = RNG.normal(size=(300, 16)) + 3
    b = a @ RNG.normal(size=(16, 8)) + RNG.normal(size=(300, 8))
    for debiased, tolerance in ((False, 2e-6), (True, 2e-5)):
        found = linear_cka(jnp.asarray(scale * a, jnp.float32), jnp.asarray(b, jnp.float32), debiased=debiased).value
        assert found.dtype == jnp.float32
        assert float(found) == pytest.approx(slow_cka(a - a.mean(0), b - b.mean(0), debiased), abs=tolerance)


def test_procrustes_by_scipy():
    a, b = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 4))
    b = b + a
    # SciPy scales one side too, which leaves 1 − s² of the squares; ours leaves 2 − 2s.
    _, _, disparity = scipy.spatial.procrustes(a, b)
    expected = math.sqrt(2 - 2 * math.sqrt(1 - disparity))
    assert float(procrustes_distance(jnp.asarray(a), jnp.asarray(b)).value) == pytest.approx(expected, rel=1e-12)


def test_procrustes_with_fewer_features_or_samples():
    for n, d1, d2 in ((30, 5, 2), (6, 40, 3), (6, 40, 50)):
        a, b = RNG.normal(size=(n, d1)), RNG.normal(size=(n, d2))
        x, y = a - a.mean(0), b - b.mean(0)
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
        found = float(procrustes_distance(jnp.asarray(a), jnp.asarray(b)).value)
        assert found == pytest.approx(math.sqrt(2 - 2 * nuclear), rel=1e-10)


def test_procrustes_of_equal_shapes_is_rounding_even_in_float32():
    a = RNG.normal(size=(50, 6))
    q, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    assert float(procrustes_distance(jnp.asarray(a), jnp.asarray(2 * a @ q + 1)).value) < 1e-13
    assert float(procrustes_distance(jnp.asarray(a, jnp.float32), jnp.asarray(2 * a @ q, jnp.float32)).value) < 3e-6


def test_pearson_and_spearman_by_scipy():
    a = RNG.normal(size=(7, 30))
    b = np.round(a + RNG.normal(size=(7, 30)), 1)  # with ties
    c = np.round(RNG.normal(size=(7, 30)))  # with many
    for x, y in ((a, b), (b, c), (c, -a)):
        found = pearson(jnp.asarray(x), jnp.asarray(y)), spearman(jnp.asarray(x), jnp.asarray(y))
        assert float(found[0].value) == pytest.approx(scipy.stats.pearsonr(x.ravel(), y.ravel())[0], abs=1e-13)
        assert float(found[1].value) == pytest.approx(scipy.stats.spearmanr(x.ravel(), y.ravel())[0], abs=1e-13)
        assert float(found[1].nulls["reordered"]) == 0


def test_pearson_with_a_large_offset_in_float32():
    a = RNG.normal(size=500).astype(np.float32)
    b = (a + RNG.normal(size=500)).astype(np.float32)
    shifted = (a + np.float32(1000)).astype(np.float32)
    expected = np.corrcoef(shifted.astype(float), b.astype(float))[0, 1]
    assert float(pearson(jnp.asarray(shifted), jnp.asarray(b)).value) == pytest.approx(expected, abs=1e-6)


def test_cosines_and_errors_by_scikit_learn_and_numpy():
    a, b = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(3, 5, 4))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]], bool)
    spoiled = np.where(mask[..., None], a, np.nan)
    masked = jax.jit(lambda a, b, mask: [f(a, b, mask) for f in MASKED])
    found, by_token = [np.asarray(x) for x in masked(spoiled, b, mask)], jax.jit(token_cosine)
    for i in range(3):
        x, y = a[i][mask[i]], b[i][mask[i]]
        assert found[0][i] == pytest.approx(cosine_similarity(x.reshape(1, -1), y.reshape(1, -1))[0, 0], rel=1e-12)
        assert found[1][i] == pytest.approx(np.mean((x - y) ** 2), rel=1e-12)
        assert found[2][i] == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y), rel=1e-12)
        each = np.asarray(by_token(a[i], b[i]))
        assert each == pytest.approx(np.diag(cosine_similarity(a[i], b[i])), rel=1e-12)
    shared = sequence_cosine(jnp.asarray(a), jnp.asarray(b), jnp.asarray(mask[1]))
    assert float(shared[1]) == pytest.approx(found[0][1])


MASKED = (sequence_cosine, mean_squared_error, relative_error)


def test_huge_and_tiny_float32_values_do_not_overflow():
    a, b = jnp.full((2, 3), 1e30, jnp.float32), jnp.full((2, 3), 2e30, jnp.float32)
    error = jax.jit(relative_error)
    assert float(error(a, b)) == pytest.approx(0.5, rel=1e-6)
    assert float(jax.jit(sequence_cosine)(a, np.full((2, 3), 2e-5, np.float32))) == pytest.approx(1, rel=1e-6)
    assert float(error(np.full((2, 3), 1e-2, np.float32), b)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_what_does_not_vary_is_degenerate(constant):
    a, b = np.full((7, 3), constant), RNG.normal(size=(7, 3))
    for f in CORRELATIONS:
        for x, y in ((a, b), (b, a), (a, a)):
            found = f(x, y)
            assert np.isnan(found.nulls["reordered"]) and float(found.value) == 0
    found = procrustes_distance(jnp.asarray(a), jnp.asarray(b))
    assert float(found.value) == pytest.approx(math.sqrt(2))


# Once for all constants.
CORRELATIONS = [jax.jit(f) for f in (linear_cka, lambda x, y: linear_cka(x, y, debiased=True), pearson, spearman)]


def test_nothing_is_at_no_angle_to_nothing():
    zero, b = np.zeros((7, 3)), RNG.normal(size=(7, 3))
    found = jax.jit(lambda z, b: (token_cosine(z, b), sequence_cosine(z, z), relative_error(b, z)))(zero, b)
    assert np.all(np.asarray(found[0]) == 0) and float(found[1]) == 0
    assert float(found[2]) == pytest.approx(np.linalg.norm(b))


def test_under_jit_and_vmap():
    a, b = jnp.asarray(RNG.normal(size=(3, 9, 4))), jnp.asarray(RNG.normal(size=(3, 9, 4)))
    many = jax.jit(jax.vmap(lambda x, y: (linear_cka(x, y, debiased=True), spearman(x, y), procrustes_distance(x, y))))(
        a, b
    )
    for i in range(3):
        one = linear_cka(a[i], b[i], debiased=True), spearman(a[i], b[i]), procrustes_distance(a[i], b[i])
        for x, y in zip(many, one, strict=True):
            assert float(x.value[i]) == pytest.approx(float(y.value), abs=1e-12)


def test_bad_input():
    good = jnp.ones((5, 2)).at[0].set(0)
    with pytest.raises(ValueError, match=r"samples, features"):
        linear_cka(good[None], good)
    with pytest.raises(ValueError, match="5 samples and b 4"):
        linear_cka(good, good[:4])
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(good[:3], good[:3], debiased=True)
    with pytest.raises(ValueError, match="b has values that are not finite"):
        procrustes_distance(good, good.at[1, 1].set(jnp.nan))
    with pytest.raises(TypeError, match="a has type int"):
        pearson(jnp.ones((3, 2), int), good[:3])
    with pytest.raises(ValueError, match="one by one"):
        spearman(good, good[:, :1])
    with pytest.raises(ValueError, match="mask"):
        sequence_cosine(good, good, jnp.ones(3, bool))
    with pytest.raises(ValueError, match="without a real token"):
        mean_squared_error(good, good, jnp.zeros(5, bool))
