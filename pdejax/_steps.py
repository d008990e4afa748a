"""An exact number of equal steps: a loop for values, and a checkpointed scan for derivatives."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, PyTree

from pdejax._axes import same_axes, varying
from pdejax._integrate import Part, Plan, counted_evaluations, reduced, saved_value, tell_share
from pdejax._marks import marked
from pdejax.solvers._stabilized import AbstractStabilized
from pdejax.solvers._tableau import explicit_step, is_explicit, tableau
from pdejax.terms._kernels import KNOWN, keep_saved


class _State(eqx.Module):
    """What one step hands to the next: the field, the solver's memory, whether the solve is still alive, the depth at which
    the field blew up (∞: it did not) and the number of steps taken.
    """

    u: Array
    memory: PyTree
    alive: Bool[Array, ""]
    blowup: Float[Array, ""]
    taken: Int[Array, ""]


class _Interval(eqx.Module):
    """An interval of n equal steps, of which the k-th ends at t0 + (t1 − t0)(k + 1)/n: no rounding adds up."""

    terms: Any
    solver: diffrax.AbstractSolver
    t0: Array
    t1: Array
    n: Any
    args: Any
    limit: float = eqx.field(static=True)

    def start(self, u: Array) -> _State:
        if isinstance(self.solver, AbstractStabilized) and (
            axes := varying(self.terms, self.t0, self.t1, u, self.args)
        ):
            raise ValueError(
                f"simulate: inside jax.shard_map over {sorted(axes)} the number of stages of {type(self.solver).__name__} would "
                "differ between devices, which its loops do not pass the check with; give jax.shard_map check_vma=False."
            )
        memory = self.solver.init(self.terms, self.t0, self._depth(1), u, self.args)
        state = _State(u, memory, jnp.asarray(True), jnp.full((), jnp.inf, self.t0.dtype), jnp.zeros((), jnp.int32))
        return same_axes(state, (self.terms, self.solver, self.t0, self.t1, u, self.args))

    def step(self, state: _State, k: Array) -> tuple[_State, Array, Array, Bool[Array, ""], Callable[[Array], Array]]:
        """The state after step k, the step's end, the field there, whether that is a value, and the path in between."""
        start, stop = self._depth(k), jnp.where(k + 1 == self.n, self.t1, self._depth(k + 1))
        u, path, memory, result = self._solver_step(start, stop, state)
        solved = diffrax.is_successful(result)
        finite = jnp.all(jnp.isfinite(u)) & solved
        within = jnp.all(jnp.abs(u) <= jnp.asarray(self.limit, u.dtype))
        # Kept for reverse mode, which would compute the whole step again to know it.
        known = checkpoint_name(state.alive & finite, KNOWN)
        blowup = jnp.where(state.alive & solved & ~(finite & within), stop, state.blowup)

        def kept(new, old):
            return jnp.where(known, new, old) if eqx.is_array(old) else new

        new = _State(
            kept(u, state.u),
            jax.tree.map(kept, memory, state.memory),
            known & within,
            blowup,
            state.taken + state.alive.astype(jnp.int32),
        )
        return same_axes(new, state), stop, u, known, path

    def _solver_step(self, start: Array, stop: Array, state: _State):
        stages = isinstance(self.solver, diffrax.AbstractRungeKutta)
        method = tableau(self.solver) if stages and varying(state) else None
        if method is not None and is_explicit(method):
            # Inside jax.shard_map: the condition by which diffrax keeps a last stage does not pass its check. Between the
            # steps a cubic through both ends and slopes stands for the method's own interpolant.
            u = explicit_step(method, self.terms, start, stop, state.u, self.args)
            control = self.terms.contr(start, stop)
            first, last = (self.terms.vf_prod(t, y, self.args, control) for t, y in ((start, state.u), (stop, u)))

            def cubic(t):
                x = ((t - start) / (stop - start)).astype(u.dtype)
                change = u - state.u
                bend = (first - change) * (1 - x) - (last - change) * x
                return state.u + x * (change + (1 - x) * bend)

            return u, cubic, state.memory, diffrax.RESULTS.successful
        u, _, dense, memory, result = self.solver.step(
            self.terms, start, stop, state.u, self.args, state.memory, made_jump=False
        )
        return u, self.solver.interpolation_cls(t0=start, t1=stop, **dense).evaluate, memory, result

    def part(self, state: _State, saved: PyTree[Array]) -> Part:
        diverged, none = state.blowup < jnp.inf, jnp.asarray(0, jnp.int32)
        evaluations = counted_evaluations(state.memory, state.taken, none)
        return Part(state.u, saved, state.taken, none, diverged, state.blowup, state.alive, evaluations)

    def _depth(self, k: Any) -> Array:
        share = jnp.asarray(k, self.t0.dtype) / jnp.asarray(self.n, self.t0.dtype)
        return self.t0 + (self.t1 - self.t0) * share


