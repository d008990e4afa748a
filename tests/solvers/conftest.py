"""The problem on which orders are measured: two terms that do not commute, both depending on time, one nonlinear."""

import functools
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdejax.solvers import Grid, Laplacian

T1 = 1.0
# Irrational depths: never on the grid of any number of equal steps.
OFF_GRID = tuple(float(t) for t in (np.arange(1, 42) * np.sqrt(2.0)) % 1.0 * T1)


class Problem(NamedTuple):
    interaction: object
    reaction: object
    u0: jax.Array
    ts: jax.Array
    exact: jax.Array  # at ts and, last, at T1

    @property
    def split(self):
        return diffrax.MultiTerm(diffrax.ODETerm(self.interaction), diffrax.ODETerm(self.reaction))


def fixed_steps(terms, solver, u0, steps, ts, t0=0.0, t1=T1, adjoint=None):
    """Values at ts (on a fixed-step solve, by dense output) and at t1, shape (len(ts) + 1, n, d)."""
    saveat = diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)])
    return _solve(terms, solver, u0, (t1 - t0) / steps, t0, t1, saveat, adjoint)


@eqx.filter_jit
def _solve(terms, solver, u0, dt0, t0, t1, saveat, adjoint):
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0,
        t1,
        dt0,
        u0,
        saveat=saveat,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=4096,
    )
    return jnp.concatenate(solution.ys), solution.stats["num_steps"]


def tight(field, u0, ts, t1=T1):
    """Reference values at ts and t1: Dopri8 that steps exactly to them."""
    ts = jnp.append(ts, t1)
    controller = diffrax.ClipStepSizeController(diffrax.PIDController(rtol=1e-13, atol=1e-14), step_ts=ts)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(),
        0.0,
        t1,
        1e-3,
        u0,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=controller,
        max_steps=100_000,
    )
    return solution.ys


@functools.cache
def make_problem(kind: str) -> Problem:
    grid = Grid(12, boundary="periodic")
    laplacian = Laplacian(grid)
    x = grid.points[:, None]

    def diffusive(t, u, args):
        return 0.02 * (1.0 + 0.5 * jnp.sin(2.0 * t)) * laplacian(u)

    def dispersive(t, u, args):  # u = (a, b): a' = κ L b, b' = −κ L a, imaginary eigenvalues
        return 0.006 * (1.0 + 0.5 * jnp.sin(2.0 * t)) * laplacian(jnp.flip(u, 1)) * jnp.array([[1.0, -1.0]])

    def reaction(t, u, args):
        source = jnp.sin(3.0 * t) * jnp.cos(2.0 * jnp.pi * x) + jnp.zeros_like(u)
        return source + 1.5 * u - u**3 + 0.7 * jnp.sin(jnp.flip(u, 1))

    interaction = {"diffusive": diffusive, "dispersive": dispersive}[kind]
    u0 = jnp.concatenate(
        [jnp.sin(2.0 * jnp.pi * x) + 0.3, 0.5 * jnp.cos(4.0 * jnp.pi * x + 0.4) - 0.2], axis=1
    )
    ts = jnp.sort(jnp.array(OFF_GRID))
    exact = tight(lambda t, u, args: interaction(t, u, args) + reaction(t, u, args), u0, ts)
    return Problem(interaction, reaction, u0, ts, exact)


@pytest.fixture(params=["diffusive", "dispersive"])
def problem(request) -> Problem:
    return make_problem(request.param)


@pytest.fixture
def solve():
    """`fixed_steps`, and a count of the steps that it checks."""

    def run(terms, solver, u0, steps, ts, **kwargs):
        values, taken = fixed_steps(terms, solver, u0, steps, ts, **kwargs)
        assert int(taken) == steps
        return values

    return run


@pytest.fixture
def measured_orders(solve):
    """Orders over the last two halvings, on the grid (at t1) and off it, and the smallest error."""

    def measure(terms, solver, u0, ts, exact, steps):
        errors = []
        for count in (steps, 2 * steps, 4 * steps):
            difference = solve(terms, solver, u0, count, ts) - exact
            on = float(jnp.linalg.norm(difference[-1]))
            off = float(jnp.sqrt(jnp.mean(jnp.sum(difference[:-1] ** 2, axis=(1, 2)))))
            errors.append((on, off))
        errors = np.array(errors)
        return np.log2(errors[:-1] / errors[1:]), errors.min()

    return measure


@pytest.fixture
def reference():
    """`tight`: the solution of a field at given depths and at the end."""
    return tight
