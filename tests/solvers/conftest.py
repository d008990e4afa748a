"""The problem on which orders are measured: two terms that do not commute, both depending on time, one
nonlinear.

Its state is a pair of independent fields, one with a diffusive and one with a dispersive linear part, so that
one compilation measures both.
"""

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
KINDS = ("diffusive", "dispersive")


class Problem(NamedTuple):
    interaction: object
    reaction: object
    u0: dict
    ts: jax.Array  # irrational: never on the grid of any number of equal steps
    exact: dict  # at ts and, last, at T1

    @property
    def split(self):
        return diffrax.MultiTerm(diffrax.ODETerm(self.interaction), diffrax.ODETerm(self.reaction))

    def field(self, t, u, args):
        return jax.tree.map(jnp.add, self.interaction(t, u, args), self.reaction(t, u, args))


def fixed_steps(terms, solver, u0, steps, ts, t0=0.0, t1=T1, adjoint=None):
    """Values at ts, by dense output, and at t1: leading axis len(ts) + 1; and the number of steps taken."""
    saveat = diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t1=True)])
    # Arrays, so that they are traced: another number of steps is no new compilation.
    t0, t1, dt0 = (jnp.asarray(t) for t in (t0, t1, (t1 - t0) / steps))
    return _solve(terms, solver, u0, dt0, t0, t1, saveat, diffrax.ForwardMode() if adjoint is None else adjoint)


@eqx.filter_jit
def _solve(terms, solver, u0, dt0, t0, t1, saveat, adjoint):
    solution = diffrax.diffeqsolve(terms, solver, t0, t1, dt0, u0, saveat=saveat, adjoint=adjoint, max_steps=4096)
    return jax.tree.map(lambda *ys: jnp.concatenate(ys), *solution.ys), solution.stats["num_steps"]


def tight(field, u0, ts, t1=T1):
    """Reference values at ts and t1, in NumPy: Dopri8 that steps exactly to them."""
    return jax.device_get(_tight(field, u0, np.append(ts, t1), t1))


@eqx.filter_jit
def _tight(field, u0, ts, t1):
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
        adjoint=diffrax.ForwardMode(),
        max_steps=100_000,
    )
    return solution.ys


@functools.cache
def make_problem() -> Problem:
    grid = Grid(12, boundary="periodic")
    laplacian = Laplacian(grid)
    x = grid.points[:, None]
    signs = jnp.array([[1.0, -1.0]])

    def interaction(t, u, args):
        modulation = 1.0 + 0.5 * jnp.sin(2.0 * t)
        # With u = (a, b): a' = κ L b, b' = −κ L a has imaginary eigenvalues.
        rotated = laplacian(jnp.flip(u["dispersive"], 1)) * signs
        return {
            "diffusive": 0.02 * modulation * laplacian(u["diffusive"]),
            "dispersive": 0.006 * modulation * rotated,
        }

    def reaction(t, u, args):
        source = jnp.sin(3.0 * t) * jnp.cos(2.0 * jnp.pi * x)
        return jax.tree.map(lambda v: source * signs + 1.5 * v - v**3 + 0.7 * jnp.sin(jnp.flip(v, 1)), u)

    points = np.asarray(x)
    u0 = np.concatenate([np.sin(2.0 * np.pi * points) + 0.3, 0.5 * np.cos(4.0 * np.pi * points + 0.4) - 0.2], axis=1)
    ts = np.sort((np.arange(1, 302) * np.sqrt(2.0)) % 1.0)
    problem = Problem(interaction, reaction, dict.fromkeys(KINDS, jnp.asarray(u0)), jnp.asarray(ts), {})
    return problem._replace(exact=tight(problem.field, problem.u0, ts))


@pytest.fixture
def problem() -> Problem:
    return make_problem()


@pytest.fixture
def reference():
    """`tight`: the solution of a field at given depths and at the end."""
    return tight


@pytest.fixture
def solve():
    """`fixed_steps`, with the number of steps checked."""

    def run(terms, solver, u0, steps, ts, **kwargs):
        values, taken = fixed_steps(terms, solver, u0, steps, ts, **kwargs)
        assert int(taken) == steps
        return values

    return run


@pytest.fixture
def measured_orders(solve):
    """Orders over the last two halvings, {kind: [[on the grid, between], …]}, and the smallest error."""

    def errors(values, exact):
        difference = np.asarray(values) - exact
        between = np.sqrt(np.mean(np.sum(difference[:-1] ** 2, axis=(1, 2))))
        return float(np.linalg.norm(difference[-1])), float(between)

    def measure(terms, solver, u0, ts, exact, steps):
        runs = [solve(terms, solver, u0, count, ts) for count in (steps, 2 * steps, 4 * steps)]
        found = {kind: np.array([errors(run[kind], exact[kind]) for run in runs]) for kind in KINDS}
        orders = {kind: np.log2(e[:-1] / e[1:]) for kind, e in found.items()}
        return orders, min(e.min() for e in found.values())

    return measure
