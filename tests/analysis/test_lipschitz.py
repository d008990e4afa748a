"""Lipschitz certificates: never below a Jacobian or a pair of fields, sharp where they say so, clear about bad input."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipschitz_search import NORMS, D, N, check_never_violated, jacobian_norms, randomized, states, worst
from scipy.special import erf, expit

import pdejax as pj
from pdejax.analysis.stability import adversarial_lipschitz, castin_bound, field_lipschitz, sampled_lipschitz
from pdejax.analysis.stability._lipschitz_sampled import random_states
from pdejax.terms._constants import activation_slopes
from pdejax.terms._reaction import ACTIVATIONS

ATTENTIONS = {
    "softmax": {},
    "one head, leak": {"heads": 1, "leak": True, "strength": -1.7},
    "causal, biases": {"causal": True, "bias": True},
    "rotary": {"rotary": 10.0, "bias": True, "head_dim": 4},
    "l2": {"kernel": "l2", "bias": True},
    "l2, rotary": {"kernel": "l2", "bias": True, "rotary": 10.0, "head_dim": 4},
    "linear": {"kernel": "linear", "bias": True, "weights": np.array([0.1, 0.2, 0.5, 0.1, 0.1])},
    "uniform": {"kernel": "uniform", "bias": True, "weights": np.array([0.1, 0.2, 0.5, 0.1, 0.1])},
    "quadrature": {"weights": np.array([0.1, 0.2, 0.5, 0.1, 0.1])},
    "pre-LN": {"norm": pj.LayerNorm(D, eps=0.1), "bias": True},
    "pre-LN, linear": {"norm": pj.LayerNorm(D, eps=0.1), "kernel": "linear"},
    "peri-RMS": {"norm": pj.RMSNorm(D, eps=0.1), "norm_out": pj.RMSNorm(D, eps=0.3)},
    "groups": {"heads": 4, "kv_heads": 2, "bias": True, "causal": True},
    "one group, l2": {"heads": 4, "kv_heads": 1, "kernel": "l2", "bias": True},
    "one group, linear": {"heads": 4, "kv_heads": 1, "kernel": "linear", "bias": "qkv"},
    "one group, uniform": {"heads": 4, "kv_heads": 1, "kernel": "uniform", "bias": True},
    "window, alibi": {"window": 2, "alibi": np.array([3.0, 0.1]), "bias": True},
    "logit scale": {"logit_scale": 3.0, "bias": True},
    "logit scale, linear": {"logit_scale": 3.0, "kernel": "linear", "bias": True},
    # A cap so low that it weighs every key apart, and key biases so large that leaving them out would be seen.
    "cap": {"logit_cap": 0.5, "logit_scale": 2.0, "bias": True},
    "cap, rotary": {"logit_cap": 0.5, "rotary": 10.0, "head_dim": 4, "bias": True},
    "norms of heads": {"norm_q": pj.RMSNorm(2, eps=0.05), "norm_k": pj.LayerNorm(2, eps=0.1), "bias": True},
    "norm of all heads, rotary": {"norm_q": pj.LayerNorm(D, eps=0.1), "rotary": 10.0, "bias": True},
    "norm of keys, l2": {"norm_k": pj.RMSNorm(D, eps=0.05), "kernel": "l2", "bias": True},
    "norms, cap, groups": {
        **{
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 2,
            "norm_q": pj.RMSNorm(8, eps=0.05),
            "norm_k": pj.RMSNorm(2, eps=0.05),
        },
        **{"logit_cap": 1.0, "norm": pj.RMSNorm(D, eps=0.1)},
    },
    "norm of queries, linear": {"norm_q": pj.RMSNorm(2, eps=0.05), "kernel": "linear"},
    "partial rotary": {"rotary": pj.terms.Rotary(2, 10.0).yarn(8.0, 4), "head_dim": 4, "bias": True},
    "rotary gain, linear": {"rotary": pj.terms.Rotary(4, 10.0).yarn(8.0, 4), "head_dim": 4, "kernel": "linear"},
}


def make_attention(name, key):
    options = {"heads": 2, **ATTENTIONS[name]}
    for name in {"weights", "alibi"} & options.keys():
        options[name] = jnp.asarray(options[name])
    term = randomized(pj.Attention(D, key=key, **options), jax.random.fold_in(key, 1))
    if "weights" in options:
        term = eqx.tree_at(lambda a: a.quadrature, term, options["weights"])
    return term


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_certificate_is_never_violated(name):
    for seed, radius in ((0, 0.5), (1, 3.0)):
        check_never_violated(make_attention(name, jax.random.key(seed)), radius)


def test_attention_certificate_with_padding():
    term = make_attention("softmax", jax.random.key(3))
    args = pj.FieldArgs(jnp.array([True, True, False, True, False]))
    local, _ = worst(term, states(2.0)[0], args=args)
    for norm in NORMS:
        assert local[norm] <= field_lipschitz(term, N, 2.0, norm=norm).bound


def test_single_head_certificates_are_the_stated_formulas():
    term = pj.Attention(D, 1, key=jax.random.key(2), strength=0.7)
    wq, wk, wv, wo = (np.asarray(w).reshape(D, D) for w in (term.wq, term.wk, term.wv, term.wo))
    b, m = np.linalg.norm(wq @ wk.T / 2, 2), np.linalg.norm(wv @ wo, 2)
    for radius in (0.3, 2.0, 50.0):
        x = b * radius**2
        token = field_lipschitz(term, N, radius).bound
        frobenius = field_lipschitz(term, N, radius, norm="frobenius").bound
        assert token == pytest.approx(0.7 * m * (1 + 2 * x), rel=1e-13)
        assert frobenius == pytest.approx(0.7 * m * (math.sqrt(N) * (1 + x) + x), rel=1e-13)


E1, EYE, NOTHING = np.diag([1.0, 0.0]), np.eye(2), np.zeros((2, 2))
TURNED = {"rotary": 10.0}
L2 = {"kernel": "l2"}
# Kernel, W_Q, W_K, b_Q, b_K, and the constant on the ball of radius 2 without the summand that the row is about.
SUMMANDS = {
    "keys against the bias of queries": ({}, NOTHING, 0.5 * E1, [20.0, 0.0], [0.0, 0.0], 1.0),
    "l2, keys against themselves": (L2, NOTHING, EYE, [0.0, 0.0], [0.0, 0.0], 1.0),
    "l2, keys against both biases": (L2, NOTHING, 0.2 * E1, [10.0, 0.0], [-10.0, 0.0], 1 + 0.32 / 2**0.5),
    "rotary, queries against the bias of keys": (TURNED, 4 * EYE, NOTHING, [0.0, 0.0], [4.0, 0.0], 1.0),
    "rotary, keys against the bias of queries": (TURNED, NOTHING, 4 * EYE, [4.0, 0.0], [0.0, 0.0], 1.0),
}


@pytest.mark.parametrize("name", SUMMANDS)
def test_no_summand_of_the_attention_certificate_can_be_left_out(name):
    """One head with W_V W_O = 1 on two tokens: the Jacobian at some field exceeds what the other summands give."""
    options, wq, wk, bq, bk, others = SUMMANDS[name]
    term = pj.Attention(2, 1, key=jax.random.key(0), bias=True, **options)
    weights = [
        *(jnp.asarray(w)[:, None] for w in (wq, wk, EYE)),
        jnp.asarray(EYE)[None],
        *map(jnp.asarray, ([bq], [bk])),
    ]
    term = eqx.tree_at(lambda a: (a.wq, a.wk, a.wv, a.wo, a.bq, a.bk), term, weights)
    # Two opposite tokens that the key map or its gradient does not tell apart, and others.
    us = jnp.concatenate(
        [2 * jnp.eye(2)[None, 1:] * jnp.array([[[1.0], [-1.0]]]), random_states(jax.random.key(1), 255, 2, 2, 2.0)]
    )
    local = worst(term, us)[0]["token_max"]
    assert 1.1 * others < local <= field_lipschitz(term, 2, 2.0).bound


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e3), st.floats(1e-3, 1e3), st.integers(1, 10**6))
def test_frobenius_form_is_below_the_published_one(key_query, radius, n):
    x = key_query * radius**2
    ours = math.sqrt(n) * (1 + x) + x
    assert ours <= castin_bound(1.0, key_query, radius, n) * (1 + 1e-12)


def test_attention_certificate_grows_like_the_constant_itself():
    """Tokens (0, R) of one feature and unit weights: ∂f_0/∂u_0 = 1/2 + R²/4, so no constant serves all of space, and the
    certificate's R² cannot be improved to a smaller power."""
    one = jnp.ones((1, 1, 1))
    term = eqx.tree_at(
        lambda a: (a.wq, a.wk, a.wv, a.wo), pj.Attention(1, 1, key=jax.random.key(0)), (one, one, one, one)
    )
    jacobian = jax.jit(jax.jacfwd(lambda u: term(0.0, u, None)))
    for radius in (1.0, 10.0, 100.0):
        slope = float(jacobian(jnp.array([[0.0], [radius]]))[0, 0, 0, 0])
        assert slope == pytest.approx(0.5 + radius**2 / 4, rel=1e-12)
        bound = field_lipschitz(term, 2, radius).bound
        assert slope <= bound <= 8.1 * slope


