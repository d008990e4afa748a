"""Exponential Runge–Kutta methods in use: error control, stability, derivatives, precision, refusals."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import DiagonalizableOperator, Grid, TridiagonalOperator
from pdejax.solvers._etdrk import ETDRK1, ETDRK2, ETDRK4

pytestmark = pytest.mark.filterwarnings("ignore:Complex dtype support")

SOLVERS = {
    "etdrk1": ETDRK1(),
    "etdrk2": ETDRK2(),
    "krogstad": ETDRK4(),
    "cox-matthews": ETDRK4(variant="cox-matthews"),
    "hochbruck-ostermann": ETDRK4(variant="hochbruck-ostermann"),
}
_rng = np.random.default_rng(3)


def _terms(rest, operator):
    return diffrax.MultiTerm(diffrax.ODETerm(rest), diffrax.ODETerm(operator))


@eqx.filter_jit
def _solve(solver, rest, operator, u0, times, dt0, ts, controller, args) -> Any:
    return diffrax.diffeqsolve(
        _terms(rest, operator), solver, times[0], times[1], dt0, u0, args, saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=controller, adjoint=diffrax.ForwardMode(), max_steps=16384, throw=False,
    )  # fmt: skip


@eqx.filter_jit
def _march(solver, rest, operator, u0, h, steps, args):
    """`steps` equal steps of size h from 0, by `lax.scan`."""
    terms = _terms(rest, operator)

    def step(carry, k):
        u, memory = carry
        u, _, _, memory, _ = solver.step(terms, k * h, (k + 1.0) * h, u, args, memory, made_jump=False)
        return (u, memory), None

    memory = solver.init(terms, 0.0 * h, h, u0, args)
    return jax.lax.scan(step, (u0, memory), jnp.arange(steps, dtype=h.dtype))[0][0]


# Error control.


class Made(eqx.Module):
    """A stiff problem with the solution u = (1 + sin ωt) s(x), where args = (a, ω): the rest a f(u), which does not vanish
    at a wall, and what remains. With a = 0 the rest does not depend on u.
    """

    operator: DiagonalizableOperator
    shape: jax.Array

    def solution(self, t, args):
        return (1.0 + jnp.sin(args[1] * t)) * self.shape

    def __call__(self, t, u, args):
        def f(v):
            return args[0] * (1.0 / (1.0 + v * v) + 2.0 * jnp.mean(v, axis=0, keepdims=True))

        exact = self.solution(t, args)
        slope = args[1] * jnp.cos(args[1] * t) * self.shape
        return f(u) - f(exact) + slope - self.operator(t, exact, None)


def _made(boundary, d, n=48):
    grid = Grid(n, boundary=boundary)
    x = grid.points[:, None]
    operator = DiagonalizableOperator(grid, d)
    return Made(operator, x * (1.0 - x) if boundary == "dirichlet" else 0.3 + jnp.cos(jnp.pi * x)), operator


@pytest.mark.parametrize(
    "name, boundary, tolerances, power",
    [
        ("krogstad", "neumann", (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9), 4),
        pytest.param("cox-matthews", "neumann", (1e-5, 1e-9), 4, marks=pytest.mark.slow),
        pytest.param("hochbruck-ostermann", "dirichlet", (1e-5, 1e-9), 4, marks=pytest.mark.slow),
        pytest.param("etdrk2", "neumann", (1e-4, 1e-5, 1e-6), 2, marks=pytest.mark.slow),
        pytest.param("etdrk1", "neumann", (1e-2, 2e-3), 1, marks=pytest.mark.slow),
    ],
)
def test_tolerance(name, boundary, tolerances, power):
    """The error is within a factor of 10 of the tolerance, with steps ∝ tolerance^(−1/power): weak and strong stiffness,
    with a rest that depends on u, on t alone, and both.
    """
    ts = jnp.linspace(0.0, 1.0, 42)[1:]
    for d, args in ((0.05, (1.0, 2.0)), (1.0, (1.0, 2.0)), (0.01, (0.0, 8.0))):
        rest, operator = _made(boundary, jnp.asarray(d))
        args = jnp.array(args)
        exact = jax.vmap(lambda t, rest=rest, args=args: rest.solution(t, args))(ts)
        counts = []
        for tolerance in tolerances:
            controller = diffrax.PIDController(rtol=0.0, atol=jnp.asarray(tolerance))
            times, first = jnp.array([0.0, 1.0]), jnp.asarray(0.01)
            solution = _solve(SOLVERS[name], rest, operator, rest.shape, times, first, ts, controller, args)
            error = float(jnp.sqrt(jnp.max(jnp.mean((solution.ys - exact) ** 2, axis=(1, 2)))))
            counts.append(int(solution.stats["num_accepted_steps"]))
            rejected = int(solution.stats["num_rejected_steps"])
            print(
                f"{name} {boundary} D={d} args={args} {tolerance}: {counts[-1]} + {rejected}, {error / tolerance:.3f}"
            )
            assert 0.001 * tolerance < error < 10.0 * tolerance
            assert rejected < 0.2 * counts[-1] + 8
        growth = np.log10(counts[-1] / counts[0]) / np.log10(tolerances[0] / tolerances[-1])
        assert growth == pytest.approx(1.0 / power, abs=0.15 / power)


def test_jumps():
    """A rest that jumps at a known depth: exact to the tolerance, first same as last forgets what was before."""
    operator = DiagonalizableOperator(Grid(8), 1.0)

    def rest(t, u, args):
        return jnp.where(t < 0.5, 1.0, -3.0) * jnp.ones_like(u) - u

    ts = jnp.array([0.25, 0.5, 0.75, 1.0])
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-8, atol=1e-8), jump_ts=jnp.array([0.5]), store_rejected_steps=20
    )
    u0 = jnp.zeros((8, 1))
    solution = _solve(ETDRK4(), rest, operator, u0, jnp.array([0.0, 1.0]), jnp.asarray(0.1), ts, controller, None)
    middle = 1.0 - np.exp(-0.5)
    exact = [1.0 - np.exp(-0.25), middle] + [-3.0 + (middle + 3.0) * np.exp(-s) for s in (0.25, 0.5)]
    np.testing.assert_allclose(solution.ys[:, 3, 0], exact, rtol=0, atol=1e-7)


# Stability.

# Stability polynomials at L = 0, constant term first: Euler, Heun, classic Runge–Kutta.
_POLYNOMIALS = {"etdrk1": [1, 1], "etdrk2": [1, 1, 1 / 2], "krogstad": [1, 1, 1 / 2, 1 / 6, 1 / 24]}


@pytest.mark.parametrize("name", SOLVERS)
def test_stability(name):
    """A rest λu with L = 0, from noise over 60 steps: bounded at 0.95 of the limit of the explicit scheme, growing at
    1.10. With damping in L it stays bounded at 0.95, and with the rest 0 at any step.
    """
    if name == "hochbruck-ostermann":
        a = np.zeros((5, 5))
        a[1, 0] = a[2, 1] = 0.5
        a[3, :3] = 0.0, 0.5, 0.5
        a[4] = 0.25, 0.125, 0.125, 0.0, 0.0
        b = np.array([1 / 6, 0, 0, 1 / 6, 2 / 3])
        polynomial = [1.0] + [b @ np.linalg.matrix_power(a, k) @ np.ones(5) for k in range(5)]
    else:
        polynomial = _POLYNOMIALS["krogstad" if name == "cox-matthews" else name]
    grid = np.linspace(0.0, 10.0, 100_001)
    limit = grid[np.argmax(np.abs(np.polynomial.polynomial.polyval(-grid, polynomial)) > 1.0 + 1e-9)]
    print(name, limit)
    u0 = jnp.asarray(_rng.normal(size=(6, 2)))

    def size(factor, d, rate=-1.0):
        operator = DiagonalizableOperator(Grid(6), jnp.asarray(d))
        end = _march(SOLVERS[name], lambda_rest, operator, u0, jnp.asarray(factor * limit), 60, jnp.asarray(rate))
        return float(jnp.linalg.norm(end) / jnp.linalg.norm(u0))

    assert size(0.95, 0.0) < 1.0
    assert size(1.10, 0.0) > 100.0
    assert size(0.95, 10.0) < 1.0
    assert size(1e4, 10.0, rate=0.0) <= 1.0


def lambda_rest(t, u, args):
    return args * u


# Derivatives.


def _rest(t, u, args):
    return args * jnp.tanh(jnp.flip(u, 0)) + jnp.cos(3.0 * t) * u**2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["krogstad", "etdrk2"])
def test_gradients(name):
    """With respect to the field, D, the rest and the end: scan and diffrax in reverse, and forwards, against differences."""
    solver, grid = SOLVERS[name], Grid(6, boundary="dirichlet")
    weight = jnp.asarray(_rng.normal(size=(6, 2)))

    def scan(u0, d, a, t1):
        operator = DiagonalizableOperator(grid, d, -0.3)
        return jnp.sum(weight * _march(solver, _rest, operator, u0, t1 / 5.0, 5, a))

    def solve(adjoint, u0, d, a, t1):
        operator, zero = DiagonalizableOperator(grid, d, -0.3), jnp.asarray(0.0)
        solution = diffrax.diffeqsolve(
            _terms(_rest, operator), solver, zero, t1, t1 / 5.0, u0, a, adjoint=adjoint, max_steps=8
        )
        assert solution.ys is not None
        return jnp.sum(weight * solution.ys[0])

    forward = functools.partial(solve, diffrax.ForwardMode())
    reverse = functools.partial(solve, diffrax.RecursiveCheckpointAdjoint())
    at = (jnp.asarray(_rng.normal(size=(6, 2))), jnp.array([0.3, 0.02]), jnp.asarray(0.7), jnp.asarray(0.6))
    along = tuple(jnp.asarray(_rng.normal(size=jnp.shape(x)) * 0.3) for x in at)
    # Value and derivative from one compilation: the value is the function for the differences.
    both = jax.jit(lambda s: jax.jvp(forward, tuple(x + s * v for x, v in zip(at, along, strict=True)), along))
    h = 1e-5
    numeric = float((both(h)[0] - both(-h)[0]) / (2 * h))
    assert float(both(0.0)[1]) == pytest.approx(numeric, rel=1e-7)
    for function in (scan, reverse):
        gradient = jax.jit(jax.grad(function, (0, 1, 2, 3)))(*at)
        along_gradient = float(sum(jnp.sum(g * v) for g, v in zip(gradient, along, strict=True)))
        assert along_gradient == pytest.approx(numeric, rel=1e-7)


# Precision, batches, direction, cost.


@pytest.mark.parametrize("name", ["etdrk1", "etdrk2", "hochbruck-ostermann"])
def test_single_precision(name):
    grid = Grid(16, boundary="periodic")
    operator = DiagonalizableOperator(grid, jnp.array([0.3, 0.0]), -0.5)
    u0 = jnp.asarray(_rng.normal(size=(16, 2)))
    ends = [
        _march(SOLVERS[name], _rest, operator, u0.astype(kind), jnp.asarray(0.05, kind), 8, jnp.asarray(0.7, kind))
        for kind in (jnp.float32, jnp.float64)
    ]
    assert ends[0].dtype == jnp.float32
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-5, atol=1e-5)


def test_batches():
    operator = DiagonalizableOperator(Grid(6), 0.2)
    batch = jnp.asarray(_rng.normal(size=(3, 6, 2)))

    def end(u0):
        return _march(ETDRK4(), _rest, operator, u0, jnp.asarray(0.1), 4, jnp.asarray(0.7))

    np.testing.assert_allclose(jax.vmap(end)(batch), [end(u) for u in batch], rtol=0, atol=1e-14)


def test_backwards():
    """From t = 1 to 0 it is the mirrored problem, also between the steps."""
    grid, ts = Grid(8, boundary="periodic"), jnp.array([0.1, 0.45, 0.8, 1.0])

    def rest(t, u, args):
        wave = (args[0] * jnp.cos(3.0 * (args[1] + args[0] * t))).astype(u.dtype)
        return wave * jnp.flip(u, 1) + 0.1 * args[0].astype(u.dtype) * u * u

    u0 = jnp.asarray(_rng.normal(size=(8, 2)) + 0.2j)
    steps = diffrax.ConstantStepSize()
    forward, backward = (DiagonalizableOperator(grid, jnp.asarray(sign * 0.2j)) for sign in (-1.0, 1.0))
    mirror = _solve(
        ETDRK4(), rest, forward, u0, jnp.array([0.0, 1.0]), jnp.asarray(0.125), ts, steps, jnp.array([-1.0, 1.0])
    )
    found = _solve(
        ETDRK4(), rest, backward, u0, jnp.array([1.0, 0.0]), jnp.asarray(-0.125), 1.0 - ts, steps, jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(found.ys, mirror.ys, rtol=0, atol=1e-13)
    assert float(jnp.max(jnp.abs(found.ys[-1] - u0))) > 0.1


@pytest.mark.parametrize("name, expected", [("etdrk1", 1), ("etdrk2", 2), ("krogstad", 4), ("hochbruck-ostermann", 5)])
def test_evaluations(name, expected):
    """`step_evaluations` per step and one at the start, as they are counted."""
    calls = []

    def rest(t, u, args):
        jax.debug.callback(lambda: calls.append(1))
        return -u

    operator = DiagonalizableOperator(Grid(4), 0.1)
    end = _march(SOLVERS[name], rest, operator, jnp.ones((4, 1)), jnp.asarray(0.1), 7, None)
    jax.block_until_ready(end)
    jax.effects_barrier()
    assert SOLVERS[name].step_evaluations() == expected
    assert len(calls) == 7 * expected + 1


# Refusals.


@pytest.mark.parametrize(
    "operator, u0, error, message",
    [
        (TridiagonalOperator(Grid(4), np.ones(4)), jnp.ones((4, 2)), TypeError, "no matrix functions"),
        (lambda t, u, args: -u, jnp.ones((4, 2)), TypeError, "then the linear operator"),
        (DiagonalizableOperator(Grid(4), 1.0), jnp.ones((5, 2)), ValueError, r"\(4, d\); got \(5, 2\)"),
        (DiagonalizableOperator(Grid(4), np.ones(3)), jnp.ones((4, 2)), ValueError, r"\(4, 3\)"),
        (DiagonalizableOperator(Grid(4), 1j), jnp.ones((4, 2)), TypeError, "complex state"),
    ],
)
def test_refuses(operator, u0, error, message):
    def rest(t, u, args):
        return u

    with pytest.raises(error, match=message):
        diffrax.diffeqsolve(_terms(rest, operator), ETDRK4(), 0.0, 1.0, 0.1, u0)


@pytest.mark.parametrize("u0", [jnp.ones((4, 2), jnp.bfloat16), jnp.ones((4, 2), int), {"u": jnp.ones((4, 2))}])
def test_refuses_state(u0):
    terms = _terms(lambda t, u, args: u, DiagonalizableOperator(Grid(4), 1.0))
    with pytest.raises(TypeError, match="one float32, float64 or complex array"):
        ETDRK4().init(terms, jnp.asarray(0.0), jnp.asarray(1.0), u0, None)


def test_refuses_variant():
    with pytest.raises(ValueError, match="choose one of"):
        ETDRK4(variant="rk4")  # pyright: ignore[reportArgumentType]
