"""The jitted solves behind `simulate`: one interval, or one interval per layer, by diffrax or by a checkpointed scan."""

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

from pdejax._axes import same_axes, varying
from pdejax._controllers import EqualSteps, StartingStep
from pdejax._depth import DepthVarying, take_layer
from pdejax._equation import AbstractEquation
from pdejax._linear import split_linear
from pdejax._marks import marked
from pdejax._trajectory import Stats
from pdejax.solvers import BlowupGuard, GuardState, StabilizedState
from pdejax.solvers._stabilized import AbstractStabilized
from pdejax.terms import FieldArgs

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
    the depths that lie in each of the n steps, `where (segments, m)` finds them again, and `place (segments, m)` is the step
    of each depth. `layers` are the layers crossed.
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
    place: np.ndarray | Array | None = None
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
    wanted = jax.tree.map(lambda x: jnp.asarray(x)[0], (plan.depths, plan.slots, plan.where, plan.place))
    part = interval(
        terms, problem.solver, problem.t0, problem.t1, problem.u0, problem.args, plan, wanted, problem.reduce
    )
    us = _assemble(problem, plan, part.end, ~part.complete, jax.tree.map(lambda x: x[None], part.saved))
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
        u, lost, begun = carry
        index, start, stop, wanted = x
        here = equation.layer(index)
        if begun is not None:
            # The state that the loop begins with is known once the prelude is behind.
            begun = jnp.where(index == equation.prelude, u, begun)
            here = here.given(begun)
        terms = terms_of(here, plan.split, u, problem.args)
        solver = take_layer(problem.solver, index)
        part = interval(terms, solver, start, stop, u, problem.args, plan, wanted, problem.reduce)
        if plan.progress:
            jax.debug.callback(_tell, index - first + 1, count)
        now = lost | ~part.complete
        if plan.save in ("steps", "depths"):
            saved = marked(lost, part.saved)
        else:
            saved = marked(now, reduced(problem.reduce, stop, part.end, problem.args))
        kept = (None, None, part.diverged & ~lost)
        rest = eqx.tree_at(lambda p: (p.end, p.saved, p.diverged), part, kept, is_leaf=lambda leaf: leaf is None)
        return (part.end, now, begun), (rest, saved)

    wanted = jax.tree.map(jnp.asarray, (plan.depths, plan.slots, plan.where, plan.place))
    xs = (first + jnp.arange(count), edges[:-1], edges[1:], wanted)
    carry = same_axes((problem.u0, jnp.asarray(False), problem.u0 if equation.needs_start else None), (problem, xs))
    (end, lost, _), (parts, saved) = jax.lax.scan(layer, carry, xs)
    us = _assemble(problem, plan, end, lost, saved)
    first_bad = jnp.argmax(parts.diverged)
    stats = _stats(plan, parts.steps, parts.rejected, parts.evaluations)
    return Outcome(us, stats, jnp.any(parts.diverged), parts.blowup_time[first_bad], jnp.all(parts.complete))


def _tell(done, count) -> None:
    print(f"layer {int(done)} of {int(count)}", file=sys.stderr, flush=True)


class _Meter(diffrax.TextProgressMeter):
    """diffrax's meter on standard error: standard output is for results."""

    @staticmethod
    def _init_bar() -> list[float]:
        tell_share(0.0)
        return [0.0]

    @staticmethod
    def _step_bar(bar: list[float], progress: Any) -> None:
        bar[0] = float(np.asarray(progress).item())
        tell_share(bar[0])

    @staticmethod
    def _close_bar(bar: list[float]) -> None:
        if bar[0] != 1:
            tell_share(1.0)


def tell_share(share: float) -> None:
    print(f"{100 * share:.2f}%", file=sys.stderr, flush=True)