def test_uniform_attention_certificate_is_attained():
    """W_V W_O = I, one head: u ↦ ū has norm 1 in both norms."""
    eye = jnp.eye(D)
    term = pj.Attention(D, 1, key=jax.random.key(0), kernel="uniform")
    term = eqx.tree_at(lambda a: (a.wv, a.wo), term, (eye[:, None], eye[None]))
    assert [field_lipschitz(term, N, 1.0, norm=norm).bound for norm in NORMS] == pytest.approx([1, 1], rel=1e-14)


SLOPES = {
    "relu": lambda x: (x > 0).astype(float),
    "gelu": lambda x: 0.5 * (1 + erf(x / 2**0.5)) + x * np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5,
    "silu": lambda x: expit(x) * (1 + x * (1 - expit(x))),
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "identity": np.ones_like,
    "gelu_tanh": None,
}


@pytest.mark.parametrize("activation", SLOPES)
def test_activation_slopes_are_the_extremes(activation):
    """Against the slope on a fine grid: above all of it, and no more than its curvature allows."""
    x = np.linspace(-20, 20, 400001)
    low, high = activation_slopes(activation)
    function = ACTIVATIONS[activation]
    exact = SLOPES[activation]
    by_jax = np.asarray(jax.jit(lambda z: jax.jvp(function, (z,), (jnp.ones_like(z),))[1])(jnp.asarray(x)))
    slope = by_jax if exact is None else exact(x)
    if activation != "relu":
        assert np.max(np.abs(slope - by_jax)) < 1e-12
    assert low - 1e-14 <= slope.min() <= low + 1e-8
    assert high - 1e-8 <= slope.max() <= high + 1e-14


