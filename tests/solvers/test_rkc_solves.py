"""Stabilized explicit methods in whole solves: orders, tolerances, counts, gradients, failures."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers._grid import Grid
from pdejax.solvers._laplacian import Laplacian
from pdejax.solvers._rkc import RKC2
from pdejax.solvers._rock2 import ROCK2

SCHEMES = [RKC2, ROCK2]
DIVERGED = diffrax.RESULTS.nonlinear_divergence  # pyright: ignore[reportAttributeAccessIssue]


def one_step(solver, f, t, h, y):
    """(y1, error estimate, state, result) of a first step."""
    term = diffrax.ODETerm(lambda t, y, args: f(t, y))
    t, t1 = jnp.asarray(t), jnp.asarray(t + h)
    state = solver.init(term, t, t1, y, None)
    y1, error, _, state, result = solver.step(term, t, t1, y, None, state, False)
    return y1, error, state, result


def _field(t, y):
    matrix = jnp.array([[-9.0, 4.0, 0.0], [3.0, -12.0, 5.0], [0.0, 4.0, -7.0]])
    return y @ matrix.T + jnp.sin(3.0 * t) * jnp.array([1.0, -2.0, 0.5]) - y**3


@functools.cache
def stiff(boundary="neumann"):
    """A stiff heat equation with a source that does not vanish at Dirichlet walls."""
    laplacian = Laplacian(Grid(48, boundary=boundary))
    x = laplacian.grid.points[:, None]

    def field(t, u, args):
        source = jnp.exp(-x) if boundary == "dirichlet" else jnp.cos(jnp.pi * x)
        return 0.1 * laplacian(u) + (1.0 if args is None else args) * (1.0 + source * jnp.sin(3.0 * t) - u**3)

    return field, jnp.sin(jnp.pi * x) if boundary == "dirichlet" else jnp.cos(jnp.pi * x)


@eqx.filter_jit
def _solve(field, solver, u0, dt0, t0, t1, args, saveat, controller, adjoint, max_steps):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0,
        t1,
        dt0,
        u0,
        args,
        saveat=saveat,
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )


def solve(
    field, solver, u0, dt0, t1=1.0, args=None, saveat=None, controller=None, adjoint=None, max_steps=16384, t0=0.0
):
    dt0, t0, t1 = jnp.asarray(dt0), jnp.asarray(t0), jnp.asarray(t1)
    saveat = diffrax.SaveAt(t1=True, solver_state=True) if saveat is None else saveat
    controller = diffrax.ConstantStepSize() if controller is None else controller
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    return _solve(field, solver, u0, dt0, t0, t1, args, saveat, controller, adjoint, max_steps)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order(scheme, problem, measured_orders):
    """Diffusive and, at steps short enough for it to be stable, dispersive; on and between the steps."""
    term = diffrax.ODETerm(problem.field)
    orders, smallest = measured_orders(term, scheme(stages=5), problem.u0, problem.ts, problem.exact, 48)
    for kind, found in orders.items():
        print(scheme.__name__, kind, found.round(3).tolist())
        np.testing.assert_allclose(found, 2.0, atol=0.15, err_msg=kind)
    assert smallest > 1e-11
    assert scheme().order(term) == 2


TS = (0.237, 0.5011, 0.793)


def _orders(scheme, field, u0, exact, steps):
    errors = []
    for count in steps:
        saveat = diffrax.SaveAt(ts=jnp.array([*TS, 1.0]), solver_state=True)
        solution = solve(field, scheme, u0, 1.0 / count, saveat=saveat)
        assert int(solution.stats["num_steps"]) == count and solution.result == diffrax.RESULTS.successful
        difference = solution.ys - exact
        errors.append([float(jnp.linalg.norm(difference[-1])), float(jnp.linalg.norm(difference[:-1]))])
    return np.log2(np.array(errors[:-1]) / errors[1:])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dirichlet_walls_do_not_reduce_the_order(scheme, reference):
    """A source that does not vanish at the walls, ρ = 920: the order is never below 2 and tends to it from above."""
    field, u0 = stiff("dirichlet")
    orders = _orders(scheme(stages=12), field, u0, reference(field, u0, jnp.array(TS)), (16, 32, 64, 128, 256))
    print(scheme.__name__, "Dirichlet (on, between)", orders.round(3).tolist())
    assert np.all(orders > 1.95)
    assert abs(orders[-1, 0] - 2.0) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_and_tolerance_on_a_stiff_problem(scheme, reference):
    """ρ = 920: order 2 with stages chosen per step, on and between the steps; adaptive runs within a factor of ten of the
    tolerance from 1e-3 to 1e-8.
    """
    field, u0 = stiff()
    exact = reference(field, u0, jnp.array(TS))
    saveat = diffrax.SaveAt(ts=jnp.array([*TS, 1.0]), solver_state=True)
    orders = _orders(scheme(), field, u0, exact, (8, 16, 32))
    print(scheme.__name__, "stiff (on, between)", orders.round(3).tolist())
    np.testing.assert_allclose(orders, 2.0, atol=0.15)
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        controller = diffrax.PIDController(rtol=jnp.asarray(tolerance), atol=jnp.asarray(tolerance))
        solution = solve(field, scheme(), u0, 1e-3, saveat=saveat, controller=controller)
        assert solution.result == diffrax.RESULTS.successful
        error = float(jnp.sqrt(jnp.mean((solution.ys[-1] - exact[-1]) ** 2)))
        state, stats = solution.solver_state, solution.stats
        print(
            f"{scheme.__name__} tolerance {tolerance:.0e}: error {error:.1e}, {int(state.evaluations)} evaluations, "
            f"{int(stats['num_steps'])} steps, {int(stats['num_rejected_steps'])} refused"
        )
        assert 0.1 * tolerance < error < 10.0 * tolerance


def test_evaluations_are_those_that_happen():
    """The count in the state against a field that counts its calls."""
    calls = []

    def counted(t, y):
        jax.debug.callback(lambda: calls.append(None))
        return _field(t, y)

    for solver in (RKC2(stages=6), ROCK2(stages=6), RKC2(), ROCK2(spectral_radius=300.0)):
        calls.clear()
        step = jax.jit(lambda y, solver=solver: one_step(solver, counted, 0.0, 0.5, y)[2])
        state = jax.block_until_ready(step(np.array([0.4, -0.9, 1.1])))
        jax.effects_barrier()
        assert len(calls) == int(state.evaluations) > 6


# Gradients.


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients(scheme):
    """Reverse mode by diffrax's checkpoints and by a checkpointed scan, forward mode, and central differences."""
    field, u0 = stiff()
    steps, end = 3, 0.3
    radius = None if scheme is RKC2 else 4 * 0.1 * 48.0**2 + 10.0  # one scheme suffices for the power iteration

    def by_diffrax(args, scan_kind=None, adjoint=None):
        solver = scheme(spectral_radius=radius, scan_kind=scan_kind, max_stages=40)
        saveat = diffrax.SaveAt(ts=jnp.array([0.17, end]))
        return jnp.sum(jnp.sin(solve(field, solver, u0, end / steps, end, args, saveat, None, adjoint, 8).ys))

    def by_scan(args):
        solver, term = scheme(spectral_radius=radius, max_stages=40), diffrax.ODETerm(field)
        state = solver.init(term, jnp.asarray(0.0), jnp.asarray(end / steps), u0, args)

        @jax.checkpoint
        def step(carry, k):
            y, state = carry
            t0, t1 = (end * (k + i) / steps for i in (0.0, 1.0))
            y, _, dense, state, _ = solver.step(term, t0, t1, y, args, state, False)
            path = diffrax.ThirdOrderHermitePolynomialInterpolation(t0=t0, t1=t1, **dense)
            return (y, state), path.evaluate(0.17)

        (y, _), between = jax.lax.scan(step, (u0, state), jnp.arange(float(steps)))
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(between[1]))

    at = jnp.asarray(1.3)
    expected = (by_diffrax(at + 1e-4) - by_diffrax(at - 1e-4)) / 2e-4
    found = {
        "recursive": jax.grad(by_diffrax)(at),
        "scan": jax.jit(jax.grad(by_scan))(at),
        "forward": jax.jvp(lambda a: by_diffrax(a, "lax", diffrax.ForwardMode()), (at,), (jnp.asarray(1.0),))[1],
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_with_fixed_stages(scheme):
    """No loop of unknown length: forward over reverse mode of one step."""

    def loss(y):
        return jnp.sum(one_step(scheme(stages=5), _field, 0.3, 0.1, y)[0] ** 2)

    y, v = np.array([0.4, -0.9, 1.1]), np.array([1.0, 0.3, -0.5])
    run = jax.jit(lambda y: (loss(y), *jax.jvp(jax.grad(loss), (y,), (v,))))
    (ahead, over, _), (behind, under, _), (_, slope, curvature) = (run(y + s * v) for s in (1e-5, -1e-5, 0.0))
    np.testing.assert_allclose(np.asarray(slope) @ v, (ahead - behind) / 2e-5, rtol=1e-7)
    np.testing.assert_allclose(curvature, (np.asarray(over) - np.asarray(under)) / 2e-5, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_refused_step_leaves_no_nan_in_gradients():
    """A first step far beyond the stage limit, in which the stages would overflow, is refused; the gradient is that of the
    steps taken.
    """

    def loss(a, adjoint=None):
        def field(t, u, args):
            return -args * u**3

        solver = RKC2(spectral_radius=lambda t, y, args: 3.0 * args * jnp.max(y**2), max_stages=3)
        controller = diffrax.PIDController(rtol=1e-6, atol=1e-6)
        out = solve(field, solver, jnp.array([2.0]), 50.0, 0.1, a, diffrax.SaveAt(t1=True), controller)
        return out.ys[0, 0]

    a = jnp.asarray(40.0)
    np.testing.assert_allclose(loss(a), 1.0 / np.sqrt(1 / 4 + 2 * 40.0 * 0.1), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(a), -0.1 * (1 / 4 + 8.0) ** -1.5, rtol=1e-4)


# Failures, and what must not matter.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_too_few_stages_for_the_step(scheme):
    """Constant steps end with a result that says so, and with no numbers; a controller finds the step that fits."""
    field, u0 = stiff()
    radius = 4 * 0.1 * 48.0**2 + 10.0
    solver = scheme(spectral_radius=radius, max_stages=8)
    short = 0.9 * solver.stability_limit(8) / radius
    for solver_, dt0, good in ((solver, short, True), (solver, 1.2 * short, False)):
        solution = solve(field, solver_, u0, dt0)
        assert (solution.result == diffrax.RESULTS.successful) == good
        assert np.isfinite(solution.ys).all() == good
        assert good or solution.result == DIVERGED
    for fixed in (scheme(stages=8, spectral_radius=radius), scheme(spectral_radius=lambda t, y, args: jnp.nan)):
        step = jax.jit(lambda y, fixed=fixed: one_step(fixed, lambda t, y: field(t, y, None), 0.0, 1.2 * short, y))
        y1, _, _, result = step(u0)
        assert result == DIVERGED and np.isnan(y1).all()
    controller = diffrax.PIDController(rtol=jnp.asarray(1e-3), atol=jnp.asarray(1e-3))
    solution = solve(field, solver, u0, 1.0, controller=controller)
    assert solution.result == diffrax.RESULTS.successful and int(solution.stats["num_rejected_steps"]) > 0
    assert bool(jnp.all(jnp.isfinite(solution.ys)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"stages": 1}, ValueError, "stages must be at least"),
        ({"stages": 0}, ValueError, "stages must be at least"),
        ({"stages": 2.0}, TypeError, "stages must be an integer"),
        ({"stages": True}, TypeError, "stages must be an integer"),
        ({"max_stages": 1}, ValueError, "max_stages must be at least"),
        ({"max_stages": None}, TypeError, "max_stages must be an integer"),
        ({"spectral_radius": -3.0}, ValueError, "non-negative"),
        ({"spectral_radius": float("nan")}, ValueError, "non-negative"),
        ({"spectral_radius": "large"}, TypeError, "spectral_radius must be None"),
        ({"spectral_radius": [1.0, 2.0]}, TypeError, "spectral_radius must be None"),
        ({"scan_kind": "fast"}, ValueError, "scan_kind must be"),
    ],
)
def test_bad_input(scheme, kwargs, error, match):
    with pytest.raises(error, match=match):
        scheme(**kwargs)


