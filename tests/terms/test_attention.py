"""Attention against a loop over queries, keys and heads in NumPy, against integrals, and in its limits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax import DepthVarying, MasterEquation, iid, smooth_random
from pdejax.solvers import Grid
from pdejax.terms import Attention, FieldArgs, LayerNorm, RMSNorm, Rotary

N, D, H, T = 7, 8, 2, 0.3
WEIGHTS = jnp.array([0.2, 0.1, 0.05, 0.3, 0.15, 0.08, 0.12])
MASK = jnp.array([True, True, False, True, True, False, True])

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


def build(key, **options):
    """Attention with every array random, biases and scales of norms included."""
    term = Attention(D, **{"heads": H} | options, key=key)

    def where(module):
        parts = [module.bq, module.bk, module.bv, module.bo]
        for norm in (module.norm, module.norm_out, module.norm_q, module.norm_k):
            parts += [] if norm is None else [norm.scale, getattr(norm, "bias", None)]
        return [part for part in parts if part is not None]

    random = np.random.default_rng(7)
    return eqx.tree_at(where, term, [x + 0.5 * random.standard_normal(x.shape) for x in where(term)])


def field(n=N, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, D)))


def twin_norm(norm, x):
    centre = np.mean(x) if isinstance(norm, LayerNorm) else 0.0
    shift = np.asarray(norm.bias) if isinstance(norm, LayerNorm) else 0.0
    return np.asarray(norm.scale) * (x - centre) / np.sqrt(np.mean((x - centre) ** 2) + norm.eps) + shift


def twin_turn(x, position, rotary):
    """Features j and j + dim/2 as one complex number, turned by the angle position·f_j; the rest stays."""
    half = len(rotary.frequencies)
    z = rotary.gain * (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * position * np.array(rotary.frequencies))
    return np.concatenate([z.real, z.imag, x[2 * half :]])


def twin_norms(norm, rows):
    """Rows `(heads, dk)` of one token, each head or all of them at once."""
    if norm is None:
        return rows
    if norm.scale.size == rows.shape[1]:
        return np.stack([twin_norm(norm, row) for row in rows])
    return twin_norm(norm, rows.ravel()).reshape(rows.shape)


def twin(term, u, mask=None):
    """(du, maps) with one query, one key and one head at a time."""
    u = np.asarray(u, float)
    n = len(u)
    real = np.ones(n, bool) if mask is None else np.asarray(mask)
    weight = np.ones(n) if term.quadrature is None else np.asarray(term.quadrature)
    heads, dk = term.wq.shape[1:]
    each = heads // term.wk.shape[1]
    scale = 1 / np.sqrt(dk) if term.logit_scale is None else term.logit_scale
    window = n if term.window is None else int(term.window)
    slopes = np.zeros(heads) if term.alibi is None else np.asarray(term.alibi)
    x = [row if term.norm is None else twin_norm(term.norm, row) for row in u]
    maps, out = np.zeros((heads, n, n)), np.zeros_like(u)

    def project(name, row):
        bias, w = getattr(term, "b" + name), np.asarray(getattr(term, "w" + name))
        heads = np.stack([row @ w[:, h] for h in range(w.shape[1])]) + (0.0 if bias is None else np.asarray(bias))
        return twin_norms(getattr(term, "norm_" + name, None), heads)

    every = {name: [project(name, row) for row in x] for name in "qkv"}
    for h in range(heads):
        q, k, v = ([rows[h if name == "q" else h // each] for rows in every[name]] for name in "qkv")
        if term.rotary is not None:
            q, k = ([twin_turn(row, m, term.rotary) for m, row in enumerate(rows)] for rows in (q, k))
        for i in range(n):
            visible = [j for j in range(n) if real[j] and (j <= i or not term.causal) and abs(i - j) < window]
            for j in visible:
                z = scale * (q[i] @ k[j])
                if term.logit_cap is not None:
                    z = term.logit_cap * np.tanh(z / term.logit_cap)
                far = np.exp(-slopes[h] * abs(i - j))
                if term.kernel == "softmax":
                    maps[h, i, j] = weight[j] * far * np.exp(z)
                elif term.kernel == "l2":
                    maps[h, i, j] = weight[j] * far * np.exp(-np.sum((q[i] - k[j]) ** 2) * scale)
                elif term.kernel == "linear":
                    maps[h, i, j] = weight[j] / sum(weight[real]) * z
                else:
                    maps[h, i, j] = weight[j] / sum(weight[real])
            if term.kernel in ("softmax", "l2") and visible:
                maps[h, i] /= sum(maps[h, i])
            for j in visible:
                out[i] += maps[h, i, j] * v[j] @ np.asarray(term.wo)[h]
    if term.bo is not None:
        out = out + np.asarray(term.bo)
    if term.norm_out is not None:
        out = np.stack([twin_norm(term.norm_out, row) for row in out])
    return float(term.strength) * (out - u if term.leak else out), maps


MASKED = (
    *("linear", "l2-causal-bias", "rotary-causal", "weights", "weights-uniform", "weights-l2", "norms", "all"),
    *("groups", "groups-linear", "groups-uniform", "window", "alibi", "capped", "everything"),
)


@pytest.mark.parametrize("name, mask", [(name, None) for name in CASES] + [(name, MASK) for name in MASKED])
def test_twin(name, mask, getkey):
    term = build(getkey(), **CASES[name])
    u = field()
    du, maps = term(T, u, FieldArgs(mask)), term.weights(u, mask)
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
    kept = term(T, u[MASK], None)
    np.testing.assert_allclose(term(T, u, FieldArgs(MASK))[MASK], kept, rtol=1e-12, atol=1e-14)
    # ... whatever stands in the padding, however large.
    spoilt = jnp.where(MASK[:, None], u, 1e8)
    np.testing.assert_allclose(term(T, spoilt, FieldArgs(MASK))[MASK], kept, rtol=1e-12, atol=1e-14)


def test_left_padding_of_a_decoder(getkey):
    """Padding in front shifts all positions alike, which rotary attention cannot see, and leaves the first rows no key."""
    term, u = build(getkey(), causal=True, rotary=30.0, bias=True), field()
    mask = jnp.arange(N) >= 2
    du = term(T, u, FieldArgs(mask))
    assert np.isfinite(du).all() and np.isfinite(term.weights(u, mask)).all()
    np.testing.assert_allclose(du[2:], term(T, u[2:], None), rtol=1e-11, atol=1e-13)


def test_weighted_mask_is_dropping_tokens_and_weights(getkey):
    key, u = getkey(), field()
    for kernel in ("softmax", "linear"):
        term = build(key, kernel=kernel, weights=WEIGHTS)
        short = build(key, kernel=kernel, weights=WEIGHTS[MASK])
        np.testing.assert_allclose(term(T, u, FieldArgs(MASK))[MASK], short(T, u[MASK], None), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["softmax", "l2", "linear", "uniform", "bias", "norms"])
def test_permutation_equivariance(name, getkey):
    term, u = build(getkey(), **CASES[name]), field()
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    np.testing.assert_allclose(term(T, u[order], None), term(T, u, None)[order], rtol=1e-12, atol=1e-14)


def test_causal_tokens_do_not_see_the_future(getkey):
    term, u = build(getkey(), causal=True, rotary=10.0, bias=True), field()
    before = term(T, u, None)
    after = term(T, u.at[4:].add(3.0), None)
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.all(np.abs(before[4:] - after[4:]).max(axis=1) > 1e-3)
    # The last token sees all: causal and full attention agree on it.
    full = eqx.tree_at(lambda m: m.wq, build(getkey(), rotary=10.0, bias=True), term.wq)
    parts = ("wk", "wv", "wo", "bq", "bk", "bv", "bo")
    full = eqx.tree_at(lambda m: [getattr(m, p) for p in parts], full, [getattr(term, p) for p in parts])
    np.testing.assert_allclose(before[-1], full(T, u, None)[-1], rtol=1e-12)


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
        np.testing.assert_allclose(term(T, u, None), expected, rtol=1e-12)
        np.testing.assert_array_equal(term.weights(u), np.ones((H, 1, 1)))


def test_limits(getkey):
    """Zero queries make attention uniform, huge ones make it pick the largest logit, α = 0 turns it off."""
    u = field()
    term = build(getkey())
    flat = eqx.tree_at(lambda m: m.wq, term, jnp.zeros_like(term.wq))
    uniform = eqx.tree_at(lambda m: (m.wv, m.wo), build(getkey(), kernel="uniform"), (term.wv, term.wo))
    np.testing.assert_allclose(flat(T, u, None), uniform(T, u, None), rtol=1e-12)
    mean = np.einsum("d,dhk,hke->e", np.mean(u, axis=0), term.wv, term.wo)
    np.testing.assert_allclose(uniform(T, u, None), np.broadcast_to(mean, (N, D)), rtol=1e-12)
    sharp = eqx.tree_at(lambda m: m.wq, term, 1e6 * term.wq)
    logits = np.einsum("nd,dhk,me,ehk->hnm", u, term.wq, u, term.wk)
    hard = np.eye(N)[logits.argmax(axis=-1)]
    np.testing.assert_allclose(sharp.weights(u), hard, atol=1e-14)
    np.testing.assert_allclose(
        sharp(T, u, None), np.einsum("hnm,md,dhk,hke->ne", hard, u, term.wv, term.wo), rtol=1e-12, atol=1e-12
    )
    off = eqx.tree_at(lambda m: m.strength, build(getkey(), leak=True), jnp.zeros(()))
    np.testing.assert_array_equal(off(T, u, None), np.zeros((N, D)))


def test_head_dim_overrides_the_split(getkey):
    term, u = Attention(D, 3, head_dim=5, key=getkey()), field()
    assert term.wq.shape == (D, 3, 5) and term.wo.shape == (3, 5, D)
    np.testing.assert_allclose(term(T, u, None), twin(term, u)[0], rtol=1e-12, atol=1e-13)


def same_weights(term, other):
    """`other` with the arrays of `term` that fit it."""
    names = ("wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo")
    return eqx.tree_at(lambda m: [getattr(m, name) for name in names], other, [getattr(term, name) for name in names])


def test_groups_are_repeated_heads(getkey):
    """Heads that share keys and values are heads with equal weights, to the last bit of the certificates."""
    shared = build(getkey(), heads=4, kv_heads=2, bias=True, rotary=10.0, causal=True)
    full = build(getkey(), heads=4, bias=True, rotary=10.0, causal=True)
    names = ("wk", "wv", "bk", "bv")
    repeated = [jnp.repeat(getattr(shared, name), 2, axis=-2) for name in names]
    full = eqx.tree_at(lambda m: [getattr(m, name) for name in names], full, repeated)
    full = eqx.tree_at(lambda m: (m.wq, m.wo, m.bq, m.bo), full, (shared.wq, shared.wo, shared.bq, shared.bo))
    u = field()
    np.testing.assert_allclose(shared(T, u, FieldArgs(MASK)), full(T, u, FieldArgs(MASK)), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(shared.weights(u), full.weights(u), rtol=1e-13)
    for norm in ("token_max", "frobenius"):
        assert float(shared.lipschitz(2.0, N, norm)) == float(full.lipschitz(2.0, N, norm))
    assert shared.growth(N) == full.growth(N)


@pytest.mark.parametrize(
    "options",
    [
        {"window": N, "causal": True},
        {"window": N},
        {"logit_cap": 1e9},
        {"logit_scale": (D / H) ** -0.5},
        {"alibi": jnp.zeros(H)},
        {"rotary": Rotary(D // H, 10.0).linear(1e12)},
        {"kv_heads": H},
    ],
    ids=lambda options: ", ".join(options),
)
def test_options_in_their_limits_change_nothing(options, getkey):
    plain = build(getkey(), bias=True, causal=options.get("causal", False))
    term = same_weights(plain, build(getkey(), bias=True, **options))
    u = field()
    np.testing.assert_allclose(term(T, u, FieldArgs(MASK)), plain(T, u, FieldArgs(MASK)), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(term.weights(u), plain.weights(u), rtol=1e-9)


def test_a_window_reaches_so_far(getkey):
    """Tokens beyond it are not felt at all; one step inside it they are."""
    u = field()
    for causal, seen in ((True, (3, 4, 5)), (False, (1, 2, 3, 4, 5))):
        term = build(getkey(), window=3, causal=causal)
        change = np.abs(term(T, u.at[3].add(1.0), None) - term(T, u, None)).max(axis=1)
        assert {int(i) for i in np.flatnonzero(change)} == set(seen)


def test_layers_of_one_stack_may_differ_in_their_window(getkey):
    """A window is a whole number that a stack of layers keeps as it is, of every kind of depth."""
    terms = [build(getkey(), window=window, causal=True) for window in (2, N)]
    layers = [MasterEquation(interaction=term) for term in terms]
    u = field()
    stacked = DepthVarying.from_layers(layers, 2.0)
    for layer, t in zip(layers, (0.5, 1.5), strict=True):
        np.testing.assert_allclose(stacked(t, u, None), layer(t, u, None), rtol=1e-13)
    for kind in ("linear", "cubic"):  # at the knots
        smooth = DepthVarying.from_layers(layers, 2.0, kind)
        np.testing.assert_allclose(smooth(0.5, u, None), layers[0](0.5, u, None), rtol=1e-10, atol=1e-12)
    waves = smooth_random(layers[0], 1.0, key=getkey(), amplitude=0.0)
    np.testing.assert_allclose(waves(0.3, u, None), layers[0](0.3, u, None), rtol=1e-12)


def test_random_layers_of_grouped_heads(getkey):
    def make(key):
        return MasterEquation(Attention(D, 4, kv_heads=2, window=3, norm_q=RMSNorm(2), key=key))

    found = iid(make, 3, key=getkey())
    assert found.layer(0).interaction.wk.shape == (D, 2, 2) and found.stacked.interaction.window.shape == (3,)
    assert np.isfinite(found(0.5, field(), None)).all()
    assert not found.couples_neighbours(N)
    found.check((N, D))
    with pytest.raises(ValueError, match="width dim=8, but the field has 9 features"):
        found.check((N, D + 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_heads": 3}, r"kv_heads=3 does not divide heads=2. Choose kv_heads from \[1, 2\]"),
        ({"kv_heads": 0}, "kv_heads=0 must be an integer of at least 1"),
        ({"window": 0}, "window=0 must be an integer in 1"),
        ({"window": 3, "kernel": "uniform"}, "window needs a kernel 'softmax' or 'l2', not kernel='uniform'"),
        ({"alibi": jnp.ones(2), "kernel": "linear"}, "alibi needs a kernel 'softmax' or 'l2'"),
        ({"logit_cap": 2.0, "kernel": "l2"}, "logit_cap needs a kernel 'softmax', not kernel='l2'"),
        ({"logit_scale": 2.0, "kernel": "uniform"}, "logit_scale needs a kernel 'softmax' or 'l2' or 'linear'"),
        ({"logit_cap": 0.0}, "logit_cap=0.0 must be one finite number > 0"),
        ({"logit_scale": -1.0}, "logit_scale=-1.0 must be one finite number > 0"),
        ({"alibi": jnp.ones(3)}, r"alibi has shape \(3,\); it must be \(2,\), one slope per head"),
        ({"norm_q": RMSNorm(3)}, "norm_q has width 3; it must be 4, to normalize each head, or 8"),
        ({"norm_k": RMSNorm(8), "kv_heads": 1}, "norm_k has width 8; it must be 4, to normalize each head, or 4"),
        ({"rotary": Rotary(6)}, "rotary turns 6 features, but a head has dk=4"),
        ({"rotary": 10.0, "head_dim": 3}, "dk=3 must be even"),
        ({"bias": "k"}, "bias='k' must be"),
    ],
)
def test_bad_options(options, words, getkey):
    with pytest.raises(ValueError, match=words):
        Attention(D, H, key=getkey(), **options)


def test_damping(getkey):
    assert float(build(getkey(), leak=True, strength=2.5).damping()) == 2.5
    assert float(build(getkey(), strength=2.5).damping()) == 0.0


@pytest.mark.parametrize("name", ["weights", "weights-linear", "uniform", "l2", "all", "everything"])
def test_float32_stays_float32(name, getkey):
    """float64 weights and coefficients must not raise the precision of a float32 field, nor lower its own."""
    term, u = build(getkey(), **CASES[name]), field()
    single = u.astype(jnp.float32)
    du, maps = term(T, single, FieldArgs(MASK)), term.weights(single, MASK)
    assert du.dtype == maps.dtype == jnp.float32
    np.testing.assert_allclose(du, term(T, u, FieldArgs(MASK)), rtol=2e-5, atol=2e-6)


def test_large_logits_stay_finite(getkey):
    term, u = build(getkey(), weights=WEIGHTS), field().astype(jnp.float32)
    for scale in (1e3, 1e6):
        assert np.isfinite(term(T, scale * u, FieldArgs(MASK))).all()
        np.testing.assert_allclose(np.sum(term.weights(scale * u, MASK), axis=-1), 1.0, rtol=1e-6)


def test_transformations(getkey):
    """jit and vmap change nothing; gradients and directional derivatives agree with central differences."""
    term = build(getkey(), **CASES["all"])
    batch = jnp.stack([field(seed=s) for s in range(3)])
    args = FieldArgs(MASK)
    one_by_one = jnp.stack([term(T, u, args) for u in batch])
    batched = eqx.filter_jit(jax.vmap(lambda u: term(T, u, args)))(batch)
    np.testing.assert_allclose(batched, one_by_one, rtol=1e-12, atol=1e-13)

    arrays, static = eqx.partition(term, eqx.is_inexact_array)
    probe = field(seed=9)

    @jax.jit
    def loss(arrays, u):
        return jnp.sum(probe * eqx.combine(arrays, static)(T, u, args))

    point = (arrays, batch[0])
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), point)
    h = 1e-6
    ahead, behind = (jax.tree.map(lambda p, v, s=s: p + s * h * v, point, direction) for s in (1, -1))
    difference = float(loss(*ahead) - loss(*behind)) / (2 * h)
    forward = float(jax.jvp(loss, point, direction)[1])
    gradient = jax.grad(loss, argnums=(0, 1))(*point)
    products = jax.tree.map(lambda g, v: jnp.sum(g * v), gradient, direction)
    reverse = float(sum(jax.tree.leaves(products)))
    assert forward == pytest.approx(reverse, rel=1e-11)
    assert forward == pytest.approx(difference, rel=1e-7)


# --- The sum over keys as an integral -----------------------------------------------------------------------


def smooth(x):
    """A field that does not vanish at the ends, (n, D)."""
    modes = [np.sin(3 * x + 0.3), np.cos(2 * x), x**2, np.exp(-x), x, 1 + 0 * x, np.sin(5 * x), np.cos(4 * x + 1)]
    return np.stack(modes, axis=1)


def periodic(x):
    return np.stack([np.sin(2 * np.pi * (1 + k % 3) * x + k) for k in range(D)], axis=1)


def integral(term, function, x):
    """A(u)(x) = Σ_h W_O ∫ K(x, y) W_V u(y) dy by 200 Gauss–Legendre points."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    y, w = 0.5 * (nodes + 1), 0.5 * weights
    q, k = (np.einsum("nd,dhk->nhk", u, p) for u, p in ((function(x), term.wq), (function(y), term.wk)))
    kernel = w * np.exp(np.einsum("ihk,jhk->hij", q, k) / np.sqrt(q.shape[-1]))
    kernel = kernel / kernel.sum(axis=-1, keepdims=True)
    return np.einsum("hij,jd,dhk,hke->ie", kernel, function(y), term.wv, term.wo)


