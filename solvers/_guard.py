"""A step-size controller that ends a solve when the state blows up, and remembers when."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from pdejax._arguments import checked
from pdejax.solvers._written import one_line

Adapted = tuple[Any, Any, Any, Any, "GuardState", diffrax.RESULTS]


class GuardState(eqx.Module):
    """What a [`BlowupGuard`][pdejax.solvers.BlowupGuard] knows; `sol.controller_state` with
    `diffrax.SaveAt(controller_state=True)`.
    """

    diverged: Bool[Array, ""]
    """Whether the solve was ended as a blow-up."""
    blowup_time: Float[Array, ""]
    """End of the step that failed, or the time beyond which no step was small enough; inf if none."""
    resolution: Float[Array, ""]
    """Shortest step that is tried near t = 0, where t itself sets no scale."""
    controller: PyTree
    """State of the wrapped controller."""

    __repr__ = one_line


def _largest(y: PyTree) -> tuple[Array, Array]:
    """(largest modulus of an entry, whether all entries are finite)."""
    sizes = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in map(jax.lax.stop_gradient, jax.tree.leaves(y))]
    dtype = jnp.result_type(*(size.dtype for size in sizes)) if sizes else jnp.float32
    size = jnp.max(jnp.stack([size.astype(dtype) for size in sizes])) if sizes else jnp.zeros((), dtype)
    return size, jnp.isfinite(size)  # max propagates NaN


def _above(size: Array, limit: Real[ArrayLike, ""]) -> Array:
    if isinstance(limit, float | int) and limit > float(jnp.finfo(size.dtype).max):
        return jnp.isinf(size)  # a limit that this type cannot hold
    return size > jnp.asarray(limit, size.dtype)


def _init(guard: "AbstractBlowupGuard", terms, t0, t1, y0, dt0, args, func, error_order) -> tuple[Any, GuardState]:
    t_next, inner = guard.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
    dtype = jnp.result_type(t0)
    span = jnp.abs(jnp.asarray(t1 - t0, dtype))
    resolution = jnp.where(jnp.isfinite(span), span, 1.0) * float(jnp.finfo(dtype).eps) ** 2
    return t_next, GuardState(jnp.array(False), jnp.full((), jnp.inf, dtype), resolution.astype(dtype), inner)


def _adapt(guard: "AbstractBlowupGuard", t0, t1, y0, y1, args, y_error, error_order, state: GuardState) -> Adapted:
    size, finite = _largest(y1)
    # A controller that scales inf by inf would make its next step NaN and never end: show it a plain failure.
    shown = jax.tree.map(lambda new, old: jnp.where(finite, new, old), y1, y0)
    error = jax.tree.map(lambda e: jnp.where(finite, e, jnp.full_like(e, jnp.inf)), y_error)
    accept, t_start, t_end, jump, inner, result = guard.controller.adapt_step_size(
        t0, t1, y0, shown, args, error, error_order, state.controller
    )
    accept = jnp.asarray(accept)
    # Ten units in the last place: time hardly resolves shorter steps, and refusals would go on for ever.
    shortest = jnp.maximum(10.0 * float(jnp.finfo(jnp.result_type(t0)).eps) * jnp.abs(t0), state.resolution)
    stuck = ~accept & ((t_end - t_start <= shortest) | (result == diffrax.RESULTS.dt_min_reached))
    broken = accept & ~finite
    exceeded = accept & finite & _above(size, guard.limit)

    result = diffrax.RESULTS.where(stuck & diffrax.is_okay(result), diffrax.RESULTS.dt_min_reached, result)
    # pyright does not see that these two members are inherited.
    result = diffrax.RESULTS.where(broken, diffrax.RESULTS.nonfinite, result)  # pyright: ignore[reportArgumentType]
    result = diffrax.RESULTS.where(exceeded, diffrax.RESULTS.nonlinear_divergence, result)  # pyright: ignore[reportArgumentType]
    time = guard.direction * jnp.where(stuck, t0, t1)
    diverged = stuck | broken | exceeded
    # Diffrax keeps y0 where a step is refused, so that no NaN gets into the solution.
    accept = accept & finite
    t_start = jnp.where(accept, t_start, t0)
    new = GuardState(
        state.diverged | diverged,
        jnp.where(diverged & ~state.diverged, time, state.blowup_time),
        state.resolution,
        inner,
    )
    return accept, t_start, t_end, jump, new, result


def _to_limit(limit: Any) -> Any:
    if isinstance(limit, Tracer):
        return limit
    if isinstance(limit, bool) or not isinstance(limit, int | float | np.number | jax.Array) or jnp.shape(limit) != ():
        raise TypeError(f"limit must be a positive number, the largest allowed |y|; got {limit!r}.")
    if not limit > 0:
        raise ValueError(f"limit must be positive (inf: only NaN and infinities end the solve); got {limit}.")
    return limit if isinstance(limit, jax.Array) else float(limit)


class AbstractAround(diffrax.AbstractAdaptiveStepSizeController[Any, Any]):
    """An adaptive controller around another one, whose tolerances it passes on to implicit solvers."""

    controller: eqx.AbstractVar[diffrax.AbstractAdaptiveStepSizeController]

    @property
    def rtol(self):
        return self.controller.rtol

    @property
    def atol(self):
        return self.controller.atol

    @property
    def norm(self):
        return self.controller.norm


class AbstractBlowupGuard(diffrax.AbstractStepSizeController[GuardState, Any]):
    """What both guards do; see [`BlowupGuard`][pdejax.solvers.BlowupGuard]."""

    controller: eqx.AbstractVar[diffrax.AbstractStepSizeController]
    limit: eqx.AbstractVar[Real[ArrayLike, ""]]
    direction: eqx.AbstractVar[Int[ArrayLike, ""]]

    __repr__ = one_line

    def wrap(self, direction):
        wrapped = (self.controller.wrap(direction), direction)
        return eqx.tree_at(lambda guard: (guard.controller, guard.direction), self, wrapped)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return _init(self, terms, t0, t1, y0, dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        return _adapt(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state)


class FixedBlowupGuard(AbstractBlowupGuard):
    """The guard of a controller that is not adaptive; made by `BlowupGuard`."""

    controller: diffrax.AbstractStepSizeController
    limit: Real[ArrayLike, ""] = eqx.field(converter=_to_limit)
    direction: Int[ArrayLike, ""] = 1


class AdaptiveBlowupGuard(AbstractBlowupGuard, AbstractAround):
    """The guard of an adaptive controller; made by `BlowupGuard`. Passes its tolerances on to implicit
    solvers.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController
    limit: Real[ArrayLike, ""] = eqx.field(converter=_to_limit)
    direction: Int[ArrayLike, ""] = 1


