"""Constants of a field against its dense Jacobian, and the bound they make against Euler's true error."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.numerics import FieldConstants, continuum_bound, field_constants, growth_factor, mesh_norm

N, D = 5, 4


def make(seed, depth=2.0):
    keys = jax.random.split(jax.random.key(seed), 4)
    base = pj.MasterEquation(
        interaction=pj.Attention(D, 2, key=keys[0], norm=pj.LayerNorm(D)),
        reaction=pj.FeedForward(D, 7, key=keys[1], activation="gelu"),
        stabilization=pj.LinearDamping(0.1 * seed),
    )
    return pj.smooth_random(base, depth, key=keys[2]), jax.random.normal(keys[3], (N, D))


def linear(matrix):
    """u' = u M."""
    dim = len(matrix)
    reaction = pj.FeedForward(dim, dim, key=jax.random.key(0), activation="identity")
    return pj.MasterEquation(reaction=eqx.tree_at(lambda r: (r.w1, r.w2), reaction, (jnp.eye(dim), matrix)))


def dense(equation, t, u, args=None):
    """Log-norm, ‖∂F/∂u‖₂ and ‖u''‖_Ω from the whole Jacobian and a difference in depth."""
    shape = u.shape
    field = jax.jit(lambda t, v: equation(t, v.reshape(shape), args).ravel())
    jacobian = np.asarray(jax.jit(jax.jacfwd(field, 1))(t, u.ravel()))
    velocity = np.asarray(field(t, u.ravel()))
    eps = 1e-5
    drift = np.asarray((field(t + eps, u.ravel()) - field(t - eps, u.ravel())) / (2 * eps))
    second = jnp.asarray((drift + jacobian @ velocity).reshape(shape))
    return np.linalg.eigvalsh((jacobian + jacobian.T) / 2)[-1], np.linalg.norm(jacobian, 2), float(mesh_norm(second))


def test_constants_are_those_of_the_dense_jacobian():
    equation, u0 = make(1)
    ts, us = jnp.array([0.3, 1.1]), jnp.stack([u0, 2 - u0])
    found = field_constants(equation, ts, us)
    expected = np.max([dense(equation, t, u) for t, u in zip(ts, us, strict=True)], axis=0)
    assert found.log_norm == pytest.approx(expected[0], rel=2e-3)
    assert found.lipschitz == pytest.approx(expected[1], rel=2e-3)
    assert found.curvature == pytest.approx(expected[2], rel=1e-7)
    assert found.log_norm <= found.lipschitz


def test_constants_are_the_largest_along_the_way():
    equation, u0 = make(1)
    ts, us = jnp.array([0.3, 1.1]), jnp.stack([u0, 2 - u0])
    both = field_constants(equation, ts, us)
    one, other = (field_constants(equation, ts[i : i + 1], us[i : i + 1]) for i in range(2))
    for name in ("log_norm", "lipschitz", "curvature"):
        assert getattr(both, name) == pytest.approx(max(getattr(one, name), getattr(other, name)), rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2])
def test_constants_of_the_smallest_fields(dim):
    """ARPACK needs more than two unknowns; below that the matrix is taken whole."""
    rates = jnp.array([[-3.0, 1.0], [0.5, 2.0]])[:dim, :dim]
    found = field_constants(linear(rates), jnp.zeros(1), jnp.ones((1, 1, dim)))
    matrix = np.asarray(rates).T
    assert found.log_norm == pytest.approx(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    assert found.lipschitz == pytest.approx(np.linalg.norm(matrix, 2))
    assert found.curvature == pytest.approx(np.linalg.norm(matrix @ matrix @ np.ones(dim)))


def test_padding_is_passed_on():
    equation, u0 = make(1)
    mask = jnp.arange(N) < 3
    args = pj.FieldArgs(mask)
    found = field_constants(equation, jnp.array([0.3]), u0[None], mask)
    expected = dense(equation, 0.3, u0, args)
    assert found.lipschitz == pytest.approx(expected[1], rel=2e-3)


def test_growth_factor():
    assert growth_factor(0.0, 3.0) == 3.0
    assert growth_factor(2.0, 1.5) == pytest.approx((math.exp(3) - 1) / 2, rel=1e-15)
    assert growth_factor(-2.0, 1.5) == pytest.approx((1 - math.exp(-3)) / 2, rel=1e-15)
    assert growth_factor(1e-9, 2.0) == pytest.approx(2 * (1 + 1e-9), rel=1e-14)
    assert growth_factor(1e-13, 2.0) == pytest.approx(2.0, rel=1e-12)
    assert growth_factor(500.0, 2.0) == math.inf
    assert growth_factor(-1e6, 2.0) == pytest.approx(1e-6)
    rates = np.linspace(-3, 3, 61)
    assert np.all(np.diff([growth_factor(r, 2.0) for r in rates]) > 0)


def test_the_bound_as_a_formula():
    constants = FieldConstants(log_norm=0.5, lipschitz=2.0, curvature=3.0)
    assert continuum_bound(0.1, constants, 2.0) == pytest.approx(0.15 * (math.e - 1) / 0.5)
    assert continuum_bound(0.1, constants, 2.0, rate="lipschitz") == pytest.approx(0.15 * (math.exp(4) - 1) / 2)
    assert continuum_bound(0.1, constants, 2.0, consistency=0.2) == pytest.approx(0.35 * (math.e - 1) / 0.5)
    assert continuum_bound(0.05, constants, 2.0) == pytest.approx(continuum_bound(0.1, constants, 2.0) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2, 9])
def test_euler_never_breaks_its_bound(seed):
    """Over the whole depth, at every step size, with either constant; and the log-norm's is the sharper one."""
    t1 = 2.0
    equation, u0 = make(seed, t1)
    # Depths that every step count below has among its own, so that Euler's points need no interpolation.
    ts = np.linspace(0, t1, 33)
    truth = pj.simulate(pj.Discretization(equation, "dopri8", t1=t1, rtol=1e-12, atol=1e-12), u0, save=ts).us
    constants = field_constants(equation, jnp.asarray(ts[::4]), truth[::4])
    for steps in (4, 8, 16, 32):
        us = pj.simulate(pj.Discretization(equation, "euler", t1=t1, steps=steps), u0, save=ts).us
        grid = slice(None, None, 32 // steps)
        error = float(jnp.max(mesh_norm(us[grid] - truth[grid])))
        sharp = continuum_bound(t1 / steps, constants, t1)
        assert 0 < error <= sharp <= continuum_bound(t1 / steps, constants, t1, rate="lipschitz")


@pytest.mark.parametrize("rate", [0.7, 0.05])
def test_how_far_the_bound_is_off(rate):
    """u' = λu: the bound is (e^{λT} − 1)/λT times the error as h → 0, so it is attained as λT → 0."""
    t1, steps = 2.0, 4000
    equation = linear(jnp.full((1, 1), rate))
    end = float(pj.simulate(pj.Discretization(equation, "euler", t1=t1, steps=steps), jnp.ones((1, 1))).us[-1, 0, 0])
    exact = math.exp(rate * t1)
    constants = field_constants(equation, jnp.array([t1]), jnp.full((1, 1, 1), exact))  # |u''| is largest at the end
    bound = continuum_bound(t1 / steps, constants, t1)
    assert bound / (exact - end) == pytest.approx(math.expm1(rate * t1) / (rate * t1), rel=1e-3)