def spatial_orders(make, points, function, key):
    errors = []
    for n in (32, 64, 128):
        term, x = make(n, key), np.asarray(points(n))
        errors.append(np.abs(term(T, jnp.asarray(function(x)), None) - integral(term, function, x)).max())
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:])), errors


def trapezoid(n):
    return np.concatenate([[0.5], np.ones(n - 2), [0.5]]) / (n - 1)


def clustered(n):
    return np.linspace(0, 1, n) ** 2


def clustered_weights(n):
    return np.gradient(clustered(n)) * np.concatenate([[0.5], np.ones(n - 2), [0.5]])


QUADRATURES = {
    "neumann": (lambda n: Grid(n).points, lambda n: {"grid": Grid(n)}, 2),
    "dirichlet": (lambda n: Grid(n, "dirichlet").points, lambda n: {"grid": Grid(n, "dirichlet")}, 2),
    "dirichlet-equal-weights": (lambda n: Grid(n, "dirichlet").points, lambda n: {}, 1),
    "ends-included": (lambda n: np.linspace(0, 1, n), lambda n: {"weights": jnp.asarray(trapezoid(n))}, 2),
    "ends-equal-weights": (lambda n: np.linspace(0, 1, n), lambda n: {}, 1),
    "clustered-equal-weights": (clustered, lambda n: {}, 0),
}


@pytest.mark.parametrize("name", QUADRATURES)
def test_order_in_space(name, getkey):
    points, options, order = QUADRATURES[name]
    orders, errors = spatial_orders(lambda n, key: Attention(D, H, key=key, **options(n)), points, smooth, getkey())
    assert min(errors) > 1e-12
    np.testing.assert_allclose(orders, order, atol=0.15)


def test_spectral_in_space(getkey):
    """Periodic fields on the periodic grid, and Gauss–Legendre weights, reach rounding with few tokens."""
    key = getkey()
    x = Grid(48, "periodic").points
    term = Attention(D, H, key=key, grid=Grid(48, "periodic"))
    np.testing.assert_allclose(
        term(T, jnp.asarray(periodic(np.asarray(x))), None), integral(term, periodic, x), atol=1e-10
    )
    nodes, weights = np.polynomial.legendre.leggauss(16)
    x = 0.5 * (nodes + 1)
    term = Attention(D, H, key=key, weights=jnp.asarray(0.5 * weights))
    np.testing.assert_allclose(term(T, jnp.asarray(smooth(x)), None), integral(term, smooth, x), atol=1e-10)
