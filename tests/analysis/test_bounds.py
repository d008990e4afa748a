"""Constants of a field against its dense Jacobian, and the bound they make against Euler's true error."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdejax as pj
from pdejax.analysis.numerics import (
    FieldConstants,
    continuum_bounds,
    field_constants,
    mesh_norm,
)
from pdejax.analysis.numerics._bounds import growth_factor

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
    assert found.log_norm_on_trajectory == pytest.approx(expected[0], rel=2e-3)
    assert found.lipschitz_on_trajectory == pytest.approx(expected[1], rel=2e-3)
    assert found.curvature_on_trajectory == pytest.approx(expected[2], rel=1e-7)
    assert found.log_norm_on_trajectory <= found.lipschitz_on_trajectory


def test_constants_are_the_largest_along_the_way():
    equation, u0 = make(1)
    ts, us = jnp.array([0.3, 1.1]), jnp.stack([u0, 2 - u0])
    both = field_constants(equation, ts, us)
    one, other = (field_constants(equation, ts[i : i + 1], us[i : i + 1]) for i in range(2))
    for name in ("log_norm_on_trajectory", "lipschitz_on_trajectory", "curvature_on_trajectory"):
        assert getattr(both, name) == pytest.approx(max(getattr(one, name), getattr(other, name)), rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2])
def test_constants_of_the_smallest_fields(dim):
    """ARPACK needs more than two unknowns; below that the matrix is taken whole."""
    rates = jnp.array([[-3.0, 1.0], [0.5, 2.0]])[:dim, :dim]
    found = field_constants(linear(rates), jnp.zeros(1), jnp.ones((1, 1, dim)))
    matrix = np.asarray(rates).T
    assert found.log_norm_on_trajectory == pytest.approx(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    assert found.lipschitz_on_trajectory == pytest.approx(np.linalg.norm(matrix, 2))
    assert found.curvature_on_trajectory == pytest.approx(np.linalg.norm(matrix @ matrix @ np.ones(dim)))


def test_padding_is_passed_on():
    equation, u0 = make(1)
    mask = jnp.arange(N) < 3
    found = field_constants(equation, jnp.array([0.3]), u0[None], mask)

    def real(t, u, _):  # the field of the three real tokens, as they are in the padded sequence
        return equation(t, jnp.zeros_like(u0).at[:3].set(u), pj.FieldArgs(mask))[:3]

    expected = dense(real, 0.3, u0[:3], None)
    assert found.log_norm_on_trajectory == pytest.approx(expected[0], rel=2e-3)
    assert found.lipschitz_on_trajectory == pytest.approx(expected[1], rel=2e-3)


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


def one_sided(*args, **options):
    return continuum_bounds(*args, **options).one_sided_by_log_norm_and_lipschitz


def v2_12(*args, **options):
    return continuum_bounds(*args, **options).v2_12_by_lipschitz


def constants_of(log_norm, lipschitz, curvature):
    return FieldConstants(
        log_norm_on_trajectory=log_norm, lipschitz_on_trajectory=lipschitz, curvature_on_trajectory=curvature
    )


def test_the_bounds_as_formulas():
    constants = constants_of(0.5, 2.0, 3.0)
    assert v2_12(0.1, constants, 2.0) == pytest.approx(0.15 * (math.exp(4) - 1) / 2)
    assert v2_12(0.1, constants, 2.0, consistency=0.2) == pytest.approx(0.35 * (math.exp(4) - 1) / 2)
    assert v2_12(0.05, constants, 2.0) == pytest.approx(v2_12(0.1, constants, 2.0) / 2)
    kappa = math.sqrt(1 + 0.1 + 0.04)  # 1 + 2hμ + h²L²
    by_hand = 0.15 * sum(0.1 * kappa**k for k in range(20))
    assert one_sided(0.1, constants, 2.0) == pytest.approx(by_hand, rel=1e-12)
    assert one_sided(0.1, constants, 2.0, consistency=0.2) == pytest.approx(by_hand * 0.35 / 0.15)
    # λ = μ + ½hL² > 0: below (e^{λT} − 1)/λ.
    assert by_hand < 0.15 * (math.exp(0.7 * 2) - 1) / 0.7
    assert one_sided(0.1, constants_of(0.0, 0.0, 3.0), 2.0) == pytest.approx(0.3)  # κ = 1
    assert one_sided(0.5, constants_of(-2.0, 2.0, 3.0), 2.0) == pytest.approx(0.75 * 0.5)  # κ = 0
    assert one_sided(1e-3, constants_of(800.0, 800.0, 1.0), 2.0) == math.inf


def test_a_rotation_breaks_what_the_log_norm_alone_would_bound():
    """u' = 10uJ from (1, 0), T = 1: Euler is (1 + 10ih)^n, the solution e^{10i}, |u''| = 100, log-norm 0, Lipschitz 10."""
    constants = constants_of(0.0, 10.0, 100.0)
    for steps in (50, 100, 200, 400):
        h = 1 / steps
        error = max(abs((1 + 10j * h) ** k - np.exp(10j * h * k)) for k in range(steps + 1))
        assert error > 50 * h * growth_factor(0.0, 1.0)  # no bound: 1.68 for 1.0, 0.646 for 0.5 …
        assert error <= one_sided(h, constants, 1.0) <= v2_12(h, constants, 1.0)
        assert one_sided(h, constants, 1.0) < 5 * error


def test_a_contracting_field_needs_the_sum():
    """u' = −u + g with u'' = 1 all the way: after n steps Euler's error is ½h Σ h(1 − h)^k, exactly the sum with κ = 1 − h.
    (e^{λT} − 1)/λ is less, with λ = μ + ½hL² too, for it is below h after a single step."""
    h = 0.1
    constants = constants_of(-1.0, 1.0, 1.0)
    u = 0.0  # u(t) = ½t², g = u' + u
    for steps in range(1, 21):
        t = (steps - 1) * h
        u = u + h * (-u + t + 0.5 * t**2)
        error = abs(u - 0.5 * (steps * h) ** 2)
        assert one_sided(h, constants, steps * h) == pytest.approx(error, rel=1e-12)
        if steps == 1:
            assert error > 0.5 * h * growth_factor(-1 + 0.5 * h, h)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2, 9])
def test_euler_never_breaks_its_bound(seed):
    """Over the whole depth, at every step size, either of them; and the one-sided is the sharper one."""
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
        sharp = one_sided(t1 / steps, constants, t1)
        assert 0 < error <= sharp <= v2_12(t1 / steps, constants, t1)


@pytest.mark.parametrize("rate", [0.7, 0.05])
def test_how_far_the_bound_is_off(rate):
    """u' = λu: the bound is (e^{λT} − 1)/λT times the error as h → 0, so it is attained as λT → 0."""
    t1, steps = 2.0, 4000
    equation = linear(jnp.full((1, 1), rate))
    end = float(pj.simulate(pj.Discretization(equation, "euler", t1=t1, steps=steps), jnp.ones((1, 1))).us[-1, 0, 0])
    exact = math.exp(rate * t1)
    constants = field_constants(equation, jnp.array([t1]), jnp.full((1, 1, 1), exact))  # |u''| is largest at the end
    bound = v2_12(t1 / steps, constants, t1)
    assert bound / (exact - end) == pytest.approx(math.expm1(rate * t1) / (rate * t1), rel=1e-3)
