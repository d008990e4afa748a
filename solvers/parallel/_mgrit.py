"""Multigrid reduction in depth: parareal, two levels, and V-cycles, for nonlinear steps by full approximation."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from pdejax._arguments import checked
from pdejax._axes import same_axes
from pdejax.solvers.parallel._critical import Relaxation
from pdejax.solvers.parallel._solution import ParallelSolution, Step, check_tolerance, relative_residual


class Cycles(eqx.Module):
    """How to cycle: steps of the finest level, the coarsening, sweeps of relaxation, and where chunks live."""

    count: int = eqx.field(static=True)
    coarsening: int = eqx.field(static=True)
    relaxation: Relaxation = eqx.field(static=True)
    most: int = eqx.field(static=True)
    sharding: Any = eqx.field(static=True, default=None)

    def split(self, x: Array) -> Array:
        """Chunks `(chunks, ...)` shared among the devices, where there is an equal number for each."""
        if self.sharding is None or x.shape[0] % self.sharding.mesh.size:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding)


@checked
def mgrit(
    steps: Sequence[Callable[..., Array]],
    u0: ArrayLike,
    *,
    count: int,
    coarsening: int,
    relaxation: Relaxation = "FCF",
    iterations: int | None = None,
    tolerance: ArrayLike = 1e-6,
    sharding: Any = None,
) -> ParallelSolution:
    r"""Find all states of $u_i = \Phi_{i-1}(u_{i-1})$, $i = 1 \dots N$, by multigrid reduction.

    - `steps`: one map `step(k, u)` per level, the finest first. Step k of level l goes over m^l fine steps, m = `coarsening`,
      from state k·m^l to state (k + 1)·m^l. Two levels and `relaxation="F"` are **parareal**,
      $U^{k+1}_{j+1} = G(U^{k+1}_j) + F(U^k_j) - G(U^k_j)$; `"FCF"` sweeps twice, which makes twice as many states exact in
      a cycle. More levels are a V-cycle.
    - `count`: N, a multiple of m^(levels − 1). `iterations`: at most so many cycles (default: as many as are exact in any case).
    - `tolerance`: on the residual, see `ParallelSolution`. The best iterate is returned, with its residual, whether it is reached
      or not.
    - `sharding`: of the axis of chunks, `jax.sharding.NamedSharding(mesh, PartitionSpec(axis))`: each device sweeps its own.

    The first k·m (FCF: 2k·m) states of iterate k are exact to rounding whatever the coarse maps are. Derivatives are those of
    `pdejax.simulate_in_parallel`, which has an adjoint; this loop has none in reverse mode. Sources: Lions, Maday and Turinici
    2001; Falgout et al. 2014, DOI 10.1137/130944230.

    Raises `ValueError`/`TypeError` for levels, steps and a tolerance that do not fit.
    """
    m, levels, u0 = coarsening, len(steps), jnp.asarray(u0)
    if levels < 2 or m < 2 or count < 1 or count % m ** (levels - 1):
        raise ValueError(
            f"mgrit: {levels} levels and coarsening={m} on {count} steps; give two levels or more, a coarsening of at least "
            "2, and a number of steps that is a multiple of coarsening^(levels - 1)."
        )
    if iterations is not None and iterations < 0:
        raise ValueError(f"mgrit: iterations={iterations} must be at least 0.")
    check_tolerance("mgrit", tolerance)
    chunks = count // m
    exact = chunks if relaxation == "F" else -(-chunks // 2)
    cycles = Cycles(count, m, relaxation, exact if iterations is None else iterations, sharding)
    right = jnp.zeros((count + 1, *u0.shape), u0.dtype).at[0].set(u0)
    return solve_cycles(steps, right, cycles, tolerance)


def solve_cycles(steps: Sequence[Step], right: Array, cycles: Cycles, tolerance: Any) -> ParallelSolution:
    """States of u₀ = g₀, u_i = Φ_{i−1}(u_{i−1}) + g_i from the right-hand sides g `(N + 1, ...)`, which an adjoint has too."""
    m, first = cycles.coarsening, steps[0]
    guess = _guess(steps, right, cycles)
    # A coarse solve that blows up is no guess: the state that stays is.
    still = jnp.broadcast_to(right[0], guess.shape)
    guess = jnp.where(jnp.all(jnp.isfinite(guess)), guess, still)

    def judged(points: Array) -> tuple[Array, Array, Array]:
        us, ends = _sweep(first, points, right, m, cycles)
        return us, ends, relative_residual(ends - points[1:], us)

    def unfinished(carry):
        # What is not finite is not exact yet, and will be: each cycle makes one more chunk exact.
        k, _, _, best, _ = carry
        return (k < cycles.most) & (best[1] > tolerance)

    def cycle(carry):
        k, points, ends, best, residuals = carry
        if cycles.relaxation == "FCF":
            points = jnp.concatenate([points[:1], ends])
            _, ends = _sweep(first, points, right, m, cycles)
        points = _corrected(steps, points, ends, cycles, 1)
        us, ends, found = judged(points)
        better = found < best[1]
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (us, found), best)
        return k + 1, points, ends, best, residuals.at[k + 1].set(found)

    us, ends, found = judged(guess)
    residuals = jnp.full(cycles.most + 1, jnp.inf, found.dtype).at[0].set(found)
    start = (jnp.asarray(0), guess, ends, (us, found), residuals)
    start = same_axes(start, (steps, right, tolerance))
    k, _, _, (us, residual), residuals = jax.lax.while_loop(unfinished, lambda c: same_axes(cycle(c), start), start)
    return ParallelSolution(us, residual, residuals, k, residual <= tolerance)


def _sweep(step: Step, points: Array, right: Array, m: int, cycles: Cycles) -> tuple[Array, Array]:
    """From the coarse points `(M + 1, ...)` through every chunk at once: all states `(N + 1, ...)`, and where the chunks end."""
    chunks = points.shape[0] - 1
    sides = cycles.split(right[1:].reshape(chunks, m, *right.shape[1:]))
    first = jnp.arange(chunks) * m

    def advance(u, i):
        new = jax.vmap(step)(first + i, u) + sides[:, i]
        return cycles.split(new), u

    ends, inside = jax.lax.scan(advance, cycles.split(points[:-1]), jnp.arange(m))
    us = jnp.moveaxis(inside, 0, 1).reshape(chunks * m, *points.shape[1:])
    return jnp.concatenate([us, points[-1:]]), ends


def _corrected(steps: Sequence[Step], points: Array, ends: Array, cycles: Cycles, level: int) -> Array:
    """Coarse points after the correction from `level`: its equation with the defect of the finer one on the right."""
    coarse = steps[level]
    chunks = jnp.arange(points.shape[0] - 1)
    own = jax.vmap(coarse)(chunks, cycles.split(points[:-1]))
    # u_j − Φ(u_{j−1}) + defect_j with defect_j = end_j − u_j.
    right = jnp.concatenate([points[:1], ends - own])
    if level + 1 == len(steps):
        return _serial(coarse, right)
    m = cycles.coarsening
    inner = points[::m]
    _, ends = _sweep(coarse, inner, right, m, cycles)
    if cycles.relaxation == "FCF":
        inner = jnp.concatenate([inner[:1], ends])
        _, ends = _sweep(coarse, inner, right, m, cycles)
    inner = _corrected(steps, inner, ends, cycles, level + 1)
    return _sweep(coarse, inner, right, m, cycles)[0]


def _serial(step: Step, right: Array) -> Array:
    def advance(u, x):
        k, side = x
        new = step(k, u) + side
        return new, new

    _, us = jax.lax.scan(advance, right[0], (jnp.arange(right.shape[0] - 1), right[1:]))
    return jnp.concatenate([right[:1], us])


def _guess(steps: Sequence[Step], right: Array, cycles: Cycles) -> Array:
    """Coarse points of the finest level: the coarsest solved one step after another, then a sweep on every level above.

    A coarse step stands for m fine ones, and so does the sum of their right-hand sides.
    """
    m, sides = cycles.coarsening, [right]
    for _ in steps[1:]:
        last = sides[-1]
        summed = jnp.sum(last[1:].reshape(-1, m, *last.shape[1:]), axis=1)
        sides.append(jnp.concatenate([last[:1], summed]))
    points = _serial(steps[-1], sides[-1])
    for level in range(len(steps) - 2, 0, -1):
        points, _ = _sweep(steps[level], points, sides[level], m, cycles)
    return points


def guess_states(steps: Sequence[Step], u0: Array, cycles: Cycles) -> Array:
    """All states `(N + 1, ...)` by the coarser grids alone and a sweep of the finest."""
    right = jnp.zeros((cycles.count + 1, *u0.shape), u0.dtype).at[0].set(u0)
    points = _guess(steps, right, cycles)
    points = jnp.where(jnp.all(jnp.isfinite(points)), points, jnp.broadcast_to(u0, points.shape))
    return _sweep(steps[0], points, right, cycles.coarsening, cycles)[0]


def stopped(tree: PyTree) -> PyTree:
    """The same without derivatives."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)