def _stats(
    plan: Plan, steps: Int[Array, " segments"], rejected: Int[Array, " segments"], counted: Int[Array, " segments"]
) -> Stats:
    if plan.cost is None:
        evaluations = jnp.where(jnp.any(counted < 0), -1, jnp.sum(counted))
    else:
        per_step, once, parts = plan.cost
        evaluations = -(-jnp.sum(per_step * (steps + rejected) + once) // parts)
    return Stats(jnp.sum(steps), jnp.sum(rejected), evaluations.astype(jnp.int32))


def counted_evaluations(state: Any, steps: Int[Array, ""], rejected: Int[Array, ""]) -> Int[Array, ""]:
    """Evaluations that a stabilized solver counted; those of refused steps, which its state forgets, at the mean rate."""
    if not isinstance(state, StabilizedState):
        return jnp.asarray(-1, jnp.int32)
    count = state.evaluations.astype(jnp.int32)
    return count + count * rejected // jnp.maximum(steps, 1)


def _assemble(problem: Problem, plan: Plan, end: Array, lost: Bool[Array, ""], saved: PyTree[Array]) -> PyTree[Array]:
    """Saved values `(segments, m, ...)` (or layer ends `(segments, ...)`) as one `(k, ...)`."""
    if plan.save == "end":
        # Where the end was not reached, this field belongs to an earlier depth.
        found = marked(lost, reduced(problem.reduce, problem.t1, end, problem.args))
        return jax.tree.map(lambda x: x[None], found)
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
    slope = jnp.max(jnp.abs(problem.equation.given(problem.u0)(problem.t0, problem.u0, problem.args)))
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
    """What to keep of the field, in the type that `reduce` gives; plain floats of Python in that of the field."""
    if reduce is None:
        return u
    return jax.tree.map(lambda x: jnp.asarray(x, u.dtype if isinstance(x, float) else None), reduce(t, u, args))


def saved_value(plan: Plan, reduce, t, u, args):
    """What is kept at a saved depth; where the depths are the solver's own steps they are kept as well."""
    value = reduced(reduce, t, u, args)
    return {"t": t, "u": value} if plan.save == "steps" else value


def _as_floats(x: Array) -> Any:
    """Integers as two floats that hold every digit: diffrax fills what it saves with ∞."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    whole = x.astype(jnp.int32) if x.dtype == bool else x
    half = jnp.iinfo(whole.dtype).bits // 2
    kind = jnp.float64 if half > 24 else jnp.float32
    return (whole >> half).astype(kind), (whole & (2**half - 1)).astype(kind)


def _from_floats(like: jax.ShapeDtypeStruct, saved: Any) -> Array:
    if not isinstance(saved, tuple):
        return saved
    kind = jnp.dtype(jnp.int32) if like.dtype == bool else like.dtype
    high, low = (jnp.where(jnp.isfinite(x), x, 0).astype(kind) for x in saved)
    return ((high << (jnp.iinfo(kind).bits // 2)) + low).astype(like.dtype)


class _InOrder(eqx.Module):
    """Depths that are in order and within the interval: what diffrax compares when it checks them, before it compiles, is false.

    Its check of depths that it does not know leaves a call into Python in the program, which then cannot be exported, nor kept in
    the compilation cache.
    """

    values: Array

    @property
    def dtype(self):
        return self.values.dtype

    def astype(self, dtype):
        return _InOrder(self.values.astype(dtype))

    def __mul__(self, direction):
        return _InOrder(self.values * direction)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index):
        return _InOrder(self.values[index]) if isinstance(index, slice) else self.values[index]

    def __lt__(self, other) -> bool:
        return False

    def __gt__(self, other) -> bool:
        return False


def saved_at(ts: Array, **how: Any) -> diffrax.SubSaveAt:
    """`diffrax.SubSaveAt` for depths that are known to be in order and within the interval."""
    return eqx.tree_at(lambda sub: sub.ts, diffrax.SubSaveAt(ts=ts, **how), _InOrder(ts))


class Diffrax(eqx.Module):
    """Integrates an interval with `diffrax.diffeqsolve`.

    `first(terms, t0, t1, u, args) -> step` chooses the first step of an adaptive `controller`; `steps` is the number of
    fixed ones.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController | None
    first: Callable[..., Array] | None
    steps: Array | None
    adjoint: diffrax.AbstractAdjoint
    max_steps: int | None = eqx.field(static=True)

    def __call__(self, terms, solver, t0, t1, u, args, plan, wanted, reduce) -> Part:
        if axes := varying(terms, solver, t0, t1, u, args):
            raise ValueError(
                f"simulate: inside jax.shard_map over {sorted(axes)} this solve is left to diffrax, whose loops do not pass its "
                "check; give jax.shard_map check_vma=False, or fixed steps without an adjoint."
            )

        def save(t, y, args):
            return jax.tree.map(_as_floats, saved_value(plan, reduce, t, y, args))

        kept = jax.eval_shape(lambda: saved_value(plan, reduce, t1, u, args))
        backsolve = isinstance(self.adjoint, diffrax.BacksolveAdjoint)
        # Edges between layers are rounded: a depth on one may lie a last digit outside.
        ts = jnp.clip(wanted[0].astype(t0.dtype), t0, t1) if plan.save == "depths" else t1[None]
        counts = isinstance(solver, AbstractStabilized)
        if backsolve:
            # It can save states at given depths and nothing else: they are reduced afterwards.
            saveat = diffrax.SaveAt(subs=saved_at(ts), controller_state=True)
        else:
            subs = {"end": diffrax.SubSaveAt(t1=True)}
            if plan.save == "depths":
                subs["depths"] = saved_at(ts, fn=save)
            elif plan.save == "steps":
                subs["steps"] = diffrax.SubSaveAt(steps=True, fn=save)
            saveat = diffrax.SaveAt(subs=subs, controller_state=True, solver_state=counts)
        meter = _Meter() if plan.progress and not plan.layers else diffrax.NoProgressMeter()
        controller, dt0 = self._controlled(backsolve, t0, t1, u, terms, args)
        sol = diffrax.diffeqsolve(
            terms,
            solver,
            t0,
            t1,
            dt0,
            u,
            args,
            saveat=saveat,
            stepsize_controller=BlowupGuard(controller, plan.limit),
            adjoint=self.adjoint,
            max_steps=self.max_steps,
            throw=False,
            progress_meter=meter,
        )
        assert sol.ys is not None and sol.ts is not None
        guarded = sol.controller_state
        assert isinstance(guarded, GuardState)
        diverged = guarded.diverged
        ys, reached = sol.ys, jax.tree.map(jnp.isfinite, sol.ts)  # diffrax leaves ∞ where it did not get to
        if backsolve:
            ys = {"end": ys[-1:], "depths": jax.vmap(lambda t, y: save(t, y, args))(ts, ys)}
            reached = {"depths": reached}
        saved = None
        if plan.save in ys and plan.save != "end":
            values = jax.tree.map(_from_floats, kept, ys[plan.save])
            saved = marked(~reached[plan.save], values)
        steps, rejected = (jnp.asarray(sol.stats[f"num_{kind}_steps"], jnp.int32) for kind in ("accepted", "rejected"))
        # A span that rounding has emptied takes no step, and its mark of infinity is seen by none.
        complete = (sol.result == diffrax.RESULTS.successful) & ~diverged & jnp.all(jnp.isfinite(ys["end"][0]))
        return Part(
            ys["end"][0],
            saved,
            steps,
            rejected,
            diverged,
            guarded.blowup_time.astype(t0.dtype),
            complete if self.steps is None else complete & (steps == self.steps),
            counted_evaluations(sol.solver_state, steps, rejected),
        )

    def _controlled(self, backsolve: bool, t0, t1, u, terms, args):
        """The controller, and the first step for diffrax where the controller does not know it."""
        if self.steps is None:
            assert self.controller is not None and self.first is not None
            if not backsolve:
                return StartingStep(self.controller, self.first), None  # pyright: ignore[reportCallIssue]
            return self.controller, jax.lax.stop_gradient(self.first(terms, t0, t1, u, args))
        if not backsolve:
            return EqualSteps(self.steps), None
        return diffrax.ConstantStepSize(), jax.lax.stop_gradient((t1 - t0) / self.steps.astype(t0.dtype))
