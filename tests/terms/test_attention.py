"""Attention against a loop over queries, keys and heads in NumPy, and in its limits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_twin import MASK, WEIGHTS, D, H, N, T, build, field, run, twin

from pdejax.terms import Attention, FieldArgs, LayerNorm, RMSNorm, Rotary

# Every option at least once alone, and in the company in which it could go wrong.
CASES = {
    "softmax": {},
    "leak": {"leak": True, "strength": 0.7},
    "linear": {"kernel": "linear"},
    "uniform": {"kernel": "uniform", "strength": -1.5},
    "l2": {"kernel": "l2"},
    "causal": {"causal": True},
    "l2-causal-bias": {"kernel": "l2", "causal": True, "bias": True},
    "bias": {"bias": True},
    "rotary": {"rotary": 100.0},
    "rotary-causal": {"rotary": 10000.0, "causal": True},
    "rotary-linear": {"rotary": 50.0, "kernel": "linear", "bias": True},
    "weights": {"weights": WEIGHTS},
    "weights-linear": {"weights": WEIGHTS, "kernel": "linear"},
    "weights-uniform": {"weights": WEIGHTS, "kernel": "uniform"},
    "weights-l2": {"weights": WEIGHTS, "kernel": "l2"},
    "weights-causal": {"weights": WEIGHTS, "causal": True},
    "norms": {"norm": LayerNorm(D, eps=1e-3), "norm_out": RMSNorm(D, eps=1e-2), "leak": True, "strength": 0.4},
    "all": {
        **{"leak": True, "strength": 1.3, "causal": True, "weights": WEIGHTS, "rotary": 30.0, "bias": True},
        **{"norm": RMSNorm(D), "norm_out": LayerNorm(D)},
    },
    "groups": {"heads": 4, "kv_heads": 2, "bias": True, "causal": True},
    "groups-l2": {"heads": 4, "kv_heads": 2, "kernel": "l2", "bias": "qkv"},
    "groups-linear": {"heads": 4, "kv_heads": 1, "kernel": "linear", "rotary": 50.0},
    "groups-uniform": {"heads": 4, "kv_heads": 2, "kernel": "uniform", "bias": True, "weights": WEIGHTS},
    "window": {"window": 3},
    "window-causal": {"window": 2, "causal": True, "kv_heads": 1, "weights": WEIGHTS},
    "alibi": {"alibi": jnp.array([0.5, 0.0625]), "causal": True},
    "alibi-l2": {"alibi": jnp.array([0.3, 0.1]), "kernel": "l2", "window": 4},
    "capped": {"logit_cap": 0.7, "logit_scale": 1.4, "weights": WEIGHTS, "bias": True},
    "norms of heads": {"norm_q": RMSNorm(4, eps=1e-3), "norm_k": LayerNorm(4, eps=1e-2), "bias": True, "rotary": 20.0},
    "norms of all heads": {"norm_q": LayerNorm(D, eps=1e-2), "norm_k": RMSNorm(4, eps=1e-3), "kv_heads": 1},
    "norm of keys, l2": {"norm_k": RMSNorm(D, eps=1e-3), "kernel": "l2", "logit_scale": 0.3},
    "partial rotary": {"rotary": Rotary(6, 30.0).yarn(4.0, 5, fast=2.0, slow=0.2), "heads": 1},
    "everything": {
        **{
            "heads": 4,
            "head_dim": 6,
            "kv_heads": 2,
            "causal": True,
            "window": 5,
            "alibi": jnp.array([0.4, 0.2, 0.1, 0.05]),
        },
        **{"rotary": Rotary(4, 20.0).linear(3.0), "logit_cap": 2.0, "logit_scale": 0.9, "bias": "qkv", "leak": True},
        **{"norm": RMSNorm(D), "norm_q": RMSNorm(6), "norm_k": RMSNorm(12), "weights": WEIGHTS, "strength": 0.8},
    },
}


# With padding these, which have the options of the others in company; without it the others.
MASKED = (
    *("linear", "l2-causal-bias", "rotary-causal", "weights", "weights-uniform", "weights-l2", "all"),
    *("groups", "groups-linear", "groups-uniform", "window", "alibi", "capped", "everything"),
)


@pytest.mark.parametrize("name, mask", [(name, MASK if name in MASKED else None) for name in CASES])
def test_twin(name, mask, getkey):
    term = build(getkey(), **CASES[name])
    u = field()
    du, maps = run(term, u, mask)
    slow, slow_maps = twin(term, u, mask)
    real = slice(None) if mask is None else np.asarray(mask)  # a padded query's own row carries no meaning
    np.testing.assert_allclose(np.asarray(du)[real], slow[real], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.asarray(maps)[:, real], slow_maps[:, real], rtol=1e-12, atol=1e-15)
    assert np.isfinite(du).all()
    if term.kernel != "linear":
        np.testing.assert_allclose(np.sum(maps, axis=-1)[:, real], 1.0, rtol=1e-14)
    if term.kernel == "uniform":
        np.testing.assert_allclose(maps, np.broadcast_to(maps[:1, :1], maps.shape), rtol=0)


def test_no_args_is_no_mask(getkey):
    term, u = build(getkey()), field()
    np.testing.assert_array_equal(term(T, u, None), term(T, u, FieldArgs()))
    np.testing.assert_allclose(term(T, u, None), term(T, u, FieldArgs(jnp.ones(N, bool))), rtol=1e-13)


@pytest.mark.parametrize("name", ["softmax", "l2", "linear", "uniform", "norms", "causal"])
def test_mask_is_dropping_the_tokens(name, getkey):
    term, u = build(getkey(), **CASES[name]), field()
    real = np.asarray(MASK)
    kept = run(term, np.asarray(u)[real])[0]
    # ... whatever stands in the padding, however large.
    for given in (u, np.where(real[:, None], u, 1e8)):
        np.testing.assert_allclose(np.asarray(run(term, given, MASK)[0])[real], kept, rtol=1e-12, atol=1e-14)


def test_left_padding_of_a_decoder(getkey):
    """Padding in front shifts all positions alike, which rotary attention cannot see, and leaves the first rows no key."""
    term, u = build(getkey(), causal=True, rotary=30.0, bias=True), field()
    du, maps = run(term, u, np.arange(N) >= 2)
    assert np.isfinite(du).all() and np.isfinite(maps).all()
    np.testing.assert_allclose(du[2:], run(term, np.asarray(u)[2:])[0], rtol=1e-11, atol=1e-13)


def test_weighted_mask_is_dropping_tokens_and_weights(getkey):
    key, u, real = getkey(), field(), np.asarray(MASK)
    for kernel in ("softmax", "linear"):
        term = build(key, kernel=kernel, weights=WEIGHTS)
        short = build(key, kernel=kernel, weights=WEIGHTS[MASK])
        kept = run(short, np.asarray(u)[real])[0]
        np.testing.assert_allclose(np.asarray(run(term, u, MASK)[0])[real], kept, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["softmax", "l2", "linear", "uniform", "bias", "norms"])
def test_permutation_equivariance(name, getkey):
    term, u = build(getkey(), **CASES[name]), field()
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    found, plain = (np.asarray(run(term, v)[0]) for v in (np.asarray(u)[order], u))
    np.testing.assert_allclose(found, plain[order], rtol=1e-12, atol=1e-14)


def test_causal_tokens_do_not_see_the_future(getkey):
    term, u = build(getkey(), causal=True, rotary=10.0, bias=True), field()
    before, after = (np.asarray(run(term, v)[0]) for v in (u, np.asarray(u) + 3.0 * (np.arange(N) >= 4)[:, None]))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.all(np.abs(before[4:] - after[4:]).max(axis=1) > 1e-3)
    # The last token sees all: causal and full attention agree on it.
    full = eqx.tree_at(lambda m: m.wq, build(getkey(), rotary=10.0, bias=True), term.wq)
    parts = ("wk", "wv", "wo", "bq", "bk", "bv", "bo")
    full = eqx.tree_at(lambda m: [getattr(m, p) for p in parts], full, [getattr(term, p) for p in parts])
    np.testing.assert_allclose(before[-1], run(full, u)[0][-1], rtol=1e-12)


def test_rotary_depends_on_distance_only(getkey):
    """Equal tokens: the kernel must be constant along diagonals, and not constant across them."""
    term = build(getkey(), rotary=20.0, kernel="linear")
    maps = np.asarray(term.weights(jnp.broadcast_to(field(1), (N, D))))
    np.testing.assert_allclose(maps[:, 1:, 1:], maps[:, :-1, :-1], rtol=1e-12, atol=1e-15)
    assert np.abs(maps[:, 0, 1:] - maps[:, 0, :-1]).max() > 1e-3


def test_one_token_attends_to_itself(getkey):
    """N = 1: every softmax is 1, so A(u) = W_O W_V u."""
    u = field(1)
    for options in ({}, {"kernel": "l2"}, {"kernel": "uniform"}, {"causal": True}, {"rotary": 10.0}):
        term = build(getkey(), **options)
        expected = np.einsum("nd,dhk,hke->ne", u, term.wv, term.wo)
        du, maps = run(term, u)
        np.testing.assert_allclose(du, expected, rtol=1e-12)
        np.testing.assert_array_equal(maps, np.ones((H, 1, 1)))


def test_limits(getkey):
    """Zero queries make attention uniform, huge ones make it pick the largest logit, α = 0 turns it off."""
    u = field()
    term = build(getkey())
    flat = eqx.tree_at(lambda m: m.wq, term, jnp.zeros_like(term.wq))
    uniform = eqx.tree_at(lambda m: (m.wv, m.wo), build(getkey(), kernel="uniform"), (term.wv, term.wo))
    np.testing.assert_allclose(run(flat, u)[0], run(uniform, u)[0], rtol=1e-12)
    mean = np.einsum("d,dhk,hke->e", np.mean(u, axis=0), term.wv, term.wo)
    np.testing.assert_allclose(run(uniform, u)[0], np.broadcast_to(mean, (N, D)), rtol=1e-12)
    sharp = eqx.tree_at(lambda m: m.wq, term, 1e6 * term.wq)
    logits = np.einsum("nd,dhk,me,ehk->hnm", u, term.wq, u, term.wk)
    hard = np.eye(N)[logits.argmax(axis=-1)]
    du, maps = run(sharp, u)
    np.testing.assert_allclose(maps, hard, atol=1e-14)
    np.testing.assert_allclose(du, np.einsum("hnm,md,dhk,hke->ne", hard, u, term.wv, term.wo), rtol=1e-12, atol=1e-12)
    off = eqx.tree_at(lambda m: m.strength, build(getkey(), leak=True), jnp.zeros(()))
    np.testing.assert_array_equal(run(off, u)[0], np.zeros((N, D)))


def test_head_dim_overrides_the_split(getkey):
    term, u = Attention(D, 3, head_dim=5, key=getkey()), field()
    assert term.wq.shape == (D, 3, 5) and term.wo.shape == (3, 5, D)
    np.testing.assert_allclose(run(term, u)[0], twin(term, u)[0], rtol=1e-12, atol=1e-13)


def test_damping(getkey):
    assert float(build(getkey(), leak=True, strength=2.5).damping()) == 2.5
    assert float(build(getkey(), strength=2.5).damping()) == 0.0


@pytest.mark.parametrize("name", ["weights", "weights-linear", "uniform", "l2", "all", "everything"])
def test_float32_stays_float32(name, getkey):
    """float64 weights and coefficients must not raise the precision of a float32 field, nor lower its own."""
    term, u = build(getkey(), **CASES[name]), field()
    du, maps = run(term, np.asarray(u, np.float32), MASK)
    assert du.dtype == maps.dtype == jnp.float32
    np.testing.assert_allclose(du, run(term, u, MASK)[0], rtol=2e-5, atol=2e-6)


def test_large_logits_stay_finite(getkey):
    term, u = build(getkey(), weights=WEIGHTS), np.asarray(field(), np.float32)
    for scale in (1e3, 1e6):
        du, maps = run(term, np.float32(scale) * u, MASK)
        assert np.isfinite(du).all()
        np.testing.assert_allclose(np.sum(maps, axis=-1), 1.0, rtol=1e-6)


def test_transformations(getkey):
    """jit and vmap change nothing; gradients and directional derivatives agree with central differences."""
    term = build(getkey(), **CASES["all"])
    batch = jnp.stack([field(seed=s) for s in range(3)])
    args = FieldArgs(MASK)
    batched = eqx.filter_jit(jax.vmap(lambda u: term(T, u, args)))(batch)
    for u, found in zip(batch, np.asarray(batched), strict=True):
        np.testing.assert_allclose(found, run(term, u, MASK)[0], rtol=1e-12, atol=1e-13)

    arrays, static = eqx.partition(term, eqx.is_inexact_array)
    probe = field(seed=9)

    @jax.jit
    def loss(arrays, u):
        return jnp.sum(probe * eqx.combine(arrays, static)(T, u, args))

    point = (arrays, batch[0])
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: np.asarray(rng.standard_normal(x.shape)), point)
    h = 1e-6
    ahead, behind = (jax.tree.map(lambda p, v, s=s: np.asarray(p) + s * h * v, point, direction) for s in (1, -1))
    difference = float(loss(*ahead) - loss(*behind)) / (2 * h)
    forward = float(jax.jit(lambda p, d: jax.jvp(loss, p, d)[1])(point, direction))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(*point)
    reverse = float(sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction))))
    assert forward == pytest.approx(reverse, rel=1e-11)
    assert forward == pytest.approx(difference, rel=1e-7)
