"""Gradients of `simulate` by every rule it offers, against central differences and closed forms, in float64."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdejax import (
    Architecture,
    DepthVarying,
    MasterEquation,
    MultilayerEquation,
    Transformer,
    lift,
    simulate,
)
from pdejax._discretization import Discretization
from pdejax.solvers import Euler, Grid, Retract
from pdejax.terms import (
    Attention,
    Diffusion,
    EffectiveDiffusion,
    Exchange,
    FeedForward,
    LinearDamping,
    SpatialNorm,
    SphereProjection,
)

N, D = 5, 4
STEP = 1e-5


def field(seed=0, shape=(N, D)):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def master(seed=0, leak=False):
    k1, k2 = jax.random.split(jax.random.key(seed))
    return MasterEquation(Attention(D, 2, leak=leak, key=k1), FeedForward(D, 6, leak=leak, key=k2))


def damped():
    return MasterEquation(stabilization=LinearDamping(0.7))


def direction(point, seed=3):
    """A random direction over every float in `point`, weights and initial field alike."""
    random = np.random.default_rng(seed)
    arrays = eqx.filter(point, eqx.is_inexact_array)
    return jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape)), arrays)


def shifted(point, v, s):
    """`point + s·v`, what is not a float array unchanged."""
    return eqx.apply_updates(point, jax.tree.map(lambda x: s * x, v))


def functional(run):
    """A scalar of a trajectory that sees every saved number with a weight of its own."""
    us = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(run.us)])
    return jnp.sum(us * jnp.asarray(np.cos(np.arange(us.size))))


@eqx.filter_jit
def derivatives(point, v, loss, forward=None, reverse=None):
    """d/ds loss(point + s·v) by central differences, forward mode and reverse mode (of other losses, if given)."""
    ahead, behind = loss(shifted(point, v, STEP)), loss(shifted(point, v, -STEP))
    tangent = eqx.filter_jvp(loss if forward is None else forward, (point,), (v,))[1]
    gradient = eqx.filter_grad(loss if reverse is None else reverse)(point)
    cotangent = sum(jax.tree.leaves(jax.tree.map(lambda g, x: jnp.sum(g * x), gradient, v)))
    return (ahead - behind) / (2 * STEP), tangent, cotangent


# --- The default for fixed steps serves both modes ----------------------------------------------------------


def plain():
    return (master(), field()), lambda p: simulate(Discretization(p[0], "rk4", t1=1.0, steps=6), p[1])


def smooth_strang():
    """Depths on and off the grid, midpoint steps inside Strang, weights smooth in depth."""
    layers = [master(seed, leak=True) for seed in range(3)]
    varying = DepthVarying.from_layers(layers, 1.0, "cubic")
    return (varying, field()), lambda p: simulate(
        Discretization(p[0], "strang", t1=1.0, steps=5), p[1], save=[0.0, 0.2, 0.5, 1.0]
    )


def diffusive():
    """Every kind of term, a mask, a first-same-as-last solver, and reduced quantities at every step."""
    grid = Grid(N)
    parts = master()
    equation = MasterEquation(parts.interaction, parts.reaction, Diffusion(grid, 0.02), SpatialNorm(0.5, eps=0.1))
    mask = jnp.array([True, True, False, True, True])

    def energy(t, u, args):
        return {"energy": jnp.sum(jnp.where(args.mask[:, None], u, 0) ** 2), "first": u[0]}

    return (equation, field()), lambda p: simulate(
        Discretization(p[0], "tsit5", t1=0.5, steps=6), p[1], save="steps", reduce=energy, mask=mask
    )


def post_norm():
    """A lifted post-LN model: layers, Lie–Trotter, and retractions whose weights sit in the solver."""
    sizes = {"dim": D, "heads": 2, "layers": 3, "ffn": 5, "norm": "post", "dtype": "float64", "param_dtype": "float64"}
    model = Transformer(Architecture(vocab=7, **sizes), rngs=nnx.Rngs(0))
    point = (lift(model).field, lift(model).solver, field())
    return point, lambda p: simulate(Discretization(p[0], p[1], t1=3.0, steps=6), p[2])


CASES = {case.__name__: case for case in (plain, smooth_strang, diffusive, post_norm)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_modes_agree_with_differences(name):
    point, run = CASES[name]()

    difference, forward, reverse = derivatives(point, direction(point), lambda p: functional(run(p)))
    assert float(forward) == pytest.approx(float(difference), rel=1e-6)
    assert float(reverse) == pytest.approx(float(forward), rel=1e-11)


def test_closed_forms():
    """Euler on u' = −γu: u_k = (1 − γT/n)^k u0, so ∂u_k/∂γ = −k(T/n)(1 − γT/n)^{k−1} u0, and alike for T."""
    n, gamma, t1 = 7, 0.7, 1.3

    def run(u0, gamma, t1):
        equation = MasterEquation(stabilization=LinearDamping(gamma))
        return simulate(Discretization(equation, "euler", t1=t1, steps=n), u0, save="steps").us[:, 0, 0]

    point = (jnp.full((1, 1), 2.0), jnp.asarray(gamma), jnp.asarray(t1))
    k, q = np.arange(n + 1), 1 - gamma * t1 / n
    exact = (q**k, -k * t1 / n * q ** (k - 1.0) * 2, -k * gamma / n * q ** (k - 1.0) * 2)
    both = jax.jit(lambda *p: [jacobian(run, argnums=(0, 1, 2))(*p) for jacobian in (jax.jacfwd, jax.jacrev)])
    for jacobian in both(*point):
        for ours, theirs in zip(jacobian, exact, strict=True):
            np.testing.assert_allclose(np.ravel(ours), theirs, rtol=1e-12)


