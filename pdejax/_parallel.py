"""`simulate_in_parallel`: all steps of a discretization at once, with an adjoint that is parallel too."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from pdejax import _check
from pdejax._arguments import checked
from pdejax._discretization import Discretization
from pdejax._step_maps import SolverSteps, steps_of
from pdejax._types import Mask
from pdejax.solvers.parallel import ParallelSolution, mgrit, newton
from pdejax.solvers.parallel._mgrit import Cycles, guess_states, solve_cycles, stopped
from pdejax.solvers.parallel._newton import Linear, solve_recurrence
from pdejax.solvers.parallel._solution import check_tolerance, relative_residual

Method = Literal["mgrit", "parareal", "newton"]
_OWNER = "simulate_in_parallel"


class Scheme(eqx.Module):
    """How to solve in parallel: the method and its numbers, static."""

    method: Method = eqx.field(static=True)
    coarsening: int = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    iterations: int | None = eqx.field(static=True)
    adjoint_iterations: int | None = eqx.field(static=True)
    linear: Linear = eqx.field(static=True)
    sharding: Any = eqx.field(static=True, default=None)

    @property
    def relaxation(self) -> Literal["F", "FCF"]:
        """Sweeps of a cycle."""
        return "F" if self.method == "parareal" else "FCF"


@checked
def simulate_in_parallel(
    d: Discretization,
    u0: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    method: Method = "mgrit",
    coarsening: SupportsIndex | None = None,
    levels: SupportsIndex = 2,
    coarse: str | Any | None = None,
    iterations: SupportsIndex | None = None,
    tolerance: ArrayLike = 1e-6,
    adjoint_iterations: SupportsIndex | None = None,
    linear: Linear = "scan",
    mesh: Any = None,
) -> ParallelSolution:
    r"""Find the states after all steps of `d` at once, from `u0`, instead of one after another,

    $$u_i = \Phi_{i-1}(u_{i-1}),\qquad i = 1 \dots N,$$

    by multigrid reduction in depth, parareal, or Newton's method on all steps together.

    - `d`: a `Discretization` with N fixed steps: those of any solver, splittings and retractions included. `mask (n,)`: True at
      real tokens; the state at padding is 0.
    - `method`: `"mgrit"` (sweeps FCF), `"parareal"` (F), or `"newton"`. See `pdejax.solvers.parallel`.
    - `coarsening`: m fine steps to one coarse step (default: the divisor of N nearest √N, for several levels such that all
      divide). A coarse step is one step of the same solver, m times as long; with piecewise-constant weights it takes those of
      the first layer that it goes over. `levels`: grids, 2 or more. `coarse`: another solver for the coarser ones.
    - `iterations`: at most so many. `tolerance`: on the residual of the states. What is returned is the best iterate, with its
      residual; `converged` says whether it is good enough.
    - `adjoint_iterations`: cycles of the backward pass (default: until its relative residual is at the tolerance): gradients with
      respect to the field's arrays and u₀ come from the adjoint recurrence, solved in parallel as well. With few cycles they
      are biased: `analysis.parallel.gradient_bias` measures by how much. Of the solution only `us` has a derivative. Newton's
      scan needs no cycles.
    - `linear`: how Newton solves its recurrences, `"scan"` (Jacobians) or `"cycles"` (products, matrix-free).
    - `mesh`: a `jax.sharding.Mesh` of one axis whose devices share the chunks of the cycles, and of Newton's guess.

    Returns a `ParallelSolution` with the N + 1 states. At convergence they are those of `simulate(d, u0, save="steps")` to the
    tolerance, and exactly so where `iterations` suffices for all chunks. Before a long run ask
    [`predict_iterations`][pdejax.analysis.parallel.predict_iterations] whether it pays: where the flow expands it does not.

    Raises `ValueError`/`TypeError` for steps, states and levels that do not fit, before anything compiles.
    """
    maps, u, mask_found, scheme = prepared(
        _OWNER, d, u0, mask, method, coarsening, levels, iterations, adjoint_iterations, linear, mesh
    )
    check_tolerance(_OWNER, tolerance)
    grids = coarse_maps(_OWNER, maps, u, mask_found, scheme, coarse)
    return _solve_jitted(maps, u, grids, jnp.asarray(tolerance, u.dtype), scheme)


def prepared(
    owner: str, d: Any, u0: Any, mask: Any, method, coarsening, levels, iterations, adjoint_iterations, linear, mesh
) -> tuple[SolverSteps, Array, Mask | None, Scheme]:
    """The fine steps, the state and the scheme, checked; errors name `owner`."""
    maps, u, found = steps_of(owner, d, u0, mask)
    depth = _check.integer(owner, "levels", levels, 2)
    if method == "parareal" and depth != 2:
        raise ValueError(f"{owner}: levels={depth}, but parareal has two; take method='mgrit'.")
    m = _coarsening(owner, maps.count, coarsening, depth)
    wanted = None if iterations is None else _check.integer(owner, "iterations", iterations, 0)
    backward = (
        None if adjoint_iterations is None else _check.integer(owner, "adjoint_iterations", adjoint_iterations, 0)
    )
    return maps, u, found, Scheme(method, m, depth, wanted, backward, linear, _sharding(owner, mesh, maps.count // m))


def coarse_maps(
    owner: str, maps: SolverSteps, u: Array, mask: Mask | None, scheme: Scheme, coarse: Any
) -> tuple[SolverSteps, ...]:
    """Steps m, m², … times as long, by the same solver or by `coarse`."""
    d = maps.d if coarse is None else maps.d.replace(solver=coarse)
    args = maps.args
    if coarse is not None:
        d = steps_of(owner, d, u, mask)[0].d
    counts = [maps.count // scheme.coarsening**level for level in range(1, scheme.levels)]
    return tuple(SolverSteps(d=d, args=args, count=count, inner=1) for count in counts)


def _coarsening(owner: str, count: int, given: Any, levels: int) -> int:
    if given is not None:
        m = _check.integer(owner, "coarsening", given, 2)
        if count % m ** (levels - 1):
            raise ValueError(
                f"{owner}: coarsening={m} on {levels} levels needs steps in multiples of {m ** (levels - 1)}, and there are "
                f"{count}; refine the discretization, or take fewer levels."
            )
        return m
    fitting = [m for m in range(2, count + 1) if count % m ** (levels - 1) == 0]
    if not fitting:
        raise ValueError(
            f"{owner}: {count} steps have no coarsening on {levels} levels; take more steps, or fewer levels."
        )
    return min(fitting, key=lambda m: abs(math.log(m) - math.log(count) / levels))


def _sharding(owner: str, mesh: Any, chunks: int) -> Any:
    if mesh is None:
        return None
    if not isinstance(mesh, jax.sharding.Mesh) or len(mesh.axis_names) != 1:
        raise TypeError(
            f"{owner}: mesh is {mesh!r}; give a jax.sharding.Mesh of one axis, whose devices share the chunks."
        )
    if chunks % mesh.size:
        raise ValueError(
            f"{owner}: {chunks} chunks are not shared equally by {mesh.size} devices; change the coarsening."
        )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*mesh.axis_names))


@eqx.filter_jit
def _solve_jitted(maps, u: Array, grids, tolerance: Array, scheme: Scheme) -> ParallelSolution:
    return solve_given((maps, u), stopped(grids), jax.lax.stop_gradient(tolerance), scheme)


@eqx.filter_custom_vjp
def solve_given(given: tuple[SolverSteps, Array], grids, tolerance: Array, scheme: Scheme) -> ParallelSolution:
    """The solve; the derivative is with respect to `given`, the fine steps and the initial state."""
    maps, u = given
    fine, coarser = maps.ready(u), tuple(grid.ready(u) for grid in grids)
    if scheme.method == "newton":
        cycles = Cycles(maps.count, scheme.coarsening, "F", 0, scheme.sharding)
        guess = guess_states((fine, *coarser), u, cycles)
        return newton(
            (fine, *coarser),
            u,
            count=maps.count,
            linear=scheme.linear,
            coarsening=scheme.coarsening,
            guess=guess,
            iterations=scheme.iterations,
            tolerance=tolerance,
        )
    return mgrit(
        (fine, *coarser),
        u,
        count=maps.count,
        coarsening=scheme.coarsening,
        relaxation=scheme.relaxation,
        iterations=scheme.iterations,
        tolerance=tolerance,
        sharding=scheme.sharding,
    )


@solve_given.def_fwd
def _forward(perturbed, given, grids, tolerance, scheme):
    del perturbed
    found = solve_given.fn(given, grids, tolerance, scheme)
    return found, found.us


@solve_given.def_bwd
def _backward(us, change, perturbed, given, grids, tolerance, scheme) -> PyTree:
    del perturbed
    maps, u = given
    weights = jnp.zeros_like(us) if change.us is None else change.us
    adjoint = solve_adjoint(maps.ready(u), tuple(g.ready(u) for g in grids), us, weights, tolerance, scheme)
    return gradient_of_steps(given, us, adjoint.us)


def gradient_of_steps(given: tuple[SolverSteps, Array], us: Array, reversed_adjoint: Array) -> PyTree:
    """Σ_i (∂Φ_{i−1}/∂θ)ᵀ λ_i and λ₀ from the adjoint states, the last step's first."""
    maps, u = given
    arrays, rest = eqx.partition(maps, eqx.is_inexact_array)
    backwards = reversed_adjoint[::-1]

    def stepped(arrays):
        steps = eqx.combine(arrays, rest).ready(u)
        return jax.vmap(steps)(jnp.arange(maps.count), us[:-1])

    _, pull = jax.vjp(stepped, arrays)
    return pull(backwards[1:])[0], backwards[0]


