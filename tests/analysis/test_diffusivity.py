"""Signs of the emergent diffusivity and the growth they cause, against dense matrices and measured growth."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import pdejax as pj
from pdejax.analysis.growth._diffusivity import (
    anti_diffusion,
    negative_fraction,
    random_negative_fraction,
)
from pdejax.solvers import divergence

N, D = 8, 4


def emergent(key, form="raw", n=N, boundary="neumann"):
    keys = jax.random.split(key, 3)
    return pj.EffectiveDiffusion(
        pj.Grid(n, boundary=boundary),
        pj.Attention(D, 2, key=keys[0]),
        pj.FeedForward(D, 9, key=keys[1]),
        jax.random.normal(keys[2], (n, D)),
        form=form,
    )


def dense(grid, d, mask=None):
    """The operator's matrix, column by column from the library's own divergence form."""
    return np.asarray(jax.jit(jax.jacfwd(lambda u: divergence(grid, jnp.asarray(d), u, mask=mask)))(jnp.zeros(grid.n)))


@pytest.mark.parametrize("boundary", ["neumann", "dirichlet", "periodic"])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_fastest_mode_is_that_of_the_dense_matrix(boundary, n):
    grid = pj.Grid(n, boundary=boundary, length=1.7)
    d = np.random.default_rng(n).standard_normal(n)
    for mask in (None, jnp.arange(n) != n // 2) if n > 3 else (None,):
        matrix = dense(grid, d, mask)
        found = anti_diffusion(grid, jnp.asarray(d), mask)
        assert found.rate == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-11, abs=1e-10)
        assert np.linalg.norm(found.mode) == pytest.approx(1)
        assert np.max(np.abs(matrix @ found.mode - found.rate * found.mode)) < 1e-10 * np.abs(matrix).max()
        assert found.rate <= found.bound + 1e-10
        nonnegative = anti_diffusion(grid, jnp.abs(jnp.asarray(d)), mask)
        assert nonnegative.rate <= 1e-10 * np.abs(matrix).max()
        assert nonnegative.most_negative == 0 == nonnegative.bound


def test_growth_scales_like_four_d_over_dx_squared():
    """D = −½ on part of the domain: rate·Δx² tends to 4·½ from below, so the rate grows without end under refinement."""
    scaled = []
    for n in (16, 64, 256, 1024):
        grid = pj.Grid(n)
        x = np.asarray(grid.points)
        found = anti_diffusion(grid, jnp.asarray(0.3 - 0.8 * np.exp(-((x - 0.5) ** 2) / 0.02)))
        scaled.append(found.rate / n**2)
        assert found.most_negative == pytest.approx(-0.5, abs=0.1)
        assert found.rate <= found.bound
    assert scaled == sorted(scaled)
    assert scaled[-1] == pytest.approx(2.0, rel=0.01)


def test_bounds_of_the_growth_rate():
    """One negative face on a Neumann grid is enough; m + 1 faces at −δ give 4δcos²(π/2(m + 1))/Δx² at least."""
    grid = pj.Grid(30)
    d = np.ones(30)
    d[7] = -1.001  # faces 7 and 8 at −0.0005
    found = anti_diffusion(grid, jnp.asarray(d))
    assert found.most_negative == pytest.approx(-0.0005)
    assert 0 < found.rate < found.bound
    d = np.full(30, 2.0)
    m, delta = 9, 0.4
    d[10 : 10 + m + 2] = -delta  # tokens whose m + 1 inner faces are all at −δ
    rate = anti_diffusion(grid, jnp.asarray(d)).rate
    assert 4 * delta * math.cos(math.pi / (2 * (m + 1))) ** 2 * 900 <= rate <= 4 * delta * 900


def test_growth_is_what_an_integration_shows():
    """From noise, the field ends on the mode and grows at the rate."""
    grid = pj.Grid(12)
    d = jnp.asarray(np.random.default_rng(3).standard_normal(12))
    found = anti_diffusion(grid, d)
    field = jax.jit(lambda u: divergence(grid, d, u))
    ts = np.array([40.0, 50.0]) / found.rate
    start = np.random.default_rng(4).standard_normal(12)
    run = solve_ivp(lambda t, u: np.asarray(field(jnp.asarray(u))), (0, ts[1]), start, "DOP853", ts, rtol=1e-10, atol=0)
    sizes = np.linalg.norm(run.y, axis=0)
    assert math.log(sizes[1] / sizes[0]) / (ts[1] - ts[0]) == pytest.approx(found.rate, rel=1e-6)
    assert abs(float(run.y[:, 1] @ found.mode)) / sizes[1] == pytest.approx(1, rel=1e-6)


def test_negative_fraction_counts_tokens():
    """Against a loop over tokens with the dense Jacobian of the network at each."""
    diffusion = emergent(jax.random.key(0))
    us = jax.random.normal(jax.random.key(1), (5, N, D))

    def network(x):
        return diffusion.reaction.network(x[None])[0]

    jacobians = np.asarray(jax.jit(jax.vmap(jax.vmap(jax.jacfwd(network))))(us))
    traces = np.trace(jacobians, axis1=2, axis2=3)
    expected = np.mean(traces < 0, axis=1)
    assert 0 < expected.mean() < 1
    for source in (diffusion, diffusion.reaction, pj.MasterEquation(diffusion=diffusion)):
        found = negative_fraction(source, us)
        assert np.asarray(found.per_field) == pytest.approx(expected, abs=1e-15)
        assert found.fraction == pytest.approx(expected.mean())
        assert found.quantiles[0.5] == pytest.approx(np.median(expected))
        assert found.lowest < 0 < found.highest
    single = negative_fraction(diffusion.reaction, us[0])
    assert single.fraction == pytest.approx(expected[0])
    mask = jnp.arange(N) < 3
    masked = negative_fraction(diffusion.reaction, us, mask)
    assert masked.fraction == pytest.approx(np.mean(traces[:, :3] < 0))


@pytest.mark.parametrize("form", ["absolute", "softplus", "clip"])
def test_other_forms_are_never_negative(form):
    us = jax.random.normal(jax.random.key(1), (5, N, D))
    diffusion = emergent(jax.random.key(0), form)
    assert negative_fraction(diffusion, us).fraction == 0
    assert anti_diffusion(diffusion, us[0]).rate <= 1e-10
    raw = anti_diffusion(emergent(jax.random.key(0)), us[0])
    assert raw.rate > 0 > raw.most_negative


def test_random_networks_are_negative_half_of_the_time():
    """By symmetry exactly ½ on average; one draw's tokens mostly agree, which spreads the draws far apart."""
    found = random_negative_fraction(key=jax.random.key(0), draws=400, tokens=32, dim=16, hidden=64)
    # Shares in [0, 1] have a standard deviation of at most ½: five standard errors.
    assert found.fraction == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(400))
    spread = np.std(np.asarray(found.per_field))
    independent = 0.5 / math.sqrt(32)
    assert spread > 3 * independent
    assert found.quantiles[0.05] < 0.15 and found.quantiles[0.95] > 0.85


