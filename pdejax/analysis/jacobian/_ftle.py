"""Finite-time Lyapunov exponents token by token: how much a change of one token can grow over the whole depth."""

from typing import Any, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from pdejax._types import Mask
from pdejax.analysis.jacobian._krylov import arnoldi
from pdejax.analysis.jacobian._lyapunov import model_maps
from pdejax.analysis.jacobian._step_maps import AbstractMaps, equation_maps, in_batches, ready, through, without_padding
from pdejax.models import Simulator, Transformer

Response = Literal["all", "own"]


class FTLE(eqx.Module):
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


def ftle(
    system: Any,
    u0: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    t1: float | None = None,
    steps: int | None = None,
    solver: str | diffrax.AbstractSolver | None = None,
    t0: float = 0.0,
    split: Any = None,
    mask: ArrayLike | None = None,
    response: str = "all",
    iterations: int = 12,
    tolerance: float = 1e-3,
    batch_size: int = 8,
) -> FTLE:
    r"""Finite-time Lyapunov exponents per token, with J = ∂u(t₁)/∂u(t₀) on the state `u0 (n, d)`:

    $$\lambda_i = \frac1{t_1 - t_0}\log\sigma_{\max}\big(J_{\cdot i}\big)\ (\text{response "all"}),\qquad
      \lambda_i = \frac1{t_1 - t_0}\log\sigma_{\max}\big(J_{ii}\big)\ (\text{"own"}).$$

    "all" takes the columns of token i, (n·d, d): what a change of that token does to all real tokens. "own" takes its diagonal
    block (d, d): what is left of it in the token itself. The largest singular value comes from Lanczos with full
    reorthogonalization on $J_{\cdot i}^\top J_{\cdot i}$, min(`iterations`, d) steps, exact for d ≤ `iterations`.

    Systems, solvers and masks as in [`lyapunov_exponents`][pdejax.analysis.lyapunov_exponents]; batches by `jax.vmap`. For
    u' = uM all tokens have log σ_max(e^{tM})/t. Null: a system with `shuffle_weights`, or no attention (then "all" = "own").

    Cost: n·iterations products forwards and backwards through the whole depth, about 5 solves each: n = 64 tokens, 12
    iterations take some 4,000 solves. `batch_size` tokens run at once, with a trajectory each. In float32 good to 1e-5 in σ.

    Raises `ValueError`/`TypeError` for what does not fit.
    """
    key = jax.random.key(0) if key is None else key
    if response not in get_args(Response):
        raise ValueError(f"ftle: response={response!r} is unknown; choose one of {get_args(Response)}.")
    for name, value in (("iterations", iterations), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"ftle: {name}={value!r} must be a whole number of at least 1.")
    if not 0 < tolerance < 1:
        raise ValueError(f"ftle: tolerance={tolerance} must lie in (0, 1), such as 1e-3.")
    if isinstance(system, Transformer | Simulator):
        if any(value is not None for value in (t1, steps, solver, split)):
            raise ValueError("ftle: t1, steps, solver and split belong to equations; a model has its own.")
        maps, u, real = model_maps("ftle", system, u0, mask)
    else:
        if t1 is None:
            raise ValueError("ftle: an equation needs its depth t1 and steps; give t1=…, steps=….")
        if jnp.ndim(u0) != 2:
            raise ValueError(f"ftle: u0 has shape {jnp.shape(u0)}; it must be one field (n, d). Batches by jax.vmap.")
        solver = "rk4" if solver is None else solver
        given = {"t0": t0, "t1": t1, "steps": steps, "solver": solver, "split": split, "mask": mask, "maps": None}
        maps, u = equation_maps("ftle", system, u0, **given)
        real = maps.args.mask
    m = min(iterations, u.shape[1])
    return _ftle(maps, u, real, key, response, m, float(tolerance), batch_size)


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
    maps, (n, d) = ready(maps, u), u.shape

    def flow(u):
        return without_padding(through(maps, u), mask)

    def one(i):
        def gram(v):
            change = jax.jvp(flow, (u,), (jnp.zeros_like(u).at[i].set(v),))[1]
            if response == "own":
                change = jnp.where((jnp.arange(n) == i)[:, None], change, 0)
            return jax.vjp(flow, u)[1](change)[0][i]

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
        exponents, relative = jnp.where(mask, exponents, jnp.nan), jnp.where(mask, relative, 0)
        directions = jnp.where(mask[:, None], directions, 0)
    return FTLE(exponents, relative, relative <= tolerance, directions, depth)
