"""v1 (21) and the corrected bound: the formulas, the proof in dense matrices, and the constants of an equation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.stability import corrected_step_bound, step_constants, v1_21


def token_max_growth(matrix, n, d, rng):
    """Largest growth of max_i ‖u_i‖ met over random directions: a lower bound of the operator norm."""
    v = rng.standard_normal((n, d, 400))
    v /= np.linalg.norm(v, axis=1).max(axis=0)
    return np.linalg.norm((matrix @ v.reshape(n * d, -1)).reshape(n, d, -1), axis=1).max()


def neumann(n):
    matrix = np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    matrix[0, 0] = matrix[-1, -1] = -1
    return matrix


def test_formulas():
    assert v1_21(0.1, 0.5, diffusivity=0.2, strength=3.0, output_norm=2.0) == pytest.approx(0.16 + 0.6)
    np.testing.assert_allclose(v1_21(np.array([1.0, 2.0]), 1.0, diffusivity=0.5), [1.0, 2.0])
    assert corrected_step_bound(0.5, diffusivity=0.2, leak=1.0, lipschitz=2.0) == pytest.approx(2 / 6.2)
    assert corrected_step_bound(0.5, diffusivity=0.2, real_limit=2.785) == pytest.approx(2.785 / 3.2)
    assert corrected_step_bound(1.0) == np.inf


@pytest.mark.parametrize("seed", range(20))
def test_no_linear_field_expands_faster_than_the_flow_may(seed):
    rng = np.random.default_rng(seed)
    n, d = 7, 3
    dx, diffusivity, leak = rng.uniform(0.1, 1), rng.uniform(0, 0.2), rng.uniform(0, 3)
    # A row-stochastic mixing of W u_j plus a reaction: Lipschitz ‖W‖ + ‖M‖ in the token-max norm.
    mixing = rng.dirichlet(np.full(n, 0.3), n)
    w, m = rng.standard_normal((2, d, d)) * rng.uniform(0, 2)
    rest = np.kron(mixing, w) + np.kron(np.eye(n), m)
    lipschitz = np.linalg.norm(w, 2) + np.linalg.norm(m, 2)
    field = diffusivity / dx**2 * np.kron(neumann(n), np.eye(d)) - leak * np.eye(n * d) + rest
    h = 0.999 * corrected_step_bound(dx, diffusivity=diffusivity, leak=leak, lipschitz=lipschitz)
    growth = token_max_growth(np.eye(n * d) + h * field, n, d, rng)
    assert growth <= max(1.0, 1 + h * (lipschitz - leak)) + 1e-12


def test_the_constant_is_reached():
    n, dx, d, leak, rate = 64, 1.0, 0.3, 0.5, 2.0
    field = d * neumann(n) - (leak + rate) * np.eye(n)  # the rest is −rate·u, of Lipschitz constant rate
    bound = corrected_step_bound(dx, diffusivity=d, leak=leak, lipschitz=rate)
    for factor, stable in ((0.999, True), (1.003, False)):
        radius = np.abs(np.linalg.eigvalsh(np.eye(n) + factor * bound * field)).max()
        assert (radius <= 1) == stable


def test_constants_of_an_equation():
    d = 3
    keys = jax.random.split(jax.random.key(0), 2)
    attention = pj.Attention(d, key=keys[0], leak=True, strength=2.0, kernel="uniform")
    reaction = pj.FeedForward(d, d, key=keys[1], activation="identity")
    reaction = eqx.tree_at(lambda r: (r.w1, r.w2), reaction, (-5 * jnp.eye(d), jnp.eye(d)))
    equation = pj.MasterEquation(
        interaction=attention,
        reaction=reaction,
        diffusion=pj.Diffusion(pj.Grid(8), jnp.array([0.1, 0.2, 0.05])),
        stabilization=pj.LinearDamping(0.25),
    )
    found = step_constants(equation, 8, 1.0)
    mixing = np.linalg.norm(attention.wv[:, 0] @ attention.wo[0], 2)
    assert found.diffusion == pytest.approx(4 * 0.2 * 64) and found.leak == pytest.approx(2.25)
    assert found.lipschitz == pytest.approx(2 * mixing + 5)
    assert found.dt_max == pytest.approx(2 / (found.diffusion + found.leak + found.lipschitz))
    alone = step_constants(pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(8), 0.1)), 8, 1.0)
    assert (alone.leak, alone.lipschitz) == (0, 0) and alone.dt_max == pytest.approx(2 / 25.6)


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="diffusivity=-1"):
        v1_21(0.1, 1.0, diffusivity=-1.0)
    with pytest.raises(ValueError, match="spacing must be positive"):
        corrected_step_bound(0.0)
    with pytest.raises(ValueError, match="lipschitz=nan"):
        corrected_step_bound(1.0, lipschitz=float("nan"))
    with pytest.raises(TypeError, match="MasterEquation"):
        step_constants("field", 8, 1.0)
    rotating = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(8), jnp.array([[1.0, 5.0], [-5.0, 1.0]])))
    with pytest.raises(ValueError, match="largest eigenvalue"):
        step_constants(rotating, 8, 1.0)
