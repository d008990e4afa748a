"""Orders of convergence, on and between the steps, for diffusive and dispersive parts."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import (
    RK4,
    Dopri5,
    Euler,
    Grid,
    Laplacian,
    LieTrotter,
    Midpoint,
    Retract,
    Strang,
    Tsit5,
    get_solver,
)

# name: (solver of two terms, order, coarsest number of steps)
CASES = {
    "rk4": (RK4(), 4, 48),
    "lietrotter-euler": (LieTrotter((Euler(), Euler())), 1, 128),
    "lietrotter-accurate": (LieTrotter((Tsit5(), RK4())), 1, 64),
    "strang-midpoint": (get_solver("strang", terms=2), 2, 32),
    "strang-accurate": (Strang((RK4(), Dopri5())), 2, 32),
    "strang-mixed": (Strang((Midpoint(), Euler())), 1, 128),
    "macaron": (get_solver("macaron", terms=2), 1, 128),
    "strang-of-strang": (Strang((Strang((Midpoint(), Midpoint())), Midpoint())), 2, 32),
}


@pytest.mark.parametrize("name", CASES)
def test_order(problem, measured_orders, name):
    solver, order, steps = CASES[name]
    terms = problem.split
    if name == "strang-of-strang":
        drift = diffrax.ODETerm(lambda t, u, args: jnp.cos(t) * jnp.flip(u, 1) ** 2)
        rest = diffrax.ODETerm(lambda t, u, args: problem.reaction(t, u, args) - drift.vf(t, u, args))
        terms = diffrax.MultiTerm(diffrax.MultiTerm(terms.terms[0], drift), rest)
    orders, smallest = measured_orders(terms, solver, problem.u0, problem.ts, problem.exact, steps)
    print(f"{name}: (on, off) {orders.round(3).tolist()}, smallest error {smallest:.1e}")
    assert smallest > 1e-11  # above the rounding floor
    np.testing.assert_allclose(orders, order, atol=0.15)
    assert solver.order(terms) == order


def _sphere(u):
    return u / jnp.sqrt(jnp.sum(u**2, axis=1, keepdims=True))


def _tangent(u, v):
    return v - u * jnp.sum(u * v, axis=1, keepdims=True) / jnp.sum(u**2, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "inner, tangent, order, steps",
    [(RK4(), True, 4, 48), (Midpoint(), True, 2, 32), (RK4(), False, 1, 64), (Euler(), False, 1, 64)],
    ids=["rk4-tangent", "midpoint-tangent", "rk4-general", "euler-general"],
)
def test_order_of_retraction(problem, measured_orders, reference, inner, tangent, order, steps):
    """Onto the sphere: the wrapped order for a tangent field, 1 for a general one; both on and between the steps."""

    def field(t, u, args):
        return problem.interaction(t, u, args) + problem.reaction(t, u, args)

    def projected(t, u, args):
        return _tangent(u, field(t, u, args))

    u0 = _sphere(problem.u0)
    exact = reference(projected, u0, problem.ts)
    term = diffrax.ODETerm(projected if tangent else field)
    orders, smallest = measured_orders(term, Retract(inner, _sphere), u0, problem.ts, exact, steps)
    print(f"retract {inner}: (on, off) {orders.round(3).tolist()}, smallest error {smallest:.1e}")
    assert smallest > 1e-11
    np.testing.assert_allclose(orders, order, atol=0.15)


def test_order_of_retracted_splitting(problem, measured_orders, reference):
    """A split post-LN field in the limit of small steps: order 1 on and between the steps."""

    def projected(t, u, args):
        return _tangent(u, problem.interaction(t, u, args) + problem.reaction(t, u, args))

    u0 = _sphere(problem.u0)
    exact = reference(projected, u0, problem.ts)
    solver = LieTrotter((Retract(Euler(), _sphere), Retract(Euler(), _sphere)))
    orders, _ = measured_orders(problem.split, solver, u0, problem.ts, exact, 64)
    print(f"retracted splitting: (on, off) {orders.round(3).tolist()}")
    np.testing.assert_allclose(orders, 1, atol=0.15)


def test_strang_loses_order_at_a_dirichlet_boundary(solve):
    """A reaction that does not vanish at the wall: Strang falls to about 1.25, RK4 on the whole field does not."""
    grid = Grid(63, boundary="dirichlet")
    laplacian = Laplacian(grid)
    diffusivity = 0.05

    def heat(t, u, args):
        return diffusivity * laplacian(u)

    def reaction(t, u, args):
        return jnp.exp(-u) + jnp.cos(t)

    class ExactHeat(diffrax.AbstractSolver[None]):
        term_structure = diffrax.AbstractTerm
        interpolation_cls = diffrax.LocalLinearInterpolation

        def order(self, terms):
            return 2

        def init(self, terms, t0, t1, y0, args):
            return None

        def func(self, terms, t0, y0, args):
            return terms.vf(t0, y0, args)

        def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
            y1 = laplacian.apply(lambda z: jnp.exp(diffusivity * (t1 - t0) * z), y0)
            return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    terms = diffrax.MultiTerm(diffrax.ODETerm(heat), diffrax.ODETerm(reaction))
    u0 = jnp.sin(jnp.pi * grid.points)[:, None]
    ts = jnp.array([0.3])
    exact = solve(diffrax.ODETerm(lambda t, u, a: heat(t, u, a) + reaction(t, u, a)), RK4(), u0, 1024, ts)[-1]
    solver = Strang((ExactHeat(), RK4()))
    errors = [float(grid.norm(solve(terms, solver, u0, n, ts)[-1] - exact)) for n in (8, 16, 32)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    print(f"Strang, Dirichlet, reaction not zero at the wall: {orders.round(3).tolist()}")
    assert np.all((orders > 1.0) & (orders < 1.5))


def test_orders_need_no_recompilation(problem, solve):
    """The step size is traced: one trace serves every number of steps."""
    traces = []

    def field(t, u, args):
        traces.append(None)
        return problem.reaction(t, u, args)

    term = diffrax.ODETerm(field)
    solve(term, RK4(), problem.u0, 5, problem.ts)
    first = len(traces)
    for steps in (7, 11, 40):
        solve(term, RK4(), problem.u0, steps, problem.ts)
    assert len(traces) == first


def test_reverse_time_returns(problem, solve):
    """Integrating back from t1 to 0 returns to u0 with the scheme's error."""
    for solver in (RK4(), Strang((RK4(), RK4())), Retract(RK4(), lambda u: u)):
        terms = problem.split
        if isinstance(solver, Strang):
            tolerance = 1e-3
        else:
            tolerance = 1e-5
        forward = solve(terms, solver, problem.u0, 64, problem.ts)
        end = forward[-1]
        backward = solve(terms, solver, end, 64, jnp.flip(problem.ts), t0=1.0, t1=0.0)
        np.testing.assert_allclose(backward[-1], problem.u0, atol=tolerance)
        np.testing.assert_allclose(jnp.flip(backward[:-1], 0), forward[:-1], atol=tolerance)
