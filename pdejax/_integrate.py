"""The jitted solves behind `simulate`: one interval, or one interval per layer, by diffrax or by a checkpointed scan."""

import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from pdejax._depth import DepthVarying, take_layer
from pdejax._equation import AbstractEquation
from pdejax._linear import split_linear
from pdejax._trajectory import Stats
from pdejax.solvers import BlowupGuard, GuardState, StabilizedState
from pdejax.solvers._stabilized import AbstractStabilized
from pdejax.terms import FieldArgs
from pdejax.terms._kernels import keep_saved

Save = Literal["end", "steps", "layers", "depths"]
# Groups of term names for a splitting, "linear" for solvers that take the linear part on its own.
Split = tuple[tuple[str, ...], ...] | Literal["linear"] | None


class Problem(eqx.Module):
    """Everything a solve may be differentiated with respect to."""

    equation: AbstractEquation
    u0: Array
    args: FieldArgs
    solver: diffrax.AbstractSolver
    t0: Array
    t1: Array
    reduce: Callable[..., Any] | None


class Plan(eqx.Module):
    """What to save, decided before compilation.

    `depths (segments, m)` are the depths to save inside every segment (one segment, or one per layer), padded with the
    segment's end; `gather (k,)` picks the wanted ones out of the flattened result. For scans, `slots (segments, n, j)` are
    the depths that lie in each of the n steps and `where (segments, m)` finds them again. `layers` are the layers crossed.
    `cost` holds field evaluations per step, per segment, and the parts that make one evaluation of the whole field.
    """

    save: Save = eqx.field(static=True)
    split: Split = eqx.field(static=True)
    layers: tuple[int, ...] = eqx.field(static=True)
    limit: float = eqx.field(static=True)
    progress: bool = eqx.field(static=True)
    cost: tuple[int, int, int] | None = eqx.field(static=True)
    depths: np.ndarray | Array | None = None
    slots: np.ndarray | Array | None = None
    where: np.ndarray | Array | None = None
    gather: np.ndarray | Array | None = None


class Part(eqx.Module):
    """One interval's outcome: final state, saved values, and how it went."""

    end: Array
    saved: PyTree[Array]
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    diverged: Bool[Array, ""]
    blowup_time: Float[Array, ""]
    complete: Bool[Array, ""]
    evaluations: Int[Array, ""]  # as the solver counted them; −1 if it does not


class Outcome(eqx.Module):
    """A whole solve's outcome."""

    us: PyTree[Array]
    stats: Stats
    diverged: Bool[Array, ""]
    blowup_time: Float[Array, ""]
    complete: Bool[Array, ""]


Interval = Callable[[Any, diffrax.AbstractSolver, Array, Array, Array, FieldArgs, Plan, Any, Any], Part]


def run(problem: Problem, plan: Plan, interval: Interval) -> Outcome:
    """Integrate over the whole depth with `interval`, layer by layer where weights are piecewise constant."""
    if plan.layers:
        return _run_layers(problem, plan, interval)
    terms = terms_of(problem.equation, plan.split, problem.u0, problem.args)
    wanted = jax.tree.map(lambda x: jnp.asarray(x)[0], (plan.depths, plan.slots, plan.where))
    part = interval(
        terms, problem.solver, problem.t0, problem.t1, problem.u0, problem.args, plan, wanted, problem.reduce
    )
    end = jnp.where(part.complete, part.end, jnp.nan)  # else it belongs to an earlier depth
    us = _assemble(problem, plan, end, jax.tree.map(lambda x: x[None], part.saved))
    stats = _stats(plan, part.steps[None], part.rejected[None], part.evaluations[None])
    return Outcome(us, stats, part.diverged, part.blowup_time, part.complete)


