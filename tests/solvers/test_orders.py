"""Orders of convergence, on and between the steps, for diffusive and dispersive parts."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import (
    RK4,
    Bosh3,
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
    "lietrotter-accurate": (LieTrotter((Tsit5(), RK4())), 1, 64),
    "strang-accurate": (Strang((RK4(), Bosh3())), 2, 32),
    "macaron": (get_solver("macaron", terms=2), 1, 128),
    "strang-of-strang": (Strang((Strang((Midpoint(), Midpoint())), Midpoint())), 2, 64),
}


def _check(orders, order, smallest, label):
    for kind, found in orders.items():
        print(f"{label} {kind}: (on, between) {found.round(3).tolist()}, smallest error {smallest:.1e}")
        np.testing.assert_allclose(found, order, atol=0.15, err_msg=kind)
    assert smallest > 1e-11  # above the rounding floor


@pytest.mark.parametrize("name", CASES)
def test_order(problem, measured_orders, name):
    solver, order, steps = CASES[name]
    terms = problem.split
    if name == "strang-of-strang":

        def drift(t, u, args):
            return jax.tree.map(lambda v: jnp.cos(t) * jnp.flip(v, 1) ** 2, u)

        def rest(t, u, args):
            return jax.tree.map(jnp.subtract, problem.reaction(t, u, args), drift(t, u, args))

        inner = diffrax.MultiTerm(diffrax.ODETerm(problem.interaction), diffrax.ODETerm(drift))
        terms = diffrax.MultiTerm(inner, diffrax.ODETerm(rest))
    orders, smallest = measured_orders(terms, solver, problem.u0, problem.ts, problem.exact, steps)
    _check(orders, order, smallest, name)
    assert solver.order(terms) == order


def _sphere(u):
    return jax.tree.map(lambda v: v / jnp.sqrt(jnp.sum(v**2, axis=1, keepdims=True)), u)


def _tangent(u, v):
    def project(p, q):
        return q - p * jnp.sum(p * q, axis=1, keepdims=True) / jnp.sum(p**2, axis=1, keepdims=True)

    return jax.tree.map(project, u, v)


@pytest.fixture(scope="module")
def on_sphere():
    """The solution of the projected field from a start on the sphere, computed once."""
    cache = {}

    def get(problem, reference):
        def projected(t, u, args):
            return _tangent(u, problem.field(t, u, args))

        if not cache:
            u0 = jax.jit(_sphere)(problem.u0)
            cache["result"] = projected, u0, reference(projected, u0, problem.ts)
        return cache["result"]

    return get


@pytest.mark.parametrize(
    "inner, tangent, order, steps",
    [(RK4(), True, 4, 48), (RK4(), False, 1, 64)],
    ids=["rk4-tangent", "rk4-general"],
)
def test_order_of_retraction(problem, measured_orders, reference, on_sphere, inner, tangent, order, steps):
    """Onto the sphere: the wrapped order for a tangent field, 1 for a general one; both on and between
    steps.
    """
    projected, u0, exact = on_sphere(problem, reference)
    term = diffrax.ODETerm(projected if tangent else problem.field)
    solver = Retract(inner, _sphere)
    orders, smallest = measured_orders(term, solver, u0, problem.ts, exact, steps)
    _check(orders, order, smallest, f"retract {inner} {'tangent' if tangent else 'general'}")
    assert solver.order(term) == 1


def test_order_of_retracted_splitting(problem, measured_orders, reference, on_sphere):
    """The sequential post-LN field, refined: order 1 on and between the steps."""
    _, u0, exact = on_sphere(problem, reference)
    solver = LieTrotter((Retract(Euler(), _sphere), Retract(Euler(), _sphere)))
    orders, smallest = measured_orders(problem.split, solver, u0, problem.ts, exact, 64)
    _check(orders, 1, smallest, "retracted splitting")


def test_a_retracted_path_stays_on_the_manifold_between_the_steps():
    """A turn about the origin with growth, drawn back to the circle. A step of RK4 turns by the angle φ, and halfway the Hermite
    cubic with tangential slopes has radius cos(φ/2) + (h/4) sin(φ/2) = 1 − O(h⁴); raw slopes bulge by O(h)."""
    term = diffrax.ODETerm(lambda t, u, args: jnp.stack([u[0] - u[1], u[0] + u[1]]))
    solver = Retract(RK4(), lambda u: u / jnp.linalg.norm(u))
    ts = np.linspace(0.0, 2.0, 129)[1:]  # eight in each of the finest steps

    @jax.jit
    def farthest(steps):
        saveat, start = diffrax.SaveAt(ts=ts), jnp.array([1.0, 0.0])
        us = diffrax.diffeqsolve(term, solver, 0.0, 2.0, 2.0 / steps, start, saveat=saveat, max_steps=16).ys
        return jnp.max(jnp.abs(jnp.linalg.norm(us, axis=1) - 1))

    for steps in (4.0, 8.0, 16.0):
        h = 2 / steps
        phi = np.angle(np.polyval([1 / 24, 1 / 6, 1 / 2, 1, 1], h * (1 + 1j)))
        radius = np.cos(phi / 2) + h / 4 * np.sin(phi / 2)
        np.testing.assert_allclose(farthest(steps), abs(radius - 1), rtol=1e-8)


class _ExactHeat(diffrax.AbstractSolver[None]):
    """The exact flow of a multiple of the Laplacian."""

    laplacian: Laplacian
    diffusivity: float
    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1 = self.laplacian.apply(lambda z: jnp.exp(self.diffusivity * (t1 - t0) * z), y0)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful


@pytest.mark.parametrize(
    "boundary, sources, expected",
    [
        ("neumann", [lambda x: np.cos(np.pi * x), lambda x: np.exp(-x)], [2.0, 1.75]),
        ("dirichlet", [lambda x: np.exp(-x)], [1.25]),
    ],
    ids=["neumann", "dirichlet"],
)
def test_strang_with_exact_diffusion(solve, boundary, sources, expected):
    """A reaction that breaks the boundary condition costs order: 2 → 1.75 (Neumann), 1.25 (Dirichlet). A feature, a source."""
    laplacian = Laplacian(Grid(256, boundary=boundary))
    x = np.asarray(laplacian.grid.points)
    source = np.stack([f(x) for f in sources], axis=1)

    def heat(t, u, args):
        return 0.5 * laplacian(u)

    def reaction(t, u, args):
        return 1.0 + jnp.cos(3.0 * t) * source - u**2

    terms = diffrax.MultiTerm(diffrax.ODETerm(heat), diffrax.ODETerm(reaction))
    solver = Strang((_ExactHeat(laplacian, 0.5), RK4()))
    u0 = jnp.asarray(np.stack([np.sin(np.pi * x) ** 2] * len(sources), axis=1))
    ends = [np.asarray(solve(terms, solver, u0, steps, jnp.array([0.5]))[-1]) for steps in (16, 32, 64, 128)]
    # Successive differences fall by 2^p as the errors do.
    gaps = np.array([np.linalg.norm(a - b, axis=0) for a, b in itertools.pairwise(ends)])
    orders = np.log2(gaps[:-1] / gaps[1:])
    print(f"Strang with exact diffusion, {boundary}, expected {expected}: {orders.round(3).tolist()}")
    np.testing.assert_allclose(orders, [expected] * 2, atol=0.15)


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


def test_reverse_time(solve):
    """From 1 to 0 the steps are those of v' = −f(1 − s, v) from 0 to 1, v(s) = u(1 − s); dense output too."""
    solver = Strang((Midpoint(), RK4()))
    parts = (lambda t, u, args: jnp.cos(t) * jnp.flip(u, 1), lambda t, u, args: jnp.sin(u**2 + t))

    def mirrored(part):
        return diffrax.ODETerm(lambda s, v, args: -part(1.0 - s, v, args))

    terms = diffrax.MultiTerm(*(diffrax.ODETerm(part) for part in parts))
    mirror = diffrax.MultiTerm(*(mirrored(part) for part in parts))
    u0, ts = jnp.array([[0.3, -0.4]]), jnp.array([0.9, 0.55, 0.2])
    backward = solve(terms, solver, u0, 8, ts, t0=1.0, t1=0.0)
    forward = solve(mirror, solver, u0, 8, 1.0 - ts)
    np.testing.assert_allclose(backward, forward, rtol=0, atol=1e-14)
    assert float(jnp.max(jnp.abs(backward[-1] - u0))) > 0.1
