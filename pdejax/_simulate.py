"""`simulate`: run a discretization."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from pdejax import _check
from pdejax._arguments import checked
from pdejax._check import traced
from pdejax._choose import Choice
from pdejax._discretization import Discretization
from pdejax._integrate import Diffrax, Outcome, Plan, Problem, run, with_loops, with_root_tolerances
from pdejax._plan import make_plan
from pdejax._start import starting_step
from pdejax._steps import CheckpointedScan, CountedLoop
from pdejax._trajectory import Trajectory
from pdejax.solvers import evaluations, real_stability_limit
from pdejax.terms import FieldArgs

# States that the gradient of an adaptive solve keeps. diffrax's own number, 360 for the largest number of steps allowed, takes
# longer to clear than a short solve; with 64, solves of up to 2,145 steps are computed no more than twice again.
_CHECKPOINTS = 64


class DivergenceError(RuntimeError):
    """Raised by `simulate(..., throw=True)` when the field blows up or the steps run out."""


@checked
def simulate(
    d: Discretization,
    u0: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    save: str | ArrayLike | Sequence[float] | None = None,
    reduce: Callable[[Array, Array, FieldArgs], Any] | None = None,
    blowup: float | None = None,
    progress: bool = False,
    throw: bool = False,
) -> Trajectory:
    r"""Integrate $\partial_t u = f(t, u)$ over depth, from `u0 (n, d)` at `d.t0` to `d.t1`, by the solver and steps of `d`.

    - `d`: a [`Discretization`][pdejax.Discretization]: `pdejax.lift(model)`, or one of your own.
    - `mask (n,)`: True at real tokens; padded ones are ignored as keys and in averages.
    - `save`: `"end"`; `"steps"` (t0 and every step); `"layers"` (t0 and every layer's end); or increasing depths `(k,)`.
      Default: `"layers"` for piecewise-constant weights, else `"end"`.
    - `reduce(t, u, args)`: save this instead of the field, so that long trajectories need no memory; its types are kept.
    - `blowup`: end the solve when max|u| exceeds this (default: the square root of the largest float).
    - `progress`: show a progress meter (by layers for piecewise-constant weights).
    - `throw`: raise `DivergenceError` instead of reporting.

    Returns a `Trajectory`. A field that blows up is a result (`diverged`, `blowup_time`), not an exception. The step size is a
    traced value: one compiled function serves every number of steps. Batches go through `jax.vmap`. Adaptive
    steps with a backsolve adjoint leave a call into Python in the program, a check of diffrax's: it can then be neither
    exported nor kept in the compilation cache.

    Raises `ValueError`/`TypeError` for states and masks that do not fit, before compiling.
    """
    return integrate(
        "simulate", d, u0, mask=mask, save=save, reduce=reduce, blowup=blowup, progress=progress, throw=throw
    )


def integrate(
    owner: str,
    d: Discretization,
    u0: Any,
    *,
    mask: Any = None,
    save: Any = None,
    reduce: Callable[..., Any] | None = None,
    blowup: float | None = None,
    progress: bool = False,
    throw: bool = False,
) -> Trajectory:
    """`simulate`, with errors that name `owner`, the function that the user called."""
    if not isinstance(d, Discretization):
        raise TypeError(
            f"{owner}: the first argument is a {type(d).__name__}; give a Discretization: pdejax.lift(model), or "
            "pdejax.Discretization(field, solver, t1=…, steps=…)."
        )
    u0, args = d.check_state(owner, u0, mask)
    d, choice = _starting(owner, d, u0).settled(owner, u0, args)
    _check_resolvable(owner, d, u0)
    limit = _limit(owner, blowup, u0.dtype)
    if choice is not None and progress:
        print(f"{owner}: {choice}", file=sys.stderr, flush=True)
    plan, depths = make_plan(owner, d, save, limit, progress, _cost(d))
    if isinstance(d.adjoint, diffrax.BacksolveAdjoint) and plan.save == "steps":
        raise ValueError(
            f"{owner}: the backsolve adjoint cannot save every step; give an array of depths, or leave adjoint out."
        )
    assert d.solver is not None
    time = jnp.asarray(d.t0, u0.dtype), jnp.asarray(d.t1, u0.dtype)
    problem = Problem(d.field, u0, args, d.solver, *time, reduce)
    outcome = _solve(problem, plan, d)
    trajectory = _trajectory(problem, plan, outcome, depths, d, choice)
    return _checked(owner, trajectory, throw)


def check_start(owner: str, d: Discretization) -> None:
    """Raise `ValueError`, naming `owner`, for a field that still wants the state that its loop begins with."""
    if d.field.needs_start:
        raise ValueError(
            f"{owner}: the field adds the state that its loop began with, which this state need not be; give the "
            "discretization of one input: d.given(start), such as pdejax.lift(model).given(model.hidden_states(tokens, mask)[p]) "
            "with p the number of layers before the loop."
        )


def _starting(owner: str, d: Discretization, u0: Array) -> Discretization:
    """A solve from `u0`, which is what the loop begins with; after a prelude the solve finds that on its way. `ValueError` for a
    solve that begins later, whose first state need not be the one that is added."""
    if d.field.needs_start and (traced(d.t0) or float(d.t0) != 0):
        check_start(owner, d)
    prelude = d.field.needs_start and getattr(d.field, "prelude", 0)
    if not prelude:
        return d.given(u0)
    if not d.layers:
        raise ValueError(
            f"{owner}: the field adds what a prelude of {prelude} layers gives, which a field that varies within a layer "
            f"(kind {d.field.kind!r}) does not say; use kind='constant', or give it: d.given(start)."
        )
    return d


def loop_begins(d: Discretization, count: int) -> int | None:
    """After how many of `count` equal parts of the depth the state is reached that a loop adds; None where that is within one."""
    place, between = divmod(d.field.prelude * count, len(d.layers)) if d.layers else (0, 0)
    return None if between else min(place, count)


def begun(owner: str, d: Discretization, u0: Array, mask: Any) -> Discretization:
    """`d.given(start)` with the state that the loop of a solve from `u0` begins with; after a prelude that takes a solve."""
    d = _starting(owner, d, u0)
    if not d.field.needs_start:
        return d
    u, args = d.check_state(owner, u0, mask)
    whole, _ = d.settled(owner, u, args)
    t1, steps = (x if traced(x) else np.asarray(x).item() for x in (d.t1, 0 if d.adaptive else d.steps))
    count, first = len(d.layers), min(d.field.prelude, len(d.layers))
    prelude = whole.replace(t1=t1 * first / count, **({} if d.adaptive else {"steps": steps * first // count}))
    return d.given(integrate(owner, prelude, u, mask=args.mask, save="end").us[-1])


def _solve(problem: Problem, plan: Plan, d: Discretization) -> Outcome:
    segments = max(len(plan.layers), 1)
    if traced(d.t0, d.t1, d.steps):
        problem = _invalid_unless_resolved(problem, d, True if d.adaptive else jnp.asarray(d.steps) % segments == 0)
    if d.adaptive:
        tolerances = jnp.asarray(d.rtol, problem.u0.dtype), jnp.asarray(d.atol, problem.u0.dtype)
        ceiling = d.max_steps if d.max_steps is not None else 4096 if plan.save == "steps" else 65536
        return _adaptive(problem, plan, tolerances, d.adjoint, ceiling)
    forward = d.adjoint is None or isinstance(d.adjoint, diffrax.ForwardMode)
    if traced(d.steps):
        return _fixed_traced(problem, d.steps // segments, plan=plan, adjoint=None if forward else d.adjoint)
    steps = int(d.steps) // segments
    if d.adjoint is None:
        return _fixed(problem, plan=plan, steps=steps)
    if forward:
        return _by_loop(problem, plan, jnp.asarray(steps), steps)
    return _by_diffrax(problem, plan, jnp.asarray(steps), d.adjoint, steps)


@eqx.filter_custom_jvp
def _fixed_traced(problem: Problem, steps: Array, *, plan: Plan, adjoint: diffrax.AbstractAdjoint | None) -> Outcome:
    # A traced number of steps: one program for all of them, derivatives in forward mode only.
    if adjoint is None:
        return _by_loop(problem, plan, steps, None)
    return _by_diffrax(problem, plan, steps, adjoint, None)


@_fixed_traced.def_jvp
def _fixed_traced_jvp(primals, tangents, *, plan: Plan, adjoint: diffrax.AbstractAdjoint | None):
    problem, steps = primals

    def solve(p):
        return _by_loop(p, plan, steps, None) if adjoint is None else _by_diffrax(p, plan, steps, adjoint, None)

    out, change = eqx.filter_jvp(solve, (problem,), (tangents[0],))

    def refuse(_, __):
        raise TypeError(
            "Discretization: steps is traced, which serves forward-mode derivatives (jax.jvp, jax.jacfwd) only; for jax.grad "
            "give steps as a Python integer."
        )

    if not jax.tree.leaves(change):
        return out, change
    marked = jax.custom_derivatives.linear_call(lambda _, x: x, refuse, (), change)
    return out, marked


@eqx.filter_custom_jvp
def _fixed(problem: Problem, *, plan: Plan, steps: int) -> Outcome:
    # The number of steps is traced here, so a sweep over step sizes compiles once...
    most = steps if plan.save == "steps" else None
    plan = eqx.tree_at(lambda p: (p.slots, p.where), plan, (None, None), is_leaf=lambda x: x is None)
    return _by_loop(problem, plan, jnp.asarray(steps), most)


@_fixed.def_jvp
def _fixed_jvp(primals, tangents, *, plan: Plan, steps: int):
    # ... and static here, so that the derivative can be transposed.
    return eqx.filter_jvp(lambda problem: _by_scan(problem, plan, steps), primals, tangents)


@eqx.filter_jit
def _by_scan(problem: Problem, plan: Plan, steps: int) -> Outcome:
    problem = with_loops(with_root_tolerances(problem), "bounded")
    return run(problem, plan, CheckpointedScan(steps))


@eqx.filter_jit
def _by_loop(problem: Problem, plan: Plan, steps: Array, most: int | None) -> Outcome:
    problem = with_loops(with_root_tolerances(problem), "lax")
    return run(problem, plan, CountedLoop(steps, most))


@eqx.filter_jit
def _by_diffrax(
    problem: Problem, plan: Plan, steps: Array, adjoint: diffrax.AbstractAdjoint, max_steps: int | None
) -> Outcome:
    problem = with_loops(with_root_tolerances(problem), _loops(adjoint))
    return run(problem, plan, Diffrax(None, None, steps, adjoint, max_steps))


@eqx.filter_jit
def _adaptive(
    problem: Problem, plan: Plan, tolerances, adjoint: diffrax.AbstractAdjoint | None, max_steps: int
) -> Outcome:
    rtol, atol = tolerances
    order = problem.solver.error_order(None) or problem.solver.order(None) or 1  # pyright: ignore[reportArgumentType]

    def first(terms, t0, t1, u, args):
        # Where the steps lie changes the result by less than the tolerance: their own derivative is left out (StartingStep).
        # A linear part taken exactly or implicitly does not limit the first step.
        rate = None if plan.split == "linear" else problem.equation.damping()
        return starting_step(rate, terms, t0, t1, u, args, order, rtol, atol)

    longest = _longest_step(problem, plan)
    controller = diffrax.PIDController(rtol=rtol, atol=atol, dtmax=longest)
    adjoint = diffrax.RecursiveCheckpointAdjoint(_CHECKPOINTS) if adjoint is None else adjoint
    # Every step is computed once more in reverse mode: a checkpointed loop over its stages would compute them a third time.
    stages = isinstance(adjoint, diffrax.RecursiveCheckpointAdjoint) and isinstance(problem.solver, diffrax.AbstractERK)
    problem = with_loops(problem, "bounded" if stages else _loops(adjoint))
    return run(problem, plan, Diffrax(controller, first, None, adjoint, max_steps))


def _longest_step(problem: Problem, plan: Plan) -> Array | None:
    """The stability limit of an explicit solver for the linear rates of the field, with a margin of 5 %; None if it has none.

    Beyond it a smooth solution passes unharmed for a while, because the modes that grow are not in it: the error estimate
    sees them late. Derivatives see them at once. A Tsit5 gradient of a field with diffusion, tolerance 1e-8, was wrong by a
    factor of 600 without this limit; finite differences of the same solves were right.
    """
    limit = None if plan.split is not None else real_stability_limit(problem.solver)
    if limit is None or not math.isfinite(limit):
        return None
    rate = jax.lax.stop_gradient(problem.equation.linear_rate()).astype(problem.u0.dtype)
    return jnp.where(rate > 0, 0.95 * limit / jnp.where(rate > 0, rate, 1.0), jnp.inf)


def _loops(adjoint: diffrax.AbstractAdjoint) -> Literal["lax", "bounded"] | None:
    """diffrax chooses this for a Runge–Kutta solver, but not for those inside a splitting."""
    if isinstance(adjoint, diffrax.ForwardMode):
        return "lax"
    return "bounded" if isinstance(adjoint, diffrax.DirectAdjoint) else None


def _check_resolvable(owner: str, d: Discretization, u0: Array) -> None:
    """Refuse steps that the depths cannot resolve, and tolerances that lie below the rounding of the field."""
    eps = float(np.finfo(u0.dtype).eps)
    advice = ", or a float64 field" if u0.dtype == np.float32 else ""
    if not traced(d.t0, d.t1, d.steps):
        t0, t1 = float(d.t0), float(d.t1)
        # diffrax rounds a step that ends within 100 units of the last place of t1 up to t1.
        least = 4 if _counts_itself(d) else 200
        spacing = eps * max(abs(t0), abs(t1))
        if (t1 - t0) / (1 if d.adaptive else int(d.steps)) < least * spacing:
            what = "any steps" if d.adaptive else f"{d.steps} steps"
            raise ValueError(
                f"{owner}: t0={t0:g}, t1={t1:g} do not resolve {what} in {u0.dtype}, whose depths are {spacing:.2g} apart there; "
                f"use depths nearer to 0{'' if d.adaptive else ', fewer steps'}{advice}."
            )
    if not d.adaptive or traced(d.rtol, d.atol, u0):
        return
    size = float(np.max(np.abs(np.asarray(u0))))
    if float(d.rtol) < eps and float(d.atol) < eps * size:
        raise ValueError(
            f"{owner}: rtol={d.rtol} and atol={d.atol} lie below the rounding of a {u0.dtype} field of size {size:.3g}; use "
            f"rtol ≥ {10 * eps:.1g}{advice}."
        )


def _counts_itself(d: Discretization) -> bool:
    """Whether the steps are counted here, and not by diffrax."""
    return not d.adaptive and (d.adjoint is None or isinstance(d.adjoint, diffrax.ForwardMode))


def _invalid_unless_resolved(problem: Problem, d: Discretization, shared: Any) -> Problem:
    """Traced depths and numbers of steps cannot be refused: where they do not fit, the field is infinite from the start."""
    eps = float(jnp.finfo(problem.t0.dtype).eps)
    spacing = eps * jnp.maximum(jnp.abs(problem.t0), jnp.abs(problem.t1))
    steps = jnp.asarray(1 if d.adaptive else d.steps).astype(problem.t0.dtype)
    resolved = problem.t1 - problem.t0 >= (4 if _counts_itself(d) else 200) * spacing * steps
    return eqx.tree_at(
        lambda p: p.u0, problem, problem.u0 + jnp.where(resolved & shared, 0.0, jnp.inf).astype(problem.u0.dtype)
    )


def _limit(owner: str, blowup: float | None, dtype) -> float:
    if blowup is None:
        return math.sqrt(float(jnp.finfo(dtype).max))
    return _check.number(owner, "blowup", blowup, above=0, advice="it bounds |u|")


def _trajectory(
    problem: Problem, plan: Plan, outcome: Outcome, depths, d: Discretization, choice: Choice | None
) -> Trajectory:
    us, ts, t0, t1 = outcome.us, depths, problem.t0, problem.t1
    if plan.save == "steps":
        ts, us = us["t"], us["u"]
        if d.adaptive and not traced(outcome.stats.steps):
            # An adaptive solve is saved into a buffer of max_steps: drop what it did not reach.
            keep = int(outcome.stats.steps) + 1
            ts, us = jax.tree.map(lambda x: x[:keep], (ts, us))
    elif ts is None:
        k = jax.tree.leaves(us)[0].shape[0]
        ts = t1[None] if k == 1 else t0 + (t1 - t0) * jnp.linspace(0.0, 1.0, k, dtype=t0.dtype)
    ts = jnp.asarray(ts, problem.u0.dtype)
    why = None if choice is None else str(choice)
    return Trajectory(ts, us, outcome.stats, outcome.diverged, outcome.blowup_time, outcome.complete, why)


def _cost(d: Discretization) -> tuple[int, int, int] | None:
    """Evaluations per step, once per segment, and how many of them make one of the whole field; None if unknown."""
    solver = d.solver
    try:
        first, second = evaluations(solver, 1), evaluations(solver, 2)
    except TypeError:
        return None
    if first is None or second is None:
        return None
    per_step = second - first
    # The starting-step heuristic of an adaptive solve looks at the field twice per segment. A splitting evaluates single
    # terms, as many as it has parts for one evaluation of the field.
    parts = len(d.split) if d.split is not None else 1
    return per_step, first - per_step + (2 if d.adaptive else 0), parts


def _checked(owner: str, trajectory: Trajectory, throw: bool) -> Trajectory:
    if traced(trajectory.diverged, trajectory.stats.steps):
        if not throw:
            return trajectory
        return eqx.error_if(
            trajectory, ~trajectory.complete, f"{owner}: the solve did not reach t1 (blow-up or max_steps)."
        )
    if throw and bool(np.any(trajectory.diverged)):
        raise DivergenceError(
            f"{owner}: the field blew up at depth t = {float(trajectory.blowup_time):.6g}. Use smaller steps or weights, "
            "add stabilization, or leave throw=False and read trajectory.diverged."
        )
    if throw and not bool(np.all(trajectory.complete)):
        raise DivergenceError(
            f"{owner}: {int(trajectory.stats.steps)} steps did not reach t1; raise max_steps, loosen the tolerances, or use a "
            "solver for stiff fields."
        )
    return trajectory
