"""The exchange operator of v1 (18)–(19)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pdejax.terms import Exchange

N, D = 5, 4


def field():
    return jnp.asarray(np.random.default_rng(0).standard_normal((N, D)))


def test_twin(getkey):
    exchange = eqx.tree_at(lambda m: m.b, Exchange(D, key=getkey()), jnp.arange(4.0))
    w, b, u = (np.asarray(x) for x in (exchange.w, exchange.b, field()))
    slow = [[sum(w[k, m] * u[i, m] for m in range(D)) + b[k] for k in range(D)] for i in range(N)]
    np.testing.assert_allclose(exchange(field()), slow, rtol=1e-13, atol=1e-14)
    single = exchange(field().astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, slow, rtol=1e-5, atol=1e-5)


def test_scale_and_identity(getkey):
    key = getkey()
    np.testing.assert_allclose(Exchange(D, key=key, scale=0.5).w, 0.5 * Exchange(D, key=key).w, rtol=1e-15)
    np.testing.assert_array_equal(Exchange(D, key=key, scale=0.0)(field()), np.zeros((N, D)))
    same = eqx.tree_at(lambda m: m.w, Exchange(D, key=key), jnp.eye(D))
    np.testing.assert_allclose(same(field()), field(), rtol=1e-15)


def test_affine(getkey):
    """C(u) is affine: its derivative along v is W v, whatever u."""
    exchange, v = Exchange(D, key=getkey()), field()[::-1]
    tangent = jax.jvp(exchange, (field(),), (v,))[1]
    np.testing.assert_allclose(tangent, np.asarray(v) @ np.asarray(exchange.w).T, rtol=1e-13)
