"""Agreement of attention maps against SciPy, exact means over orders, e^{−s²} and uniform attention."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from scipy.special import softmax

from pdejax.analysis.attention._fidelity import (
    attention_cosine,
    attention_divergence,
    attention_entropy,
    attention_fidelity,
    attention_rollout,
)

L, B, H, N = 2, 3, 2, 5
RNG = np.random.default_rng(0)
MASK = np.ones((B, N), bool)
MASK[1, 3:] = False
FIGURES = ("cosine", "kl", "kl_reverse", "jensen_shannon", "total_variation")


def maps(std, causal=False):
    logits = std * RNG.normal(size=(L, B, H, N, N))
    keys = np.broadcast_to(MASK[None, :, None, None, :], logits.shape)
    keys = keys & np.tril(np.ones((N, N), bool)) if causal else keys
    return softmax(np.where(keys, logits, -1e300), axis=-1)


def spoiled(p):
    """Padded rows and keys hold NaN."""
    real = MASK[None, :, None, :, None] & MASK[None, :, None, None, :]
    return jnp.asarray(np.where(real, p, np.nan))


def slow(p, q):
    """Figures of two rows, by SciPy."""
    return (
        1 - scipy.spatial.distance.cosine(p, q),
        scipy.stats.entropy(p, q),
        scipy.stats.entropy(q, p),
        scipy.spatial.distance.jensenshannon(p, q) ** 2,
        0.5 * np.abs(p - q).sum(),
    )


def slow_mean(p, q, causal=False):
    """Mean figures (layers, H, 5) over sequences of means over real rows."""
    out = np.zeros((L, H, 5))
    for l, h in itertools.product(range(L), range(H)):
        each = []
        for s in range(B):
            real = np.flatnonzero(MASK[s])
            rows = []
            for i in real:
                keys = real[real <= i] if causal else real
                rows.append(slow(p[l, s, h, i][keys], q[l, s, h, i][keys]))
            each.append(np.mean(rows, axis=0))
        out[l, h] = np.mean(each, axis=0)
    return out


P, Q = maps(1.0), maps(0.5)
CP, CQ = maps(1.0, causal=True), maps(0.5, causal=True)


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_figures_by_scipy_beside_uniform_attention(causal):
    p, q = (CP, CQ) if causal else (P, Q)
    found = attention_fidelity(spoiled(p), spoiled(q), mask=jnp.asarray(MASK), causal=causal, resamples=20)
    uniform = np.broadcast_to(MASK[None, :, None, None, :], p.shape).astype(float)
    uniform = uniform * np.tril(np.ones((N, N))) if causal else uniform
    uniform = uniform / uniform.sum(-1, keepdims=True)
    expected, null = slow_mean(p, q, causal), slow_mean(p, uniform, causal)
    for k, name in enumerate(FIGURES):
        record = getattr(found, name)
        assert np.asarray(record.value) == pytest.approx(expected[..., k], rel=1e-10, abs=1e-13), name
        assert np.asarray(record.nulls["uniform"]) == pytest.approx(null[..., k], rel=1e-10, abs=1e-13), name
        assert np.all(np.asarray(record.minus("uniform").low) <= np.asarray(record.minus("uniform").high))
        overall = found.overall[name]
        assert float(overall.minus("uniform")) == pytest.approx(np.mean(expected - null, axis=(0, 1))[k], abs=1e-12)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(found))
    # Of the keys with weight alone: where padding or what comes later has none, its logarithm is no part of the spread.
    spread = [
        [
            np.mean([np.mean([np.var(np.log(row[row > 0])) for row in p[l, s, h][MASK[s]]]) for s in range(B)])
            for h in range(H)
        ]
        for l in range(L)
    ]
    assert np.asarray(found.logit_std) == pytest.approx(np.sqrt(spread), rel=1e-10)


def test_independent_null_is_the_mean_over_all_orders_of_keys():
    p, q = P[:1, :1, :1], Q[:1, :1, :1]
    found = attention_fidelity(jnp.asarray(p), jnp.asarray(q), resamples=20)
    orders = [list(order) for order in itertools.permutations(range(N))]
    rows = [np.mean([slow(p[0, 0, 0, i], q[0, 0, 0, i][order])[0] for order in orders]) for i in range(N)]
    assert float(found.cosine.nulls["independent"].value[0, 0]) == pytest.approx(np.mean(rows), rel=1e-12)
    log = np.log(p[0, 0, 0])
    assert float(found.logit_std[0, 0]) == pytest.approx(math.sqrt(np.mean(np.var(log, axis=1))), rel=1e-12)
    assert float(found.cosine.nulls["gaussian"].value[0, 0]) == pytest.approx(
        np.mean(np.exp(-np.var(log, axis=1))), rel=1e-12
    )


@pytest.mark.parametrize("std", [0.14, 0.7])
def test_independent_softmax_rows_have_the_cosine_of_their_spread(std):
    """C14: at s = 0.14 maps that share nothing have cosine 0.98."""
    logits = std * RNG.normal(size=(2, 1, 1, 700, 700))
    p, q = softmax(logits, axis=-1)[:, None]
    found = attention_fidelity(jnp.asarray(p), jnp.asarray(q), resamples=20)
    expected = math.exp(-(std**2))
    # With n keys a row's second moment is off by this relative variance, which sets the correction of order 1/n.
    off = (math.exp(4 * std**2) - 1) / 700
    figures = (found.cosine, *(found.cosine.nulls[name] for name in ("tokens shuffled", "independent", "gaussian")))
    for figure in figures:
        assert float(figure.value[0, 0]) == pytest.approx(expected, rel=off)
    assert float(found.cosine.nulls["uniform"].value[0, 0]) == pytest.approx(math.exp(-(std**2) / 2), rel=off)
    assert float(found.logit_std[0, 0]) == pytest.approx(std, rel=5e-3)


def test_equal_maps_and_disjoint_rows():
    eye = np.broadcast_to(np.eye(N), (1, 1, N, N))
    other = np.roll(eye, 1, axis=-1)
    same, apart = (attention_fidelity(jnp.asarray(eye), jnp.asarray(q), resamples=20) for q in (eye, other))
    expected = ((1, 0, 0, 0, 0), (0, 30 * math.log(10), 30 * math.log(10), math.log(2), 1))
    for found, figures in zip((same, apart), expected, strict=True):
        for name, figure in zip(FIGURES, figures, strict=True):
            assert float(getattr(found, name).value[0, 0]) == pytest.approx(figure, abs=1e-12), name
    assert np.isnan(float(same.cosine.low[0, 0]))  # one sequence: nothing to resample


def test_primitives_row_by_row_with_gradients():
    p, q = P, Q
    both = jax.jit(
        lambda p, q: (attention_divergence(p, q, jnp.asarray(MASK)), attention_cosine(p, q, jnp.asarray(MASK)))
    )
    divergence, cosine = map(np.asarray, both(p, q))
    for layer, s, head in np.ndindex(divergence.shape):
        rows = [(p[layer, s, head, i], q[layer, s, head, i]) for i in range(N) if MASK[s, i]]
        entropies = [scipy.stats.entropy(a[a > 0], b[a > 0]) if b[a > 0].all() else None for a, b in rows]
        if None not in entropies:
            assert float(divergence[layer, s, head]) == pytest.approx(np.mean(entropies), rel=1e-6)
        near = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows])
        assert float(cosine[layer, s, head]) == pytest.approx(near, rel=1e-12)
    mask = jnp.asarray(MASK)
    one = CP[:1, :1, :1], CQ[:1, :1, :1]
    slope = jax.jit(jax.grad(lambda q: jnp.sum(attention_divergence(jnp.asarray(one[0]), q, mask[:1]))))(one[1])
    assert np.all(np.isfinite(slope))
    expected = np.where(one[0] > 0, -one[0] / np.where(one[1] > 0, one[1], 1), 0) / N
    assert np.asarray(slope) == pytest.approx(np.asarray(expected), rel=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_entropy_by_scipy(causal):
    p = CP if causal else P
    found = attention_entropy(spoiled(p), jnp.asarray(MASK), causal=causal, resamples=20)
    entropy, limit, share = [], [], []
    for s in range(B):
        rows = [i for i in range(N) if MASK[s, i]]
        count = np.array([sum(MASK[s, : i + 1]) if causal else sum(MASK[s]) for i in rows])
        each = np.array([scipy.stats.entropy(p[0, s, 0, i]) for i in rows])
        entropy.append(each.mean())
        limit.append(np.log(count).mean())
        share.append(np.mean([e / math.log(c) for e, c in zip(each, count, strict=True) if c > 1]))
    assert float(found.entropy.value[0, 0]) == pytest.approx(np.mean(entropy), rel=1e-12)
    assert float(found.entropy.nulls["uniform"].value[0, 0]) == pytest.approx(np.mean(limit), rel=1e-12)
    assert float(found.relative.value[0, 0]) == pytest.approx(np.mean(share), rel=1e-12)


def test_entropy_of_uniform_attention_and_of_one_token():
    flat = attention_entropy(jnp.full((1, 1, N, N), 1 / N), resamples=20)
    assert float(flat.relative.value[0, 0]) == pytest.approx(1)
    assert float(flat.entropy.minus("uniform").value[0, 0]) == pytest.approx(0, abs=1e-14)
    alone = attention_entropy(jnp.ones((1, 1, 1, 1)), resamples=20)
    assert float(alone.relative.value[0, 0]) == 1 and float(alone.entropy.value[0, 0]) == 0


@pytest.mark.parametrize("causal", [False, True])
def test_rollout_by_numpy(causal):
    p = CP if causal else P
    found = attention_rollout(spoiled(p), jnp.asarray(MASK), residual=0.3, causal=causal, resamples=20)
    for s in range(B):
        real = np.flatnonzero(MASK[s])
        rolled = np.eye(len(real))
        for l in range(L):
            mixed = p[l, s].mean(0)[np.ix_(real, real)]
            rolled = (0.3 * np.eye(len(real)) + 0.7 * mixed) @ rolled
            assert np.asarray(found.maps[l, s])[np.ix_(real, real)] == pytest.approx(rolled, rel=1e-12)
            assert np.sum(np.asarray(found.maps[l, s])) == pytest.approx(len(real))  # padding is 0
    if not causal:
        keep = np.array([0.3, 0.3**2])
        counts = MASK.sum(1)
        expected = np.mean([keep + (1 - keep) / m for m in counts], axis=0)
        assert np.asarray(found.own.nulls["uniform"]) == pytest.approx(expected, rel=1e-12)


def test_bad_input_and_what_jit_leaves_unchecked():
    p = jnp.asarray(P)
    with pytest.raises(ValueError, match="layer 1, sequence 0, head 0, row 2"):
        attention_fidelity(p.at[1, 0, 0, 2].mul(2.0), p, mask=jnp.asarray(MASK))
    with pytest.raises(ValueError, match="keys j ≤ i"):
        attention_entropy(p, jnp.asarray(MASK), causal=True)
    with pytest.raises(ValueError, match="must be"):
        attention_fidelity(p, p[:1], mask=jnp.asarray(MASK))
    with pytest.raises(ValueError, match="heads, n, n"):
        attention_rollout(p[0, 0, 0])
    with pytest.raises(TypeError, match="int"):
        attention_entropy(jnp.ones((1, 1, 2, 2), int))
    with pytest.raises(ValueError, match=r"residual=1\.5"):
        attention_rollout(p, jnp.asarray(MASK), residual=1.5)
    with pytest.raises(ValueError, match="no real token"):
        attention_fidelity(p, p, mask=jnp.zeros((B, N), bool))
    with pytest.raises(ValueError, match="level=2"):
        attention_fidelity(p, p, level=2)
    zero = jax.jit(lambda p: attention_fidelity(p, p, resamples=20))(jnp.zeros((1, 1, 2, 3, 3)))
    assert float(zero.cosine.value[0, 0]) == 0 and float(zero.logit_std[0, 0]) == 0