def _run_layers(problem: Problem, plan: Plan, interval: Interval) -> Outcome:
    equation = problem.equation
    assert isinstance(equation, DepthVarying)
    first, count = plan.layers[0], len(plan.layers)
    # Edges as fractions of the traced depth, so that changing t1 does not recompile.
    fractions = jnp.arange(count + 1, dtype=problem.u0.dtype) / count
    edges = problem.t0 + (problem.t1 - problem.t0) * fractions

    def layer(carry, x):
        u, lost = carry
        index, start, stop, wanted = x
        terms = terms_of(equation.layer(index), plan.split, u, problem.args)
        solver = take_layer(problem.solver, index)
        part = interval(terms, solver, start, stop, u, problem.args, plan, wanted, problem.reduce)
        if plan.progress:
            jax.debug.callback(_tell, index - first + 1, count)
        now = lost | ~part.complete
        if plan.save in ("steps", "depths"):
            saved = jax.tree.map(lambda v: jnp.where(lost, jnp.nan, v), part.saved)
        else:
            saved = reduced(problem.reduce, stop, jnp.where(now, jnp.nan, part.end), problem.args)
        kept = (None, None, part.diverged & ~lost)
        rest = eqx.tree_at(lambda p: (p.end, p.saved, p.diverged), part, kept, is_leaf=lambda leaf: leaf is None)
        return (part.end, now), (rest, saved)

    wanted = jax.tree.map(jnp.asarray, (plan.depths, plan.slots, plan.where))
    xs = (first + jnp.arange(count), edges[:-1], edges[1:], wanted)
    (end, lost), (parts, saved) = jax.lax.scan(layer, (problem.u0, jnp.asarray(False)), xs)
    us = _assemble(problem, plan, jnp.where(lost, jnp.nan, end), saved)
    first_bad = jnp.argmax(parts.diverged)
    stats = _stats(plan, parts.steps, parts.rejected, parts.evaluations)
    return Outcome(us, stats, jnp.any(parts.diverged), parts.blowup_time[first_bad], jnp.all(parts.complete))


def _tell(done, count) -> None:
    print(f"layer {int(done)} of {int(count)}", file=sys.stderr, flush=True)


def _stats(
    plan: Plan, steps: Int[Array, " segments"], rejected: Int[Array, " segments"], counted: Int[Array, " segments"]
) -> Stats:
    if plan.cost is None:
        evaluations = jnp.where(jnp.any(counted < 0), -1, jnp.sum(counted))
    else:
        per_step, once, parts = plan.cost
        evaluations = -(-jnp.sum(per_step * (steps + rejected) + once) // parts)
    return Stats(jnp.sum(steps), jnp.sum(rejected), evaluations.astype(jnp.int32))


def _counted(state: Any, steps: Int[Array, ""], rejected: Int[Array, ""]) -> Int[Array, ""]:
    """Evaluations that a stabilized solver counted; those of refused steps, which its state forgets, at the mean rate."""
    if not isinstance(state, StabilizedState):
        return jnp.asarray(-1, jnp.int32)
    count = state.evaluations.astype(jnp.int32)
    return count + count * rejected // jnp.maximum(steps, 1)


def _assemble(problem: Problem, plan: Plan, end: Array, saved: PyTree[Array]) -> PyTree[Array]:
    """Saved values `(segments, m, ...)` (or layer ends `(segments, ...)`) as one `(k, ...)`."""
    if plan.save == "end":
        return jax.tree.map(lambda x: x[None], reduced(problem.reduce, problem.t1, end, problem.args))
    if plan.save == "depths":
        gather = jnp.asarray(plan.gather)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[gather], saved)
    start = saved_value(plan, problem.reduce, problem.t0, problem.u0, problem.args)
    if plan.save == "steps":
        saved = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), saved)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, saved)


def with_root_tolerances(problem: Problem) -> Problem:
    """Fixed steps carry no tolerances for the nonlinear solve of an implicit solver: take it near round-off.

    The residual is a slope, so its round-off is that of the largest slope. A root finder with tolerances is kept.
    """
    solver = problem.solver
    if not isinstance(solver, diffrax.AbstractImplicitSolver) or isinstance(solver, diffrax.AbstractWrappedSolver):
        return problem
    if isinstance(getattr(solver.root_finder, "rtol", None), float | int | Array):
        return problem
    slope = jnp.max(jnp.abs(problem.equation(problem.t0, problem.u0, problem.args)))
    size = jax.lax.stop_gradient(slope + jnp.max(jnp.abs(problem.u0)))
    eps = float(jnp.finfo(size.dtype).eps)
    finder = optx.Newton(rtol=eps**0.6, atol=1000 * eps * size)  # pyright: ignore[reportArgumentType]
    return eqx.tree_at(lambda p: p.solver.root_finder, problem, finder)