def test_flipping_the_output_flips_the_sign():
    network = pj.FeedForward(D, 9, key=jax.random.key(2))
    flipped = eqx.tree_at(lambda r: r.w2, network, -network.w2)
    u = jax.random.normal(jax.random.key(3), (50, D))
    first, second = negative_fraction(network, u), negative_fraction(flipped, u)
    assert first.fraction + second.fraction == pytest.approx(1)
    assert first.lowest == pytest.approx(-second.highest)


def test_bad_input_of_diffusivities():
    diffusion, grid, u = emergent(jax.random.key(0)), pj.Grid(N), jnp.ones((N, D))
    for call, error, words in (
        (
            lambda: negative_fraction(diffusion.interaction, u),
            TypeError,
            "negative_fraction: .*pass an EffectiveDiffusion",
        ),
        (lambda: negative_fraction(pj.MasterEquation(reaction=diffusion.reaction), u), TypeError, "NoneType"),
        (lambda: negative_fraction(diffusion, u[0]), ValueError, "must be \\(k, n, d\\)"),
        (lambda: negative_fraction(diffusion, u[:3]), ValueError, "3"),
        (lambda: negative_fraction(diffusion.reaction, u * jnp.nan), ValueError, "NaN"),
        (lambda: negative_fraction(diffusion.reaction, u, jnp.zeros(N, bool)), ValueError, "at least one real token"),
        (lambda: random_negative_fraction(key=jax.random.key(0), draws=0), ValueError, "draws=0"),
        (lambda: anti_diffusion(grid, jnp.ones(3)), ValueError, "shape \\(8,\\)"),
        (lambda: anti_diffusion(grid, jnp.full(N, jnp.nan)), ValueError, "finite"),
        (lambda: anti_diffusion(pj.Grid(1), jnp.ones(1)), ValueError, "at least 2 tokens"),
        (lambda: anti_diffusion(pj.Grid(5000, boundary="periodic"), jnp.ones(5000)), ValueError, "4096"),
        (lambda: anti_diffusion(grid, jnp.ones(N), jnp.ones(3, bool)), ValueError, "mask has shape"),
    ):
        with pytest.raises(error, match=words):
            call()