class CheckpointedScan(eqx.Module):
    """Integrates an interval in exactly `steps` steps of `lax.scan`, one `jax.checkpoint` per step.

    Differentiable forwards and backwards; the backward pass stores one state per step and what attention kept of its
    softmax, and recomputes the rest: less memory than a plain scan by far, and less time than to checkpoint everything.
    """

    steps: int = eqx.field(static=True)

    def __call__(self, terms, solver, t0, t1, u, args, plan, wanted, reduce) -> Part:
        interval = _Interval(terms, solver, t0, t1, self.steps, args, plan.limit)
        depths, slots, where, _ = wanted

        @functools.partial(jax.checkpoint, policy=keep_saved, prevent_cse=False)
        def step(state, k):
            new, stop, value, known, path = interval.step(state, k)
            out = None
            if plan.save == "steps":
                out = _saved(plan, reduce, stop, value, known, args)
            elif plan.save == "depths":

                def at(t):
                    return marked(~known, reduced(reduce, t, path(t), args))

                out = jax.vmap(at)(depths.astype(t0.dtype)[slots[k]])
            return new, out

        end, out = jax.lax.scan(step, interval.start(u), jnp.arange(self.steps))
        if plan.save == "depths":
            out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[where], out)
        return interval.part(end, out)


class CountedLoop(eqx.Module):
    """Integrates an interval in exactly `steps` steps of `lax.while_loop`: a traced number, so that a sweep compiles once.

    Differentiable forwards only. `most` is the number of steps where every one is saved.
    """

    steps: Array
    most: int | None = eqx.field(static=True)

    def __call__(self, terms, solver, t0, t1, u, args, plan, wanted, reduce) -> Part:
        interval = _Interval(terms, solver, t0, t1, self.steps, args, plan.limit)
        start = interval.start(u)
        first = jnp.zeros_like(self.steps)
        keep = _Buffers.of(plan, interval, start, wanted, reduce, self.most)

        def unfinished(carry):
            k, state, _ = carry
            # Buffers under a condition that differs between the lanes of a batch would be copied in every step.
            return (k < self.steps) & (state.alive if keep is None else True)

        def step(carry):
            k, state, kept = carry
            new, stop, value, known, path = interval.step(state, k)
            if plan.progress and not plan.layers:
                _show(k + 1, self.steps)
            if kept is not None:
                kept = kept.after(plan, reduce, k, stop, value, known, path, args)
            return k + 1, new, kept

        _, end, keep = jax.lax.while_loop(unfinished, step, (first, start, keep))
        return interval.part(end, None if keep is None else keep.result(plan))


class _Buffers(eqx.Module):
    """What a loop saves: values `(m, …)`, which of them there are, and the step in which each wanted depth lies."""

    values: PyTree[Array]
    known: Bool[Array, " m"]
    depths: Array | None
    place: Int[Array, " m"] | None
    next: Int[Array, ""] | None

    @classmethod
    def of(cls, plan: Plan, interval: _Interval, start: _State, wanted, reduce, most: int | None) -> "_Buffers | None":
        if plan.save not in ("steps", "depths"):
            return None
        depths = place = counter = None
        if plan.save == "depths":
            depths, place = wanted[0].astype(interval.t0.dtype), wanted[3]
            if place is None:  # the number of steps is traced
                share = (depths - interval.t0) / (interval.t1 - interval.t0) * interval.n.astype(depths.dtype)
                slack = 4 * float(jnp.finfo(depths.dtype).eps) * interval.n.astype(depths.dtype)
                place = jnp.clip(jnp.ceil(share - slack).astype(int) - 1, 0, interval.n - 1)
            count, counter = len(depths), jnp.zeros((), jnp.int32)
        else:
            assert most is not None
            count = most
        like = jax.eval_shape(lambda u: saved_value(plan, reduce, interval.t0, u, interval.args), start.u)
        values = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), like)
        everything = (interval.terms, interval.solver, interval.t0, interval.t1, start.u, interval.args)
        values, known = same_axes((values, jnp.zeros(count, bool)), everything)
        return cls(values, known, depths, place, counter)

    def after(self, plan: Plan, reduce, k, stop, value, known, path, args) -> "_Buffers":
        """With what step k adds."""
        if plan.save == "steps":
            new = saved_value(plan, reduce, stop, value, args)
            return self._with(k, new, known, None)

        def inside(b: _Buffers):
            assert b.place is not None and b.next is not None
            return (b.next < len(b.place)) & (b.place[jnp.minimum(b.next, len(b.place) - 1)] == k)

        def one(b: _Buffers) -> _Buffers:
            assert b.depths is not None and b.next is not None
            t = b.depths[b.next]
            return b._with(b.next, reduced(reduce, t, path(t), args), known, b.next + 1)

        return jax.lax.while_loop(inside, one, self)

    def _with(self, i, new, known, following) -> "_Buffers":
        values = jax.tree.map(lambda x, y: x.at[i].set(y), self.values, new)
        return _Buffers(values, self.known.at[i].set(known), self.depths, self.place, following)

    def result(self, plan: Plan) -> PyTree[Array]:
        missing = ~self.known
        if plan.save == "steps":  # whose depths are known in any case
            return {"t": self.values["t"], "u": marked(missing, self.values["u"])}
        return marked(missing, self.values)


def _saved(plan: Plan, reduce, t, u, known, args):
    value = saved_value(plan, reduce, t, u, args)
    return {"t": value["t"], "u": marked(~known, value["u"])}


def _show(done: Array, count: Array) -> None:
    shown = (done % jnp.maximum(count // 20, 1) == 0) | (done == count)
    jax.lax.cond(shown, lambda: jax.debug.callback(_tell, done, count), lambda: None)


def _tell(done, count) -> None:
    tell_share(int(done) / int(count))