def with_loops(problem: Problem, kind: Literal["lax", "bounded"] | None) -> Problem:
    """Choose how Runge–Kutta and stabilized solvers loop over their stages, sub-solvers included.

    Their default is reverse-mode only; `"bounded"` serves both modes, `"lax"` forward mode with less overhead.
    """

    def has_stages(node):
        return isinstance(node, diffrax.AbstractRungeKutta | AbstractStabilized)

    def choose(node):
        if kind is None or not has_stages(node) or node.scan_kind is not None:
            return node
        return eqx.tree_at(lambda s: s.scan_kind, node, kind, is_leaf=lambda x: x is None)

    return eqx.tree_at(lambda p: p.solver, problem, jax.tree.map(choose, problem.solver, is_leaf=has_stages))


def terms_of(equation: AbstractEquation, split: Split, u: Array, args: FieldArgs) -> diffrax.AbstractTerm:
    if split is None:
        return diffrax.ODETerm(equation)  # pyright: ignore[reportArgumentType]
    if split == "linear":
        operator, rest = split_linear(equation, u.shape[0], args)
        return diffrax.MultiTerm(diffrax.ODETerm(rest), diffrax.ODETerm(operator))  # pyright: ignore[reportArgumentType]
    return equation.multiterm(split)


def reduced(reduce, t, u, args):
    """What to keep of the field: numbers of its type, so that NaN can say that there is none."""
    if reduce is None:
        return u
    return jax.tree.map(lambda x: jnp.asarray(x, u.dtype), reduce(t, u, args))


def saved_value(plan: Plan, reduce, t, u, args):
    """What is kept at a saved depth; where the depths are the solver's own steps they are kept as well."""
    value = reduced(reduce, t, u, args)
    return {"t": t, "u": value} if plan.save == "steps" else value


class Diffrax(eqx.Module):
    """Integrates an interval with `diffrax.diffeqsolve`.

    `dt0(terms, t0, t1, u, args) -> step` chooses the first step (for fixed steps: the step).
    """

    controller: diffrax.AbstractStepSizeController
    dt0: Callable[..., Array]
    adjoint: diffrax.AbstractAdjoint
    max_steps: int | None = eqx.field(static=True)

    def __call__(self, terms, solver, t0, t1, u, args, plan, wanted, reduce) -> Part:
        guard = BlowupGuard(self.controller, plan.limit)

        def save(t, y, args):
            return saved_value(plan, reduce, t, y, args)

        backsolve = isinstance(self.adjoint, diffrax.BacksolveAdjoint)
        # Edges between layers are rounded: a depth on one may lie a last digit outside.
        ts = jnp.clip(wanted[0].astype(t0.dtype), t0, t1) if plan.save == "depths" else t1[None]
        counts = isinstance(solver, AbstractStabilized)
        if backsolve:
            # It can save states at given depths and nothing else: they are reduced afterwards.
            saveat = diffrax.SaveAt(ts=ts, controller_state=True)
        else:
            subs = {"end": diffrax.SubSaveAt(t1=True)}
            if plan.save == "depths":
                subs["depths"] = diffrax.SubSaveAt(ts=ts, fn=save)
            elif plan.save == "steps":
                subs["steps"] = diffrax.SubSaveAt(steps=True, fn=save)
            saveat = diffrax.SaveAt(subs=subs, controller_state=True, solver_state=counts)
        meter = diffrax.TextProgressMeter() if plan.progress and not plan.layers else diffrax.NoProgressMeter()
        dt0 = self.dt0(terms, t0, t1, u, args)
        sol = diffrax.diffeqsolve(
            terms,
            solver,
            t0,
            t1,
            jax.lax.stop_gradient(dt0) if backsolve else dt0,
            u,
            args,
            saveat=saveat,
            stepsize_controller=guard,
            adjoint=self.adjoint,
            max_steps=self.max_steps,
            throw=False,
            progress_meter=meter,
        )
        assert sol.ys is not None
        guarded = sol.controller_state
        assert isinstance(guarded, GuardState)
        diverged = guarded.diverged
        ys = _beyond(sol.ys, sol.result != diffrax.RESULTS.successful)
        if backsolve:
            ys = {"end": ys[-1:], "depths": jax.vmap(lambda t, y: save(t, y, args))(ts, ys)}
        steps, rejected = (jnp.asarray(sol.stats[f"num_{kind}_steps"], jnp.int32) for kind in ("accepted", "rejected"))
        return Part(
            ys["end"][0],
            ys.get(plan.save),
            steps,
            rejected,
            diverged,
            jnp.where(diverged, guarded.blowup_time, jnp.nan).astype(t0.dtype),
            (sol.result == diffrax.RESULTS.successful) & ~diverged,
            _counted(sol.solver_state, steps, rejected),
        )


