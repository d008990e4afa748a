"""Fidelity of trajectories and correlation of layers against SciPy, slow twins and repeated data."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pdejax.analysis.similarity._measures import linear_cka
from pdejax.analysis.similarity._trajectory import (
    layer_correlation,
    trajectory_fidelity,
)

L, B, N, D = 3, 6, 5, 4
RNG = np.random.default_rng(1)
REFERENCE = np.cumsum(RNG.normal(size=(L, B, N, D)), axis=0) + 2.0
TESTED = np.round(REFERENCE + RNG.normal(size=REFERENCE.shape), 1)  # rounded, so that ranks tie
UNTRAINED = RNG.normal(size=REFERENCE.shape)
MASK = np.ones((B, N), bool)
MASK[1, 3:] = MASK[4, 1:] = False
SCALARS = ("mse", "relative_error", "cosine", "sequence_cosine", "pearson", "spearman")
ALL = (*SCALARS, "cka", "cka_debiased", "procrustes")
RESAMPLES = 40


@pytest.fixture(scope="module")
def report():
    return trajectory_fidelity(
        jnp.asarray(np.where(MASK[None, ..., None], TESTED, np.nan)),  # padding must not be looked at
        jnp.asarray(np.where(MASK[None, ..., None], REFERENCE, 1e9)),
        mask=jnp.asarray(MASK),
        reference_null=jnp.asarray(UNTRAINED),
        resamples=RESAMPLES,
    )


def slow_figures(a, b):
    """By NumPy and SciPy, for lists of sequences (n_s, d)."""
    x, y = np.concatenate(a), np.concatenate(b)
    u, v = x - x.mean(axis=0), y - y.mean(axis=0)
    m, grams = len(x), [(z @ z.T) * (1 - np.eye(len(z))) for z in (u, v)]

    def hsic(k, l):
        """Without bias (Song et al. 2012), of Gram matrices without their diagonals."""
        apart = k.sum() * l.sum() / (m - 1) / (m - 2) - 2 * k.sum(axis=0) @ l.sum(axis=0) / (m - 2)
        return np.sum(k * l) + apart

    def mean(f):
        return np.mean([f(p, q) for p, q in zip(a, b, strict=True)])

    norm = np.linalg.norm
    return {
        "mse": mean(lambda p, q: np.mean((p - q) ** 2)),
        "relative_error": mean(lambda p, q: norm(p - q) / norm(q)),
        "cosine": mean(lambda p, q: np.mean(np.sum(p * q, 1) / norm(p, axis=1) / norm(q, axis=1))),
        "sequence_cosine": mean(lambda p, q: np.sum(p * q) / norm(p) / norm(q)),
        "pearson": scipy.stats.pearsonr(x.ravel(), y.ravel())[0],
        "spearman": scipy.stats.spearmanr(x.ravel(), y.ravel())[0],
        "cka": norm(u.T @ v) ** 2 / norm(u.T @ u) / norm(v.T @ v),
        "cka_debiased": hsic(*grams) / math.sqrt(hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])),
        "procrustes": math.sqrt(2 - 2 * norm(u.T @ v, "nuc") / norm(u) / norm(v)),
    }


def real(u, l):
    return [u[l, s][MASK[s]] for s in range(B)]


def test_figures_of_every_layer_by_scipy(report):
    each = [slow_figures(real(TESTED, l), real(REFERENCE, l)) for l in range(L)]
    null = [slow_figures(real(UNTRAINED, l), real(REFERENCE, l)) for l in range(L)]
    for name in ALL:
        found = report.layers[name]
        expected, against = (np.array([figures[name] for figures in side]) for side in (each, null))
        assert np.asarray(found.value) == pytest.approx(expected, rel=1e-9, abs=1e-12), name
        assert np.asarray(found.nulls["untrained"].value) == pytest.approx(against, rel=1e-9, abs=1e-12), name
        assert np.asarray(found.minus("untrained").value) == pytest.approx(expected - against, rel=1e-9, abs=1e-12)
        assert float(report.overall[name]) == pytest.approx(np.mean(expected), rel=1e-9)
    assert not np.any(np.asarray(report.degenerate))


def test_shuffled_nulls_keep_what_they_keep(report):
    mse, cka = report.layers["mse"], report.layers["cka"]
    # A permutation leaves Σ‖a‖² alone: mse + 2⟨a, b⟩/m is the same; here only that it is another, larger error.
    assert np.all(np.asarray(mse.nulls["tokens shuffled"]) > np.asarray(mse.value))
    assert np.all(np.asarray(report.layers["pearson"].minus("features shuffled")) > 0)
    assert "features shuffled" not in {**cka.nulls, **report.layers["procrustes"].nulls}
    assert np.all(np.asarray(cka.nulls["tokens shuffled"]) < np.asarray(cka.value))
    for name in ALL:
        value = report.layers[name]
        assert np.all(np.asarray(value.low) <= np.asarray(value.value)), name
        assert np.all(np.asarray(value.value) <= np.asarray(value.high)), name


def test_intervals_are_those_of_repeated_sequences(report):
    """The same draws, with sequences really repeated, by the slow figures; ranks, rotation and unbiased CKA apart."""
    _, draw_key = jax.random.split(jax.random.key(0))
    draws = np.asarray(jax.random.randint(draw_key, (RESAMPLES, B), 0, B))
    a, b = real(TESTED, 0), real(REFERENCE, 0)
    found = [slow_figures([a[s] for s in drawn], [b[s] for s in drawn]) for drawn in draws]
    for name in ("mse", "relative_error", "cosine", "sequence_cosine", "pearson"):
        low, high = np.quantile([figures[name] for figures in found], [0.025, 0.975])
        value = report.layers[name]
        assert float(value.low[0]) == pytest.approx(low, rel=1e-9), name
        assert float(value.high[0]) == pytest.approx(high, rel=1e-9), name
    for name in ("spearman", "procrustes"):
        spread = np.std([figures[name] for figures in found])
        value = report.layers[name]
        assert 0.4 < float(value.high[0] - value.low[0]) / (3.9 * spread) < 2.5, name


def test_debiased_cka_of_unrelated_states_is_zero_within_its_interval():
    a, b = (jnp.asarray(RNG.normal(size=(1, 24, 2, 6))) for _ in range(2))
    found = layer_correlation(jnp.concatenate([a, b]), resamples=100)
    cka = found.cka_debiased
    assert float(cka.low[1]) < 0 < float(cka.high[1])
    # Copies counted as pairs would lift the resamples by about 1/2 of the bias; they must lie about the value.
    assert abs(float(cka.low[1] + cka.high[1]) / 2 - float(cka.value[1])) < 0.25 * float(cka.high[1] - cka.low[1])
    assert found.pairs == ((0, 0), (1, 0))
    for name in ("pearson", "spearman", "cosine", "cka_debiased"):
        assert float(getattr(found, name).value[0]) == pytest.approx(1)
        assert abs(float(getattr(found, name).value[1])) < 0.35


@pytest.mark.slow
def test_adjacent_and_same_layer_pairs(report):
    found = layer_correlation(
        jnp.asarray(TESTED), "previous", jnp.asarray(MASK), untrained=jnp.asarray(UNTRAINED), resamples=20
    )
    assert found.pairs == ((1, 0), (2, 1))
    for k, (i, j) in enumerate(found.pairs):
        expected, null = (
            scipy.stats.pearsonr(*(np.concatenate(real(u, m)).ravel() for m in (i, j)))[0] for u in (TESTED, UNTRAINED)
        )
        assert float(found.pearson.value[k]) == pytest.approx(expected, rel=1e-10)
        assert float(found.pearson.nulls["untrained"].value[k]) == pytest.approx(null, rel=1e-10)
    same = layer_correlation(jnp.asarray(TESTED), jnp.asarray(REFERENCE), jnp.asarray(MASK), resamples=20)
    for name in ("pearson", "spearman", "cosine", "cka_debiased"):
        expected = np.asarray(report.layers[name])
        assert np.asarray(getattr(same, name).value) == pytest.approx(expected, rel=1e-10)


def test_other_numbers_of_features_one_sequence_and_jit():
    """One compiled program for three questions: shapes only, intervals missing, values traced."""
    a, b = jnp.asarray(TESTED[:1, 0]), jnp.asarray(REFERENCE[:1, 0, :, :3])
    found = jax.jit(lambda a: trajectory_fidelity(a, b, resamples=20))(a)
    assert set(found.layers) == set(found.overall) == {"cka", "cka_debiased", "procrustes"}
    assert set(found.layers["cka"].nulls) == {"tokens shuffled"}
    expected = linear_cka(a[0], b[0], debiased=True).value
    assert float(found.layers["cka_debiased"].value[0]) == pytest.approx(float(expected), rel=1e-9)
    assert np.isnan(float(found.layers["cka"].low[0]))
    assert np.isnan(float(found.layers["cka"].minus("tokens shuffled").high[0]))
    constant = jax.jit(lambda a: trajectory_fidelity(a, b, resamples=20))(jnp.full_like(a, 0.1))
    assert bool(constant.degenerate[0]) and float(constant.layers["cka"].value[0]) == 0
    assert float(constant.layers["procrustes"].value[0]) == pytest.approx(math.sqrt(2))


def test_bad_input():
    a, b = jnp.asarray(TESTED), jnp.asarray(REFERENCE)
    with pytest.raises(ValueError, match="layers, sequences and tokens must match"):
        trajectory_fidelity(a[:2], b)
    with pytest.raises(ValueError, match="b has values that are not finite"):
        trajectory_fidelity(a, b.at[1, 0, 0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="reference_null has 2 features"):
        trajectory_fidelity(a, b, reference_null=a[..., :2])
    with pytest.raises(ValueError, match="3 real tokens in all"):
        trajectory_fidelity(a[:, 0, :3], b[:, 0, :3])
    with pytest.raises(ValueError, match="resamples=5"):
        layer_correlation(a, resamples=5)
    with pytest.raises(ValueError, match="one layer"):
        layer_correlation(a[:1], "previous")
    with pytest.raises(ValueError, match="equally many"):
        layer_correlation(a, b[..., :2])
    with pytest.raises(ValueError, match="untrained has shape"):
        layer_correlation(a, untrained=a[:2])
