"""Differentiable root of a scalar increasing function, to round-off."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]

_MAX_STEPS = 200


def increasing_root(residual: Callable[[Scalar], Scalar], low: Scalar, high: Scalar, start: Scalar) -> Scalar:
    """x in [low, high] with `residual(x)` = 0, for `residual` increasing, ≤ 0 at `low` and ≥ 0 at `high`.

    Newton steps from `start`, replaced by bisection when they leave the bracket or are not finite, until a
    step is within a few units of the last place. Derivatives of any order, in both modes, follow the
    implicit function theorem through everything that `residual` closes over; `low`, `high` and `start`
    carry none.
    """

    def solve(f: Callable[[Scalar], Scalar], x: Scalar) -> Scalar:
        eps = float(jnp.finfo(x.dtype).eps)

        def step(state):
            x, low, high, _, steps = state
            value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
            low = jnp.where(value <= 0, x, low)
            high = jnp.where(value < 0, high, x)  # overflow counts as too far
            newton = x - value / slope
            # Close to the root the bracket is known only to the residual's own rounding: leave it that slack.
            slack = eps**0.5 * jnp.abs(x)
            usable = (newton >= low - slack) & (newton <= high + slack) & jnp.isfinite(slope)
            new = jnp.where(usable, newton, 0.5 * (low + high))
            return new, low, high, jnp.abs(new - x) <= 4 * eps * jnp.abs(x), steps + 1

        def unfinished(state):
            *_, done, steps = state
            return ~done & (steps < _MAX_STEPS)

        return jax.lax.while_loop(unfinished, step, (x, low, high, jnp.asarray(False), jnp.asarray(0)))[0]

    def tangent_solve(linear: Callable[[Scalar], Scalar], y: Scalar) -> Scalar:
        return y / linear(jnp.ones_like(y))

    return jax.lax.custom_root(residual, start, solve, tangent_solve)