class Ramp(eqx.Module):
    """A source or a reduced quantity with a parameter of its own."""

    slope: jax.Array

    def __call__(self, x, t):
        return self.slope * t * jnp.ones((N, D))


class Scaled(eqx.Module):
    factor: jax.Array

    def __call__(self, t, u, args):
        return self.factor * jnp.sum(u)


def test_parameters_inside_source_and_reduce():
    """u' = a t from zero, times b, summed: N D a b T²/2 exactly, by the midpoint rule in any number of steps."""
    silent = eqx.tree_at(lambda m: m.w2, FeedForward(D, 2, key=jax.random.key(0)), jnp.zeros((2, D)))

    def total(a, b):
        equation = MasterEquation(
            reaction=eqx.tree_at(lambda m: m.source, silent, Ramp(a), is_leaf=lambda x: x is None)
        )
        run = simulate(Discretization(equation, "midpoint", t1=3.0, steps=2), jnp.zeros((N, D)), reduce=Scaled(b))
        return run.us[0]

    a, b = jnp.asarray(0.7), jnp.asarray(-2.0)
    both = jax.jit(lambda a, b: (jax.grad(total, argnums=(0, 1))(a, b), jax.jvp(total, (a, b), (b, a))[1]))
    gradient, forward = both(a, b)
    np.testing.assert_allclose(gradient, [N * D * 4.5 * b, N * D * 4.5 * a], rtol=1e-12)
    np.testing.assert_allclose(forward, N * D * 4.5 * (b * b + a * a), rtol=1e-12)


def test_implicit_fixed_steps():
    """Kvaerno5 by the implicit function theorem: both modes give d/dγ of e^{−γ} to its own accuracy."""

    def end(gamma):
        equation = MasterEquation(stabilization=LinearDamping(gamma))
        return simulate(Discretization(equation, "kvaerno5", t1=1.0, steps=16), jnp.ones((1, 1))).us[0, 0, 0]

    gamma = jnp.asarray(3.0)
    for slope in jax.jit(lambda g: (jax.grad(end)(g), jax.jvp(end, (g,), (jnp.ones(()),))[1]))(gamma):
        assert float(slope) == pytest.approx(-np.exp(-3.0), rel=1e-6)


