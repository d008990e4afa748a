"""Newton's method on all steps at once, by an associative scan of Jacobians or by matrix-free cycles on coarser grids."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from pdejax._arguments import checked
from pdejax._axes import same_axes
from pdejax.solvers.parallel._mgrit import Cycles, solve_cycles
from pdejax.solvers.parallel._solution import ParallelSolution, Step, check_tolerance, relative_residual, sizes

Linear = Literal["scan", "cycles"]
LEAST_SHARE = 2.0**-6  # of the Jacobian; below it is left out, which is Picard's iteration
REACH = 100.0  # how far above the best residual an iterate may lie
HALVINGS = 8  # of the share, from 1 to below the least
FORCING = 1e-3  # relative residual to which cycles solve a recurrence: Newton's convergence is linear at this rate


@checked
def newton(
    steps: Sequence[Callable[..., Array]],
    u0: ArrayLike,
    *,
    count: int,
    linear: Linear = "scan",
    coarsening: int | None = None,
    guess: ArrayLike | None = None,
    iterations: int | None = None,
    tolerance: ArrayLike = 1e-6,
) -> ParallelSolution:
    r"""Find all states of $u_i = \Phi_{i-1}(u_{i-1})$ by Newton's method on the N steps together,

    $$\delta_i = s\,D\Phi_{i-1}(u_{i-1})\,\delta_{i-1} + r_i,\qquad r_i = \Phi_{i-1}(u_{i-1}) - u_i,\qquad \delta_0 = 0,$$

    with a share s of the Jacobian between 0 and 1 as its trust region: s = 1 is Newton (DEER), s = 0 Picard's iteration. It is
    halved where an iterate's states or residual are 100 times those of the best one, and doubled where not; below 2⁻⁶ it is 0,
    and the iterate is taken in any case. Each one taken makes one more state exact. (To ask that each lowers the residual costs
    hundreds of iterations where free ones need ten: on the way the residual rises and falls.)

    - `steps`: the map `step(k, u)`, and for `"cycles"` those of coarser grids behind it, as for `mgrit`, with their `coarsening`.
    - `linear`: `"scan"` solves the recurrence by an associative scan of Jacobians: log₂ N products of (D, D) matrices in a row,
      D the size of a state, memory N·D². `"cycles"` solves it by multigrid reduction with products alone, to a relative residual
      of 1e-3.
    - `guess (count + 1, ...)`: the first iterate (default: u₀ everywhere). `iterations`: at most so many (default: 2N + 8,
      enough in any case).
    - `tolerance`: on the residual, see `ParallelSolution`; the best iterate is returned with it.

    Sources: Lim et al. 2024, arXiv 2309.12252; damping after Gonzalez et al. 2024, arXiv 2407.19115. Where the largest exponent
    is positive the linear systems are ill-conditioned, and no damping makes it fast: arXiv 2508.16817.
    """
    if count < 1:
        raise ValueError(f"newton: count={count} must be the number of steps, at least 1.")
    if linear == "cycles" and (len(steps) < 2 or coarsening is None):
        raise ValueError("newton: linear='cycles' needs steps of two grids or more, and their coarsening.")
    if linear == "cycles" and count % (least := coarsening ** (len(steps) - 1)):
        raise ValueError(
            f"newton: coarsening={coarsening} on {len(steps)} grids needs multiples of {least} steps; got {count}."
        )
    if not steps:
        raise ValueError("newton: steps is empty; give the map (k, u) -> u.")
    if iterations is not None and iterations < 0:
        raise ValueError(f"newton: iterations={iterations} must be at least 0.")
    check_tolerance("newton", tolerance)
    u0, step = jnp.asarray(u0), steps[0]
    most = 2 * count + HALVINGS if iterations is None else iterations
    ks = jnp.arange(count)
    us = jnp.broadcast_to(u0, (count + 1, *u0.shape)) if guess is None else _guessed(guess, count, u0)

    def judged(us: Array) -> tuple[Array, Array]:
        defects = jax.vmap(step)(ks, us[:-1]) - us[1:]
        return defects, relative_residual(defects, us)

    def unfinished(carry):
        k, _, _, _, _, best, _ = carry
        return (k < most) & (best[1] > tolerance)

    def iterate(carry):
        k, us, defects, found, share, best, residuals = carry
        change = solve_recurrence(steps, us, defects, linear, share, coarsening)
        tried = us.at[1:].add(change)
        # What Picard's iteration overflows in has not been reached yet: anything may stand there.
        lost = (share == 0) & ~jnp.isfinite(sizes(tried))
        tried = jnp.where(lost.reshape(-1, *(1,) * u0.ndim), u0, tried)
        new_defects, new = judged(tried)
        # On its way Newton's residual rises and falls; where it leaves the neighbourhood of the best one, the step was too long.
        near = (new < REACH * best[1]) & (jnp.max(sizes(tried)) < REACH * jnp.max(sizes(best[0])))
        taken = near | (share == 0)
        us, defects, found = jax.tree.map(
            lambda a, b: jnp.where(taken, a, b), (tried, new_defects, new), (us, defects, found)
        )
        grown = jnp.where(share == 0, LEAST_SHARE, jnp.minimum(2 * share, 1))
        cut = jnp.where(share / 2 < LEAST_SHARE, 0, share / 2)
        share = jnp.where(taken, grown, cut).astype(share.dtype)
        better = found < best[1]
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), (us, found), best)
        return k + 1, us, defects, found, share, best, residuals.at[k + 1].set(found)

    defects, found = judged(us)
    residuals = jnp.full(most + 1, jnp.inf, found.dtype).at[0].set(found)
    start = (jnp.asarray(0), us, defects, found, jnp.ones((), u0.dtype), (us, found), residuals)
    start = same_axes(start, (steps, us, tolerance))
    k, _, _, _, _, (us, residual), residuals = jax.lax.while_loop(
        unfinished, lambda c: same_axes(iterate(c), start), start
    )
    return ParallelSolution(us, residual, residuals, k, residual <= tolerance)


def _guessed(guess: ArrayLike, count: int, u0: Array) -> Array:
    us = jnp.asarray(guess)
    if us.shape != (count + 1, *u0.shape):
        raise ValueError(f"newton: guess has shape {us.shape}; give the {count + 1} states {(count + 1, *u0.shape)}.")
    return us.astype(u0.dtype).at[0].set(u0)


class TangentSteps(eqx.Module):
    """v ↦ s DΦ_k(u_k) v at the states `us` where the steps begin."""

    step: Callable[..., Array]
    us: Array
    share: Array

    def __call__(self, k: Any, tangent: Array) -> Array:
        return self.share * jax.jvp(functools.partial(self.step, k), (self.us[k],), (tangent,))[1]


def solve_recurrence(
    steps: Sequence[Step], us: Array, sides: Array, linear: Linear, share: Any, coarsening: int | None
) -> Float[Array, "..."]:
    """δ_i = s DΦ_{i−1}(u_{i−1}) δ_{i−1} + b_i for i = 1 … N, from δ₀ = 0; `us (N + 1, ...)`, `sides (N, ...)`."""
    if linear == "scan":
        flat = sides.reshape(sides.shape[0], -1)
        return linear_scan(share * jacobians(steps[0], us[:-1]), flat).reshape(sides.shape)
    assert coarsening is not None
    share = jnp.asarray(share, us.dtype)
    tangents = [TangentSteps(step, us[:: coarsening**l], share ** (coarsening**l)) for l, step in enumerate(steps)]
    right = jnp.concatenate([jnp.zeros_like(sides[:1]), sides])
    cycles = Cycles(sides.shape[0], coarsening, "FCF", -(-sides.shape[0] // (2 * coarsening)), None)
    return solve_cycles(tangents, right, cycles, FORCING).us[1:]


def jacobians(step: Step, us: Array) -> Float[Array, "N D D"]:
    """Matrices DΦ_k(u_k) of flattened states, one per step."""
    shape = us.shape[1:]
    flat = us.reshape(us.shape[0], -1)

    def one(k, x):
        return jax.jacfwd(lambda x: step(k, x.reshape(shape)).ravel())(x)

    return jax.vmap(one)(jnp.arange(us.shape[0]), flat)


def linear_scan(matrices: Float[Array, "N D D"], sides: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """x_i = A_i x_{i−1} + b_i from x₀ = 0, by an associative scan."""

    def join(first, then):
        (a, b), (c, d) = first, then
        return c @ a, jnp.einsum("...ij,...j->...i", c, b) + d

    return jax.lax.associative_scan(join, (matrices, sides))[1]