def _beyond(saved: PyTree[Array], stopped: Array) -> PyTree[Array]:
    """diffrax leaves +inf where it saved nothing; where a solve stopped early that reads as data, so make it NaN."""
    return jax.tree.map(lambda x: jnp.where(stopped & jnp.isinf(x), jnp.nan, x), saved)


class CheckpointedScan(eqx.Module):
    """Integrates an interval in exactly `steps` steps of `lax.scan`, one `jax.checkpoint` per step.

    Differentiable forwards and backwards; the backward pass stores one state per step and what attention kept of its
    softmax, and recomputes the rest. Measured (N = 1000, d = 128, eight Euler steps, CPU time on one core): 0.91 of a plain
    scan's gradient time and 0.85 of full checkpointing's, in 22 MiB against 135 and 18.
    """

    steps: int = eqx.field(static=True)

    def __call__(self, terms, solver, t0, t1, u, args, plan, wanted, reduce) -> Part:
        n = self.steps
        depths, slots, where = wanted
        limit = jnp.asarray(plan.limit, u.dtype)

        @functools.partial(jax.checkpoint, policy=keep_saved, prevent_cse=False)
        def step(carry, k):
            y, state, time = carry
            start = t0 + (t1 - t0) * (k.astype(t0.dtype) / n)
            stop = jnp.where(k + 1 == n, t1, t0 + (t1 - t0) * ((k + 1).astype(t0.dtype) / n))
            new, _, dense, state, _ = solver.step(terms, start, stop, y, args, state, made_jump=False)
            alive = jnp.isnan(time)
            new = jnp.where(alive, new, y)
            time = jnp.where(alive & ~jnp.all(jnp.abs(new) <= limit), stop, time)
            out = None
            if plan.save == "steps":
                out = saved_value(plan, reduce, stop, jnp.where(alive, new, jnp.nan), args)
            elif plan.save == "depths":
                path = solver.interpolation_cls(t0=start, t1=stop, **dense)

                def at(t):
                    return reduced(reduce, t, jnp.where(alive, path.evaluate(t), jnp.nan), args)

                out = jax.vmap(at)(depths.astype(t0.dtype)[slots[k]])
            return (new, state, time), out

        state = solver.init(terms, t0, t0 + (t1 - t0) / n, u, args)
        never = jnp.full((), jnp.nan, t0.dtype)
        (end, state, time), out = jax.lax.scan(step, (u, state, never), jnp.arange(n))
        if plan.save == "depths":
            out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[where], out)
        diverged = ~jnp.isnan(time)
        steps, none = jnp.asarray(n, jnp.int32), jnp.asarray(0, jnp.int32)
        return Part(end, out, steps, none, diverged, time, ~diverged, _counted(state, steps, none))
