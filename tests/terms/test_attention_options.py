"""Options of attention: grouped heads, windows, caps and scales, in their limits and when they do not fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_twin import MASK, D, H, N, T, build, field, run

from pdejax import DepthVarying, MasterEquation, iid, smooth_random
from pdejax.terms import Attention, RMSNorm, Rotary, attend


def same_weights(term, other):
    """`other` with the arrays of `term` that fit it."""
    names = ("wq", "wk", "wv", "wo", "bq", "bk", "bv", "bo")
    return eqx.tree_at(lambda m: [getattr(m, name) for name in names], other, [getattr(term, name) for name in names])


def test_groups_are_repeated_heads(getkey):
    """Heads that share keys and values are heads with equal weights, to the last bit of the certificates."""
    shared = build(getkey(), heads=4, kv_heads=2, bias=True, rotary=10.0, causal=True)
    full = build(getkey(), heads=4, bias=True, rotary=10.0, causal=True)
    names = ("wk", "wv", "bk", "bv")
    repeated = [jnp.asarray(np.repeat(getattr(shared, name), 2, axis=-2)) for name in names]
    full = eqx.tree_at(lambda m: [getattr(m, name) for name in names], full, repeated)
    full = eqx.tree_at(lambda m: (m.wq, m.wo, m.bq, m.bo), full, (shared.wq, shared.wo, shared.bq, shared.bo))
    (du, maps), (expected, others) = (run(term, field(), MASK) for term in (shared, full))
    np.testing.assert_allclose(du, expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(maps, others, rtol=1e-13)
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
    (du, maps), (expected, others) = (run(one, field(), MASK) for one in (term, plain))
    np.testing.assert_allclose(du, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(maps, others, rtol=1e-9)


def test_a_window_reaches_so_far(getkey):
    """Tokens beyond it are not felt at all; one step inside it they are."""
    u = np.asarray(field())
    for causal, seen in ((True, (3, 4, 5)), (False, (1, 2, 3, 4, 5))):
        term = build(getkey(), window=3, causal=causal)
        moved, plain = (np.asarray(run(term, v)[0]) for v in (u + (np.arange(N) == 3)[:, None], u))
        change = np.abs(moved - plain).max(axis=1)
        assert {int(i) for i in np.flatnonzero(change)} == set(seen)


def test_layers_of_one_stack_may_differ_in_their_window(getkey):
    """A window is a whole number that a stack of layers keeps as it is, of every kind of depth."""
    terms = [build(getkey(), window=window, causal=True) for window in (2, N)]
    layers = [MasterEquation(interaction=term) for term in terms]
    u = field()
    stacked = DepthVarying.from_layers(layers, 2.0)
    call = eqx.filter_jit(lambda field, t: field(t, u, None))
    for layer, t in zip(layers, (0.5, 1.5), strict=True):
        np.testing.assert_allclose(call(stacked, t), call(layer, t), rtol=1e-13)
    at = eqx.filter_jit(lambda varying, t: varying.at(t).interaction.window)
    for kind in ("linear", "cubic"):
        smooth = DepthVarying.from_layers(layers, 2.0, kind)
        for layer, t in zip(layers, (0.5, 1.5), strict=True):  # at the knots
            np.testing.assert_allclose(call(smooth, t), call(layer, t), rtol=1e-10, atol=1e-12)
        # Between them, and beyond: the window of the layer whose depth it is.
        for t, window in ((-0.1, 2), (0.99, 2), (1.01, N), (2.5, N)):
            assert int(at(smooth, t)) == window
    waves = smooth_random(layers[0], 1.0, key=getkey(), amplitude=0.0)
    np.testing.assert_allclose(call(waves, 0.3), call(layers[0], 0.3), rtol=1e-12)


def test_random_layers_of_grouped_heads(getkey):
    def make(key):
        return MasterEquation(Attention(D, 4, kv_heads=2, window=3, norm_q=RMSNorm(2), key=key))

    found = iid(make, 3, key=getkey())
    assert found.layer(0).interaction.wk.shape == (D, 2, 2) and found.stacked.interaction.window.shape == (3,)
    assert np.isfinite(eqx.filter_jit(found)(0.5, field(), None)).all()
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
        (
            {"rotary": 10.0, "kernel": "uniform"},
            "rotary needs a kernel 'softmax' or 'l2' or 'linear', not kernel='unif",
        ),
        ({"implementation": "dense", "kernel": "linear"}, "implementation needs a kernel 'softmax' or 'l2', not"),
        ({"alibi": jnp.array([1.0, jnp.nan])}, "Attention: alibi has 1 NaN or infinite entries of 2"),
        ({"alibi": jnp.array([1.0, jnp.inf])}, "Attention: alibi has 1 NaN or infinite entries of 2"),
        ({"weights": jnp.array([1.0, jnp.inf])}, "Attention: weights must all be positive and finite"),
    ],
)
def test_bad_options(options, words, getkey):
    with pytest.raises(ValueError, match=words):
        Attention(D, H, key=getkey(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"logit_scale": 0.7},
        {"logit_cap": 2.0},
        {"causal": True},
        {"leak": True},
        {"kernel": "l2"},
        {"rotary": 10.0},
        {"norm": RMSNorm(D, eps=1e-3)},
        {"implementation": "dense"},
        {"window": 3},
        {"alibi": jnp.ones(H)},
        {"kv_heads": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_layers_that_differ_in_an_option_do_not_stack(options, getkey):
    """What is no array cannot vary over depth: one layer must not silently decide for all."""
    layers = [MasterEquation(interaction=build(getkey(), **one)) for one in ({"norm": RMSNorm(D)}, options)]
    for kind in ("constant", "linear", "cubic"):
        with pytest.raises(ValueError, match="same structure"):
            DepthVarying.from_layers(layers, 2.0, kind)


@pytest.mark.parametrize("name", ["logit_scale", "logit_cap"])
def test_numbers_of_numpy_do_not_raise_the_precision(name):
    """They are kept as numbers of Python, whose type bends to that of the field, and compile nothing anew."""
    term, same = (Attention(D, H, key=jax.random.key(0), **{name: value}) for value in (np.float64(0.8), 0.8))
    assert type(getattr(term, name)) is float and jax.tree.structure(term) == jax.tree.structure(same)
    single, q = jnp.zeros((N, D), jnp.float32), jnp.zeros((4, H, 2), jnp.float32)
    du, maps = jax.eval_shape(lambda u: (term(T, u, None), term.weights(u)), single)
    assert du.dtype == maps.dtype == jnp.float32
    assert jax.eval_shape(lambda q: attend(q, q, q, **{name: np.float64(0.8)}), q).dtype == jnp.float32


@pytest.mark.bad_input  # a runtime type checker takes no number of NumPy for an int
def test_passes_are_kept_as_a_number_of_python(getkey):
    stacked = DepthVarying.from_layers([MasterEquation(build(getkey()))] * 2, 1.0).stacked
    found = DepthVarying(stacked, np.float64(1.0), passes=np.int64(2))
    assert (
        type(found.passes) is type(found.size) is int
        and type(found.t1) is float
        and (found.passes, found.size) == (2, 4)
    )