class AdjointSteps(eqx.Module):
    """μ ↦ DΦ(u)ᵀ μ from the last step to the first, at the states `us (count + 1, ...)` where the steps begin."""

    step: Callable[..., Array]
    us: Array
    count: int = eqx.field(static=True)

    def __call__(self, k: Any, cotangent: Array) -> Array:
        index = self.count - 1 - k
        _, pull = jax.vjp(functools.partial(self.step, index), self.us[index])
        return pull(cotangent)[0]


def solve_adjoint(fine, coarser, us: Array, weights: Array, tolerance: Any, scheme: Scheme) -> ParallelSolution:
    r"""λ_N = w_N, λ_{i−1} = w_{i−1} + DΦ_{i−1}(u_{i−1})ᵀ λ_i, the last first, in parallel; `weights (N + 1, ...)`."""
    count, right = us.shape[0] - 1, weights[::-1]
    if scheme.method == "newton" and scheme.linear == "scan":
        return _scanned_adjoint(fine, us, right)
    m = scheme.coarsening
    steps = tuple(AdjointSteps(step, us[:: m**level], count // m**level) for level, step in enumerate((fine, *coarser)))
    exact = count // m if scheme.relaxation == "F" else -(-(count // m) // 2)
    most = exact if scheme.adjoint_iterations is None else scheme.adjoint_iterations
    cycles = Cycles(count, m, scheme.relaxation, most, scheme.sharding)
    return solve_cycles(steps, right, cycles, tolerance)


def _scanned_adjoint(step, us: Array, right: Array) -> ParallelSolution:
    """The adjoint recurrence by an associative scan of transposed Jacobians: it is linear, so that one solve is all."""
    backwards = AdjointSteps(step, us, us.shape[0] - 1)
    # What λ_N brings in goes into the first right-hand side.
    sides = right[1:].at[0].add(backwards(0, right[0]))
    found = solve_recurrence((backwards,), jnp.zeros_like(right), sides, "scan", 1.0, None)
    states = jnp.concatenate([right[:1], found])
    defects = jax.vmap(backwards)(jnp.arange(us.shape[0] - 1), states[:-1]) + right[1:] - states[1:]
    residual = relative_residual(defects, states)
    return ParallelSolution(states, residual, residual[None], jnp.asarray(1), jnp.isfinite(residual))
