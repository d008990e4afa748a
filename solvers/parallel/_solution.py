"""What a parallel solve gives, and the residual by which it is judged."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

# step(k, u): the state after step k from the state before it.
Step = Callable[[Any, Array], Array]


class ParallelSolution(eqx.Module):
    r"""States after all steps, found at once, and how well they satisfy the steps.

    - `us (steps + 1, ...)`: u₀ and the state after every step: the best iterate.
    - `residual`: $\max_i\|u_i - \Phi_{i-1}(u_{i-1})\|_2 / \max_i\|u_i\|_2$ of these states. The error is up to $\sum_j
      e^{\lambda j}$ times as large, λ the largest exponent per step: a residual says how well the equation is met, not how near
      the answer is.
    - `residuals (iterations allowed + 1,)`: of every iterate, the guess first; ∞ where none was needed.
    - `iterations`: how many were taken. `converged`: whether `residual` is at most the tolerance.
    """

    us: Float[Array, "..."]
    residual: Float[Array, "..."]
    residuals: Float[Array, "..."]
    iterations: Int[Array, "..."]
    converged: Bool[Array, "..."]

    def __repr__(self) -> str:
        if not eqx.is_array(self.residual) or isinstance(self.residual, Tracer) or np.ndim(self.residual):
            return f"ParallelSolution of states {np.shape(self.us)}"
        how = "converged" if bool(self.converged) else "NOT converged"
        return (
            f"ParallelSolution of states {np.shape(self.us)}: {how} after {int(self.iterations)} iterations, "
            f"residual {float(self.residual):.2g}"
        )


def check_tolerance(owner: str, tolerance: Any) -> None:
    """Raise `ValueError`, naming `owner`, for a tolerance below 0 or that is no number; a traced one is not looked at."""
    if isinstance(tolerance, Tracer):
        return
    if np.ndim(tolerance) or not 0 <= float(tolerance) < np.inf:
        raise ValueError(
            f"{owner}: tolerance={tolerance} must be one finite number ≥ 0; it bounds the residual of the states."
        )


def sizes(x: Array) -> Float[Array, " k"]:
    """Euclidean length of every state of `(k, ...)`."""
    return jnp.sqrt(jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1))


def relative_residual(defects: Array, us: Array) -> Float[Array, ""]:
    """The largest defect against the largest state; ∞ where either is not finite, so that nothing compares with NaN."""
    scale = jnp.max(sizes(us))
    found = jnp.max(sizes(defects)) / jnp.where(scale > 0, scale, 1)
    return jnp.where(jnp.isfinite(found) & jnp.isfinite(scale), found, jnp.inf)
