"""Finite-depth Lyapunov exponents of the whole state: tangents carried through a solve, made orthonormal on the way."""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._check import token_mask, traced
from pdejax._types import Mask
from pdejax.analysis._bootstrap import Interval
from pdejax.analysis.jacobian._step_maps import (
    AbstractMaps,
    FunctionMaps,
    block_maps,
    equation_maps,
    ready,
    real_count,
    real_entries,
    simulator_maps,
    without_padding,
)
from pdejax.models import Simulator, Transformer

STEPS = 16  # per unit of depth, where the caller says nothing
BLOCKS = 10  # depths are cut into as many equal parts for the interval, fewer where there are fewer steps


class LyapunovExponents(eqx.Module):
    r"""The k largest exponents, per unit depth, descending.

    - `exponents`: values `(k,)` with a Student-t interval from means over `blocks` equal parts of the depth, on the assumption
      that parts are independent and alike: too narrow for slow variation or a transient. NaN ends with fewer than two parts.
    - `ts (m,)`, `history (m, k)`: the estimates from the start of averaging to each depth.
    - `diverged`: whether the state or a tangent became non-finite; exponents are NaN then.
    - `null (k,)`: exponents of the null model, or None.

    An exponent of a direction that a map sends to 0 exactly (a projection) is −∞, in floating point some −36/h (−16/h in
    float32), h the depth of one map.
    """

    exponents: Interval
    ts: Float[Array, "..."]
    history: Float[Array, "..."]
    diverged: Bool[Array, "..."]
    null: Float[Array, "..."] | None


def lyapunov_exponents(
    system: Any,
    u0: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    k: int,
    t1: float | None = None,
    steps: int | None = None,
    solver: str | diffrax.AbstractSolver | None = None,
    t0: float = 0.0,
    split: Any = None,
    mask: ArrayLike | None = None,
    qr_every: int = 1,
    discard: float = 0.0,
    null: Any = None,
    level: float = 0.95,
) -> LyapunovExponents:
    r"""The `k` largest Lyapunov exponents of the flow on the whole state (n·d directions) over [t0, t1],

    $$\lambda_i = \frac1{t_1 - t_0}\sum_m\log R^{(m)}_{ii},\qquad D\Phi_m\,Q_{m-1} = Q_mR^{(m)},$$

    with Φ_m `qr_every` steps, Q₀ random orthonormal from `key` (default `jax.random.key(0)`). Source: Benettin et
    al. 1980, DOI 10.1007/BF02128236.

    - `system`: an equation or a field f(t, u, args) on a state of any shape, with `t1`, `steps` (default 16 per unit of depth:
      refine until nothing moves) and any `solver` of `simulate`, splittings and retractions included
      (default "rk4"): exponents of the discrete flow, which those of the equation differ from by O(h^p). Or a `Transformer` or
      `Simulator` on a state `(n, d)`: its layers, depth as they measure it.
    - `mask (n,)`: padded tokens carry no tangent; the state there is set to 0. At most n_real·d exponents.
    - `qr_every`: steps between two orthogonalizations; too many and the tangents align (all exponents tend to the largest: keep
      the spread of exponents times the depth between below 10 in float32, 25 in float64).
    - `discard`: depth at the beginning that is not averaged, while tangents turn to their directions.
    - `null`: a system of the same kind whose exponents are computed beside, from the same u0 and key, such as
      `shuffle_weights(equation, key=…)`: the same sizes without the design.

    For finite depth they depend on Q₀ at O(1/t1): the largest is at most log σ_max/t1. With k = n·d they sum to log|det DΦ|/t1
    exactly. For the directions that grow most over exactly this depth see [`ftle`][pdejax.analysis.ftle].

    Cost per step: one evaluation with k forward-mode products, and a QR of (n·d, k) in O(n·d·k²). Memory: k + 1 states and the
    working set of k products; no trajectory. Raises `ValueError`/`TypeError` for steps, k, masks or states that do not fit.
    """
    key = jax.random.key(0) if key is None else key
    given = {"t0": t0, "t1": t1, "steps": steps, "solver": solver, "split": split}
    maps, u, real = _maps_of(system, u0, mask, **given)
    other = None if null is None else _maps_of(null, u0, mask, **given)[0]
    return _run(maps, other, u, real, k, qr_every, discard, level, key)


