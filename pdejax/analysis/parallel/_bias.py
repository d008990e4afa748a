"""How far a gradient from few cycles of the parallel adjoint is from the exact one, and an estimate without it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from pdejax import _check
from pdejax._arguments import checked
from pdejax._discretization import Discretization
from pdejax._figure import AbstractRecord
from pdejax._parallel import Method, coarse_maps, gradient_of_steps, prepared, solve_adjoint, solve_given, stopped

_OWNER = "gradient_bias"


class GradientBias(AbstractRecord):
    r"""Gradients after k cycles, forwards and backwards, against the exact ones.

    - `iterations (m,)`: k. `bias (m,)`: ‖g_k − g‖/‖g‖, all arrays of the field together; `cosine (m,)`: between the two.
    - `estimate (m,)`: of `bias` without g: ‖g_k − g_{k+1}‖/‖g_{k+1}‖, one cycle more. `residual (m,)`: of the states after k
      cycles.
    """

    iterations: Int[Array, "..."]
    bias: Float[Array, "..."]
    cosine: Float[Array, "..."]
    estimate: Float[Array, "..."]
    residual: Float[Array, "..."]


@checked
def gradient_bias(
    d: Discretization,
    u0: ArrayLike,
    *,
    loss: Callable[[Array], Array],
    iterations: Sequence[int] = (0, 1, 2, 3),
    mask: ArrayLike | None = None,
    method: Method = "mgrit",
    coarsening: SupportsIndex | None = None,
    levels: SupportsIndex = 2,
) -> GradientBias:
    r"""Measure the bias of gradients that parallel solves stop early, by k cycles forwards and k backwards,

    $$b_k = \|g_k - g\|/\|g\|,\qquad g = \partial\,\mathrm{loss}(u_N)/\partial\theta,$$

    θ all floating-point arrays of the field and the solver, g the exact gradient of the steps. `loss` takes the last state.

    In training such a bias does not average out; training with layer-parallel adjoints meets it: arXiv 2601.09026. `estimate`
    needs one cycle more and no exact gradient: where it is above your tolerance, take more cycles, or step serially.

    Raises `ValueError`/`TypeError` for what does not fit; `method="newton"` has no cycles to count.
    """
    if method == "newton":
        raise ValueError(f"{_OWNER}: method='newton' solves its adjoint in one go; take 'mgrit' or 'parareal'.")
    wanted = [_check.integer(_OWNER, "iterations", k, 0) for k in iterations]
    if not wanted:
        raise ValueError(f"{_OWNER}: iterations is empty; give at least one number of cycles.")
    maps, u, found, scheme = prepared(_OWNER, d, u0, mask, method, coarsening, levels, 0, 0, "scan", None)
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(maps))):
        raise ValueError(f"{_OWNER}: the field has no arrays to differentiate with respect to; give one with weights.")
    grids = stopped(coarse_maps(_OWNER, maps, u, found, scheme, None))

    def after(k: int) -> tuple[PyTree, Array]:
        chosen = dataclasses.replace(scheme, iterations=k, adjoint_iterations=k)
        return _gradient_after(maps, u, grids, chosen, loss)

    exact = _exact_gradient(maps, u, loss)
    flat = {k: after(k) for k in sorted({*wanted, *(k + 1 for k in wanted)})}
    size = jnp.linalg.norm(exact)
    scale = jnp.where(size > 0, size, 1)
    rows = []
    for k in wanted:
        (g, residual), (then, _) = flat[k], flat[k + 1]
        norms = jnp.linalg.norm(g) * size
        rows.append(
            (
                jnp.linalg.norm(g - exact) / scale,
                jnp.vdot(g, exact) / jnp.where(norms > 0, norms, 1),
                jnp.linalg.norm(g - then) / jnp.where(jnp.linalg.norm(then) > 0, jnp.linalg.norm(then), 1),
                residual,
            )
        )
    columns = (jnp.stack(column) for column in zip(*rows, strict=True))
    return GradientBias(jnp.asarray(wanted), *columns)


def _flat(tree: PyTree) -> Array:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))])


@eqx.filter_jit
def _gradient_after(maps, u: Array, grids, scheme, loss) -> tuple[Array, Array]:
    """The gradient after so many cycles, at a tolerance that nothing reaches."""
    never = jnp.zeros((), u.dtype)
    found = solve_given.fn((maps, u), grids, never, scheme)
    weights = jnp.zeros_like(found.us).at[-1].set(jax.grad(loss)(found.us[-1]))
    ready = maps.ready(u), tuple(grid.ready(u) for grid in grids)
    adjoint = solve_adjoint(*ready, found.us, weights, never, scheme)
    return _flat(gradient_of_steps((maps, u), found.us, adjoint.us)[0]), found.residual


@eqx.filter_jit
def _exact_gradient(maps, u: Array, loss) -> Array:
    def run(maps):
        ready = maps.ready(u)
        step = jax.checkpoint(lambda u, k: (ready(k, u), None), prevent_cse=False)
        return loss(jax.lax.scan(step, u, jnp.arange(maps.count))[0])

    return _flat(eqx.filter_grad(run)(maps))
