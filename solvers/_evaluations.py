"""How many times a fixed-step solve evaluates its vector fields."""

import numbers
from typing import Any

import diffrax

from pdejax._arguments import checked
from pdejax.solvers._base import AbstractHermiteSolver
from pdejax.solvers._etdrk import AbstractETDRK
from pdejax.solvers._stabilized import AbstractStabilized
from pdejax.solvers._tableau import is_explicit, tableau


def _count(solver: diffrax.AbstractSolver) -> tuple[int, int] | None:
    """(evaluations per step, evaluations once at the start), or None where root finding decides."""
    wrapped = isinstance(solver, diffrax.AbstractWrappedSolver)  # passes for what it wraps, but costs more
    if isinstance(solver, AbstractHermiteSolver) and not wrapped:
        per_step = solver.step_evaluations()
        return None if per_step is None else (per_step, 0)
    if isinstance(solver, AbstractETDRK | AbstractStabilized) and not wrapped:
        per_step = solver.step_evaluations()
        return None if per_step is None else (per_step, 1)  # the slope at the end serves the next step
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        return None
    method = None if wrapped else tableau(solver)
    if isinstance(solver, diffrax.Euler) and not wrapped:
        return 1, 0
    if method is not None:
        # First same as last: the last stage of a step is the first of the next one, except in the first step.
        saved = int(type(solver).tableau.fsal)  # pyright: ignore[reportAttributeAccessIssue]
        return len(method.weights) - saved, saved
    raise TypeError(
        f"the evaluations of {type(solver).__name__} are not known; they are for the solvers of "
        "pdejax.solvers.SOLVERS, their combinations, and explicit Runge-Kutta methods with a tableau."
    )


def fresh_step_evaluations(solver: diffrax.AbstractSolver) -> int | None:
    """Evaluations of a single step that starts without memory, as inside a splitting."""
    method = tableau(solver)
    if method is not None and is_explicit(method):
        return len(method.stages())
    counts = _count(solver)
    return None if counts is None else sum(counts)


@checked
def evaluations(solver: diffrax.AbstractSolver, steps: Any) -> int | None:
    """Vector-field evaluations of a solve with `steps` fixed steps that saves no values between them.

    First-same-as-last methods (Bosh3, Tsit5, Dopri5, Dopri8) evaluate their last stage once for two steps. A
    splitting counts one for each evaluation of **one term**: k such evaluations, one of each term, cost about
    as much as one of the whole field. Dense output adds two evaluations of the whole field per step to the
    solvers made here (one to RK4, whose first stage is the slope at the start).

    **Returns:** the count, or None where it is not known beforehand: implicit solvers (Kvaerno5, or a splitting
    that contains it), whose root finder decides, and stabilized ones that choose their stages in every step.

    **Raises:** `TypeError` for a solver whose evaluations are not known or `steps` that is not an integer,
    `ValueError` for `steps` below 1.
    """
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral):
        raise TypeError(f"steps must be an integer of at least 1; got {steps!r}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    counts = _count(solver)
    return None if counts is None else int(steps) * counts[0] + counts[1]
