"""The three stabilizations: v2 (9) as loops, and what each does and does not damp (claim C4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import Grid
from pdejax.terms import FieldArgs, LayerNorm, LayerNormRelaxation, LinearDamping, RMSNorm, SpatialNorm

N, D, GAMMA, EPS = 7, 3, 1.7, 0.2
MASK = np.array([True, True, False, True, False, True, True])
PER_TOKEN = jnp.linspace(0.1, 2.0, N)


def field(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, D)) + 1.0)


def quadrature(grid, mask):
    """Weights of the real tokens, summing to one."""
    w = [1.5 if grid is not None and grid.boundary == "dirichlet" and i in (0, N - 1) else 1.0 for i in range(N)]
    w = [x if mask is None or mask[i] else 0.0 for i, x in enumerate(w)]
    return [x / sum(w) for x in w]


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "mask"])
@pytest.mark.parametrize("grid", [None, Grid(N), Grid(N, "dirichlet", length=2.0)])
@pytest.mark.parametrize("gamma", [GAMMA, PER_TOKEN], ids=["scalar", "per-token"])
def test_spatial_norm_twin(grid, mask, gamma):
    u, w = np.asarray(field()), quadrature(grid, mask)
    mean = sum(w[i] * u[i] for i in range(N))
    variance = sum(w[i] * sum((u[i, k] - mean[k]) ** 2 for k in range(D)) for i in range(N))
    rate = np.broadcast_to(np.asarray(gamma), N)
    slow = [-rate[i] * (u[i] - mean) / (variance + EPS) ** 0.5 for i in range(N)]
    term = SpatialNorm(gamma, eps=EPS, grid=grid)
    args = FieldArgs(None if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(term(0.0, field(), args), slow, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("boundary", ["neumann", "dirichlet"])
def test_spatial_norm_energy_and_mean(boundary):
    """⟨u, S⟩_Ω = −γσ²/√(σ²+ε), not the −2γE that v2 Thm 3.3 needs, and the mean does not move."""
    grid = Grid(N, boundary)
    u, w = np.asarray(field()), np.array(quadrature(grid, None))
    s = np.asarray(SpatialNorm(GAMMA, eps=EPS, grid=grid)(0.0, field(), None))
    variance = w @ np.sum((u - w @ u) ** 2, axis=1)
    product = w @ np.sum(u * s, axis=1)
    assert product == pytest.approx(-GAMMA * variance / np.sqrt(variance + EPS), rel=1e-12)
    energy = 0.5 * w @ np.sum(u**2, axis=1)
    assert product > -2 * GAMMA * energy * 0.5  # the field's mean is large, so the claim fails by far
    np.testing.assert_allclose(w @ s, 0.0, atol=1e-15)


def test_spatial_norm_is_not_layer_norm():
    """It sees tokens, not features: a constant field feels nothing, and it commutes with rotations of the features."""
    flat = jnp.broadcast_to(jnp.array([1.0, -5.0, 2.0]), (N, D))
    np.testing.assert_allclose(SpatialNorm(GAMMA)(0.0, flat, None), np.zeros((N, D)), atol=1e-13)
    rotation = jnp.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0])
    term = SpatialNorm(GAMMA)
    np.testing.assert_allclose(term(0.0, field() @ rotation, None), term(0.0, field(), None) @ rotation, atol=1e-13)
    np.testing.assert_array_equal(SpatialNorm(GAMMA)(0.0, field()[:1], None), np.zeros((1, D)))


def test_spatial_norm_stiffness():
    """At σ = 0 the Jacobian is −γ/√ε on fluctuations and 0 on the mean: its damping is that rate."""
    term = SpatialNorm(GAMMA, eps=1e-4)
    jacobian = jax.jacfwd(lambda u: term(0.0, u, None))(jnp.zeros((N, 1))).reshape(N, N)
    np.testing.assert_allclose(np.linalg.eigvalsh(jacobian), [-GAMMA / 1e-2] * (N - 1) + [0.0], atol=1e-10)
    assert float(term.damping()) == pytest.approx(GAMMA / 1e-2)


def test_layer_norm_relaxation():
    u = np.asarray(field())
    norm = LayerNorm(D, eps=1e-2)
    centred = u - u.mean(axis=1, keepdims=True)
    slow = -GAMMA * (u - centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + 1e-2))
    np.testing.assert_allclose(LayerNormRelaxation(D, GAMMA, norm=norm)(0.0, field(), None), slow, rtol=1e-12)
    per_token = LayerNormRelaxation(D, PER_TOKEN, norm=norm)(0.0, field(), None)
    np.testing.assert_allclose(per_token, np.asarray(PER_TOKEN)[:, None] / GAMMA * slow, rtol=1e-12)


@pytest.mark.parametrize("norm", [LayerNorm(D, eps=1e-15), RMSNorm(D, eps=1e-15)])
def test_layer_norm_relaxation_rests_on_normalized_fields(norm):
    """Normalized fields are its fixed points, and they attract: distances fall like e^{−γt} to first order."""
    term = LayerNormRelaxation(D, GAMMA, norm=norm)
    rest = norm(field())
    np.testing.assert_allclose(term(0.0, rest, None), np.zeros((N, D)), atol=1e-11)
    step = 0.3 / GAMMA
    u = field()
    for _ in range(200):
        u = u + step * term(0.0, u, None)
    np.testing.assert_allclose(u, norm(u), atol=1e-10)
    assert float(term.damping()) == GAMMA


def test_linear_damping():
    u = np.asarray(field())
    np.testing.assert_allclose(LinearDamping(GAMMA)(0.0, field(), None), -GAMMA * u, rtol=1e-15)
    np.testing.assert_allclose(
        LinearDamping(PER_TOKEN)(0.0, field(), None), -np.asarray(PER_TOKEN)[:, None] * u, rtol=1e-15
    )
    # The inequality of v2 Thm 3.3, with equality: ⟨u, S⟩ = −2γE.
    product = np.mean(np.sum(u * np.asarray(LinearDamping(GAMMA)(0.0, field(), None)), axis=1))
    assert product == pytest.approx(-2 * GAMMA * 0.5 * np.mean(np.sum(u**2, axis=1)), rel=1e-13)
    assert float(LinearDamping(PER_TOKEN).damping()) == 2.0


@pytest.mark.parametrize("make", [SpatialNorm, LinearDamping, lambda gamma: LayerNormRelaxation(D, gamma)])
def test_gamma_zero_turns_it_off_and_dtype_is_kept(make):
    np.testing.assert_array_equal(make(0.0)(0.0, field(), None), np.zeros((N, D)))
    assert float(make(0.0).damping()) == 0.0
    for gamma in (2, GAMMA, PER_TOKEN):
        single = make(gamma)(0.0, field().astype(jnp.float32), FieldArgs(jnp.asarray(MASK)))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(
            single, make(gamma)(0.0, field(), FieldArgs(jnp.asarray(MASK))), rtol=1e-4, atol=1e-5
        )


def test_gradients_of_spatial_norm():
    """Forward and reverse mode against central differences, γ and ε included."""
    probe, point = field(5), (field(), jnp.asarray(GAMMA), jnp.asarray(EPS))
    direction = (field(6), jnp.asarray(0.7), jnp.asarray(-0.1))

    @jax.jit
    def loss(u, gamma, eps):
        return jnp.sum(probe * SpatialNorm(gamma, eps=eps)(0.0, u, FieldArgs(jnp.asarray(MASK))))

    h = 1e-6
    ahead, behind = (float(loss(*(p + s * h * v for p, v in zip(point, direction, strict=True)))) for s in (1, -1))
    gradient = jax.grad(loss, argnums=(0, 1, 2))(*point)
    reverse = float(sum(jnp.sum(g * v) for g, v in zip(gradient, direction, strict=True)))
    assert reverse == pytest.approx((ahead - behind) / (2 * h), rel=1e-7)
    assert reverse == pytest.approx(float(jax.jvp(loss, point, direction)[1]), rel=1e-11)
