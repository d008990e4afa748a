"""Lyapunov exponents of the flow over depth, and finite-time exponents of every token."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._arguments import checked
from pdejax._check import choice, finite, integer, number, probability, real_array, traced
from pdejax._figure import AbstractRecord, Figure
from pdejax._step_maps import AbstractMaps, Flow, FunctionMaps, in_batches, real_count, real_entries
from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import arnoldi
from pdejax.analysis.jacobian._operator import Jacobian
from pdejax.analysis.jacobian._systems import model_maps

BLOCKS = 10  # depths are cut into as many equal parts for the interval, fewer where there are fewer steps


class LyapunovExponents(AbstractRecord):
    r"""The k largest exponents, per unit depth, descending.

    - `exponents`: a `Figure` `(k,)` with a Student-t interval from means over `blocks` equal parts of the depth, on the
      assumption that parts are independent and alike: too narrow for slow variation or a transient. NaN ends with fewer
      than two parts. Among its nulls `"null"`, the exponents of the null system, or `"gaussian"`.
    - `ts (m,)`, `history (m, k)`: the estimates from the start of averaging to each depth.
    - `diverged`: whether the state or a tangent became non-finite; exponents are NaN then.

    An exponent of a direction that a map sends to 0 exactly (a projection) is −∞, in floating point some −36/h (−16/h in
    float32), h the depth of one map.
    """

    exponents: Figure
    ts: Float[Array, "..."]
    history: Float[Array, "..."]
    diverged: Bool[Array, "..."]


@checked
def lyapunov_exponents(
    system: Any,
    u0: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    k: int,
    mask: ArrayLike | None = None,
    qr_every: int = 1,
    discard: float | int = 0.0,
    null: Any = None,
    level: float | int = 0.95,
) -> LyapunovExponents:
    r"""Find the `k` largest Lyapunov exponents of the flow on the whole state (n·d directions) over [t0, t1],

    $$\lambda_i = \frac1{t_1 - t_0}\sum_m\log R^{(m)}_{ii},\qquad D\Phi_m\,Q_{m-1} = Q_mR^{(m)},$$

    with Φ_m `qr_every` steps, Q₀ random orthonormal from `key` (default `jax.random.key(0)`). Source: Benettin et
    al. 1980, DOI 10.1007/BF02128236.

    - `system`: a `Discretization` with a number of steps, of a field on a state of any shape, and any solver, splittings and
      retractions included: exponents of the discrete flow, which those of the field differ from by O(h^p) (16 steps of RK4 per
      unit of depth are a start: refine until nothing moves). Or a `Network`, `Transformer` or `Simulator` on a state
      `(n, d)`: its layers, depth as they measure it. What a loop adds before every pass (`injection`) is held fixed.
    - `mask (n,)`: padded tokens carry no tangent; the state there is set to 0. At most n_real·d exponents.
    - `qr_every`: steps between two orthogonalizations; too many and the tangents align (all exponents tend to the largest: keep
      the spread of exponents times the depth between below 10 in float32, 25 in float64).
    - `discard`: depth at the beginning that is not averaged, while tangents turn to their directions.
    - `null`: a system of the same kind whose exponents are computed beside, from the same u0 and key, such as
      `shuffle_weights(system, key=…)`: the same sizes without the design.

    For finite depth they depend on Q₀ at O(1/t1): the largest is at most log σ_max/t1. With k = n·d they sum to log|det DΦ|/t1
    exactly. For the directions that grow most over exactly this depth see [`ftle`][pdejax.analysis.jacobian.ftle].

    Cost per step: one evaluation with k forward-mode products, and a QR of (n·d, k) in O(n·d·k²). Memory: k + 1 states and the
    working set of k products; no trajectory. Raises `ValueError`/`TypeError` for steps, k, masks or states that do not fit.
    """
    owner = "lyapunov_exponents"
    key = jax.random.key(0) if key is None else key
    maps, u, real = model_maps(owner, system, u0, mask)
    other = None if null is None else model_maps(owner, null, u0, mask)[0]
    return _run(owner, maps, other, u, real, k, qr_every, discard, level, key)


@checked
def lyapunov_of_maps(
    maps: ArrayLike | Callable[..., Array],
    u0: ArrayLike | None = None,
    *,
    key: PRNGKeyArray | None = None,
    k: int,
    steps: int | None = None,
    spacing: float | int = 1.0,
    qr_every: int = 1,
    discard: float | int = 0.0,
    level: float | int = 0.95,
) -> LyapunovExponents:
    r"""Find the `k` largest exponents of a product of matrices `maps (T, N, N)`, applied first to last, or of `steps`
    iterations of a function `maps(i, u) -> u` from `u0`, per unit depth with `spacing` to one map.

    The null of matrices: independent Gaussian ones, each brought to the Frobenius norm of the one given, in closed form,
    $\overline{\log\|A\|_F} + \tfrac12(\psi(\tfrac{N-i+1}2) - \psi(\tfrac{N^2}2))$: what sizes alone would give (see
    `gaussian_exponents`).

    The largest exponent of row-stochastic matrices tends to 0: they leave the vector of ones as it is and do not expand the
    largest entry. Otherwise as [`lyapunov_exponents`][pdejax.analysis.lyapunov_exponents].
    """
    owner = "lyapunov_of_maps"
    key = jax.random.key(0) if key is None else key
    width = jnp.asarray(number(owner, "spacing", spacing, above=0, advice="it is the depth of one map"))
    if not callable(maps):
        if steps is not None or u0 is not None:
            raise ValueError(f"{owner}: u0 and steps belong to a function; matrices (T, N, N) have their own number.")
        return _of_matrices(owner, maps, width, k, qr_every, discard, level, key)
    if u0 is None or steps is None:
        raise ValueError(f"{owner}: a function needs u0 and steps=…, how often it is applied.")
    u = real_array(owner, "u0", u0)
    found = jax.eval_shape(maps, 0, u)
    if getattr(found, "shape", None) != u.shape:
        raise ValueError(f"{owner}: the function gives {found} for shape {u.shape}; it must keep the shape.")
    iterated = FunctionMaps(step=maps, matrices=None, spacing=width, count=integer(owner, "steps", steps))
    return _run(owner, iterated, None, u, None, k, qr_every, discard, level, key)


def _of_matrices(owner: str, maps: Any, width: Array, k, qr_every, discard, level, key) -> LyapunovExponents:
    matrices = real_array(owner, "maps", maps, "(T, N, N), or a function (i, u) -> u", 3)
    if matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"{owner}: maps has shape {matrices.shape}; give (T, N, N) or a function (i, u) -> u.")
    finite(owner, "maps", matrices)
    size = matrices.shape[1]
    product = FunctionMaps(step=None, matrices=matrices, spacing=width, count=matrices.shape[0])
    result = _run(owner, product, None, jnp.zeros(size, matrices.dtype), None, k, qr_every, discard, level, key)
    # The direction of a Gaussian matrix does not depend on its Frobenius norm: give it the norm there is.
    norms = jnp.mean(0.5 * jnp.log(jnp.sum(matrices**2, axis=(1, 2))))
    directions = gaussian_exponents(size, k) - _log_chi(jnp.asarray(size**2, jnp.result_type(float)))
    beside = (norms + directions.astype(norms.dtype)) / width.astype(norms.dtype)
    return _beside(result, "gaussian", beside)


def gaussian_exponents(size: int, k: int, scale: float = 1.0) -> Float[Array, " k"]:
    r"""Give the k largest exponents per map of products of independent N × N matrices of N(0, s²) entries,

    $$\lambda_i = \log s + \tfrac12\Big(\log 2 + \psi\big(\tfrac{N-i+1}2\big)\Big),\quad i = 1\dots k,$$

    N = `size`, s = `scale`, ψ the digamma function. Source: Newman 1986, DOI 10.1007/BF01205694.
    Raises `ValueError` unless 1 ≤ k ≤ N.
    """
    integer("gaussian_exponents", "k", k, 1, size)
    freedom = size - jnp.arange(k).astype(jnp.result_type(float))
    return jnp.log(jnp.asarray(scale, freedom.dtype)) + _log_chi(freedom)


def _log_chi(freedom: Array) -> Array:
    """Mean logarithm of the length of a standard Gaussian vector of so many numbers."""
    return 0.5 * (np.log(2.0) + digamma(freedom / 2))


def _beside(record: LyapunovExponents, name: str, null: Array) -> LyapunovExponents:
    """The record with the exponents of a null among those of its figure."""
    found = record.exponents
    figure = found.beside({name: null})
    return eqx.tree_at(lambda r: r.exponents, record, figure, is_leaf=lambda x: isinstance(x, Figure))


def _run(owner: str, maps, null, u, mask, k, qr_every, discard, level, key) -> LyapunovExponents:
    integer(owner, "k", k, 1, real_count(u.shape, mask), advice="there are as many exponents as entries of real tokens")
    integer(owner, "qr_every", qr_every)
    if maps.count % qr_every:
        raise ValueError(f"{owner}: qr_every={qr_every} must divide the {maps.count} steps.")
    level = probability(owner, "level", level, advice="such as 0.95")
    m = maps.count // qr_every
    ends = maps.depths(u.dtype)
    drop = 0
    if number(owner, "discard", discard, least=0) != 0:
        if traced(ends):
            raise TypeError(f"{owner}: discard needs depths that are plain numbers, not traced.")
        drop = int(np.ceil(float(discard) / (float(ends[-1] - ends[0]) / m) - 1e-6))
    if drop >= m:
        raise ValueError(f"{owner}: discard={discard} must leave something of the depth {float(ends[-1] - ends[0]):g}.")
    found = _exponents(maps, u, mask, key, k, qr_every, drop, level)
    if null is None:
        return found
    beside = _exponents(null, u, mask, key, k, qr_every, drop, level)
    return _beside(found, "null", jnp.asarray(beside.exponents))


@eqx.filter_jit
def _exponents(
    maps: AbstractMaps, u: Array, mask: Mask | None, key: PRNGKeyArray, k: int, every: int, drop: int, level: float
) -> LyapunovExponents:
    maps, real = maps.ready(u), real_entries(u.shape, mask)
    m = maps.count // every
    start = jnp.where(real[None], jax.random.normal(key, (k, *u.shape), u.dtype), 0)
    _, start = _orthonormal(start)

    def step(carry, i):
        u, q = carry
        u, q = Jacobian(lambda w: maps(i, w), u).push(q)
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
    ends = _interval(kept[:, order] / width, value[order], level)
    return LyapunovExponents(Figure(value[order], *ends, level=level), ts[::every][drop + 1 :], history[:, order], lost)


def _orthonormal(q: Array) -> tuple[Array, Array]:
    """log|R_ii| `(k,)` and orthonormal tangents of the same shape."""
    basis, triangle = jnp.linalg.qr(q.reshape(q.shape[0], -1).T)
    return jnp.log(jnp.abs(jnp.diagonal(triangle))), basis.T.reshape(q.shape)


def _interval(rates: Float[Array, "m k"], value: Array, level: float) -> tuple[Array | None, Array | None]:
    """Ends of the t interval from means over equal parts; what does not fill a part is left out of it."""
    from scipy.special import stdtrit

    parts = min(BLOCKS, rates.shape[0])
    if parts < 2:
        return None, None
    per = rates.shape[0] // parts
    means = jnp.mean(rates[: per * parts].reshape(parts, per, -1), axis=1)
    half = float(stdtrit(parts - 1, 0.5 + level / 2)) * jnp.std(means, axis=0, ddof=1) / parts**0.5
    return value - half, value + half


RESPONSES = ("all", "own")


class FTLE(AbstractRecord):
    r"""Finite-time exponents of n tokens over `depth` t₁ − t₀.

    - `exponents (n,)`: log σ_max/(t₁ − t₀), per unit depth, from below; NaN at padding, −inf where a token has no influence.
    - `residuals (n,)`: of the iteration, relative to σ²_max; `converged (n,)`: at most the tolerance. Then
      σ is that near to a singular value, relative error residual/2. True at padding.
    - `directions (n, d)`: the unit change of token i that grows most; 0 at padding.
    """

    exponents: Float[Array, "..."]
    residuals: Float[Array, "..."]
    converged: Bool[Array, "..."]
    directions: Float[Array, "..."]
    depth: Float[Array, "..."]


@checked
def ftle(
    system: Any,
    u0: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    mask: ArrayLike | None = None,
    response: str = "all",
    iterations: int = 12,
    tolerance: float = 1e-3,
    batch_size: int = 8,
) -> FTLE:
    r"""Find finite-time Lyapunov exponents per token, with J = ∂u(t₁)/∂u(t₀) on the state `u0 (n, d)`:

    $$\lambda_i = \frac1{t_1 - t_0}\log\sigma_{\max}\big(J_{\cdot i}\big)\ (\text{response "all"}),\qquad
      \lambda_i = \frac1{t_1 - t_0}\log\sigma_{\max}\big(J_{ii}\big)\ (\text{"own"}).$$

    "all" takes the columns of token i, (n·d, d): what a change of that token does to all real tokens. "own" takes its diagonal
    block (d, d): what is left of it in the token itself. The largest singular value comes from Lanczos with full
    reorthogonalization on $J_{\cdot i}^\top J_{\cdot i}$, min(`iterations`, d) steps, exact for d ≤ `iterations`.

    Systems and masks are those of [`lyapunov_exponents`][pdejax.analysis.lyapunov_exponents]; batches by `jax.vmap`. For
    u' = uM all tokens have log σ_max(e^{tM})/t. What a loop adds before every pass (`injection`) is held fixed. Null:
    `shuffle_weights(system)`, or no attention (then "all" = "own").

    Cost: n·iterations products forwards and backwards through the whole depth, about 5 solves each: n = 64 tokens, 12
    iterations take some 4,000 solves. `batch_size` tokens run at once, with a trajectory each. In float32 good to 1e-5 in σ.

    Raises `ValueError`/`TypeError` for what does not fit.
    """
    key = jax.random.key(0) if key is None else key
    choice("ftle", "response", response, RESPONSES)
    integer("ftle", "iterations", iterations)
    integer("ftle", "batch_size", batch_size)
    probability("ftle", "tolerance", tolerance, advice="such as 1e-3")
    real_array("ftle", "u0", u0, "(n, d), one field; batches go through jax.vmap", 2)
    maps, u, real = model_maps("ftle", system, u0, mask)
    m = min(iterations, u.shape[1])
    found = _ftle(maps, u, real, key, response, m, float(tolerance), batch_size)
    if real is None:
        return found
    with jax.debug_nans(False):  # padding has no exponent
        return eqx.tree_at(lambda f: f.exponents, found, jnp.where(real, found.exponents, jnp.nan))


@eqx.filter_jit
def _ftle(
    maps: AbstractMaps,
    u: Array,
    mask: Mask | None,
    key: PRNGKeyArray,
    response: str,
    m: int,
    tolerance: float,
    batch: int,
) -> FTLE:
    n, d = u.shape
    jacobian = Jacobian(Flow(maps.ready(u)), u, mask)

    def one(i):
        def gram(v):
            change = jacobian.matvec(jnp.zeros_like(u).at[i].set(v))
            if response == "own":
                change = jnp.where((jnp.arange(n) == i)[:, None], change, 0)
            return jacobian.rmatvec(change)[i]

        matrix, beyond, basis = arnoldi(gram, jnp.ones(d, bool), m, jax.random.fold_in(key, i), u.dtype)
        values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
        top, vector = values[-1], vectors[:, -1]
        return top, beyond * jnp.abs(vector[-1]), vector @ basis

    squares, residuals, directions = in_batches(one, jnp.arange(n), batch)
    ts = maps.depths(u.dtype)
    depth = ts[-1] - ts[0]
    positive = squares > 0
    safe = jnp.where(positive, squares, 1)
    exponents = jnp.where(positive, 0.5 * jnp.log(safe) / depth, jnp.where(jnp.isnan(squares), jnp.nan, -jnp.inf))
    relative = jnp.where(positive, residuals / safe, residuals)
    if mask is not None:
        relative = jnp.where(mask, relative, 0)
        directions = jnp.where(mask[:, None], directions, 0)
    return FTLE(exponents, relative, relative <= tolerance, directions, depth)
