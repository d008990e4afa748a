"""Matrix product and exponential at full precision on every device, and a differentiable root."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float

from pdejax._axes import same_axes

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

        # Inside jax.shard_map whatever `f` closes over may differ between devices, and so does all that the loop carries.
        begin = same_axes((x, low, high, jnp.asarray(False), jnp.asarray(0)), jax.eval_shape(f, x))
        return jax.lax.while_loop(unfinished, step, begin)[0]

    def tangent_solve(linear: Callable[[Scalar], Scalar], y: Scalar) -> Scalar:
        return y / linear(jnp.ones_like(y))

    return jax.lax.custom_root(residual, start, solve, tangent_solve)


def product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """a @ b; without `precision`, GPUs and TPUs round float32 factors to 10 or 7 bits first."""
    return jnp.matmul(a, b, precision="highest")


def matrix_exponential(a: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """e^a by scaling and squaring (Higham 2005, DOI 10.1137/04061101X). Up to 2⁶⁴ in norm: jax's own limit
    of 2¹⁶ would return NaN for a diffusion operator over a long depth.
    """
    return jax.scipy.linalg.expm(a, max_squarings=64)
