"""v1 (21) and the corrected bound: the formulas, the proof in dense matrices, and the constants of an equation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.stability import corrected_step_bound, one_sided_step_bound, step_constants, v1_21


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
    assert corrected_step_bound(0.5, diffusivity=0.2, leak=2.0, lipschitz=1.0) == pytest.approx(2 / 6.2)
    assert corrected_step_bound(0.5, diffusivity=0.2, leak=1.0, lipschitz=1.0) == pytest.approx(2 / 5.2)
    assert corrected_step_bound(0.5, diffusivity=0.2, leak=1.0, lipschitz=1.0 + 1e-12) == 0  # G > c: no certificate
    assert corrected_step_bound(0.5, diffusivity=0.2, real_limit=2.785) == pytest.approx(2.785 / 3.2)
    assert corrected_step_bound(1.0) == np.inf
    found = one_sided_step_bound(dissipation=np.array([0.5, 0, -1, 0]), lipschitz=np.array([2.0, 2, 2, 0]))
    np.testing.assert_allclose(found, [0.25, 0, 0, np.inf])


@pytest.mark.parametrize("seed", range(20))
def test_no_linear_field_expands_if_its_rest_is_at_most_its_leak(seed):
    rng = np.random.default_rng(seed)
    n, d = 7, 3
    dx, diffusivity = rng.uniform(0.1, 1), rng.uniform(0, 0.2)
    # A row-stochastic mixing of W u_j plus a reaction: Lipschitz ‖W‖ + ‖M‖ in the token-max norm.
    mixing = rng.dirichlet(np.full(n, 0.3), n)
    w, m = rng.standard_normal((2, d, d)) * rng.uniform(0, 2)
    rest = np.kron(mixing, w) + np.kron(np.eye(n), m)
    lipschitz = np.linalg.norm(w, 2) + np.linalg.norm(m, 2)
    leak = lipschitz * rng.uniform(1, 1.5)
    field = diffusivity / dx**2 * np.kron(neumann(n), np.eye(d)) - leak * np.eye(n * d) + rest
    h = 0.999 * corrected_step_bound(dx, diffusivity=diffusivity, leak=leak, lipschitz=lipschitz)
    assert token_max_growth(np.eye(n * d) + h * field, n, d, rng) <= 1 + 1e-12
    assert corrected_step_bound(dx, diffusivity=diffusivity, leak=0.999 * lipschitz, lipschitz=lipschitz) == 0


def test_the_constant_is_reached():
    n, dx, d, leak, rate = 64, 1.0, 0.3, 2.0, 0.5
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
        diffusion=pj.Diffusion(pj.Grid(8), 0.2),
        stabilization=pj.LinearDamping(0.25),
    )
    found = step_constants(equation, 8, 1.0)
    mixing = np.linalg.norm(attention.wv[:, 0] @ attention.wo[0], 2)
    assert found.diffusion == pytest.approx(4 * 0.2 * 64)
    assert (found.least_leak, found.largest_leak) == pytest.approx((2.25, 2.25))
    assert found.rest_lipschitz == pytest.approx(2 * mixing + 5)
    assert not found.rest_at_most_leak and found.dt_max == 0 and "no certificate: G = " in found.why
    uneven = pj.LinearDamping(jnp.linspace(40.0, 10.0, 8))
    damped = step_constants(eqx.tree_at(lambda e: e["stabilization"], equation, uneven), 8, 1.0)
    assert (damped.least_leak, damped.largest_leak) == pytest.approx((12, 42))
    assert damped.rest_at_most_leak and damped.why == ""
    assert damped.dt_max == pytest.approx(2 / (found.diffusion + 42 + 2 * mixing + 5))
    alone = step_constants(pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(8), 0.1)), 8, 1.0)
    assert (alone.largest_leak, alone.rest_lipschitz) == (0, 0) and alone.dt_max == pytest.approx(2 / 25.6)


def test_a_leak_that_is_no_decay_everywhere_certifies_nothing():
    """Where the rate varies over tokens the least counts, and of a negative strength the leak is growth."""
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    reaction = pj.FeedForward(2, 2, key=jax.random.key(0), activation="identity")
    reaction = eqx.tree_at(lambda r: (r.w1, r.w2), reaction, (jnp.eye(2), turn))
    uneven = pj.MasterEquation(reaction=reaction, stabilization=pj.LinearDamping(jnp.array([2.0, 0.0])))
    found = step_constants(uneven, 2, 1.0)
    # The second token turns and is not damped: every step of Euler makes it longer.
    assert found.largest_leak == 2 and found.rest_lipschitz == pytest.approx(1) and found.dt_max == 0
    for term in (
        pj.FeedForward(2, 2, key=jax.random.key(0), strength=-0.5, leak=True),
        pj.Attention(2, 1, key=jax.random.key(0), strength=-0.5, leak=True),
    ):
        growing = step_constants(term, 2, 1.0)
        assert growing.largest_leak == 0 and growing.rest_lipschitz > 0.5 and growing.dt_max == 0


def test_of_layers_the_worst_counts():
    """The layer of the largest Lipschitz constant is not the one without certificate."""
    reaction = pj.FeedForward(2, 2, key=jax.random.key(0))
    damped, growing = (
        pj.MasterEquation(reaction=reaction, stabilization=pj.LinearDamping(rate)) for rate in (100.0, 0.0)
    )
    layered = pj.DepthVarying.from_layers([damped, growing], 1.0)
    assert step_constants(damped, 4, 1.0).dt_max > 0
    assert step_constants(layered, 4, 1.0).dt_max == 0


def test_unequal_diffusivities_have_a_bound_in_the_frobenius_norm_alone():
    grid, features = pj.Grid(3), jnp.array([0.0, 1.0])
    for diffusivity in (features, jnp.diag(features), jnp.array([[1.0, 0.5], [0.5, 2.0]])):
        field = pj.MasterEquation(diffusion=pj.Diffusion(grid, diffusivity))
        with pytest.raises(ValueError, match="no maximum principle"):
            step_constants(field, 3, 1.0)
        found = step_constants(field, 3, 1.0, norm="frobenius")
        largest = np.linalg.norm(jnp.diag(diffusivity) if diffusivity.ndim == 1 else diffusivity, 2)
        assert found.norm == "frobenius" and found.dt_max == pytest.approx(2 / (3 * 9 * largest))  # 4 sin²(π/3) = 3
    for equal in (jnp.full(2, 0.3), 0.3 * jnp.eye(2)):
        field = pj.MasterEquation(diffusion=pj.Diffusion(grid, equal))
        assert step_constants(field, 3, 1.0).dt_max == pytest.approx(2 / (4 * 0.3 * 9))


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="diffusivity=-1"):
        v1_21(0.1, 1.0, diffusivity=-1.0)
    with pytest.raises(ValueError, match="spacing must be positive"):
        corrected_step_bound(0.0)
    with pytest.raises(ValueError, match="lipschitz=nan"):
        corrected_step_bound(1.0, lipschitz=float("nan"))
    with pytest.raises(TypeError, match=r"field=.* must be a MasterEquation"):
        step_constants("field", 8, 1.0)
    rotating = pj.MasterEquation(diffusion=pj.Diffusion(pj.Grid(8), jnp.array([[1.0, 5.0], [-5.0, 1.0]])))
    with pytest.raises(ValueError, match="not symmetric"):
        step_constants(rotating, 8, 1.0, norm="frobenius")
    with pytest.raises(ValueError, match="at most lipschitz"):
        one_sided_step_bound(dissipation=2.0, lipschitz=1.0)
    with pytest.raises(ValueError, match="dissipation=nan"):
        one_sided_step_bound(dissipation=float("nan"), lipschitz=1.0)
