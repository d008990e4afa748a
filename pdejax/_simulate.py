"""`simulate`: a field, a solver and a step."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from pdejax._check import traced
from pdejax._choose import Choice, choose_solver
from pdejax._depth import DepthVarying
from pdejax._equation import AbstractEquation
from pdejax._integrate import CheckpointedScan, Diffrax, Outcome, Plan, Problem, run, with_loops, with_root_tolerances
from pdejax._linear import linear_rate, split_linear
from pdejax._plan import check_depths, check_max_steps, check_resolvable, check_split, check_steps, make_plan
from pdejax._start import starting_step
from pdejax._trajectory import Trajectory
from pdejax.solvers import Retract, evaluations, get_solver, linear_part, real_stability_limit
from pdejax.terms import FieldArgs

AdjointName = Literal["recursive", "direct", "forward", "backsolve"]
BACKSOLVE_LIMIT = 5.0  # e-foldings of damping after which integrating backwards loses the gradient (measured)


class DivergenceError(RuntimeError):
    """Raised by `simulate(..., throw=True)` when the field blows up or the steps run out."""


def simulate(
    equation: AbstractEquation,
    u0: ArrayLike,
    *,
    t1: ArrayLike,
    steps: int | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: str | diffrax.AbstractSolver = "tsit5",
    t0: ArrayLike = 0.0,
    save: str | ArrayLike | Sequence[float] | None = None,
    reduce: Callable[[Array, Array, FieldArgs], Any] | None = None,
    mask: ArrayLike | None = None,
    split: Sequence[Sequence[str]] | None = None,
    adjoint: AdjointName | diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
    blowup: float | None = None,
    progress: bool = False,
    throw: bool = False,
) -> Trajectory:
    r"""Integrate $\partial_t u = f(t, u)$ over depth, from `u0 (n, d)` at `t0` to `t1`.

    Give **`steps`**, an integer number of equal steps (h = (t1 − t0)/steps), or **`rtol` and `atol`** for adaptive steps.

    - `equation`: a `MasterEquation`, `DepthVarying` or `MultilayerEquation`. Piecewise-constant weights are integrated layer
      by layer, `steps` shared equally among the layers; smooth ones in one go.
    - `solver`: a name from `pdejax.solvers.SOLVERS` or any diffrax solver; `"auto"` picks one from the stiffness and says why in
      `trajectory.choice`. A splitting (`LieTrotter`, `Strang`) gets one term per sub-solver; `split` regroups them, e.g.
      `split=(("interaction",), ("reaction", "diffusion"))`. Exponential and implicit-explicit solvers get the linear
      part (diffusion, damping, leaks) apart from the rest by themselves.
    - `save`: `"end"`; `"steps"` (t0 and every step); `"layers"` (t0 and every layer's end); or increasing depths `(k,)`.
      Default: `"layers"` for piecewise-constant weights, else `"end"`.
    - `reduce(t, u, args)`: save this instead of the field, so that long trajectories need no memory.
    - `mask (n,)`: True at real tokens; padded ones are ignored as keys and in averages.
    - `adjoint`: how gradients are taken. Default: for fixed steps one rule that serves forward- and reverse-mode, a scan with
      one checkpoint per step; for adaptive steps diffrax's recursive checkpointing (reverse-mode). Override by `"forward"`
      (forward-mode, any number of inputs), `"direct"` (both, more memory), `"recursive"`, `"backsolve"` (refused where the
      field damps: it would integrate the damping backwards), or a diffrax adjoint.
    - `max_steps`: ceiling for adaptive steps (default 65,536; 4,096 with `save="steps"`).
    - `blowup`: end the solve when max|u| exceeds this (default: the square root of the largest float).
    - `progress`: show a progress meter (by layers for piecewise-constant weights).
    - `throw`: raise `DivergenceError` instead of reporting.

    Returns a `Trajectory`. A field that blows up is a result (`diverged`, `blowup_time`), not an exception. The step size is a
    traced value: one compiled function serves every number of steps. Batches go through `jax.vmap`.

    Raises `ValueError`/`TypeError` for shapes, steps, tolerances, depths, solvers or masks that do not fit, before compiling.
    """
    number = check_steps(steps, rtol, atol)
    check_max_steps(max_steps, number)
    check_depths(t0, t1)
    u0 = _check_field(equation, u0)
    check_resolvable(rtol, atol, u0)
    args = FieldArgs(_check_mask(mask, u0))
    choice = None
    if isinstance(solver, str) and solver == "auto":
        choice = choose_solver(equation, t0=t0, t1=t1, steps=number, masked=mask is not None)
        solver = choice.name
        if progress:
            print(f"simulate: {choice}", file=sys.stderr, flush=True)
    resolved, groups = _resolve_solver(equation, solver, split, number, u0.shape, args)
    limit = _check_limit(blowup, u0.dtype)
    cost = _cost(resolved, groups, adaptive=number is None)
    plan, depths = make_plan(equation, t0, t1, number, save, groups, limit, progress, cost)
    method = _resolve_adjoint(adjoint, equation, resolved, groups, t0, t1, plan)
    time = jnp.asarray(t0, u0.dtype), jnp.asarray(t1, u0.dtype)
    problem = Problem(equation, u0, args, resolved, *time, reduce)
    segments = max(len(plan.layers), 1)
    if number is None:
        assert rtol is not None and atol is not None
        tolerances = jnp.asarray(rtol, u0.dtype), jnp.asarray(atol, u0.dtype)
        ceiling = max_steps if max_steps is not None else 4096 if plan.save == "steps" else 65536
        outcome = _adaptive(problem, plan, tolerances, method, ceiling)
    elif method is None:
        outcome = _fixed(problem, plan=plan, steps=number // segments)
    else:
        outcome = _fixed_by_diffrax(problem, plan, jnp.asarray(number // segments), method, number // segments)
    trajectory = _trajectory(problem, plan, outcome, depths, number, choice)
    return _checked(trajectory, number, throw)


@eqx.filter_custom_jvp
def _fixed(problem: Problem, *, plan: Plan, steps: int) -> Outcome:
    # The number of steps is traced here, so a sweep over step sizes compiles once...
    static = steps if plan.save == "steps" else None
    plan = eqx.tree_at(lambda p: (p.slots, p.where), plan, (None, None), is_leaf=lambda x: x is None)
    return _fixed_by_diffrax(problem, plan, jnp.asarray(steps), diffrax.ForwardMode(), static)


@_fixed.def_jvp
def _fixed_jvp(primals, tangents, *, plan: Plan, steps: int):
    # ... and static here, so that the derivative can be transposed.
    return eqx.filter_jvp(lambda problem: _by_scan(problem, plan, steps), primals, tangents)


@eqx.filter_jit
def _by_scan(problem: Problem, plan: Plan, steps: int) -> Outcome:
    problem = with_loops(with_root_tolerances(problem), "bounded")
    return run(problem, plan, CheckpointedScan(steps))


@eqx.filter_jit
def _fixed_by_diffrax(
    problem: Problem, plan: Plan, steps: Array, adjoint: diffrax.AbstractAdjoint, max_steps: int | None
) -> Outcome:
    def step(terms, t0, t1, u, args):
        return (t1 - t0) / steps.astype(t0.dtype)

    problem = with_loops(with_root_tolerances(problem), _loops(adjoint))
    return run(problem, plan, Diffrax(diffrax.ConstantStepSize(), step, adjoint, max_steps))


@eqx.filter_jit
def _adaptive(
    problem: Problem, plan: Plan, tolerances, adjoint: diffrax.AbstractAdjoint | None, max_steps: int
) -> Outcome:
    rtol, atol = tolerances
    order = problem.solver.error_order(None) or problem.solver.order(None) or 1  # pyright: ignore[reportArgumentType]

    def first(terms, t0, t1, u, args):
        # Where the steps lie changes the result by less than the tolerance: their own derivative is left out.
        # A linear part taken exactly or implicitly does not limit the first step.
        rate = None if plan.split == "linear" else problem.equation.damping()
        return jax.lax.stop_gradient(starting_step(rate, terms, t0, t1, u, args, order, rtol, atol))

    longest = _longest_step(problem, plan)
    controller = diffrax.PIDController(rtol=rtol, atol=atol, dtmax=longest)
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    problem = with_loops(problem, _loops(adjoint))
    return run(problem, plan, Diffrax(controller, first, adjoint, max_steps))


def _longest_step(problem: Problem, plan: Plan) -> Array | None:
    """The stability limit of an explicit solver for the linear rates of the field, with a margin of 5 %; None if it has none.

    Beyond it a smooth solution passes unharmed for a while, because the modes that grow are not in it: the error estimate
    sees them late. Derivatives see them at once. A Tsit5 gradient of a field with diffusion, tolerance 1e-8, was wrong by a
    factor of 600 without this limit; finite differences of the same solves were right.
    """
    limit = None if plan.split is not None else real_stability_limit(problem.solver)
    if limit is None or not math.isfinite(limit):
        return None
    rate = jax.lax.stop_gradient(linear_rate(problem.equation)).astype(problem.u0.dtype)
    return jnp.where(rate > 0, 0.95 * limit / jnp.where(rate > 0, rate, 1.0), jnp.inf)


def _loops(adjoint: diffrax.AbstractAdjoint) -> Literal["lax", "bounded"] | None:
    """diffrax chooses this for a Runge–Kutta solver, but not for those inside a splitting."""
    if isinstance(adjoint, diffrax.ForwardMode):
        return "lax"
    return "bounded" if isinstance(adjoint, diffrax.DirectAdjoint) else None


def _check_field(equation: AbstractEquation, u0) -> Array:
    if not isinstance(equation, AbstractEquation):
        raise TypeError(
            f"simulate: equation is a {type(equation).__name__}; pass a MasterEquation or pdejax.lift(model)."
        )
    # Looked at in NumPy: under an outer jit even a concrete field gives traced results.
    known = None if traced(u0) else np.asarray(u0)
    u0 = jnp.asarray(u0)
    if u0.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"simulate: the field has dtype {u0.dtype}; integrate in float32 or float64 (u0.astype('float32')), since round-off "
            "accumulates over steps."
        )
    if u0.size == 0:
        raise ValueError(
            f"simulate: the field of shape {u0.shape} is empty; it needs at least one token and one feature."
        )
    equation.check(u0.shape)
    if known is not None and not np.isfinite(known).all():
        bad = int(np.sum(~np.isfinite(known)))
        raise ValueError(f"simulate: the initial field has {bad} NaN or infinite entries of {u0.size}; clean it first.")
    return u0


def _check_mask(mask, u0: Array):
    if mask is None:
        return None
    known = None if traced(mask) else np.asarray(mask)
    mask = jnp.asarray(mask)
    n = u0.shape[-2]
    if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
            f"simulate: mask must be {n} booleans, one per token (True = real), got shape {mask.shape} and dtype {mask.dtype}."
        )
    if known is not None and not known.any():
        raise ValueError("simulate: mask hides every token; at least one must be real.")
    return mask


def _check_limit(blowup: float | None, dtype) -> float:
    if blowup is None:
        return math.sqrt(float(jnp.finfo(dtype).max))
    if not blowup > 0:
        raise ValueError(f"simulate: blowup={blowup} must be a positive bound on |u|.")
    return float(blowup)


def _resolve_solver(equation, solver, split, steps: int | None, shape: tuple[int, ...], args: FieldArgs):
    parts = len(split) if split else len(equation.names())
    resolved = get_solver(solver, terms=parts)
    linear = linear_part(resolved)
    structure = resolved.term_structure
    name = type(resolved).__name__
    number = None
    if get_origin(structure) is diffrax.MultiTerm:
        number = len(get_args(get_args(structure)[0]))
    if linear is None:
        groups = check_split(equation, split, number, name)
    else:
        groups = "linear"
        _check_linear(equation, name, linear, split, number, shape, args)
    if steps is None and not isinstance(resolved, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"simulate: {name} has no error estimate, so it cannot choose steps by rtol and atol. Give steps=…, use an adaptive "
            f"solver (tsit5, dopri5, dopri8, bosh3, heun, kvaerno5), or step doubling: diffrax.HalfSolver({name}(...))."
        )
    return resolved, groups


def _check_linear(equation, name: str, wanted: type, split, number, shape: tuple[int, ...], args: FieldArgs) -> None:
    """Raise unless the equation's linear part has the structure that the solver needs."""
    if split is not None:
        raise ValueError(
            f"simulate: split={split} was given, but {name} splits the field itself, into its linear part and the rest; leave "
            "split out."
        )
    if number not in (None, 2):
        raise ValueError(
            f"simulate: {name} has {number} sub-solvers, but a LinearFlow goes with exactly one other, for the rest of the "
            "field: Strang((Midpoint(), LinearFlow()))."
        )
    layered = isinstance(equation, DepthVarying) and equation.kind == "constant"
    try:
        operator, _ = split_linear(equation.layer(0) if layered else equation, shape[0], args)
        operator.check(shape)
    except ValueError as error:
        raise ValueError(f"simulate: {name} needs the linear part of the field, but {error}") from error
    if not isinstance(operator, wanted):
        raise ValueError(
            f"simulate: {name} takes the diffusion exactly, and a padding mask makes it variable; use solver='ark4' (solves it "
            "implicitly) or 'rkc2' (explicit)."
        )


def _resolve_adjoint(adjoint, equation, solver, groups, t0, t1, plan: Plan) -> diffrax.AbstractAdjoint | None:
    named = {
        "recursive": diffrax.RecursiveCheckpointAdjoint,
        "direct": diffrax.DirectAdjoint,
        "forward": diffrax.ForwardMode,
        "backsolve": diffrax.BacksolveAdjoint,
    }
    if isinstance(adjoint, str):
        if adjoint not in named:
            raise ValueError(
                f"simulate: adjoint={adjoint!r} is unknown; choose one of {tuple(named)} or a diffrax adjoint."
            )
        adjoint = named[adjoint]()
    if isinstance(adjoint, diffrax.BacksolveAdjoint):
        if groups is not None:
            raise ValueError(
                f"simulate: the backsolve adjoint cannot differentiate a splitting ({type(solver).__name__}); "
                "leave adjoint out."
            )
        if isinstance(equation, DepthVarying) and equation.kind == "constant":
            raise ValueError(
                "simulate: the backsolve adjoint cannot cross layers of piecewise-constant weights; leave adjoint out."
            )
        if plan.save == "steps":
            raise ValueError(
                "simulate: the backsolve adjoint cannot save every step; give an array of depths, or leave adjoint out."
            )
        if any(isinstance(s, Retract) for s in jax.tree.leaves(solver, is_leaf=lambda s: isinstance(s, Retract))):
            raise ValueError(
                "simulate: the backsolve adjoint integrates the field backwards and would miss the retraction of the "
                "solver; leave adjoint out."
            )
        # Inside jax.grad this uncovers the value; inside jax.jit there is none to see.
        damping, t0, t1 = (jax.lax.stop_gradient(x) for x in (equation.damping(), t0, t1))
        dissipative = {"diffusion", "stabilization"} & set(equation.names())
        if traced(damping, t0, t1):
            if dissipative:
                raise ValueError(
                    f"simulate: the backsolve adjoint loses the gradient of a field that damps, and inside jax.jit the size "
                    f"of its {' and '.join(sorted(dissipative))} cannot be seen; leave adjoint out."
                )
        else:
            folds = float(damping) * (float(t1) - float(t0))
            if folds > BACKSOLVE_LIMIT:
                raise ValueError(
                    f"simulate: the backsolve adjoint integrates the field's damping backwards ({folds:.3g} e-foldings over this "
                    f"depth, at most {BACKSOLVE_LIMIT:g} allowed), which loses the gradient; leave adjoint out."
                )
    elif adjoint is not None and not isinstance(adjoint, diffrax.AbstractAdjoint):
        raise TypeError(
            f"simulate: adjoint is a {type(adjoint).__name__}; give one of {tuple(named)} or a diffrax adjoint."
        )
    return adjoint


def _trajectory(
    problem: Problem, plan: Plan, outcome: Outcome, depths, steps: int | None, choice: Choice | None
) -> Trajectory:
    us, ts, t0, t1 = outcome.us, depths, problem.t0, problem.t1
    if plan.save == "steps":
        ts, us = us["t"], us["u"]
        if steps is None and not traced(outcome.stats.steps):
            # An adaptive solve is saved into a buffer of max_steps: drop what it did not reach.
            keep = int(outcome.stats.steps) + 1
            ts, us = jax.tree.map(lambda x: x[:keep], (ts, us))
    elif ts is None:
        k = jax.tree.leaves(us)[0].shape[0]
        ts = t1[None] if k == 1 else t0 + (t1 - t0) * jnp.linspace(0.0, 1.0, k, dtype=t0.dtype)
    ts = jnp.asarray(ts, problem.u0.dtype)
    why = None if choice is None else str(choice)
    return Trajectory(ts, us, outcome.stats, outcome.diverged, outcome.blowup_time, outcome.complete, why)


def _cost(solver: diffrax.AbstractSolver, groups, *, adaptive: bool) -> tuple[int, int, int] | None:
    """Evaluations per step, once per segment, and how many of them make one of the whole field; None if unknown."""
    try:
        first, second = evaluations(solver, 1), evaluations(solver, 2)
    except TypeError:
        return None
    if first is None or second is None:
        return None
    per_step = second - first
    # The starting-step heuristic of an adaptive solve looks at the field twice per segment. A splitting evaluates single
    # terms, as many as it has parts for one evaluation of the field.
    parts = len(groups) if isinstance(groups, tuple) else 1
    return per_step, first - per_step + (2 if adaptive else 0), parts


def _checked(trajectory: Trajectory, steps: int | None, throw: bool) -> Trajectory:
    if traced(trajectory.diverged, trajectory.stats.steps):
        if not throw:
            return trajectory
        return eqx.error_if(
            trajectory, ~trajectory.complete, "simulate: the solve did not reach t1 (blow-up or max_steps)."
        )
    if steps is not None and bool(trajectory.complete) and int(trajectory.stats.steps) != steps:
        raise AssertionError(f"simulate: asked for {steps} steps, the solver took {int(trajectory.stats.steps)}.")
    if throw and bool(np.any(trajectory.diverged)):
        raise DivergenceError(
            f"simulate: the field blew up at depth t = {float(trajectory.blowup_time):.6g}. Use smaller steps or weights, "
            "add stabilization, or leave throw=False and read trajectory.diverged."
        )
    if throw and not bool(np.all(trajectory.complete)):
        raise DivergenceError(
            f"simulate: {int(trajectory.stats.steps)} steps did not reach t1; raise max_steps, loosen the tolerances, or use a "
            "solver for stiff fields."
        )
    return trajectory