@checked
def BlowupGuard(controller: Any, limit: Any) -> AbstractBlowupGuard:
    """Step-size controller that ends the solve when the state blows up.

    The solve ends, with `sol.result` not successful, when

    - an accepted step leaves max|y| > `limit` (`diffrax.RESULTS.nonlinear_divergence`); the state is kept,
    - a step that would be accepted has a NaN or an infinity (`RESULTS.nonfinite`); the state before it is
        kept, so that no NaN reaches the output,
    - an adaptive controller refuses a step and the next one would be shorter than 10 ε|t|
        (`RESULTS.dt_min_reached`): the solution has a singularity there. Without the guard such a solve runs
        on to `max_steps`.

    Use `diffeqsolve(..., throw=False, saveat=SaveAt(..., controller_state=True))` and read
    `sol.controller_state`, a [`GuardState`][pdejax.solvers.GuardState]: `diverged` and `blowup_time`, which
    for u' = u² approaches 1/u(0): from above, to within a step, for fixed steps, and to rounding for
    `limit=inf` with an adaptive controller. The steps themselves are those of the wrapped controller, bit for
    bit, as long as none fails.

    A function and not a class, because diffrax tells adaptive from fixed controllers by class; both results
    are an `AbstractBlowupGuard`. Works under `jit`, `vmap`, forward and reverse mode, and with time running
    backwards.

    **Arguments:**

    - `controller`: `diffrax.ConstantStepSize()`, `diffrax.PIDController(...)`, or any other.
    - `limit`: positive scalar; inf lets every finite state pass.

    **Raises:** `TypeError`, `ValueError` if an argument is not that.
    """
    if isinstance(controller, type) or not isinstance(controller, diffrax.AbstractStepSizeController):
        raise TypeError(
            f"controller must be a diffrax step-size controller such as diffrax.ConstantStepSize(); got {controller!r}."
        )
    if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        # pyright takes the three abstract properties of the base for fields of the constructor.
        return AdaptiveBlowupGuard(controller, limit)  # pyright: ignore[reportCallIssue]
    return FixedBlowupGuard(controller, limit)