def test_coupled_layers():
    layers = [MasterEquation(reaction=master(seed).reaction) for seed in (0, 1)]
    point = (MultilayerEquation(layers, [Exchange(D, key=jax.random.key(4))]), field(5, (2, N, D)))
    difference, forward, reverse = derivatives(
        point, direction(point), lambda p: functional(simulate(Discretization(p[0], "euler", t1=0.5, steps=3), p[1]))
    )
    assert float(forward) == pytest.approx(float(difference), rel=1e-6)
    assert float(reverse) == pytest.approx(float(forward), rel=1e-11)


def test_second_order():
    """Hessian-vector product, forward over reverse, against differences of the gradient; and batches of gradients."""
    equation = master()

    def loss(u0):
        return functional(simulate(Discretization(equation, "rk4", t1=1.0, steps=3), u0, save=[0.4, 1.0]))

    u, v = field(), field(7)
    u, v = np.asarray(u), np.asarray(v)

    @jax.jit
    def run(u, v, several):
        return jax.vmap(jax.grad(loss))(several), jax.jvp(jax.grad(loss), (u,), (v,))

    gradients, product = jax.device_get(run(u, v, np.stack([u + STEP * v, u - STEP * v, u])))
    np.testing.assert_allclose(product[0], gradients[2], rtol=1e-12, atol=1e-13)
    expected = (gradients[0] - gradients[1]) / (2 * STEP)
    np.testing.assert_allclose(product[1], expected, rtol=1e-6, atol=1e-7)


def test_gradient_passes_through_what_does_not_diverge():
    """A forward solve that blows up reports it under grad as well, instead of failing."""

    def loss(gamma):
        equation = MasterEquation(stabilization=LinearDamping(gamma))
        run = simulate(
            Discretization(equation, "euler", t1=10.0, steps=20), jnp.ones((1, 1)), save="steps", blowup=10.0
        )
        return run.us[1, 0, 0], (run.diverged, run.blowup_time)

    (_, (diverged, time)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(6.0))
    assert bool(diverged) and float(time) == pytest.approx(2.0)  # factors of −2: 16 > 10 after four steps
    assert float(gradient) == pytest.approx(-0.5)


# --- Other adjoints -----------------------------------------------------------------------------------------


def reaction():
    """Two terms, cheap to compile."""
    return MasterEquation(reaction=master().reaction, stabilization=LinearDamping(0.3))


@pytest.mark.slow
def test_adaptive_steps_in_both_modes():
    """Reverse mode by default, forward mode on request, to the accuracy of the tolerance."""

    def loss(p, adjoint=None):
        run = simulate(Discretization(p[0], t1=1.0, rtol=1e-11, atol=1e-11, adjoint=adjoint), p[1], save=[0.5, 1.0])
        return functional(run)

    point = (reaction(), field())
    difference, forward, reverse = derivatives(point, direction(point), loss, lambda p: loss(p, "forward"))
    assert float(forward) == pytest.approx(float(difference), rel=1e-6)
    assert float(reverse) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.slow
def test_named_adjoints_with_fixed_steps():
    """Direct in both modes, also for the Runge–Kutta steps inside a splitting; recursive and forward as named."""

    def loss(p, adjoint=None):
        return functional(simulate(Discretization(p[0], "strang", t1=1.0, steps=4, adjoint=adjoint), p[1]))

    point = (reaction(), field())
    v = direction(point)
    difference, forward, reverse = derivatives(point, v, loss, lambda p: loss(p, "direct"), lambda p: loss(p, "direct"))
    others = derivatives(point, v, loss, lambda p: loss(p, diffrax.ForwardMode()), lambda p: loss(p, "recursive"))
    for derivative in (forward, reverse, *others[1:]):
        assert float(derivative) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.slow
