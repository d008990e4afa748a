"""Clustering of tokens: counts against SciPy, ranks against NumPy, consensus, opposite groups, masks, random directions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from scipy.special import gamma

from pdejax.analysis.tokens._clustering import (
    QUANTILES,
    _quantiles,
    count_components,
    effective_rank,
    random_directions,
    token_clustering,
)
from pdejax.exact import equiangular_tokens

L, B, N, D = 2, 3, 10, 6
KEY = jax.random.key(0)
FEW = {"key": KEY, "resamples": 20}
MASK = np.arange(N)[None] < np.array([10, 7, 1])[:, None]
MASK[0, 2] = False


def states(seed=1):
    return np.random.default_rng(seed).standard_normal((L, B, N, D))


def slow(x: np.ndarray, threshold: float) -> list[float]:
    """Gap, cosine, clusters, rank, residual, diameter, distance of the tokens (n, d), pair by pair."""
    n = x.shape[0]
    if n == 1:
        return [0, 1, 1, 1, 0, 0, 0]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    cosines = np.array([unit[i] @ unit[j] for i, j in pairs])
    distances = np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    s = np.linalg.svd(x)[1]
    p = s / s.sum()
    clusters = connected_components((unit @ unit.T > threshold).astype(int))[0]
    residual = np.linalg.norm(x - x.mean(axis=0)) / np.linalg.norm(x)
    return [
        1 - cosines.mean(),
        cosines.mean(),
        clusters,
        math.exp(-(p * np.log(p)).sum()),
        residual,
        distances.max(),
        distances.mean(),
    ]


def figures(found):
    compared = (
        found.cosine,
        found.clusters,
        found.effective_rank,
        found.residual,
        found.diameter,
        found.distance,
    )
    return np.stack([found.gap, *(x.value for x in compared)], axis=1)


def test_against_pairs_and_padding():
    u = np.where(MASK[None, :, :, None], states(), np.nan)
    found = token_clustering(u, mask=MASK, threshold=0.5, **FEW)
    expected = np.mean([[slow(u[layer, i][MASK[i]], 0.5) for i in range(B)] for layer in range(L)], axis=1)
    np.testing.assert_allclose(figures(found), expected, rtol=1e-12)
    again = token_clustering(np.where(MASK[None, :, :, None], u, 7.0), mask=MASK, threshold=0.5, **FEW)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    np.testing.assert_allclose(found.histogram.value.sum(axis=1), 1, rtol=1e-13)
    assert set(found.cosine.nulls) == {"random directions"} and float(found.threshold) == 0.5


def test_histogram_and_quantiles():
    u = states(3)
    found = token_clustering(u, **FEW)
    for layer in range(L):
        shares, pooled = [], []
        for i in range(B):
            unit = u[layer, i] / np.linalg.norm(u[layer, i], axis=1, keepdims=True)
            cosines = (unit @ unit.T)[~np.eye(N, dtype=bool)]
            shares.append(np.histogram(cosines, bins=np.asarray(found.edges))[0] / cosines.size)
            pooled.append(cosines)
        np.testing.assert_allclose(found.histogram[layer], np.mean(shares, axis=0), atol=1e-14)
        exact = np.quantile(np.concatenate(pooled), [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(found.quantiles[layer], exact, atol=2 / 80 + 0.02)


def test_quantiles_are_linear_inside_a_bin():
    """All pairs spread evenly over [−1, 1]: 2q − 1, between the edges of ten bins; all in one bin: between its edges."""
    edges = jnp.linspace(-1, 1, 11)
    shares = jnp.stack([jnp.full(10, 0.1), jnp.zeros(10).at[7].set(1)])
    q = np.asarray(QUANTILES)
    np.testing.assert_allclose(_quantiles(shares, edges), [2 * q - 1, 0.4 + 0.2 * q], atol=1e-12)


def test_components_by_scipy():
    rng = np.random.default_rng(4)
    count = jax.jit(count_components)
    for density in (0.0, 0.02, 0.05, 0.1, 1.0):
        joined = rng.uniform(size=(40, 40)) < density
        joined = joined | joined.T
        mask = rng.uniform(size=40) < 0.8
        expected = connected_components(joined[np.ix_(mask, mask)])[0]
        assert int(count(joined, mask)) == expected
    chain = np.abs(np.subtract.outer(rng.permutation(40), np.arange(40))) < 0  # none joined
    order = rng.permutation(40)
    chain[order[:-1], order[1:]] = chain[order[1:], order[:-1]] = True
    assert int(count(chain, np.ones(40, bool))) == 1


def test_consensus_and_two_groups():
    """All tokens equal: one cluster, rank 1, residual 0. Two opposite groups: two clusters, rank still 1."""
    token = np.random.default_rng(5).standard_normal(D)
    same = np.broadcast_to(token, (B, N, D))
    sign = np.where(np.arange(N) < 4, 1.0, -1.0)[:, None]
    found = token_clustering(np.stack([same, np.broadcast_to(sign * token, (B, N, D))]), **FEW)
    values = figures(found)
    np.testing.assert_allclose(values[0], [0, 1, 1, 1, 0, 0, 0], atol=1e-13)
    pairs = (4 * 3 + 6 * 5 - 2 * 4 * 6) / 90
    size = np.linalg.norm(token)
    residual = math.sqrt(1 - 0.2**2)
    expected = [1 - pairs, pairs, 2, 1, residual, 2 * size, 2 * size * 48 / 90]
    np.testing.assert_allclose(values[1], expected, rtol=1e-12)
    assert np.all(np.asarray(found.clusters.minus("random directions").high) < 0)


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_gap_keeps_its_accuracy(dtype):
    """Equiangular tokens of known cosine: the gap is right where 1 − cos would have lost half its digits or more."""
    for gap, accuracy in ((1e-7, 1e-8),) if dtype == np.float64 else ((1e-3, 1e-3), (1e-5, 1e-2)):
        x = equiangular_tokens(6, 6, 1 - gap, KEY)
        u = jnp.broadcast_to(jnp.pad(x, ((0, 4), (0, 0))), (L, B, N, D)).astype(dtype)
        found = token_clustering(u, mask=np.arange(N) < 6, **FEW)
        assert found.gap.dtype == dtype
        np.testing.assert_allclose(found.gap, gap, rtol=accuracy)


def test_zero_tokens():
    u = states(6)
    u[:, :, 0] = 0
    u[1] = 0
    values = figures(token_clustering(u, threshold=-0.999, **FEW))
    assert np.all(np.isfinite(values))
    np.testing.assert_array_equal(values[1], [1, 0, 1, 0, 0, 0, 0])  # cosine 0 > −0.999: all joined
    expected = []
    for i in range(B):
        unit = u[0, i, 1:] / np.linalg.norm(u[0, i, 1:], axis=1, keepdims=True)
        expected.append(1 - ((unit @ unit.T).sum() - (N - 1)) / (N * (N - 1)))
    assert values[0, 0] == pytest.approx(np.mean(expected), rel=1e-12)


def test_random_directions():
    """Norms kept, cosines those of uniform directions: mean 0, mean square 1/d, mean modulus Γ(d/2)/(√π Γ((d+1)/2))."""
    u = 3 * np.random.default_rng(7).standard_normal((L, 40, N, D))
    mask = np.ones((40, N), bool)
    mask[0, 5:] = False
    v = np.asarray(random_directions(jnp.asarray(u), jnp.asarray(mask), KEY))
    np.testing.assert_allclose(np.linalg.norm(v, axis=-1), np.linalg.norm(u, axis=-1) * mask[None], rtol=1e-12)
    unit = v[:, 1:] / np.linalg.norm(v[:, 1:], axis=-1, keepdims=True)
    cosines = (unit @ np.swapaxes(unit, -1, -2))[..., ~np.eye(N, dtype=bool)].ravel()
    scatter = 1 / math.sqrt(cosines.size / 2)
    assert abs(cosines.mean()) < 4 * scatter and abs((cosines**2).mean() - 1 / D) < 4 * scatter / D
    modulus = gamma(D / 2) / (math.sqrt(math.pi) * gamma((D + 1) / 2))
    assert abs(np.abs(cosines).mean() - modulus) < 4 * scatter


def test_effective_rank():
    assert float(effective_rank(jnp.array([2.0, 2, 2, 0]))) == pytest.approx(3, rel=1e-14)
    assert float(effective_rank(jnp.array([5.0, 0, 0]))) == 1
    assert float(effective_rank(jnp.array([5.0, -1e-17, 0]))) == 1
    assert float(effective_rank(jnp.zeros(3))) == 0


@pytest.mark.slow
def test_untrained_null_jit_and_vmap():
    u, v = jnp.asarray(states(8)), jnp.asarray(states(9))
    found = token_clustering(u, untrained=v, **FEW)
    other = token_clustering(v, untrained=u, **FEW)
    np.testing.assert_array_equal(found.residual.nulls["untrained"], other.residual)
    assert set(found.residual.nulls) == {"untrained"}
    many = jax.vmap(lambda x: token_clustering(x, untrained=v, **FEW))(jnp.stack([v, u]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=1e-11, atol=1e-13), many, found)


def test_bad_input():
    u = states()
    for options, words in (
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": np.ones(2)}, "threshold"),
        ({"bins": 1}, "bins"),
        ({"level": 2.0}, "level"),
        ({"untrained": u[:1]}, "must match"),
        ({"mask": np.zeros((B, N), bool)}, "no real token"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            token_clustering(u, key=KEY, **options)