@pytest.mark.parametrize("activation", list(SLOPES))
def test_feedforward_certificate(activation):
    key = jax.random.key(4)
    plain = randomized(pj.FeedForward(D, 9, key=key, activation=activation, leak=True, strength=-0.6), key)
    check_never_violated(plain, 4.0)
    if activation == "gelu":
        norm = pj.LayerNorm(D, eps=0.2)
        normed = pj.FeedForward(D, 9, key=key, norm=norm, norm_out=pj.RMSNorm(D, eps=0.2))
        check_never_violated(randomized(normed, key), 4.0)
    low, high = activation_slopes(activation)
    w1, w2 = np.asarray(plain.w1), np.asarray(plain.w2)
    product = max(abs(low), abs(high)) * np.linalg.norm(w1, 2) * np.linalg.norm(w2, 2)
    assert field_lipschitz(plain, N, 4.0).bound <= 0.6 * (product + 1) * (1 + 1e-13)


GATED = {
    **{name: {"activation": name} for name in SLOPES},
    "no biases": {"activation": "silu", "bias": False, "leak": True, "strength": 0.6},
    "norms": {"activation": "silu", "norm": pj.LayerNorm(D, eps=0.2), "norm_out": pj.RMSNorm(D, eps=0.2)},
}


@pytest.mark.parametrize("name", GATED)
def test_gated_certificate(name):
    """It grows with the ball, as the network does: none serves all of space."""
    key = jax.random.key(4)
    term = randomized(pj.FeedForward(D, 9, gate=True, key=key, **GATED[name]), key)
    for radius in (0.3, 4.0):
        check_never_violated(term, radius)
    if name == "no biases":
        small, large = (field_lipschitz(term, N, r).parts["FeedForward"] for r in (1.0, 10.0))
        assert large == pytest.approx(10 * small, rel=1e-12)


def test_gated_identity_certificate_is_attained():
    """One feature, u ↦ u²: slope 2R at the edge of the ball, and growth that nothing linear bounds."""
    one = jnp.ones((1, 1))
    term = pj.FeedForward(1, 1, gate=True, bias=False, activation="identity", key=jax.random.key(0))
    term = eqx.tree_at(lambda r: (r.w1, r.w2, r.wg), term, (one, one, one))
    assert field_lipschitz(term, 2, 3.0).bound == pytest.approx(6.0, rel=1e-14)
    with pytest.raises(ValueError, match="grows quadratically"):
        term.growth(2)
    normed = pj.FeedForward(4, 6, gate=True, norm=pj.RMSNorm(4), activation="silu", key=jax.random.key(0))
    rate, offset = normed.growth(2)
    us = 50 * jax.random.normal(jax.random.key(1), (200, 1, 4))
    assert rate == 0 and float(jnp.linalg.norm(jax.vmap(lambda u: normed(0.0, u, None))(us), axis=-1).max()) <= offset