def test_rock2_needs_three_stages():
    with pytest.raises(ValueError, match="at least 3"):
        ROCK2(stages=2)


@pytest.mark.slow
def test_backwards_and_vmap_and_multiterm():
    """With time running backwards a function for the radius sees the user's depth; lanes of a vmap choose their own
    stages; a MultiTerm is taken as a whole; float32 stays float32.
    """
    seen = []

    def radius(t, y, args):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return 40.0

    def field(t, y, args):
        return jnp.sin(t) * jnp.flip(y) - y**3

    u0 = jnp.array([0.3, -0.4])
    backward = solve(field, RKC2(spectral_radius=radius), u0, -0.125, 0.0, t0=1.0).ys
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(set(seen)), np.arange(1, 9) / 8, atol=1e-12)
    mirrored = solve(lambda t, y, args: -field(1.0 - t, y, args), RKC2(spectral_radius=40.0), u0, 0.125).ys
    np.testing.assert_allclose(backward, mirrored, rtol=0, atol=1e-14)

    def linear(rate):
        return one_step(ROCK2(spectral_radius=rate), lambda t, y: -rate * y, 0.0, 1.0, jnp.ones(1))[::2]

    values, states = jax.vmap(linear)(jnp.array([1.0, 30.0, 500.0]))
    single = [linear(jnp.asarray(rate)) for rate in (1.0, 30.0, 500.0)]
    np.testing.assert_allclose(values, [value for value, _ in single], atol=1e-13)
    assert (
        states.stages.tolist() == [int(state.stages) for _, state in single] and len(set(states.stages.tolist())) == 3
    )

    both = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: jnp.sin(t) * jnp.flip(y)), diffrax.ODETerm(lambda t, y, args: -(y**3))
    )
    for dtype, solver in ((jnp.float64, RKC2()), (jnp.float32, RKC2()), (jnp.float32, ROCK2(stages=4))):
        y, t, h = u0.astype(dtype), jnp.zeros((), dtype), jnp.full((), 0.1, dtype)
        state = solver.init(both, t, h, y, None)
        y1, error, _, state, _ = solver.step(both, t, h, y, None, state, jnp.asarray(True))
        assert y1.dtype == error.dtype == dtype
        whole = one_step(solver, lambda t, y: field(t, y, None), 0.0, 0.1, u0)[0]
        np.testing.assert_allclose(y1, whole, rtol=1e-5 if dtype == jnp.float32 else 1e-13)
