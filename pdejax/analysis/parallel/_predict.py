"""How many iterations a parallel solve will need, from the growth of the flow and the error of its coarse steps."""

import functools
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pdejax._arguments import checked
from pdejax._axes import same_axes
from pdejax._check import known
from pdejax._discretization import Discretization
from pdejax._figure import AbstractRecord
from pdejax._parallel import Method, coarse_maps, prepared
from pdejax.solvers.parallel import critical_path
from pdejax.solvers.parallel._solution import check_tolerance, sizes

_OWNER = "predict_iterations"


class ParallelPrediction(AbstractRecord):
    r"""What a parallel solve is expected to cost.

    - `iterations`: predicted; `most` where only exactness by propagation will end it: the number of chunks for parareal, half of
      it for FCF, the number of steps for Newton, whose rejected iterates come on top.
    - `residuals (most + 1,)`: the predicted residual of every iterate, the guess first.
    - `exponent`: growth per unit depth of a perturbation along the coarse trajectory, the mean over all chunks; `growth
      (chunks,)`
      of each chunk, a factor; `defect (chunks,)`: ‖(DF − DG) v‖/‖v‖, how much of an error a coarse step gets wrong.
    - `speedup`: N over the steps that follow one another, one device a chunk, communication free: `critical_path`; for Newton two
      an iteration besides the guess, without its Jacobians and the log₂ N products of matrices.
    - `pays`: whether `speedup` is above 1.

    It is a prediction, not a bound: it follows one direction through the linearized flow.
    """

    iterations: Int[Array, "..."]
    most: Int[Array, "..."]
    residuals: Float[Array, "..."]
    exponent: Float[Array, "..."]
    growth: Float[Array, "..."]
    defect: Float[Array, "..."]
    speedup: Float[Array, "..."]
    pays: Bool[Array, "..."]

    def __repr__(self) -> str:
        if not known(self.iterations) or np.ndim(self.iterations):
            return "ParallelPrediction"
        verdict = "pays" if bool(self.pays) else "does NOT pay"
        return (
            f"ParallelPrediction: {int(self.iterations)} of at most {int(self.most)} iterations, exponent "
            f"{float(self.exponent):.3g} per unit depth: {verdict} (at most {float(self.speedup):.2g} times faster in "
            f"counted steps)"
        )


@checked
def predict_iterations(
    d: Discretization,
    u0: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    method: Method = "mgrit",
    coarsening: SupportsIndex | None = None,
    coarse: str | Any | None = None,
    tolerance: float = 1e-6,
) -> ParallelPrediction:
    r"""Predict how many iterations `simulate_in_parallel` will need on two levels, before it runs.

    The error e_j of the guess at coarse point j, and of every iterate after it, is modelled by one number each, which follows the
    linearized iteration along one direction,

    $$e^{0}_{j+1} = g_je^0_j + \|F_j(U_j) - G_j(U_j)\|,\qquad e^{k+1}_{j+1} = g_je^{k+1}_j + \delta_j\tilde e^{k}_j,$$

    with F_j the fine steps of chunk j, G_j its coarse step, U the coarse trajectory, $\tilde e_j = e_j$ for parareal and
    $g_{j-1}e_{j-1}$ for FCF. The growth $g_j = \|DG_jv_j\|/\|v_j\|$ and the coarse error
    $\delta_j = \|(DF_j - DG_j)v_j\|/\|v_j\|$ are taken along v, the error of the guess itself,
    $v_{j+1} = DG_jv_j + F_j(U_j) - G_j(U_j)$. A residual after k ≥ 1 iterations is $\max_j\delta_j\tilde e^{k-1}_j$. For Newton's
    method $\delta_j\tilde e_j$ is replaced by what the linearization misses,
    $\|F_j(U_j + v_j) - F_j(U_j) - DF_jv_j\|(e_j/\|v_j\|)^2$, and G by F.

    - Arguments as for [`simulate_in_parallel`][pdejax.simulate_in_parallel], with the same `tolerance`.

    Cost: the coarse trajectory with one tangent, and the fine steps with one tangent, all chunks at once: about as much as two
    iterations. Where the flow expands, e grows by ∏g and the prediction is that nothing beyond propagation is gained. Source of
    the iteration's error: Gander and Hairer 2008; of the condition on the exponent: arXiv 2508.16817.

    Raises `ValueError`/`TypeError` as `simulate_in_parallel`.
    """
    maps, u, found, scheme = prepared(_OWNER, d, u0, mask, method, coarsening, 2, None, None, "scan", None)
    check_tolerance(_OWNER, tolerance)
    (coarser,) = coarse_maps(_OWNER, maps, u, found, scheme, coarse)
    numbers = _measured(maps, coarser, u, scheme.coarsening, method == "newton")
    depth = jnp.asarray(maps.d.t1, u.dtype) - jnp.asarray(maps.d.t0, u.dtype)
    return _predicted(numbers, maps.count, scheme.coarsening, method, jnp.asarray(tolerance, u.dtype), depth)