def test_backsolve_on_a_field_without_damping():
    """It solves the adjoint equation anew, so it agrees to the scheme's error; depths and reductions included."""

    def loss(p, adjoint=None, **options):
        d = Discretization(p[0], t1=1.0, adjoint=adjoint, **options)
        run = simulate(d, p[1], save=[0.25, 1.0], reduce=lambda t, u, args: jnp.sin(u))
        return functional(run)

    point = (MasterEquation(reaction=master().reaction), field())
    for options, tolerance in (({"steps": 16}, 1e-5), ({"rtol": 1e-9, "atol": 1e-9}, 1e-7)):
        gradient = eqx.filter_jit(eqx.filter_grad(lambda p, options=options: loss(p, "backsolve", **options)))(point)
        v = direction(point)
        products = jax.tree.map(lambda g, x: jnp.sum(g * x), gradient, v)
        ours = float(sum(jax.tree.leaves(products)))
        exact = float(eqx.filter_jvp(lambda p: loss(p, steps=100), (point,), (v,))[1])
        assert ours == pytest.approx(exact, rel=tolerance)


def test_backsolve_is_refused_where_it_would_be_wrong(getkey):
    u, grid = field(), Grid(N)
    parts = master()
    emergent = EffectiveDiffusion(grid, parts.interaction, parts.reaction, jnp.zeros((N, D)))

    def run(equation, t1=10.0, save=None, **options):
        return simulate(Discretization(equation, t1=t1, steps=4, adjoint="backsolve", **options), u, save=save)

    for equation in (
        MasterEquation(reaction=parts.reaction, diffusion=Diffusion(grid, 0.01)),
        MasterEquation(reaction=parts.reaction, diffusion=emergent),
        MasterEquation(reaction=parts.reaction, stabilization=SpatialNorm(1.0)),
        master(leak=True),
        damped(),
    ):
        with pytest.raises(ValueError, match="backsolve adjoint integrates the field's damping backwards"):
            run(equation)
    # Also where the damping itself is what one differentiates by, and where it cannot be seen.
    with pytest.raises(ValueError, match="damping backwards"):
        eqx.filter_grad(lambda equation: functional(run(equation)))(damped())
    with pytest.raises(ValueError, match="stabilization cannot be seen"):
        eqx.filter_jit(run)(damped())
    assert run(damped(), t1=1.0).us.shape == (1, N, D)  # 0.7 e-foldings lose nothing
    with pytest.raises(ValueError, match="backsolve adjoint cannot differentiate a splitting"):
        run(master(), solver="lietrotter")
    with pytest.raises(ValueError, match="backsolve adjoint cannot cross layers"):
        run(DepthVarying.from_layers([master(), master()], 10.0))
    with pytest.raises(ValueError, match="would miss the retraction"):
        run(master(), solver=Retract(Euler(), SphereProjection()))
    with pytest.raises(ValueError, match="backsolve adjoint cannot save every step"):
        run(master(), save="steps")


def test_implicit_explicit_solvers_with_a_mask():
    """Diffusion between real tokens only is a tridiagonal solve in each stage, and reverse mode goes through it."""
    keys = jax.random.split(jax.random.key(8), 3)
    equation = MasterEquation(interaction=Attention(4, 2, key=keys[0]), diffusion=Diffusion(Grid(6, length=6.0), 0.3))
    (u, direction), mask = np.random.default_rng(8).normal(size=(2, 6, 4)), jnp.arange(6) < 4

    def loss(u):
        return jnp.sum(jnp.sin(simulate(Discretization(equation, "ars222", t1=1.0, steps=3), u, mask=mask).us[-1])[:4])

    step, run = 1e-5, jax.jit(jax.vmap(jax.value_and_grad(loss)))
    values, slopes = run(np.stack([u + step * direction, u - step * direction, u]))
    difference = float(values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose(np.vdot(slopes[2], direction), difference, rtol=1e-7)
