"""LayerNorm, RMSNorm and the projection on the sphere, one token at a time."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.terms import LayerNorm, RMSNorm, SpatialNorm, SphereProjection

N, D = 5, 6


def field(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, D)) + 0.7)


def scaled(norm):
    """The norm with a random scale and bias."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.5 * random.standard_normal(x.shape), norm)


def test_layer_norm_twin():
    norm, u = scaled(LayerNorm(D, eps=0.03)), np.asarray(field())
    for row, result in zip(u, np.asarray(norm(field())), strict=True):
        mean = sum(row) / D
        variance = sum((x - mean) ** 2 for x in row) / D
        slow = [
            g * (x - mean) / (variance + 0.03) ** 0.5 + b for x, g, b in zip(row, norm.scale, norm.bias, strict=True)
        ]
        np.testing.assert_allclose(result, slow, rtol=1e-13)


def test_rms_norm_twin():
    norm, u = scaled(RMSNorm(D, eps=0.03)), np.asarray(field())
    for row, result in zip(u, np.asarray(norm(field())), strict=True):
        rms = (sum(x**2 for x in row) / D + 0.03) ** 0.5
        np.testing.assert_allclose(result, [g * x / rms for x, g in zip(row, norm.scale, strict=True)], rtol=1e-13)


def test_invariances():
    """LayerNorm ignores a shift and a scale of a token, RMSNorm a scale; both are projections but for ε."""
    u, scale = field(), jnp.array([0.1, 1.0, 3.0, 10.0, 7.0])[:, None]
    layer, rms = LayerNorm(D, eps=1e-14), RMSNorm(D, eps=1e-14)
    np.testing.assert_allclose(layer(scale * u + 4.0), layer(u), atol=1e-11)
    np.testing.assert_allclose(rms(scale * u), rms(u), atol=1e-11)
    for norm in (layer, rms):
        np.testing.assert_allclose(norm(norm(u)), norm(u), atol=1e-12)
        np.testing.assert_allclose(np.mean(norm(u) ** 2, axis=1), 1.0, rtol=1e-11)
    np.testing.assert_allclose(np.mean(layer(u), axis=1), 0.0, atol=1e-15)


def test_rms_norm_projects_on_the_sphere():
    norm = eqx.tree_at(lambda m: m.scale, RMSNorm(D, eps=1e-24), jnp.full(D, D**-0.5))
    np.testing.assert_allclose(norm(field()), SphereProjection()(field()), rtol=1e-14)


def test_sphere_projection():
    u = field()
    slow = [2.5 * row / np.sqrt(row @ row) for row in np.asarray(u)]
    np.testing.assert_allclose(SphereProjection(2.5)(u), slow, rtol=1e-14)
    # Tangent part: the derivative along v is (v − x⟨x, v⟩)·radius/‖u‖.
    v = field(1)
    x, length = np.asarray(SphereProjection()(u)), np.linalg.norm(u, axis=1, keepdims=True)
    tangent = 2.5 * (np.asarray(v) - x * np.sum(x * np.asarray(v), axis=1, keepdims=True)) / length
    np.testing.assert_allclose(jax.jvp(SphereProjection(2.5), (u,), (v,))[1], tangent, rtol=1e-13)


def test_constant_and_zero_tokens_stay_finite():
    zero = jnp.zeros((N, D))
    for norm in (LayerNorm(D), RMSNorm(D), SphereProjection()):
        found, slope = jax.jit(lambda u, norm=norm: (norm(u), jax.grad(lambda u: jnp.sum(norm(u)))(u)))(zero)
        np.testing.assert_array_equal(found, zero)
        assert np.isfinite(slope).all()
    np.testing.assert_allclose(LayerNorm(D)(zero + 3.0), zero, atol=1e-15)


@pytest.mark.parametrize("norm", [LayerNorm(D), RMSNorm(D), SphereProjection()])
def test_dtype_is_kept(norm):
    u = field()
    single, half, double = jax.jit(lambda u: [norm(u.astype(t)) for t in (jnp.float32, jnp.bfloat16, jnp.float64)])(u)
    assert single.dtype == jnp.float32 and half.dtype == jnp.bfloat16
    np.testing.assert_allclose(single, double, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(half, float), double, atol=0.03)


def test_statistics_do_not_cancel():
    """A mean 10⁴ times the spread: the one-pass variance E[x²] − E[x]² would lose it in float32."""
    u = field()
    offset = (u + 1e4).astype(jnp.float32)
    exact = LayerNorm(D)(offset.astype(float))
    np.testing.assert_allclose(LayerNorm(D)(offset), exact, atol=5e-3)


def test_float16_does_not_overflow():
    """Squares of 300 exceed the largest float16, 65,504: statistics need float32."""
    u = (300 * field()).astype(jnp.float16)
    for norm in (LayerNorm(D), RMSNorm(D)):
        np.testing.assert_allclose(norm(u).astype(float), norm(u.astype(float)), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("make", [LayerNorm, RMSNorm, lambda d, eps: SpatialNorm(1.0, eps=eps)])
def test_constant_tokens_stay_finite_at_the_least_eps(make):
    """The value and the derivatives in both modes, at tokens without any deviation and at zero tokens."""
    layer = make(D, eps=1e-24)
    call = (lambda u: layer(0.0, u, None)) if isinstance(layer, SpatialNorm) else layer

    @jax.jit
    def run(us):
        def one(u):
            out, pull = jax.vjp(call, u)
            return out, *pull(jnp.ones_like(u)), jax.jvp(call, (u,), (jnp.ones_like(u),))[1]

        return [one(u) for u in us]

    us = [jnp.full((3, D), value, dtype) for value in (0.0, 3.0) for dtype in ("float32", "float64", "bfloat16")]
    for u, every in zip(us, run(us), strict=True):
        for found in every:
            assert found.dtype == u.dtype and np.isfinite(np.asarray(found, float)).all()
        if not isinstance(layer, RMSNorm):
            np.testing.assert_array_equal(np.asarray(every[0], float), 0.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LayerNorm(D, eps=0.0), "LayerNorm: eps=0.0 must be one finite number ≥ 1e-24"),
        (lambda: RMSNorm(D, eps=0.0), "RMSNorm: eps=0.0 must be one finite number ≥ 1e-24"),
        (lambda: RMSNorm(D, eps=1e-40), "RMSNorm: eps=1e-40 must be"),
        (lambda: SpatialNorm(eps=1e-40), "SpatialNorm: eps=1e-40 must be"),
        (lambda: SpatialNorm(eps=jnp.ones(2)), "SpatialNorm: eps=.* must be one finite number"),
        (lambda: SphereProjection(-1.0), "SphereProjection: radius=-1.0 must be one finite number > 0"),
        (lambda: SphereProjection(math.inf), "SphereProjection: radius=inf must be one finite number > 0"),
        (lambda: LayerNorm(D).lipschitz(-1.0), "LayerNorm.lipschitz: spread=-1.0 must be one finite number ≥ 0"),
        (lambda: RMSNorm(D).lipschitz(math.nan), "RMSNorm.lipschitz: spread=nan must be"),
        (lambda: LayerNorm(D).ball(math.nan), "LayerNorm.ball: radius=nan must be .*or infinite, for all tokens"),
        (lambda: RMSNorm(D).ball(-1.0), "RMSNorm.ball: radius=-1.0 must be"),
    ],
)
def test_bad_input_of_norms(call, words):
    with pytest.raises(ValueError, match=words):
        call()