@eqx.filter_jit
def _measured(maps, coarser, u: Array, m: int, newton: bool) -> dict[str, Array]:
    """Along the coarse trajectory, chunk by chunk: growth and coarse error of a direction, and the first defects."""
    maps, coarser = maps.ready(u), coarser.ready(u)
    chunks = maps.count // m
    ks = jnp.arange(chunks)

    def chunk(k, u):
        return jax.lax.scan(lambda u, i: (maps(k * m + i, u), None), u, jnp.arange(m))[0]

    def along(u, k):
        new = coarser(k, u)
        return new, u

    end, points = jax.lax.scan(along, u, ks)
    defects = jax.vmap(chunk)(ks, points) - jax.vmap(coarser)(ks, points)

    def tangent(v, x):
        k, point, defect = x
        pushed = jax.jvp(functools.partial(coarser, k), (point,), (v,))[1]
        return pushed + defect, v

    last, vs = jax.lax.scan(tangent, jnp.zeros_like(u), (ks, points, defects))
    # The first chunk begins without an error: its direction is that of the next. Exact coarse steps make none: any will do.
    probes = jnp.concatenate([vs[1:2] if chunks > 1 else last[None], vs[1:]])
    probes = jnp.where((sizes(probes) > 0).reshape(-1, *(1,) * u.ndim), probes, jnp.ones_like(u))
    fine = jax.vmap(lambda k, p, v: jax.jvp(functools.partial(chunk, k), (p,), (v,))[1])(ks, points, probes)
    rough = jax.vmap(lambda k, p, v: jax.jvp(functools.partial(coarser, k), (p,), (v,))[1])(ks, points, probes)
    size = sizes(probes)
    if newton:
        moved = jax.vmap(chunk)(ks, points + probes) - jax.vmap(chunk)(ks, points)
        bent = sizes(moved - fine) / size**2
        growth, share = sizes(fine) / size, bent
    else:
        growth, share = sizes(rough) / size, sizes(fine - rough) / size
    scale = jnp.max(sizes(jnp.concatenate([points, end[None]])))
    return {"growth": growth, "share": share, "defects": sizes(defects), "scale": scale}


@functools.partial(jax.jit, static_argnames=("count", "m", "method"))
def _predicted(
    numbers: dict[str, Array], count: int, m: int, method: Method, tolerance: Array, depth: Array
) -> ParallelPrediction:
    growth, share, defects, scale = (numbers[name] for name in ("growth", "share", "defects", "scale"))
    chunks = count // m
    twice, newton = method == "mgrit", method == "newton"
    # Newton's iterates have one more exact step each, those of cycles one more chunk or two.
    most = -(-chunks // 2) if twice else count if newton else chunks

    def through(sources: Array) -> Array:
        """e_{j+1} = g_j e_j + s_j from e₀ = 0, at the beginnings of the chunks."""
        start = same_axes(jnp.zeros((), growth.dtype), sources)
        _, errors = jax.lax.scan(lambda e, x: (x[0] * e + x[1], e), start, (growth, sources))
        return errors

    def iterate(errors, k):
        before = errors
        if twice:
            before = jnp.concatenate([jnp.zeros(1, growth.dtype), growth[:-1] * errors[:-1]])
        sources = share * (before**2 if newton else before)
        # What has been propagated exactly has no error.
        sources = jnp.where(jnp.arange(chunks) < (2 * k if twice else k // m if newton else k), 0, sources)
        return through(sources), jnp.max(sources)

    _, later = jax.lax.scan(iterate, through(defects), jnp.arange(1, most + 1))
    residuals = jnp.concatenate([jnp.max(defects)[None], later]) / jnp.where(scale > 0, scale, 1)
    residuals = jnp.where(jnp.isfinite(residuals), residuals, jnp.inf)
    reached = residuals <= tolerance
    iterations = jnp.where(jnp.any(reached), jnp.argmax(reached), most)
    if newton:
        # Errors as large as the states: there is no linearized flow to follow, and propagation alone is sure.
        lost = ~jnp.all(jnp.isfinite(residuals)) | (jnp.max(residuals) > 1)
        iterations = jnp.where(lost, most, iterations)
        # A scan of Jacobians: two sweeps of everything at once, and log₂ N products that are not counted.
        path = iterations * 2 + chunks + m
    else:
        relaxation = "F" if method == "parareal" else "FCF"
        once, twice_ = (critical_path(count, iterations=k, coarsening=m, relaxation=relaxation) for k in (0, 1))
        path = once + iterations * (twice_ - once)
    exponent = jnp.sum(jnp.log(growth)) / depth
    speedup = count / path
    return ParallelPrediction(iterations, jnp.asarray(most), residuals, exponent, growth, share, speedup, speedup > 1)