def test_identity_feedforward_certificate_is_the_matrix_norm():
    term = pj.FeedForward(D, 9, key=jax.random.key(4), activation="identity", strength=2.0)
    assert field_lipschitz(term, N, 1.0).bound == pytest.approx(2 * np.linalg.norm(np.asarray(term.w1 @ term.w2), 2))


def test_layernorm_certificate_is_sharp():
    """Attained at a token of standard deviation σ, across its deviation; globally at a constant token."""
    layer = pj.LayerNorm(D, eps=1e-3)
    across = jnp.array([1.0, 1.0, -1.0, -1.0])
    jacobian = jax.jit(jax.jacfwd(lambda u: layer(u[None])[0]))
    for spread in (0.0, 0.05, 2.0):
        token = 3.0 + spread * jnp.array([1.0, -1.0, 1.0, -1.0])
        attained = float(np.linalg.norm(np.asarray(jacobian(token) @ (across / 2))))
        bound = layer.lipschitz(spread)
        assert bound == pytest.approx(1 / math.sqrt(spread**2 + 1e-3), rel=1e-13)
        assert attained == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("kind", [pj.LayerNorm, pj.RMSNorm])
def test_layernorm_certificate_holds_for_pairs_beyond_a_ball(kind):
    """The domain of tokens that deviate by at least σ is not convex: pairs on opposite sides of it obey the bound too."""
    layer = randomized(kind(D, eps=1e-2), jax.random.key(1))
    spread, radius = 0.5, 5.0
    us = random_states(jax.random.key(2), 400, 1, D, radius, spread)
    assert float(jnp.std(us, axis=-1).min()) >= spread * (1 - 1e-12)
    assert float(jnp.linalg.norm(us, axis=-1).max()) <= radius * (1 + 1e-12)
    evaluate = jax.jit(jax.vmap(layer))
    opposite = -us
    ratio = np.linalg.norm(evaluate(us) - evaluate(opposite), axis=(1, 2)) / np.linalg.norm(us - opposite, axis=(1, 2))
    bound = layer.lipschitz(spread)
    assert 0.2 * bound < ratio.max() <= bound
    scale = float(jnp.max(jnp.abs(layer.scale)))
    assert bound <= scale / math.sqrt(spread**2 + 1e-2) * (1 + 1e-13)


@pytest.mark.slow
def test_lower_bounds_below_the_certificate_and_attained():
    """Both estimates are attained by the product with the direction they return; ascent beats sampling; the sampled
    2-norm is that of the dense Jacobian at its state."""
    term = pj.Attention(2, 1, key=jax.random.key(1))
    jacobian = jax.jit(jax.jacfwd(lambda u: term(0.0, u, None)))
    for norm in NORMS:
        bound = field_lipschitz(term, 6, 2.0, norm=norm).bound
        sampled = sampled_lipschitz(term, (6, 2), 2.0, key=jax.random.key(0), norm=norm, iterations=60)
        raised = adversarial_lipschitz(term, (6, 2), 2.0, key=jax.random.key(0), norm=norm, steps=60)
        for estimate in (sampled, raised):
            dense = np.asarray(jacobian(estimate.state))
            image = np.einsum("ikjl,jl->ik", dense, np.asarray(estimate.direction))
            size = (lambda v: np.linalg.norm(v, axis=1).max()) if norm == "token_max" else np.linalg.norm
            assert estimate.value == pytest.approx(size(image) / size(np.asarray(estimate.direction)), rel=1e-10)
            assert float(jnp.linalg.norm(estimate.state, axis=1).max()) <= 2.0 * (1 + 1e-12)
            exact = jacobian_norms(dense)[norm]
            assert estimate.value <= bound
            if norm == "frobenius":
                assert exact * (1 - 1e-4) <= estimate.value <= exact * (1 + 1e-10)
            else:  # the dual iteration is no worse than one start from the dense singular vectors, but for a little
                assert estimate.value >= 0.98 * exact
        assert raised.value > sampled.value
        if norm == "token_max":
            assert raised.value > 0.5 * bound


def test_estimates_of_a_linear_field_are_its_norm():
    """u ↦ u M: both norms are ‖M‖₂ at every state."""
    base = pj.FeedForward(D, D, key=jax.random.key(0), activation="identity")
    matrix = jax.random.normal(jax.random.key(1), (D, D))
    term = eqx.tree_at(lambda r: (r.w1, r.w2), base, (jnp.eye(D), matrix))
    for norm in NORMS:
        found = sampled_lipschitz(term, (3, D), 1.0, key=jax.random.key(2), norm=norm, samples=4, iterations=200)
        assert found.value == pytest.approx(np.linalg.norm(np.asarray(matrix), 2), rel=1e-6)
