"""Where a Lipschitz certificate must not be that of something simpler, and where there is none: caps, and bad input."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lipschitz_search import NORMS, D, N, worst

import pdejax as pj
from pdejax.analysis.stability import adversarial_lipschitz, castin_bound, field_lipschitz, sampled_lipschitz
from pdejax.terms._constants import activation_slopes


def cap_and_key_bias(cap):
    """Queries that saturate the cap along e₁ and keys with a bias along e₂: slopes along e₂ then differ by the whole bias."""
    one = jnp.eye(2)
    term = pj.Attention(2, 1, key=jax.random.key(0), bias=True, logit_cap=cap, logit_scale=1.0)
    weights = (one[:, None], one[:, None], one[:, None], one[None], jnp.array([[0.0, 30.0]]))
    return eqx.tree_at(lambda a: (a.wq, a.wk, a.wv, a.wo, a.bk), term, weights)


def test_a_capped_certificate_keeps_the_bias_of_keys():
    """A softmax cancels a bias of keys, a cap does not: it weighs keys apart. The true constant is beyond the certificate of
    the same weights without a cap, so that one must not be used, and below that with it."""
    capped, plain = cap_and_key_bias(0.2), cap_and_key_bias(None)
    # A query (x, 0), a key that saturates and one that does not: values in closed form, by NumPy.
    x, c, bias = 1.0, 0.2, 30.0

    def first_token(y):
        """What token (x, y) gets from itself, and from token 0."""
        u = np.array([[x, y], [0.0, 0.0]])
        z = c * np.tanh((u @ u[0] + bias * y) / c)
        p = np.exp(z - z.max())
        return p @ u / p.sum()

    steep = np.linalg.norm(first_token(1e-6) - first_token(-1e-6)) / 2e-6
    state = jnp.array([[x, 0.0], [0.0, 0.0]])[None]
    local, _ = worst(capped, state)
    assert steep <= local["token_max"] * (1 + 1e-6) and steep > 5
    for norm in NORMS:
        bound, without = (field_lipschitz(term, 2, 1.0, norm=norm).bound for term in (capped, plain))
        found = adversarial_lipschitz(capped, (2, 2), 1.0, key=jax.random.key(0), norm=norm, starts=16)
        truth = max(found.value, local[norm])
        assert without < truth <= bound
    assert adversarial_lipschitz(plain, (2, 2), 1.0, key=jax.random.key(0), norm=norm).value <= without


TERMS = {
    "Attention": lambda: pj.Attention(D, 2, key=jax.random.key(0)),
    "FeedForward": lambda: pj.FeedForward(D, 3, key=jax.random.key(0), gate=True),
    "Diffusion": lambda: pj.Diffusion(pj.Grid(N), 0.1),
    "SpatialNorm": pj.SpatialNorm,
    "LayerNormRelaxation": lambda: pj.LayerNormRelaxation(D),
    "LinearDamping": pj.LinearDamping,
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_themselves_refuse_what_is_no_ball(name):
    """An infinite radius, whose bounds would be NaN, or a norm that the term would take for another."""
    term = TERMS[name]()
    assert math.isfinite(float(term.lipschitz(1.0, N)))
    for wrong, words in (
        ({"radius": math.inf}, "radius=inf must be one finite number > 0"),
        ({"radius": math.nan}, "radius=nan must be one finite number > 0"),
        ({"norm": "max"}, "norm='max' must be one of 'token_max', 'frobenius'"),
        ({"spread": -1.0}, "spread=-1.0 must be one finite number ≥ 0"),
        ({"n": 0}, "n=0 must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"{name}.lipschitz: {words}"):
            term.lipschitz(**{"radius": 1.0, "n": N} | wrong)


def test_bad_input_of_certificates():
    term = pj.Attention(D, 2, key=jax.random.key(0))
    grid = pj.Grid(N)
    emergent = pj.EffectiveDiffusion(grid, term, pj.FeedForward(D, 4, key=jax.random.key(1)), jnp.zeros((N, D)))
    quadrature = pj.Attention(D, 2, key=jax.random.key(0), weights=jnp.ones(N))
    broken = eqx.tree_at(lambda r: r.w1, pj.FeedForward(2, 3, key=jax.random.key(0)), jnp.full((2, 3), jnp.nan))
    slopes = eqx.tree_at(
        lambda a: a.alibi, pj.Attention(D, 2, key=jax.random.key(0), alibi=jnp.ones(2)), jnp.full(2, jnp.nan)
    )
    for call, error, words in (
        (lambda: field_lipschitz(term, N, 0.0), ValueError, "radius=0.0 must be one finite number > 0"),
        (lambda: field_lipschitz(term, N, math.inf), ValueError, "radius=inf must be one finite number"),
        (lambda: field_lipschitz(term, N, "1"), TypeError, "radius='1'"),
        (lambda: field_lipschitz(term, 0, 1.0), ValueError, "n=0 must be an integer of at least 1"),
        (lambda: field_lipschitz(term, 2.0, 1.0), TypeError, "n=2.0 must be an integer"),
        (lambda: field_lipschitz(term, N, 1.0, norm="max"), ValueError, "norm='max' must be one of"),
        (lambda: field_lipschitz(term, N, 1.0, spread=-1.0), ValueError, "spread=-1.0 must be one finite number"),
        (lambda: field_lipschitz(pj.LayerNorm(D), N, 1.0), TypeError, "LayerNorm must be a MasterEquation"),
        (lambda: field_lipschitz(quadrature, N + 1, 1.0), ValueError, "quadrature"),
        (lambda: jax.jit(lambda a: field_lipschitz(a, N, 1.0).bound)(term), TypeError, "not inside jit"),
        (lambda: field_lipschitz(broken, N, 1.0), ValueError, "NaN or infinite entries"),
        (lambda: sampled_lipschitz(broken, (3, 2), 1.0, key=jax.random.key(0)), ValueError, "at every state"),
        (lambda: castin_bound(0.0, 1.0, math.inf, N), ValueError, "castin_bound: radius=inf must be one finite number"),
        (lambda: castin_bound(1.0, -1.0, 1.0, N), ValueError, "castin_bound: key_query=-1.0"),
        (lambda: castin_bound(1.0, 1.0, 1.0, 0), ValueError, "castin_bound: n=0"),
        (lambda: field_lipschitz(slopes, N, 1.0), ValueError, "NaN or infinite entries"),
        (lambda: activation_slopes("swish"), ValueError, "'swish' must be one of"),
        (lambda: field_lipschitz(pj.MasterEquation(diffusion=emergent), N, 1.0), ValueError, "EffectiveDiffusion"),
        (lambda: field_lipschitz(pj.MasterEquation(diffusion=pj.Diffusion(grid, 1.0)), 9, 1.0), ValueError, "9"),
        (lambda: sampled_lipschitz(term, (N, D), 1.0, key=jax.random.key(0), samples=0), ValueError, "samples=0"),
        (lambda: sampled_lipschitz(term, N, 1.0, key=jax.random.key(0)), TypeError, "shape=5 must be a sequence of 2"),
        (
            lambda: adversarial_lipschitz(term, (N, D), 1.0, key=jax.random.key(0), spread=1.0),
            ValueError,
            "raise radius",
        ),
    ):
        with pytest.raises(error, match=words):
            call()