def lyapunov_of_maps(
    maps: ArrayLike | Callable[..., Array],
    u0: ArrayLike | None = None,
    *,
    key: PRNGKeyArray | None = None,
    k: int,
    steps: int | None = None,
    spacing: float = 1.0,
    qr_every: int = 1,
    discard: float = 0.0,
    level: float = 0.95,
) -> LyapunovExponents:
    r"""The `k` largest exponents of a product of matrices `maps (T, N, N)`, applied first to last, or of `steps` iterations of
    a function `maps(i, u) -> u` from `u0`, per unit depth with `spacing` to one map.

    The null of matrices: independent Gaussian ones, each brought to the Frobenius norm of the one given, in closed form,
    $\overline{\log\|A\|_F} + \tfrac12(\psi(\tfrac{N-i+1}2) - \psi(\tfrac{N^2}2))$: what sizes alone would give (see
    [`gaussian_exponents`][pdejax.analysis.gaussian_exponents]).

    The largest exponent of row-stochastic matrices tends to 0: they leave the vector of ones as it is and do not expand the
    largest entry. Otherwise as [`lyapunov_exponents`][pdejax.analysis.lyapunov_exponents].
    """
    key = jax.random.key(0) if key is None else key
    width = jnp.asarray(spacing)
    if not callable(maps):
        matrices = jnp.asarray(maps)
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or 0 in matrices.shape:
            raise ValueError(
                f"lyapunov_of_maps: maps has shape {matrices.shape}; give (T, N, N) or a function (i, u) -> u."
            )
        if not jnp.issubdtype(matrices.dtype, jnp.floating):
            raise TypeError(
                f"lyapunov_of_maps: maps has type {matrices.dtype}; matrices are real floating-point numbers."
            )
        if not traced(matrices) and not np.isfinite(np.asarray(matrices)).all():
            raise ValueError("lyapunov_of_maps: maps has entries that are not finite.")
        if steps is not None or u0 is not None:
            raise ValueError(
                "lyapunov_of_maps: u0 and steps belong to a function; matrices (T, N, N) have their own number."
            )
        steps, size = matrices.shape[0], matrices.shape[1]
        u = jnp.zeros(size, matrices.dtype)
        found = FunctionMaps(step=None, matrices=matrices, spacing=width, count=steps)
        result = _run(found, None, u, None, k, qr_every, discard, level, key)
        # The direction of a Gaussian matrix does not depend on its Frobenius norm: give it the norm there is.
        norms = jnp.mean(0.5 * jnp.log(jnp.sum(matrices**2, axis=(1, 2))))
        directions = gaussian_exponents(size, k) - _log_chi(jnp.asarray(size**2, jnp.result_type(float)))
        beside = (norms + directions.astype(norms.dtype)) / width.astype(norms.dtype)
        return eqx.tree_at(lambda r: r.null, result, beside, is_leaf=lambda x: x is None)
    if u0 is None or isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"lyapunov_of_maps: a function needs u0 and steps ≥ 1, got steps={steps!r}.")
    u = jnp.asarray(u0)
    if not jnp.issubdtype(u.dtype, jnp.floating) or not u.size:
        raise TypeError(f"lyapunov_of_maps: u0 has shape {u.shape} and type {u.dtype}; give a non-empty real state.")
    found = jax.eval_shape(maps, 0, u)
    if getattr(found, "shape", None) != u.shape:
        raise ValueError(f"lyapunov_of_maps: the function gives {found} for shape {u.shape}; it must keep the shape.")
    return _run(
        FunctionMaps(step=maps, matrices=None, spacing=width, count=steps),
        None,
        u,
        None,
        k,
        qr_every,
        discard,
        level,
        key,
    )


def gaussian_exponents(size: int, k: int, scale: float = 1.0) -> Float[Array, " k"]:
    r"""The k largest exponents per map of products of independent N × N matrices of N(0, s²) entries,

    $$\lambda_i = \log s + \tfrac12\Big(\log 2 + \psi\big(\tfrac{N-i+1}2\big)\Big),\quad i = 1\dots k,$$

    N = `size`, s = `scale`, ψ the digamma function. Source: Newman 1986, DOI 10.1007/BF01205694.
    Raises `ValueError` unless 1 ≤ k ≤ N.
    """
    if not 1 <= k <= size:
        raise ValueError(f"gaussian_exponents: k={k} must lie in 1 … {size}.")
    freedom = size - jnp.arange(k).astype(jnp.result_type(float))
    return jnp.log(jnp.asarray(scale, freedom.dtype)) + _log_chi(freedom)


def _log_chi(freedom: Array) -> Array:
    """Mean logarithm of the length of a standard Gaussian vector of so many numbers."""
    return 0.5 * (np.log(2.0) + digamma(freedom / 2))


def _maps_of(system, u0, mask, *, t0, t1, steps, solver, split) -> tuple[AbstractMaps, Array, Mask | None]:
    """Maps, checked initial state and mask."""
    if not isinstance(system, Transformer | Simulator):
        if t1 is None:
            raise ValueError("lyapunov_exponents: an equation needs its depth t1, and may be given steps; give t1=….")
        solver = "rk4" if solver is None else solver
        if steps is None and not traced(t0, t1) and math.isfinite(float(t1) - float(t0)):
            steps = STEPS * max(math.ceil(float(t1) - float(t0)), 1)
        given = {"t0": t0, "t1": t1, "steps": steps, "solver": solver, "split": split, "mask": mask, "maps": None}
        maps, u = equation_maps("lyapunov_exponents", system, u0, **given)
        return maps, u, maps.args.mask
    if any(value is not None for value in (t1, steps, solver, split)):
        raise ValueError("lyapunov_exponents: t1, steps, solver and split belong to equations; a model has its own.")
    return model_maps("lyapunov_exponents", system, u0, mask)


def model_maps(owner: str, system: Any, u0: Any, mask: Any) -> tuple[AbstractMaps, Array, Mask | None]:
    """The layers of a model from a state `(n, d)`, and the state with zeros at padding."""
    u = jnp.asarray(u0)
    if u.ndim != 2 or u.shape[1] != system.architecture.dim or not jnp.issubdtype(u.dtype, jnp.floating):
        raise ValueError(
            f"{owner}: u0 has shape {u.shape} and type {u.dtype}; give (n, {system.architecture.dim}), model.embed(tokens)."
        )
    real = token_mask(owner, mask, u.shape[-2])
    u = without_padding(u, real)
    if not traced(u) and not np.isfinite(np.asarray(u)).all():
        raise ValueError(f"{owner}: u0 has values at real tokens that are not finite.")
    if isinstance(system, Transformer):
        return block_maps(system, real), u.astype(system.architecture.dtype), real
    u = u.astype(system.architecture.state_dtype)
    return simulator_maps(system, u, real), u, real


def _run(maps, null, u, mask, k, qr_every, discard, level, key) -> LyapunovExponents:
    room = real_count(u.shape, mask)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= room:
        raise ValueError(f"lyapunov: k={k!r} must be a whole number in 1 … {room}, the entries of real tokens.")
    if isinstance(qr_every, bool) or not isinstance(qr_every, int) or qr_every < 1 or maps.count % qr_every:
        raise ValueError(f"lyapunov: qr_every={qr_every!r} must divide the {maps.count} steps.")
    if not 0 < level < 1:
        raise ValueError(f"lyapunov: level={level} must lie strictly between 0 and 1, such as 0.95.")
    m = maps.count // qr_every
    ends = maps.depths(u.dtype)
    drop = 0
    if float(discard) != 0:
        if traced(ends):
            raise TypeError("lyapunov: discard needs depths that are plain numbers, not traced.")
        drop = int(np.ceil(float(discard) / (float(ends[-1] - ends[0]) / m) - 1e-6))
    if not 0 <= drop < m:
        raise ValueError(f"lyapunov: discard={discard} must be at least 0 and leave something of the depth.")
    found = _exponents(maps, u, mask, key, k, qr_every, drop, level)
    if null is None:
        return found
    beside = _exponents(null, u, mask, key, k, qr_every, drop, level)
    return eqx.tree_at(lambda r: r.null, found, beside.exponents.value, is_leaf=lambda x: x is None)


@eqx.filter_jit
def _exponents(
    maps: AbstractMaps, u: Array, mask: Mask | None, key: PRNGKeyArray, k: int, every: int, drop: int, level: float
) -> LyapunovExponents:
    maps, real = ready(maps, u), real_entries(u.shape, mask)
    m = maps.count // every
    start = jnp.where(real[None], jax.random.normal(key, (k, *u.shape), u.dtype), 0)
    _, start = _orthonormal(start)

    def step(carry, i):
        u, q = carry
        # The state and what does not depend on the tangent are computed once for all tangents.
        u, q = jax.vmap(lambda v: jax.jvp(lambda w: maps(i, w), (u,), (v,)), out_axes=(None, 0))(q)
        return (u, jnp.where(real[None], q, 0)), None

    def part(carry, j):
        (u, q), _ = jax.lax.scan(step, carry, j * every + jnp.arange(every))
        logs, q = _orthonormal(q)
        return (u, q), logs

    (end, _), logs = jax.lax.scan(part, (u, start), jnp.arange(m))
    ts = maps.depths(u.dtype)
    width = (ts[-1] - ts[0]) / m
    kept = logs[drop:]
    count = m - drop
    lost = ~jnp.all(jnp.isfinite(jnp.where(real, end, 0))) | jnp.any(jnp.isnan(logs))
    value = jnp.where(lost, jnp.nan, jnp.sum(kept, axis=0) / (count * width))
    order = jnp.argsort(-value)
    history = jnp.cumsum(kept, axis=0) / (jnp.arange(1, count + 1).astype(u.dtype)[:, None] * width)
    low, high = _interval(kept[:, order] / width, value[order], level)
    return LyapunovExponents(
        Interval(value[order], low, high, level), ts[::every][drop + 1 :], history[:, order], lost, None
    )


def _orthonormal(q: Array) -> tuple[Array, Array]:
    """log|R_ii| `(k,)` and orthonormal tangents of the same shape."""
    basis, triangle = jnp.linalg.qr(q.reshape(q.shape[0], -1).T)
    return jnp.log(jnp.abs(jnp.diagonal(triangle))), basis.T.reshape(q.shape)


def _interval(rates: Float[Array, "m k"], value: Array, level: float) -> tuple[Array, Array]:
    """Ends of the t interval from means over equal parts; what does not fill a part is left out of it."""
    from scipy.special import stdtrit

    parts = min(BLOCKS, rates.shape[0])
    if parts < 2:
        nothing = jnp.full_like(value, jnp.nan)
        return nothing, nothing
    per = rates.shape[0] // parts
    means = jnp.mean(rates[: per * parts].reshape(parts, per, -1), axis=1)
    half = float(stdtrit(parts - 1, 0.5 + level / 2)) * jnp.std(means, axis=0, ddof=1) / parts**0.5
    return value - half, value + half
